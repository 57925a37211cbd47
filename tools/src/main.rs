// SPDX-License-Identifier: GPL-2.0
//! `kvmate`: what the module tells, for people and for programs.
//!
//! [`cli`] is the command line, a module of its own each subcommand ([`list`], [`map`], [`gmem`], …) or several that are
//! alike ([`tables`]); [`tree`] reads the module's files in debugfs, [`table`] takes their text apart,
//! [`records`] are their rows; [`watch`] is how often it is told, [`columns`], [`units`] and [`json`]
//! ([`schema`]) how, [`say`] what else there is to be said. Exit status: 0 done, 1 failed, 2 the command line was wrong; where a
//! command is run ([`become_command`]), that command's.
#![forbid(unsafe_code)]

mod become_command;
mod cells;
mod cli;
mod columns;
mod device;
mod doctor;
mod export;
mod gmem;
mod inject;
mod irqfd;
mod json;
mod list;
mod map;
mod pages;
mod process;
mod records;
mod say;
mod schema;
mod signals;
mod snapshot;
mod table;
mod tables;
mod top;
mod trace;
mod tree;
mod units;
mod watch;

use clap::Parser;
use std::{io, process::ExitCode};

fn main() -> ExitCode {
    let done = match cli::Arguments::parse().command {
        cli::Command::List(asked) => list::run(&asked),
        cli::Command::Top(asked) => top::run(&asked),
        cli::Command::Exits(asked) => tables::run::<records::Exit>(&asked),
        cli::Command::Times(asked) => tables::run::<records::Time>(&asked),
        cli::Command::Msr(asked) => tables::run::<records::Msr>(&asked),
        cli::Command::Faults(asked) => tables::run::<records::Fault>(&asked),
        cli::Command::Irq(asked) => tables::run::<records::Irq>(&asked),
        cli::Command::Vcpus(asked) => tables::run_vcpus(&asked),
        cli::Command::Snapshot(asked) => snapshot::run(&asked),
        cli::Command::Map(asked) => map::run(&asked),
        cli::Command::Inject(asked) => inject::run(&asked),
        cli::Command::Irqfd(asked) => irqfd::run(&asked),
        cli::Command::Gmem(asked) => gmem::run(&asked),
        cli::Command::Trace(asked) => trace::run(&asked),
        cli::Command::Export(asked) => export::run(&asked),
        cli::Command::Doctor(asked) => doctor::run(&asked),
        cli::Command::Schema(asked) => schema::run(&asked),
        cli::Command::Completions(asked) => pages::completions(&asked),
        cli::Command::Man(asked) => pages::man(&asked),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads has enough, as of `kvmate map … | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say::say(format_args!("error: {error:#}"));
            become_command::status(&error).into()
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
