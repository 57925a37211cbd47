// SPDX-License-Identifier: GPL-2.0
//! gmem: exact holes, and that they are final.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    delay::Delay,
    ensure_eq,
    gmem::{
        self, allocated, folios, info_of,
        pins::{self, pin, By, Hold},
        punch, Map, HUGE, PAGE,
    },
    ktap,
    module::Kvmate,
};
use nix::{errno::Errno, libc};
use std::{fs::File, os::unix::fs::FileExt, process::ExitCode, thread, time::Duration};

fn main() -> ExitCode {
    ktap::main(&[
        ("exact_holes", exact_holes),
        ("exact_beside_holes", exact_beside_holes),
        ("held_folio_stays", held_folio_stays),
        ("direct_io_is_no_pin", direct_io_is_no_pin),
        ("waits_for_a_locked_folio", waits_for_a_locked_folio),
        ("punch_is_final", punch_is_final),
        ("fault_meets_punch", fault_meets_punch),
    ])
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

/// Punches beside holes and over the ladders that other punches left, one page after the other.
fn exact_beside_holes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, mut expected) = patterned()?;
    let mut gone = vec![false; 4 * HUGE / PAGE];
    for round in 0..300usize {
        let first = round * 7919 % gone.len();
        let pages = (1 + round % 5).min(gone.len() - first);
        punch(&file, first * PAGE, pages * PAGE)?;
        gone[first..first + pages].fill(true);
        expected[first * PAGE..(first + pages) * PAGE].fill(0);
        let left = gone.iter().filter(|gone| !**gone).count();
        ensure_eq!(allocated(&file)?, left * PAGE, "st_blocks in round {round}");
    }
    ensure!(gmem::bytes(&file)? == expected, "bytes in the end");
    ensure_eq!(info_of(&file, "punch_kept_unsplit")?, 0, "kept");
    drop((map, file));
    kvmate.unload()
}

fn held_folio_stays() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let hold = Hold::load()?;
    // Of a folio that is held, at whichever edge, the bytes in the hole are zeroed and all others stay.
    for (number, (held, offset, end, kept)) in [
        (0, HUGE / 2, 2 * HUGE, 256),
        (3 * HUGE - 1, HUGE, 2 * HUGE + 10 * PAGE + 9, 10),
        (HUGE, HUGE + 0x3800, HUGE + 0x5800, 1),
        (HUGE, HUGE / 2 + 1, HUGE + 7 * PAGE, 7),
        (HUGE, 5, 4 * HUGE - 5, 0),
    ]
    .into_iter()
    .enumerate()
    {
        for by in pins::ALL {
            held_by(by, held, offset, end, kept)
                .with_context(|| format!("case {number}, by {by:?}: {offset:#x}..{end:#x}"))?;
        }
    }
    drop(hold);
    kvmate.unload()
}

fn held_by(by: By, held: usize, offset: usize, end: usize, kept: usize) -> Result<()> {
    let (file, map, mut expected) = patterned()?;
    let held = pin(by, &map, held)?;
    punch(&file, offset, end - offset)?;
    expected[offset..end].fill(0);
    let whole = end / PAGE - offset.div_ceil(PAGE);
    ensure_eq!(
        allocated(&file)?,
        4 * HUGE - (whole - kept) * PAGE,
        "st_blocks"
    );
    for (key, pages) in [
        ("punch_kept_unsplit", kept),
        ("punch_kept_referenced", kept),
        ("punch_freed", whole - kept),
    ] {
        ensure_eq!(info_of(&file, key)? as usize, pages * PAGE, "{key}");
    }
    ensure!(gmem::bytes(&file)? == expected, "bytes");
    ensure!(map.copy(0, 4 * HUGE) == expected, "bytes mapped");
    drop(held);
    punch(&file, offset, end - offset)?;
    ensure_eq!(
        allocated(&file)?,
        4 * HUGE - whole * PAGE,
        "st_blocks once it is not held any more"
    );
    ensure!(gmem::bytes(&file)? == expected, "bytes then");
    ensure_eq!(
        info_of(&file, "punch_kept_unsplit")? as usize,
        kept * PAGE,
        "kept then"
    );
    Ok(())
}

fn direct_io_is_no_pin() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, mut expected) = patterned()?;
    // A transfer that is over has left nothing behind.
    pins::disk_reaches(&map, HUGE + 5 * PAGE)?;
    expected[HUGE + 5 * PAGE..HUGE + 6 * PAGE].fill(0x77);
    punch(&file, HUGE + 7 * PAGE, PAGE)?;
    expected[HUGE + 7 * PAGE..HUGE + 8 * PAGE].fill(0);
    ensure!(gmem::bytes(&file)? == expected, "bytes");
    ensure_eq!(info_of(&file, "punch_kept_unsplit")?, 0, "kept");
    drop((map, file));
    kvmate.unload()
}

fn waits_for_a_locked_folio() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let hold = Hold::load()?;
    // The whole folio, an edge of it, bytes of one page: who has it locked is waited for.
    for (offset, length) in [(HUGE, HUGE), (HUGE / 2, HUGE), (HUGE + 100, 100)] {
        let (file, map, mut expected) = patterned()?;
        let (wait, at) = (Duration::from_millis(100), map.address() + HUGE);
        thread::scope(|scope| -> Result<()> {
            let locked = hold.locked(at)?;
            let puncher = scope.spawn(|| punch(&file, offset, length));
            thread::sleep(wait);
            let waits = !puncher.is_finished();
            drop(locked);
            puncher.join().expect("no panic")?;
            ensure!(waits, "not waited for");
            expected[offset..offset + length].fill(0);
            ensure!(gmem::bytes(&file)? == expected, "bytes");
            Ok(())
        })?;
    }
    drop(hold);
    kvmate.unload()
}

/// A fault that has its page, locked, and has not mapped it yet, while that page is punched.
fn fault_meets_punch() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let delay = Delay::load()?;
    for (round, (offset, length)) in [
        (HUGE, HUGE),
        (HUGE, PAGE),
        (HUGE + PAGE, HUGE - PAGE),
        (0, 4 * HUGE),
        (HUGE + PAGE, 10),
        (HUGE / 2, HUGE),
    ]
    .into_iter()
    .cycle()
    .take(24)
    .enumerate()
    {
        let (file, map, _) = patterned()?;
        let at = (HUGE + PAGE).max(offset.min(HUGE + PAGE));
        let at = if offset == HUGE && length == PAGE {
            HUGE
        } else {
            at
        };
        let start = map.address() as *mut libc::c_void;
        // SAFETY: Unmaps pages of the file, which keep their content.
        Errno::result(unsafe { libc::madvise(start, 4 * HUGE, libc::MADV_DONTNEED) })?;
        let before = delay.hits("fault_made")?;
        delay.at("fault_made", Duration::from_millis(20))?;
        let seen = thread::scope(|scope| -> Result<u8> {
            let reader = scope.spawn(|| map.read(at));
            delay.until_hit("fault_made", before)?;
            punch(&file, offset, length)?;
            Ok(reader.join().expect("no panic"))
        })?;
        delay.at("fault_made", Duration::ZERO)?;
        let old = (at / PAGE + at % 250 + 1) as u8 | 1;
        ensure!(seen == 0 || seen == old, "the fault itself read {seen}");
        ensure_eq!(map.read(at), 0, "after the punch, round {round}");
        map.write(at, 3);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64)?;
        ensure_eq!(byte, [3], "written through that mapping, round {round}");
    }
    delay.unload()?;
    kvmate.unload()
}
