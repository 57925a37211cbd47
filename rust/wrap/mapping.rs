// SPDX-License-Identifier: GPL-2.0
//! A file's page cache, and the lock around changes of which pages it has.
//!
//! Whoever adds pages holds the lock shared ([`Shared`]); whoever removes or splits holds it alone
//! ([`Exclusive`]), so nothing is added meanwhile. A folio's own lock ([`LockedFolio`]) comes inside.
//!
//! C header: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use super::folio::{FolioState, LockedFolio, NewFolio, PAGE_SHIFT};
use crate::{pure::hole::Block, raw};
use core::{ops::Range, ptr::NonNull};
use kernel::{bindings, error::to_result, prelude::*, types::Opaque};

/// A file's page cache.
///
/// # Invariants
///
/// The mapping of a live inode that [`super::memory_file`] made; its size does not change.
#[repr(transparent)]
pub(crate) struct Mapping(Opaque<bindings::address_space>);

// SAFETY: All that is done with it here may be done from any thread.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// # Safety
    ///
    /// `inode` is one that [`super::memory_file`] made, and lives for `'a`.
    pub(super) unsafe fn of<'a>(inode: NonNull<bindings::inode>) -> &'a Self {
        // SAFETY: A live inode has its mapping; `Self` is transparent over it.
        unsafe { &*(*inode.as_ptr()).i_mapping.cast() }
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::address_space {
        self.0.get()
    }

    /// The file's size in bytes.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: The mapping's inode is live, and its size does not change (type invariant).
        unsafe { (*(*self.as_ptr()).host).i_size as u64 }
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> usize {
        // SAFETY: Live (type invariant); a volatile load, for it changes under other locks.
        unsafe { (&raw const (*self.as_ptr()).nrpages).read_volatile() }
    }

    /// What stands in `pages` or reaches into it, the first; without a lock it may be gone.
    pub(crate) fn next(&self, pages: Range<usize>) -> Option<Block> {
        let (mut index, mut order) = (0, 0);
        let last = pages
            .end
            .checked_sub(1)
            .filter(|last| *last >= pages.start)?;
        // SAFETY: Live (type invariant).
        unsafe {
            raw::kvmate_mapping_next(self.as_ptr(), pages.start, last, &mut index, &mut order)
        }
        .then_some(Block { index, order })
    }

    /// The folio that stands in `pages` or reaches into it, the first, as it is at this moment.
    pub(crate) fn look(&self, pages: Range<usize>) -> Option<FolioState> {
        let mut state = FolioState::default();
        let last = pages
            .end
            .checked_sub(1)
            .filter(|last| *last >= pages.start)?;
        // SAFETY: Live (type invariant).
        unsafe { raw::kvmate_mapping_look(self.as_ptr(), pages.start, last, &mut state) }
            .then_some(state)
    }

    /// Lock the inode: one change by a call at a time.
    pub(crate) fn lock_inode(&self) -> InodeLock<'_> {
        // SAFETY: The mapping's inode is live (type invariant).
        unsafe { raw::kvmate_inode_lock((*self.as_ptr()).host) };
        // INVARIANT: Just taken.
        InodeLock(self)
    }

    /// Have nobody map it writable. `EBUSY`: somebody has.
    pub(crate) fn deny_writable(&self) -> Result<NotWritable<'_>> {
        // SAFETY: Live (type invariant).
        to_result(unsafe { raw::kvmate_mapping_deny_writable(self.as_ptr()) })?;
        // INVARIANT: Just denied.
        Ok(NotWritable(self))
    }

    /// Lock it against removal and splitting.
    pub(crate) fn shared(&self) -> Shared<'_> {
        // SAFETY: Live (type invariant).
        unsafe { raw::kvmate_invalidate_lock_shared(self.as_ptr()) };
        // INVARIANT: Just taken.
        Shared(self)
    }

    /// Lock it against everything.
    pub(crate) fn exclusive(&self) -> Exclusive<'_> {
        // SAFETY: Live (type invariant).
        unsafe { raw::kvmate_invalidate_lock(self.as_ptr()) };
        // INVARIANT: Just taken.
        Exclusive(self)
    }

    /// The folio that has this page, if there is one. Waits for its lock.
    fn folio(&self, index: usize) -> Option<LockedFolio> {
        // SAFETY: Live (type invariant).
        unsafe { LockedFolio::find(self.as_ptr(), index) }
    }
}

/// No other call writes, allocates or punches while this is there.
///
/// # Invariants
///
/// We hold the lock of the mapping's inode.
pub(crate) struct InodeLock<'a>(&'a Mapping);

impl Drop for InodeLock<'_> {
    fn drop(&mut self) {
        // SAFETY: Held (type invariant), and the mapping's inode is live.
        unsafe { raw::kvmate_inode_unlock((*self.0.as_ptr()).host) };
    }
}

/// Nobody has the file mapped so that it can be written, and nobody maps it so while this is there.
///
/// # Invariants
///
/// We have denied that.
pub(crate) struct NotWritable<'a>(&'a Mapping);

impl Drop for NotWritable<'_> {
    fn drop(&mut self) {
        // SAFETY: Live (invariant of `Mapping`), and denied by us (type invariant).
        unsafe { raw::kvmate_mapping_allow_writable(self.0.as_ptr()) };
    }
}

/// No page goes while this is there.
///
/// # Invariants
///
/// We hold the mapping's invalidate lock, shared.
pub(crate) struct Shared<'a>(&'a Mapping);

impl Shared<'_> {
    /// The folio that has this page, if there is one. Waits for its lock.
    pub(crate) fn folio(&self, index: usize) -> Option<LockedFolio> {
        self.0.folio(index)
    }

    /// Add a folio, zeroed. `EEXIST`: something is there; `ENOMEM`.
    pub(crate) fn add(&self, folio: NewFolio, index: usize) -> Result<LockedFolio> {
        // SAFETY: Live (invariant of `Mapping`).
        unsafe { folio.add(self.0.as_ptr(), index) }
    }

    /// Remove one that was just added and is locked since: nobody has seen what is in it.
    pub(crate) fn take_back(&self, folio: LockedFolio) {
        // SAFETY: Live (invariant of `Mapping`); the folio is locked and in a cache (its invariant). If
        // that is another's, nothing happens. Whoever waits for its lock looks anew.
        unsafe { bindings::generic_error_remove_folio(self.0.as_ptr(), folio.as_ptr()) };
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        // SAFETY: Held (type invariant).
        unsafe { raw::kvmate_invalidate_unlock_shared(self.0.as_ptr()) };
    }
}

/// No page comes while this is there, and none is mapped anew that was not locked before.
///
/// # Invariants
///
/// We hold the mapping's invalidate lock, alone.
pub(crate) struct Exclusive<'a>(&'a Mapping);

impl Exclusive<'_> {
    /// The folio that has this page, if there is one. Waits for its lock.
    pub(crate) fn folio(&self, index: usize) -> Option<LockedFolio> {
        self.0.folio(index)
    }

    /// Take the pages out of every page table, guests' too, flushed when this returns.
    pub(crate) fn unmap(&self, pages: &Range<usize>) {
        if pages.is_empty() {
            return;
        }
        // Even private copies, of which there are none: else what stands in page tables for a page that
        // has failed would stay.
        // SAFETY: Live (invariant of `Mapping`).
        unsafe {
            bindings::unmap_mapping_pages(self.0.as_ptr(), pages.start, pages.len(), true);
        }
    }

    /// Try to split the folio that has this page, so that a folio of that order begins at it, or at the
    /// last page before it where one may, and the others are no smaller. No byte changes. If somebody else has a reference to it, it stays whole;
    /// it is unmapped either way.
    pub(crate) fn split_at(&self, index: usize, order: u32) {
        let byte = ((Block::around(index, order).index as u64) << PAGE_SHIFT) + 1;
        // Truncation of a single byte: covers no whole page, so none is dropped, and splits the folio
        // there. It does not zero what it must take as inaccessible. Nobody else looks at that flag
        // with an effect on contents (mm/compaction.c and mm/migrate.c leave such pages alone).
        // It splits down to the mapping's smallest order. Meanwhile that means something to who adds
        // folios, which takes our lock, and to a memory failure, which then finds a folio that it
        // cannot split far enough, and leaves the page where it is (mm/memory-failure.c).
        // SAFETY: Live (invariant of `Mapping`), and we hold its lock alone (type invariant), so only
        // we change the flag and the order.
        unsafe {
            raw::kvmate_mapping_inaccessible(self.0.as_ptr(), true);
            raw::kvmate_mapping_min_order(self.0.as_ptr(), order);
            bindings::truncate_inode_pages_range(self.0.as_ptr(), byte as i64, byte);
            raw::kvmate_mapping_min_order(self.0.as_ptr(), 0);
            raw::kvmate_mapping_inaccessible(self.0.as_ptr(), false);
        }
    }

    /// Remove all folios in `pages`. None may reach beyond it.
    pub(crate) fn remove(&self, pages: &Range<usize>) {
        if pages.is_empty() {
            return;
        }
        let (start, end) = (
            (pages.start as u64) << PAGE_SHIFT,
            (pages.end as u64) << PAGE_SHIFT,
        );
        // SAFETY: Live (invariant of `Mapping`).
        unsafe { bindings::truncate_inode_pages_range(self.0.as_ptr(), start as i64, end - 1) };
    }
}

impl core::ops::Deref for Shared<'_> {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        self.0
    }
}

impl core::ops::Deref for Exclusive<'_> {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        self.0
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        // SAFETY: Held (type invariant).
        unsafe { raw::kvmate_invalidate_unlock(self.0.as_ptr()) };
    }
}
