// SPDX-License-Identifier: GPL-2.0
//! Folios of which a page has failed ([`super::folio`]): what of them may be touched.
//!
//! C header: [`include/linux/page-flags.h`](srctree/include/linux/page-flags.h)

use super::folio::{LockedFolio, PAGE_SIZE};
use crate::raw;
use core::mem::ManuallyDrop;
use kernel::{bindings, prelude::*};

impl LockedFolio {
    /// Whether a page of it has failed: nobody may touch that.
    pub(crate) fn has_failed(&self) -> bool {
        // SAFETY: We hold a reference (type invariant).
        unsafe { raw::kvmate_folio_has_failed(self.as_ptr()) }
    }

    /// Whether the page with the byte `at` has.
    pub(crate) fn page_has_failed(&self, at: usize) -> bool {
        assert!(at < self.size());
        // SAFETY: A page of the folio, which we hold.
        unsafe { raw::kvmate_folio_page_has_failed(self.as_ptr(), at / PAGE_SIZE) }
    }

    /// Give up its memory: it never goes back to the system.
    pub(crate) fn keep_for_ever(self) {
        let folio = ManuallyDrop::new(self);
        // SAFETY: Our lock (type invariant). Our reference stays.
        unsafe { bindings::folio_unlock(folio.as_ptr()) };
    }

    /// The first page of it that has, counted from its own first.
    pub(crate) fn first_failed(&self) -> Option<usize> {
        if !self.has_failed() {
            return None;
        }
        (0..1 << self.order()).find(|page| self.page_has_failed(page * PAGE_SIZE))
    }

    /// How much of `length` bytes at `start` may be copied in one go. `EIO`: the first page has failed.
    pub(crate) fn readable(&self, start: usize, length: usize) -> Result<usize> {
        if !self.has_failed() {
            return Ok(length);
        }
        if self.page_has_failed(start) {
            return Err(EIO);
        }
        Ok(length.min(PAGE_SIZE - start % PAGE_SIZE))
    }

    /// Zero a part of it, but for pages that have failed.
    pub(crate) fn zero(&self, start: usize, length: usize) {
        assert!(start <= self.size() && length <= self.size() - start);
        let (mut at, end) = (start, start + length);
        while at < end {
            let rest = end - at;
            let step = match self.readable(at, rest) {
                Ok(step) => {
                    // SAFETY: Inside the folio, which we hold.
                    unsafe { raw::kvmate_folio_zero(self.as_ptr(), at, step) };
                    step
                }
                Err(_) => rest.min(PAGE_SIZE - at % PAGE_SIZE),
            };
            at += step;
        }
    }
}
