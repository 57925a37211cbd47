// SPDX-License-Identifier: GPL-2.0
//! The table `vcpus`: what each vCPU of a VM is doing now.
//!
//! It takes no lock that a vCPU or its VMM could hold for long, so it answers for a guest that hangs
//! and for a VMM that hangs.

use super::{
    exits,
    vm::{Vcpu, Vm},
};
use crate::{
    pure::cycles,
    wrap::{
        debugfs::Table,
        kvm::{Sample, VcpuTask},
        names, tsc,
    },
};
use kernel::{
    fmt::{self, Write},
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// What a vCPU is doing, by what KVM says of it.
fn state(sample: &Sample) -> &'static str {
    match sample {
        Sample { blocking: true, .. } => "halted",
        Sample { in_guest: true, .. } => "guest",
        Sample {
            in_kernel: true, ..
        } => "kernel",
        _ => "user",
    }
}

/// The names of the bits that are set, with commas.
struct Requests(u64);

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for bit in (0..64).filter(|bit| self.0 >> bit & 1 == 1) {
            f.write_str(comma)?;
            match names::request(bit) {
                Some(name) => fmt::Display::fmt(name, f)?,
                None => write!(f, "bit{bit}")?,
            }
            comma = ",";
        }
        f.write_str(if comma.is_empty() { "-" } else { "" })
    }
}

/// A task: its number and name, in which what would break a table's columns is `_`.
struct Task(Option<VcpuTask>);

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(task) = &self.0 else {
            return f.write_char('-');
        };
        write!(f, "{}:", task.pid)?;
        task.comm().iter().try_for_each(|&byte| {
            f.write_char(if byte.is_ascii_graphic() {
                byte.into()
            } else {
                '_'
            })
        })
    }
}

/// `vms/*/vcpus`
pub(super) struct Vcpus(pub(super) Arc<Vm>);

impl Table for Vcpus {
    fn show(&self, out: &SeqFile) -> Result {
        seq_print!(out, "vcpu task state last_exit ago_ns rip requests vm\n");
        for vcpu in &self.0.vcpus()? {
            self.line(out, vcpu);
        }
        Ok(())
    }
}

impl Vcpus {
    fn line(&self, out: &SeqFile, vcpu: &Vcpu) {
        let gate = &self.0.gate;
        // With interrupts off, so that all of it is of one moment.
        let sampled = gate.enter_irq_off(|vm| {
            let flags = match (vm.bugged(), vm.dead()) {
                (true, true) => "bugged,dead",
                (true, false) => "bugged",
                (false, true) => "dead",
                (false, false) => "-",
            };
            vm.vcpu(vcpu.number)
                .map(|vcpu| (vcpu.sample(), flags, tsc::now()))
        });
        let Some((sample, flags, now)) = sampled.flatten() else {
            return;
        };
        let task = gate.enter(|vm| vm.vcpu(vcpu.number).and_then(|vcpu| vcpu.task()));
        let (number, state) = (vcpu.number, state(&sample));
        let (task, requests) = (Task(task.flatten()), Requests(sample.requests));
        match vcpu.last() {
            Some((vendor, last)) => {
                let reason = exits::name(vendor, last.reason);
                let ago = cycles::to_ns(now.saturating_sub(last.since), tsc::khz());
                let rip = last.rip;
                seq_print!(
                    out,
                    "{number} {task} {state} {reason} {ago} {rip:#x} {requests} {flags}\n"
                );
            }
            None => seq_print!(out, "{number} {task} {state} - - - {requests} {flags}\n"),
        }
    }
}
