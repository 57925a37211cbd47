// SPDX-License-Identifier: GPL-2.0
//! Splitting without loss: for `KVMATE_GMEM_SPLIT`, and at the edges of a hole.

use super::{
    file::File,
    refused::{is_referenced, Refused},
};
use crate::{
    pure::hole::Block,
    wrap::mapping::{Exclusive, Mapping},
};
use core::ops::Range;
use kernel::{current, prelude::*, time::delay::fsleep, time::Delta};

/// How often it is tried. A reference may be somebody's who only looks, or a fault's that is just over;
/// a pin stays.
pub(super) const TRIES: u32 = 4;
/// Without a pause.
pub(super) const ONCE: u32 = 1;

/// Whether it is of use to wait for the references to go; waits, before the second and later tries.
pub(super) fn may_try(attempt: u32, tries: u32, pinned: bool) -> bool {
    if attempt >= tries || pinned && attempt > 0 {
        return false;
    }
    if attempt > 0 {
        fsleep(Delta::from_micros(50 << attempt));
    }
    true
}

impl File {
    /// Have the page stand as `enough` wants it, by splitting its folio so that one of that order begins
    /// at it. Nothing there is enough. The folio is unmapped.
    pub(super) fn split_until(
        &self,
        mapping: &Exclusive<'_>,
        (page, order): (usize, u32),
        tries: u32,
        enough: impl Fn(Block) -> bool,
    ) -> Result<Option<Block>, Refused> {
        let at = || mapping.next(page..page + 1);
        let Some(block) = at().filter(|block| !enough(*block)) else {
            return Ok(at());
        };
        self.stats.split.tried();
        mapping.unmap(&block.pages());
        let (mut attempt, mut held) = (0, None);
        loop {
            let before = mapping.look(page..page + 1);
            let pinned = before.is_some_and(|state| state.pinned != 0 && is_referenced(&state));
            if !pinned {
                let before = at();
                mapping.split_at(page, order);
                if let Some((before, after)) = before.zip(at()) {
                    self.traces_split(before, after);
                }
            }
            if let Some(block) = at().filter(|block| enough(*block)) {
                self.stats.split.done();
                return Ok(Some(block));
            }
            attempt += 1;
            // A reference may have come after the look before, or be gone by now.
            let Some(after) = mapping.look(page..page + 1) else {
                self.stats.split.done();
                return Ok(None);
            };
            // Of all tries: who held it in one is why it was not split then.
            let seen = [Some(after), before, held];
            held = seen.into_iter().flatten().find(is_referenced);
            let state = held.unwrap_or(after);
            if !may_try(attempt, tries, pinned) {
                let refused = Refused::folio(state);
                self.stats.split.refused(&refused);
                self.traces_refused(c"split", &refused);
                return Err(refused);
            }
        }
    }

    /// Split all folios of a range to that order; `done` is the page up to which that is so.
    pub(super) fn split(
        &self,
        mapping: &Mapping,
        pages: Range<usize>,
        order: u32,
        done: &mut usize,
    ) -> Result<Result<(), Refused>> {
        while let Some(block) = mapping.next(*done..pages.end) {
            *done = block.index.max(*done);
            if block.order > order {
                let _lock = mapping.lock_inode();
                let locked = mapping.exclusive();
                // Up to a page between two folios of that order, if the folios here were smaller than
                // that a moment ago, and somebody has merged them since.
                let page = Block::around(*done, order).index;
                let split =
                    self.split_until(&locked, (page, order), TRIES, |block| block.order <= order);
                if order > 0 {
                    // A memory failure met our smallest order, and could not split down to its page. It
                    // has held the folio for that too, so look whether we could split or not.
                    self.take_out_failed(&locked, &block.pages(), TRIES);
                }
                if let Err(refused) = split {
                    return Ok(Err(refused));
                }
            }
            if let Some(block) = mapping.next(*done..*done + 1).filter(|b| b.order <= order) {
                *done = block.pages().end;
            }
            if *done < pages.end && current!().signal_pending() {
                return Err(EINTR);
            }
        }
        *done = pages.end;
        Ok(Ok(()))
    }
}
