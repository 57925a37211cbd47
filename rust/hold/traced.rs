// SPDX-License-Identifier: GPL-2.0
//! What is traced of a file: a line each, and the events `gmem_fault`, `gmem_punch`, `gmem_split`.

use super::file::File;
use crate::{
    pure::hole::{Block, Hole, PAGE_SHIFT},
    trace::Class,
    wrap::trace_event,
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
}
