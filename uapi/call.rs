// SPDX-License-Identifier: GPL-2.0
//! The calls of `kvmate.h`, each with the structure that it takes. What they do and refuse stands there.

use crate::{
    kvmate_gmem, kvmate_gmem_query, kvmate_gmem_range, kvmate_gmem_record, kvmate_irqfd,
    kvmate_vm_stats, KVMATE_BIND_IRQFD, KVMATE_GET_VM_STATS, KVMATE_GMEM_CREATE, KVMATE_GMEM_MERGE,
    KVMATE_GMEM_QUERY, KVMATE_GMEM_SPLIT,
};
use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

/// Where the device is.
pub const DEVICE: &str = "/dev/kvmate";

/// `/dev/kvmate`, open.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// Open it.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        Ok(Self(file))
    }

    /// `KVMATE_GMEM_CREATE`: a memory file.
    pub fn create(&self, wish: &kvmate_gmem) -> io::Result<File> {
        // SAFETY: That ioctl reads such a structure.
        unsafe { self.descriptor(KVMATE_GMEM_CREATE, wish) }.map(File::from)
    }

    /// `KVMATE_BIND_IRQFD`: a binding, which ends with its last descriptor.
    pub fn bind(&self, asked: &kvmate_irqfd) -> io::Result<OwnedFd> {
        // SAFETY: That ioctl reads such a structure, and checks the descriptors in it.
        unsafe { self.descriptor(KVMATE_BIND_IRQFD, asked) }
    }

    /// `KVMATE_GET_VM_STATS` of the VM with that descriptor.
    pub fn stats(&self, vm: impl AsFd) -> io::Result<File> {
        let asked = kvmate_vm_stats {
            flags: 0,
            vm_fd: vm.as_fd().as_raw_fd(),
            reserved: [0; 3],
        };
        // SAFETY: That ioctl reads such a structure.
        unsafe { self.descriptor(KVMATE_GET_VM_STATS, &asked) }.map(File::from)
    }

    /// # Safety
    ///
    /// The ioctl must only read such an argument, and answer with a new descriptor.
    unsafe fn descriptor<T>(&self, number: u64, argument: &T) -> io::Result<OwnedFd> {
        // SAFETY: By the condition; it lives until the call is over.
        let fd = unsafe { libc::ioctl(self.0.as_raw_fd(), number, argument) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: By the condition; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// `KVMATE_GMEM_QUERY`: fill the beginning of an array with what a memory file has in a range. How many
/// records there are, and what is left of the range.
pub fn query(
    file: impl AsFd,
    range: Range<u64>,
    room: &mut [kvmate_gmem_record],
) -> io::Result<(usize, Range<u64>)> {
    let mut asked = kvmate_gmem_query {
        offset: range.start,
        length: range.end.saturating_sub(range.start),
        records: room.as_mut_ptr().addr() as u64,
        count: room.len().try_into().unwrap_or(u32::MAX),
        flags: 0,
    };
    // SAFETY: That ioctl reads and writes such a structure, and as many records as there is room for.
    let done = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), KVMATE_GMEM_QUERY, &mut asked) };
    match done {
        0 => Ok((
            asked.count as usize,
            asked.offset..asked.offset.saturating_add(asked.length),
        )),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How the folios of a range are to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `KVMATE_GMEM_SPLIT`
    Split,
    /// `KVMATE_GMEM_MERGE`
    Merge,
}

/// Split or merge a memory file's folios. What was done, and what stood in the way, is in `range` then.
pub fn reshape(file: impl AsFd, shape: Shape, range: &mut kvmate_gmem_range) -> io::Result<()> {
    let number = match shape {
        Shape::Split => KVMATE_GMEM_SPLIT,
        Shape::Merge => KVMATE_GMEM_MERGE,
    };
    // SAFETY: These ioctls read and write such a structure.
    match unsafe { libc::ioctl(file.as_fd().as_raw_fd(), number, range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
