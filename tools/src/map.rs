// SPDX-License-Identifier: GPL-2.0
//! `kvmate map`: a VM's guest-physical memory. [`model`] is what was read, [`grid`] draws it, [`why`]
//! tells of small pages, [`page`] of one address.

mod grid;
mod model;
mod page;
mod why;

use crate::{
    cli,
    tree::{self, Vm},
};
use anyhow::Result;
use model::Map;
use serde::Serialize;
use std::io::Write;

/// The version of what `--json` gives: grows when a field changes its meaning or goes.
const JSON: u32 = 1;

/// Do it.
pub fn run(asked: &cli::Map) -> Result<()> {
    let vm = tree::find(&asked.vm)?;
    let mut out = anstream::stdout().lock();
    match asked.page {
        Some(gpa) => {
            let text = vm.look_up(gpa)?;
            let page = page::Page::new(&text)?;
            if asked.json {
                json(&mut out, &vm, &page)?;
            } else {
                page.tell(&mut out)?;
            }
        }
        None => {
            let map = Map::read(&vm)?;
            if asked.json {
                json(&mut out, &vm, &map)?;
            } else {
                title(&mut out, &vm)?;
                grid::draw(&mut out, &map)?;
                if asked.why {
                    why::tell(&mut out, &map)?;
                }
            }
        }
    }
    out.flush()?;
    Ok(())
}

fn title(out: &mut impl Write, vm: &Vm) -> Result<()> {
    match &vm.process {
        Some(process) => writeln!(out, "VM {} of {} ({})", vm.name, process.name, process.pid)?,
        None => writeln!(out, "VM {}", vm.name)?,
    }
    Ok(())
}

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

fn json(out: &mut impl Write, vm: &Vm, content: &impl Serialize) -> Result<()> {
    let process = vm.process.as_ref();
    let document = Document {
        version: JSON,
        vm: &vm.name,
        pid: process.map(|process| process.pid),
        process: process.map(|process| process.name.as_str()),
        content,
    };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)?;
    Ok(())
}

/// A number of bytes, exact, in the largest unit that it is a multiple of.
fn size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let unit = units
        .into_iter()
        .find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    match unit {
        Some((shift, letter)) => format!("{}{letter}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_exact() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (4096, "4K"),
            (12288, "12K"),
            (2 << 20, "2M"),
            ((2 << 20) + 4096, "2052K"),
            (1 << 30, "1G"),
            (3 << 40, "3T"),
            (1 << 51, "2048T"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
