// SPDX-License-Identifier: GPL-2.0
//! The tool `kvmate`, run as a user runs it.

use crate::ensure_eq;
use anyhow::{ensure, Context, Result};
use std::process::Command;

/// A subcommand of it.
pub fn command(subcommand: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?.with_file_name("kvmate"));
    command.arg(subcommand);
    Ok(command)
}

/// The same with arguments.
pub fn of(subcommand: &str, arguments: &[&str]) -> Result<Command> {
    let mut command = command(subcommand)?;
    command.args(arguments);
    Ok(command)
}

/// What the tool did.
pub struct Done {
    /// Its exit status.
    pub status: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Done {
    /// Let it run to its end.
    pub fn of(mut command: Command) -> Result<Self> {
        let done = command.output().context("the tool")?;
        Ok(Self {
            status: done.status.code(),
            out: String::from_utf8(done.stdout)?,
            err: String::from_utf8(done.stderr)?,
        })
    }

    /// What it said, having done all.
    pub fn well(self) -> Result<String> {
        ensure!(
            self.status == Some(0),
            "status {:?}: {}",
            self.status,
            self.err
        );
        ensure_eq!(self.err, "", "on its standard error");
        Ok(self.out)
    }

    /// One line of an error with that in it, and nothing else.
    pub fn says(&self, status: i32, part: &str) -> Result<()> {
        ensure_eq!(self.status, Some(status), "status; it said {:?}", self.err);
        ensure_eq!(self.out, "", "on its standard output");
        ensure!(self.err.contains(part), "{part:?} is not in {:?}", self.err);
        let lines = self.err.lines().count();
        ensure!(status == 2 || lines == 1, "{:?} is not one line", self.err);
        Ok(())
    }
}
