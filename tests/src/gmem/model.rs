// SPDX-License-Identifier: GPL-2.0
//! Random calls on a memory file and a memfd, and the comparison. What is meant to differ stands in
//! `gmem_model_test`.

use super::{allocated, fallocate, seek, Map, HUGE, PAGE, PUNCH};
use anyhow::{ensure, Result};
use nix::{errno::Errno, libc};
use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

/// The files' size.
pub const SIZE: usize = 4 * HUGE;

/// xorshift64*: the same numbers of the same seed, anywhere.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
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
pub struct Pair {
    /// Ours.
    pub ours: (File, Map),
    /// The memfd.
    pub theirs: (File, Map),
}

/// What a call gave: a number or an error.
type Said = Result<i64, Errno>;

fn said(result: std::io::Result<usize>) -> Said {
    result
        .map(|n| n as i64)
        .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
}

impl Pair {
    /// New ones.
    pub fn new(flags: u32) -> Result<Self> {
        let map = |file: File| -> Result<(File, Map)> {
            let map = Map::new(&file, SIZE)?;
            Ok((file, map))
        };
        Ok(Self {
            ours: map(super::create(SIZE, flags)?)?,
            theirs: map(super::memfd(SIZE)?)?,
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
    pub fn step(&self, random: &mut Random, holes: bool) -> Result<()> {
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
                let seed = random.number() as usize | 1;
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
                let value = random.number() as u8;
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

    /// What `st_blocks` says is equal; or, not `exactly`, ours at least as much.
    pub fn same_memory(&self, exactly: bool) -> Result<()> {
        let (ours, theirs) = (allocated(&self.ours.0)?, allocated(&self.theirs.0)?);
        ensure!(
            ours == theirs || ours > theirs && !exactly,
            "allocated {ours:#x}, memfd {theirs:#x}"
        );
        Ok(())
    }

    /// All bytes are equal.
    pub fn same_bytes(&self) -> Result<()> {
        let same = super::bytes(&self.ours.0)? == super::bytes(&self.theirs.0)?;
        ensure!(same, "the files' bytes differ");
        Ok(())
    }
}
