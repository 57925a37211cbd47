// SPDX-License-Identifier: GPL-2.0
//! KVM's own statistics of a vCPU or a VM (`KVM_GET_STATS_FD`): the oracle for what kvmate counts.

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
    file: File,
    offsets: HashMap<String, u64>,
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
        let file = unsafe { File::from_raw_fd(fd) };
        let offsets = layout(&file).context("the statistics' layout")?;
        Ok(Self { file, offsets })
    }

    /// A counter's value now.
    pub fn get(&self, name: &str) -> Result<u64> {
        let offset = self
            .offsets
            .get(name)
            .with_context(|| format!("no statistic {name}"))?;
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, *offset)?;
        Ok(u64::from_ne_bytes(value))
    }
}

/// Where each statistic's value is: header (flags, name_size, num_desc, id, desc, data offsets),
/// then descriptors of 16 bytes and a name each.
fn layout(file: &File) -> Result<HashMap<String, u64>> {
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
        offsets.insert(String::from_utf8_lossy(name).into_owned(), data + offset);
    }
    Ok(offsets)
}
