// SPDX-License-Identifier: GPL-2.0
//! Random calls on a memory file and a memfd, and the comparison; and calls that a memfd does not have,
//! which change no byte. What is meant to differ stands in
//! `gmem_model_test`.

use super::{
    allocated, fallocate, query, seek,
    shape::{self, Shape},
    Map, HUGE, PAGE, PUNCH,
};
use anyhow::{ensure, Result};
use kvmate_uapi::{KVMATE_GMEM_FILL, KVMATE_GMEM_HOLE};
use nix::{errno::Errno, libc};
use std::{
    cell::Cell,
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
    /// Whether somebody else holds and locks pages of ours.
    held: bool,
    /// How often folios were split, merged, merged with holes filled, refused for a hole, refused for a
    /// reference, where somebody is to hold some; and looked at.
    pub shaped: [Cell<u64>; 6],
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
    pub fn new(flags: u32, held: bool) -> Result<Self> {
        let map = |file: File| -> Result<(File, Map)> {
            let map = Map::new(&file, SIZE)?;
            Ok((file, map))
        };
        Ok(Self {
            ours: map(super::create(SIZE, flags)?)?,
            theirs: map(super::memfd(SIZE)?)?,
            held,
            shaped: Default::default(),
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
        match random.below(18) {
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
            15 => self.same_memory(holes),
            16 => self.reshape(random, holes),
            _ => self.query(),
        }
    }

    /// Split or merge ours; small pages are only split.
    fn reshape(&self, random: &mut Random, small: bool) -> Result<()> {
        let (shape, order) = match !small && random.below(2) == 0 {
            true => (Shape::Merge, 1 + random.below(9) as u32),
            false => (Shape::Split, random.below(9) as u32),
        };
        let block = PAGE << order;
        let at = random.below(SIZE / block) * block;
        let most = (SIZE - at) / block;
        let mut range = shape::range(at, (1 + random.below(most.min(8))) * block, order);
        let fill = shape == Shape::Merge && random.below(2) == 0;
        range.flags = if fill { KVMATE_GMEM_FILL } else { 0 };
        let asked = range;
        let mut said = shape::call(&self.ours.0, shape, &mut range);
        // Whoever holds a page though nobody is to, will not hold it long.
        for _ in 0..60_000 {
            // ENOMEM: it was gone again each time that somebody looked.
            let again = match shape {
                Shape::Split => matches!(said, Err(Errno::EAGAIN | Errno::ENOMEM)),
                Shape::Merge => said == Err(Errno::EAGAIN),
            };
            if self.held || !again {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
            range = asked;
            said = shape::call(&self.ours.0, shape, &mut range);
        }
        let hole = range.refused.flags & KVMATE_GMEM_HOLE != 0;
        let what = match (said, shape, fill) {
            (Ok(()), Shape::Split, _) => 0,
            (Ok(()), Shape::Merge, false) => 1,
            (Ok(()), Shape::Merge, true) => 2,
            (Err(Errno::EINVAL), Shape::Merge, false) if hole => 3,
            (Err(Errno::EAGAIN), _, _) if self.held => 4,
            // 2 MiB in one piece are not always there.
            (Err(Errno::ENOMEM), Shape::Merge, _) => return self.around(at, range.length as usize),
            // io_uring's work counts as a signal.
            (Err(Errno::EINTR), _, _) if self.held => return Ok(()),
            _ => anyhow::bail!("{shape:?}, fill {fill}: {said:?}: {range:?}"),
        };
        self.count(what);
        self.around(at, range.length as usize)
    }

    fn count(&self, what: usize) {
        self.shaped[what].set(self.shaped[what].get() + 1);
    }

    /// Ours' folios and holes make up the file, and are what `st_blocks` and `lseek()` say.
    fn query(&self) -> Result<()> {
        let file = &self.ours.0;
        let (mut next, mut there, mut hole) = (0, 0, None);
        for record in query::records(file, 0, SIZE, 100)? {
            ensure!(record.offset == next, "{record:?} behind {next:#x}");
            next += record.length;
            if record.flags & KVMATE_GMEM_HOLE == 0 {
                there += record.length;
                ensure!(
                    self.held || record.length == 4096 << record.order,
                    "{record:?}"
                );
                let odd = record.references < record.expected && !self.held;
                ensure!(!odd, "fewer references than expected: {record:?}");
            } else if hole.is_none() {
                hole = Some(record.offset);
            }
        }
        ensure!(next == SIZE as u64, "the records end at {next:#x}");
        self.count(5);
        if self.held {
            // Who takes references fills holes.
            return Ok(());
        }
        ensure!(there as usize == allocated(file)?, "{there:#x} in records");
        let found = seek(file, 0, libc::SEEK_HOLE)? as u64;
        ensure!(found == hole.unwrap_or(SIZE as u64), "{found:#x}, {hole:?}");
        Ok(())
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
