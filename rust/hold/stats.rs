// SPDX-License-Identifier: GPL-2.0
//! What a file counts, and `gmem/<number>/info`.

use super::{
    file::File,
    refused::{Refused, Why},
};
use crate::wrap::{
    folio::{PAGE_SIZE, PMD_ORDER},
    mapping::Mapping,
    signal::fatal_signal_pending,
};
use kernel::{
    new_mutex,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::{
        atomic::{Atomic, Relaxed},
        Mutex,
    },
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
    pub(super) split: Attempts,
    pub(super) merge: Attempts,
    punch_refused: Pin<KBox<Mutex<PunchRefused>>>,
}

/// How often a punch could not split a folio, and the last one.
#[derive(Clone, Copy)]
struct PunchRefused(u64, Option<Refused>);

/// How often something was tried, done, and refused for which reason.
pub(super) struct Attempts {
    tried: Atomic<u64>,
    done: Atomic<u64>,
    refused: [Atomic<u64>; Why::ALL.len()],
}

impl Attempts {
    fn new() -> Self {
        Self {
            tried: Atomic::new(0),
            done: Atomic::new(0),
            refused: [const { Atomic::new(0) }; Why::ALL.len()],
        }
    }

    /// It begins.
    pub(super) fn tried(&self) {
        add(&self.tried, 1);
    }

    /// It is done.
    pub(super) fn done(&self) {
        add(&self.done, 1);
    }

    /// It is not.
    pub(super) fn refused(&self, refused: &Refused) {
        let mut counters = self.refused.iter().zip(Why::ALL);
        if let Some((counter, _)) = counters.find(|(_, why)| *why == refused.why) {
            add(counter, 1);
        }
    }

    fn show(&self, what: &str, out: &SeqFile) {
        seq_print!(out, "{what}_tried {}\n", self.tried.load(Relaxed));
        seq_print!(out, "{what}_done {}\n", self.done.load(Relaxed));
        for (counter, why) in self.refused.iter().zip(Why::ALL) {
            let (why, count) = (why.name(), counter.load(Relaxed));
            seq_print!(out, "{what}_failed_{why} {count}\n");
        }
    }
}

impl Stats {
    /// Nothing yet.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            fallbacks: Atomic::new(0),
            faults: [const { Atomic::new(0) }; ORDERS],
            asked: Atomic::new(0),
            freed: Atomic::new(0),
            kept: Atomic::new(0),
            referenced: Atomic::new(0),
            split: Attempts::new(),
            merge: Attempts::new(),
            punch_refused: KBox::pin_init(new_mutex!(PunchRefused(0, None)), GFP_KERNEL)?,
        })
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

    /// A punch could not split a folio.
    pub(super) fn punch_refused(&self, refused: Refused) {
        let mut last = self.punch_refused.lock();
        *last = PunchRefused(last.0 + 1, Some(refused));
    }

    fn show_punch_refused(&self, out: &SeqFile) {
        let PunchRefused(count, last) = *self.punch_refused.lock();
        seq_print!(out, "punch_refused {count}\n");
        let Some(refused) = last else {
            return;
        };
        let record = refused.at.record();
        seq_print!(out, "punch_refused_offset {}\n", record.offset);
        seq_print!(out, "punch_refused_references {}\n", record.references);
        seq_print!(out, "punch_refused_expected {}\n", record.expected);
        seq_print!(out, "punch_refused_mappings {}\n", record.mappings);
        let pinned = u32::from(refused.is_pinned());
        seq_print!(out, "punch_refused_pinned {pinned}\n");
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
            // Nobody reads it any more.
            if fatal_signal_pending() {
                break;
            }
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
        self.show_punch_refused(out);
        self.split.show("split", out);
        self.merge.show("merge", out);
    }
}
