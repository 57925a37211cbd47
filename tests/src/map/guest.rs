// SPDX-License-Identifier: GPL-2.0
//! A guest whose memory is laid out on purpose, and its tables as kvmate shows them.

use crate::{
    ensure_eq,
    guest::{
        pages::{self, Touch, PAGE},
        Vm,
    },
    map::{self, Row},
    storm::name_of,
};
use anyhow::{ensure, Context, Result};
use kvm_ioctls::VcpuFd;
use std::collections::BTreeMap;

/// `KVM_MEM_LOG_DIRTY_PAGES`
pub const LOG: u32 = 1;
/// `KVM_MEM_READONLY`
pub const READ_ONLY: u32 = 2;
/// Where slots are put.
pub const AT: u64 = 1 << 30;

/// A VM whose guest touches pages. The vCPU goes first.
pub struct Guest {
    /// Its only vCPU.
    pub vcpu: VcpuFd,
    /// The VM.
    pub vm: Vm,
    /// Its name in debugfs.
    pub name: String,
}

impl Guest {
    /// Without any slot but that of its code.
    pub fn new() -> Result<Self> {
        let vm = Vm::new(pages::MEMORY, false)?;
        Ok(Self {
            vcpu: vm.vcpu(0)?,
            name: name_of(&vm),
            vm,
        })
    }

    /// Have it touch pages.
    pub fn touch(&mut self, list: &[(u64, Touch)]) -> Result<()> {
        pages::touch(&self.vm.memory, &mut self.vcpu, list)
    }

    /// The table.
    pub fn stage2(&self) -> Result<Vec<Row>> {
        map::table(&self.name, "stage2", map::STAGE2)
    }

    /// The table `stage2_map`.
    pub fn ranges(&self) -> Result<Vec<Row>> {
        map::table(&self.name, "stage2_map", map::RANGES)
    }

    /// Leaves and the rest of a level.
    pub fn level(&self, level: u64) -> Result<Row> {
        let rows = self.stage2()?;
        let found = rows
            .into_iter()
            .find(|row| row.number("level").ok() == Some(level));
        found.with_context(|| format!("no level {level}"))
    }

    /// The ranges at and behind [`AT`].
    pub fn ranges_of_slots(&self) -> Result<Vec<Row>> {
        let mut rows = self.ranges()?;
        rows.retain(|row| row.number("gpa").is_ok_and(|gpa| gpa >= AT));
        Ok(rows)
    }

    /// `stage2` and `stage2_map` say as much as KVM counts, and as each other.
    pub fn agrees(&self) -> Result<[u64; 3]> {
        let kvm = map::kvm_pages(&self.name)?;
        let rows = self.stage2()?;
        let levels = rows
            .iter()
            .map(|row| row.number("level"))
            .collect::<Result<Vec<_>>>()?;
        ensure!(
            [&[5, 4, 3, 2, 1][..], &[4, 3, 2, 1]].contains(&&levels[..]),
            "levels {levels:?}"
        );
        let mut sums: BTreeMap<(String, String), u64> = BTreeMap::new();
        for range in self.ranges()? {
            let (level, bytes) = (range.number("level")?, range.number("size")?);
            let entries = bytes >> (12 + 9 * (level - 1));
            ensure_eq!(range.get("root"), "0", "root of {range:?}");
            ensure_eq!(
                range.number("gpa")? % PAGE.max(bytes / entries),
                0,
                "alignment of {range:?}"
            );
            let key = |what: &str| (range.get("level").to_owned(), what.to_owned());
            *sums.entry(key(range.get("kind"))).or_default() += entries;
            if level == 1 && range.get("kind") == "leaf" {
                *sums.entry(key(range.get("why"))).or_default() += entries;
            } else {
                ensure_eq!(range.get("why"), "-", "why of {range:?}");
            }
        }
        for row in &rows {
            ensure_eq!(row.cells("root mode as vcpus"), "0 tdp 0 1", "{row:?}");
            let level = row.number("level")?;
            let leaves = row.number("leaves")?;
            let counted = *kvm.get(level as usize - 1).unwrap_or(&0);
            ensure_eq!(leaves, counted, "leaves of level {level}");
            ensure_eq!(
                row.number("bytes")?,
                leaves << (12 + 9 * (level - 1)),
                "bytes"
            );
            for (column, kind) in [("leaves", "leaf"), ("mmio", "mmio"), ("other", "other")] {
                let sum = sums.remove(&(level.to_string(), kind.into())).unwrap_or(0);
                ensure_eq!(
                    row.number(column)?,
                    sum,
                    "{kind} in the ranges of level {level}"
                );
            }
            let mut reasons = 0;
            for reason in map::STAGE2.split(' ').skip(12) {
                let sum = sums
                    .remove(&(level.to_string(), reason.into()))
                    .unwrap_or(0);
                ensure_eq!(row.number(reason)?, sum, "{reason} in the ranges");
                reasons += sum;
            }
            ensure_eq!(
                reasons,
                if level == 1 { leaves } else { 0 },
                "leaves with a reason"
            );
        }
        ensure!(sums.is_empty(), "in the ranges alone: {sums:?}");
        Ok(kvm)
    }
}

/// Addresses of pages, that many and so far apart.
pub fn every(from: u64, count: u64, step: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |i| from + i * step)
}

/// Writes to these.
pub fn writes(addresses: impl IntoIterator<Item = u64>) -> Vec<(u64, Touch)> {
    addresses.into_iter().map(|at| (at, Touch::Write)).collect()
}
