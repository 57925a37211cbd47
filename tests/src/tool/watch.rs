// SPDX-License-Identifier: GPL-2.0
//! `kvmate … --watch`, read while it tells.

use super::Done;
use crate::tool;
use anyhow::{bail, ensure, Context, Result};
use nix::{
    sys::signal::{kill, Signal},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Stdio},
};

/// How often it tells, in seconds.
const PERIOD: &str = "0.05";

/// A tool that watches; dropping it kills.
pub struct Watch {
    subcommand: &'static str,
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watch {
    /// Start it.
    pub fn new(subcommand: &'static str, arguments: &[&str]) -> Result<Self> {
        let mut command = tool::command(subcommand)?;
        command.args(arguments).args(["--watch", PERIOD]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self {
            subcommand,
            child,
            lines,
        })
    }

    /// The next line.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        if line.is_empty() {
            let mut said = String::new();
            let pipe = self.child.stderr.as_mut().context("stderr")?;
            pipe.read_to_string(&mut said)?;
            bail!("{} has ended: {said}", self.subcommand);
        }
        Ok(line)
    }

    /// The next document: one a line.
    pub fn document(&mut self) -> Result<Value> {
        let line = self.line()?;
        let document = tool::valid(self.subcommand, &line)?;
        let interval = document["interval_ns"].as_u64();
        ensure!(interval.is_some_and(|ns| ns > 0), "interval in {line}");
        Ok(document)
    }

    /// Ctrl-C.
    pub fn interrupt(&self) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT)?;
        Ok(())
    }

    /// The reader's end is closed, and another put into its place.
    pub fn read_no_further(&mut self) -> Result<()> {
        let (none, _) = nix::unistd::pipe()?;
        self.lines = BufReader::new(ChildStdout::from(none));
        Ok(())
    }

    /// What it did, all told.
    pub fn end(mut self) -> Result<Done> {
        let (mut out, mut err) = (String::new(), String::new());
        self.lines.read_to_string(&mut out)?;
        let mut pipe = self.child.stderr.take().context("stderr")?;
        pipe.read_to_string(&mut err)?;
        let status = self.child.wait()?.code();
        Ok(Done { status, out, err })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
