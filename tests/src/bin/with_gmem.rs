// SPDX-License-Identifier: GPL-2.0
//! `with_gmem MIB COMMAND...`: run a command, a VMM say, with a new memory file of so many MiB as its
//! descriptor 3. The file is the command's alone: it goes with the last process that has it.

use anyhow::{bail, Context, Result};
use kvmate_tests::gmem;
use nix::{errno::Errno, libc};
use std::{
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Command, ExitCode},
};

const FD: i32 = 3;

fn main() -> ExitCode {
    let Err(error) = run();
    eprintln!("with_gmem: error: {error:#}");
    ExitCode::FAILURE
}

fn run() -> Result<std::convert::Infallible> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mib, command, rest @ ..] = &arguments[..] else {
        bail!("usage: with_gmem MIB COMMAND...");
    };
    let size = mib
        .parse::<usize>()
        .ok()
        .and_then(|n| n.checked_mul(1 << 20));
    let file = gmem::create(size.context("MIB: a number")?, 0)?;
    // A copy is not closed by exec; one onto itself would be.
    // SAFETY: Integers only. Descriptor 3 is free, or this file's or its device's.
    Errno::result(unsafe {
        match file.as_raw_fd() {
            FD => libc::fcntl(FD, libc::F_SETFD, 0),
            other => libc::dup2(other, FD),
        }
    })?;
    Err(Command::new(command).args(rest).exec()).context(command.clone())
}
