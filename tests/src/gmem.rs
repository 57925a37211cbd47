// SPDX-License-Identifier: GPL-2.0
//! Memory files: making them, mapping them, and asking the kernel what they have. [`model`] compares
//! one with a memfd, [`guest`] runs on one, [`pins`] holds its pages, [`query`] asks who does,
//! [`shape`] splits and merges its folios, [`seal`] seals it, [`child`] does what may end a process,
//! [`cgroup`] and [`inject`] make memory short, [`memory`] counts what is in use.

pub mod cgroup;
pub mod child;
pub mod guest;
pub mod inject;
pub mod memory;
pub mod model;
pub mod pins;
pub mod query;
pub mod seal;
pub mod shape;

use anyhow::{ensure, Context, Result};
use kvmate_uapi::{call::Device, kvmate_gmem};
use nix::{errno::Errno, libc};
use std::{
    collections::HashMap,
    fs::{self, File},
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::{FileExt, MetadataExt},
    },
};

/// 4 KiB.
pub const PAGE: usize = 4096;
/// 2 MiB.
pub const HUGE: usize = 2 << 20;
/// `fallocate()`'s mode for a hole.
pub const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// What `KVMATE_GMEM_CREATE` is given.
pub fn wish(size: usize, flags: u32) -> kvmate_gmem {
    let mut name = [0; 32];
    for (to, from) in name.iter_mut().zip(b"test") {
        *to = *from as libc::c_char;
    }
    kvmate_gmem {
        size: size as u64,
        flags,
        node: 0,
        name,
        reserved: [0; 2],
    }
}

/// `KVMATE_GMEM_CREATE`.
pub fn create_as(wish: &kvmate_gmem) -> nix::Result<File> {
    let made = Device::open().and_then(|device| device.create(wish));
    made.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// A memory file.
pub fn create(size: usize, flags: u32) -> Result<File> {
    create_as(&wish(size, flags)).context("KVMATE_GMEM_CREATE")
}

/// A memfd that cannot change its size: what a memory file is to behave like.
pub fn memfd(size: usize) -> Result<File> {
    // SAFETY: A string that ends with a zero byte.
    let fd = Errno::result(unsafe {
        libc::memfd_create(
            c"test".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    })?;
    // SAFETY: A fresh descriptor that nobody else owns.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size as u64)?;
    // SAFETY: Integers only.
    Errno::result(unsafe {
        libc::fcntl(
            fd,
            libc::F_ADD_SEALS,
            libc::F_SEAL_GROW | libc::F_SEAL_SHRINK,
        )
    })?;
    Ok(file)
}

/// The plain call.
pub fn fallocate(file: &File, mode: i32, offset: i64, length: i64) -> nix::Result<()> {
    // SAFETY: Integers only.
    Errno::result(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) }).map(drop)
}

/// Make a hole.
pub fn punch(file: &File, offset: usize, length: usize) -> nix::Result<()> {
    fallocate(file, PUNCH, offset as i64, length as i64)
}

/// `lseek()`.
pub fn seek(file: &File, offset: i64, whence: i32) -> nix::Result<i64> {
    // SAFETY: Integers only.
    Errno::result(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
}

/// How many bytes the file has memory for, by `st_blocks`.
pub fn allocated(file: &File) -> Result<usize> {
    Ok(file.metadata()?.blocks() as usize * 512)
}

/// What `gmem/<ino>/info` says of it.
pub fn info(file: &File) -> Result<HashMap<String, u64>> {
    let name = format!(
        "{}/gmem/{}/info",
        crate::module::DEBUGFS,
        file.metadata()?.ino()
    );
    let text = fs::read_to_string(&name).with_context(|| name.clone())?;
    text.lines()
        .map(|line| {
            let (key, value) = line.split_once(' ').context("no blank")?;
            Ok((key.to_owned(), value.parse()?))
        })
        .collect()
}

/// One number of it.
pub fn info_of(file: &File, key: &str) -> Result<u64> {
    info(file)?.remove(key).with_context(|| format!("no {key}"))
}

/// Orders of its folios: how many of each, from 0 on.
pub fn folios(file: &File) -> Result<Vec<u64>> {
    let info = info(file)?;
    Ok((0..=9)
        .map(|order| info[&format!("folios_order{order}")])
        .collect())
}

/// All its bytes, by `read()`.
pub fn bytes(file: &File) -> Result<Vec<u8>> {
    let mut all = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut all, 0)?;
    Ok(all)
}

/// What a refused call of the standard library's said.
pub fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    let error = result.err()?;
    Some(Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// A shared mapping of a file from its beginning.
pub struct Map {
    start: *mut u8,
    size: usize,
}

// SAFETY: Plain memory that lives until drop; access goes by volatile bytes.
unsafe impl Send for Map {}
// SAFETY: As above.
unsafe impl Sync for Map {}

/// The raw call, of the file's beginning, at an address of the kernel's choice.
pub fn mmap(file: &File, size: usize, protection: i32, flags: i32) -> nix::Result<*mut u8> {
    mmap_at(file, 0, size, protection, flags)
}

fn mmap_at(
    file: &File,
    offset: usize,
    size: usize,
    protection: i32,
    flags: i32,
) -> nix::Result<*mut u8> {
    let (fd, offset) = (file.as_raw_fd(), offset as i64);
    // SAFETY: A fresh mapping; nothing else is at that address.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, fd, offset) };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    Ok(start.cast())
}

impl Map {
    /// Map `size` bytes, to read and write.
    pub fn new(file: &File, size: usize) -> Result<Self> {
        Self::at(file, 0, size)
    }

    /// Map a part of the file, `size` bytes from `offset` on.
    pub fn at(file: &File, offset: usize, size: usize) -> Result<Self> {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let start = mmap_at(file, offset, size, both, libc::MAP_SHARED).context("mmap")?;
        Ok(Self { start, size })
    }

    /// It somewhere else, not aligned as before.
    pub fn moved(self) -> Result<Self> {
        let size = self.size;
        // SAFETY: A reservation that we unmap, or that the mapping replaces, below.
        let room = unsafe {
            let room = libc::mmap(
                std::ptr::null_mut(),
                size + PAGE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            ensure!(room != libc::MAP_FAILED, "mmap: {}", Errno::last());
            let to = room.cast::<u8>().add(PAGE);
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let moved = libc::mremap(self.start.cast(), size, size, flags, to);
            ensure!(moved == to.cast(), "mremap: {}", Errno::last());
            libc::munmap(room, PAGE);
            to
        };
        std::mem::forget(self);
        let start = room;
        Ok(Self { start, size })
    }

    /// Where it is.
    pub fn address(&self) -> usize {
        self.start as usize
    }

    /// A byte of it.
    pub fn read(&self, at: usize) -> u8 {
        assert!(at < self.size);
        // SAFETY: Inside the mapping.
        unsafe { self.start.add(at).read_volatile() }
    }

    /// Set a byte of it.
    pub fn write(&self, at: usize, value: u8) {
        assert!(at < self.size);
        // SAFETY: Inside the mapping.
        unsafe { self.start.add(at).write_volatile(value) }
    }

    /// Fill a part.
    pub fn fill(&self, at: usize, length: usize, value: u8) {
        assert!(at + length <= self.size);
        // SAFETY: Inside the mapping.
        unsafe { self.start.add(at).write_bytes(value, length) }
    }

    /// Copy a part.
    pub fn copy(&self, at: usize, length: usize) -> Vec<u8> {
        assert!(at + length <= self.size);
        let mut out = vec![0; length];
        // SAFETY: Inside the mapping; the target is another object.
        unsafe { out.as_mut_ptr().copy_from(self.start.add(at), length) };
        out
    }

    /// A number of its mapping in `/proc/self/smaps`, in bytes.
    pub fn smaps(&self, key: &str) -> Result<usize> {
        let text = fs::read_to_string("/proc/self/smaps")?;
        let head = format!("{:x}-", self.address());
        let mut lines = text.lines().skip_while(|line| !line.starts_with(&head));
        lines.next().context("the mapping is not in smaps")?;
        let line = lines
            .find(|line| line.starts_with(&format!("{key}:")))
            .with_context(|| format!("no {key}"))?;
        let number = line.split_whitespace().nth(1).context("no number")?;
        Ok(number.parse::<usize>()? * 1024)
    }

    /// The page frame behind a byte, which is touched.
    pub fn frame(&self, at: usize) -> Result<u64> {
        self.read(at);
        let mut entry = [0; 8];
        let page = (self.address() + at) / PAGE;
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, page as u64 * 8)?;
        let entry = u64::from_ne_bytes(entry);
        ensure!(entry >> 63 == 1, "not present: {entry:#x}");
        Ok(entry & ((1 << 55) - 1))
    }

    /// `/proc/kpageflags` of the page behind a byte.
    pub fn page_flags(&self, at: usize) -> Result<u64> {
        let mut flags = [0; 8];
        File::open("/proc/kpageflags")?.read_exact_at(&mut flags, self.frame(at)? * 8)?;
        Ok(u64::from_ne_bytes(flags))
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: Our own mapping, not used any more.
        Errno::result(unsafe { libc::munmap(self.start.cast(), self.size) })
            .expect("munmap of our own mapping");
    }
}
