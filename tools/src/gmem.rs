// SPDX-License-Identifier: GPL-2.0
//! `kvmate gmem`: memory files. [`create`] makes one for a command, [`list`] tells which there are, [`record`]
//! reads what one has where, [`draw`] draws it, [`target`] is which one is meant, [`change`] changes it.

mod change;
mod create;
mod draw;
pub mod list;
mod record;
mod target;

use crate::{json, units::size};
use anyhow::Result;
use clap::{Args, Subcommand};
use record::Record;
use schemars::JsonSchema;
use serde::Serialize;
use std::{io::Write, ops::Range};

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmate gmem create --size 1G --name ram -- sh -c 'stat -L {}'   a file, and a command that has it
  kvmate gmem list                                                which there are
  kvmate gmem map 2                                               what the one with inode 2 has where
  kvmate gmem split --pid 101 --fd 3 --offset 2M --length 2M      one of process 101's
Exit status: 0 done, 1 failed, 2 wrong usage; of create the command's.")]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub what: What,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Make a memory file, and run a command with it
    Create(create::Arguments),
    /// List memory files, and who has them
    List(List),
    /// Draw what a memory file has where
    Map(Shown),
    /// List a memory file's folios and holes, and who holds them
    Query(Shown),
    /// Split folios: huge pages to small ones, while they are used
    Split(change::Split),
    /// Merge folios to huge ones, while they are used
    Merge(change::Merge),
    /// Give memory back: make a hole
    Punch(change::Punch),
}

/// What list takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmate gmem list
  kvmate gmem list --json | jq '.files[] | select(.name == \"ram\") | .inode'
Exit status: 0 done, 1 failed, 2 wrong usage. tools/json.md documents --json.")]
pub struct List {
    #[command(flatten)]
    json: Json,
}

/// How it is told.
#[derive(Debug, Args)]
pub struct Json {
    /// For programs: as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A file, or a part of it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmate gmem list; kvmate gmem map 2                      by its inode's number
  kvmate gmem map --pid $(pidof qemu-system-x86_64) --fd 3
  kvmate gmem query 2 --offset 1G --length 4M --json
Exit status: 0 done, 1 failed, 2 wrong usage. tools/json.md documents --json.")]
pub struct Shown {
    #[command(flatten)]
    which: target::Any,
    #[command(flatten)]
    part: target::Part,
    #[command(flatten)]
    json: Json,
}

/// What is told of a file; the fields' names are those of `--json`.
#[derive(Serialize, JsonSchema)]
pub struct Content {
    /// The file's number.
    inode: u64,
    /// The file's bytes.
    size: u64,
    /// Folios and holes, in the order of the file.
    records: Vec<Record>,
    /// Only this was asked for.
    #[serde(skip)]
    part: Option<Range<u64>>,
}

/// Do it.
pub fn run(asked: &Arguments) -> Result<()> {
    let mut out = anstream::stdout().lock();
    match &asked.what {
        What::Create(asked) => create::run(asked)?,
        What::List(asked) => list::run(&mut out, asked.json.json)?,
        What::Map(asked) => show(&mut out, asked, draw::draw)?,
        What::Query(asked) => show(&mut out, asked, table)?,
        What::Split(asked) => asked.run(&mut out)?,
        What::Merge(asked) => asked.run(&mut out)?,
        What::Punch(asked) => asked.run(&mut out)?,
    }
    out.flush()?;
    Ok(())
}

fn show<W: Write>(
    out: &mut W,
    asked: &Shown,
    tell: impl FnOnce(&mut W, &Content) -> std::io::Result<()>,
) -> Result<()> {
    let file = asked.which.find()?;
    let size = file.size()?;
    let part = asked.part.of(size)?;
    let content = Content {
        inode: file.inode,
        size,
        records: file.records(part.clone().unwrap_or(0..size))?,
        part,
    };
    match asked.json.json {
        true => json::plain(out, &content),
        false => Ok(tell(out, &content)?),
    }
}

fn table(out: &mut impl Write, content: &Content) -> std::io::Result<()> {
    writeln!(
        out,
        "{:>18} {:>8} {:<5} {:>10} {:>8} {:>8} flags",
        "offset", "size", "what", "references", "expected", "mappings"
    )?;
    for record in &content.records {
        let (offset, length) = (record.offset, size(record.length));
        let what = if record.hole { "hole" } else { "folio" };
        write!(out, "{offset:>#18x} {length:>8} {what:<5} ")?;
        match record.hole {
            true => write!(out, "{:>10} {:>8} {:>8} ", "-", "-", "-")?,
            false => write!(
                out,
                "{:>10} {:>8} {:>8} ",
                record.references, record.expected, record.mappings
            )?,
        }
        let held = (record.references > record.expected).then(|| "held".to_owned());
        let flags: Vec<_> = record.flags.iter().cloned().chain(held).collect();
        writeln!(
            out,
            "{}",
            if flags.is_empty() {
                "-".into()
            } else {
                flags.join(",")
            }
        )?;
    }
    Ok(())
}
