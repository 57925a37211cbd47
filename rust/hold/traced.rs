// SPDX-License-Identifier: GPL-2.0
//! What is traced of a file: a line each, and the events `gmem_*`.

use super::{file::File, refused::Refused};
use crate::{
    pure::hole::{Block, Hole, PAGE_SHIFT},
    trace::Class,
    wrap::trace_event::{self, GmemRefused},
};
use kernel::{fmt, prelude::*};

impl File {
    fn line(&self, text: fmt::Arguments<'_>) {
        let number = self.number;
        self.gmem.trace.line(None, fmt!("gmem {number}: {text}"));
    }

    fn wants_lines(&self) -> bool {
        self.gmem.trace.wants(Class::Gmem)
    }

    /// A fault at that page was given a folio of that order.
    pub(super) fn traces_fault(&self, page: usize, order: u32) {
        let offset = (page as u64) << PAGE_SHIFT;
        trace_event::gmem_fault(self.number, offset, order);
        if self.wants_lines() {
            self.line(fmt!("fault {offset:#x} order {order}"));
        }
    }

    /// A hole, or a part of one, was made.
    pub(super) fn traces_punch(&self, hole: &Hole, freed: usize, kept: usize) {
        let (offset, length) = (hole.start(), hole.length());
        trace_event::gmem_punch(self.number, offset, length, freed as u64, kept as u64);
        if self.wants_lines() {
            self.line(fmt!(
                "punch {offset:#x} {length:#x}: {freed} pages freed, {kept} kept"
            ));
        }
    }

    /// A folio was split, if it is smaller now.
    pub(super) fn traces_split(&self, before: Block, after: Block) {
        if after.order >= before.order {
            return;
        }
        let offset = (before.index as u64) << PAGE_SHIFT;
        let (from, to) = (before.order, after.order);
        trace_event::gmem_split(self.number, offset, from, to);
        if self.wants_lines() {
            self.line(fmt!("split {offset:#x}: order {from} to {to}"));
        }
    }

    /// So many folios, all that were there, became one.
    pub(super) fn traces_merge(&self, folios: usize, block: Block) {
        let offset = (block.index as u64) << PAGE_SHIFT;
        trace_event::gmem_merge(self.number, offset, folios as u32, block.order);
        if self.wants_lines() {
            let order = block.order;
            self.line(fmt!("merge {offset:#x}: {folios} folios to order {order}"));
        }
    }

    /// A split or a merge was refused.
    pub(super) fn traces_refused(&self, what: &CStr, refused: &Refused) {
        let (why, at) = (refused.why.name(), refused.at.record());
        trace_event::gmem_refused(&GmemRefused {
            file: self.number,
            what,
            why,
            at,
        });
        if self.wants_lines() {
            self.line(fmt!(
                "{what} refused at {:#x}: {why}, {} references, {} expected, {} mappings{}",
                at.offset,
                at.references,
                at.expected,
                at.mappings,
                if refused.is_pinned() { ", pinned" } else { "" }
            ));
        }
    }
}
