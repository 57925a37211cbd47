// SPDX-License-Identifier: GPL-2.0
//! gmem's folios are split and merged while threads and a guest write to them: nobody ever sees a byte
//! that is old, torn, or zero.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{
        self, allocated, folios, guest::Guest, info_of, memory::meminfo, model::Random, punch,
        seek, shape, Map, HUGE, PAGE,
    },
    ktap,
    module::{Kvmate, Stop},
    storm::slow,
};
use kvmate_uapi::KVMATE_GMEM_FILL;
use nix::{errno::Errno, libc, unistd};
use std::{
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    process::ExitCode,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    ktap::main(&[
        ("all_at_once", all_at_once),
        ("beside_faults", beside_faults),
        ("splits_meet_merges", splits_meet_merges),
    ])
}

const SIZE: usize = 2 * HUGE;
/// Where in a page each has its word: two writers by mapping, one by `write()`, the guest.
const PLACES: [usize; 4] = [8, 1024, 2040, PAGE - 4];

/// A mapping's word, as one access.
fn word(map: &Map, at: usize) -> &AtomicU32 {
    assert!(at + 4 <= SIZE && at % 4 == 0);
    // SAFETY: Inside the mapping, which outlives the reference; only accessed as an atomic, or by the
    // kernel and the guest.
    unsafe { AtomicU32::from_ptr((map.address() + at) as *mut u32) }
}

/// The largest number of a word.
const LAST: u32 = (1 << 14) - 1;

/// What a word looks like: seven bits a byte, of the number and of the number inverted, so that a torn
/// one is known; and no byte is ever zero.
fn pattern(number: u32) -> u32 {
    let spread = |n: u32| (n & 0x7f) | (((n >> 7) & 0x7f) << 8);
    spread(number) | (spread(!number) << 16) | 0x8080_8080
}

/// Its number; none if it is torn.
fn number(word: u32) -> Result<Option<u32>> {
    let whole = word.to_le_bytes().iter().all(|byte| byte & 0x80 != 0);
    ensure!(whole, "a byte that nobody wrote: {word:#x}");
    let number = (word & 0x7f) | (((word >> 8) & 0x7f) << 7);
    Ok((pattern(number) == word).then_some(number))
}

/// Write one's words in random pages, and see what one wrote before.
fn write(
    me: usize,
    stop: &Stop,
    mut exchange: impl FnMut(usize, u32) -> Result<u32>,
) -> Result<u64> {
    let mut random = Random::new(me as u64 * 77 + 5);
    let mut known = vec![1u32; SIZE / PAGE];
    let mut done = 0;
    while !stop.asked() {
        let page = random.below(SIZE / PAGE);
        let next = (known[page] + 1).min(LAST);
        let at = page * PAGE + PLACES[me];
        let old = exchange(at, pattern(next)).with_context(|| format!("at {at:#x}"))?;
        ensure_eq!(
            old,
            pattern(known[page]),
            "what writer {me} replaced at {at:#x}"
        );
        known[page] = next;
        done += 1;
    }
    Ok(done)
}

/// Ways to read: by mapping, `pread()`, `splice()`.
struct Reader<'a> {
    file: &'a File,
    map: &'a Map,
    pipe: (OwnedFd, OwnedFd),
}

impl Reader<'_> {
    fn page(&self, page: usize, way: usize) -> Result<[u32; PLACES.len()]> {
        let mut bytes = vec![0; PAGE];
        match way {
            0 => {
                let at = |place| word(self.map, page * PAGE + place).load(Ordering::Acquire);
                return Ok(PLACES.map(at));
            }
            1 => self.file.read_exact_at(&mut bytes, (page * PAGE) as u64)?,
            _ => {
                let (file, to) = (self.file.as_raw_fd(), self.pipe.1.as_raw_fd());
                let mut at = (page * PAGE) as i64;
                // SAFETY: Two descriptors and a position of ours.
                let moved = Errno::result(unsafe {
                    libc::splice(file, &mut at, to, std::ptr::null_mut(), PAGE, 0)
                })?;
                ensure_eq!(moved, PAGE as isize, "bytes spliced");
                let read = unistd::read(&self.pipe.0, &mut bytes)?;
                ensure_eq!(read, PAGE, "bytes piped");
            }
        }
        let at = |place: usize| bytes[place..place + 4].try_into().map(u32::from_le_bytes);
        Ok(PLACES.map(|place| at(place).expect("four bytes")))
    }
}

/// Read everybody's words, by all ways: none ever goes back.
fn check(file: &File, map: &Map, stop: &Stop) -> Result<u64> {
    let mut random = Random::new(99);
    let mut seen = vec![[1u32; PLACES.len()]; SIZE / PAGE];
    let pipe = unistd::pipe()?;
    let reader = Reader { file, map, pipe };
    let mut done = 0;
    while !stop.asked() {
        let page = random.below(SIZE / PAGE);
        let way = random.below(3);
        let found = reader.page(page, way)?;
        for (number_of, (found, seen)) in found.iter().zip(&mut seen[page]).enumerate() {
            let what = || format!("read by way {way} in page {page}, place {number_of}");
            match number(*found).with_context(what)? {
                // The kernel copies byte by byte: it may meet a word half written, or write half.
                None => ensure!(way > 0 || number_of == 2, "{}: torn: {found:#x}", what()),
                Some(now) => {
                    ensure!(now >= *seen, "{}: {now} after {seen}", what());
                    *seen = now;
                }
            }
        }
        // Nobody sees a hole, though nobody is locked out here.
        ensure_eq!(allocated(file)?, SIZE, "st_blocks");
        ensure_eq!(seek(file, 0, libc::SEEK_HOLE)?, SIZE as i64, "SEEK_HOLE");
        done += 1;
    }
    Ok(done)
}

fn reshape(file: &File, stop: &Stop, end: Instant) -> Result<u64> {
    let _stop = stop.on_drop();
    let mut random = Random::new(7);
    let mut done = 0;
    while Instant::now() < end {
        let order = random.below(9) as u32;
        let first = random.below(2);
        let (at, length) = [(0, SIZE), (HUGE * first, HUGE)][random.below(2)];
        shape::split(file, at, length, order)?;
        let larger = (order + 1 + random.below(9 - order as usize) as u32).min(9);
        shape::merge(file, at, length, larger)?;
        done += 1;
        ensure!(!stop.asked(), "somebody failed");
    }
    shape::merge(file, 0, SIZE, 9)?;
    ensure_eq!(folios(file)?[9], 2, "huge ones in the end");
    Ok(done)
}

fn all_at_once() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(SIZE, 0)?;
    let map = Map::new(&file, SIZE)?;
    for page in 0..SIZE / PAGE {
        for place in PLACES {
            word(&map, page * PAGE + place).store(pattern(1), Ordering::Relaxed);
        }
    }
    let stop = Stop::default();
    let end = Instant::now() + Duration::from_secs(if slow() { 20 } else { 8 });
    let done = std::thread::scope(|scope| -> Result<Vec<u64>> {
        let (file, map, stop) = (&file, &map, &stop);
        let mut threads = Vec::new();
        for me in 0..2 {
            threads.push(scope.spawn(move || {
                let _stop = stop.on_drop();
                write(me, stop, |at, new| {
                    Ok(word(map, at).swap(new, Ordering::AcqRel))
                })
            }));
        }
        threads.push(scope.spawn(move || {
            let _stop = stop.on_drop();
            write(2, stop, |at, new| {
                let mut old = [0; 4];
                file.read_exact_at(&mut old, at as u64)?;
                file.write_all_at(&new.to_le_bytes(), at as u64)?;
                Ok(u32::from_le_bytes(old))
            })
        }));
        threads.push(scope.spawn(move || {
            let _stop = stop.on_drop();
            let mut guest = Guest::new(map, SIZE)?;
            write(3, stop, |at, new| guest.exchange(at, new))
        }));
        threads.push(scope.spawn(move || {
            let _stop = stop.on_drop();
            check(file, map, stop)
        }));
        let reshaped = reshape(file, stop, end);
        let mut done = Vec::new();
        for thread in threads {
            done.push(thread.join().expect("no panic")?);
        }
        done.push(reshaped?);
        Ok(done)
    })?;
    let (merged, split) = (info_of(&file, "merge_done")?, info_of(&file, "split_done")?);
    println!("# writes, checks, rounds: {done:?}; {split} splits, {merged} merges");
    ensure!(done.iter().all(|n| *n > 0), "{done:?}");
    drop((map, file));
    kvmate.unload()
}

/// Blocks that a fault fills while they are merged: with a folio that is as large, or larger.
fn beside_faults() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let before = meminfo("FileHugePages")?;
    let file = gmem::create(HUGE, 0)?;
    let map = Map::new(&file, HUGE)?;
    let stop = Stop::default();
    let end = Instant::now() + Duration::from_secs(if slow() { 10 } else { 4 });
    let mut said = [0; 4];
    let touched = std::thread::scope(|scope| -> Result<u64> {
        let toucher = scope.spawn(|| {
            let _stop = stop.on_drop();
            let mut random = Random::new(3);
            let mut touched = 0;
            while !stop.asked() {
                map.write(random.below(HUGE / PAGE) * PAGE, 1);
                touched += 1;
            }
            touched
        });
        let _stop = stop.on_drop();
        let mut random = Random::new(4);
        while Instant::now() < end {
            punch(&file, 0, HUGE)?;
            let mut range = shape::range(0, HUGE, [4, 9, 1][random.below(3)]);
            range.flags = [0, KVMATE_GMEM_FILL][random.below(2)];
            let result = shape::call(&file, shape::Shape::Merge, &mut range);
            let whole = result.is_ok() && range.done == range.length;
            let hole = result == Err(Errno::EINVAL) && range.flags == 0;
            let held = result == Err(Errno::EAGAIN);
            // No memory is no fault of ours: 2 MiB in one piece are not always there.
            let short = result == Err(Errno::ENOMEM);
            ensure!(whole || hole || held || short, "{result:?} {range:?}");
            let numbers = [whole, hole, held, short];
            said.iter_mut()
                .zip(numbers)
                .for_each(|(n, so)| *n += u64::from(so));
        }
        drop(_stop);
        Ok(toucher.join().expect("no panic"))
    })?;
    println!("# {touched} touched; merged, holes, held, short of memory: {said:?}");
    ensure!(touched > 0 && said[0] > 0, "{touched} {said:?}");
    shape::merge_and_fill(&file, 0, HUGE, 9)?;
    // Others have files too; a folio that was left behind each round is much more.
    let more = meminfo("FileHugePages")? - before;
    let slack = (said[0] / 2).clamp(2, 16) as i64 * HUGE as i64;
    ensure!(
        (more - HUGE as i64).abs() < slack,
        "huge pages in the end: {more}"
    );
    drop((map, file));
    let more = meminfo("FileHugePages")? - before;
    ensure!(more.abs() < slack, "huge pages then: {more}");
    kvmate.unload()
}

/// Pages that are punched, and are zero therefore.
fn is_punched(page: usize) -> bool {
    page % 64 == 5
}

/// Split, to pages and then to larger ones, or merge, all at random; how often it was done, met a hole,
/// and met somebody.
fn split_or_merge(file: &File, seed: u64, stop: &Stop) -> Result<[u64; 3]> {
    let mut random = Random::new(seed);
    let mut said = [0; 3];
    while !stop.asked() {
        let (shape, order) = [
            (shape::Shape::Split, 0),
            (shape::Shape::Split, 3),
            (shape::Shape::Merge, 9),
        ][random.below(3)];
        let mut range = shape::range(0, HUGE, order);
        if shape == shape::Shape::Merge && random.below(4) > 0 {
            range.flags = KVMATE_GMEM_FILL;
        }
        let which = match shape::call(file, shape, &mut range) {
            Ok(()) => 0,
            Err(Errno::EINVAL) if shape == shape::Shape::Merge && range.flags == 0 => 1,
            // ENOMEM: a reference that was gone again.
            Err(Errno::EAGAIN | Errno::ENOMEM) => 2,
            Err(error) => return Err(error).with_context(|| format!("{shape:?} {range:?}")),
        };
        said[which] += 1;
    }
    Ok(said)
}

/// While one splits, what it has walked over is merged by another.
fn splits_meet_merges() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(HUGE, 0)?;
    let map = Map::new(&file, HUGE)?;
    let mut expected: Vec<u8> = (0..HUGE).map(|i| (i / PAGE + i) as u8 | 1).collect();
    for page in (0..HUGE / PAGE).filter(|page| is_punched(*page)) {
        expected[page * PAGE..][..PAGE].fill(0);
    }
    file.write_all_at(&expected, 0)?;
    let stop = Stop::default();
    let end = Instant::now() + Duration::from_secs(if slow() { 20 } else { 5 });
    let said = std::thread::scope(|scope| -> Result<Vec<[u64; 3]>> {
        let (file, map, stop) = (&file, &map, &stop);
        let shapers = [11, 12, 13].map(|seed| {
            scope.spawn(move || {
                let _stop = stop.on_drop();
                split_or_merge(file, seed, stop)
            })
        });
        let puncher = scope.spawn(move || -> Result<()> {
            let _stop = stop.on_drop();
            let mut random = Random::new(14);
            while !stop.asked() {
                let page = random.below(HUGE / PAGE / 64) * 64 + 5;
                punch(file, page * PAGE, PAGE)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        let expected = &mut expected;
        let toucher = scope.spawn(move || -> Result<()> {
            let _stop = stop.on_drop();
            let mut random = Random::new(15);
            while !stop.asked() {
                let page = random.below(HUGE / PAGE);
                let at = page * PAGE + random.below(PAGE);
                ensure_eq!(map.read(at), expected[at], "at {at:#x}");
                if !is_punched(page) {
                    expected[at] = expected[at].wrapping_add(2);
                    map.write(at, expected[at]);
                }
                std::thread::sleep(Duration::from_micros(100));
            }
            Ok(())
        });
        while Instant::now() < end && !stop.asked() {
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(stop.on_drop());
        puncher.join().expect("no panic")?;
        toucher.join().expect("no panic")?;
        let said = shapers.map(|shaper| shaper.join().expect("no panic"));
        said.into_iter().collect()
    })?;
    println!("# done, holes, held: {said:?}");
    ensure!(said.iter().all(|said| said[0] > 0), "{said:?}");
    ensure!(gmem::bytes(&file)? == expected, "bytes in the end");
    shape::merge_and_fill(&file, 0, HUGE, 9)?;
    ensure!(map.copy(0, HUGE) == expected, "bytes when it is whole");
    drop((map, file));
    kvmate.unload()
}
