// SPDX-License-Identifier: GPL-2.0
//! `/dev/kvmate`, by calls that are safe. What each does and refuses stands in `kvmate.h`.
//!
//! An open [`Control`] and what it gives hold the module.

use crate::{kvmate_vm_stats, KVMATE_GET_VM_STATS};
use rustix::ioctl::{ioctl, Ioctl, IoctlOutput, Opcode};
use std::{
    ffi::c_void,
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// Where it is.
pub const DEVICE: &str = "/dev/kvmate";

/// The open device.
#[derive(Debug)]
pub struct Control(File);

impl Control {
    /// Open it: `EPERM` without `CAP_SYS_ADMIN`.
    pub fn open() -> io::Result<Self> {
        File::open(DEVICE).map(Self)
    }

    /// `KVMATE_GET_VM_STATS`: the statistics of the VM with this descriptor.
    pub fn vm_stats(&self, vm: BorrowedFd<'_>) -> io::Result<File> {
        let asked = kvmate_vm_stats {
            flags: 0,
            vm_fd: vm.as_raw_fd(),
            reserved: [0; 3],
        };
        // SAFETY: The device is kvmate's, whose request this is; see `VmStats`.
        Ok(unsafe { ioctl(&self.0, VmStats(asked)) }.map(File::from)?)
    }
}

/// The request.
struct VmStats(kvmate_vm_stats);

// SAFETY: By `kvmate.h` the number takes a `struct kvmate_vm_stats`, is `_IOW` (writes nothing to the
// caller's memory), and returns a new descriptor where it does not fail.
unsafe impl Ioctl for VmStats {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        KVMATE_GET_VM_STATS as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: A new descriptor, which nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
