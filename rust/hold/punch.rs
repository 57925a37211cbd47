// SPDX-License-Identifier: GPL-2.0
//! Making holes, exactly: see [`super`].

use super::{file::File, split::TRIES};
use crate::{
    pure::hole::{Block, Hole},
    wrap::{
        folio::PAGE_SIZE,
        mapping::{Exclusive, Mapping},
    },
};
use core::ops::Range;
use kernel::{current, prelude::*};

/// How many pages are punched under one hold of the lock: 1 GiB, a multiple of any folio.
const AT_ONCE: usize = 1 << 18;

impl File {
    /// `fallocate()` with `PUNCH_HOLE`. `EINTR`: a prefix is done.
    pub(super) fn punch(&self, mapping: &Mapping, offset: u64, length: u64) -> Result {
        let Some(hole) = Hole::new(offset, length, mapping.size()) else {
            return Ok(());
        };
        self.stats.asked(hole.length());
        let mut rest = Some(hole);
        while let Some(hole) = rest {
            // Where there is nothing, nothing is mapped either.
            let Some(next) = self.next(mapping, hole.pages()) else {
                break;
            };
            let Some(hole) = hole.starting_at(next.index) else {
                break;
            };
            let (part, behind) = hole.part(AT_ONCE);
            self.punch_part(&mapping.exclusive(), &part);
            rest = behind;
            if rest.is_some() && current!().signal_pending() {
                return Err(EINTR);
            }
        }
        Ok(())
    }

    fn punch_part(&self, mapping: &Exclusive<'_>, hole: &Hole) {
        let before = mapping.pages();
        let whole = hole.whole();
        mapping.unmap(&whole);
        let (first, behind) = if whole.is_empty() {
            (None, None)
        } else {
            (
                self.folio_beginning_at(mapping, whole.start),
                self.folio_beginning_at(mapping, whole.end),
            )
        };
        // The second split may have been of the folio that the first one left.
        let first = first.and_then(|_| at(mapping, whole.start));
        let plan = hole.plan(first, behind);
        for bytes in &plan.zero {
            zero(mapping, bytes);
        }
        let mut kept = 0;
        for pages in plan.kept.iter().filter(|pages| !pages.is_empty()) {
            kept += pages.len();
            let folio = mapping.folio(pages.start);
            let referenced = folio.is_some_and(|folio| folio.is_referenced());
            self.stats.kept(pages.len(), referenced);
        }
        self.keep_failed(mapping, &plan.remove);
        mapping.remove(&plan.remove);
        self.failed.forget(&whole);
        let freed = before - mapping.pages();
        self.stats.freed(freed);
        self.traces_punch(hole, freed, kept);
    }

    /// The folio that has the page, after trying to split it so that it begins there.
    fn folio_beginning_at(&self, mapping: &Exclusive<'_>, page: usize) -> Option<Block> {
        let split = self.split_until(mapping, (page, 0), TRIES, |block| block.index == page);
        split.unwrap_or_else(|refused| {
            self.stats.punch_refused(refused);
            at(mapping, page)
        })
    }
}

/// The folio that has the page.
fn at(mapping: &Exclusive<'_>, page: usize) -> Option<Block> {
    mapping.next(page..page + 1)
}

/// Zero what is there of these bytes.
fn zero(mapping: &Exclusive<'_>, bytes: &Range<u64>) {
    let mut at = bytes.start as usize;
    let end = bytes.end as usize;
    while at < end {
        let page = at / PAGE_SIZE;
        let next = match mapping.folio(page) {
            Some(folio) => {
                let start = folio.index() * PAGE_SIZE;
                let next = end.min(start + folio.size());
                folio.zero(at - start, next - at);
                next
            }
            None => end.min((page + 1) * PAGE_SIZE),
        };
        at = next;
    }
}
