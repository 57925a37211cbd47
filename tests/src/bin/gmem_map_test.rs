// SPDX-License-Identifier: GPL-2.0
//! gmem: mappings, huge pages, `SIGBUS`, and what else mm does to
//! mapped memory.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{self, allocated, child::signal_of, fallocate, folios, info_of, punch, Map, HUGE, PAGE},
    ktap,
    module::Kvmate,
};
use kvmate_uapi::KVMATE_GMEM_SMALL;
use nix::{errno::Errno, libc};
use std::{
    fs,
    os::{fd::AsRawFd, unix::fs::FileExt},
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("mappings", mappings),
        ("huge_pages", huge_pages),
        ("small_pages", small_pages),
        ("behind_the_end", behind_the_end),
        ("advice", advice),
    ])
}

fn mappings() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(4 * HUGE, 0)?;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    for protection in [libc::PROT_READ, both] {
        let private = gmem::mmap(&file, HUGE, protection, libc::MAP_PRIVATE).err();
        ensure_eq!(private, Some(Errno::EINVAL), "MAP_PRIVATE");
    }
    let code = gmem::mmap(&file, HUGE, libc::PROT_EXEC, libc::MAP_SHARED).err();
    ensure_eq!(code, Some(Errno::EPERM), "PROT_EXEC");
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

/// What `madvise()` and `posix_fadvise()` make the kernel try. None of it changes a byte or takes
/// memory away, but `MADV_REMOVE`, which is a punch.
fn advice() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for (flags, present) in [(0, 1), (KVMATE_GMEM_SMALL, 1), (KVMATE_GMEM_SMALL, 2)] {
        let file = gmem::create(4 * HUGE, flags)?;
        let map = Map::new(&file, 4 * HUGE)?;
        let mut expected = vec![0; 4 * HUGE];
        for page in (0..4 * HUGE / PAGE).step_by(present) {
            map.write(page * PAGE + 7, page as u8 | 1);
            expected[page * PAGE + 7] = page as u8 | 1;
        }
        let before = allocated(&file)?;
        let advise = |length: usize, advice: i32| {
            let start = map.address() as *mut libc::c_void;
            // SAFETY: Our own mapping, whose content is the file's.
            Errno::result(unsafe { libc::madvise(start, length, advice) }).map(drop)
        };
        for good in [
            libc::MADV_WILLNEED,
            libc::MADV_RANDOM,
            libc::MADV_HUGEPAGE,
            libc::MADV_COLD,
            libc::MADV_PAGEOUT,
            libc::MADV_DONTNEED,
        ] {
            advise(4 * HUGE, good).with_context(|| format!("madvise {good}"))?;
        }
        // It may map by PMD what is of 2 MiB already, and makes nothing else of the file's pages.
        let collapsed = advise(4 * HUGE, libc::MADV_COLLAPSE);
        ensure!(
            flags == 0
                || matches!(
                    collapsed,
                    Err(Errno::EINVAL | Errno::EAGAIN | Errno::ENOMEM | Errno::EBUSY)
                ),
            "MADV_COLLAPSE: {collapsed:?}"
        );
        ensure_eq!(
            advise(PAGE, libc::MADV_FREE),
            Err(Errno::EINVAL),
            "MADV_FREE"
        );
        for advice in 0..6 {
            // SAFETY: Integers only.
            let done = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice) };
            ensure_eq!(done, 0, "posix_fadvise {advice}");
        }
        // SAFETY: Integers only.
        Errno::result(unsafe { libc::readahead(file.as_raw_fd(), 0, 4 * HUGE) })
            .map(drop)
            .or_else(|error| match error {
                Errno::EINVAL => Ok(()),
                other => Err(other),
            })?;
        fs::write("/proc/sys/vm/drop_caches", "1")?;
        ensure_eq!(allocated(&file)?, before, "st_blocks after all that advice");
        ensure!(
            gmem::bytes(&file)? == expected,
            "bytes after all that advice"
        );
        advise(HUGE + PAGE, libc::MADV_REMOVE).context("MADV_REMOVE")?;
        expected[..HUGE + PAGE].fill(0);
        ensure!(gmem::bytes(&file)? == expected, "bytes after MADV_REMOVE");
        let freed = (HUGE / PAGE + 1).div_ceil(present) * PAGE;
        ensure_eq!(
            allocated(&file)?,
            before - freed,
            "st_blocks after MADV_REMOVE"
        );
        ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    }
    kvmate.unload()
}
