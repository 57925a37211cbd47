// SPDX-License-Identifier: GPL-2.0
//! Guest memory that is not there until a test says so: `userfaultfd(2)`.

use super::Memory;
use anyhow::{ensure, Context, Result};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
};

#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Range {
    start: u64,
    length: u64,
    mode: u64,
    /// `ioctls` of the one, `zeropage` of the other.
    result: u64,
}

mod numbers {
    #![allow(missing_docs)] // the macro's functions take no comment
    use super::{Api, Range};
    vmm_sys_util::ioctl_iowr_nr!(UFFDIO_API, 0xaa, 0x3f, Api);
    vmm_sys_util::ioctl_iowr_nr!(UFFDIO_REGISTER, 0xaa, 0x00, Range);
    vmm_sys_util::ioctl_iowr_nr!(UFFDIO_ZEROPAGE, 0xaa, 0x04, Range);
}
use numbers::{UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE};

const PAGE: usize = 0x1000;

/// A page of guest memory at which whoever touches it waits.
pub struct Missing {
    fd: File,
    start: u64,
}

impl Missing {
    /// The page at a guest-physical address. Nobody has touched it yet.
    pub fn new(memory: &Memory, address: usize) -> Result<Self> {
        assert!(
            address % PAGE == 0 && address + PAGE <= memory.size,
            "no page of guest memory"
        );
        // SAFETY: Gives a descriptor or an error.
        let fd = unsafe { nix::libc::syscall(nix::libc::SYS_userfaultfd, nix::libc::O_CLOEXEC) };
        ensure!(fd >= 0, "userfaultfd: {}", io::Error::last_os_error());
        // SAFETY: A fresh descriptor that nobody else owns.
        let fd = unsafe { File::from_raw_fd(fd as i32) };
        let mut api = Api {
            api: 0xaa,
            ..Api::default()
        };
        // SAFETY: The argument is what this number wants.
        let done = unsafe { vmm_sys_util::ioctl::ioctl_with_mut_ref(&fd, UFFDIO_API(), &mut api) };
        check(done).context("UFFDIO_API")?;
        let start = memory.start.as_ptr() as u64 + address as u64;
        let missing = Self { fd, start };
        missing
            .on_page(UFFDIO_REGISTER(), 1)
            .context("UFFDIO_REGISTER")?;
        Ok(missing)
    }

    /// Let there be a page of zeros, and all who wait go on.
    pub fn provide(&self) -> Result<()> {
        self.on_page(UFFDIO_ZEROPAGE(), 0)
            .context("UFFDIO_ZEROPAGE")
    }

    fn on_page(&self, number: u64, mode: u64) -> Result<()> {
        let mut range = Range {
            start: self.start,
            length: PAGE as u64,
            mode,
            result: 0,
        };
        // SAFETY: The argument is what both numbers want, and the page is one of our own memory.
        check(unsafe { nix::libc::ioctl(self.fd.as_raw_fd(), number, &raw mut range) })
    }
}

fn check(result: i32) -> Result<()> {
    ensure!(result == 0, "{}", io::Error::last_os_error());
    Ok(())
}
