// SPDX-License-Identifier: GPL-2.0
//! `snapshot`: all that is known of a VM, put together by one read, for a guest that hangs.
//!
//! First everything is taken up, then it is told: what is recorded ([`super::reading`]), what each vCPU does
//! and waits for ([`super::vcpus`]), and where its task stands ([`crate::wrap::task`]). If a vCPU has exited
//! or entered meanwhile it is taken up again, a few times at most; [`TRIES`] bounds that, so a busy guest
//! gets what was taken up last, and is told how many moved.
//!
//! Context: a reader of the file, which may sleep for memory. Nothing of the VM is waited for: gates are
//! held for moments, as for `vcpus`, and tasks are looked at without stopping them. Once the VM has ended
//! nothing is told, rather than a part.

use super::{
    exits_hist, faults, folder, msrs,
    reading::{Reading, Taken},
    times,
    vcpus::{self, Seen},
    vm::Vm,
};
use crate::{
    poke::{Bindings, Irqfds, LatencyTable},
    pure::cycles,
    wrap::{
        debugfs::Table,
        kvm::Pending,
        names,
        task::{Doing, Stack},
        tsc, uabi,
    },
};
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
    time::{ClockSource, Monotonic},
};

/// How often it is taken up at most.
const TRIES: u32 = 5;

/// What was taken up, of one vCPU.
struct Vcpu {
    seen: Seen,
    doing: Option<(Doing, Stack)>,
}

/// What was taken up, of all.
struct All {
    vcpus: KVVec<Vcpu>,
    reading: Reading,
    /// How many of the vCPUs went on meanwhile.
    moved: usize,
    /// When it was begun and over, in cycles.
    time: [u64; 2],
}

impl All {
    /// `EIO`: the VM has ended.
    fn of(vm: &Vm) -> Result<Self> {
        let begun = tsc::now();
        let taken = Taken::of(vm)?;
        let mut vcpus = KVVec::with_capacity(taken.vcpus.len(), GFP_KERNEL)?;
        for vcpu in &taken.vcpus {
            let seen = Seen::of(vm, vcpu).ok_or(EIO)?;
            let doing = seen.runner.as_ref().map(|task| task.stack()).transpose()?;
            vcpus.push(Vcpu { seen, doing }, GFP_KERNEL)?;
        }
        let reading = Reading::of(vm, &taken)?;
        let moved = taken.moved();
        if vm.ended() {
            return Err(EIO);
        }
        Ok(Self {
            vcpus,
            reading,
            moved,
            time: [begun, tsc::now()],
        })
    }
}

/// What is put in, as far as KVM tells.
struct Waiting<'a>(&'a Pending);

impl fmt::Display for Waiting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pending {
            mp_state,
            interrupt,
            exception,
            nmis,
            smi,
            unhalted,
        } = self.0;
        match names::mp_state(*mp_state) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "{mp_state}")?,
        }
        for vector in [interrupt, exception] {
            match vector {
                Some(vector) => write!(f, " {vector:#x}")?,
                None => f.write_str(" -")?,
            }
        }
        write!(f, " {nmis} {} {}", u8::from(*smi), u8::from(*unhalted))
    }
}

/// The parts that are of vCPUs.
fn show_vcpus(out: &SeqFile, vcpus: &[Vcpu]) {
    seq_print!(out, "\n[vcpus]\n{}\n", vcpus::COLUMNS);
    for Vcpu { seen, .. } in vcpus {
        seq_print!(out, "{seen}\n");
    }
    seq_print!(
        out,
        "\n[pending]\n\
         # not what only a LAPIC, IOAPIC or PIC holds (IRR, ISR): those are private to KVM\n\
         vcpu mp_state interrupt exception nmis smi unhalted\n"
    );
    for Vcpu { seen, .. } in vcpus {
        seq_print!(out, "{} {}\n", seen.number, Waiting(&seen.pending));
    }
    seq_print!(out, "\n[tasks]\nvcpu task state frames\n");
    for Vcpu { seen, doing } in vcpus {
        let (number, task) = (seen.number, &seen.task);
        match doing {
            Some((Doing { state, .. }, Stack::Blocked(frames))) => {
                seq_print!(out, "{number} {task} {state} {}\n", frames.len());
            }
            Some((Doing { state, .. }, Stack::Running)) => {
                seq_print!(out, "{number} {task} {state} -\n");
            }
            None => seq_print!(out, "{number} {task} - -\n"),
        }
    }
    seq_print!(out, "\n[stacks]\nvcpu frame function\n");
    for Vcpu { seen, doing } in vcpus {
        if let Some((_, Stack::Blocked(frames))) = doing {
            for (depth, frame) in frames.iter().enumerate() {
                seq_print!(out, "{} {depth} {frame}\n", seen.number);
            }
        }
    }
}

/// The tables of what was recorded.
fn show_reading(out: &SeqFile, reading: &Reading) -> Result {
    seq_print!(out, "\n[exits]\n");
    reading.exits.show(out)?;
    seq_print!(out, "\n[exits_hist]\n");
    exits_hist::show(&reading.exits, out)?;
    seq_print!(out, "\n[times]\n");
    times::show(&reading.exits, out)?;
    seq_print!(out, "\n[msrs]\n");
    msrs::show(out, &reading.msrs);
    seq_print!(out, "\n[faults]\n");
    faults::show(out, &reading.faults);
    seq_print!(out, "\n[irqs]\n");
    reading.irqs.show(out);
    Ok(())
}

/// `vms/*/snapshot`
pub(super) struct Snapshot(pub(super) Arc<Vm>);

impl Table for Snapshot {
    fn show(&self, out: &SeqFile) -> Result {
        let vm = &self.0;
        let mut tries = 1;
        let mut all = All::of(vm)?;
        while all.moved > 0 && tries < TRIES {
            all = All::of(vm)?;
            tries += 1;
        }
        let [begun, over] = all.time;
        let took = cycles::to_ns(over.saturating_sub(begun), tsc::khz());
        let version = CStr::from_bytes_with_nul(uabi::VERSION).unwrap_or(c"");
        let (name, moved) = (folder::name_of(vm), all.moved);
        let at = Monotonic::ktime_get();
        seq_print!(
            out,
            "[snapshot]\nvm kvmate monotonic_ns took_ns tries moved\n"
        );
        seq_print!(
            out,
            "{} {version} {at} {took} {tries} {moved}\n",
            name.as_c_str()
        );
        show_vcpus(out, &all.vcpus);
        show_reading(out, &all.reading)?;
        seq_print!(out, "\n[irqfds]\n");
        Irqfds(vm.clone()).show(out)?;
        seq_print!(out, "\n[bindings]\n");
        Bindings(vm.clone()).show(out)?;
        seq_print!(out, "\n[latency]\n");
        LatencyTable(vm.clone()).show(out)?;
        // Behind a gate that closed meanwhile a table has nothing: that would be a part.
        if vm.ended() {
            return Err(EIO);
        }
        Ok(())
    }

    fn room(&self) -> Option<usize> {
        const PAGES: usize = 32 << 10;
        const EACH: usize = 2 << 10;
        const MOST: usize = 1 << 20;
        let vcpus = self.0.vcpus.lock().len();
        Some((PAGES + EACH * vcpus).min(MOST))
    }
}
