// SPDX-License-Identifier: GPL-2.0
//! gmem's folios are split and merged, and no byte changes. Who holds a page is told.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    affinity::Affinity,
    ensure_eq,
    gmem::{
        self, allocated,
        cgroup::Cgroup,
        child, fallocate, folios,
        guest::Guest,
        info_of,
        memory::{meminfo, Before},
        pins::{self, pin, By, Hold},
        punch, query,
        shape::{self, Shape},
        Map, HUGE, PAGE,
    },
    ktap,
    module::Kvmate,
    stats::Stats,
    storm::until,
};
use kvmate_uapi::{
    kvmate_gmem_range, KVMATE_GMEM_DIRTY, KVMATE_GMEM_FILL, KVMATE_GMEM_HOLE, KVMATE_GMEM_LOCKED,
    KVMATE_GMEM_PINNED, KVMATE_GMEM_SMALL,
};
use nix::{errno::Errno, libc};
use std::{
    fs::{File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::FileExt},
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("bad_input", bad_input),
        ("every_order", every_order),
        ("parts", parts),
        ("mapped_by_pmd_again", mapped_by_pmd_again),
        ("holes", holes),
        ("held_folio_is_not_split", held_folio_is_not_split),
        ("held_page_is_not_merged", held_page_is_not_merged),
        ("fresh_pages_merge", fresh_pages_merge),
        ("payer_pays", payer_pays),
        ("memory_comes_back", memory_comes_back),
    ])
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size)
        .map(|i| (i / PAGE + i % 251 + 1) as u8 | 1)
        .collect()
}

/// A file of so many huge folios with a pattern, mapped, and that pattern.
fn patterned(huge: usize) -> Result<(File, Map, Vec<u8>)> {
    let file = gmem::create(huge * HUGE, 0)?;
    let map = Map::new(&file, huge * HUGE)?;
    let pattern = pattern(huge * HUGE);
    file.write_all_at(&pattern, 0)?;
    for number in 0..huge {
        map.read(number * HUGE);
    }
    ensure_eq!(map.smaps("FilePmdMapped")?, huge * HUGE, "mapped by PMD");
    Ok((file, map, pattern))
}

/// By `read()` and by mapping.
fn is(file: &File, map: &Map, expected: &[u8], what: &str) -> Result<()> {
    ensure!(gmem::bytes(file)? == expected, "{what}: bytes read");
    ensure!(
        map.copy(0, expected.len()) == expected,
        "{what}: bytes mapped"
    );
    ensure_eq!(info_of(file, "fallbacks")?, 0, "{what}: fallbacks");
    Ok(())
}

/// So many folios of that order, and none of another.
fn all_of(file: &File, order: u32, number: usize) -> Result<()> {
    let mut expected = vec![0; 10];
    expected[order as usize] = number as u64;
    ensure_eq!(folios(file)?, expected, "folios of order {order}");
    Ok(())
}

fn bad_input() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(2 * HUGE, 0)?;
    fallocate(&file, 0, 0, 2 * HUGE as i64)?;
    type Change = fn(&mut kvmate_gmem_range);
    let cases: [(&str, Change); 11] = [
        ("order", |r| r.order = 10),
        ("odd offset", |r| r.offset = 4095),
        ("odd length", |r| r.length = HUGE as u64 + 1),
        ("offset within a folio", |r| r.offset = PAGE as u64),
        ("length of half a folio", |r| r.length = PAGE as u64),
        ("behind the end", |r| r.length = 3 * HUGE as u64),
        ("overflow", |r| r.offset = u64::MAX - HUGE as u64 + 1),
        ("flag", |r| r.flags = 2),
        ("done", |r| r.done = 1),
        ("refused", |r| r.refused.mappings = 1),
        ("reserved", |r| r.reserved[1] = 1),
    ];
    for shape in [Shape::Split, Shape::Merge] {
        let order = if shape == Shape::Split { 8 } else { 9 };
        for (what, change) in cases {
            let mut range = shape::range(0, 2 * HUGE, order);
            change(&mut range);
            let before = format!("{range:?}");
            let error = shape::call(&file, shape, &mut range);
            ensure_eq!(error, Err(Errno::EINVAL), "{shape:?}: {what}");
            ensure_eq!(format!("{range:?}"), before, "{shape:?}: {what}");
        }
        let mut nothing = shape::range(HUGE, 0, order);
        ensure_eq!(shape::call(&file, shape, &mut nothing), Ok(()), "nothing");
    }
    for (shape, order, flags) in [
        (Shape::Split, 9, 0),
        (Shape::Split, 8, KVMATE_GMEM_FILL),
        (Shape::Merge, 0, 0),
    ] {
        let mut range = shape::range(0, HUGE, order);
        range.flags = flags;
        let error = shape::call(&file, shape, &mut range);
        ensure_eq!(error, Err(Errno::EINVAL), "{shape:?} {order} {flags}");
    }
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let read_only = OpenOptions::new().read(true).open(again)?;
    for shape in [Shape::Split, Shape::Merge] {
        let mut range = shape::range(0, HUGE, 8);
        let error = shape::call(&read_only, shape, &mut range);
        ensure_eq!(error, Err(Errno::EBADF), "{shape:?} of a read-only one");
    }
    all_of(&file, 9, 2)?;
    let small = gmem::create(HUGE, KVMATE_GMEM_SMALL)?;
    fallocate(&small, 0, 0, HUGE as i64)?;
    let mut range = shape::range(0, HUGE, 9);
    let error = shape::call(&small, Shape::Merge, &mut range);
    ensure_eq!(error, Err(Errno::EOPNOTSUPP), "merge of a small one");
    shape::split(&small, 0, HUGE, 0)?;
    drop((file, read_only, small));
    kvmate.unload()
}

fn every_order() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for order in (0..9).rev() {
        let (file, map, pattern) = patterned(2)?;
        let held = shape::split(&file, 0, 2 * HUGE, order)?;
        all_of(&file, order, 1024 >> order)?;
        is(&file, &map, &pattern, &format!("split to {order}"))?;
        ensure_eq!(allocated(&file)?, 2 * HUGE, "split to {order}: st_blocks");
        // What is small enough stays.
        let done = info_of(&file, "split_done")?;
        let tried = info_of(&file, "split_tried")?;
        ensure_eq!(done + held, tried, "splits");
        ensure!(done >= 2, "{done} splits");
        shape::split(&file, 0, 2 * HUGE, order)?;
        ensure_eq!(info_of(&file, "split_tried")?, tried, "splits of nothing");
        let mut held = 0;
        if order < 5 {
            held += shape::merge(&file, HUGE, HUGE, 5)?;
            let halves = folios(&file)?;
            ensure_eq!(halves[order as usize], 512 >> order, "the first half");
            ensure_eq!(halves[5], 16, "the second half");
            is(&file, &map, &pattern, &format!("merged from {order} to 5"))?;
        }
        held += shape::merge(&file, 0, 2 * HUGE, 9)?;
        all_of(&file, 9, 2)?;
        is(&file, &map, &pattern, &format!("merged from {order}"))?;
        ensure_eq!(
            allocated(&file)?,
            2 * HUGE,
            "merged from {order}: st_blocks"
        );
        let merged = info_of(&file, "merge_done")?;
        let expected = if order < 5 { 2 + 16 } else { 2 };
        ensure_eq!(merged, expected, "merges");
        shape::merge(&file, 0, 2 * HUGE, 9)?;
        let tried = info_of(&file, "merge_tried")?;
        ensure_eq!(tried, merged + held, "merges of nothing");
    }
    kvmate.unload()
}

fn parts() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, pattern) = patterned(3)?;
    shape::split(&file, HUGE + 6 * PAGE, 2 * PAGE, 1)?;
    let record = query::at(&file, HUGE + 6 * PAGE)?;
    ensure_eq!(
        (record.offset as usize, record.order),
        (HUGE + 6 * PAGE, 1),
        "the part"
    );
    // Beside it a ladder, and nothing smaller than asked for.
    ensure_eq!(
        folios(&file)?,
        [0, 2, 1, 1, 1, 1, 1, 1, 1, 2],
        "after a split of a part"
    );
    is(&file, &map, &pattern, "after a split of a part")?;
    // Over the edge of a folio.
    shape::split(&file, HUGE + HUGE / 2, HUGE, 3)?;
    let small = query::records(&file, HUGE + HUGE / 2, HUGE, 500)?;
    ensure_eq!(small.len(), 512 >> 3, "folios in the part");
    ensure_eq!(query::at(&file, 0)?.order, 9, "before the part");
    is(&file, &map, &pattern, "after a split over an edge")?;
    // A punch makes a ladder and a hole; what is beside the hole can be merged, and is.
    punch(&file, PAGE, PAGE)?;
    shape::merge(&file, HUGE / 2, HUGE / 2, 8)?;
    shape::merge(&file, HUGE, 2 * HUGE, 9)?;
    ensure_eq!(folios(&file)?[9], 2, "huge ones then");
    let mut pattern = pattern;
    pattern[PAGE..2 * PAGE].fill(0);
    is(&file, &map, &pattern, "after a punch and a merge")?;
    drop((file, map));
    kvmate.unload()
}

fn mapped_by_pmd_again() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, mut pattern) = patterned(2)?;
    let second = Map::new(&file, 2 * HUGE)?;
    // SAFETY: Our own mapping.
    Errno::result(unsafe { libc::mlock(second.address() as *const _, 2 * HUGE) })?;
    let mut guest = Guest::new(&map, 2 * HUGE)?;
    let stats = Stats::of(guest.vm())?;
    for round in 0..3u32 {
        let value = u32::from_ne_bytes(pattern[HUGE..HUGE + 4].try_into()?);
        let new = 0x0101_0101 * (round + 1);
        ensure_eq!(guest.exchange(HUGE, new)?, value, "what the guest replaced");
        pattern[HUGE..HUGE + 4].copy_from_slice(&new.to_ne_bytes());
        ensure!(stats.get("pages_2m")? >= 1, "KVM's pages_2m");
        shape::split(&file, 0, 2 * HUGE, 0)?;
        ensure_eq!(stats.get("pages_2m")?, 0, "KVM's pages_2m after a split");
        ensure_eq!(map.smaps("FilePmdMapped")?, 0, "mapped by PMD then");
        is(&file, &map, &pattern, "split")?;
        is(&file, &second, &pattern, "split, locked in memory")?;
        ensure_eq!(guest.read(HUGE)?, new, "what the guest reads");
        ensure!(stats.get("pages_4k")? >= 1, "KVM's pages_4k");
        shape::merge(&file, 0, 2 * HUGE, 9)?;
        all_of(&file, 9, 2)?;
        ensure_eq!(guest.read(HUGE)?, new, "what the guest reads after a merge");
        is(&file, &map, &pattern, "merged")?;
        is(&file, &second, &pattern, "merged, locked in memory")?;
        // The page tables of small pages stay until they are asked to go.
        let start = map.address() as *mut libc::c_void;
        // SAFETY: Our own mapping, whose content stays.
        Errno::result(unsafe { libc::madvise(start, 2 * HUGE, libc::MADV_COLLAPSE) })
            .context("MADV_COLLAPSE")?;
        ensure_eq!(map.smaps("FilePmdMapped")?, 2 * HUGE, "mapped by PMD again");
        let fresh = Map::new(&file, 2 * HUGE)?;
        is(&file, &fresh, &pattern, "mapped after the merge")?;
        ensure_eq!(
            fresh.smaps("FilePmdMapped")?,
            2 * HUGE,
            "a mapping made then"
        );
        // KPF_THP: from outside.
        ensure!((map.page_flags(HUGE)? >> 22) & 1 == 1, "kpageflags");
    }
    drop((guest, stats, second, map, file));
    kvmate.unload()
}

fn holes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, mut pattern) = patterned(3)?;
    let hole = HUGE + 8 * PAGE..HUGE + 11 * PAGE;
    punch(&file, hole.start, hole.len())?;
    pattern[hole.clone()].fill(0);
    shape::split(&file, 0, HUGE, 4)?;
    let mut range = shape::range(0, 3 * HUGE, 9);
    let error = shape::call(&file, Shape::Merge, &mut range);
    ensure_eq!(error, Err(Errno::EINVAL), "a hole");
    ensure_eq!(range.done, HUGE as u64, "done before the hole");
    let refused = range.refused;
    ensure_eq!(refused.flags, KVMATE_GMEM_HOLE, "{refused:?}");
    ensure_eq!(refused.offset as usize, hole.start, "{refused:?}");
    ensure_eq!(refused.length as usize, hole.len(), "{refused:?}");
    ensure_eq!(info_of(&file, "merge_failed_hole")?, 1, "counted");
    ensure_eq!(allocated(&file)?, 3 * HUGE - hole.len(), "still a hole");
    is(&file, &map, &pattern, "after a merge that met a hole")?;
    // The mapped read above filled the hole with pages of its own; make it again.
    punch(&file, hole.start, hole.len())?;
    punch(&file, 2 * HUGE, HUGE)?;
    pattern[2 * HUGE..].fill(0);
    shape::merge_and_fill(&file, 0, 3 * HUGE, 9)?;
    all_of(&file, 9, 3)?;
    ensure_eq!(allocated(&file)?, 3 * HUGE, "filled");
    is(&file, &map, &pattern, "filled")?;
    drop((file, map));
    kvmate.unload()
}

/// What was refused: where, references, expected, mappings, and whether it looks pinned.
fn refused(
    file: &File,
    shape: Shape,
    mut range: kvmate_gmem_range,
) -> Result<(usize, [u32; 3], bool)> {
    let error = shape::call(file, shape, &mut range);
    ensure_eq!(error, Err(Errno::EAGAIN), "{shape:?}: {range:?}");
    let record = range.refused;
    ensure_eq!(record.offset, range.offset + range.done, "{range:?}");
    let known = KVMATE_GMEM_PINNED | KVMATE_GMEM_DIRTY | KVMATE_GMEM_LOCKED;
    ensure!(record.flags & !known == 0, "{range:?}");
    Ok((
        record.offset as usize,
        [record.references, record.expected, record.mappings],
        record.flags & KVMATE_GMEM_PINNED != 0,
    ))
}

fn held_folio_is_not_split() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let _hold = Hold::load()?;
    for by in pins::ALL {
        let (file, map, mut pattern) = patterned(3)?;
        let held = pin(by, &map, HUGE + 77 * PAGE)?;
        let whole = shape::range(0, 3 * HUGE, 0);
        let found = refused(&file, Shape::Split, whole)?;
        ensure_eq!(
            found,
            (HUGE, [513, 512, 0], by == By::Ring),
            "held by {by:?}"
        );
        ensure_eq!(folios(&file)?, [512, 0, 0, 0, 0, 0, 0, 0, 0, 2], "folios");
        ensure_eq!(info_of(&file, "split_failed_referenced")?, 1, "counted");
        is(&file, &map, &pattern, "after a split that was refused")?;
        // A punch tells the same in info.
        ensure_eq!(info_of(&file, "punch_refused")?, 0, "before a punch");
        punch(&file, HUGE + PAGE, PAGE)?;
        pattern[HUGE + PAGE..HUGE + 2 * PAGE].fill(0);
        for (what, number) in [
            // Both edges.
            ("", 2),
            ("_offset", HUGE as u64),
            ("_references", 513),
            ("_expected", 512),
            ("_mappings", 0),
            ("_pinned", u64::from(by == By::Ring)),
        ] {
            let found = info_of(&file, &format!("punch_refused{what}"))?;
            ensure_eq!(found, number, "punch_refused{what}, held by {by:?}");
        }
        is(&file, &map, &pattern, "after a punch")?;
        drop(held);
        shape::split(&file, 0, 3 * HUGE, 0)?;
        all_of(&file, 0, 3 * 512)?;
        is(&file, &map, &pattern, "when it is let go")?;
    }
    kvmate.unload()
}

fn held_page_is_not_merged() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let _hold = Hold::load()?;
    for by in pins::ALL {
        let (file, map, pattern) = patterned(3)?;
        shape::split(&file, 0, 3 * HUGE, 0)?;
        is(&file, &map, &pattern, "split")?;
        let at = HUGE + 77 * PAGE;
        let frame = map.frame(at)?;
        let held = pin(by, &map, at)?;
        let mut whole = shape::range(0, 3 * HUGE, 9);
        let error = shape::call(&file, Shape::Merge, &mut whole);
        ensure_eq!(error, Err(Errno::EAGAIN), "held by {by:?}: {whole:?}");
        ensure_eq!(whole.done as usize, HUGE, "done");
        let more = if by == By::Ring { 1024 } else { 1 };
        let record = whole.refused;
        ensure_eq!(record.offset as usize, at, "{record:?}");
        ensure_eq!(
            [record.references, record.expected, record.mappings],
            [1 + more, 1, 0],
            "held by {by:?}"
        );
        let pinned = record.flags & KVMATE_GMEM_PINNED != 0;
        ensure_eq!(pinned, by == By::Ring, "held by {by:?}");
        ensure_eq!(folios(&file)?, [1024, 0, 0, 0, 0, 0, 0, 0, 0, 1], "folios");
        ensure_eq!(info_of(&file, "merge_failed_referenced")?, 1, "counted");
        ensure_eq!(map.frame(at)?, frame, "the page that is held");
        is(&file, &map, &pattern, "after a merge that was refused")?;
        ensure_eq!(allocated(&file)?, 3 * HUGE, "st_blocks");
        drop(held);
        shape::merge(&file, 0, 3 * HUGE, 9)?;
        all_of(&file, 9, 3)?;
        is(&file, &map, &pattern, "when it is let go")?;
    }
    kvmate.unload()
}

/// Pages that were just made are in lists of the processors that made them, which hold references.
fn fresh_pages_merge() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let affinity = Affinity::now()?;
    let cpus = affinity.cpus();
    ensure!(cpus.len() > 1, "another processor is needed: {cpus:?}");
    kvmate.write("knobs/gmem_order", "0")?;
    let pattern = pattern(HUGE);
    // A list that is full right behind the last page is empty then; one more file leaves a part.
    for _ in 0..5 {
        let file = gmem::create(HUGE, 0)?;
        let map = Map::new(&file, HUGE)?;
        for (number, cpu) in cpus.iter().enumerate().rev() {
            affinity.pin(*cpu)?;
            for page in (number..512).step_by(cpus.len()) {
                file.write_all_at(&pattern[page * PAGE..][..PAGE], (page * PAGE) as u64)?;
            }
        }
        // We are on the first; what others have we do not sort in by ourselves.
        let fresh = query::records(&file, 0, HUGE, 512)?;
        let elsewhere = fresh
            .iter()
            .enumerate()
            .any(|(page, r)| page % cpus.len() > 0 && r.references > r.expected);
        let again = shape::merge(&file, 0, HUGE, 9)?;
        ensure_eq!(again, 0, "how often it was refused");
        all_of(&file, 9, 1)?;
        is(&file, &map, &pattern, "merged")?;
        drop((file, map));
        if elsewhere {
            return kvmate.unload();
        }
    }
    anyhow::bail!("no page is ever in another processor's list")
}

fn payer_pays() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    kvmate.write("knobs/gmem_order", "0")?;
    let cgroup = Cgroup::new("7M")?;
    let file = gmem::create(2 * HUGE, 0)?;
    let pattern = pattern(2 * HUGE);
    let ended = child::run(|| {
        let filled = cgroup
            .enter()
            .and_then(|()| Ok(file.write_all_at(&pattern, 0)?));
        i32::from(filled.is_err())
    })?;
    ensure_eq!(ended, child::Ended::By(0), "the child that fills");
    let before = cgroup.stat("file")?;
    ensure!(before >= 2 * HUGE as u64, "file {before}");
    // Not our cgroup, but theirs, goes over the limit with a third 2 MiB.
    let other = gmem::create(HUGE, 0)?;
    let ended = child::run(|| {
        let filled = cgroup
            .enter()
            .and_then(|()| Ok(other.write_all_at(&pattern[..HUGE], 0)?));
        i32::from(filled.is_err())
    })?;
    ensure_eq!(ended, child::Ended::By(0), "the child that fills more");
    let mut range = shape::range(0, 2 * HUGE, 9);
    let error = shape::call(&file, Shape::Merge, &mut range);
    ensure_eq!(error, Err(Errno::ENOMEM), "at the limit: {range:?}");
    ensure_eq!(range.done, 0, "done at the limit");
    ensure!(range.refused.length > 0, "what was refused: {range:?}");
    ensure_eq!(info_of(&file, "merge_failed_memory")?, 1, "counted");
    ensure!(gmem::bytes(&file)? == pattern, "bytes after ENOMEM");
    ensure_eq!(allocated(&file)?, 2 * HUGE, "st_blocks after ENOMEM");
    // A hole is told whether there is memory or not.
    punch(&file, PAGE, PAGE)?;
    let error = shape::call(&file, Shape::Merge, &mut shape::range(0, HUGE, 9));
    ensure_eq!(error, Err(Errno::EINVAL), "a hole at the limit");
    file.write_all_at(&pattern[PAGE..2 * PAGE], PAGE as u64)?;
    drop(other);
    shape::merge(&file, 0, 2 * HUGE, 9).context("below the limit")?;
    // The page that we wrote is theirs now too; the old ones have gone, and the other file, once nobody
    // has it who looks at memory for the system. And maybe there is something that a child read.
    let all = 2 * HUGE as u64..=2 * HUGE as u64 + (1 << 20);
    let mut counted = 0;
    until("the cgroup has the new pages only", || {
        counted = cgroup.stat("file")?;
        Ok(all.contains(&counted))
    })
    .with_context(|| format!("file after the merge: {counted}"))?;
    let huge = cgroup.stat("file_thp")?;
    ensure_eq!(huge, 2 * HUGE as u64, "file_thp");
    ensure_eq!(cgroup.events("oom_kill")?, 0, "processes killed");
    ensure!(gmem::bytes(&file)? == pattern, "bytes after the merge");
    drop((file, cgroup));
    kvmate.unload()
}

/// What a file's memory is counted as.
const COUNTED: [&str; 4] = ["Cached", "FileHugePages", "Unevictable", "Mlocked"];

fn memory_comes_back() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, pattern) = patterned(4)?;
    // SAFETY: Our own mapping.
    Errno::result(unsafe { libc::mlock(map.address() as *const _, 4 * HUGE) })?;
    let before = Before::now()?;
    ensure!(meminfo("Mlocked")? >= 4 * HUGE as i64, "locked in memory");
    let counted = || -> Result<Vec<i64>> { COUNTED.iter().map(|key| meminfo(key)).collect() };
    let expected = counted()?;
    for round in 0..20 {
        shape::split(&file, 0, 4 * HUGE, round % 9)?;
        shape::merge(&file, 0, 4 * HUGE, 9)?;
    }
    // What is not mapped is locked by the next access only.
    is(&file, &map, &pattern, "before it is counted")?;
    // Those of others change by some MiB (programs that caches had dropped); if each round left what
    // it split, or what it merged, in or out, by 160 MiB.
    for ((key, now), before) in COUNTED.iter().zip(counted()?).zip(expected) {
        ensure!(
            (now - before).abs() < 40 << 20,
            "{key}: {before}, then {now}"
        );
    }
    before.is_now()?;
    is(&file, &map, &pattern, "in the end")?;
    drop((file, map));
    kvmate.unload()
}
