// SPDX-License-Identifier: GPL-2.0
//! gmem beside a real memfd: the same random calls on both, and whatever can be seen must be equal at
//! every step.
//!
//! The seed is printed, and taken from `KVMATE_SEED`; `KVMATE_OPERATIONS` says how many calls of each
//! test instead of its own number. Differences that are meant, and therefore not tried or not compared:
//! - memfd gives huge pages only where the system says so, so `st_blocks` and holes are compared with
//!   4 KiB pages only; with huge ones the file has at least what memfd has, and never a hole more;
//! - memory that was allocated and never touched is data for `SEEK_DATA`, as it is for `st_blocks`; for
//!   memfd it is for the latter only;
//! - a page of a folio that somebody holds stays, zeroed, when it is punched: no hole, still counted;
//! - a write over the end writes what fits; memfd nothing, if the end is no multiple of 2 MiB;
//! - `O_DIRECT` and `PROT_EXEC` are refused; `MAP_PRIVATE` too.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{self, allocated, fallocate, info_of, seek, Map, HUGE, PAGE, PUNCH},
    ktap,
    module::{Kvmate, Stop},
};
use kvmate_uapi::KVMATE_GMEM_SMALL;
use nix::{errno::Errno, libc};
use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt},
    process::ExitCode,
};

const SIZE: usize = 4 * HUGE;

fn main() -> ExitCode {
    ktap::main(&[
        ("small", small),
        ("huge", huge),
        ("huge_and_held", huge_and_held),
    ])
}

/// xorshift64*: the same numbers of the same seed, anywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A place, most often near where something begins or ends.
    fn place(&mut self) -> usize {
        match self.below(8) {
            0 => self.below(SIZE + HUGE),
            1 => self.below(4) * HUGE,
            2 => (self.below(4) * HUGE + self.below(3)).saturating_sub(1),
            3 | 4 => self.below(SIZE / PAGE) * PAGE,
            _ => (self.below(SIZE / PAGE) * PAGE + self.below(64)).saturating_sub(32),
        }
    }

    fn length(&mut self) -> usize {
        match self.below(64) {
            0 => self.below(SIZE),
            1 | 2 => HUGE,
            3..=20 => (1 + self.below(16)) * PAGE,
            21 => 0,
            _ => self.below(3 * PAGE),
        }
    }
}

/// The file, the memfd, and both mapped.
struct Pair {
    ours: (File, Map),
    theirs: (File, Map),
}

/// What a call gave: a number or an error.
type Said = Result<i64, Errno>;

fn said(result: std::io::Result<usize>) -> Said {
    result
        .map(|n| n as i64)
        .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
}

impl Pair {
    fn new(flags: u32) -> Result<Self> {
        let map = |file: File| -> Result<(File, Map)> {
            let map = Map::new(&file, SIZE)?;
            Ok((file, map))
        };
        Ok(Self {
            ours: map(gmem::create(SIZE, flags)?)?,
            theirs: map(gmem::memfd(SIZE)?)?,
        })
    }

    fn both<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        call: impl Fn(&File, &Map) -> T,
    ) -> Result<()> {
        let found = call(&self.ours.0, &self.ours.1);
        let expected = call(&self.theirs.0, &self.theirs.1);
        ensure!(
            found == expected,
            "{what}: found {found:?}, memfd {expected:?}"
        );
        Ok(())
    }

    /// One random call on both.
    fn step(&self, random: &mut Random, holes: bool) -> Result<()> {
        let (at, length) = (random.place(), random.length());
        let (offset, size) = (at as i64, length as i64);
        let here = |length: usize| length.min(SIZE.saturating_sub(at));
        match random.below(16) {
            0..=4 => {
                let what = format!("punch of {length:#x} at {at:#x}");
                self.both(&what, |file, _| fallocate(file, PUNCH, offset, size))?;
                self.around(at, length)
            }
            5 => {
                let mode = random.below(2) as i32;
                let what = format!("fallocate {mode} of {length:#x} at {at:#x}");
                self.both(&what, |file, map| {
                    let done = fallocate(file, mode, offset, size);
                    // For memfd, what was allocated is a hole still until it is touched.
                    if done.is_ok() {
                        (at / PAGE * PAGE..at + length)
                            .step_by(PAGE)
                            .for_each(|byte| drop(map.copy(byte, 1)));
                    }
                    done
                })
            }
            6 | 7 => {
                let length = length.min(4 * PAGE);
                let seed = random.next() as usize | 1;
                let data: Vec<u8> = (0..length).map(|i| (seed + i * 7) as u8).collect();
                let what = format!("write of {length:#x} at {at:#x}");
                self.both(&what, |file, _| said(file.write_at(&data, at as u64)))?;
                self.around(at, length)
            }
            8 => {
                let what = format!("read of {length:#x} at {at:#x}");
                self.both(&what, |file, _| {
                    let mut data = vec![1; length];
                    (said(file.read_at(&mut data, at as u64)), data)
                })
            }
            9 | 10 => {
                let value = random.next() as u8;
                let length = here(length.min(3 * PAGE));
                if length > 0 {
                    self.both("fill", |_, map| map.fill(at, length, value))?;
                    self.around(at, length)?;
                }
                Ok(())
            }
            11 => {
                let what = format!("mapped read of {length:#x} at {at:#x}");
                let length = here(length.min(8 * PAGE));
                self.both(&what, |_, map| (length > 0).then(|| map.copy(at, length)))
            }
            12 if holes => {
                let whence = libc::SEEK_DATA + random.below(2) as i32;
                let what = format!("lseek {whence} from {at:#x}");
                self.both(&what, |file, _| seek(file, offset, whence))
            }
            13 => {
                let odd = [-1, i64::MIN, i64::MAX, 0, SIZE as i64][random.below(5)];
                let mode = [0, 1, 2, PUNCH, 8, 16, 32, 64, PUNCH | 16][random.below(9)];
                // What would be done is done above.
                if [0, 1, PUNCH].contains(&mode) && odd == 0 {
                    return Ok(());
                }
                let what = format!("fallocate {mode:#x} of {size:#x} at {odd:#x}");
                self.both(&what, |file, _| fallocate(file, mode, odd, size))
            }
            14 => self.both("ftruncate", |file, _| {
                // SAFETY: Integers only.
                Errno::result(unsafe { libc::ftruncate(file.as_raw_fd(), offset) })
            }),
            _ => self.same_memory(holes),
        }
    }

    /// The bytes around a change are equal.
    fn around(&self, at: usize, length: usize) -> Result<()> {
        let start = at.saturating_sub(2 * PAGE).min(SIZE);
        let end = (at + length.min(16 * PAGE) + 2 * PAGE).min(SIZE);
        self.both(&format!("bytes {start:#x}..{end:#x}"), |file, _| {
            let mut data = vec![0; end - start];
            said(file.read_at(&mut data, start as u64)).map(|_| data)
        })
    }

    fn same_memory(&self, exactly: bool) -> Result<()> {
        let (ours, theirs) = (allocated(&self.ours.0)?, allocated(&self.theirs.0)?);
        ensure!(
            ours == theirs || ours > theirs && !exactly,
            "allocated {ours:#x}, memfd {theirs:#x}"
        );
        Ok(())
    }

    fn same_bytes(&self) -> Result<()> {
        let same = gmem::bytes(&self.ours.0)? == gmem::bytes(&self.theirs.0)?;
        ensure!(same, "the files' bytes differ");
        Ok(())
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The calls of one test, in runs of 1000 on new files.
fn run(flags: u32, exactly: bool, operations: u64, kept: &mut u64) -> Result<()> {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed()?;
    let seed = number("KVMATE_SEED").unwrap_or(since.as_nanos() as u64) | 1;
    let operations = number("KVMATE_OPERATIONS").unwrap_or(operations);
    println!("# KVMATE_SEED={seed} KVMATE_OPERATIONS={operations}");
    let mut random = Random(seed);
    let mut done = 0;
    while done < operations {
        let pair = Pair::new(flags)?;
        for _ in 0..1000 {
            pair.step(&mut random, exactly)
                .with_context(|| format!("seed {seed}, operation {done}"))?;
            done += 1;
        }
        pair.same_bytes()
            .with_context(|| format!("seed {seed}, before operation {done}"))?;
        pair.same_memory(exactly)?;
        ensure_eq!(info_of(&pair.ours.0, "fallbacks")?, 0, "fallbacks");
        *kept += info_of(&pair.ours.0, "punch_kept_unsplit")?;
    }
    Ok(())
}

fn small() -> Result<()> {
    let (kvmate, mut kept) = (Kvmate::load("")?, 0);
    run(KVMATE_GMEM_SMALL, true, 60_000, &mut kept)?;
    ensure_eq!(kept, 0, "bytes that were kept");
    kvmate.unload()
}

fn huge() -> Result<()> {
    let (kvmate, mut kept) = (Kvmate::load("")?, 0);
    run(0, false, 30_000, &mut kept)?;
    ensure_eq!(kept, 0, "bytes that were kept, of folios that nobody held");
    kvmate.unload()
}

/// While the calls go on, another thread takes and drops references to pages of whatever gmem is
/// mapped here, by a pipe.
fn hold(stop: &Stop, seed: u64) -> Result<u64> {
    let mut random = Random(seed | 1);
    let (mut pipes, mut held) = (Vec::new(), 0);
    while !stop.asked() {
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let ours = maps.lines().find(|line| line.contains("gmem:"));
        let start = ours.and_then(|line| line.split_once('-'));
        if let Some(Ok(start)) = start.map(|(s, _)| usize::from_str_radix(s, 16)) {
            let (read, write) = nix::unistd::pipe()?;
            for _ in 0..4 {
                let part = libc::iovec {
                    iov_base: (start + random.below(SIZE)) as *mut libc::c_void,
                    iov_len: 1,
                };
                // SAFETY: The kernel looks whether anything is there; nothing is read or written.
                let taken = unsafe { libc::vmsplice(write.as_raw_fd(), &part, 1, 0) };
                held += u64::from(taken == 1);
            }
            pipes.push((read, write));
        }
        if pipes.len() > 8 {
            pipes.remove(random.below(8));
        }
        std::thread::yield_now();
    }
    Ok(held)
}

fn huge_and_held() -> Result<()> {
    let (kvmate, mut kept) = (Kvmate::load("")?, 0);
    let stop = Stop::default();
    let held = std::thread::scope(|scope| {
        let holder = scope.spawn(|| hold(&stop, 77));
        {
            let _stop = stop.on_drop();
            run(0, false, 10_000, &mut kept)?;
        }
        holder.join().expect("no panic")
    })?;
    println!("# {held} pages were held, {} KiB kept", kept >> 10);
    ensure!(
        held > 0 && kept > 0,
        "{held} pages were held, {kept} bytes kept"
    );
    kvmate.unload()
}
