// SPDX-License-Identifier: GPL-2.0
//! What is recorded of one vCPU's exits: for each reason how many, and a histogram of how long from
//! the exit to the next entry.
//!
//! One writer (the CPU that runs the vCPU, in KVM's tracepoints, interrupts off), any number of
//! readers, no lock, no allocation and no atomic read-modify-write: the writer loads and stores.
//! An exit is counted at once and timed at the next entry; one without an entry after it stays
//! without time. Reasons get one of [`SLOTS`] slots as they come; each slot has a sequence number,
//! odd while the writer is in it, by which a reader gets all of a slot of one moment.
//!
//! These are Rust's own atomics, not `kernel::sync::atomic`, whose every load and store is a call
//! of a C function today. On x86-64, the only architecture here, a relaxed load or store is a plain
//! `mov`, stores stay in order, and so do loads: what the fences say, and they cost nothing.

use super::{
    log_linear::{self, BUCKETS},
    reason::{self, Vendor, INDICES},
    times::{Moment, Open, Parts},
};
use core::{
    mem::size_of,
    sync::atomic::{
        fence, AtomicU32, AtomicU64, AtomicU8,
        Ordering::{Acquire, Relaxed, Release},
    },
};

/// How many reasons a vCPU can have apart; later ones share [`Reason::Unknown`].
pub const SLOTS: usize = 80;

/// Indices for codes that have none of their own (see [`reason::index`]): the first codes that come.
const OTHERS: core::ops::Range<usize> = 0x111..0x117;
/// The index of exits whose reason is not known.
const UNKNOWN: usize = 0x117;

/// In [`Record::last`]: that exit has had no entry yet.
const OPEN: u32 = 0x100;
/// In [`Record::last`], with [`OPEN`]: its time is split ([`Record::split`]). The entry's short way
/// finds no slot by such a number.
const SPLIT: u32 = 0x200;
/// In [`Record::last`]: the entry after it is traced ([`Record::trace`]), and takes the long way.
const TRACED: u32 = 0x400;
/// In [`Record::last`]: the slot plus one.
const SLOT: u32 = 0xff;

const _: () =
    assert!(UNKNOWN < INDICES && SLOTS < SLOT as usize && size_of::<Record>() <= 224 << 10);

/// Why a guest exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The code that hardware gave.
    Code(u64),
    /// It could not be told, or there were too many.
    Unknown,
}

/// One writer's counter: loaded and stored, never added to in place.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
}

/// What is known of one reason.
struct Slot {
    /// Odd while the writer changes what is below `count`.
    sequence: AtomicU64,
    /// Exits. Ahead of the histogram by what is not timed.
    count: AtomicU64,
    /// The index of the reason, set before the slot is found.
    index: AtomicU32,
    total: AtomicU64,
    max: AtomicU64,
    /// Of those whose time was split: how many, and their parts.
    split: AtomicU64,
    parts: [AtomicU64; 4],
    buckets: [AtomicU64; BUCKETS],
}

impl Slot {
    /// The writer: an exit took so long, and went so.
    #[inline(always)]
    fn take_time(&self, time: u64, parts: Option<Parts>) {
        bump(&self.sequence, 1);
        fence(Release);
        bump(&self.total, time);
        if time > self.max.load(Relaxed) {
            self.max.store(time, Relaxed);
        }
        if let Some(bucket) = self.buckets.get(log_linear::index(time)) {
            bump(bucket, 1);
        }
        if let Some(Parts {
            total,
            user,
            halted,
            preempted,
        }) = parts
        {
            bump(&self.split, 1);
            for (sum, part) in self.parts.iter().zip([total, user, halted, preempted]) {
                bump(sum, part);
            }
        }
        fence(Release);
        bump(&self.sequence, 1);
    }
}

/// What is recorded of one vCPU. All zero bytes is the state without any exit; 224 KiB at most.
///
/// Its alignment is the largest of what is kept of a vCPU, and so the compiler lays it first: the hot path
/// then need not add to its pointer.
#[repr(align(64))]
pub struct Record {
    /// The slot of the last exit plus one, with [`OPEN`] until the entry after it; 0 before the first.
    last: AtomicU32,
    since: AtomicU64,
    rip: AtomicU64,
    /// Where the time of the last exit goes, while it is open and split.
    open: Open,
    /// How many slots are taken.
    taken: AtomicU32,
    /// For each index its slot plus one, or 0.
    slot_of: [AtomicU8; INDICES],
    /// The codes behind [`OTHERS`], plus one each; 0 while free.
    others: [AtomicU64; OTHERS.end - OTHERS.start],
    slots: [Slot; SLOTS],
}

/// The last exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// Why.
    pub reason: Reason,
    /// When, in cycles.
    pub since: u64,
    /// Where the guest was.
    pub rip: u64,
}

/// Where a record was: the same one later has seen neither exit nor entry in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32, u64);

/// A reader met a writer in the middle too often.
#[derive(Debug)]
pub struct Busy;

/// How often a reader tries: a writer needs a few dozen instructions with interrupts off.
const TRIES: u32 = 1 << 20;

impl Record {
    /// The writer: an exit for the reason of this [`reason::index`].
    #[inline(always)]
    pub fn exit(&self, index: usize, now: u64, rip: u64) {
        let slot = self.slot_of.get(index).map_or(0, |of| of.load(Relaxed));
        match self.slots.get(usize::from(slot).wrapping_sub(1)) {
            Some(known) => self.exit_to(known, slot.into(), now, rip),
            None => self.exit_first(index, now, rip),
        }
    }

    /// The writer: an exit with a code that has no index.
    #[cold]
    #[inline(never)]
    pub fn exit_other(&self, code: u64, now: u64, rip: u64) {
        let mut index = UNKNOWN;
        for (number, other) in self.others.iter().enumerate() {
            let known = other.load(Relaxed);
            if known == 0 {
                // Never a code of all ones: that has an index.
                other.store(code.wrapping_add(1), Relaxed);
            }
            if known == 0 || known == code.wrapping_add(1) {
                index = OTHERS.start + number;
                break;
            }
        }
        self.exit(index, now, rip);
    }

    /// The writer: an exit whose reason and place cannot be told.
    #[cold]
    #[inline(never)]
    pub fn exit_unknown(&self, now: u64) {
        self.exit(UNKNOWN, now, 0);
    }

    /// The writer: an exit for a reason that has no slot yet.
    #[cold]
    #[inline(never)]
    fn exit_first(&self, index: usize, now: u64, rip: u64) {
        let slot = self.take(index);
        if let Some(taken) = self.slots.get(usize::from(slot).wrapping_sub(1)) {
            self.exit_to(taken, slot.into(), now, rip);
        }
    }

    /// The writer: an exit for `slot`, whose number plus one is `number`.
    #[inline(always)]
    fn exit_to(&self, slot: &Slot, number: u32, now: u64, rip: u64) {
        bump(&slot.count, 1);
        self.rip.store(rip, Relaxed);
        self.since.store(now, Relaxed);
        self.last.store(number | OPEN, Relaxed);
    }

    /// The writer: a slot for an index that has none yet, plus one. The last slot is for what is
    /// unknown or too much.
    fn take(&self, index: usize) -> u8 {
        let taken = self.taken.load(Relaxed) as usize;
        let (number, index) = if index >= UNKNOWN || taken >= SLOTS - 1 {
            (SLOTS - 1, UNKNOWN)
        } else {
            self.taken.store(taken as u32 + 1, Relaxed);
            (taken, index)
        };
        if let (Some(slot), Some(of)) = (self.slots.get(number), self.slot_of.get(index)) {
            slot.index.store(index as u32, Relaxed);
            of.store(number as u8 + 1, Release);
        }
        number as u8 + 1
    }

    /// The writer: the guest goes on; the time of the last exit is over. `other` is to be done if
    /// there is none, or if its time is split.
    #[inline(always)]
    pub fn entry(&self, now: u64, other: impl FnOnce()) {
        let last = self.last.load(Relaxed);
        let Some(slot) = self
            .slots
            .get((last as usize).wrapping_sub(OPEN as usize + 1))
        else {
            return other();
        };
        self.last.store(last & !OPEN, Relaxed);
        // CPUs whose counters differ could give a time below nothing.
        let time = now.saturating_sub(self.since.load(Relaxed));
        slot.take_time(time, None);
    }

    /// The writer: the time of the exit that was just written down is to be split, in this turn of
    /// splitting.
    pub fn split(&self, at: Moment, turn: u64) {
        self.open.begin(at, turn);
        self.last
            .store(self.last.load(Relaxed) | OPEN | SPLIT, Relaxed);
    }

    /// The writer: the entry after the exit that was just written down is to be traced.
    pub fn trace(&self) {
        self.last.store(self.last.load(Relaxed) | TRACED, Relaxed);
    }

    /// The writer, at an entry that took the long way: whether it is to be traced, and how long it was
    /// since the exit, and where that was. From here on it is an entry as any other.
    pub fn traced(&self, now: u64) -> Option<(u64, u64)> {
        let last = self.last.load(Relaxed);
        if last & TRACED == 0 {
            return None;
        }
        self.last.store(last & !TRACED, Relaxed);
        let time = now.saturating_sub(self.since.load(Relaxed));
        Some((time, self.rip.load(Relaxed)))
    }

    /// The last exit's slot, while it is open and split.
    fn splitting(&self) -> Option<&Slot> {
        let last = self.last.load(Relaxed) & !TRACED;
        let slot = last.checked_sub(OPEN | SPLIT)?;
        self.slots.get((slot as usize).wrapping_sub(1))
    }

    /// The writer: the vCPU has halted for so long.
    pub fn halted(&self, ns: u64, at: Moment) {
        if self.splitting().is_some() {
            self.open.halted(ns, at);
        }
    }

    /// The writer, if it is this vCPU that the task ran: it goes to user space. Whether it is this one.
    pub fn to_user(&self, now: u64, at: Moment) -> bool {
        self.splitting().is_some() && self.open.to_user(now, at)
    }

    /// The writer: the guest goes on; if the last exit's time is split, it is over. In another turn than
    /// it began in not all of its pauses were told: then it is timed, but not split.
    pub fn entry_split(&self, now: u64, at: Moment, turn: u64, khz: u32) {
        if let Some(slot) = self.splitting() {
            self.lose_entry();
            let time = now.saturating_sub(self.since.load(Relaxed));
            let parts = self.open.end(now, time, at, khz);
            slot.take_time(time, self.open.is_of(turn).then_some(parts));
        }
    }

    /// In the writer's stead, which does not run: the entry after the last exit will not be seen.
    pub fn lose_entry(&self) {
        self.last.store(self.last.load(Relaxed) & SLOT, Relaxed);
    }

    /// A reader: what changes with each exit and entry.
    pub fn mark(&self) -> Mark {
        // What is read between two of these is.
        fence(Acquire);
        let mark = Mark(self.last.load(Acquire), self.since.load(Acquire));
        fence(Acquire);
        mark
    }

    /// A reader: the last exit, if there was one; of one moment, unless the writer stands still between the
    /// stores of an exit.
    pub fn last(&self, vendor: Vendor) -> Option<Last> {
        let read = || {
            let slot = self.last.load(Acquire) & SLOT;
            let read = (slot, self.since.load(Acquire), self.rip.load(Acquire));
            fence(Acquire);
            read
        };
        let mut seen = read();
        // Exits are a thousand times as far apart.
        for _ in 0..100 {
            let before = core::mem::replace(&mut seen, read());
            if seen == before {
                break;
            }
        }
        let (slot, since, rip) = seen;
        let slot = self.slots.get((slot as usize).wrapping_sub(1))?;
        Some(Last {
            reason: self.reason(vendor, slot),
            since,
            rip,
        })
    }

    /// The writer: why the last exit was, if there was one.
    pub fn last_reason(&self, vendor: Vendor) -> Option<Reason> {
        let number = (self.last.load(Relaxed) & SLOT) as usize;
        let slot = self.slots.get(number.wrapping_sub(1))?;
        Some(self.reason(vendor, slot))
    }

    fn reason(&self, vendor: Vendor, slot: &Slot) -> Reason {
        let index = slot.index.load(Relaxed) as usize;
        if OTHERS.contains(&index) {
            match self.others.get(index - OTHERS.start) {
                Some(code) => Reason::Code(code.load(Relaxed).wrapping_sub(1)),
                None => Reason::Unknown,
            }
        } else if index == UNKNOWN {
            Reason::Unknown
        } else {
            Reason::Code(reason::code(vendor, index))
        }
    }

    /// A reader: fill `line` with what is known of a slot, all of one moment. Whether the slot has
    /// had an exit. `wait` is called between tries.
    pub fn read(
        &self,
        vendor: Vendor,
        slot: usize,
        line: &mut Line,
        mut wait: impl FnMut(),
    ) -> Result<bool, Busy> {
        let Some(slot) = self.slots.get(slot) else {
            return Ok(false);
        };
        for _ in 0..TRIES {
            let before = slot.sequence.load(Acquire);
            if before & 1 == 0 {
                line.count = slot.count.load(Relaxed);
                line.total = slot.total.load(Relaxed);
                line.max = slot.max.load(Relaxed);
                line.split = slot.split.load(Relaxed);
                let [total, user, halted, preempted] =
                    slot.parts.each_ref().map(|part| part.load(Relaxed));
                line.parts = Parts {
                    total,
                    user,
                    halted,
                    preempted,
                };
                for (to, from) in line.buckets.iter_mut().zip(&slot.buckets) {
                    *to = from.load(Relaxed);
                }
                fence(Acquire);
                if slot.sequence.load(Relaxed) == before {
                    line.reason = self.reason(vendor, slot);
                    return Ok(line.count > 0);
                }
            }
            wait();
        }
        Err(Busy)
    }
}

/// What is known of one reason at one moment, of one vCPU or of several together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Why the guest exited.
    pub reason: Reason,
    /// How often.
    pub count: u64,
    /// From exit to entry, all together, in cycles.
    pub total: u64,
    /// The longest, in cycles.
    pub max: u64,
    /// Of how many the time was split.
    pub split: u64,
    /// Where it went, of those together.
    pub parts: Parts,
    /// How many of each bucket of [`log_linear`]; the sum is at most `count`.
    pub buckets: [u64; BUCKETS],
}

impl Line {
    /// Nothing yet.
    pub const EMPTY: Line = Line {
        reason: Reason::Unknown,
        count: 0,
        total: 0,
        max: 0,
        split: 0,
        parts: Parts {
            total: 0,
            user: 0,
            halted: 0,
            preempted: 0,
        },
        buckets: [0; BUCKETS],
    };

    /// Take in what another vCPU has for the same reason.
    pub fn add(&mut self, other: &Line) {
        self.count += other.count;
        // Years of many vCPUs that wait are more than 64 bits of cycles.
        self.total = self.total.saturating_add(other.total);
        self.max = self.max.max(other.max);
        self.split += other.split;
        self.parts.add(&other.parts);
        for (to, from) in self.buckets.iter_mut().zip(&other.buckets) {
            *to += from;
        }
    }

    /// How many were timed.
    pub fn timed(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The average time of those that were timed.
    pub fn average(&self) -> u64 {
        self.total.checked_div(self.timed()).unwrap_or(0)
    }

    /// The time at so many thousandths.
    pub fn percentile(&self, per_mille: u64) -> u64 {
        log_linear::percentile(&self.buckets, per_mille, self.max)
    }
}

#[cfg(test)]
mod tests;
