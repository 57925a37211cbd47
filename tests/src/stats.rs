// SPDX-License-Identifier: GPL-2.0
//! KVM's own statistics of a vCPU or a VM (`KVM_GET_STATS_FD`): the oracle for what kvmate counts; and
//! kvmate's own, which have the same layout.

use crate::ensure_eq;
use anyhow::{ensure, Context, Result};
use std::{
    collections::HashMap,
    fs::File,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::FileExt,
    },
};

mod numbers {
    #![allow(missing_docs)] // the macro's function takes no comment
    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);
}
use numbers::KVM_GET_STATS_FD;

/// An open statistics descriptor and its layout.
pub struct Stats {
    /// The descriptor.
    pub file: File,
    /// Where each statistic's numbers are, and how many.
    offsets: HashMap<String, (u64, usize)>,
}

/// All numbers of one moment.
pub struct Values(pub HashMap<String, Vec<u64>>);

impl Values {
    /// The first number of a statistic.
    pub fn get(&self, name: &str) -> Result<u64> {
        self.all(name)?.first().copied().context("no number")
    }

    /// All numbers of a statistic.
    pub fn all(&self, name: &str) -> Result<&[u64]> {
        let numbers = self.0.get(name);
        Ok(numbers.with_context(|| format!("no statistic {name}"))?)
    }

    /// What must be so of kvmate's of one read, whatever the guest does meanwhile.
    pub fn add_up(&self) -> Result<()> {
        let exits = (self.get("exits")?, self.sum("exits_"));
        ensure_eq!(exits.0, exits.1, "exits, and of all reasons");
        let histogram: u64 = self.all("exit_hist")?.iter().sum();
        ensure_eq!(histogram, self.get("exit_timed")?, "the histogram");
        let parts = ["user", "halted", "preempted", "kernel"];
        let parts = parts.map(|part| self.get(&format!("times_{part}_ns")));
        let parts: u64 = parts.into_iter().sum::<Result<u64>>()?;
        ensure_eq!(parts, self.get("times_ns")?, "the parts of times");
        Ok(())
    }

    /// The sum of all statistics whose names begin so.
    pub fn sum(&self, prefix: &str) -> u64 {
        let named = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        named.flat_map(|(_, numbers)| numbers).sum()
    }
}

impl Stats {
    /// Open those of a vCPU, or of a VM.
    pub fn of(owner: &impl AsRawFd) -> Result<Self> {
        // SAFETY: An ioctl without an argument that gives a descriptor or an error.
        let fd = unsafe { vmm_sys_util::ioctl::ioctl(owner, KVM_GET_STATS_FD()) };
        ensure!(
            fd >= 0,
            "KVM_GET_STATS_FD: {}",
            std::io::Error::last_os_error()
        );
        // SAFETY: A fresh descriptor that nobody else owns.
        Self::from_file(unsafe { File::from_raw_fd(fd) })
    }

    /// Such a descriptor, whoever gave it.
    pub fn from_file(file: File) -> Result<Self> {
        let offsets = layout(&file).context("the statistics' layout")?;
        Ok(Self { file, offsets })
    }

    /// A counter's value now.
    pub fn get(&self, name: &str) -> Result<u64> {
        let (offset, _) = self
            .offsets
            .get(name)
            .with_context(|| format!("no statistic {name}"))?;
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, *offset)?;
        Ok(u64::from_ne_bytes(value))
    }

    /// All numbers, by one read.
    pub fn read(&self) -> std::io::Result<Values> {
        let places = self.offsets.values();
        let begin = places.clone().map(|place| place.0).min().unwrap_or(0);
        let end = places.map(|(at, count)| at + 8 * *count as u64).max();
        let mut bytes = vec![0; (end.unwrap_or(0) - begin) as usize];
        self.file.read_exact_at(&mut bytes, begin)?;
        let numbers = |(at, count): &(u64, usize)| {
            let bytes = &bytes[(at - begin) as usize..][..8 * count];
            let words = bytes.chunks_exact(8);
            words
                .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
                .collect()
        };
        let all = self.offsets.iter();
        Ok(Values(
            all.map(|(name, place)| (name.clone(), numbers(place)))
                .collect(),
        ))
    }
}

/// Where each statistic's value is: header (flags, name_size, num_desc, id, desc, data offsets),
/// then descriptors of 16 bytes and a name each.
fn layout(file: &File) -> Result<HashMap<String, (u64, usize)>> {
    let word = |offset: u64| -> Result<u64> {
        let mut word = [0; 4];
        file.read_exact_at(&mut word, offset)?;
        Ok(u32::from_ne_bytes(word).into())
    };
    let (name_size, count, descriptors, data) = (word(4)?, word(8)?, word(16)?, word(20)?);
    let mut offsets = HashMap::new();
    for number in 0..count {
        let at = descriptors + number * (16 + name_size);
        let offset = word(at + 8)?;
        let mut name = vec![0; name_size as usize];
        file.read_exact_at(&mut name, at + 16)?;
        let name = name.split(|&b| b == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        // The exponent's half of the word, and the size's.
        let size = word(at + 4)? >> 16;
        offsets.insert(name, (data + offset, size as usize));
    }
    Ok(offsets)
}
