// SPDX-License-Identifier: GPL-2.0
//! kvmate's tables of a VM's memory, read as a user reads them; and what the kernel says of pages.
//! [`guest`] is a guest to compare them with.

pub mod guest;

use crate::seen;
use anyhow::{ensure, Context, Result};
use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt};

/// The columns of `memslots`.
pub const MEMSLOTS: &str = "as slot gpa size hva flags dirty backing share vmas inode offset file";
/// The columns of `stage2`.
pub const STAGE2: &str = "root mode as vcpus level tables leaves bytes mmio frozen other held_ns \
     slot-alignment edge dirty-log write-tracked mixed-permissions host-4k nx-recovery unknown";
/// The columns of `stage2_map`.
pub const RANGES: &str = "root kind level gpa size access type write flags why";

/// A row: its cells, by the columns' names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row(pub BTreeMap<String, String>);

impl Row {
    /// A cell.
    pub fn get(&self, column: &str) -> &str {
        self.0.get(column).map_or("", String::as_str)
    }

    /// A number in a cell, decimal or hexadecimal.
    pub fn number(&self, column: &str) -> Result<u64> {
        number(self.get(column)).with_context(|| format!("{column} of {self:?}"))
    }

    /// Some cells, with blanks.
    pub fn cells(&self, columns: &str) -> String {
        let cells: Vec<_> = columns.split(' ').map(|column| self.get(column)).collect();
        cells.join(" ")
    }
}

/// A number, decimal or hexadecimal.
pub fn number(text: &str) -> Result<u64> {
    Ok(match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16)?,
        None => text.parse()?,
    })
}

/// Read a table of a VM, which must have these columns.
pub fn table(vm: &str, name: &str, columns: &str) -> Result<Vec<Row>> {
    let path = seen::vms().join(vm).join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    parse(&text, columns).with_context(|| path.display().to_string())
}

/// Read a table's text.
pub fn parse(text: &str, columns: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    ensure!(header == columns, "columns {header:?}");
    let names: Vec<_> = columns.split(' ').collect();
    lines
        .map(|line| {
            let cells: Vec<_> = line.split(' ').collect();
            ensure!(cells.len() == names.len(), "columns of {line:?}");
            let cells = names.iter().zip(cells);
            Ok(Row(cells.map(|(n, c)| ((*n).into(), c.into())).collect()))
        })
        .collect()
}

/// Ask `lookup` of a VM.
pub fn look_up(vm: &str, gpa: u64) -> Result<Row> {
    let path = seen::vms().join(vm).join("lookup");
    std::fs::write(&path, format!("{gpa:#x}")).context("writing lookup")?;
    let text = std::fs::read_to_string(&path).context("reading lookup")?;
    let facts = text.lines().map(|line| {
        let (name, fact) = line.split_once(' ').context("a name and a fact")?;
        Ok((name.into(), fact.into()))
    });
    Ok(Row(facts.collect::<Result<_>>()?))
}

/// How many leaves of a level a VM has, by KVM's own statistics.
pub fn kvm_pages(vm: &str) -> Result<[u64; 3]> {
    let of = |name: &str| -> Result<u64> {
        let path = format!("/sys/kernel/debug/kvm/{vm}/{name}");
        let text = std::fs::read_to_string(&path).context(path)?;
        Ok(text.trim().parse()?)
    };
    Ok([of("pages_4k")?, of("pages_2m")?, of("pages_1g")?])
}

/// A word of a file of such.
fn word(path: &str, index: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    let file = File::open(path).with_context(|| path.to_owned())?;
    file.read_exact_at(&mut bytes, index * 8)
        .with_context(|| format!("{path} at {index:#x}"))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The page frame behind an address of this process, if one is there.
pub fn page_map(address: u64) -> Result<Option<u64>> {
    page_map_of(std::process::id(), address)
}

/// The same of any process.
pub fn page_map_of(process: u32, address: u64) -> Result<Option<u64>> {
    let word = word(&format!("/proc/{process}/pagemap"), address / 4096)?;
    Ok((word >> 63 == 1).then_some(word & ((1 << 55) - 1)))
}

/// `/proc/kpageflags`
pub fn page_flags(pfn: u64) -> Result<u64> {
    word("/proc/kpageflags", pfn)
}

/// `/proc/kpagecount`
pub fn page_count(pfn: u64) -> Result<u64> {
    word("/proc/kpagecount", pfn)
}

/// `/proc/kpagecgroup`
pub fn page_cgroup(pfn: u64) -> Result<u64> {
    word("/proc/kpagecgroup", pfn)
}
