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
    pure::{cycles, exits::Last, reason::Vendor},
    wrap::{
        debugfs::Table,
        kvm::{Pending, Sample},
        names,
        task::TaskRef,
        tsc,
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

/// A task as it was when it was looked at: its number and name, in which what would break a table's
/// columns is `_`.
pub(super) struct Task(Option<(i32, [u8; 16])>);

impl Task {
    fn of(task: Option<&TaskRef>) -> Self {
        // Without a number it has ended.
        let told = task.map(|task| (task.number(), task.comm()));
        Self(told.filter(|&(number, _)| number != 0))
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((number, comm)) = &self.0 else {
            return f.write_char('-');
        };
        write!(f, "{number}:")?;
        comm.iter()
            .take_while(|&&byte| byte != 0)
            .try_for_each(|&byte| {
                f.write_char(if byte.is_ascii_graphic() {
                    byte.into()
                } else {
                    '_'
                })
            })
    }
}

/// What a vCPU was doing when it was looked at: a line of the table.
pub(super) struct Seen {
    pub(super) number: i32,
    pub(super) task: Task,
    pub(super) runner: Option<TaskRef>,
    pub(super) pending: Pending,
    sample: Sample,
    vm: &'static str,
    last: Option<(Vendor, Last)>,
    now: u64,
}

impl Seen {
    /// Look at it. `None`: the VM has ended.
    pub(super) fn of(vm: &Vm, vcpu: &Vcpu) -> Option<Self> {
        let number = vcpu.number;
        // With interrupts off, so that all of it is of one moment.
        let sampled = vm.gate.enter_irq_off(|vm| {
            let flags = match (vm.bugged(), vm.dead()) {
                (true, true) => "bugged,dead",
                (true, false) => "bugged",
                (false, true) => "dead",
                (false, false) => "-",
            };
            let vcpu = vm.vcpu(number)?;
            Some((vcpu.sample(), vcpu.pending(), flags, tsc::now()))
        });
        let (sample, pending, flags, now) = sampled.flatten()?;
        let runner = vm.gate.enter(|vm| vm.vcpu(number)?.task()).flatten();
        Some(Self {
            number,
            task: Task::of(runner.as_ref()),
            runner,
            pending,
            sample,
            vm: flags,
            last: vcpu.last(),
            now,
        })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.number)?;
        fmt::Display::fmt(&self.task, f)?;
        write!(f, " {} ", state(&self.sample))?;
        match self.last {
            Some((vendor, Last { reason, since, rip })) => {
                fmt::Display::fmt(&exits::name(vendor, reason), f)?;
                let ago = cycles::to_ns(self.now.saturating_sub(since), tsc::khz());
                write!(f, " {ago} {rip:#x} ")?;
            }
            None => f.write_str("- - - ")?,
        }
        fmt::Display::fmt(&Requests(self.sample.requests), f)?;
        write!(f, " {}", self.vm)
    }
}

/// The header of the table's lines.
pub(super) const COLUMNS: &str = "vcpu task state last_exit ago_ns rip requests vm";

/// `vms/*/vcpus`
pub(super) struct Vcpus(pub(super) Arc<Vm>);

impl Table for Vcpus {
    fn show(&self, out: &SeqFile) -> Result {
        seq_print!(out, "{COLUMNS}\n");
        for vcpu in &self.0.vcpus()? {
            if let Some(seen) = Seen::of(&self.0, vcpu) {
                seq_print!(out, "{seen}\n");
            }
        }
        Ok(())
    }
}
