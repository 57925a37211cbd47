// SPDX-License-Identifier: GPL-2.0
//! `KVMATE_GET_VM_STATS`: a VM's statistics by a descriptor, in the layout of `KVM_GET_STATS_FD`
//! ([`crate::pure::stats`]).
//!
//! Owner: the descriptor's file, which holds the module and what kvmate keeps of the VM, never the VM;
//! when that has ended all reading is refused, and what is kept is little. Context: the reader's, which
//! may sleep; locks as in [`super::reading`]. Nothing of it is shared by readers but what never changes.

use super::{
    folder,
    reading::{Reading, Taken},
    vm::Vm,
    Watch,
};
use crate::{
    pure::{
        cycles,
        exits::Reason,
        faults::Slot,
        histogram::Histogram,
        reason::{self, Vendor},
        stats::{self, Values},
    },
    wrap::{
        anon_file::{self, Content},
        files, names, tsc, uabi,
    },
};
use kernel::{iov::IovIterDest, prelude::*, str::CString, sync::Arc};

/// Open, and give the descriptor. The errors are those that `uapi/kvmate.h` lists.
pub(crate) fn open(watch: &Watch, asked: &uabi::VmStats) -> Result<u32> {
    if asked.flags != 0 || asked.reserved != [0; 3] {
        return Err(EINVAL);
    }
    if !watch.shows_vms() {
        return Err(EOPNOTSUPP);
    }
    let file = files::of_descriptor(asked.vm_fd)?;
    let vm = watch.vm_of(files::vm_of(&file).ok_or(EBADFD)?)?;
    anon_file::install_content(c"[kvmate-vm-stats]", || Stats::new(vm))
}

/// What such a descriptor stands for.
struct Stats {
    vm: Arc<Vm>,
    /// The codes of the reasons that have a descriptor, in their order.
    reasons: KVec<u64>,
    /// All that never changes: header, id, descriptors.
    head: KVec<u8>,
}

impl Stats {
    fn new(vm: Arc<Vm>) -> Result<Self> {
        let mut reasons = KVec::new();
        let mut texts = KVec::new();
        for (code, name) in names::exits(names::vendor()) {
            reasons.push(code, GFP_KERNEL)?;
            texts.push(name.to_bytes(), GFP_KERNEL)?;
        }
        let id = CString::try_from_fmt(fmt!("kvmate-{}", folder::name_of(&vm).as_c_str()))?;
        let mut head = KVec::with_capacity(stats::head_size(reasons.len()), GFP_KERNEL)?;
        stats::head(id.to_bytes(), texts.iter().copied(), |byte| {
            head.push(byte, GFP_KERNEL)
        })?;
        Ok(Self { vm, reasons, head })
    }

    /// The data now.
    fn data(&self) -> Result<KVec<u8>> {
        let reading = Reading::of(&self.vm, &Taken::of(&self.vm)?)?;
        let khz = tsc::khz();
        let (mut values, mut histogram) = (values(&reading, khz), Histogram::EMPTY);
        let mut by_reason = KVec::from_elem(0, self.reasons.len(), GFP_KERNEL)?;
        for line in &reading.exits.lines {
            histogram.add(&line.buckets, khz);
            let place = self.place(reading.exits.vendor, line.reason);
            match place.and_then(|place| by_reason.get_mut(place)) {
                Some(count) => *count += line.count,
                None => values.exits_other += line.count,
            }
        }
        values.exit_timed = histogram.sum();
        let mut data = KVec::with_capacity(stats::data_size(self.reasons.len()), GFP_KERNEL)?;
        stats::data(&values, &histogram, by_reason.iter().copied(), |number| {
            data.extend_from_slice(&number.to_ne_bytes(), GFP_KERNEL)
        })?;
        Ok(data)
    }

    /// Where a reason's number stands, if it has one of its own.
    fn place(&self, vendor: Vendor, reason: Reason) -> Option<usize> {
        let Reason::Code(code) = reason else {
            return None;
        };
        let (named, failed) = reason::named(vendor, code);
        let mut reasons = self.reasons.iter();
        reasons.position(|&code| code == named && !failed)
    }
}

/// What is named, but for what is told apart by reason.
fn values(reading: &Reading, khz: u32) -> Values {
    let mut values = Values {
        vcpus: reading.vcpus as u64,
        exits: reading.exits.unrecorded,
        exits_unrecorded: reading.exits.unrecorded,
        irqs_hidden: reading.irqs.hidden.into(),
        irqs_accepted_hidden: reading.irqs.accepts_hidden.into(),
        ..Values::default()
    };
    let add = |sum: &mut u64, ns: u64| *sum = sum.saturating_add(ns);
    for line in &reading.exits.lines {
        values.exits += line.count;
        add(&mut values.exit_ns, cycles::to_ns(line.total, khz));
        values.exit_max_ns = values.exit_max_ns.max(cycles::to_ns(line.max, khz));
        let [total, user, halted, preempted, kernel] = line.parts.ns(khz);
        values.times_exits += line.split;
        add(&mut values.times_ns, total);
        add(&mut values.times_user_ns, user);
        add(&mut values.times_halted_ns, halted);
        add(&mut values.times_preempted_ns, preempted);
        add(&mut values.times_kernel_ns, kernel);
    }
    for line in &reading.msrs {
        values.msr_reads += line.reads;
        values.msr_writes += line.writes;
        values.msr_faults += line.faults;
    }
    let faults = |name: Option<&str>| {
        let classes = reading.faults.classes.iter();
        let named = classes.filter(|(class, _)| name.is_none_or(|n| class.names().any(|m| m == n)));
        named.map(|(_, count)| count).sum()
    };
    values.page_faults = faults(None);
    values.page_faults_write = faults(Some("write"));
    values.page_faults_exec = faults(Some("exec"));
    values.page_faults_present = faults(Some("present"));
    values.page_faults_user = faults(Some("user"));
    values.page_faults_walk = faults(Some("walk"));
    let nowhere = |(slot, count): &(Slot, u64)| (*slot == Slot::None).then_some(*count);
    values.page_faults_mmio = reading.faults.slots.iter().filter_map(nowhere).sum();
    for [injected, accepted, ended] in &reading.irqs.vectors {
        values.irqs_injected += injected;
        values.irqs_accepted += accepted;
        values.irqs_eoi += ended;
    }
    values
}

impl Content for Stats {
    fn size(&self) -> i64 {
        (self.head.len() + stats::data_size(self.reasons.len())) as i64
    }

    /// `ENODEV`: the VM has ended.
    fn read(&self, to: &mut IovIterDest<'_>, position: &mut i64) -> Result<usize> {
        if self.vm.ended() {
            return Err(ENODEV);
        }
        let from = usize::try_from(*position).map_err(|_| EINVAL)?;
        let there = (self.size() as usize).saturating_sub(from).min(to.len());
        let mut data = KVec::new();
        // All that may fail before anything is written.
        if there > 0 && from + there > self.head.len() {
            data = self.data()?;
            // Its vCPUs may have gone before they were read.
            if self.vm.ended() {
                return Err(ENODEV);
            }
        }
        let in_data = from.saturating_sub(self.head.len());
        let mut read = 0;
        for part in [self.head.get(from..), data.get(in_data..)] {
            let part = part.unwrap_or_default();
            let copied = to.copy_to_iter(part);
            read += copied;
            if copied < part.len() {
                break;
            }
        }
        if read == 0 && there > 0 {
            return Err(EFAULT);
        }
        *position += read as i64;
        Ok(read)
    }
}
