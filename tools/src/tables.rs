// SPDX-License-Identifier: GPL-2.0
//! `kvmate exits`, `times`, `msr`, `faults`, `irq` and `vcpus`: a table of a VM, of one of its vCPUs, or of
//! all VMs. [`records`](crate::records) are their rows.

use crate::{
    columns::Rows,
    json,
    records::{self, Record},
    say::say,
    tree::{self, Vm},
    units,
    watch::{self, Output, Reading},
};
use anyhow::Result;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{io::Write, time::Duration};

/// Examples of `exits`, and what is worth knowing of it; so of the others.
pub const EXITS: &str = "\
Times are from exits to the next entries, user space and waiting included. With --watch there are no percentiles:
the module has them of all the time only.
Examples:
  kvmate exits                   of all VMs
  kvmate exits qemu              of the only VM of a process with that in its name
  kvmate exits 101-4 --vcpu 0
  kvmate exits 101-4 --watch 1   each second what came in it
  kvmate exits --json | jq '.vms[] | {vm, exits: ([.rows[].count] | add)}'
tools/json.md documents --json.";
/// `times`
pub const TIMES: &str = "\
Recorded while /sys/kernel/debug/kvmate/knobs/times is 1.
Examples:
  echo 1 > /sys/kernel/debug/kvmate/knobs/times; kvmate times 101-4 --watch 1
  kvmate times 101-4 --vcpu 0
tools/json.md documents --json.";
/// `msr`
pub const MSR: &str = "\
Recorded while /sys/kernel/debug/kvmate/knobs/msrs is 1; MSRs that KVM passes through to the guest never appear.
Examples:
  echo 1 > /sys/kernel/debug/kvmate/knobs/msrs; kvmate msr 101-4
  kvmate msr 101-4 --json | jq '.vms[].rows[] | select(.faults > 0)'
tools/json.md documents --json.";
/// `faults`
pub const FAULTS: &str = "\
Recorded while /sys/kernel/debug/kvmate/knobs/faults is 1. Classes and memslots are exact; of a range there were
COUNT at most, and COUNT less ERROR at least.
Examples:
  echo 1 > /sys/kernel/debug/kvmate/knobs/faults; kvmate faults 101-4 --watch 5
  kvmate faults 101-4 --vcpu 0
tools/json.md documents --json.";
/// `irq`
pub const IRQ: &str = "\
Recorded while /sys/kernel/debug/kvmate/knobs/irqs is 1. `-`: hardware does it by itself.
Examples:
  echo 1 > /sys/kernel/debug/kvmate/knobs/irqs; kvmate irq 101-4 --watch 1
  kvmate irq 101-4 --vcpu 0
tools/json.md documents --json.";
/// `vcpus`
pub const VCPUS: &str = "\
It answers for a guest that hangs and for a VMM that hangs. With --watch it tells it again: nothing of it counts.
Examples:
  kvmate vcpus
  kvmate vcpus 101-4 --watch 1
  kvmate vcpus --json | jq '.vms[].rows[] | select(.state == \"kernel\")'
tools/json.md documents --json.";

/// What those with a table of each vCPU take.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The VM: its name in /sys/kernel/debug/kvmate/vms (101-4), a process's number, or a part of
    /// a process's name that only one VM has. Without one: all VMs
    pub vm: Option<String>,
    /// Of one vCPU only: the number that the VMM gave it
    #[arg(long, value_name = "N", requires = "vm")]
    pub vcpu: Option<u32>,
    #[command(flatten)]
    output: Output,
}

/// What `vcpus` takes.
#[derive(Debug, Args)]
pub struct Vcpus {
    /// The VM: its name in /sys/kernel/debug/kvmate/vms (101-4), a process's number, or a part of
    /// a process's name that only one VM has. Without one: all VMs
    pub vm: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// A table of some VMs.
#[derive(Serialize, JsonSchema)]
pub struct Document<R> {
    /// 1; grows when a field changes its meaning or goes.
    pub version: u32,
    /// Over how many nanoseconds that came which is told; null: all since the VM was seen, or its `reset`.
    pub interval_ns: Option<u64>,
    /// The VMs.
    pub vms: Vec<OfVm<R>>,
}

/// The table of one VM.
#[derive(Clone, Serialize, JsonSchema)]
pub struct OfVm<R> {
    /// The VM's name in `/sys/kernel/debug/kvmate/vms`.
    pub vm: String,
    /// The process that made it, if that is still there.
    pub pid: Option<u32>,
    /// That process's name.
    pub process: Option<String>,
    /// The vCPU whose table it is; null: of all together.
    pub vcpu: Option<u32>,
    /// The table.
    pub rows: Vec<R>,
}

impl<R: Record> OfVm<R> {
    /// Read it.
    pub fn read(vm: &Vm, vcpu: Option<u32>) -> Result<Self> {
        Ok(Self {
            vm: vm.name.clone(),
            pid: vm.process.as_ref().map(|process| process.pid),
            process: vm.process.as_ref().map(|process| process.name.clone()),
            vcpu,
            rows: records::read(vm, vcpu)?,
        })
    }

    fn title(&self) -> String {
        let vm = tree::title(&self.vm, self.pid, self.process.as_deref());
        match self.vcpu {
            Some(vcpu) => format!("{vm}, vCPU {vcpu}"),
            None => vm,
        }
    }
}

/// What was read of a table.
struct Tables<R>(Vec<OfVm<R>>);

impl<R: Record> Reading for Tables<R> {
    type Document = Document<R>;

    fn document(&self, since: Option<(&Self, Duration)>) -> Result<Document<R>> {
        let mut vms = self.0.clone();
        if let Some((before, _)) = since {
            for table in &mut vms {
                // A VM that was not there before began with nothing.
                let before = before.0.iter().find(|before| before.vm == table.vm);
                let before = before.map_or(&[][..], |before| &before.rows);
                table.rows = R::since(&table.rows, before);
            }
        }
        Ok(Document {
            version: json::VERSION,
            interval_ns: since.map(|(_, length)| units::nanoseconds(length)),
            vms,
        })
    }

    fn tell(document: &Document<R>, out: &mut Vec<u8>) -> Result<()> {
        let only = document.vms.first().filter(|_| document.vms.len() == 1);
        let mut rows = Rows::default();
        for table in &document.vms {
            let vm = [("vm", table.vm.as_str())];
            let before = if only.is_some() { &[][..] } else { &vm };
            for row in &table.rows {
                rows.add(before, row)?;
            }
        }
        let whose = only.map_or_else(|| "all VMs".to_owned(), OfVm::title);
        match document.interval_ns {
            // Some columns are not told of an interval.
            Some(length) => {
                rows.without_empty();
                writeln!(out, "{whose}, the last {}", units::duration(length))?;
                rows.write(out)?;
                writeln!(out)?;
            }
            None => {
                writeln!(out, "{whose}")?;
                rows.write(out)?;
            }
        }
        Ok(())
    }
}

/// Do one of those with a table of each vCPU.
pub fn run<R: Record>(asked: &Arguments) -> Result<()> {
    tell::<R>(asked.vm.as_deref(), asked.vcpu, &asked.output)
}

/// Do `vcpus`.
pub fn run_vcpus(asked: &Vcpus) -> Result<()> {
    tell::<records::Vcpu>(asked.vm.as_deref(), None, &asked.output)
}

fn tell<R: Record>(vm: Option<&str>, vcpu: Option<u32>, output: &Output) -> Result<()> {
    let vm = vm.map(tree::find).transpose()?;
    if let (Some(vm), Some(vcpu)) = (&vm, vcpu) {
        vm.has(vcpu)?;
    }
    let mut noted = false;
    watch::run(output, output.when(), || {
        let tables: Tables<R> = Tables(match &vm {
            Some(vm) => vec![OfVm::read(vm, vcpu)?],
            None => of_all()?,
        });
        // What stands still is worth saying where differences are asked for.
        let empty = tables.0.iter().all(|table| table.rows.is_empty());
        if !noted && (empty || output.watch.is_some()) {
            note(R::KNOBS, tables.0.is_empty());
            noted = true;
        }
        Ok(tables)
    })
}

/// The table of each VM that is there.
fn of_all<R: Record>() -> Result<Vec<OfVm<R>>> {
    let vms = tree::vms()?;
    let tables = vms.iter().map(|vm| OfVm::read(vm, None));
    tables.filter_map(tree::unless_gone).collect()
}

/// Why there is nothing, if that is known.
fn note(knobs: &[&str], no_vm: bool) {
    for knob in knobs {
        if let Some(said) = tree::recorded_with(knob) {
            say(format_args!("note: {said}"));
        }
    }
    if no_vm {
        say("note: no VM is there");
    }
}
