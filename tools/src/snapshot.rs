// SPDX-License-Identifier: GPL-2.0
//! `kvmate snapshot`: all that is known of a VM at one moment, for one that hangs. [`model`] is what was read.

mod model;

use crate::{
    columns::{printable, Rows},
    json::OfVm,
    tree::{self, Vm},
    units,
    watch::{self, Output, Reading},
};
use anyhow::Result;
use clap::Args;
pub use model::Snapshot;
use serde::Serialize;
use std::{io::Write, time::Duration};

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
It answers while the guest spins and while the VMM is stopped or blocked, and stops nobody. Parts of which
there is nothing are left out. What waits in a LAPIC's IRR KVM shows to nobody.
Examples:
  kvmate snapshot qemu
  kvmate snapshot 101-4 --json | jq '.tasks[] | {vcpu, state, in: .stack[0]}'
  kvmate snapshot 101-4 --watch 5
tools/json.md documents --json.")]
pub struct Arguments {
    /// The VM: its name in /sys/kernel/debug/kvmate/vms (101-4), a process's number, or a part of
    /// a process's name that only one VM has
    vm: String,
    #[command(flatten)]
    output: Output,
}

/// What was read.
struct Taken<'a>(&'a Vm, Snapshot);

impl Reading for Taken<'_> {
    type Document = OfVm<Snapshot>;

    fn document(&self, since: Option<(&Self, Duration)>) -> Result<Self::Document> {
        let snapshot = match since {
            Some((before, length)) => self.1.since(&before.1, units::nanoseconds(length)),
            None => self.1.clone(),
        };
        Ok(OfVm::new(self.0, snapshot))
    }

    fn tell(document: &Self::Document, out: &mut Vec<u8>) -> Result<()> {
        let told = &document.content;
        match told.interval_ns {
            Some(length) => {
                let length = units::duration(length);
                writeln!(out, "{}, the last {length}", document.title())?;
            }
            None => writeln!(out, "{}", document.title())?,
        }
        write(out, "snapshot", &[&told.snapshot])?;
        write(out, "vcpus", &told.vcpus)?;
        write(out, "pending", &told.pending)?;
        write(out, "tasks", &told.tasks)?;
        for task in &told.tasks {
            for function in task.stack.iter().flatten() {
                writeln!(out, "  vCPU {} is in {}", task.vcpu, printable(function))?;
            }
        }
        // Without their histograms: the percentiles tell people more.
        write(out, "exits", &told.exits)?;
        write(out, "times", &told.times)?;
        write(out, "msrs", &told.msrs)?;
        write(out, "faults", &told.faults)?;
        write(out, "irqs", &told.irqs)?;
        write(out, "irqfds", &told.irqfds)?;
        write(out, "bindings", &told.bindings)?;
        write(out, "latency", &told.latency)?;
        if told.interval_ns.is_some() {
            writeln!(out)?;
        }
        Ok(())
    }
}

/// A part, if there is something of it.
fn write(out: &mut Vec<u8>, name: &str, part: &[impl Serialize]) -> Result<()> {
    let mut rows = Rows::default();
    for row in part {
        rows.add(&[], row)?;
    }
    // Stacks are written below their tasks.
    rows.without("stack");
    if !part.is_empty() {
        writeln!(out, "[{name}]")?;
    }
    Ok(rows.write(out)?)
}

/// Do it.
pub fn run(asked: &Arguments) -> Result<()> {
    let vm = tree::find(&asked.vm)?;
    watch::run(&asked.output, asked.output.when(), || {
        Ok(Taken(&vm, Snapshot::new(&vm.read("snapshot")?)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people() -> Result<()> {
        let mut out = Vec::new();
        let snapshot = Snapshot::new(model::tests::TEXT)?;
        Taken::tell(&OfVm::named("101-4", snapshot), &mut out)?;
        let text = String::from_utf8(out)?;
        for part in [
            "VM 101-4\n[snapshot]\n",
            "[tasks]\nvcpu  tid  task      state\n   0  105  kvm_vcpu  S\n",
            "  vCPU 0 is in kvm_vcpu_block+0x6e/0x100[kvm]\n",
            "[exits]\nreason  count  total   avg   p50   p99  p999   max\n",
            "   0  halted         0x40  -             1    0         0\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        // Nothing is in them.
        assert!(
            !text.contains("[times]") && !text.contains("[irqs]"),
            "{text}"
        );
        Ok(())
    }
}
