// SPDX-License-Identifier: GPL-2.0
//! Holding pages of a mapping, in all the ways in which a folio gets references or is locked.

use super::{Map, PAGE};
use crate::{
    ensure_eq,
    module::{self, modprobe},
};
use anyhow::{ensure, Context, Result};
use nix::{errno::Errno, libc};
use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::PathBuf,
};

/// Something that holds a page, until it is dropped.
pub struct Pin(By, Vec<OwnedFd>);

impl Drop for Pin {
    fn drop(&mut self) {
        // Closing a ring only asks a worker to end it.
        if let (By::Ring, [ring]) = (self.0, &self.1[..]) {
            let (ring, unregister_buffers) = (ring.as_raw_fd(), 1);
            // SAFETY: Integers only.
            let done = Errno::result(unsafe {
                libc::syscall(
                    libc::SYS_io_uring_register,
                    ring,
                    unregister_buffers,
                    0usize,
                    0,
                )
            });
            if let Err(error) = done {
                eprintln!("# IORING_UNREGISTER_BUFFERS: {error}");
            }
        }
    }
}

/// A way to hold a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// `vmsplice()` into a pipe.
    Pipe,
    /// A registered buffer of io_uring's: pinned for long, as VFIO pins.
    Ring,
    /// A plain reference, by `tests/module/kvmate_hold.ko`.
    Module,
}

/// All of them.
pub const ALL: [By; 3] = [By::Pipe, By::Ring, By::Module];

fn owned(fd: i64) -> nix::Result<OwnedFd> {
    let fd = Errno::result(fd)? as i32;
    // SAFETY: A fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Hold the page at an address, if there can be one.
pub fn try_pin(by: By, address: usize) -> nix::Result<Pin> {
    let part = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: 1,
    };
    let held = match by {
        By::Pipe => {
            let (read, write) = nix::unistd::pipe()?;
            // SAFETY: The kernel looks whether anything is there; nothing is read or written.
            Errno::result(unsafe { libc::vmsplice(write.as_raw_fd(), &part, 1, 0) })?;
            vec![read, write]
        }
        By::Ring => {
            // struct io_uring_params: all zero asks for nothing special.
            let mut parameters = [0u8; 120];
            // SAFETY: Room for the structure.
            let ring = unsafe {
                owned(libc::syscall(
                    libc::SYS_io_uring_setup,
                    1,
                    parameters.as_mut_ptr(),
                ))?
            };
            let register_buffers = 0;
            // SAFETY: One whole structure; the buffer is never used.
            Errno::result(unsafe {
                libc::syscall(
                    libc::SYS_io_uring_register,
                    ring.as_raw_fd(),
                    register_buffers,
                    &part,
                    1,
                )
            })?;
            vec![ring]
        }
        By::Module => {
            let file = OpenOptions::new()
                .write(true)
                .open(format!("{HOLD}/reference"))
                .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
            file.write_at(&(address as u64).to_ne_bytes(), 0)
                .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
            vec![file.into()]
        }
    };
    Ok(Pin(by, held))
}

/// Hold the page behind a byte of a mapping.
pub fn pin(by: By, map: &Map, at: usize) -> Result<Pin> {
    try_pin(by, map.address() + at).with_context(|| format!("a pin by {by:?}"))
}

const HOLD: &str = "/sys/kernel/debug/kvmate_hold";

/// `tests/module/kvmate_hold.ko`, while this is there.
pub struct Hold(());

impl Hold {
    /// Load it.
    pub fn load() -> Result<Self> {
        let kvmate = module::path()?;
        let folder = kvmate.parent().context("KVMATE_KO is no path of a file")?;
        let file = folder.join("tests/kvmate_hold.ko");
        module::load_file(&file, "").with_context(|| format!("insmod {}", file.display()))?;
        Ok(Self(()))
    }

    /// Hold the lock of the folio at an address for so long, asleep.
    pub fn lock(&self, address: usize, microseconds: u64) -> std::io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .open(format!("{HOLD}/lock"))?;
        let mut wish = [0; 16];
        wish[..8].copy_from_slice(&(address as u64).to_ne_bytes());
        wish[8..].copy_from_slice(&microseconds.to_ne_bytes());
        file.write_at(&wish, 0).map(drop)
    }
}

/// A folio's lock, until it is dropped.
pub struct Locked(#[expect(dead_code, reason = "held only")] File);

impl Hold {
    /// Hold the lock of the folio at an address.
    pub fn locked(&self, address: usize) -> std::io::Result<Locked> {
        let file = OpenOptions::new()
            .write(true)
            .open(format!("{HOLD}/locked"))?;
        file.write_at(&(address as u64).to_ne_bytes(), 0)?;
        Ok(Locked(file))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Err(error) = module::unload_when_free("kvmate_hold") {
            eprintln!("# rmmod kvmate_hold: {error}");
        }
    }
}

/// A block device in memory, for reads and writes past the page cache (`O_DIRECT`), which pin the
/// caller's pages.
pub struct Disk {
    file: File,
    path: PathBuf,
    backing: Map,
}

/// Its size.
pub const DISK: usize = 1 << 20;

const LOOP_SET_FD: libc::c_ulong = 0x4c00;
const LOOP_CLR_FD: libc::c_ulong = 0x4c01;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;

impl Disk {
    /// Make it.
    pub fn new() -> Result<Self> {
        if !fs::exists("/dev/loop-control")? {
            modprobe("loop")?;
        }
        let control = File::open("/dev/loop-control").context("/dev/loop-control")?;
        // SAFETY: No argument.
        let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let backing = super::memfd(DISK)?;
        let mut options = OpenOptions::new();
        let device = options.read(true).write(true).open(&path)?;
        // SAFETY: Integers only.
        Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, backing.as_raw_fd()) })
            .context("LOOP_SET_FD")?;
        let file = options.custom_flags(libc::O_DIRECT).open(&path)?;
        let backing = Map::new(&backing, DISK)?;
        let disk = Self {
            file,
            path,
            backing,
        };
        Ok(disk)
    }

    /// Have reads and writes wait, and keep the pages that they are about, until this is dropped: who
    /// does them, the driver's worker, waits for a page of the memory that the disk is made of.
    pub fn stopped(&self, hold: &Hold) -> Result<Locked> {
        self.backing.write(0, self.backing.read(0));
        Ok(hold.locked(self.backing.address())?)
    }

    /// Write so much memory at an address to it, past the page cache.
    pub fn write_from(&self, address: usize, length: usize) -> nix::Result<usize> {
        let from = address as *const libc::c_void;
        // SAFETY: The kernel checks what is there, and only reads it.
        Errno::result(unsafe { libc::pwrite(self.file.as_raw_fd(), from, length, 0) })
            .map(|n| n as usize)
    }

    /// Read so much from it into memory at an address.
    ///
    /// # Safety
    ///
    /// Nobody relies on what is in the memory there.
    pub unsafe fn read_to(&self, address: usize, length: usize) -> nix::Result<usize> {
        let to = address as *mut libc::c_void;
        // SAFETY: The caller's promise.
        Errno::result(unsafe { libc::pread(self.file.as_raw_fd(), to, length, 0) })
            .map(|n| n as usize)
    }

    /// Fill it.
    pub fn fill(&self, value: u8) -> Result<()> {
        let plain = OpenOptions::new().write(true).open(&self.path)?;
        plain.write_all_at(&vec![value; DISK], 0)?;
        Ok(plain.sync_all()?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // SAFETY: No argument.
        let cleared = Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_CLR_FD, 0) });
        if let Err(error) = cleared {
            eprintln!("# LOOP_CLR_FD {}: {error}", self.path.display());
        }
    }
}

/// Look that a pin by `by` stays as long as it should: the same page is written by the kernel.
pub fn disk_reaches(map: &Map, at: usize) -> Result<()> {
    let disk = Disk::new()?;
    disk.fill(0x77)?;
    // SAFETY: The caller's mapping, whose content there is replaced.
    let read = unsafe { disk.read_to(map.address() + at, PAGE) }.context("O_DIRECT into gmem")?;
    ensure_eq!(read, PAGE, "bytes read past the page cache");
    ensure!(map.copy(at, PAGE) == vec![0x77; PAGE], "what was read");
    ensure_eq!(
        disk.write_from(map.address() + at, PAGE)?,
        PAGE,
        "bytes written"
    );
    Ok(())
}
