// SPDX-License-Identifier: GPL-2.0
//! Descriptors of other processes: found by `/proc`, taken by `pidfd_getfd(2)`.

use anyhow::{anyhow, Result};
use rustix::{
    io::Errno,
    process::{pidfd_getfd, pidfd_open, Pid, PidfdFlags, PidfdGetfdFlags},
};
use std::{fs, os::fd::OwnedFd, path::PathBuf};

/// A process that descriptors are taken from.
pub struct Process {
    pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// The one with that number.
    pub fn open(pid: u32) -> Result<Self> {
        let none = || anyhow!("there is no process {pid}");
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let opened = pidfd_open(number.ok_or_else(none)?, PidfdFlags::empty());
        let fd = opened.map_err(|error| match error {
            Errno::SRCH => none(),
            // A thread that is not its process's first.
            Errno::INVAL | Errno::NOENT => anyhow!("{pid} is a thread, not a process"),
            _ => anyhow!("process {pid}: {error}"),
        })?;
        Ok(Self { pid, fd })
    }

    /// A copy of one of its descriptors.
    pub fn take(&self, number: i32) -> Result<OwnedFd> {
        let pid = self.pid;
        pidfd_getfd(&self.fd, number, PidfdGetfdFlags::empty()).map_err(|error| match error {
            Errno::SRCH => anyhow!("process {pid} has ended"),
            Errno::BADF => {
                anyhow!("process {pid} has no descriptor {number}: ls -l /proc/{pid}/fd")
            }
            Errno::PERM => anyhow!(
                "descriptors of process {pid} cannot be taken: this needs root (sudo kvmate ...)"
            ),
            _ => anyhow!("descriptor {number} of process {pid}: {error}"),
        })
    }

    /// Its descriptors, and what they are of.
    pub fn descriptors(&self) -> Vec<(i32, PathBuf)> {
        descriptors(self.pid)
    }
}

/// A process's descriptors by their numbers, and what they are of; none of one that has ended.
pub fn descriptors(pid: u32) -> Vec<(i32, PathBuf)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let mut all: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect();
    all.sort();
    all
}

/// A process's name, which may have any bytes; none if it has ended.
pub fn name(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = String::from_utf8_lossy(&name);
    Some(name.strip_suffix('\n').unwrap_or(&name).to_owned())
}

/// The numbers of all processes.
pub fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsRawFd};

    #[test]
    fn our_own() {
        let null = File::open("/dev/null").unwrap();
        let number = null.as_raw_fd();
        let found = descriptors(std::process::id());
        assert!(found.contains(&(number, "/dev/null".into())), "{found:?}");
        assert!(all().contains(&std::process::id()));
    }

    #[test]
    fn nobody() {
        for pid in [0, u32::MAX, 0x7fff_ffff] {
            let said = Process::open(pid).err().unwrap().to_string();
            assert!(said.contains("there is no process"), "{said}");
            assert!(descriptors(pid).is_empty());
        }
    }
}
