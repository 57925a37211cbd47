// SPDX-License-Identifier: GPL-2.0
//! `KVMATE_GMEM_SPLIT` and `KVMATE_GMEM_MERGE`: what user space asks, and what it is told.

use super::{file::File, query::pages_of};
use crate::{
    pure::hole::PAGE_SHIFT,
    wrap::{
        folio::PMD_ORDER,
        mapping::Mapping,
        memory_file::Call,
        uabi::{self, GmemRange},
    },
};
use core::ops::Range;
use kernel::{
    prelude::*,
    transmute::AsBytes,
    uaccess::{UserPtr, UserSlice},
};

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// To folios of at most an order.
    Split,
    /// To folios of at least an order.
    Merge,
}

impl File {
    /// Split or merge, and write back how that went.
    pub(super) fn reshape(&self, mapping: &Mapping, call: &Call, shape: Shape) -> Result<isize> {
        if !call.writable {
            return Err(EBADF);
        }
        let argument = UserSlice::new(UserPtr::from_addr(call.argument), size_of::<GmemRange>());
        let (mut reader, mut writer) = argument.reader_writer();
        let mut asked: GmemRange = reader.read()?;
        let (pages, fill) = self.check(mapping, &asked, shape)?;
        let mut done = pages.start;
        // The inode is locked for a folio at a time: a range may take minutes.
        let result = match shape {
            Shape::Split => self.split(mapping, pages.clone(), asked.order, &mut done),
            Shape::Merge => self.merge(mapping, pages.clone(), (asked.order, fill), &mut done),
        };
        asked.done = ((done - pages.start) as u64) << PAGE_SHIFT;
        if let Ok(Err(refused)) = &result {
            asked.refused = refused.at.record();
        }
        writer.write(&asked)?;
        result?.map_err(|refused| refused.errno())?;
        Ok(0)
    }

    /// The range's pages, and whether its holes are to be filled.
    fn check(
        &self,
        mapping: &Mapping,
        asked: &GmemRange,
        shape: Shape,
    ) -> Result<(Range<usize>, bool)> {
        let (orders, flags) = match shape {
            Shape::Split => (0..=PMD_ORDER - 1, 0),
            Shape::Merge => (1..=PMD_ORDER, uabi::GMEM_FILL),
        };
        let zero = asked.refused.as_bytes().iter().all(|byte| *byte == 0);
        if !zero || asked.done != 0 || asked.reserved != [0; 2] || asked.flags & !flags != 0 {
            return Err(EINVAL);
        }
        if !orders.contains(&asked.order) {
            return Err(EINVAL);
        }
        let mask = (1 << (PAGE_SHIFT + asked.order)) - 1;
        let pages = pages_of(mapping, asked.offset, asked.length)?;
        let inside = pages.len() as u64 == asked.length >> PAGE_SHIFT;
        if (asked.offset | asked.length) & mask != 0 || !inside {
            return Err(EINVAL);
        }
        if shape == Shape::Merge && self.small {
            return Err(EOPNOTSUPP);
        }
        Ok((pages, asked.flags != 0))
    }
}
