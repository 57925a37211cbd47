// SPDX-License-Identifier: GPL-2.0
//! gmem: the file, its pages of 2 MiB, `fallocate()` and exact holes.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{self, allocated, fallocate, folios, info_of, punch, seek, Map, HUGE, PAGE, PUNCH},
    ktap,
    module::{self, Kvmate},
};
use kvmate_uapi::{KVMATE_GMEM_NODE, KVMATE_GMEM_SMALL};
use nix::{errno::Errno, libc};
use std::{
    fs::{self, File, OpenOptions},
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::{
            fs::{FileExt, MetadataExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    process::ExitCode,
};

const SEEK_DATA: i32 = libc::SEEK_DATA;
const SEEK_HOLE: i32 = libc::SEEK_HOLE;

fn main() -> ExitCode {
    ktap::main(&[
        ("create_refuses", create_refuses),
        ("file", file),
        ("size_is_fixed", size_is_fixed),
        ("opens_again", opens_again),
        ("passes_over_a_socket", passes_over_a_socket),
        ("holds_the_module", holds_the_module),
        ("reads_and_writes", reads_and_writes),
        ("mappings", mappings),
        ("huge_pages", huge_pages),
        ("small_pages", small_pages),
        ("behind_the_end", behind_the_end),
        ("node", node),
        ("cgroup", cgroup),
        ("meminfo", meminfo),
        ("allocate", allocate),
        ("fallocate_refuses", fallocate_refuses),
        ("seek_and_blocks", seek_and_blocks),
        ("exact_holes", exact_holes),
        ("pinned_folio_stays", pinned_folio_stays),
        ("punch_is_final", punch_is_final),
        ("knob_order", knob_order),
        ("interrupted", interrupted),
    ])
}

fn error<T>(result: std::io::Result<T>) -> Option<Errno> {
    let error = result.err()?;
    Some(Errno::from_raw(error.raw_os_error().unwrap_or(0)))
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

fn size_is_fixed() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(HUGE, 0)?;
    file.write_all_at(b"data", 0)?;
    for size in [0, 1, HUGE as u64 - 1, HUGE as u64 + 1, 1 << 40] {
        ensure_eq!(
            error(file.set_len(size)),
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
    ensure_eq!(error(again), Some(Errno::EPERM), "O_TRUNC");
    let over = file.write_at(b"more", HUGE as u64 - 2);
    ensure_eq!(over?, 2, "a write over the end");
    ensure_eq!(
        error(file.write_at(b"more", HUGE as u64)),
        Some(Errno::EPERM),
        "behind it"
    );
    let append = OpenOptions::new()
        .append(true)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    ensure_eq!(
        error(std::io::Write::write(&mut &append, b"more")),
        Some(Errno::EPERM),
        "appending"
    );
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
    ensure_eq!(
        fallocate(&read_only, 0, 0, 1),
        Err(Errno::EBADF),
        "fallocate of it"
    );
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    ensure_eq!(error(direct), Some(Errno::EINVAL), "O_DIRECT");
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

fn reads_and_writes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for flags in [0, KVMATE_GMEM_SMALL] {
        let file = gmem::create(3 * HUGE, flags)?;
        ensure!(
            gmem::bytes(&file)? == vec![0; 3 * HUGE],
            "a new file reads zeros"
        );
        ensure_eq!(allocated(&file)?, 0, "reading holes allocates nothing");
        let data: Vec<u8> = (0..2 * HUGE + 77).map(|i| (i % 251) as u8).collect();
        file.write_all_at(&data, 4000)?;
        let mut expected = vec![0; 3 * HUGE];
        expected[4000..4000 + data.len()].copy_from_slice(&data);
        ensure!(gmem::bytes(&file)? == expected, "what was written");
        let map = Map::new(&file, 3 * HUGE)?;
        ensure!(map.copy(0, 3 * HUGE) == expected, "the same, mapped");
        // From a mapping of the file itself, and into it: what is copied must be made present first.
        punch(&file, 0, HUGE)?;
        // SAFETY: Plain bytes of the mapping, which nobody changes but the call.
        let own = unsafe { std::slice::from_raw_parts(map.address() as *const u8, HUGE) };
        file.write_all_at(own, HUGE as u64)?;
        ensure!(
            map.copy(0, 2 * HUGE) == vec![0; 2 * HUGE],
            "zeros of the file itself"
        );
        // SAFETY: As above.
        let own = unsafe { std::slice::from_raw_parts_mut(map.address() as *mut u8, HUGE) };
        file.read_exact_at(own, 2 * HUGE as u64)?;
        ensure!(
            map.copy(0, HUGE) == expected[2 * HUGE..],
            "read into itself"
        );
        let bad = 8usize as *const libc::c_void;
        // SAFETY: The kernel checks the pointer; a bad one is what is tried.
        let found = Errno::result(unsafe { libc::pwrite(file.as_raw_fd(), bad, 1, 0) });
        ensure_eq!(found, Err(Errno::EFAULT), "write from nowhere");
        let found =
            // SAFETY: As above.
            Errno::result(unsafe { libc::pread(file.as_raw_fd(), bad.cast_mut(), 1, 0) });
        ensure_eq!(found, Err(Errno::EFAULT), "read to nowhere");
        let mut small = [1; 10];
        let end = 3 * HUGE as u64;
        ensure_eq!(file.read_at(&mut small, end - 4)?, 4, "read over the end");
        ensure_eq!(file.read_at(&mut small, end)?, 0, "read at the end");
        ensure_eq!(file.read_at(&mut small, end + 9)?, 0, "read behind it");
        let mut out = tempfile()?;
        std::io::copy(&mut &file, &mut out).context("sendfile")?;
        ensure!(gmem::bytes(&out)? == gmem::bytes(&file)?, "by sendfile");
    }
    kvmate.unload()
}

fn tempfile() -> Result<File> {
    let options = &mut OpenOptions::new();
    Ok(options
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open("/tmp")?)
}

fn mappings() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(4 * HUGE, 0)?;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    for protection in [libc::PROT_READ, both] {
        let private = gmem::mmap(&file, HUGE, protection, libc::MAP_PRIVATE).err();
        ensure_eq!(private, Some(Errno::EINVAL), "MAP_PRIVATE");
    }
    let (one, two) = (Map::new(&file, 4 * HUGE)?, Map::new(&file, 4 * HUGE)?);
    one.fill(0, 4 * HUGE, 0x5a);
    ensure!(
        two.copy(0, 4 * HUGE) == vec![0x5a; 4 * HUGE],
        "one mapping beside another"
    );
    // A child has the same memory, not a copy.
    // SAFETY: The child only writes to the mapping and ends.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            one.write(HUGE + 1, 7);
            // SAFETY: Ends the child at once.
            unsafe { libc::_exit(0) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None)?;
        }
    }
    ensure_eq!(two.read(HUGE + 1), 7, "what a child wrote");
    // SAFETY: Inside the mapping.
    Errno::result(unsafe { libc::mlock(one.address() as *const libc::c_void, 2 * HUGE) })?;
    punch(&file, 0, PAGE)?;
    ensure_eq!(one.read(0), 0, "locked and punched");
    drop((one, two));
    ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    drop(file);
    kvmate.unload()
}

/// `KPF_THP`, `KPF_COMPOUND_HEAD`, `KPF_UNEVICTABLE`.
const THP: u64 = 1 << 22;
const HEAD: u64 = 1 << 15;
const UNEVICTABLE: u64 = 1 << 18;

fn huge_pages() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(4 * HUGE + 3 * PAGE, 0)?;
    let map = Map::new(&file, 4 * HUGE + 3 * PAGE)?;
    ensure_eq!(map.address() % HUGE, 0, "alignment of the mapping");
    for number in 0..4 {
        map.write(number * HUGE + 12345, 1);
    }
    ensure_eq!(map.smaps("FilePmdMapped")?, 4 * HUGE, "mapped by PMD");
    ensure_eq!(map.smaps("Rss")?, 4 * HUGE, "resident");
    ensure_eq!(allocated(&file)?, 4 * HUGE, "st_blocks");
    for number in 0..4 {
        let frame = map.frame(number * HUGE)?;
        ensure_eq!(frame % 512, 0, "alignment of the memory");
        let flags = map.page_flags(number * HUGE)?;
        ensure_eq!(
            flags & (THP | HEAD | UNEVICTABLE),
            THP | HEAD | UNEVICTABLE,
            "kpageflags"
        );
        ensure_eq!(
            map.frame(number * HUGE + HUGE - 1)?,
            frame + 511,
            "its last page"
        );
    }
    ensure_eq!(folios(&file)?, [0, 0, 0, 0, 0, 0, 0, 0, 0, 4], "folios");
    // The rest is too small for a large one: 2 pages and 1.
    map.write(4 * HUGE, 1);
    map.write(4 * HUGE + 2 * PAGE, 1);
    ensure_eq!(
        folios(&file)?,
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 4],
        "folios at the end"
    );
    ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    ensure_eq!(info_of(&file, "faults_order9")?, 4, "faults");
    drop((map, file));
    kvmate.unload()
}

fn small_pages() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(4 * HUGE, KVMATE_GMEM_SMALL)?;
    let map = Map::new(&file, 4 * HUGE)?;
    map.write(0, 1);
    map.write(HUGE + 5, 1);
    file.write_all_at(&[1], 2 * HUGE as u64)?;
    fallocate(&file, 0, 3 * HUGE as i64, 5 * PAGE as i64)?;
    ensure_eq!(allocated(&file)?, 8 * PAGE, "st_blocks");
    ensure_eq!(folios(&file)?, [8, 0, 0, 0, 0, 0, 0, 0, 0, 0], "folios");
    ensure_eq!(map.page_flags(0)? & THP, 0, "kpageflags");
    ensure_eq!(map.smaps("Rss")?, 2 * PAGE, "resident");
    drop((map, file));
    kvmate.unload()
}

/// Run in a child; tell the signal that ended it.
fn signal_of(run: impl FnOnce()) -> Result<Option<nix::sys::signal::Signal>> {
    use nix::sys::wait::{waitpid, WaitStatus};
    // SAFETY: The child touches memory and ends.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            run();
            // SAFETY: Ends the child at once.
            unsafe { libc::_exit(0) }
        }
        nix::unistd::ForkResult::Parent { child } => Ok(match waitpid(child, None)? {
            WaitStatus::Signaled(_, signal, _) => Some(signal),
            _ => None,
        }),
    }
}

fn behind_the_end() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    // A mapping may be longer than the file, also where a PMD would fit into it.
    let file = gmem::create(3 * PAGE, 0)?;
    let map = Map::new(&file, HUGE)?;
    map.write(3 * PAGE - 1, 1);
    let sigbus = Some(nix::sys::signal::Signal::SIGBUS);
    ensure_eq!(
        signal_of(|| map.write(3 * PAGE, 1))?,
        sigbus,
        "a write behind the end"
    );
    ensure_eq!(
        signal_of(|| {
            map.read(HUGE - 1);
        })?,
        sigbus,
        "a read behind the end"
    );
    ensure_eq!(signal_of(|| map.write(PAGE, 1))?, None, "before it");
    drop((map, file));
    kvmate.unload()
}

fn node() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(2 * HUGE, KVMATE_GMEM_NODE)?;
    let map = Map::new(&file, 2 * HUGE)?;
    map.write(0, 1);
    map.write(HUGE, 1);
    ensure_eq!(folios(&file)?[9], 2, "huge folios of node 0");
    let maps = fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
    if let Some(line) = maps
        .lines()
        .find(|l| l.contains(&format!("{:x} ", map.address())))
    {
        ensure!(line.contains("N0="), "numa_maps: {line}");
    }
    drop((map, file));
    kvmate.unload()
}

/// A cgroup with a limit. Its and its parent's files are opened before the limit is reached: behind
/// it, opening one more has the process killed.
struct Cgroup {
    path: &'static str,
    inside: File,
    outside: File,
}

impl Cgroup {
    fn new(limit: &str) -> Result<Self> {
        let root = "/sys/fs/cgroup";
        fs::write(format!("{root}/cgroup.subtree_control"), "+memory").context("+memory")?;
        let path = "/sys/fs/cgroup/kvmate-test";
        fs::create_dir(path)?;
        fs::write(format!("{path}/memory.max"), limit)?;
        let open = |path: &str| {
            OpenOptions::new()
                .write(true)
                .open(format!("{path}/cgroup.procs"))
        };
        Ok(Self {
            path,
            inside: open(path)?,
            outside: open(root)?,
        })
    }

    /// Do something inside.
    fn run<T>(&self, inside: impl FnOnce() -> T) -> Result<T> {
        self.inside.write_all_at(b"0", 0)?;
        let result = inside();
        self.outside.write_all_at(b"0", 0)?;
        Ok(result)
    }

    fn stat(&self, key: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("{}/memory.stat", self.path))?;
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(&format!("{key} ")));
        Ok(line.context("memory.stat")?.parse()?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(self.path) {
            eprintln!("# rmdir {}: {error}", self.path);
        }
    }
}

fn cgroup() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let group = Cgroup::new("64M")?;
    let (size, end) = (128 << 20, 100 << 20);
    let file = gmem::create(size, 0)?;
    // Its page table is there before.
    let map = Map::new(&file, size)?;
    kvmate.write("knobs/gmem_order", "0")?;
    map.write(end + PAGE, 1);
    kvmate.write("knobs/gmem_order", "9")?;
    group.run(|| fallocate(&file, 0, 0, 16 << 20))??;
    ensure_eq!(group.stat("file")?, 16 << 20, "charged to the cgroup");
    ensure_eq!(group.stat("file_thp")?, 16 << 20, "as huge pages");
    ensure_eq!(
        group.stat("unevictable")?,
        16 << 20,
        "as not to be had back"
    );
    ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    // More than the limit: what can be had is had, in smaller folios at the end.
    let full = group.run(|| fallocate(&file, 0, 0, end as i64))?;
    ensure_eq!(full, Err(Errno::ENOMEM), "more than the limit");
    let (had, fallbacks) = (allocated(&file)?, info_of(&file, "fallbacks")?);
    ensure!(
        had > 60 << 20 && had <= 64 << 20,
        "{had} bytes of 64 MiB could be had"
    );
    ensure!(fallbacks > 0, "no fallback at the limit");
    let full = group.run(|| file.write_at(b"x", end as u64))?;
    ensure_eq!(error(full), Some(Errno::ENOMEM), "a write then");
    // A fault: a call that writes to memory gets EFAULT where the task itself would get SIGBUS.
    let to = (map.address() + end) as *mut libc::c_void;
    let full = group.run(|| {
        // SAFETY: Inside the mapping.
        Errno::result(unsafe { libc::getrandom(to, 1, 0) })
    })?;
    ensure_eq!(full, Err(Errno::EFAULT), "a fault then");
    group.run(|| punch(&file, 0, size))??;
    ensure_eq!(allocated(&file)?, 0, "after the punch");
    ensure!(group.stat("file")? < 1 << 20, "uncharged");
    drop((map, file, group));
    kvmate.unload()
}

fn meminfo() -> Result<()> {
    let read = |key: &str| -> Result<i64> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(&format!("{key}:")));
        let number = line.and_then(|l| l.split_whitespace().next());
        Ok(number.context("meminfo")?.parse::<i64>()? << 10)
    };
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(32 << 20, 0)?;
    let keys = [
        "Cached",
        "Unevictable",
        "FileHugePages",
        "FilePmdMapped",
        "MemFree",
    ];
    let all = || keys.iter().map(|k| read(k)).collect::<Result<Vec<_>>>();
    let before = all()?;
    let map = Map::new(&file, 32 << 20)?;
    map.fill(0, 32 << 20, 1);
    let with = all()?;
    for number in 0..4 {
        let more = with[number] - before[number];
        ensure!(
            (more - (32 << 20)).abs() < 2 << 20,
            "{} grew by {more}",
            keys[number]
        );
    }
    drop((map, file));
    let after = all()?;
    for number in 0..5 {
        let more = after[number] - before[number];
        ensure!(
            more.abs() < 4 << 20,
            "{} is {more} more than before",
            keys[number]
        );
    }
    kvmate.unload()
}

fn allocate() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(4 * HUGE, 0)?;
    let map = Map::new(&file, 4 * HUGE)?;
    file.write_all_at(b"data", HUGE as u64 + 100)?;
    for mode in [0, libc::FALLOC_FL_KEEP_SIZE] {
        fallocate(&file, mode, 0, 3 * HUGE as i64)?;
        ensure_eq!(allocated(&file)?, 3 * HUGE, "mode {mode}");
        ensure_eq!(folios(&file)?[9], 3, "huge folios");
    }
    let mut expected = vec![0; 4 * HUGE];
    expected[HUGE + 100..HUGE + 104].copy_from_slice(b"data");
    ensure!(
        map.copy(0, 3 * HUGE) == expected[..3 * HUGE],
        "data stays, holes are zero"
    );
    // Bytes round outwards to pages; the folio does not reach out of what was asked for.
    fallocate(&file, 0, 3 * HUGE as i64 + 5000, 5000)?;
    ensure_eq!(allocated(&file)?, 3 * HUGE + 2 * PAGE, "of 5000 bytes");
    fallocate(&file, 0, 4 * HUGE as i64 - 1, 1)?;
    ensure_eq!(allocated(&file)?, 3 * HUGE + 3 * PAGE, "the last byte");
    ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    drop((map, file));
    kvmate.unload()
}

fn fallocate_refuses() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(HUGE, 0)?;
    let size = HUGE as i64;
    for mode in [0, libc::FALLOC_FL_KEEP_SIZE, PUNCH] {
        for (offset, length) in [(-1, 1), (0, 0), (0, -1), (i64::MIN, 1)] {
            let found = fallocate(&file, mode, offset, length);
            ensure_eq!(
                found,
                Err(Errno::EINVAL),
                "mode {mode} of {offset}, {length}"
            );
        }
        for (offset, length) in [(i64::MAX, 1), (1, i64::MAX)] {
            let found = fallocate(&file, mode, offset, length);
            ensure_eq!(
                found,
                Err(Errno::EFBIG),
                "mode {mode} of {offset}, {length}"
            );
        }
    }
    for mode in [0, libc::FALLOC_FL_KEEP_SIZE] {
        for (offset, length) in [(0, size + 1), (size, 1), (size - 1, 2)] {
            let found = fallocate(&file, mode, offset, length);
            ensure_eq!(
                found,
                Err(Errno::EPERM),
                "mode {mode} of {offset}, {length}"
            );
        }
    }
    for mode in [
        libc::FALLOC_FL_PUNCH_HOLE,
        libc::FALLOC_FL_COLLAPSE_RANGE,
        libc::FALLOC_FL_ZERO_RANGE,
        libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        libc::FALLOC_FL_INSERT_RANGE,
        libc::FALLOC_FL_UNSHARE_RANGE,
        PUNCH | libc::FALLOC_FL_ZERO_RANGE,
        1 << 20,
    ] {
        let found = fallocate(&file, mode, 0, size);
        ensure_eq!(found, Err(Errno::EOPNOTSUPP), "mode {mode:#x}");
    }
    ensure_eq!(allocated(&file)?, 0, "what was refused allocates nothing");
    file.write_all_at(&[9; HUGE], 0)?;
    for (offset, length) in [(size, 1), (size, size), (size + 5, i64::MAX - size - 5)] {
        fallocate(&file, PUNCH, offset, length).context("a punch behind the end")?;
    }
    ensure!(
        gmem::bytes(&file)? == vec![9; HUGE],
        "a punch behind the end does nothing"
    );
    fallocate(&file, PUNCH, 5, i64::MAX - 5).context("a punch over the end")?;
    ensure_eq!(allocated(&file)?, PAGE, "after it");
    ensure_eq!(gmem::bytes(&file)?[..6], [9, 9, 9, 9, 9, 0], "after it");
    drop(file);
    kvmate.unload()
}

fn seek_and_blocks() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for flags in [0, KVMATE_GMEM_SMALL] {
        let file = gmem::create(4 * HUGE, flags)?;
        let (page, end) = (PAGE as i64, 4 * HUGE as i64);
        ensure_eq!(
            seek(&file, 0, SEEK_DATA),
            Err(Errno::ENXIO),
            "data in nothing"
        );
        ensure_eq!(seek(&file, 77, SEEK_HOLE), Ok(77), "hole in nothing");
        fallocate(&file, 0, 2 * page, 3 * page)?;
        for (from, data, hole) in [
            (0, Ok(2 * page), Ok(0)),
            (1, Ok(2 * page), Ok(1)),
            (2 * page, Ok(2 * page), Ok(5 * page)),
            (3 * page + 7, Ok(3 * page + 7), Ok(5 * page)),
            (5 * page, Err(Errno::ENXIO), Ok(5 * page)),
            (end - 1, Err(Errno::ENXIO), Ok(end - 1)),
            (end, Err(Errno::ENXIO), Err(Errno::ENXIO)),
            (i64::MAX, Err(Errno::ENXIO), Err(Errno::ENXIO)),
            (-1, Err(Errno::ENXIO), Err(Errno::ENXIO)),
        ] {
            ensure_eq!(seek(&file, from, SEEK_DATA), data, "SEEK_DATA from {from}");
            ensure_eq!(seek(&file, from, SEEK_HOLE), hole, "SEEK_HOLE from {from}");
        }
        fallocate(&file, 0, 0, end)?;
        ensure_eq!(seek(&file, 3, SEEK_HOLE), Ok(end), "hole in a full file");
        ensure_eq!(seek(&file, 3, libc::SEEK_SET), Ok(3), "SEEK_SET");
        ensure_eq!(seek(&file, 3, libc::SEEK_CUR), Ok(6), "SEEK_CUR");
        ensure_eq!(seek(&file, 0, libc::SEEK_END), Ok(end), "SEEK_END");
        ensure_eq!(seek(&file, 0, 9), Err(Errno::EINVAL), "another whence");
        punch(&file, 7 * PAGE, PAGE)?;
        ensure_eq!(seek(&file, 0, SEEK_HOLE), Ok(7 * page), "a punched hole");
        ensure_eq!(
            seek(&file, 7 * page, SEEK_DATA),
            Ok(8 * page),
            "data behind it"
        );
        ensure_eq!(allocated(&file)?, 4 * HUGE - PAGE, "st_blocks");
    }
    kvmate.unload()
}

/// A file of four huge folios with a pattern, and that pattern.
fn patterned() -> Result<(File, Map, Vec<u8>)> {
    let file = gmem::create(4 * HUGE, 0)?;
    let map = Map::new(&file, 4 * HUGE)?;
    let pattern: Vec<u8> = (0..4 * HUGE)
        .map(|i| (i / PAGE + i % 250 + 1) as u8 | 1)
        .collect();
    file.write_all_at(&pattern, 0)?;
    for number in 0..4 {
        map.read(number * HUGE);
    }
    ensure_eq!(map.smaps("FilePmdMapped")?, 4 * HUGE, "mapped by PMD");
    Ok((file, map, pattern))
}

fn exact_holes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for (offset, end) in [
        (0x3800, 0x5800),
        (0, PAGE),
        (PAGE, 2 * PAGE),
        (HUGE - PAGE, HUGE),
        (HUGE - PAGE, HUGE + PAGE),
        (HUGE - 1, HUGE + 1),
        (5, 6),
        (0, HUGE),
        (HUGE / 2, 3 * HUGE + HUGE / 2),
        (HUGE + 1, 3 * HUGE - 1),
        (HUGE + 3 * PAGE + 1, HUGE + 5 * PAGE + 2),
        (0, 4 * HUGE),
        (3 * HUGE + 511 * PAGE, 4 * HUGE),
        (1, 4 * HUGE - 1),
    ] {
        let (file, map, mut expected) = patterned()?;
        punch(&file, offset, end - offset)?;
        expected[offset..end].fill(0);
        let whole = (end / PAGE * PAGE).saturating_sub(offset.div_ceil(PAGE) * PAGE);
        ensure_eq!(
            allocated(&file)?,
            4 * HUGE - whole,
            "{offset:#x}..{end:#x}: st_blocks"
        );
        ensure!(
            gmem::bytes(&file)? == expected,
            "{offset:#x}..{end:#x}: bytes read"
        );
        ensure!(
            map.copy(0, 4 * HUGE) == expected,
            "{offset:#x}..{end:#x}: bytes mapped"
        );
        ensure_eq!(
            info_of(&file, "punch_asked")?,
            (end - offset) as u64,
            "asked"
        );
        ensure_eq!(info_of(&file, "punch_freed")?, whole as u64, "freed");
        ensure_eq!(info_of(&file, "punch_kept_unsplit")?, 0, "kept");
        ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    }
    // The folios that a split leaves: a ladder down to the cut.
    let (file, _map, _) = patterned()?;
    punch(&file, 0x3800, 0x2000)?;
    ensure_eq!(folios(&file)?, [1, 1, 1, 1, 1, 1, 1, 1, 1, 3], "folios");
    drop((file, _map));
    kvmate.unload()
}

/// Pages of a mapping, held by a pipe.
struct Pin(#[expect(dead_code)] (std::os::fd::OwnedFd, std::os::fd::OwnedFd));

fn pin(map: &Map, at: usize) -> Result<Pin> {
    let (read, write) = nix::unistd::pipe()?;
    let part = libc::iovec {
        iov_base: (map.address() + at) as *mut libc::c_void,
        iov_len: 1,
    };
    // SAFETY: Inside the mapping.
    let held = Errno::result(unsafe { libc::vmsplice(write.as_raw_fd(), &part, 1, 0) })?;
    ensure_eq!(held, 1, "vmsplice");
    Ok(Pin((read, write)))
}

fn pinned_folio_stays() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    // Of a folio that is held, at whichever edge, the bytes in the hole are zeroed and all others stay.
    for (held, offset, end, kept) in [
        (0, HUGE / 2, 2 * HUGE, 256),
        (3 * HUGE - 1, HUGE, 2 * HUGE + 10 * PAGE + 9, 10),
        (HUGE, HUGE + 0x3800, HUGE + 0x5800, 1),
        (HUGE, HUGE / 2 + 1, HUGE + 7 * PAGE, 7),
        (HUGE, 5, 4 * HUGE - 5, 0),
    ] {
        let (file, map, mut expected) = patterned()?;
        let held = pin(&map, held)?;
        punch(&file, offset, end - offset)?;
        expected[offset..end].fill(0);
        ensure!(
            gmem::bytes(&file)? == expected,
            "{offset:#x}..{end:#x}: bytes"
        );
        ensure!(
            map.copy(0, 4 * HUGE) == expected,
            "{offset:#x}..{end:#x}: bytes mapped"
        );
        let whole = end / PAGE - offset.div_ceil(PAGE);
        ensure_eq!(
            info_of(&file, "punch_kept_unsplit")? as usize,
            kept * PAGE,
            "{offset:#x}..{end:#x}: kept"
        );
        // Reading through the mapping fills the holes again; freed is what was.
        ensure_eq!(
            info_of(&file, "punch_freed")? as usize,
            (whole - kept) * PAGE,
            "{offset:#x}..{end:#x}: freed"
        );
        drop(held);
        punch(&file, offset, end - offset)?;
        let whole = whole * PAGE;
        ensure_eq!(
            allocated(&file)?,
            4 * HUGE - whole,
            "once it is not held any more"
        );
        ensure!(
            gmem::bytes(&file)? == expected,
            "{offset:#x}..{end:#x}: bytes then"
        );
    }
    kvmate.unload()
}

fn punch_is_final() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, _) = patterned()?;
    let other = Map::new(&file, 4 * HUGE)?;
    // Mapped in several places, and the call comes from another thread than the reads.
    std::thread::scope(|scope| {
        for round in 0..200 {
            let at = (round * 37 % 1024) * PAGE;
            map.write(at, 0xee);
            ensure_eq!(other.read(at), 0xee, "before");
            scope
                .spawn({
                    let file = &file;
                    move || punch(file, at, PAGE)
                })
                .join()
                .expect("no panic")?;
            ensure_eq!(
                (map.read(at), other.read(at)),
                (0, 0),
                "after, round {round}"
            );
        }
        Ok(())
    })?;
    drop((map, other, file));
    kvmate.unload()
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
        let found = error(kvmate.write("knobs/gmem_order", bad));
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

fn interrupted() -> Result<()> {
    use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};
    extern "C" fn nothing(_: i32) {}
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(64 << 20, KVMATE_GMEM_SMALL)?;
    let handler = SigHandler::Handler(nothing);
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: The handler does nothing.
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    let timer = |microseconds: i64| -> Result<()> {
        let every = libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        };
        let timer = libc::itimerval {
            it_interval: every,
            it_value: every,
        };
        // SAFETY: A whole structure.
        Errno::result(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) })?;
        Ok(())
    };
    timer(2000)?;
    let mut times = 0;
    let full = loop {
        let before = allocated(&file)?;
        match fallocate(&file, 0, 0, 64 << 20) {
            Err(Errno::EINTR) => ensure!(allocated(&file)? > before, "no prefix was done"),
            other => break other,
        }
        times += 1;
    };
    timer(0)?;
    full.context("in the end")?;
    ensure!(times > 0, "64 MiB were allocated within 2 ms");
    ensure_eq!(allocated(&file)?, 64 << 20, "in the end");
    drop(file);
    kvmate.unload()
}
