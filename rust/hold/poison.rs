// SPDX-License-Identifier: GPL-2.0
//! Pages that have failed and are in the file still: getting them out of folios with others.
//!
//! mm splits the folio of a page that fails, and takes the page out ([`super::failed`] has the note).
//! Where it could not split, since somebody held the folio, the whole folio is marked, and so it stays
//! until somebody meets it who is alone with the mapping: a fault, a punch, the file's end.
//!
//! No page that failed may go back to the system: mm keeps it where it is freed by itself, but not as
//! part of a larger folio. A folio that is held still when it goes is therefore kept for ever.

use super::file::File;
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
    Page(usize),
    /// A larger one that could not be split.
    Held(LockedFolio),
}

impl File {
    /// Split off each page of `pages` that has failed, and tell of what has.
    fn failures(
        &self,
        mapping: &Exclusive<'_>,
        pages: &Range<usize>,
        mut tell: impl FnMut(Failure),
    ) {
        let mut next = pages.start;
        while let Some(state) = mapping.look(next..pages.end) {
            next = state.index + (1 << state.order);
            if state.poisoned == 0 {
                continue;
            }
            let Some(folio) = mapping.folio(state.index) else {
                continue;
            };
            let Some(page) = folio.first_failed() else {
                continue;
            };
            let (block, page) = (folio.block(), folio.index() + page);
            if block.order == 0 {
                drop(folio);
                tell(Failure::Page(page));
                continue;
            }
            drop(folio);
            let split = self.split_until(mapping, page, 0, |block| block.order == 0);
            match (split, mapping.folio(block.index)) {
                // There may be more in what it was split to.
                (Ok(_), _) => next = block.index,
                (Err(_), Some(folio)) => tell(Failure::Held(folio)),
                (Err(_), None) => {}
            }
        }
    }

    /// Take out the pages that have failed, so that the others can be used, where that can be done.
    pub(super) fn take_out_failed(&self, mapping: &Exclusive<'_>, pages: &Range<usize>) {
        self.failures(mapping, pages, |failure| match failure {
            // Without a note it must stay: it would be a hole.
            Failure::Page(page) if self.failed.add(page).is_ok() => {
                mapping.remove(&(page..page + 1));
            }
            Failure::Page(_) | Failure::Held(_) => {}
        });
    }

    /// These pages are to be removed: have none that failed go as part of a larger folio.
    pub(super) fn keep_failed(&self, mapping: &Exclusive<'_>, pages: &Range<usize>) {
        self.failures(mapping, pages, |failure| {
            if let Failure::Held(folio) = failure {
                pr_warn!("a page that failed is kept with its folio, which is held\n");
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
        self.take_out_failed(&mapping.exclusive(), &around);
        let folio = self.folio(&mapping.shared(), index, limits)?;
        if folio.has_failed() {
            return Err(EHWPOISON);
        }
        Ok(folio)
    }
}
