// SPDX-License-Identifier: GPL-2.0
//! Memory failures in gmem: the page goes, who touches it is told, and every other byte is as it was.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    affinity::Affinity,
    ensure_eq,
    gmem::{
        self, allocated,
        child::{self, signal_of, Ended},
        errno, fallocate, folios,
        guest::Guest,
        info_of,
        memory::meminfo,
        pins::{pin, By},
        punch, query, seek,
        shape::{self, Shape},
        Map, HUGE, PAGE,
    },
    ktap,
    module::{modprobe, Kvmate},
};
use kvmate_uapi::{KVMATE_GMEM_DIRTY, KVMATE_GMEM_HOLE, KVMATE_GMEM_POISONED, KVMATE_GMEM_SMALL};
use nix::{errno::Errno, libc, sys::signal::Signal, unistd};
use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("mapped", mapped),
        ("not_mapped", not_mapped),
        ("held", held),
        ("good_page_first", good_page_first),
        ("never_again", never_again),
        ("under_a_guest", under_a_guest),
        ("merged_and_filled", merged_and_filled),
        ("many", many),
    ])
}

const SIZE: usize = 2 * HUGE;

/// A file with a pattern, mapped, and that pattern.
fn patterned(flags: u32) -> Result<(File, Map, Vec<u8>)> {
    let file = gmem::create(SIZE, flags)?;
    let map = Map::new(&file, SIZE)?;
    let pattern: Vec<u8> = (0..SIZE)
        .map(|i| (i / PAGE + i % 241 + 1) as u8 | 1)
        .collect();
    file.write_all_at(&pattern, 0)?;
    map.read(0);
    map.read(HUGE);
    Ok((file, map, pattern))
}

/// By `madvise()`, in a child: the page behind a byte fails. Who calls it uses the page and is told at
/// once, if it is mapped still: not after its folio was split for that.
fn fail_mapped(map: &Map, at: usize, whole: bool) -> Result<()> {
    let page = (map.address() + at / PAGE * PAGE) as *mut libc::c_void;
    let ended = child::run(|| {
        // SAFETY: A page of our own mapping.
        unsafe { libc::madvise(page, PAGE, libc::MADV_HWPOISON) }
    })?;
    let expected = if whole {
        Ended::By(0)
    } else {
        Ended::Killed(Signal::SIGBUS)
    };
    ensure_eq!(ended, expected, "who uses the page that fails");
    Ok(())
}

/// By hwpoison-inject, whoever has that page frame.
fn fail_frame(frame: u64) -> Result<()> {
    let file = "/sys/kernel/debug/hwpoison/corrupt-pfn";
    if !Path::new(file).exists() {
        modprobe("hwpoison_inject")?;
    }
    fs::write(file, format!("{frame:#x}")).context(file)
}

fn splice(file: &File, at: usize) -> nix::Result<isize> {
    let (from, to) = unistd::pipe()?;
    let mut offset = at as i64;
    // SAFETY: Two descriptors and a position of ours.
    let moved = Errno::result(unsafe {
        let (file, to) = (file.as_raw_fd(), to.as_raw_fd());
        libc::splice(file, &mut offset, to, std::ptr::null_mut(), PAGE, 0)
    });
    drop(from);
    moved
}

/// Everybody is told of the page, and every other byte is as it was.
fn only_that(file: &File, map: &Map, expected: &[u8], at: usize, what: &str) -> Result<()> {
    only_that_of(file, map, expected, at, what)?;
    compare(map, expected, what, |page| page != at)
}

/// What is mapped, of the pages that are to be looked at.
fn compare(map: &Map, expected: &[u8], what: &str, look: impl Fn(usize) -> bool) -> Result<()> {
    for page in (0..SIZE).step_by(PAGE).filter(|page| look(*page)) {
        let same = map.copy(page, PAGE) == expected[page..page + PAGE];
        ensure!(same, "{what}: bytes mapped at {page:#x}");
    }
    Ok(())
}

/// The same, but for what is mapped of the others.
fn only_that_of(file: &File, map: &Map, expected: &[u8], at: usize, what: &str) -> Result<()> {
    let mut bytes = vec![0; PAGE];
    let eio = Some(Errno::EIO);
    for inside in [at, at + 77, at + PAGE - 1] {
        let read = file.read_at(&mut bytes, inside as u64);
        ensure_eq!(errno(read), eio, "{what}: read at {inside:#x}");
        let written = file.write_at(b"x", inside as u64);
        ensure_eq!(errno(written), eio, "{what}: write at {inside:#x}");
    }
    ensure_eq!(splice(file, at), Err(Errno::EIO), "{what}: splice");
    // What is before it is read, and no more.
    let mut more = vec![0; 3 * PAGE];
    let from = at - PAGE - 5;
    let read = file.read_at(&mut more, from as u64)?;
    ensure_eq!(read, PAGE + 5, "{what}: read into it");
    ensure!(
        more[..read] == expected[from..at],
        "{what}: bytes before it"
    );
    let touched = signal_of(|| drop(std::hint::black_box(map.copy(at + 5, 1))))?;
    ensure_eq!(touched, Some(Signal::SIGBUS), "{what}: read by mapping");
    let touched = signal_of(|| map.write(at, 1))?;
    ensure_eq!(touched, Some(Signal::SIGBUS), "{what}: write by mapping");
    // Another process that maps it anew.
    let fresh = Map::at(file, at / HUGE * HUGE, HUGE)?;
    let touched = signal_of(|| fresh.write(at % HUGE, 1))?;
    ensure_eq!(touched, Some(Signal::SIGBUS), "{what}: a new mapping");
    drop(fresh);
    ensure_eq!(
        seek(file, at as i64, libc::SEEK_DATA),
        Ok(at as i64),
        "{what}: data"
    );
    let allocation = fallocate(file, 0, at as i64, PAGE as i64);
    ensure_eq!(allocation, Ok(()), "{what}: fallocate");
    let record = query::at(file, at)?;
    ensure!(
        record.flags & KVMATE_GMEM_POISONED != 0,
        "{what}: {record:?}"
    );
    let listed = query::map(file)?;
    let listed = listed.iter().find(|r| r.offset == record.offset).copied();
    let flags = listed.map(|r| r.flags & (KVMATE_GMEM_POISONED | KVMATE_GMEM_HOLE));
    let expected_flags = record.flags & (KVMATE_GMEM_POISONED | KVMATE_GMEM_HOLE);
    ensure_eq!(flags, Some(expected_flags), "{what}: map in debugfs");
    for page in (0..SIZE).step_by(PAGE).filter(|page| *page != at) {
        let known = &expected[page..page + PAGE];
        file.read_exact_at(&mut bytes, page as u64)?;
        ensure!(bytes == known, "{what}: bytes read at {page:#x}");
    }
    Ok(())
}

/// A punch of a part leaves it as it is, one of the page makes it as good as new.
fn mended_by_a_punch(file: &File, map: &Map, expected: &mut [u8], at: usize) -> Result<()> {
    punch(file, at - 10, 20)?;
    expected[at - 10..at].fill(0);
    only_that(file, map, expected, at, "after a punch of a part")?;
    punch(file, at, PAGE)?;
    expected[at..at + PAGE].fill(0);
    ensure!(gmem::bytes(file)? == expected, "bytes read after a punch");
    ensure_eq!(
        query::at(file, at)?.flags,
        KVMATE_GMEM_HOLE,
        "after a punch"
    );
    map.write(at + 3, 9);
    expected[at + 3] = 9;
    ensure!(map.copy(0, SIZE) == expected, "bytes mapped after a punch");
    ensure_eq!(query::at(file, at)?.flags & KVMATE_GMEM_POISONED, 0, "then");
    ensure_eq!(info_of(file, "failed")?, 0, "failed pages then");
    Ok(())
}

/// How many pages the kernel has given up since.
fn corrupted(before: i64) -> Result<i64> {
    Ok((meminfo("HardwareCorrupted")? - before) / PAGE as i64)
}

/// Files that differ in their folios: what they are called, are made with, and whether they are split.
const FILES: [(&str, u32, bool); 3] = [
    ("huge", 0, false),
    ("split", 0, true),
    ("small", KVMATE_GMEM_SMALL, false),
];

fn mapped() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for (what, flags, split) in FILES {
        let before = meminfo("HardwareCorrupted")?;
        let (file, map, mut pattern) = patterned(flags)?;
        if split {
            shape::split(&file, 0, SIZE, 0)?;
            ensure!(map.copy(0, SIZE) == pattern, "split");
        }
        let at = HUGE + 33 * PAGE;
        fail_mapped(&map, at + 7, what == "huge")?;
        ensure_eq!(corrupted(before)?, 1, "{what}: pages given up");
        ensure_eq!(allocated(&file)?, SIZE - PAGE, "{what}: st_blocks");
        ensure_eq!(info_of(&file, "failed")?, 1, "{what}: failed pages");
        let record = query::at(&file, at)?;
        ensure_eq!(
            (record.offset as usize, record.length as usize, record.flags),
            (at, PAGE, KVMATE_GMEM_HOLE | KVMATE_GMEM_POISONED),
            "{what}: the record"
        );
        only_that(&file, &map, &pattern, at, what)?;
        mended_by_a_punch(&file, &map, &mut pattern, at)?;
        ensure_eq!(corrupted(before)?, 1, "{what}: still given up");
    }
    kvmate.unload()
}

fn not_mapped() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for (what, flags, split) in FILES {
        let before = meminfo("HardwareCorrupted")?;
        let (file, map, mut pattern) = patterned(flags)?;
        if split {
            shape::split(&file, 0, SIZE, 2)?;
        }
        let at = HUGE + 34 * PAGE;
        let frame = map.frame(at)?;
        drop(map);
        ensure_eq!(query::at(&file, at)?.mappings, 0, "{what}: mappings");
        fail_frame(frame)?;
        ensure_eq!(corrupted(before)?, 1, "{what}: pages given up");
        ensure_eq!(allocated(&file)?, SIZE - PAGE, "{what}: st_blocks");
        let map = Map::new(&file, SIZE)?;
        only_that(&file, &map, &pattern, at, what)?;
        mended_by_a_punch(&file, &map, &mut pattern, at)?;
    }
    kvmate.unload()
}

/// A folio that cannot be split keeps its page, which is as poisoned.
fn held() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let before = meminfo("HardwareCorrupted")?;
    let (file, map, mut pattern) = patterned(0)?;
    let at = HUGE + 35 * PAGE;
    let pin = pin(By::Pipe, &map, HUGE + PAGE)?;
    fail_mapped(&map, at, false)?;
    ensure_eq!(corrupted(before)?, 1, "pages given up");
    ensure_eq!(folios(&file)?[9], 2, "huge folios");
    ensure_eq!(allocated(&file)?, SIZE, "st_blocks");
    ensure_eq!(info_of(&file, "failed")?, 0, "pages taken out");
    let record = query::at(&file, at)?;
    let flags = record.flags & (KVMATE_GMEM_POISONED | KVMATE_GMEM_DIRTY | KVMATE_GMEM_HOLE);
    ensure_eq!(
        flags,
        KVMATE_GMEM_POISONED | KVMATE_GMEM_DIRTY,
        "{record:?}"
    );
    only_that_of(&file, &map, &pattern, at, "held")?;
    // A punch that cannot split zeroes what it can.
    punch(&file, at - PAGE, PAGE)?;
    pattern[at - PAGE..at].fill(0);
    only_that_of(&file, &map, &pattern, at, "held, after a punch beside it")?;
    compare(&map, &pattern, "held, the other folio", |page| page < HUGE)?;
    punch(&file, at, PAGE)?;
    only_that_of(&file, &map, &pattern, at, "held, after a punch")?;
    drop(pin);
    mended_by_a_punch(&file, &map, &mut pattern, at)?;
    ensure_eq!(corrupted(before)?, 1, "still given up");
    drop((file, map));
    kvmate.unload()
}

/// A fault on a page of a folio that is held never maps the page that failed with it; once the folio
/// is let go, the fault takes that page out.
fn good_page_first() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, mut pattern) = patterned(0)?;
    let at = HUGE + 35 * PAGE;
    let pin = pin(By::Pipe, &map, HUGE + PAGE)?;
    fail_mapped(&map, at, false)?;
    drop(map);
    let map = Map::new(&file, SIZE)?;
    let told = signal_of(|| {
        // Both in one process: the second finds what the first mapped.
        std::hint::black_box(map.read(HUGE));
        std::hint::black_box(map.read(at));
    })?;
    ensure_eq!(told, Some(Signal::SIGBUS), "the page that failed, then");
    let told = signal_of(|| drop(std::hint::black_box(map.copy(HUGE, 1))))?;
    ensure_eq!(told, Some(Signal::SIGBUS), "a page beside it");
    ensure_eq!(folios(&file)?[9], 2, "huge folios");
    drop(pin);
    map.read(HUGE);
    ensure_eq!(info_of(&file, "failed")?, 1, "pages taken out");
    ensure_eq!(allocated(&file)?, SIZE - PAGE, "st_blocks");
    only_that(&file, &map, &pattern, at, "let go")?;
    mended_by_a_punch(&file, &map, &mut pattern, at)?;
    drop((file, map));
    kvmate.unload()
}

/// The page that failed never comes back, whether it goes by a punch of all or with the file, and
/// whether its folio is held then or not.
fn never_again() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let before = meminfo("HardwareCorrupted")?;
    // What a processor freed last it gives out first.
    let _one = Affinity::one()?;
    let mut gone = Vec::new();
    for (punched, held) in [(true, false), (false, false), (true, true), (false, true)] {
        let (file, map, _) = patterned(0)?;
        let at = 38 * PAGE;
        gone.push(map.frame(at)?);
        let pin = pin(By::Pipe, &map, PAGE)?;
        fail_mapped(&map, at, false)?;
        let pin = Some(pin).filter(|_| held);
        if punched {
            punch(&file, 0, SIZE)?;
            ensure_eq!(allocated(&file)?, 0, "st_blocks");
        }
        drop((map, file, pin));
        let size = 32 * HUGE;
        let file = gmem::create(size, 0)?;
        fallocate(&file, 0, 0, size as i64)?;
        let map = Map::new(&file, size)?;
        for folio in query::records(&file, 0, size, 64)? {
            let (at, pages) = (folio.offset as usize, folio.length / PAGE as u64);
            map.read(at);
            let frames = map.frame(at)?..map.frame(at)? + pages;
            ensure!(
                !gone.iter().any(|frame| frames.contains(frame)),
                "punched {punched}, held {held}: {frames:#x?} at {at:#x} has one that failed"
            );
        }
    }
    ensure_eq!(corrupted(before)?, 4, "pages given up");
    kvmate.unload()
}

fn under_a_guest() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, mut pattern) = patterned(0)?;
    let at = 36 * PAGE;
    let frame = map.frame(at)?;
    let told = signal_of(|| {
        let mut guest = Guest::new(&map, SIZE).expect("a guest");
        let word = guest.read(at + PAGE).expect("another page");
        assert_eq!(word.to_le_bytes(), pattern[at + PAGE..at + PAGE + 4]);
        guest.read(at).expect("the page before it fails");
        fail_frame(frame).expect("hwpoison-inject");
        guest.read(at + PAGE).expect("another page still");
        // The vCPU's thread gets the signal, in KVM_RUN.
        let read = guest.read(at);
        println!("# the guest read {read:?}");
    })?;
    ensure_eq!(told, Some(Signal::SIGBUS), "the vCPU's thread");
    only_that(&file, &map, &pattern, at, "under a guest")?;
    punch(&file, at, PAGE)?;
    pattern[at..at + PAGE].fill(0);
    let mut guest = Guest::new(&map, SIZE)?;
    ensure_eq!(
        guest.exchange(at, 0x1234)?,
        0,
        "what a guest reads after a punch"
    );
    pattern[at..at + 4].copy_from_slice(&0x1234u32.to_le_bytes());
    ensure!(gmem::bytes(&file)? == pattern, "bytes in the end");
    drop((guest, file, map));
    kvmate.unload()
}

fn merged_and_filled() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, mut pattern) = patterned(0)?;
    let at = HUGE + 37 * PAGE;
    fail_mapped(&map, at, true)?;
    for flags in [0, kvmate_uapi::KVMATE_GMEM_FILL] {
        let mut range = shape::range(0, SIZE, 9);
        range.flags = flags;
        let error = shape::call(&file, Shape::Merge, &mut range);
        ensure_eq!(error, Err(Errno::EHWPOISON), "a merge of it: {range:?}");
        ensure_eq!(range.done as usize, HUGE, "done: {range:?}");
        ensure_eq!(range.refused.offset as usize, at, "{range:?}");
    }
    ensure_eq!(info_of(&file, "merge_failed_poisoned")?, 2, "counted");
    only_that(&file, &map, &pattern, at, "after a merge")?;
    // What is beside it fills by large folios, and it is not filled.
    punch(&file, HUGE, 37 * PAGE)?;
    punch(&file, at + PAGE, HUGE - 38 * PAGE)?;
    pattern[HUGE..at].fill(0);
    pattern[at + PAGE..].fill(0);
    fallocate(&file, 0, HUGE as i64, HUGE as i64)?;
    ensure_eq!(allocated(&file)?, SIZE - PAGE, "st_blocks");
    ensure!(folios(&file)?[8] >= 1, "folios {:?}", folios(&file)?);
    only_that(&file, &map, &pattern, at, "filled around it")?;
    punch(&file, at, PAGE)?;
    pattern[at..at + PAGE].fill(0);
    shape::merge_and_fill(&file, 0, SIZE, 9)?;
    ensure_eq!(folios(&file)?[9], 2, "merged");
    ensure!(map.copy(0, SIZE) == pattern, "bytes in the end");
    drop((file, map));
    kvmate.unload()
}

fn many() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let before = meminfo("HardwareCorrupted")?;
    let (file, map, _) = patterned(0)?;
    shape::split(&file, 0, SIZE, 0)?;
    // In no order.
    let pages: Vec<usize> = (0..40).map(|i| i * 173 % 1024).collect();
    for page in &pages {
        fail_mapped(&map, page * PAGE, false)?;
    }
    ensure_eq!(corrupted(before)?, 40, "pages given up");
    ensure_eq!(info_of(&file, "failed")?, 40, "failed pages");
    let all = query::records(&file, 0, SIZE, 3)?;
    let failed = all
        .iter()
        .filter(|r| r.flags == KVMATE_GMEM_HOLE | KVMATE_GMEM_POISONED);
    let failed: Vec<_> = failed.map(|r| r.offset as usize / PAGE).collect();
    let mut sorted = pages.clone();
    sorted.sort();
    ensure_eq!(failed, sorted, "where they are");
    punch(&file, 0, SIZE / 2)?;
    let left = pages.iter().filter(|page| **page >= 512).count();
    ensure_eq!(
        info_of(&file, "failed")?,
        left as u64,
        "after a punch of half"
    );
    punch(&file, 0, SIZE)?;
    ensure_eq!(info_of(&file, "failed")?, 0, "after a punch of all");
    ensure_eq!(allocated(&file)?, 0, "st_blocks");
    ensure!(map.copy(0, SIZE) == vec![0; SIZE], "bytes");
    drop((file, map));
    kvmate.unload()
}
