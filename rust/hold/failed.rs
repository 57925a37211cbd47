// SPDX-License-Identifier: GPL-2.0
//! Pages that have failed (mm/memory-failure.c).
//!
//! Such a page is taken out of the file, and a note is kept of where it was: whoever touches that is told
//! of the failure, until it is punched. The note is made before the page goes, so who finds no page
//! and then no note may make a new one. A page that could not be taken out (its folio is held, or there
//! was no memory for a note) stays in the cache, where mm has marked it: who copies looks for that mark.
//!
//! The list is short, and its lock the innermost.

use core::ops::Range;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Mutex,
    },
};

/// Where pages have failed that are not there any more.
pub(super) struct Failed {
    /// How many, so that nobody takes the lock for nothing.
    number: Atomic<usize>,
    /// In order.
    pages: Pin<KBox<Mutex<KVec<usize>>>>,
}

impl Failed {
    /// None yet.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            number: Atomic::new(0),
            pages: KBox::pin_init(new_mutex!(KVec::new()), GFP_KERNEL)?,
        })
    }

    /// How many.
    pub(super) fn number(&self) -> usize {
        self.number.load(Relaxed)
    }

    /// Take a note.
    pub(super) fn add(&self, page: usize) -> Result {
        let mut pages = self.pages.lock();
        let Err(at) = pages.binary_search(&page) else {
            return Ok(());
        };
        pages.push(page, GFP_KERNEL)?;
        if let Some(behind) = pages.get_mut(at..) {
            behind.rotate_right(1);
        }
        self.number.store(pages.len(), Relaxed);
        Ok(())
    }

    /// The first one in a range.
    pub(super) fn next(&self, range: &Range<usize>) -> Option<usize> {
        if self.number() == 0 {
            return None;
        }
        let pages = self.pages.lock();
        let first = pages.partition_point(|page| *page < range.start);
        pages.get(first).copied().filter(|page| *page < range.end)
    }

    /// These are forgotten.
    pub(super) fn forget(&self, range: &Range<usize>) {
        if self.number() == 0 {
            return;
        }
        let mut pages = self.pages.lock();
        pages.retain(|page| !range.contains(page));
        self.number.store(pages.len(), Relaxed);
    }
}
