// SPDX-License-Identifier: GPL-2.0
//! What `--json` gives: `tools/json.md` is its documentation, `tools/schema` has its schemas.

use crate::tree::{self, Vm};
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::io::Write;

/// The version: grows when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// What is told of one VM.
#[derive(Serialize, JsonSchema)]
pub struct OfVm<T> {
    /// 1; grows when a field changes its meaning or goes.
    version: u32,
    /// The VM's name in `/sys/kernel/debug/kvmate/vms`.
    vm: String,
    /// The process that made it, if that is still there.
    pid: Option<u32>,
    /// That process's name.
    process: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub content: T,
}

impl<T> OfVm<T> {
    /// What is told of that one.
    pub fn new(vm: &Vm, content: T) -> Self {
        let process = vm.process.as_ref();
        Self {
            version: VERSION,
            vm: vm.name.clone(),
            pid: process.map(|process| process.pid),
            process: process.map(|process| process.name.clone()),
            content,
        }
    }

    /// What is told of one whose process has gone.
    #[cfg(test)]
    pub fn named(vm: &str, content: T) -> Self {
        Self {
            version: VERSION,
            vm: vm.to_owned(),
            pid: None,
            process: None,
            content,
        }
    }

    /// What stands above it.
    pub fn title(&self) -> String {
        tree::title(&self.vm, self.pid, self.process.as_deref())
    }
}

/// Write a document for programs that people can read.
pub fn pretty(out: &mut impl Write, document: &impl Serialize) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, document)?;
    writeln!(out)?;
    Ok(())
}

/// Write a document as one line.
pub fn line(out: &mut impl Write, document: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *out, document)?;
    writeln!(out)?;
    Ok(())
}

/// What is told of no VM alone.
#[derive(Serialize, JsonSchema)]
pub struct Plain<T> {
    /// 1; grows when a field changes its meaning or goes.
    version: u32,
    /// The rest.
    #[serde(flatten)]
    content: T,
}

/// Write what is told of no VM alone.
pub fn plain(out: &mut impl Write, content: &impl Serialize) -> Result<()> {
    let version = VERSION;
    serde_json::to_writer_pretty(&mut *out, &Plain { version, content })?;
    writeln!(out)?;
    Ok(())
}
