// SPDX-License-Identifier: GPL-2.0
//! The table `faults`: of what kind a VM's page faults are, in which memslots, and where most.

use super::vm::{Recording, Vcpu, Vm};
use crate::{
    pure::{
        faults::{Class, Slot, CLASSES, RANGE_SHIFT},
        sketch::{self, Hits, Snapshot},
        sort,
    },
    wrap::{debugfs::Table, task},
};
use core::cmp::Reverse;
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// How many of the hottest ranges are shown.
const RANGES: usize = 32;

/// A class by the names of its bits.
pub(super) struct ClassName(pub(super) Class);

impl fmt::Display for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        self.0.names().try_for_each(|name| {
            f.write_str(comma)?;
            comma = ",";
            f.write_str(name)
        })
    }
}

struct SlotName(Slot);

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Slot::Number(slot) => write!(f, "{}:{}", slot >> 16, slot & 0xffff),
            Slot::None => f.write_str("none"),
            Slot::Other => f.write_str("other"),
            Slot::Unknown => f.write_str("-"),
        }
    }
}

/// What all vCPUs say together, the most first.
pub(super) struct Sums {
    pub(super) classes: KVec<(Class, u64)>,
    pub(super) slots: KVVec<(Slot, u64)>,
    ranges: KVVec<Hits>,
}

impl Sums {
    /// What was recorded.
    pub(super) fn of(recordings: &[Recording]) -> Result<Self> {
        let mut classes: KVec<(Class, u64)> = KVec::new();
        let mut slots: KVVec<(Slot, u64)> = KVVec::new();
        let mut ranges: KVVec<Hits> = KVVec::new();
        for number in 0..CLASSES {
            classes.push((Class::of_number(number), 0), GFP_KERNEL)?;
        }
        let mut snapshot = KBox::new(Snapshot::EMPTY, GFP_KERNEL)?;
        let mut least = 0;
        for (.., events) in recordings.iter().filter_map(Recording::hot) {
            for (class, sum) in &mut classes {
                *sum += events.faults.class(*class);
            }
            for slot in events.faults.slots() {
                slots.push(slot, GFP_KERNEL)?;
            }
            // Another CPU writes for some hundred nanoseconds at a time.
            let read = events
                .faults
                .ranges()
                .read(&mut snapshot, core::hint::spin_loop);
            read.map_err(|_| EAGAIN)?;
            for &hits in snapshot.hits() {
                ranges.push(sketch::less(hits, snapshot.least()), GFP_KERNEL)?;
            }
            least += snapshot.least();
            task::give_way();
        }
        let length = sort::merge_by_key(&mut slots, |&(slot, _)| slot, |sum, slot| sum.1 += slot.1);
        slots.truncate(length);
        sort::by_key(&mut classes, |&(class, count)| {
            (Reverse(count), class.number())
        });
        sort::by_key(&mut slots, |&(slot, count)| (Reverse(count), slot));
        let length = sketch::merge(&mut ranges, least);
        ranges.truncate(length.min(RANGES));
        Ok(Self {
            classes,
            slots,
            ranges,
        })
    }
}

/// The table.
pub(super) fn show(out: &SeqFile, sums: &Sums) {
    seq_print!(out, "kind which count error\n");
    for &(class, count) in sums.classes.iter().filter(|&&(_, count)| count > 0) {
        seq_print!(out, "class {} {count} 0\n", ClassName(class));
    }
    for &(slot, count) in &sums.slots {
        seq_print!(out, "memslot {} {count} 0\n", SlotName(slot));
    }
    for Hits { key, count, error } in &sums.ranges {
        let start = key << RANGE_SHIFT;
        seq_print!(out, "range {start:#x} {count} {error}\n");
    }
}

/// `vms/*/faults`
pub(super) struct OfVm(pub(super) Arc<Vm>);

impl Table for OfVm {
    fn show(&self, out: &SeqFile) -> Result {
        show(out, &Sums::of(&self.0.recordings()?)?);
        Ok(())
    }
}

/// `vms/*/vcpu*/faults`
pub(super) struct OfVcpu(pub(super) Arc<Vcpu>);

impl Table for OfVcpu {
    fn show(&self, out: &SeqFile) -> Result {
        show(out, &Sums::of(&[self.0.recording()])?);
        Ok(())
    }
}
