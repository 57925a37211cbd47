// SPDX-License-Identifier: GPL-2.0
//! `kvmate`: what the module tells, for people and for programs.
//!
//! [`cli`] is the command line, a module of its own each subcommand ([`map`], [`export`]); [`tree`] reads the module's
//! files in debugfs, [`table`] takes their text apart, [`units`] and [`json`] are how numbers and all of it are
//! written. Exit status: 0 done, 1 failed, 2 the command line was wrong.
#![forbid(unsafe_code)]

mod cli;
mod export;
mod json;
mod map;
mod table;
mod tree;
mod units;

use clap::Parser;
use std::{io, process::ExitCode};

fn main() -> ExitCode {
    let done = match cli::Arguments::parse().command {
        cli::Command::Map(asked) => map::run(&asked),
        cli::Command::Export(asked) => export::run(&asked),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads has enough, as of `kvmate map … | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvmate: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| {
        let json = cause.downcast_ref::<serde_json::Error>();
        let plain = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        plain.or_else(|| json.and_then(serde_json::Error::io_error_kind))
    });
    kinds
        .into_iter()
        .any(|kind| kind == io::ErrorKind::BrokenPipe)
}
