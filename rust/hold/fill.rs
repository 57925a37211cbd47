// SPDX-License-Identifier: GPL-2.0
//! Making a file's pages: the largest folio that fits into the hole around a page and that there is
//! memory for.

use super::file::File;
use crate::{
    pure::hole::{Block, PAGE_SHIFT},
    wrap::{
        folio::{LockedFolio, NewFolio},
        mapping::{Mapping, Shared},
        signal::fatal_signal_pending,
    },
};
use core::ops::Range;
use kernel::{current, prelude::*};

/// So many pages are made before signals are looked at.
const UNINTERRUPTED: usize = 512;

impl File {
    /// The folio that has the page, made within `limits` if there is none. `ENOMEM` if not a single
    /// page can be had; `EHWPOISON`: the page has failed, and is not there any more.
    pub(super) fn folio(
        &self,
        shared: &Shared<'_>,
        page: usize,
        limits: &Range<usize>,
    ) -> Result<LockedFolio> {
        loop {
            if let Some(folio) = shared.folio(page) {
                return Ok(folio);
            }
            match self.fill(shared, page, limits) {
                // Somebody else was here; take theirs, or what is left beside it.
                Err(error) if error == EEXIST => continue,
                made => return made,
            }
        }
    }

    fn fill(&self, shared: &Shared<'_>, page: usize, limits: &Range<usize>) -> Result<LockedFolio> {
        let mut short = false;
        for block in Block::within(page, self.largest(), limits) {
            // First what is there, then what has failed: a page that fails is noted, then goes.
            if block.order > 0 && shared.next(block.pages()).is_some() {
                continue;
            }
            if self.failed.next(&block.pages()).is_some() {
                if block.order == 0 {
                    return Err(EHWPOISON);
                }
                continue;
            }
            let made = NewFolio::new(block.order, self.node)
                .ok_or(ENOMEM)
                .and_then(|folio| shared.add(folio, block.index));
            match made {
                Err(error) if error == ENOMEM && block.order > 0 => short = true,
                Err(error) => return Err(error),
                // Between the look above and now a page was there, made by another, and failed.
                Ok(folio) if self.failed.next(&block.pages()).is_some() => {
                    shared.take_back(folio);
                    if block.order == 0 {
                        return Err(EHWPOISON);
                    }
                }
                Ok(folio) => {
                    if short {
                        self.stats.fallback();
                    }
                    return Ok(folio);
                }
            }
        }
        Err(ENOMEM)
    }

    /// `fallocate()` without punching: fill the holes of a range. `EPERM`: it would make the file
    /// larger; `ENOMEM`, `EINTR`: a prefix is done.
    pub(super) fn allocate(&self, mapping: &Mapping, offset: u64, length: u64) -> Result {
        let end = offset.checked_add(length).ok_or(EFBIG)?;
        if end > mapping.size() {
            return Err(EPERM);
        }
        let first = (offset >> PAGE_SHIFT) as usize;
        let limits = first..end.div_ceil(1 << PAGE_SHIFT) as usize;
        let (mut page, mut made) = (first, 0);
        while page < limits.end {
            // What is there is walked over, but when killed: who is interrupted again and again gets on.
            if fatal_signal_pending() {
                return Err(EINTR);
            }
            if let Some(folio) = mapping.next(page..page + 1) {
                page = folio.pages().end;
                continue;
            }
            if made >= UNINTERRUPTED && current!().signal_pending() {
                return Err(EINTR);
            }
            let folio = match self.folio(&mapping.shared(), page, &limits) {
                // No hole: it stays what it is.
                Err(error) if error == EHWPOISON => {
                    page += 1;
                    continue;
                }
                folio => folio?,
            };
            page = folio.index() + (1 << folio.order());
            made += 1 << folio.order();
        }
        Ok(())
    }
}
