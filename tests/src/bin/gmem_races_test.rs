// SPDX-License-Identifier: GPL-2.0
//! gmem: everything at once on the same folios, by four threads, one of which runs a guest. Each thread
//! has blocks of its own, strewn over all folios, and knows every byte of them at every moment.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{
        self, allocated,
        child::{self, Ended},
        fallocate, folios,
        guest::Guest,
        info_of,
        memory::Before,
        model::{Random, SIZE},
        pins::{self, Pin},
        punch, Map, HUGE, PAGE,
    },
    ktap,
    module::{Kvmate, Stop},
    stats::Stats,
    storm::slow,
};
use nix::{errno::Errno, libc};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    ktap::main(&[("all_at_once", all_at_once)])
}

/// How many threads; the last has the guest.
const THREADS: usize = 4;
/// A block's bytes. Block `n` of the file is thread `n % THREADS`'s.
const BLOCK: usize = 8 * PAGE;
/// How many blocks each thread has.
const BLOCKS: usize = SIZE / BLOCK / THREADS;

/// What a thread can do, in the order of [`Worker::step`].
const DEEDS: [&str; 12] = [
    "write",
    "pwrite",
    "guest writes",
    "punch",
    "allocate",
    "read",
    "pread",
    "guest reads",
    "window",
    "child",
    "unmap",
    "hold",
];

/// Which of them take so long that they are done less often; then there is a punch instead.
const SLOW: [usize; 3] = [8, 9, 11];
const PUNCH: usize = 3;

/// What all threads share.
struct Field {
    file: File,
    map: Map,
}

struct Worker<'a> {
    me: usize,
    field: &'a Field,
    random: Random,
    /// All bytes of its blocks, one block after the other.
    bytes: Vec<u8>,
    guest: Option<Guest>,
    held: Vec<Pin>,
    done: [u64; DEEDS.len()],
}

/// A part of a block: where it is in the file and in [`Worker::bytes`].
#[derive(Clone, Copy, Debug)]
struct Part {
    at: usize,
    own: usize,
    length: usize,
}

impl Worker<'_> {
    fn block(&self, number: usize) -> Part {
        Part {
            at: (number * THREADS + self.me) * BLOCK,
            own: number * BLOCK,
            length: BLOCK,
        }
    }

    /// A part of one of its blocks.
    fn part(&mut self) -> Part {
        let number = self.random.below(BLOCKS);
        let block = self.block(number);
        let mut start = self.random.below(BLOCK - 8);
        let mut length = 8 + self.random.below(BLOCK - start - 8 + 1).min(3 * PAGE);
        if self.random.below(2) == 0 {
            (start, length) = (start / PAGE * PAGE, length.div_ceil(PAGE) * PAGE);
            length = length.min(BLOCK - start);
        }
        Part {
            at: block.at + start,
            own: block.own + start,
            length,
        }
    }

    fn known(&self, part: Part) -> &[u8] {
        &self.bytes[part.own..part.own + part.length]
    }

    fn set(&mut self, part: Part, value: u8) {
        self.bytes[part.own..part.own + part.length].fill(value);
    }

    /// A word of a part as the guest sees it.
    fn guest_reads(&mut self, part: Part) -> Result<()> {
        let word = u32::from_le_bytes(self.known(part)[..4].try_into()?);
        if let Some(guest) = &mut self.guest {
            ensure_eq!(guest.read(part.at)?, word, "what the guest reads, {part:?}");
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let part = self.part();
        let Part { at, own, length } = part;
        let mut deed = self.random.below(DEEDS.len());
        if SLOW.contains(&deed) && self.random.below(4) > 0 {
            deed = PUNCH;
        }
        let value = self.random.number() as u8;
        let (file, map) = (&self.field.file, &self.field.map);
        match deed {
            0 => {
                map.fill(at, length, value);
                self.set(part, value);
            }
            1 => {
                file.write_all_at(&vec![value; length], at as u64)?;
                self.set(part, value);
            }
            2 => {
                let old = u32::from_le_bytes(self.known(part)[..4].try_into()?);
                let Some(guest) = &mut self.guest else {
                    return Ok(());
                };
                let new = u32::from_ne_bytes([value; 4]);
                ensure_eq!(
                    guest.exchange(at, new)?,
                    old,
                    "what the guest replaced, {part:?}"
                );
                self.bytes[own..own + 4].fill(value);
            }
            PUNCH => {
                punch(file, at, length)?;
                self.set(part, 0);
                // Final at once, whoever looks.
                self.guest_reads(part)?;
            }
            4 => {
                let start = self.random.below(SIZE);
                let length = 1 + self.random.below((SIZE - start).min(HUGE));
                fallocate(file, 0, start as i64, length as i64)?;
            }
            5 => {}
            6 => {
                let mut found = vec![1; length];
                file.read_exact_at(&mut found, at as u64)?;
                ensure!(found == self.known(part), "what pread gives, {part:?}");
            }
            7 => self.guest_reads(part)?,
            8 => self.window(part)?,
            9 => {
                let known = self.known(part);
                let same = child::run(|| {
                    let differs = known
                        .iter()
                        .enumerate()
                        .any(|(i, b)| map.read(at + i) != *b);
                    i32::from(differs)
                })?;
                ensure_eq!(same, Ended::By(0), "what a child reads, {part:?}");
            }
            10 => {
                let start = self.random.below(SIZE / PAGE) * PAGE;
                let length = (1 + self.random.below(64)) * PAGE;
                let from = (map.address() + start) as *mut libc::c_void;
                // SAFETY: Unmaps pages of the file, which keep their content.
                Errno::result(unsafe {
                    libc::madvise(from, length.min(SIZE - start), libc::MADV_DONTNEED)
                })?;
            }
            _ => {
                let by = pins::ALL[self.random.below(2)];
                self.held.push(pins::pin(by, map, at)?);
                if self.held.len() > 3 {
                    self.held.clear();
                }
            }
        }
        let map = &self.field.map;
        ensure!(
            map.copy(at, length) == self.known(part),
            "after {}, {part:?}",
            DEEDS[deed]
        );
        self.done[deed] += 1;
        Ok(())
    }

    /// Map 2 MiB of the file somewhere else, locked or not, move that, look at it, unmap it.
    fn window(&mut self, part: Part) -> Result<()> {
        let start = part.at / HUGE * HUGE;
        let window = Map::at(&self.field.file, start, HUGE)?;
        let lock = self.random.below(4) == 0;
        if lock {
            // SAFETY: Our own mapping.
            Errno::result(unsafe { libc::mlock(window.address() as *const _, HUGE) })?;
        }
        let window = if self.random.below(2) == 0 {
            window.moved()?
        } else {
            window
        };
        let found = window.copy(part.at - start, part.length);
        ensure!(
            found == self.known(part),
            "what a window shows, locked: {lock}, {part:?}"
        );
        Ok(())
    }

    /// Until it is time, or another failed; then all its bytes are looked at.
    fn work(mut self, stop: &Stop, end: Instant) -> Result<[u64; DEEDS.len()]> {
        while !stop.asked() && Instant::now() < end {
            if let Err(error) = self.step() {
                stop.ask();
                return Err(error);
            }
        }
        for number in 0..BLOCKS {
            let block = self.block(number);
            let found = self.field.map.copy(block.at, BLOCK);
            ensure!(found == self.known(block), "in the end, {block:?}");
        }
        Ok(self.done)
    }
}

/// A new file, and all threads on it for a while.
fn round(seed: u64, time: Duration) -> Result<([u64; DEEDS.len()], u64)> {
    let file = gmem::create(SIZE, 0)?;
    let map = Map::new(&file, SIZE)?;
    let field = Field { file, map };
    fallocate(&field.file, 0, 0, SIZE as i64)?;
    ensure_eq!(
        folios(&field.file)?[9],
        (SIZE / HUGE) as u64,
        "huge folios at first"
    );
    let stop = Stop::default();
    let end = Instant::now() + time;
    let mut all = [0; DEEDS.len()];
    thread::scope(|scope| -> Result<()> {
        let mut threads = Vec::new();
        for me in 0..THREADS {
            let (field, stop) = (&field, &stop);
            threads.push(scope.spawn(move || -> Result<_> {
                let guest = (me == THREADS - 1).then(|| Guest::new(&field.map, SIZE));
                let guest = guest.transpose()?;
                if let Some(guest) = &guest {
                    let stats = Stats::of(guest.vm())?;
                    ensure_eq!(
                        stats.get("pages_4k")? + stats.get("pages_2m")?,
                        0,
                        "KVM's pages"
                    );
                }
                let worker = Worker {
                    me,
                    field,
                    random: Random::new(seed.wrapping_mul(31).wrapping_add(me as u64 * 7919 + 3)),
                    bytes: vec![0; BLOCKS * BLOCK],
                    guest,
                    held: Vec::new(),
                    done: [0; DEEDS.len()],
                };
                worker
                    .work(stop, end)
                    .with_context(|| format!("thread {me}"))
            }));
        }
        for thread in threads {
            let done = thread.join().expect("no panic")?;
            for (all, done) in all.iter_mut().zip(done) {
                *all += done;
            }
        }
        Ok(())
    })?;
    ensure_eq!(info_of(&field.file, "fallbacks")?, 0, "fallbacks");
    let kept = info_of(&field.file, "punch_kept_unsplit")?;
    punch(&field.file, 0, SIZE)?;
    ensure_eq!(allocated(&field.file)?, 0, "after everything is punched");
    Ok((all, kept))
}

fn all_at_once() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let whole = if slow() { 60 } else { 20 };
    let seed = std::env::var("KVMATE_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed()?;
    let seed = seed.unwrap_or(since.as_nanos() as u64);
    println!("# KVMATE_SEED={seed}");
    round(seed, Duration::from_secs(1))?;
    let before = Before::now()?;
    let (mut all, mut kept) = ([0; DEEDS.len()], 0);
    let end = Instant::now() + Duration::from_secs(whole);
    let mut rounds = 0;
    while Instant::now() < end {
        rounds += 1;
        let (done, more) = round(seed + rounds, Duration::from_secs(whole / 7))
            .with_context(|| format!("seed {seed}, round {rounds}"))?;
        all.iter_mut()
            .zip(done)
            .for_each(|(all, done)| *all += done);
        kept += more;
    }
    let told: Vec<_> = DEEDS
        .iter()
        .zip(all)
        .map(|(what, n)| format!("{what} {n}"))
        .collect();
    println!(
        "# {rounds} rounds: {}; {} KiB kept",
        told.join(", "),
        kept >> 10
    );
    ensure!(
        all.iter().all(|n| *n > 0) && kept > 0,
        "something was not done at all"
    );
    before.is_now()?;
    kvmate.unload()
}
