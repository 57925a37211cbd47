// SPDX-License-Identifier: GPL-2.0
//! Splitting and merging a memory file's folios.

use anyhow::{anyhow, Result};
pub use kvmate_uapi::call::Shape;
use kvmate_uapi::{call::reshape, kvmate_gmem_range, KVMATE_GMEM_FILL};
use nix::errno::Errno;
use std::{
    fs::File,
    thread,
    time::{Duration, Instant},
};

/// The call itself; what it wrote back is in `range`.
pub fn call(file: &File, shape: Shape, range: &mut kvmate_gmem_range) -> nix::Result<()> {
    let done = reshape(file, shape, range);
    done.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// A range to be split or merged to an order.
pub fn range(offset: usize, length: usize, order: u32) -> kvmate_gmem_range {
    kvmate_gmem_range {
        offset: offset as u64,
        length: length as u64,
        order,
        ..Default::default()
    }
}

/// How long somebody may hold a page who has nothing to do with the test: faults, and whoever looks at
/// memory for the system.
const HELD: Duration = Duration::from_secs(60);

/// All of it, going on after signals: io_uring's work counts as one. Tells how often somebody held a
/// page, or had held it a moment before.
fn whole(file: &File, shape: Shape, mut range: kvmate_gmem_range) -> Result<u64> {
    let (mut since, mut held) = (Instant::now(), 0);
    loop {
        let said = call(file, shape, &mut range);
        let (asked, done) = (range, std::mem::take(&mut range.done));
        let refused = std::mem::take(&mut range.refused);
        if done > 0 {
            since = Instant::now();
        }
        // Gone by now; and 2 MiB in one piece are not always there.
        let gone = shape == Shape::Merge || refused.references <= refused.expected;
        match said {
            Ok(()) if done == range.length => {
                if held > 0 {
                    println!("# {shape:?}: {held} times a page was held by others");
                }
                return Ok(held);
            }
            Err(Errno::EINTR) if done > 0 => {}
            Err(Errno::EAGAIN) if since.elapsed() < HELD => held += 1,
            Err(Errno::ENOMEM) if gone && since.elapsed() < HELD => held += 1,
            _ => return Err(anyhow!("{shape:?}: {said:?}: {asked:?}")),
        }
        if said != Err(Errno::EINTR) {
            thread::sleep(Duration::from_millis(1));
        }
        range.offset += done;
        range.length -= done;
    }
}

/// Split, all of the range; tells how often that was refused since others held a page.
pub fn split(file: &File, offset: usize, length: usize, order: u32) -> Result<u64> {
    whole(file, Shape::Split, range(offset, length, order))
}

/// Merge, all of the range, which has no hole; tells likewise.
pub fn merge(file: &File, offset: usize, length: usize, order: u32) -> Result<u64> {
    whole(file, Shape::Merge, range(offset, length, order))
}

/// Merge, all of the range, and fill its holes; tells likewise.
pub fn merge_and_fill(file: &File, offset: usize, length: usize, order: u32) -> Result<u64> {
    let mut range = range(offset, length, order);
    range.flags = KVMATE_GMEM_FILL;
    whole(file, Shape::Merge, range)
}
