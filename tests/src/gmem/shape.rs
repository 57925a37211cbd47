// SPDX-License-Identifier: GPL-2.0
//! Splitting and merging a memory file's folios.

use anyhow::{anyhow, Result};
pub use kvmate_uapi::call::Shape;
use kvmate_uapi::{call::reshape, kvmate_gmem_range, KVMATE_GMEM_FILL};
use nix::errno::Errno;
use std::fs::File;

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

/// All of it, going on after signals: io_uring's work counts as one.
fn whole(file: &File, shape: Shape, mut range: kvmate_gmem_range) -> Result<()> {
    loop {
        let said = call(file, shape, &mut range);
        let done = std::mem::take(&mut range.done);
        match said {
            Ok(()) if done == range.length => return Ok(()),
            Err(Errno::EINTR) if done > 0 => {
                range.offset += done;
                range.length -= done;
            }
            _ => return Err(anyhow!("{shape:?}: {said:?}, {done:#x} done: {range:?}")),
        }
    }
}

/// Split, all of the range.
pub fn split(file: &File, offset: usize, length: usize, order: u32) -> Result<()> {
    whole(file, Shape::Split, range(offset, length, order))
}

/// Merge, all of the range, which has no hole.
pub fn merge(file: &File, offset: usize, length: usize, order: u32) -> Result<()> {
    whole(file, Shape::Merge, range(offset, length, order))
}

/// Merge, all of the range, and fill its holes.
pub fn merge_and_fill(file: &File, offset: usize, length: usize, order: u32) -> Result<()> {
    let mut range = range(offset, length, order);
    range.flags = KVMATE_GMEM_FILL;
    whole(file, Shape::Merge, range)
}
