// SPDX-License-Identifier: GPL-2.0
//! What is recorded of one vCPU's accesses to MSRs that made it exit.
//!
//! One writer, which stays on its CPU; readers get each number as it is when they read it. Whatever
//! has no place in the table is counted together.

use super::keyed::Keys;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many MSRs a vCPU can have apart, at most.
pub const ENTRIES: usize = 256;

/// An access, as KVM tells it.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Whether it was a write.
    pub write: bool,
    /// Which MSR.
    pub index: u32,
    /// What was written.
    pub value: u64,
    /// Whether the guest got #GP for it.
    pub fault: bool,
}

#[derive(Debug)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    faults: AtomicU64,
    value: AtomicU64,
    /// When that was written; 0: never.
    when: AtomicU64,
}

/// What is recorded. All zero bytes is the state without any access.
pub struct Msrs {
    keys: Keys<ENTRIES>,
    counters: [Counters; ENTRIES],
    other: Counters,
}

/// What is known of an MSR, of one vCPU or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Which; `None`: all that had no place.
    pub index: Option<u32>,
    /// How often it was read, faults included.
    pub reads: u64,
    /// How often it was written, faults included.
    pub writes: u64,
    /// How often the guest got #GP for it.
    pub faults: u64,
    /// When it was written last without a fault, and what.
    pub last: Option<(u64, u64)>,
}

fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

impl Msrs {
    /// The writer: the guest has accessed an MSR.
    pub fn access(&self, access: Access, now: u64) {
        let place = self.keys.place(access.index);
        let counters = place
            .and_then(|place| self.counters.get(place))
            .unwrap_or(&self.other);
        bump(if access.write {
            &counters.writes
        } else {
            &counters.reads
        });
        if access.fault {
            bump(&counters.faults);
        } else if access.write {
            counters.value.store(access.value, Relaxed);
            counters.when.store(now.max(1), Relaxed);
        }
    }

    /// A reader: what is known of each MSR.
    pub fn lines(&self) -> impl Iterator<Item = Line> + '_ {
        let known = self
            .keys
            .all()
            .filter_map(|(index, place)| Some(self.counters.get(place)?.line(Some(index))));
        // What has no place is of many MSRs: it has no last value.
        let other = Line {
            last: None,
            ..self.other.line(None)
        };
        known.chain((other != Line::default()).then_some(other))
    }
}

impl Counters {
    fn line(&self, index: Option<u32>) -> Line {
        let when = self.when.load(Relaxed);
        Line {
            index,
            reads: self.reads.load(Relaxed),
            writes: self.writes.load(Relaxed),
            faults: self.faults.load(Relaxed),
            last: (when > 0).then(|| (when, self.value.load(Relaxed))),
        }
    }
}

impl Line {
    /// Take in what another vCPU has for the same MSR.
    pub fn add(&mut self, other: &Line) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.faults += other.faults;
        self.last = self.last.max(other.last);
    }

    /// What a table is sorted by: the most accessed first, all others last.
    pub fn order(&self) -> impl Ord {
        (
            self.index.is_none(),
            core::cmp::Reverse(self.reads.saturating_add(self.writes)),
            self.index,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn msrs() -> Box<Msrs> {
        let counters = || Counters {
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            value: AtomicU64::new(0),
            when: AtomicU64::new(0),
        };
        Box::new(Msrs {
            keys: Keys::zeroed(),
            counters: core::array::from_fn(|_| counters()),
            other: counters(),
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_list(accesses in prop::collection::vec(
            (any::<bool>(), prop_oneof![0..40u32, 0xc000_0080..0xc000_0090u32], any::<u64>(), any::<bool>()), 0..300)
        ) {
            let msrs = msrs();
            let mut plain: BTreeMap<u32, Line> = BTreeMap::new();
            for (now, (write, index, value, fault)) in (1..).zip(accesses) {
                msrs.access(Access { write, index, value, fault }, now);
                let line = plain.entry(index).or_default();
                line.index = Some(index);
                line.reads += u64::from(!write);
                line.writes += u64::from(write);
                line.faults += u64::from(fault);
                if write && !fault {
                    line.last = Some((now, value));
                }
            }
            let mut found: Vec<_> = msrs.lines().collect();
            found.sort_unstable_by_key(|line| line.index);
            prop_assert_eq!(found, plain.into_values().collect::<Vec<_>>());
        }
    }

    /// However many there are, none is lost.
    #[test]
    fn a_hostile_walk_is_counted() {
        let msrs = msrs();
        for index in 0..1 << 16 {
            msrs.access(
                Access {
                    write: index % 2 == 0,
                    index,
                    value: 1,
                    fault: index % 4 == 0,
                },
                5,
            );
        }
        let mut sum = Line::default();
        let mut lines: Vec<_> = msrs.lines().collect();
        lines.iter().for_each(|line| sum.add(line));
        assert_eq!(
            (sum.reads, sum.writes, sum.faults),
            (1 << 15, 1 << 15, 1 << 14)
        );
        assert!(lines.len() > ENTRIES / 2 && lines.len() <= ENTRIES + 1);
        lines.sort_unstable_by_key(Line::order);
        let last = lines.last().unwrap();
        assert_eq!((last.index, last.last), (None, None));
    }
}
