// SPDX-License-Identifier: GPL-2.0
//! What a file counts, and `gmem/<number>/info`.

use super::file::File;
use crate::wrap::{
    folio::{PAGE_SIZE, PMD_ORDER},
    mapping::Mapping,
};
use kernel::{
    seq_file::{seq_print, SeqFile},
    sync::atomic::{Atomic, Relaxed},
};

const ORDERS: usize = PMD_ORDER as usize + 1;

/// The counters of a file, from its making on.
pub(super) struct Stats {
    fallbacks: Atomic<u64>,
    faults: [Atomic<u64>; ORDERS],
    asked: Atomic<u64>,
    freed: Atomic<u64>,
    kept: Atomic<u64>,
    referenced: Atomic<u64>,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            fallbacks: Atomic::new(0),
            faults: [const { Atomic::new(0) }; ORDERS],
            asked: Atomic::new(0),
            freed: Atomic::new(0),
            kept: Atomic::new(0),
            referenced: Atomic::new(0),
        }
    }
}

fn add(counter: &Atomic<u64>, number: u64) {
    counter.fetch_add(number, Relaxed);
}

impl Stats {
    /// A folio is smaller than its hole, for want of memory.
    pub(super) fn fallback(&self) {
        add(&self.fallbacks, 1);
    }

    /// A fault was answered with a folio of that order.
    pub(super) fn fault(&self, order: u32) {
        if let Some(counter) = self.faults.get(order as usize) {
            add(counter, 1);
        }
    }

    /// A hole of so many bytes is to be punched.
    pub(super) fn asked(&self, bytes: u64) {
        add(&self.asked, bytes);
    }

    /// So many pages of it went.
    pub(super) fn freed(&self, pages: usize) {
        add(&self.freed, (pages * PAGE_SIZE) as u64);
    }

    /// So many whole pages of a hole had to stay, for somebody has a reference to their folio, or for
    /// want of memory to split it.
    pub(super) fn kept(&self, pages: usize, referenced: bool) {
        add(&self.kept, (pages * PAGE_SIZE) as u64);
        if referenced {
            add(&self.referenced, (pages * PAGE_SIZE) as u64);
        }
    }

    /// Write the table.
    pub(super) fn show(&self, mapping: &Mapping, out: &SeqFile) {
        let mut folios = [0u64; ORDERS];
        let (mut page, end) = (0, File::size_in_pages(mapping));
        while let Some(folio) = mapping.next(page..end) {
            if let Some(count) = folios.get_mut(folio.order as usize) {
                *count += 1;
            }
            page = folio.pages().end;
        }
        seq_print!(out, "size {}\n", mapping.size());
        seq_print!(out, "allocated {}\n", mapping.pages() * PAGE_SIZE);
        for (order, count) in folios.iter().enumerate() {
            seq_print!(out, "folios_order{order} {count}\n");
        }
        for (order, count) in self.faults.iter().enumerate() {
            seq_print!(out, "faults_order{order} {}\n", count.load(Relaxed));
        }
        seq_print!(out, "fallbacks {}\n", self.fallbacks.load(Relaxed));
        seq_print!(out, "punch_asked {}\n", self.asked.load(Relaxed));
        seq_print!(out, "punch_freed {}\n", self.freed.load(Relaxed));
        seq_print!(out, "punch_kept_unsplit {}\n", self.kept.load(Relaxed));
        let referenced = self.referenced.load(Relaxed);
        seq_print!(out, "punch_kept_referenced {referenced}\n");
    }
}
