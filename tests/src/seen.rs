// SPDX-License-Identifier: GPL-2.0
//! What kvmate says of VMs: its tables, read as a user reads them.

use crate::{
    guest::real::Program,
    module::{self, DEBUGFS},
    table::{self, Row},
};
use anyhow::{ensure, Context, Result};
use nix::{errno::Errno, libc};
use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
};

/// Exits by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub BTreeMap<String, u64>);

impl Counts {
    /// Of one reason.
    pub fn of(&self, reason: &str) -> u64 {
        self.0.get(reason).copied().unwrap_or(0)
    }

    /// Of all.
    pub fn sum(&self) -> u64 {
        self.0.values().sum()
    }

    fn add(&mut self, Row { reason, count, .. }: Row) -> Result<()> {
        ensure!(!self.0.contains_key(&reason), "two lines of {reason}");
        self.0.insert(reason, count);
        Ok(())
    }
}

/// The names of the exits that the programs of [`real`](crate::guest::real) make.
pub struct Names {
    /// A port's write.
    pub out: &'static str,
    /// CPUID.
    pub cpuid: &'static str,
    /// HLT.
    pub hlt: &'static str,
    /// RDMSR.
    pub msr: &'static str,
    /// A write to memory that is not there.
    pub mmio: &'static str,
}

/// As kvmate has them on this machine.
pub fn names() -> Names {
    if module::is_loaded("kvm_intel") {
        Names {
            out: "IO_INSTRUCTION",
            cpuid: "CPUID",
            hlt: "HLT",
            msr: "MSR_READ",
            mmio: "EPT_MISCONFIG",
        }
    } else {
        Names {
            out: "io",
            cpuid: "cpuid",
            hlt: "hlt",
            msr: "msr",
            mmio: "npf",
        }
    }
}

impl Names {
    /// What a program does, and what it does not.
    pub fn of(&self, program: Program) -> (&'static str, &'static str) {
        match program {
            Program::Out => (self.out, self.cpuid),
            Program::Cpuid => (self.cpuid, self.out),
            Program::Msr => (self.msr, self.out),
            Program::Mmio => (self.mmio, self.out),
        }
    }
}

/// A VM's descriptor as a tool takes it from a running VMM.
pub fn taken_from(vm: &str) -> Result<OwnedFd> {
    let (process, descriptor) = vm.split_once('-').context("no name of a VM")?;
    let (process, descriptor): (i32, i32) = (process.parse()?, descriptor.parse()?);
    let own = |fd: i64| -> Result<OwnedFd> {
        // SAFETY: A new descriptor of ours.
        Ok(unsafe { OwnedFd::from_raw_fd(Errno::result(fd)? as i32) })
    };
    // SAFETY: Numbers only.
    let process = own(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
    let process = process.as_raw_fd();
    // SAFETY: As above.
    own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, descriptor, 0) })
}

/// The folder of VMs' folders.
pub fn vms() -> PathBuf {
    PathBuf::from(DEBUGFS).join("vms")
}

/// Which VMs have a folder.
pub fn names_of_vms() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(vms()).context("vms")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Read a table `exits`.
pub fn parse_exits(text: &str) -> Result<Counts> {
    let mut counts = Counts::default();
    for row in table::exits(text)? {
        counts.add(row)?;
    }
    Ok(counts)
}

/// The table `exits` of a VM.
pub fn exits_of(vm: &str) -> Result<Counts> {
    let path = vms().join(vm).join("exits");
    parse_exits(&fs::read_to_string(&path).with_context(|| path.display().to_string())?)
}

/// A VM in the table `ended`.
#[derive(Clone, Debug)]
pub struct Past {
    /// Which one since load.
    pub number: u64,
    /// Its name.
    pub name: String,
    /// How many vCPUs it had.
    pub vcpus: u64,
    /// Its exits.
    pub counts: Counts,
}

/// Read the table `ended`.
pub fn parse_ended(text: &str) -> Result<Vec<Past>> {
    let mut all: Vec<Past> = Vec::new();
    for (number, name, vcpus, row) in table::ended_rows(text)? {
        if all.last().is_none_or(|past| past.number != number) {
            all.push(Past {
                number,
                name,
                vcpus,
                counts: Counts::default(),
            });
        }
        if let (Some(past), true) = (all.last_mut(), row.reason != "-") {
            past.counts.add(row)?;
        }
    }
    Ok(all)
}

/// The table `ended`.
pub fn ended() -> Result<Vec<Past>> {
    parse_ended(&fs::read_to_string(PathBuf::from(DEBUGFS).join("ended")).context("ended")?)
}
