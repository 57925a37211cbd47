// SPDX-License-Identifier: GPL-2.0
//! A gmem file: what it is made with, what it counts, and which part of [`super`] does what.

use super::{failed::Failed, query::Piece, reshape::Shape, stats::Stats, Gmem, Wish};
use crate::pure::hole::Block;
use crate::wrap::{
    folio::{LockedFolio, Node, PAGE_SIZE},
    iov::{Destination, Source},
    mapping::Mapping,
    memory_file::{Call, MemoryFile, Mode, Seek},
    uabi,
};
use core::ops::Range;
use kernel::{
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::{atomic::Atomic, Arc},
    uaccess::{UserPtr, UserSlice},
};

/// A gmem file.
pub(super) struct File {
    pub(super) gmem: Arc<Gmem>,
    /// Its inode's.
    pub(super) number: u64,
    pub(super) small: bool,
    pub(super) node: Node,
    pub(super) seals: Atomic<u32>,
    pub(super) failed: Failed,
    pub(super) stats: Stats,
}

impl File {
    pub(super) fn new(gmem: Arc<Gmem>, wish: &Wish<'_>, number: u64) -> Result<Self> {
        Ok(Self {
            gmem,
            number,
            small: wish.small,
            node: wish.node,
            seals: Atomic::new(0),
            failed: Failed::new()?,
            stats: Stats::new()?,
        })
    }

    /// The largest order of a new folio now.
    pub(super) fn largest(&self) -> u32 {
        if self.small {
            return 0;
        }
        self.gmem.order() as u32
    }

    /// What stands in `pages` or reaches into it, or has failed there, the first.
    pub(super) fn next(&self, mapping: &Mapping, pages: Range<usize>) -> Option<Block> {
        let there = mapping.next(pages.clone());
        let failed = self.failed.next(&pages).map(|page| Block::around(page, 0));
        match (there, failed) {
            (Some(there), Some(failed)) if there.index > failed.index => Some(failed),
            (there, failed) => there.or(failed),
        }
    }

    /// How many pages the file has, present or not.
    pub(super) fn size_in_pages(mapping: &Mapping) -> usize {
        mapping.size() as usize / PAGE_SIZE
    }
}

impl MemoryFile for File {
    fn fault(&self, mapping: &Mapping, index: usize) -> Result<LockedFolio> {
        let size = Self::size_in_pages(mapping);
        if index >= size {
            return Err(EFAULT);
        }
        let mut folio = self.folio(&mapping.shared(), index, &(0..size))?;
        if folio.has_failed() {
            drop(folio);
            folio = self.fault_beside_failed(mapping, index, &(0..size))?;
        }
        self.stats.fault(folio.order());
        self.traces_fault(index, folio.order());
        Ok(folio)
    }

    fn failed(&self, page: usize) -> Result {
        self.failed.add(page)
    }

    fn end(&self, mapping: &Mapping) {
        self.keep_failed(&mapping.exclusive(), &(0..Self::size_in_pages(mapping)));
    }

    fn is_write_sealed(&self) -> bool {
        self.is_write_sealed()
    }

    fn read(
        &self,
        mapping: &Mapping,
        position: &mut u64,
        to: &mut Destination<'_>,
    ) -> Result<usize> {
        self.copy_out(mapping, position, to)
    }

    fn write(&self, mapping: &Mapping, position: &mut u64, from: &mut Source<'_>) -> Result<usize> {
        self.may_write()?;
        self.copy_in(mapping, position, from)
    }

    fn fallocate(&self, mapping: &Mapping, mode: Mode, offset: u64, length: u64) -> Result {
        match mode {
            Mode::Allocate => self.allocate(mapping, offset, length),
            Mode::Punch => {
                self.may_write()?;
                self.punch(mapping, offset, length)
            }
        }
    }

    fn seek(&self, mapping: &Mapping, offset: u64, what: Seek) -> Result<u64> {
        self.find(mapping, offset, what)
    }

    fn ioctl(&self, mapping: &Mapping, call: &Call) -> Result<isize> {
        let argument = |size| UserSlice::new(UserPtr::from_addr(call.argument), size);
        match call.command {
            uabi::GMEM_QUERY => self.query(mapping, argument(size_of::<uabi::GmemQuery>())),
            uabi::GMEM_SPLIT => self.reshape(mapping, call, Shape::Split),
            uabi::GMEM_SEALS => self.seals(mapping, call),
            uabi::GMEM_MERGE => self.reshape(mapping, call, Shape::Merge),
            _ => Err(ENOTTY),
        }
    }

    fn info(&self, mapping: &Mapping, out: &SeqFile) -> Result {
        self.stats.show(mapping, out);
        seq_print!(out, "failed {}\n", self.failed.number());
        Ok(())
    }

    type Line = Piece;

    fn line(&self, mapping: &Mapping, page: u64) -> Option<(Piece, u64)> {
        self.piece(mapping, page)
    }

    fn show_line(&self, line: &Piece, out: &SeqFile) {
        Self::show_piece(line, out);
    }
}
