// SPDX-License-Identifier: GPL-2.0
//! Folios: pages that belong together, as the page cache holds them.
//!
//! C header: [`include/linux/mm_types.h`](srctree/include/linux/mm_types.h)

use super::{
    iov::{Destination, Source},
    task::give_way,
};
use crate::{pure::hole::Block, raw};
use core::{mem::ManuallyDrop, ops::Range, ptr::NonNull};
use kernel::{bindings, error::to_result, prelude::*};

/// What a folio is like at a moment. `references` without those of who looks; `expected` are the page
/// cache's and page tables'.
pub(crate) use raw::kvmate_folio_state as FolioState;

/// The smallest page.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// Its size in bytes.
pub(crate) const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// The order of a folio that a PMD maps: 2 MiB.
pub(crate) const PMD_ORDER: u32 = raw::PMD_ORDER;

/// How many pages are cleared before others may run.
const PAGES_AT_ONCE: usize = 64;

/// Where memory is to come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    /// As the task's policy says.
    Any,
    /// This one only.
    Only(i32),
    /// This one, or another if there is none.
    Rather(i32),
}

impl Node {
    /// A node by its number, if it has memory.
    pub(crate) fn new(number: u32) -> Option<Self> {
        let number = i32::try_from(number).ok()?;
        // SAFETY: No condition; any number may be asked.
        unsafe { raw::kvmate_node_has_memory(number) }.then_some(Self::Only(number))
    }

    fn number(self) -> i32 {
        match self {
            Self::Any => bindings::NUMA_NO_NODE,
            Self::Only(number) | Self::Rather(number) => number,
        }
    }
}

/// A new folio, in no cache, its content anything.
///
/// # Invariants
///
/// A folio, and we have its only reference.
pub(crate) struct NewFolio(NonNull<bindings::folio>);

impl NewFolio {
    /// Allocate one. A single page is fought for, a larger folio is not. May sleep.
    pub(crate) fn new(order: u32, node: Node) -> Option<Self> {
        let gfp = match order {
            0 => raw::GFP_PAGE,
            _ => raw::GFP_LARGE,
        };
        let only = matches!(node, Node::Only(_));
        // SAFETY: May sleep; the node is none or one that has memory.
        let folio = unsafe { raw::kvmate_folio_alloc(gfp, order, node.number(), only) };
        // INVARIANT: Just made.
        NonNull::new(folio).map(Self)
    }

    /// Put it into a file's cache at `index`; there it is locked, zeroed, up to date and dirty.
    /// `EEXIST`: something is there; `ENOMEM`: the cgroup's limit, or no memory for the cache.
    ///
    /// # Safety
    ///
    /// `mapping` is that of a live inode.
    pub(super) unsafe fn add(
        self,
        mapping: *mut bindings::address_space,
        index: usize,
    ) -> Result<LockedFolio> {
        // SAFETY: The caller's promise.
        let folio = unsafe { self.insert(mapping, index) }?;
        // Whoever finds it waits for the lock, so it is cleared once whoever comes.
        // SAFETY: No condition.
        if unsafe { raw::kvmate_folio_needs_zeroing() } {
            folio.clear(0..1 << folio.order());
        }
        folio.is_filled();
        Ok(folio)
    }

    /// Likewise; its content is still to be made, and [`LockedFolio::is_filled`] said then.
    ///
    /// # Safety
    ///
    /// As for `add`.
    pub(super) unsafe fn insert(
        self,
        mapping: *mut bindings::address_space,
        index: usize,
    ) -> Result<LockedFolio> {
        let folio = self.0.as_ptr();
        // SAFETY: Ours and in no cache (type invariant).
        let order = unsafe { raw::kvmate_folio_order(folio) };
        let gfp = match order {
            0 => raw::GFP_PAGE,
            _ => raw::GFP_LARGE,
        };
        assert!(index & ((1 << order) - 1) == 0);
        // SAFETY: As above, and where it may stand; the rest is the caller's promise.
        to_result(unsafe { bindings::filemap_add_folio(mapping, folio, index, gfp) })?;
        // INVARIANT: `filemap_add_folio()` locked it and took references of the cache's; the one
        // that we had goes along.
        Ok(LockedFolio(ManuallyDrop::new(self).0))
    }
}

impl Drop for NewFolio {
    fn drop(&mut self) {
        // SAFETY: Our reference (type invariant).
        unsafe { raw::kvmate_folio_put(self.0.as_ptr()) };
    }
}

/// A folio in a file's cache: it can neither leave it nor be split while this is there.
///
/// # Invariants
///
/// In a cache, locked by us, with a reference of ours.
#[repr(transparent)]
pub(crate) struct LockedFolio(NonNull<bindings::folio>);

impl LockedFolio {
    /// That of a cache at `index`, if there is one. Waits for its lock.
    ///
    /// # Safety
    ///
    /// `mapping` is that of a live inode.
    pub(super) unsafe fn find(mapping: *mut bindings::address_space, index: usize) -> Option<Self> {
        // SAFETY: The caller's promise.
        // INVARIANT: It comes locked and with a reference, and was found in the cache with the lock.
        NonNull::new(unsafe { raw::kvmate_mapping_lock_folio(mapping, index) }).map(Self)
    }

    /// The file's page that it begins at.
    pub(crate) fn index(&self) -> usize {
        // SAFETY: Locked in a cache (type invariant), where the index does not change.
        unsafe { raw::kvmate_folio_index(self.0.as_ptr()) }
    }

    /// Its size: 2 to the power of the order, in pages.
    pub(crate) fn order(&self) -> u32 {
        // SAFETY: Locked (type invariant), so the order does not change.
        unsafe { raw::kvmate_folio_order(self.0.as_ptr()) }
    }

    /// Where it is in the file.
    pub(crate) fn block(&self) -> Block {
        Block {
            index: self.index(),
            order: self.order(),
        }
    }

    /// The node that it lies in.
    pub(crate) fn node(&self) -> i32 {
        // SAFETY: We hold a reference (type invariant).
        unsafe { raw::kvmate_folio_node(self.0.as_ptr()) }
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> usize {
        PAGE_SIZE << self.order()
    }

    /// Whether somebody besides the cache, page tables and us has a reference to it, so that it cannot
    /// be split.
    pub(crate) fn is_referenced(&self) -> bool {
        // SAFETY: Locked, and a reference is ours (type invariant).
        unsafe {
            let expected = raw::kvmate_folio_expected_references(self.0.as_ptr()) + 1;
            raw::kvmate_folio_references(self.0.as_ptr()) > expected
        }
    }

    /// What it is like now.
    pub(crate) fn state(&self) -> FolioState {
        let mut state = FolioState::default();
        // SAFETY: We hold a reference (type invariant).
        unsafe { raw::kvmate_folio_look(self.0.as_ptr(), &mut state) };
        state
    }

    /// Its content is there now.
    pub(super) fn is_filled(&self) {
        // SAFETY: Locked. Dirty, so that truncation never drops as clean what it could not split
        // (mm/truncate.c); nobody ever cleans it, for no one writes it back.
        unsafe {
            raw::kvmate_folio_mark_uptodate(self.0.as_ptr());
            bindings::folio_mark_dirty(self.0.as_ptr());
        }
    }

    /// Zero pages of it, of a new one.
    pub(super) fn clear(&self, pages: Range<usize>) {
        assert!(pages.end <= 1 << self.order());
        for first in pages.clone().step_by(PAGES_AT_ONCE) {
            let some = (pages.end - first).min(PAGES_AT_ONCE);
            // SAFETY: Pages of the folio, which we hold; nobody else reads it before it is up to
            // date.
            unsafe { raw::kvmate_folio_clear(self.0.as_ptr(), first, some as u32) };
            // A folio's lock may be held over it.
            give_way();
        }
    }

    /// Copy all pages of another into it, from its page `at` on. `EHWPOISON`: one cannot be read.
    pub(super) fn copy_pages(&self, at: usize, from: &LockedFolio) -> Result {
        let pages = 1usize << from.order();
        assert!(at + pages <= 1 << self.order());
        for page in 0..pages {
            // SAFETY: Pages of the folios, both of which we hold.
            to_result(unsafe {
                raw::kvmate_folio_copy_page(self.0.as_ptr(), at + page, from.0.as_ptr(), page)
            })?;
            if page % PAGES_AT_ONCE == 0 {
                // SAFETY: Process context, and a folio's lock may be held over it.
                unsafe { bindings::__cond_resched() };
            }
        }
        Ok(())
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::folio {
        self.0.as_ptr()
    }

    /// Copy out of it, from the byte `start`; tells how many bytes were copied. Does not fault.
    pub(crate) fn copy_to(&self, start: usize, length: usize, to: &mut Destination<'_>) -> usize {
        assert!(start <= self.size() && length <= self.size() - start);
        to.without_faults(|iter| {
            // SAFETY: Inside the folio, which we hold; the iterator is live.
            unsafe { raw::kvmate_copy_folio_to_iter(self.0.as_ptr(), start, length, iter) }
        })
    }

    /// Copy into it, at the byte `start`; tells how many bytes were copied. Does not fault.
    pub(crate) fn copy_from(&self, start: usize, length: usize, from: &mut Source<'_>) -> usize {
        assert!(start <= self.size() && length <= self.size() - start);
        let (folio, iter) = (self.0.as_ptr(), from.as_ptr());
        // SAFETY: Inside the folio, which we hold; the iterator is live. Faults are off in there.
        unsafe { bindings::copy_folio_from_iter_atomic(folio, start, length, iter) }
    }

    /// Its page for the file's page `index`, still locked and with the reference: for a fault
    /// handler that answers `VM_FAULT_LOCKED`.
    pub(super) fn into_page(self, index: usize) -> *mut bindings::page {
        let number = index - self.index();
        let folio = ManuallyDrop::new(self);
        // SAFETY: A page of the folio: it was looked up by this index.
        unsafe { raw::kvmate_folio_page(folio.0.as_ptr(), number) }
    }
}

impl Drop for LockedFolio {
    fn drop(&mut self) {
        // SAFETY: Our lock and our reference (type invariant).
        unsafe {
            bindings::folio_unlock(self.0.as_ptr());
            raw::kvmate_folio_put(self.0.as_ptr());
        }
    }
}
