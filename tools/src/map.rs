// SPDX-License-Identifier: GPL-2.0
//! `kvmate map`: a VM's guest-physical memory. [`model`] is what was read, [`grid`] draws it, [`why`]
//! tells of small pages, [`page`] of one address.

mod grid;
mod model;
mod page;
mod why;

use crate::{
    json::{self, OfVm},
    say, tree, units,
};
use anyhow::Result;
use clap::Args;
pub use model::Map;
pub use page::Page;
use std::{io::Write, time::Duration};

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmate map qemu --why          of the only VM of a process with that in its name
  kvmate map 101-4 --page 1030M
  kvmate map 101-4 --json | jq '[.ranges[] | select(.kind == \"leaf\") | .size] | add'
Colours are for terminals only; NO_COLOR=1 switches them off, CLICOLOR_FORCE=1 on.
Exit status: 0 done, 1 failed, 2 wrong usage. tools/json.md documents --json.")]
pub struct Arguments {
    /// The VM: its name in /sys/kernel/debug/kvmate/vms (101-4), a process's number, or a part of
    /// a process's name that only one VM has
    pub vm: String,
    /// Tell which ranges are mapped by 4 KiB where 2 MiB could be, and why
    #[arg(long, conflicts_with = "page")]
    pub why: bool,
    /// Tell what is behind one guest-physical address: 0x12345000, 4096, 2M, 1G
    #[arg(long, value_name = "GPA", value_parser = units::address)]
    pub page: Option<u64>,
    /// For programs: everything, as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A map of a large guest is read in less.
const PATIENCE: Duration = Duration::from_secs(5);
const LONG: &str =
    "note: it takes long. A VMM that hangs with its memory locked is waited for: kvmate snapshot \
                    answers then, and Ctrl-C ends this";

/// Do it.
pub fn run(asked: &Arguments) -> Result<()> {
    let vm = tree::find(&asked.vm)?;
    let reading = say::if_longer(PATIENCE, || say::say(LONG))?;
    let mut out = anstream::stdout().lock();
    match asked.page {
        Some(gpa) => {
            let text = vm.look_up(gpa)?;
            drop(reading);
            let page = Page::new(&text)?;
            if asked.json {
                json::pretty(&mut out, &OfVm::new(&vm, &page))?;
            } else {
                page.tell(&mut out)?;
            }
        }
        None => {
            let map = Map::read(&vm)?;
            drop(reading);
            if asked.json {
                json::pretty(&mut out, &OfVm::new(&vm, &map))?;
            } else {
                writeln!(out, "{}", vm.title())?;
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
