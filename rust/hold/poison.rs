// SPDX-License-Identifier: GPL-2.0
//! Pages that have failed and are in the file still: getting them out of folios with others.
//!
//! mm splits the folio of a page that fails, and takes the page out ([`super::failed`] has the note).
//! Where it could not split, since somebody held the folio, the whole folio is marked, and so it stays
//! until somebody meets it who is alone with the mapping: a fault, a punch, the file's end.
//!
//! mm has a reference to the page, and no lock, for as long as it is at work on it: then the page is left
//! to it, for mm would find it gone, and give the failure up as one that it did not get out of. (A page
//! is marked a moment before mm has that reference; nothing tells us of that moment.)
//!
//! No page that failed may go back to the system: mm keeps it where it is freed by itself, but not as
//! part of a larger folio. A folio that cannot be split when it goes, since somebody holds it or there
//! is no memory for that, is therefore kept for ever.

use super::{
    file::File,
    split::{may_try, ONCE, TRIES},
};
use crate::{
    pure::hole::Block,
    wrap::{
        folio::{LockedFolio, PMD_ORDER},
        mapping::{Exclusive, Mapping},
    },
};
use core::ops::Range;
use kernel::prelude::*;

/// A folio with a page that has failed.
enum Failure {
    /// That page alone.
    Page(LockedFolio),
    /// A larger one that could not be split.
    Held(LockedFolio),
}

impl File {
    /// Split off each page of `pages` that has failed, of folios of that order or larger, and tell of
    /// what has.
    fn failures(
        &self,
        mapping: &Exclusive<'_>,
        pages: &Range<usize>,
        (smallest, tries): (u32, u32),
        mut tell: impl FnMut(Failure),
    ) {
        let mut next = pages.start;
        while let Some(block) = mapping.next(next..pages.end) {
            next = block.pages().end;
            if block.order < smallest {
                continue;
            }
            // Without its lock first: most have not. mm may split it meanwhile.
            let Some(state) = mapping.look(block.index..next) else {
                continue;
            };
            next = state.index + (1 << state.order);
            if state.poisoned == 0 {
                continue;
            }
            let Some(folio) = mapping.folio(state.index) else {
                continue;
            };
            next = folio.block().pages().end;
            let Some(page) = folio.first_failed() else {
                continue;
            };
            let (block, page) = (folio.block(), folio.index() + page);
            if block.order == 0 {
                tell(Failure::Page(folio));
                continue;
            }
            drop(folio);
            let split = self.split_until(mapping, (page, 0), tries, |block| block.order == 0);
            match (split, mapping.folio(block.index)) {
                // There may be more in what it was split to, by us or by mm meanwhile.
                (Ok(_), _) => next = block.index,
                (Err(_), Some(folio)) if folio.order() < block.order => next = block.index,
                (Err(_), Some(folio)) if folio.has_failed() => tell(Failure::Held(folio)),
                (Err(_), _) => {}
            }
        }
    }

    /// Take out the pages that have failed, so that the others can be used, where that can be done.
    pub(super) fn take_out_failed(
        &self,
        mapping: &Exclusive<'_>,
        pages: &Range<usize>,
        tries: u32,
    ) {
        self.failures(mapping, pages, (0, tries), |failure| {
            let Failure::Page(folio) = failure else {
                return;
            };
            // Maybe mm's; without a note it must stay: it would be a hole.
            let page = folio.index();
            if folio.is_referenced() || self.failed.add(page).is_err() {
                return;
            }
            drop(folio);
            mapping.remove(&(page..page + 1));
        });
    }

    /// These pages are to be removed: have none that failed go as part of a larger folio.
    pub(super) fn keep_failed(&self, mapping: &Exclusive<'_>, pages: &Range<usize>) {
        // Pages that are alone need nothing.
        self.failures(mapping, pages, (1, TRIES), |failure| {
            if let Failure::Held(folio) = failure {
                pr_warn!("a page that failed is kept with its folio, which cannot be split\n");
                folio.keep_for_ever();
            }
        });
    }

    /// The folio of a page that a fault is about, which has a page that failed. `EHWPOISON`: it could
    /// not be split, or it is that page. None of a larger one may be mapped: mm would map them all.
    pub(super) fn fault_beside_failed(
        &self,
        mapping: &Mapping,
        index: usize,
        limits: &Range<usize>,
    ) -> Result<LockedFolio> {
        // All that the folio had, wherever in it.
        let around = Block::around(index, PMD_ORDER).pages();
        let mut attempt = 0;
        loop {
            // The pauses are without the lock: others' faults go on meanwhile.
            self.take_out_failed(&mapping.exclusive(), &around, ONCE);
            let folio = self.folio(&mapping.shared(), index, limits)?;
            if !folio.has_failed() {
                return Ok(folio);
            }
            let pinned = folio.is_referenced() && folio.state().pinned != 0;
            drop(folio);
            attempt += 1;
            if !may_try(attempt, TRIES, pinned) {
                return Err(EHWPOISON);
            }
        }
    }
}
