// SPDX-License-Identifier: GPL-2.0
//! `read()`, `write()` and `lseek()`, as memfd does them.

use super::file::File;
use crate::{
    pure::hole::PAGE_SHIFT,
    wrap::{
        folio::PAGE_SIZE,
        iov::{Destination, Source},
        mapping::Mapping,
        memory_file::Seek,
        signal::fatal_signal_pending,
    },
};
use kernel::prelude::*;

/// The most that is copied under one hold of a folio's lock.
const AT_ONCE: u64 = 1 << 16;

/// The bytes done, if there are any, else what stopped it.
fn done_or(done: usize, result: Result) -> Result<usize> {
    match result {
        Err(error) if done == 0 => Err(error),
        _ => Ok(done),
    }
}

/// How much of `remaining` bytes to copy at `position` in one go: to the end of its piece.
fn piece(position: u64, remaining: usize, end: u64) -> usize {
    let here = AT_ONCE - position % AT_ONCE;
    here.min(end - position).min(remaining as u64) as usize
}

impl File {
    /// Read. Holes give zeros and stay holes. `EIO`: a page has failed.
    pub(super) fn copy_out(
        &self,
        mapping: &Mapping,
        position: &mut u64,
        to: &mut Destination<'_>,
    ) -> Result<usize> {
        let (start, size) = (*position, mapping.size());
        let result = (|| {
            while *position < size && to.remaining() > 0 {
                if fatal_signal_pending() {
                    return Err(EINTR);
                }
                let length = piece(*position, to.remaining(), size);
                let (copied, wanted) = self.copy_piece(mapping, *position, length, to)?;
                *position += copied as u64;
                if copied < wanted {
                    to.fault_in(PAGE_SIZE.min(wanted - copied))?;
                }
            }
            Ok(())
        })();
        done_or((*position - start) as usize, result)
    }

    /// Copy of one folio or hole; tells how much was copied, and how much there was to be.
    fn copy_piece(
        &self,
        mapping: &Mapping,
        position: u64,
        length: usize,
        to: &mut Destination<'_>,
    ) -> Result<(usize, usize)> {
        let page = (position >> PAGE_SHIFT) as usize;
        let shared = mapping.shared();
        match shared.folio(page) {
            Some(folio) => {
                let start = position as usize - folio.index() * PAGE_SIZE;
                let length = folio.readable(start, length.min(folio.size() - start))?;
                Ok((folio.copy_to(start, length, to), length))
            }
            None if self.failed.next(&(page..page + 1)).is_some() => Err(EIO),
            None => {
                let length = length.min(PAGE_SIZE - position as usize % PAGE_SIZE);
                Ok((to.zero(length), length))
            }
        }
    }

    /// Write. `EPERM`: all of it is behind the end; `EIO`: a page has failed.
    pub(super) fn copy_in(
        &self,
        mapping: &Mapping,
        position: &mut u64,
        from: &mut Source<'_>,
    ) -> Result<usize> {
        let (start, size) = (*position, mapping.size());
        let limits = 0..Self::size_in_pages(mapping);
        let result = (|| {
            while from.remaining() > 0 {
                if *position >= size {
                    return Err(EPERM);
                }
                if fatal_signal_pending() {
                    return Err(EINTR);
                }
                let length = piece(*position, from.remaining(), size);
                // The first page is enough to get on.
                from.fault_in(length.min(PAGE_SIZE))?;
                let page = (*position >> PAGE_SHIFT) as usize;
                let copied = {
                    let shared = mapping.shared();
                    let folio = self.folio(&shared, page, &limits);
                    let folio = folio.map_err(|error| match error == EHWPOISON {
                        true => EIO,
                        false => error,
                    })?;
                    let at = *position as usize - folio.index() * PAGE_SIZE;
                    let length = folio.readable(at, length.min(folio.size() - at))?;
                    folio.copy_from(at, length, from)
                };
                *position += copied as u64;
            }
            Ok(())
        })();
        done_or((*position - start) as usize, result)
    }

    /// `lseek()`. `ENXIO`: behind the end, or no more data.
    pub(super) fn find(&self, mapping: &Mapping, offset: u64, what: Seek) -> Result<u64> {
        let size = mapping.size();
        if offset >= size {
            return Err(ENXIO);
        }
        let end = Self::size_in_pages(mapping);
        let mut page = (offset >> PAGE_SHIFT) as usize;
        let byte = |page: usize| ((page as u64) << PAGE_SHIFT).max(offset);
        while page < end {
            if fatal_signal_pending() {
                return Err(EINTR);
            }
            let Some(folio) = self.next(mapping, page..end) else {
                return match what {
                    Seek::Data => Err(ENXIO),
                    Seek::Hole => Ok(byte(page)),
                };
            };
            let pages = folio.pages();
            match what {
                Seek::Data => return Ok(byte(pages.start.max(page))),
                Seek::Hole if pages.start > page => return Ok(byte(page)),
                Seek::Hole => page = pages.end,
            }
        }
        Ok(size)
    }
}
