// SPDX-License-Identifier: GPL-2.0
//! gmem: the file itself: what it is, its fixed size, opening it again and passing it on, and that it
//! holds the module.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{self, errno, fallocate, folios, info_of, seek, Map, HUGE, PAGE, PUNCH},
    ktap,
    module::{self, Kvmate},
};
use kvmate_uapi::KVMATE_GMEM_NODE;
use nix::{errno::Errno, libc};
use std::{
    fs::{self, File, OpenOptions},
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::{
            fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
            net::UnixStream,
        },
    },
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("create_refuses", create_refuses),
        ("file", file),
        ("size_is_fixed", size_is_fixed),
        ("opens_again", opens_again),
        ("passes_over_a_socket", passes_over_a_socket),
        ("holds_the_module", holds_the_module),
        ("knob_order", knob_order),
    ])
}

fn create_refuses() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let good = gmem::wish(HUGE, 0);
    let refused = |wish| gmem::create_as(&wish).err();
    for size in [0, 1, 4095, 4097, 1 << 63, u64::MAX, u64::MAX - 4095] {
        let bad = kvmate_uapi::kvmate_gmem { size, ..good };
        ensure_eq!(refused(bad), Some(Errno::EINVAL), "size {size:#x}");
    }
    for bit in 2..32 {
        let flags = 1 << bit;
        let bad = kvmate_uapi::kvmate_gmem { flags, ..good };
        ensure_eq!(refused(bad), Some(Errno::EINVAL), "flags {flags:#x}");
    }
    for reserved in [[1, 0], [0, 1 << 63]] {
        let bad = kvmate_uapi::kvmate_gmem { reserved, ..good };
        ensure_eq!(refused(bad), Some(Errno::EINVAL), "reserved {reserved:?}");
    }
    let bad = kvmate_uapi::kvmate_gmem { node: 1, ..good };
    ensure_eq!(refused(bad), Some(Errno::EINVAL), "node without its flag");
    let name = [b'x' as libc::c_char; 32];
    let bad = kvmate_uapi::kvmate_gmem { name, ..good };
    ensure_eq!(refused(bad), Some(Errno::EINVAL), "a name without end");
    for node in [1023, 1024, u32::MAX] {
        let flags = KVMATE_GMEM_NODE;
        let bad = kvmate_uapi::kvmate_gmem {
            flags,
            node,
            ..good
        };
        ensure_eq!(refused(bad), Some(Errno::EINVAL), "node {node}");
    }
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(module::DEVICE)?;
    // SAFETY: The kernel checks the pointer; a bad one is what is tried.
    let found = Errno::result(unsafe {
        libc::ioctl(device.as_raw_fd(), kvmate_uapi::KVMATE_GMEM_CREATE, 8usize)
    });
    ensure_eq!(found, Err(Errno::EFAULT), "a bad pointer");
    drop(device);
    // The largest there can be; it has no memory yet.
    let size = (1 << 63) - 4096;
    let most = gmem::create_as(&kvmate_uapi::kvmate_gmem { size, ..good })?;
    ensure_eq!(most.metadata()?.len(), size, "the largest size");
    most.write_all_at(b"end", size - 3)?;
    drop(most);
    kvmate.unload()
}

fn file() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (one, two) = (gmem::create(HUGE, 0)?, gmem::create(3 * PAGE, 0)?);
    let about = one.metadata()?;
    ensure_eq!(about.mode(), libc::S_IFREG | 0o600, "mode");
    ensure_eq!(
        (about.uid(), about.gid(), about.nlink()),
        (0, 0, 1),
        "owner, links"
    );
    ensure_eq!(
        (about.len(), about.blocks()),
        (HUGE as u64, 0),
        "size, blocks"
    );
    ensure_eq!(two.metadata()?.len(), 3 * PAGE as u64, "size of another");
    ensure!(
        about.ino() != two.metadata()?.ino(),
        "two files have one number"
    );
    let link = fs::read_link(format!("/proc/self/fd/{}", one.as_raw_fd()))?;
    ensure!(
        link.to_string_lossy().contains("gmem:test"),
        "the name: {link:?}"
    );
    // SAFETY: Integers only.
    let flags = unsafe { libc::fcntl(one.as_raw_fd(), libc::F_GETFD) };
    ensure_eq!(flags, libc::FD_CLOEXEC, "descriptor flags");
    ensure_eq!(info_of(&one, "size")?, HUGE as u64, "info's size");
    let number = about.ino();
    drop(one);
    let folder = format!("{}/gmem/{number}", module::DEBUGFS);
    ensure!(!fs::exists(&folder)?, "{folder} outlives its file");
    drop(two);
    kvmate.unload()
}

const FS_IOC_RESVSP: libc::c_ulong = 0x4030_5828;
const FS_IOC_UNRESVSP: libc::c_ulong = 0x4030_5829;
const FS_IOC_ZERO_RANGE: libc::c_ulong = 0x4030_5839;

fn size_is_fixed() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(HUGE, 0)?;
    file.write_all_at(b"data", 0)?;
    for size in [0, 1, HUGE as u64 - 1, HUGE as u64 + 1, 1 << 40] {
        ensure_eq!(
            errno(file.set_len(size)),
            Some(Errno::EPERM),
            "ftruncate {size}"
        );
    }
    file.set_len(HUGE as u64)
        .context("ftruncate to the size it has")?;
    let again = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    ensure_eq!(errno(again), Some(Errno::EPERM), "O_TRUNC");
    let over = file.write_at(b"more", HUGE as u64 - 2);
    ensure_eq!(over?, 2, "a write over the end");
    ensure_eq!(
        errno(file.write_at(b"more", HUGE as u64)),
        Some(Errno::EPERM),
        "behind it"
    );
    let append = OpenOptions::new()
        .append(true)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    ensure_eq!(
        errno(std::io::Write::write(&mut &append, b"more")),
        Some(Errno::EPERM),
        "appending"
    );
    // The VFS' other ways to room and to data: none goes over the end.
    for (number, offset, expected) in [
        (FS_IOC_RESVSP, 0, Ok(0)),
        (FS_IOC_RESVSP, HUGE as i64, Err(Errno::EPERM)),
        (FS_IOC_UNRESVSP, 2 * HUGE as i64, Ok(0)),
        (FS_IOC_ZERO_RANGE, 0, Err(Errno::EOPNOTSUPP)),
    ] {
        // struct space_resv: type, whence, start, length, and what is ignored.
        let mut space = [0u64; 6];
        (space[1], space[2]) = (offset as u64, HUGE as u64);
        // SAFETY: A whole structure.
        let done = Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), number, &space) });
        ensure_eq!(done, expected, "ioctl {number:#x} at {offset:#x}");
    }
    let source = gmem::memfd(HUGE)?;
    seek(&file, HUGE as i64 - 10, libc::SEEK_SET)?;
    // SAFETY: Integers only.
    let sent = Errno::result(unsafe {
        libc::sendfile(
            file.as_raw_fd(),
            source.as_raw_fd(),
            std::ptr::null_mut(),
            100,
        )
    });
    ensure_eq!(sent, Ok(10), "sendfile over the end");
    file.set_permissions(fs::Permissions::from_mode(0o640))?;
    ensure_eq!(file.metadata()?.mode(), libc::S_IFREG | 0o640, "mode");
    ensure_eq!(file.metadata()?.len(), HUGE as u64, "the size then");
    ensure_eq!(gmem::bytes(&file)?[..4], *b"data", "the data then");
    drop((file, append));
    kvmate.unload()
}

fn opens_again() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(HUGE, 0)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let again = OpenOptions::new().read(true).write(true).open(&path)?;
    ensure_eq!(again.metadata()?.ino(), file.metadata()?.ino(), "inode");
    file.write_all_at(b"there", 5000)?;
    let map = Map::new(&again, HUGE)?;
    ensure_eq!(map.copy(5000, 5), b"there", "through the other descriptor");
    let read_only = File::open(&path)?;
    let shared = libc::MAP_SHARED;
    let writable = gmem::mmap(&read_only, PAGE, libc::PROT_WRITE, shared).err();
    ensure_eq!(
        writable,
        Some(Errno::EACCES),
        "writable of a read-only descriptor"
    );
    gmem::mmap(&read_only, PAGE, libc::PROT_READ, shared).context("readable of it")?;
    for mode in [0, PUNCH] {
        let refused = fallocate(&read_only, mode, 0, 1);
        ensure_eq!(refused, Err(Errno::EBADF), "fallocate {mode} of it");
    }
    let refused = errno(read_only.write_at(b"x", 0));
    ensure_eq!(refused, Some(Errno::EBADF), "write of it");
    let refused = errno(read_only.set_len(0));
    ensure_eq!(refused, Some(Errno::EINVAL), "ftruncate of it");
    let write_only = OpenOptions::new().write(true).open(&path)?;
    ensure_eq!(
        errno(write_only.read_at(&mut [0], 0)),
        Some(Errno::EBADF),
        "read of a write-only descriptor"
    );
    drop(write_only);
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    ensure_eq!(errno(direct), Some(Errno::EINVAL), "O_DIRECT");
    drop((file, map));
    let mut read = [0; 5];
    again.read_exact_at(&mut read, 5000)?;
    ensure_eq!(read, *b"there", "after the first descriptor is closed");
    // SAFETY: Nobody uses the mapping of one page that is left.
    drop((again, read_only));
    ensure_eq!(
        module::unload("kvmate"),
        Err(Errno::EWOULDBLOCK),
        "a mapping is left"
    );
    unmap_all()?;
    kvmate.unload()
}

/// Unmap whatever of gmem's is mapped here.
fn unmap_all() -> Result<()> {
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let range = line.split(' ').next().unwrap_or_default();
        if let (true, Some((start, end))) = (line.contains("gmem:"), range.split_once('-')) {
            let start = usize::from_str_radix(start, 16)?;
            let size = usize::from_str_radix(end, 16)? - start;
            // SAFETY: The caller uses none of them any more.
            Errno::result(unsafe { libc::munmap(start as *mut libc::c_void, size) })?;
        }
    }
    Ok(())
}

fn passes_over_a_socket() -> Result<()> {
    use nix::sys::socket::{recvmsg, sendmsg, ControlMessage, ControlMessageOwned, MsgFlags};
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(HUGE, 0)?;
    file.write_all_at(b"passed", 0)?;
    let (from, to) = UnixStream::pair()?;
    let fds = [file.as_raw_fd()];
    sendmsg::<()>(
        from.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )?;
    // In flight it is nobody's but the socket's.
    drop(file);
    ensure_eq!(
        module::unload("kvmate"),
        Err(Errno::EWOULDBLOCK),
        "one is in flight"
    );
    let (mut byte, mut space) = ([0], nix::cmsg_space!([i32; 1]));
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        to.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs()?.next() else {
        anyhow::bail!("no descriptor came");
    };
    // SAFETY: A fresh descriptor that nobody else owns.
    let file = unsafe { File::from_raw_fd(fds[0]) };
    ensure_eq!(gmem::bytes(&file)?[..6], *b"passed", "what came");
    drop(file);
    kvmate.unload()
}

fn holds_the_module() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let busy = || module::unload("kvmate");
    let file = gmem::create(HUGE, 0)?;
    ensure_eq!(busy(), Err(Errno::EWOULDBLOCK), "with a descriptor");
    let map = Map::new(&file, HUGE)?;
    map.write(0, 1);
    drop(file);
    ensure_eq!(busy(), Err(Errno::EWOULDBLOCK), "with a mapping only");
    ensure_eq!(map.read(0), 1, "the mapping");
    drop(map);
    // Very many, one after the other: nothing holds it by mistake, and nothing is too early.
    for _ in 0..200 {
        drop(gmem::create(HUGE, 0)?);
    }
    kvmate.unload()?;
    for _ in 0..20 {
        let kvmate = Kvmate::load("")?;
        let file = gmem::create(HUGE, 0)?;
        file.write_all_at(b"x", 0)?;
        drop(file);
        kvmate.unload()?;
    }
    Ok(())
}

fn knob_order() -> Result<()> {
    let kvmate = Kvmate::load("verbose=1")?;
    ensure_eq!(kvmate.read("knobs/gmem_order")?, "9", "by default");
    let mut log = module::Log::from_now()?;
    let file = gmem::create(4 * HUGE, 0)?;
    for (number, order) in [9usize, 4, 0].into_iter().enumerate() {
        kvmate.write("knobs/gmem_order", &order.to_string())?;
        let map = Map::new(&file, 4 * HUGE)?;
        map.write(number * HUGE + HUGE / 2, 1);
        ensure_eq!(folios(&file)?[order], 1, "folios of order {order}");
    }
    ensure_eq!(
        log.ours()?,
        ["knobs/gmem_order: 9 -> 4", "knobs/gmem_order: 4 -> 0"],
        "the log"
    );
    for bad in ["10", "256", "-1", "x"] {
        let found = errno(kvmate.write("knobs/gmem_order", bad));
        ensure_eq!(found, Some(Errno::EINVAL), "{bad}");
    }
    ensure_eq!(kvmate.read("knobs/gmem_order")?, "0", "in the end");
    ensure_eq!(
        info_of(&file, "fallbacks")?,
        0,
        "what is asked for is no fallback"
    );
    drop(file);
    kvmate.unload()
}
