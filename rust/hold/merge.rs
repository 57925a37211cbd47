// SPDX-License-Identifier: GPL-2.0
//! Merging without loss: `KVMATE_GMEM_MERGE`.
//!
//! Block by block: a new folio is got first, without any lock. Then, alone with the mapping, the old ones
//! are unmapped and locked; a fault that was under way has mapped them again by then, so they are
//! unmapped once more. Now nobody can change them who has no reference; if nobody has, they are copied,
//! and the new one takes their place in one step.
//!
//! The inode is locked for that step only, so that no writer waits for memory, or for the processors that
//! are to sort in their lists. What others do to the block in between is seen in the step: it looks
//! at everything again.

use super::{
    file::File,
    query::Piece,
    refused::{is_referenced, Refused, Why},
    split::{may_try, TRIES},
};
use crate::{
    pure::hole::Block,
    wrap::{
        folio::{LockedFolio, NewFolio, Node},
        mapping::{Exclusive, Mapping},
        memcg::ChargedTo,
        merge::{drain_lru, Spare, Substitute, Unfit},
    },
};
use core::ops::Range;
use kernel::{current, prelude::*};

impl File {
    /// Merge a range to folios of at least that order; `done` is the page up to which that is so.
    pub(super) fn merge(
        &self,
        mapping: &Mapping,
        pages: Range<usize>,
        (order, fill): (u32, bool),
        done: &mut usize,
    ) -> Result<Result<(), Refused>> {
        let spare = Spare::beside(mapping);
        while *done < pages.end {
            let block = Block::around(*done, order);
            let there = mapping.next(*done..*done + 1);
            if there.is_none_or(|there| there.order < order) {
                self.stats.merge.tried();
                if let Err(refused) = self.merge_block(mapping, &spare, block, fill) {
                    self.stats.merge.refused(&refused);
                    self.traces_refused(c"merge", &refused);
                    return Ok(Err(refused));
                }
                self.stats.merge.done();
            }
            *done = block.pages().end;
            if *done < pages.end && current!().signal_pending() {
                return Err(EINTR);
            }
        }
        Ok(Ok(()))
    }

    fn none_failed(&self, block: Block) -> Result<(), Refused> {
        let failed = self.failed.next(&block.pages());
        failed.map_or(Ok(()), |page| {
            Err(Refused {
                why: Why::Poisoned,
                at: Piece::Failed(page),
            })
        })
    }

    /// Nothing has failed there, and where it is not to be filled there is something everywhere.
    fn is_whole(
        &self,
        block: Block,
        fill: bool,
        there: impl Iterator<Item = Block>,
    ) -> Result<(), Refused> {
        self.none_failed(block)?;
        if fill {
            return Ok(());
        }
        has_no_hole(block, there)
    }

    fn merge_block(
        &self,
        mapping: &Mapping,
        spare: &Result<Spare>,
        block: Block,
        fill: bool,
    ) -> Result<(), Refused> {
        // Before anything is paid for, for what cannot be merged anyway; it is looked again.
        let mut next = block.index;
        let there = core::iter::from_fn(|| {
            let there = mapping.next(next..block.pages().end)?;
            next = there.pages().end;
            Some(there)
        });
        self.is_whole(block, fill, there)?;
        let short = Refused {
            why: Why::Memory,
            at: self.look(mapping, block.pages()),
        };
        let new = {
            let payer = mapping.next(block.pages());
            let payer = payer.and_then(|block| mapping.shared().folio(block.index));
            let _charged = payer.as_ref().map(ChargedTo::payer_of);
            let node = match (self.node, &payer) {
                (Node::Any, Some(folio)) => Node::Rather(folio.node()),
                (node, _) => node,
            };
            drop(payer);
            let new = NewFolio::new(block.order, node).ok_or(short)?;
            let spare = spare.as_ref().map_err(|_| short)?;
            spare.put(new, block).map_err(|_| short)?
        };
        let mut attempt = 0;
        loop {
            let merged = {
                let _lock = mapping.lock_inode();
                self.put_in(&mapping.exclusive(), block, fill, &new, short)
            };
            attempt += 1;
            match merged {
                Err(refused) if refused.why == Why::Referenced => {
                    if !may_try(attempt, TRIES, refused.is_pinned()) {
                        return Err(refused);
                    }
                    // Without the locks, and this processor first: another may let us wait. The new
                    // folio is locked, but only who moves memory finds that one.
                    drain_lru(attempt > 1);
                }
                merged => return merged,
            }
        }
    }

    fn put_in(
        &self,
        mapping: &Exclusive<'_>,
        block: Block,
        fill: bool,
        new: &Substitute<'_>,
        short: Refused,
    ) -> Result<(), Refused> {
        mapping.unmap(&block.pages());
        let old = mapping.folios(&block.pages()).map_err(|_| short)?;
        // A fault may have filled the hole that this was, with a folio as large or larger.
        if old.iter().any(|folio| folio.order() >= block.order) {
            return Ok(());
        }
        // Now that all are locked, what has failed is either noted or marked.
        self.is_whole(block, fill, old.iter().map(LockedFolio::block))?;
        replace(mapping, block, &old, new)?;
        self.traces_merge(old.len(), block);
        Ok(())
    }
}

/// There is something everywhere.
fn has_no_hole(block: Block, there: impl Iterator<Item = Block>) -> Result<(), Refused> {
    let hole = |pages: Range<usize>| match pages.is_empty() {
        true => Ok(()),
        false => Err(Refused {
            why: Why::Hole,
            at: Piece::Hole(pages.start, pages.len()),
        }),
    };
    let mut next = block.index;
    for folio in there {
        hole(next..folio.index)?;
        next = folio.pages().end;
    }
    hole(next..block.pages().end)
}

fn replace(
    mapping: &Exclusive<'_>,
    block: Block,
    old: &[LockedFolio],
    new: &Substitute<'_>,
) -> Result<(), Refused> {
    mapping.unmap(&block.pages());
    for folio in old {
        let state = folio.state();
        let why = match (is_referenced(&state), state.poisoned != 0) {
            (_, true) => Why::Poisoned,
            (true, false) => Why::Referenced,
            (false, false) => continue,
        };
        let at = Piece::Folio(state);
        return Err(Refused { why, at });
    }
    new.fill(old)
        .and_then(|()| mapping.replace(old, new))
        .map_err(|unfit| {
            let (why, number) = match unfit {
                Unfit::Referenced(number) => (Why::Referenced, number),
                Unfit::Poisoned(number) => (Why::Poisoned, number),
                Unfit::Memory => (Why::Memory, 0),
            };
            let at = match old.get(number) {
                Some(folio) => Piece::Folio(folio.state()),
                None => Piece::Hole(block.index, block.pages().len()),
            };
            Refused { why, at }
        })
}
