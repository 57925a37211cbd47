// SPDX-License-Identifier: GPL-2.0
//! What a memory file has where: `KVMATE_GMEM_QUERY`, and `map` in debugfs.

use super::Map;
use anyhow::{ensure, Context, Result};
use kvmate_uapi::{
    kvmate_gmem_query, kvmate_gmem_record, KVMATE_GMEM_DIRTY, KVMATE_GMEM_HOLE, KVMATE_GMEM_LOCKED,
    KVMATE_GMEM_MAPPED, KVMATE_GMEM_PINNED, KVMATE_GMEM_POISONED, KVMATE_GMEM_QUERY,
};
use nix::{errno::Errno, libc};
use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::FileExt, unix::fs::MetadataExt},
};

/// A folio or a hole.
pub type Record = kvmate_gmem_record;

/// The call itself.
pub fn ask(file: &File, query: &mut kvmate_gmem_query) -> nix::Result<()> {
    // SAFETY: The argument is one of that ioctl's; the kernel checks the array's address.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), KVMATE_GMEM_QUERY, query) }).map(drop)
}

/// All of a range, so many records a call.
pub fn records(file: &File, offset: usize, length: usize, at_once: u32) -> Result<Vec<Record>> {
    let mut all = Vec::new();
    let mut query = kvmate_gmem_query {
        offset: offset as u64,
        length: length as u64,
        ..Default::default()
    };
    while query.length > 0 {
        let mut room = vec![Record::default(); at_once as usize];
        (query.records, query.count) = (room.as_mut_ptr() as u64, at_once);
        let before = query.offset;
        ask(file, &mut query).context("KVMATE_GMEM_QUERY")?;
        ensure!(
            query.offset > before || query.length == 0,
            "no way on: {query:?}"
        );
        all.extend(&room[..query.count as usize]);
    }
    Ok(all)
}

/// What is at a byte.
pub fn at(file: &File, offset: usize) -> Result<Record> {
    let page = offset / super::PAGE * super::PAGE;
    let all = records(file, page, super::PAGE, 1)?;
    all.first().copied().context("behind the end")
}

/// Where `map` is.
pub fn map_path(file: &File) -> Result<String> {
    let number = file.metadata()?.ino();
    Ok(format!("{}/gmem/{number}/map", crate::module::DEBUGFS))
}

fn number(text: &str) -> Result<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => Ok(u64::from_str_radix(hex, 16)?),
        None => Ok(text.parse()?),
    }
}

fn line(line: &str) -> Result<Record> {
    let words: Vec<_> = line.split(' ').collect();
    let mut record = Record {
        offset: number(words[0])?,
        length: number(words[1])?,
        flags: KVMATE_GMEM_HOLE,
        ..Default::default()
    };
    match words[2..] {
        ["hole"] => return Ok(record),
        ["hole", "poisoned"] => {
            record.flags |= KVMATE_GMEM_POISONED;
            return Ok(record);
        }
        _ => {}
    }
    ensure!(words.len() == 8 && words[2] == "folio", "{line}");
    let numbers = words[3..7].iter().map(|word| number(word));
    let numbers = numbers.collect::<Result<Vec<_>>>()?;
    record.order = numbers[0] as u32;
    record.references = numbers[1] as u32;
    record.expected = numbers[2] as u32;
    record.mappings = numbers[3] as u32;
    record.flags = 0;
    for name in words[7].split(',').filter(|name| !name.is_empty()) {
        record.flags |= match name {
            "mapped" => KVMATE_GMEM_MAPPED,
            "pinned" => KVMATE_GMEM_PINNED,
            "poisoned" => KVMATE_GMEM_POISONED,
            "locked" => KVMATE_GMEM_LOCKED,
            "dirty" => KVMATE_GMEM_DIRTY,
            _ => anyhow::bail!("unknown flag {name}"),
        };
    }
    Ok(record)
}

/// All lines of `map`.
pub fn map(file: &File) -> Result<Vec<Record>> {
    let text = fs::read_to_string(map_path(file)?)?;
    text.lines()
        .map(|text| line(text).with_context(|| text.to_owned()))
        .collect()
}

/// How often the page behind a byte of a mapping is mapped: `/proc/kpagecount`.
pub fn mapped(map: &Map, at: usize) -> Result<u64> {
    frame_mapped(map.frame(at)?)
}

/// How often a page frame is mapped: `/proc/kpagecount`.
pub fn frame_mapped(frame: u64) -> Result<u64> {
    let mut count = [0; 8];
    File::open("/proc/kpagecount")?.read_exact_at(&mut count, frame * 8)?;
    Ok(u64::from_ne_bytes(count))
}
