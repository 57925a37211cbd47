// SPDX-License-Identifier: GPL-2.0
//! What `--json` gives: `tools/json.md` is its documentation.

use crate::tree::Vm;
use anyhow::Result;
use serde::Serialize;
use std::io::Write;

/// The version: grows when a field changes its meaning or goes.
const VERSION: u32 = 1;

/// What `--json` gives.
#[derive(Serialize)]
struct Document<'a, T> {
    version: u32,
    vm: &'a str,
    pid: Option<u32>,
    process: Option<&'a str>,
    #[serde(flatten)]
    content: &'a T,
}

/// Write what is told of a VM.
pub fn vm(out: &mut impl Write, vm: &Vm, content: &impl Serialize) -> Result<()> {
    let process = vm.process.as_ref();
    let document = Document {
        version: VERSION,
        vm: &vm.name,
        pid: process.map(|process| process.pid),
        process: process.map(|process| process.name.as_str()),
        content,
    };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)?;
    Ok(())
}
