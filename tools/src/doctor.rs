// SPDX-License-Identifier: GPL-2.0
//! `kvmate doctor`: what is missing, what that costs, and what mends it ([`checks`]); and who keeps KVM's modules
//! in use ([`users`]). It looks at files below `/proc` and `/sys` only, and changes nothing.

mod checks;
mod patient;
mod users;

use crate::{columns::printable, json};
use anyhow::{bail, Result};
use checks::{Check, State};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};
use users::Users;

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmate doctor                 after modprobe kvmate: is all there?
  kvmate doctor | grep fd       rmmod says that kvm_amd is in use: by whom?
  kvmate doctor --json

Without root it tells what it could not see, which is not well.
Exit status: 0 all is well, 1 something is missing or could not be seen, 2 wrong usage.
tools/json.md documents --json.")]
pub struct Arguments {
    /// For programs: everything, as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What is found.
#[derive(Serialize, JsonSchema)]
pub struct Report {
    /// Whether all checks are `ok`.
    well: bool,
    /// What has to be there.
    checks: Vec<Check>,
    #[serde(flatten)]
    users: Users,
}

/// Where `/proc` and `/sys` are: below another folder in unit tests.
pub struct Root(PathBuf);

impl Root {
    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A file's text without white space at the ends, lossy: names may have any bytes.
    fn read(&self, path: &str) -> io::Result<String> {
        let bytes = fs::read(self.path(path))?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }
}

/// Do it.
pub fn run(asked: &Arguments) -> Result<()> {
    let root = Root(Path::new("/").into());
    let checks = checks::all(&root);
    let report = Report {
        well: checks.iter().all(|check| check.state == State::Ok),
        checks,
        users: Users::look(&root),
    };
    let told = tell(&report, asked.json);
    // This first: who reads may have gone (`| head`), which is not well for that.
    verdict(&report)?;
    told
}

/// Whether all is well.
fn verdict(report: &Report) -> Result<()> {
    let names = |state| -> String {
        let checks = report.checks.iter().filter(|check| check.state == state);
        checks
            .map(|check| check.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    match (names(State::Missing), names(State::Unknown)) {
        (missing, unknown) if missing.is_empty() && unknown.is_empty() => Ok(()),
        (missing, unknown) if missing.is_empty() => bail!("not seen: {unknown}; try as root"),
        (missing, _) => bail!("missing: {missing}; what mends it is told with each"),
    }
}

fn tell(report: &Report, as_json: bool) -> Result<()> {
    let mut out = anstream::stdout().lock();
    if as_json {
        json::plain(&mut out, report)?;
    } else {
        lines(&mut out, report)?;
    }
    Ok(out.flush()?)
}

fn lines(out: &mut impl Write, report: &Report) -> Result<()> {
    for check in &report.checks {
        let state = check.state.name();
        writeln!(
            out,
            "{state:<8} {:<9} {}",
            check.name,
            printable(&check.found)
        )?;
        for (what, text) in [("without", &check.cost), ("fix", &check.fix)] {
            if let Some(text) = text {
                writeln!(out, "{:18} {what}: {text}", "")?;
            }
        }
    }
    writeln!(out)?;
    report.users.tell(out)
}
