// SPDX-License-Identifier: GPL-2.0
//! One folio in the place of many.
//!
//! The new one is first put into the cache of an inode that nobody knows ([`Spare`]): there it is
//! charged and accounted, which may fail. From there it is moved, in one step under the file's own
//! `xa_lock`, in which nobody can get a reference to the old ones either: whoever looks without any lock
//! (`fstat()`, `mincore()`, `SEEK_HOLE`) finds either the old ones or the new one. The old ones go with
//! the last reference to them, ours.
//!
//! The rule is `collapse_file()`'s in mm/khugepaged.c: unmapped, locked, and no reference but the
//! cache's and ours.

use super::{
    folio::{LockedFolio, NewFolio},
    mapping::{Exclusive, Mapping},
    memory_file::spare_inode,
};
use crate::{pure::hole::Block, raw};
use core::{ops::Range, ptr::NonNull};
use kernel::{bindings, error::to_result, prelude::*};

/// An inode that nobody knows, for new folios until they are where they belong. What is left in it goes
/// with it.
///
/// # Invariants
///
/// A live inode of ours, which we have the only reference to.
pub(crate) struct Spare(NonNull<bindings::inode>);

impl Spare {
    /// One beside a file.
    pub(crate) fn beside(mapping: &Mapping) -> Result<Self> {
        // INVARIANT: New.
        spare_inode(mapping).map(Self)
    }

    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: A live inode (type invariant) has its mapping.
        unsafe { (*self.0.as_ptr()).i_mapping }
    }

    /// Put a new folio into it, for a block. `ENOMEM`
    pub(crate) fn put(&self, folio: NewFolio, block: Block) -> Result<Substitute<'_>> {
        // SAFETY: The mapping of a live inode.
        let folio = unsafe { folio.insert(self.mapping(), block.index) }?;
        assert!(folio.order() == block.order);
        Ok(Substitute { folio, spare: self })
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // SAFETY: Our reference (type invariant).
        unsafe { bindings::iput(self.0.as_ptr()) };
    }
}

/// A new folio in a spare inode. Its content is still to be made.
pub(crate) struct Substitute<'a> {
    folio: LockedFolio,
    spare: &'a Spare,
}

/// Why it cannot stand for the old ones; they are as they were.
pub(crate) enum Unfit {
    /// That one of the old ones has more references.
    Referenced(usize),
    /// That one cannot be read.
    Poisoned(usize),
    /// No memory.
    Memory,
}

impl Substitute<'_> {
    /// Copy the old folios, which must be unmapped, and zero what is between them.
    pub(crate) fn fill(&self, old: &[LockedFolio]) -> Result<(), Unfit> {
        let start = self.folio.index();
        let mut next = 0;
        for (number, from) in old.iter().enumerate() {
            let at = from.index() - start;
            self.clear(next..at);
            let copied = self.folio.copy_pages(at, from);
            copied.map_err(|_| Unfit::Poisoned(number))?;
            next = at + (1 << from.order());
        }
        self.clear(next..1 << self.folio.order());
        self.folio.is_filled();
        Ok(())
    }

    fn clear(&self, pages: Range<usize>) {
        if !pages.is_empty() {
            self.folio.clear(pages);
        }
    }
}

impl Exclusive<'_> {
    /// All folios that stand in `pages`, in order. Waits for their locks.
    pub(crate) fn folios(&self, pages: &Range<usize>) -> Result<KVec<LockedFolio>> {
        let mut folios = KVec::with_capacity(pages.len(), GFP_KERNEL)?;
        let mut next = pages.start;
        while let Some(block) = self.next(next..pages.end) {
            // Between the look and the lock a memory failure may have split it, or taken it out.
            if let Some(folio) = self.folio(block.index.max(next)) {
                next = folio.index() + (1 << folio.order());
                folios.push(folio, GFP_KERNEL)?;
            }
        }
        Ok(folios)
    }

    /// Put the substitute, filled, in the place of the old ones, which must be all that stand in its
    /// range; their pages go when they are dropped.
    pub(crate) fn replace(&self, old: &[LockedFolio], new: &Substitute<'_>) -> Result<(), Unfit> {
        let mut busy = 0;
        // SAFETY: Both mappings are live, ours is locked alone (type invariant); all folios are locked
        // and have a reference of ours (invariant of `LockedFolio`, which is transparent over a
        // pointer to one); the new one is in the spare's mapping at the index where it is to stand. If
        // it fails, nothing has changed.
        let done = to_result(unsafe {
            raw::kvmate_mapping_replace(
                self.as_ptr(),
                new.spare.mapping(),
                new.folio.as_ptr(),
                old.as_ptr().cast_mut().cast(),
                old.len() as u32,
                &mut busy,
            )
        });
        done.map_err(|error| match error == EAGAIN {
            true => Unfit::Referenced(busy as usize),
            false => Unfit::Memory,
        })
    }
}

/// Have this processor sort in the folios that it keeps in lists of its own, each with a reference; or
/// all processors. Waits for them, and one that runs a real-time task lets us wait: no lock that
/// faults and reads need may be held.
pub(crate) fn drain_lru(everywhere: bool) {
    // SAFETY: Process context.
    unsafe { raw::kvmate_lru_drain(everywhere) };
}
