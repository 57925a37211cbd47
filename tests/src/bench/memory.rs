// SPDX-License-Identifier: GPL-2.0
//! What it costs to take a guest's memory and to give it back, gmem beside the files that others offer.
//!
//! A sample is of a new file: mapped and touched once a 4 KiB page, then punched as a whole while it
//! is mapped. That its memory came in the pages that the holder is known for, and went again, is read
//! off `/proc/self/smaps` in between. [`super::memory_table`] shows the figures.

use super::sample::Cost;
use crate::{
    gmem::{self, punch, Map, HUGE, PAGE},
    module::Kvmate,
};
use anyhow::{ensure, Context, Result};
use kvm_bindings::kvm_create_guest_memfd;
use kvm_ioctls::{Kvm, VmFd};
use kvmate_uapi::KVMATE_GMEM_SMALL;
use nix::{errno::Errno, libc};
use std::{
    fs::{self, File},
    os::fd::FromRawFd,
};

/// What is measured, in this order: those with small pages, those with huge ones.
pub const HOLDERS: [Holder; 6] = [
    Holder::GuestMemfd,
    Holder::GmemSmall,
    Holder::Shmem,
    Holder::Hugetlb,
    Holder::HugetlbAndPool,
    Holder::Gmem,
];

/// What is done with a file.
pub const STEPS: [&str; 2] = ["fault-in", "punch"];

// KVM_CREATE_GUEST_MEMFD's flags: it may be mapped, and the host may touch it.
const GUEST_MEMFD_FLAG_MMAP: u64 = 1;
const GUEST_MEMFD_FLAG_INIT_SHARED: u64 = 2;

pub(super) const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const NR_HUGEPAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Who holds the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// KVM's own: pages of 4 KiB.
    GuestMemfd,
    /// gmem, with pages of 4 KiB on demand.
    GmemSmall,
    /// memfd, with huge pages on for shmem.
    Shmem,
    /// memfd with huge pages out of a pool that was set aside before, and back into it.
    Hugetlb,
    /// The same, and what it costs to set the pool aside and to give it back to the system.
    HugetlbAndPool,
    /// gmem as it is by default.
    Gmem,
}

impl Holder {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::GuestMemfd => "guest_memfd, 4 KiB",
            Self::GmemSmall => "gmem, 4 KiB",
            Self::Shmem => "memfd, huge pages on",
            Self::Hugetlb => "memfd, hugetlb",
            Self::HugetlbAndPool => "memfd, hugetlb and pool",
            Self::Gmem => "gmem",
        }
    }

    /// What it is made with, and what is set for it.
    pub fn options(self) -> &'static str {
        match self {
            Self::GuestMemfd => {
                "KVM_CREATE_GUEST_MEMFD, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED"
            }
            Self::GmemSmall => "KVMATE_GMEM_CREATE, KVMATE_GMEM_SMALL",
            Self::Shmem => "memfd_create(), shmem_enabled=always",
            Self::Hugetlb => "memfd_create(MFD_HUGETLB | MFD_HUGE_2MB), nr_hugepages set before",
            Self::HugetlbAndPool => "the same, and setting nr_hugepages is counted",
            Self::Gmem => "KVMATE_GMEM_CREATE, no flags",
        }
    }

    /// Whether it is somebody else's: what gmem is compared with.
    pub fn is_peer(self) -> bool {
        !matches!(self, Self::GmemSmall | Self::Gmem)
    }

    /// Whether its memory comes from a pool, which nobody else can use, and goes back there.
    pub fn has_a_pool(self) -> bool {
        matches!(self, Self::Hugetlb | Self::HugetlbAndPool)
    }

    /// Whether its pages are of 4 KiB: so slow that once is enough.
    pub fn is_small(self) -> bool {
        matches!(self, Self::GuestMemfd | Self::GmemSmall)
    }

    /// What `/proc/self/smaps` calls its memory when it is mapped as it should be.
    pub(super) fn mapped_as(self) -> &'static str {
        match self {
            Self::GuestMemfd | Self::GmemSmall => "Rss",
            Self::Shmem => "ShmemPmdMapped",
            Self::Hugetlb | Self::HugetlbAndPool => "Private_Hugetlb",
            Self::Gmem => "FilePmdMapped",
        }
    }

    /// Costs a 4 KiB page of each of the [`STEPS`], with a file of `size` bytes.
    pub fn measure(self, size: usize) -> Result<[Cost; STEPS.len()]> {
        let before = Cost::start();
        let held = self.hold(size)?;
        let prepared = before();
        let file = &held.file;
        let map = Map::new(file, size)?;
        let before = Cost::start();
        for page in 0..size / PAGE {
            map.write(page * PAGE, 1);
        }
        let mut fault_in = before();
        let (kind, mapped) = (self.mapped_as(), map.smaps(self.mapped_as())?);
        ensure!(mapped == size, "{kind} is {mapped} of {size}");
        let before = Cost::start();
        punch(file, 0, size)?;
        let mut punched = before();
        let left = map.smaps(kind)?;
        ensure!(left == 0, "{kind} is {left} after the punch");
        drop(map);
        let before = Cost::start();
        drop(held);
        let ended = before();
        if self == Self::HugetlbAndPool {
            fault_in = fault_in + prepared;
            punched = punched + ended;
        }
        Ok([fault_in, punched].map(|cost| cost * (PAGE as f64 / size as f64)))
    }

    /// A file of its.
    pub(super) fn hold(self, size: usize) -> Result<Held> {
        let held = |file, needs| Held {
            file,
            _needs: needs,
        };
        let gmem = |flags| -> Result<Held> {
            let kvmate = Kvmate::load("")?;
            Ok(held(gmem::create(size, flags)?, Needs::Kvmate(kvmate)))
        };
        match self {
            Self::Gmem => gmem(0),
            Self::GmemSmall => gmem(KVMATE_GMEM_SMALL),
            Self::GuestMemfd => {
                let vm = Kvm::new()?.create_vm()?;
                let fd = vm.create_guest_memfd(kvm_create_guest_memfd {
                    size: size as u64,
                    flags: GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
                    ..Default::default()
                });
                // SAFETY: A fresh descriptor that nobody else owns.
                let file = unsafe { File::from_raw_fd(fd.context("KVM_CREATE_GUEST_MEMFD")?) };
                Ok(held(file, Needs::Vm(vm)))
            }
            Self::Shmem => {
                let setting = Setting::new(SHMEM_ENABLED, "always")?;
                Ok(held(memfd(size, 0)?, Needs::Setting(setting)))
            }
            Self::Hugetlb | Self::HugetlbAndPool => {
                let pages = (size / HUGE).to_string();
                let setting = Setting::new(NR_HUGEPAGES, &pages)?;
                let got = fs::read_to_string(NR_HUGEPAGES)?;
                ensure!(got.trim() == pages, "nr_hugepages is {got} of {pages}");
                let file = memfd(size, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)?;
                Ok(held(file, Needs::Setting(setting)))
            }
        }
    }
}

/// A file, and what must be there as long as it is.
pub(super) struct Held {
    pub(super) file: File,
    _needs: Needs,
}

#[expect(dead_code, reason = "held only")]
enum Needs {
    Kvmate(Kvmate),
    Vm(VmFd),
    Setting(Setting),
}

/// One of the kernel's settings; as it was before, when dropped.
pub(super) struct Setting {
    file: &'static str,
    before: String,
}

impl Setting {
    pub(super) fn new(file: &'static str, value: &str) -> Result<Self> {
        let before = fs::read_to_string(file).context(file)?;
        // The kernel shows the choices, with the one that is made in brackets.
        let before = before
            .split(['[', ']'])
            .nth(1)
            .unwrap_or(&before)
            .to_owned();
        fs::write(file, value).context(file)?;
        Ok(Self { file, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.file, &self.before) {
            eprintln!("# {}: {error}", self.file);
        }
    }
}

fn memfd(size: usize, flags: libc::c_uint) -> Result<File> {
    // SAFETY: A string that ends with a zero byte.
    let fd = unsafe { libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC | flags) };
    // SAFETY: A fresh descriptor that nobody else owns.
    let file = unsafe { File::from_raw_fd(Errno::result(fd).context("memfd_create()")?) };
    file.set_len(size as u64)?;
    Ok(file)
}
