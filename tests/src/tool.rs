// SPDX-License-Identifier: GPL-2.0
//! The tool `kvmate`, run as a user runs it.

pub mod top;
mod watch;

pub use watch::Watch;

use crate::{ensure_eq, storm};
use anyhow::{anyhow, ensure, Context, Result};
use serde_json::Value;
use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Child, Command, Output, Stdio},
};

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

/// A subcommand, with these arguments, run to its end.
pub fn run(subcommand: &str, arguments: &[&str]) -> Result<Done> {
    let mut command = command(subcommand)?;
    command.args(arguments);
    Done::of(command)
}

/// What it gives with `--json`, which has to be of the form that is promised.
pub fn json(subcommand: &str, arguments: &[&str]) -> Result<Value> {
    let mut command = command(subcommand)?;
    command.args(arguments).arg("--json");
    valid(subcommand, &Done::of(command)?.well()?)
}

/// The schemas of what `--json` gives, as they are committed.
pub const SCHEMAS: &[(&str, &str)] = &[
    ("list", include_str!("../../tools/schema/list.json")),
    ("exits", include_str!("../../tools/schema/exits.json")),
    ("times", include_str!("../../tools/schema/times.json")),
    ("msr", include_str!("../../tools/schema/msr.json")),
    ("faults", include_str!("../../tools/schema/faults.json")),
    ("irq", include_str!("../../tools/schema/irq.json")),
    ("vcpus", include_str!("../../tools/schema/vcpus.json")),
    ("snapshot", include_str!("../../tools/schema/snapshot.json")),
    ("map", include_str!("../../tools/schema/map.json")),
    ("map-page", include_str!("../../tools/schema/map-page.json")),
    ("inject", include_str!("../../tools/schema/inject.json")),
    (
        "inject-storm",
        include_str!("../../tools/schema/inject-storm.json"),
    ),
    (
        "gmem-list",
        include_str!("../../tools/schema/gmem-list.json"),
    ),
    ("gmem", include_str!("../../tools/schema/gmem.json")),
    ("doctor", include_str!("../../tools/schema/doctor.json")),
];

/// A document, if it is as a schema says.
pub fn valid(schema: &str, text: &str) -> Result<Value> {
    let found = SCHEMAS.iter().find(|(name, _)| *name == schema);
    let (_, rules) = found.with_context(|| format!("no schema {schema}"))?;
    let rules = serde_json::from_str(rules)?;
    let document = serde_json::from_str(text).with_context(|| text.to_owned())?;
    jsonschema::validate(&rules, &document)
        .map_err(|error| anyhow!("{schema} at {}: {error}", error.instance_path()))?;
    Ok(document)
}

/// The same without any rights.
pub fn run_as_nobody(arguments: &[&str]) -> Result<Done> {
    // Where the tool is, others cannot look.
    let copy = std::env::temp_dir().join("kvmate-tool");
    fs::copy(std::env::current_exe()?.with_file_name("kvmate"), &copy)?;
    let mut nobody = Command::new(&copy);
    nobody.args(arguments).uid(65534);
    let done = Done::of(nobody);
    fs::remove_file(copy)?;
    done
}

/// The same, while mounts that a script makes are there for it alone.
pub fn behind(script: &str, subcommand: &str, arguments: &[&str]) -> Result<Done> {
    let tool = command(subcommand)?;
    let mut command = Command::new("unshare");
    let script = format!("set -e\n{script}\nexec \"$@\"");
    command.args(["--mount", "sh", "-c", &script, "sh"]);
    command.arg(tool.get_program()).args(tool.get_args());
    command.args(arguments);
    Done::of(command)
}

/// Such a script: a text mounted over a file.
pub fn mounted(text: &str, over: &str) -> String {
    const FILE: &str = "/dev/shm/mounted";
    format!("echo '{text}' >{FILE}\nmount --bind {FILE} {over}")
}

/// A subcommand of it that runs meanwhile.
pub fn start(subcommand: &str, arguments: &[&str]) -> Result<Child> {
    let mut command = command(subcommand)?;
    let command = command.args(arguments).stdin(Stdio::null());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    child.spawn().context("the tool")
}

/// Stand by until one that was started has become its command.
pub fn became(child: &Child, command: &str) -> Result<()> {
    let comm = format!("/proc/{}/comm", child.id());
    let wanted = format!("{command}\n");
    storm::until("it is the command", || {
        Ok(fs::read_to_string(&comm)? == wanted)
    })
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
        Self::new(command.output().context("the tool")?)
    }

    /// Stand by until one that was started has ended.
    pub fn awaited(child: Child) -> Result<Self> {
        Self::new(child.wait_with_output()?)
    }

    fn new(done: Output) -> Result<Self> {
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
