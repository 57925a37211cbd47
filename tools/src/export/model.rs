// SPDX-License-Identifier: GPL-2.0
//! What a scrape has read: values only. [`super::collect`] reads them, [`super::metrics`] writes them.

use crate::{
    records::{Exit, Histogram},
    tree::Process,
};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// What the loaded module tells.
#[derive(Debug, Default)]
pub struct Module {
    /// Its version.
    pub version: String,
    /// The kernel it was built for.
    pub release: String,
    /// Exits of all VMs since load; none without kvm.
    pub exits: Option<u64>,
    /// How many VMs there are.
    pub vm_count: usize,
    /// Those that are told of.
    pub vms: Vec<Vm>,
    /// How many memory files there are.
    pub file_count: usize,
    /// Those that are told of.
    pub files: Vec<MemoryFile>,
    /// What is there and not told of.
    pub left_out: LeftOut,
}

/// What is there and not told of, in this scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// VMs beyond the bound.
    pub vms: usize,
    /// vCPUs beyond the bound, of the VMs that are told of.
    pub vcpus: usize,
    /// Reasons beyond the bound, whosever.
    pub reasons: usize,
    /// Memory files beyond the bound.
    pub files: usize,
    /// VMs and memory files that ended while they were read.
    pub ended: usize,
}

/// A VM.
#[derive(Debug, Default)]
pub struct Vm {
    /// KVM's name for it.
    pub name: String,
    /// Whose it is.
    pub process: Option<Process>,
    /// How many vCPUs it has.
    pub vcpu_count: usize,
    /// Exits of all vCPUs, for all reasons, also of what is left out.
    pub exits: u64,
    /// By reason.
    pub reasons: Vec<Exit>,
    /// By vCPU and reason.
    pub vcpus: Vec<(u32, Vec<Exit>)>,
    /// How long its exits took, by reason.
    pub histograms: Vec<Histogram>,
}

/// A memory file.
#[derive(Debug, Default)]
pub struct MemoryFile {
    /// Its inode's number.
    pub inode: u64,
    /// Its numbers, by their names in `info`.
    pub numbers: BTreeMap<String, u64>,
}

impl MemoryFile {
    /// From `info`.
    pub fn new(inode: u64, info: &str) -> Result<Self> {
        let numbers = info.lines().map(|line| {
            let (name, number) = line.split_once(' ').with_context(|| format!("{line:?}"))?;
            let number = number.parse().with_context(|| format!("{line:?}"))?;
            Ok((name.to_owned(), number))
        });
        Ok(Self {
            inode,
            numbers: numbers.collect::<Result<_>>()?,
        })
    }

    /// Those whose names begin so, by the number behind it.
    pub fn by_order<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (u32, u64)> + 'a {
        let numbers = self.numbers.iter();
        let mut all: Vec<_> = numbers
            .filter_map(|(key, &number)| Some((key.strip_prefix(name)?.parse().ok()?, number)))
            .collect();
        all.sort_unstable();
        all.into_iter()
    }
}

/// The first bound of a histogram's buckets and the last, in bits: no exit is shorter, and hardly one is longer.
const BOUNDS: [u32; 2] = [8, 36];

/// How many exits took less than these nanoseconds, and not less than the bound before; `None`: the rest. What
/// is outside of the bounds is put together, for each bucket is a series.
pub fn buckets(histogram: &Histogram) -> Vec<(Option<u64>, u64)> {
    let [first, last] = BOUNDS;
    let mut buckets: Vec<_> = (first..=last).map(|bits| (Some(1 << bits), 0)).collect();
    buckets.push((None, 0));
    for bucket in &histogram.histogram {
        let at = bucket.bits().saturating_sub(first) as usize;
        let at = at.min(buckets.len() - 1);
        buckets[at].1 += bucket.count;
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Bucket;

    #[test]
    fn a_file() -> Result<()> {
        let text = "size 4096\nfolios_order0 5\nfolios_order9 2\nfolios_order10 1\n";
        let file = MemoryFile::new(7, text)?;
        assert_eq!(file.numbers["size"], 4096);
        let folios: Vec<_> = file.by_order("folios_order").collect();
        assert_eq!(folios, [(0, 5), (9, 2), (10, 1)]);
        assert!(MemoryFile::new(7, "size\n").is_err());
        assert!(MemoryFile::new(7, "size x\n").is_err());
        Ok(())
    }

    #[test]
    fn bounds() {
        let all = [(0, 1), (8, 2), (9, 4), (36, 8), (37, 16), (47, 32)];
        let all = all.map(|(bits, count)| Bucket {
            from_ns: Bucket::from_bits(bits),
            count,
        });
        let buckets = buckets(&Histogram {
            histogram: all.into(),
            ..Histogram::default()
        });
        assert_eq!(buckets.len(), 30);
        assert_eq!(buckets[0], (Some(256), 3));
        assert_eq!(buckets[1], (Some(512), 4));
        assert_eq!(buckets[28], (Some(1 << 36), 8));
        assert_eq!(buckets[29], (None, 48));
    }
}
