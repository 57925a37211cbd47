// SPDX-License-Identifier: GPL-2.0
//! Folios that stay as they are while somebody uses them: a device that reads and writes past the page
//! cache, and who holds a page that a guest runs on. The numbers are those of `/proc/kpagecount` and
//! of what the test itself holds.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{
        self, folios,
        guest::Guest,
        pins::{pin, By, Disk, Hold},
        punch, query,
        shape::{self, Shape},
        Map, HUGE, PAGE,
    },
    ktap,
    module::{Kvmate, Stop},
    stats::Stats,
};
use kvmate_uapi::{kvmate_gmem_record, KVMATE_GMEM_MAPPED, KVMATE_GMEM_PINNED};
use nix::errno::Errno;
use std::{
    fs::File,
    os::unix::fs::FileExt,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("device_writes", device_writes),
        ("device_reads", device_reads),
        ("mapped_meanwhile", mapped_meanwhile),
        ("under_a_guest", under_a_guest),
    ])
}

/// What stood in the way of a call that was refused for it.
fn refused(file: &File, shape: Shape, order: u32) -> Result<kvmate_gmem_record> {
    let mut range = shape::range(0, HUGE, order);
    let said = shape::call(file, shape, &mut range);
    ensure_eq!(said, Err(Errno::EAGAIN), "{shape:?}: {range:?}");
    Ok(range.refused)
}

/// References, expected, mappings, and whether it looks pinned.
fn numbers(record: &kvmate_gmem_record) -> ([u32; 3], bool) {
    let numbers = [record.references, record.expected, record.mappings];
    (numbers, record.flags & KVMATE_GMEM_PINNED != 0)
}

/// The page that a device is about, and the pattern around it.
const AT: usize = 77 * PAGE;

/// A device is in the midst of a read or a write of the page [`AT`] while `then` runs: it has pinned
/// the page, and goes on when that ends. Gives how many bytes it moved.
fn in_flight(
    file: &File,
    disk: &Disk,
    hold: &Hold,
    moves: impl FnOnce() -> nix::Result<usize> + Send,
    then: impl FnOnce() -> Result<()>,
) -> Result<usize> {
    let stopped = disk.stopped(hold)?;
    thread::scope(|scope| {
        let device = scope.spawn(moves);
        let done = loop {
            if query::at(file, AT)?.flags & KVMATE_GMEM_PINNED != 0 {
                break then();
            }
            ensure!(!device.is_finished(), "the device did not wait");
            thread::sleep(Duration::from_millis(1));
        };
        let waits = !device.is_finished();
        drop(stopped);
        let moved = device.join().expect("the device's thread")?;
        done?;
        ensure!(waits, "the device was done meanwhile");
        Ok(moved)
    })
}

/// A pattern, in a file of one huge folio that is mapped.
fn patterned() -> Result<(File, Map, Vec<u8>)> {
    let file = gmem::create(HUGE, 0)?;
    let pattern: Vec<u8> = (0..HUGE).map(|i| (i / PAGE + i % 241) as u8 | 1).collect();
    file.write_all_at(&pattern, 0)?;
    let map = Map::new(&file, HUGE)?;
    map.read(0);
    Ok((file, map, pattern))
}

/// By mapping and by `read()`.
fn is(file: &File, map: &Map, expected: &[u8], what: &str) -> Result<()> {
    ensure!(map.copy(0, HUGE) == expected, "{what}: bytes mapped");
    ensure!(gmem::bytes(file)? == expected, "{what}: bytes read");
    Ok(())
}

/// The two ways of a device, on a folio of 2 MiB that is to be split, and on pages that are to become one.
fn device(reads_memory: bool) -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (hold, disk) = (Hold::load()?, Disk::new()?);
    for shape in [Shape::Split, Shape::Merge] {
        let (file, map, mut pattern) = patterned()?;
        // A pin of a page counts as 1024 references (GUP_PIN_COUNTING_BIAS); of a larger folio, as 1.
        let (order, first, expected, more) = match shape {
            Shape::Split => (0, 0, 512, 1),
            Shape::Merge => (9, AT, 1, 1024),
        };
        if shape == Shape::Merge {
            shape::split(&file, 0, HUGE, 0)?;
            is(&file, &map, &pattern, "split")?;
        }
        disk.fill(0x77)?;
        let before = folios(&file)?;
        let frame = map.frame(AT)?;
        let address = map.address() + AT;
        let moves = || match reads_memory {
            true => disk.write_from(address, PAGE),
            // SAFETY: Nobody looks at that page of ours meanwhile; it is replaced in `pattern` too.
            false => unsafe { disk.read_to(address, PAGE) },
        };
        let moved = in_flight(&file, &disk, &hold, moves, || {
            let mapped = query::at(&file, AT)?;
            ensure_eq!(
                numbers(&mapped),
                ([expected + 1 + more, expected + 1, 1], true),
                "{shape:?}, in flight"
            );
            ensure_eq!(query::frame_mapped(frame)?, 1, "kpagecount, in flight");
            let found = refused(&file, shape, order)?;
            ensure_eq!(found.offset as usize, first, "{shape:?}: {found:?}");
            ensure_eq!(
                numbers(&found),
                ([expected + more, expected, 0], true),
                "{shape:?}"
            );
            ensure_eq!(query::frame_mapped(frame)?, 0, "kpagecount then");
            ensure_eq!(folios(&file)?, before, "{shape:?}: folios");
            // The page beside it can go, and of the folio that stays it is zeroed.
            punch(&file, AT + PAGE, PAGE)?;
            Ok(())
        })?;
        ensure_eq!(moved, PAGE, "{shape:?}: bytes that the device moved");
        pattern[AT + PAGE..AT + 2 * PAGE].fill(0);
        if !reads_memory {
            pattern[AT..AT + PAGE].fill(0x77);
        }
        is(&file, &map, &pattern, &format!("{shape:?}: afterwards"))?;
        ensure_eq!(map.frame(AT)?, frame, "{shape:?}: the device's page");
        match shape {
            Shape::Split => shape::split(&file, 0, HUGE, 0)?,
            Shape::Merge => shape::merge_and_fill(&file, 0, HUGE, 9)?,
        };
        is(&file, &map, &pattern, &format!("{shape:?}: done"))?;
        if reads_memory {
            // What it wrote is what was there.
            map.fill(AT, PAGE, 0);
            // SAFETY: Our own memory, which nobody else uses.
            let read = unsafe { disk.read_to(address, PAGE) }?;
            ensure_eq!(read, PAGE, "bytes read back");
            is(&file, &map, &pattern, "read back")?;
        }
    }
    drop((disk, hold));
    kvmate.unload()
}

fn device_writes() -> Result<()> {
    device(true)
}

fn device_reads() -> Result<()> {
    device(false)
}

/// A folio that was refused is mapped by others again before the next try: what is told then is what
/// `/proc/kpagecount` tells.
fn mapped_meanwhile() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, pattern) = patterned()?;
    let frame = map.frame(AT)?;
    let pipe = pin(By::Pipe, &map, AT)?;
    let others = [Map::new(&file, HUGE)?, Map::new(&file, HUGE)?];
    for mapped in 0..=others.len() as u32 {
        let found = refused(&file, Shape::Split, 0)?;
        ensure_eq!(numbers(&found), ([513, 512, 0], false), "{mapped}");
        ensure_eq!(query::frame_mapped(frame)?, 0, "kpagecount of {mapped}");
        for other in others.iter().take(mapped as usize) {
            other.read(AT);
        }
        let record = query::at(&file, AT)?;
        let expected = ([513 + mapped, 512 + mapped, mapped], false);
        ensure_eq!(numbers(&record), expected, "{mapped}: {record:?}");
        let flag = record.flags & KVMATE_GMEM_MAPPED != 0;
        ensure_eq!(flag, mapped > 0, "{mapped}: {record:?}");
        ensure_eq!(
            query::frame_mapped(frame)?,
            u64::from(mapped),
            "kpagecount of {mapped}"
        );
    }
    drop(pipe);
    shape::split(&file, 0, HUGE, 0)?;
    is(&file, &map, &pattern, "split")?;
    drop((others, map, file));
    kvmate.unload()
}

/// While a guest runs on the folio: it alone is no hindrance, who holds a page is, and the guest goes on.
fn under_a_guest() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, map, mut pattern) = patterned()?;
    let mut guest = Guest::new(&map, HUGE)?;
    let stats = Stats::of(guest.vm())?;
    let mut last = u32::from_ne_bytes(pattern[AT + 8..AT + 12].try_into()?);
    let (stop, rounds) = (Stop::default(), AtomicU64::new(0));
    let last = thread::scope(|scope| -> Result<u32> {
        let runner = scope.spawn(|| -> Result<u32> {
            for next in 1u32.. {
                if stop.asked() {
                    break;
                }
                let new = next | 0x8080_8080;
                let old = guest.exchange(AT + 8, new)?;
                ensure_eq!(old, last, "what the guest replaced");
                last = new;
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            Ok(last)
        });
        let goes_on = || -> Result<()> {
            let before = rounds.load(Ordering::Relaxed);
            while rounds.load(Ordering::Relaxed) < before + 3 {
                ensure!(!runner.is_finished(), "the guest has ended");
                thread::yield_now();
            }
            Ok(())
        };
        let result = (0..3).try_for_each(|round| -> Result<()> {
            goes_on()?;
            let pipe = pin(By::Pipe, &map, AT)?;
            let found = refused(&file, Shape::Split, 0)?;
            ensure_eq!(found.offset, 0, "{round}: {found:?}");
            // A fault of the guest's that was under way has its own.
            ensure!(
                found.references > found.expected && found.expected == 512 + found.mappings,
                "{round}: {found:?}"
            );
            goes_on()?;
            // Later a page table of small pages stands there, which stays.
            let huge = stats.get("pages_2m")?;
            ensure!(round > 0 || huge >= 1, "KVM's pages_2m: {huge}");
            ensure_eq!(folios(&file)?[9], 1, "{round}: huge folios");
            drop(pipe);
            shape::split(&file, 0, HUGE, 0).context("let go")?;
            ensure_eq!(folios(&file)?[0], 512, "{round}: small folios");
            goes_on()?;
            let pipe = pin(By::Pipe, &map, AT)?;
            let found = refused(&file, Shape::Merge, 9)?;
            ensure_eq!(found.offset as usize, AT, "{round}: {found:?}");
            ensure!(
                found.references > found.expected && found.expected == 1 + found.mappings,
                "{round}: {found:?}"
            );
            goes_on()?;
            drop(pipe);
            shape::merge(&file, 0, HUGE, 9).context("let go")?;
            goes_on()
        });
        stop.ask();
        let last = runner.join().expect("the guest's thread");
        result?;
        last
    })?;
    pattern[AT + 8..AT + 12].copy_from_slice(&last.to_ne_bytes());
    is(&file, &map, &pattern, "in the end")?;
    drop((guest, stats, map, file));
    kvmate.unload()
}
