// SPDX-License-Identifier: GPL-2.0
//! What a file has where, and who holds it: `KVMATE_GMEM_QUERY`, and `gmem/<number>/map`.
//!
//! Nothing is locked: each folio is looked at for itself, and its numbers are of that moment.

use super::file::File;
use crate::{
    pure::hole::PAGE_SHIFT,
    wrap::{folio::FolioState, mapping::Mapping, signal::fatal_signal_pending, uabi},
};
use core::ops::Range;
use kernel::{
    current,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    uaccess::{UserPtr, UserSlice},
};

/// A folio or a hole.
#[derive(Clone, Copy)]
pub(super) enum Piece {
    /// So many pages of nothing from a page on.
    Hole(usize, usize),
    /// A page that failed and is not there any more.
    Failed(usize),
    /// A folio.
    Folio(FolioState),
}

impl Piece {
    fn end(self) -> usize {
        match self {
            Self::Hole(start, pages) => start + pages,
            Self::Failed(page) => page + 1,
            Self::Folio(folio) => folio.index + (1 << folio.order),
        }
    }

    /// What user space is told of it.
    pub(super) fn record(self) -> uabi::GmemRecord {
        let byte = |page: usize| (page as u64) << PAGE_SHIFT;
        match self {
            Self::Hole(start, pages) => uabi::GmemRecord {
                offset: byte(start),
                length: byte(pages),
                flags: uabi::GMEM_HOLE,
                ..Default::default()
            },
            Self::Failed(page) => uabi::GmemRecord {
                offset: byte(page),
                length: byte(1),
                flags: uabi::GMEM_HOLE | uabi::GMEM_POISONED,
                ..Default::default()
            },
            Self::Folio(folio) => uabi::GmemRecord {
                offset: byte(folio.index),
                length: byte(1 << folio.order),
                order: folio.order,
                flags: flags(&folio),
                references: folio.references,
                expected: folio.expected,
                mappings: folio.mappings,
                reserved: 0,
            },
        }
    }
}

/// A flag, whether a folio has it, and its name in `map`.
fn each_flag(folio: &FolioState) -> [(u32, bool, &'static str); 5] {
    [
        (uabi::GMEM_MAPPED, folio.mappings > 0, "mapped"),
        (uabi::GMEM_PINNED, folio.pinned != 0, "pinned"),
        (uabi::GMEM_POISONED, folio.poisoned != 0, "poisoned"),
        (uabi::GMEM_LOCKED, folio.locked != 0, "locked"),
        (uabi::GMEM_DIRTY, folio.dirty != 0, "dirty"),
    ]
}

fn flags(folio: &FolioState) -> u32 {
    let set = each_flag(folio).into_iter().filter(|(_, set, _)| *set);
    set.fold(0, |flags, (flag, _, _)| flags | flag)
}

impl File {
    /// What has the first page; a hole is cut to `pages`.
    pub(super) fn look(&self, mapping: &Mapping, pages: Range<usize>) -> Piece {
        let folio = mapping.look(pages.clone());
        if let Some(folio) = folio.filter(|folio| folio.index <= pages.start) {
            return Piece::Folio(folio);
        }
        let end = folio.map_or(pages.end, |folio| folio.index);
        match self.failed.next(&(pages.start..end)) {
            Some(page) if page == pages.start => Piece::Failed(page),
            failed => Piece::Hole(pages.start, failed.unwrap_or(end) - pages.start),
        }
    }

    /// `KVMATE_GMEM_QUERY`
    pub(super) fn query(&self, mapping: &Mapping, argument: UserSlice) -> Result<isize> {
        let (mut reader, mut writer) = argument.reader_writer();
        let mut asked: uabi::GmemQuery = reader.read()?;
        let pages = pages_of(mapping, asked.offset, asked.length)?;
        if asked.flags != 0 || asked.count == 0 {
            return Err(EINVAL);
        }
        let room = asked.count as usize * size_of::<uabi::GmemRecord>();
        let records = UserSlice::new(UserPtr::from_addr(asked.records as usize), room);
        let mut records = records.writer();
        let (mut page, mut filled) = (pages.start, 0);
        while page < pages.end && filled < asked.count {
            if filled > 0 && current!().signal_pending() {
                break;
            }
            let piece = self.look(mapping, page..pages.end);
            records.write(&piece.record())?;
            filled += 1;
            page = piece.end();
        }
        let end = asked.offset + asked.length;
        asked.offset = ((page as u64) << PAGE_SHIFT).max(asked.offset);
        asked.length = if page < pages.end {
            end - asked.offset
        } else {
            0
        };
        asked.count = filled;
        writer.write(&asked)?;
        Ok(0)
    }

    /// A line of `map`.
    pub(super) fn piece(&self, mapping: &Mapping, page: u64) -> Option<(Piece, u64)> {
        let (page, end) = (page as usize, Self::size_in_pages(mapping));
        if page >= end || fatal_signal_pending() {
            return None;
        }
        let piece = self.look(mapping, page..end);
        Some((piece, piece.end() as u64))
    }

    /// Write it.
    pub(super) fn show_piece(piece: &Piece, out: &SeqFile) {
        let record = piece.record();
        seq_print!(out, "{:#x} {:#x} ", record.offset, record.length);
        let folio = match piece {
            Piece::Hole(..) => return seq_print!(out, "hole\n"),
            Piece::Failed(_) => return seq_print!(out, "hole poisoned\n"),
            Piece::Folio(folio) => folio,
        };
        seq_print!(
            out,
            "folio {} {} {} {} ",
            folio.order,
            folio.references,
            folio.expected,
            folio.mappings
        );
        let set = each_flag(folio).into_iter().filter(|(_, set, _)| *set);
        for (number, (_, _, name)) in set.enumerate() {
            let comma = if number > 0 { "," } else { "" };
            seq_print!(out, "{comma}{name}");
        }
        seq_print!(out, "\n");
    }
}

/// The pages of a range that user space gave, cut to the file. `EINVAL`: not of whole pages, or too
/// large.
pub(super) fn pages_of(mapping: &Mapping, offset: u64, length: u64) -> Result<Range<usize>> {
    let mask = (1 << PAGE_SHIFT) - 1;
    let end = offset.checked_add(length).ok_or(EINVAL)?;
    if (offset | length) & mask != 0 {
        return Err(EINVAL);
    }
    let (start, end) = (offset.min(mapping.size()), end.min(mapping.size()));
    Ok((start >> PAGE_SHIFT) as usize..(end >> PAGE_SHIFT) as usize)
}
