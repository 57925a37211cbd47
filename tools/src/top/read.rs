// SPDX-License-Identifier: GPL-2.0
//! What is read of the VMs each time. No state: [`super::model`] keeps it.

use crate::{
    records::{self, Exit, Histogram, Record, Vcpu},
    tree::{self, Process, Vm},
};
use anyhow::{Context, Result};
use std::time::Duration;

/// A table `exits`, and when it was read.
#[derive(Clone, Debug, Default)]
pub struct Exits {
    pub at: Duration,
    pub lines: Vec<Exit>,
}

/// What a VM's files say.
#[derive(Clone, Debug)]
pub struct Told {
    pub exits: Exits,
    pub vcpus: Vec<Vcpu>,
    /// More, of the VM that is chosen.
    pub chosen: Option<Chosen>,
}

/// What is read only of what is chosen.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// Of which vCPU; none: of all together.
    pub vcpu: Option<u64>,
    /// That vCPU's exits.
    pub exits: Option<Exits>,
    /// How long they took.
    pub histograms: Vec<Histogram>,
}

/// A VM that is there.
#[derive(Clone, Debug)]
pub struct Seen {
    pub name: String,
    pub process: Option<Process>,
    /// Or why its files could not be read.
    pub told: Result<Told, String>,
}

/// All VMs, or why there is nothing to be read.
pub type Reading = Result<Vec<Seen>, String>;

/// The VM that is chosen, and which of its vCPUs, if not all together.
pub type Wanted<'a> = Option<(&'a str, Option<u64>)>;

/// Read everything. `clock` tells the time since any beginning.
pub fn all(wanted: Wanted, clock: impl Fn() -> Duration) -> Reading {
    let vms = tree::vms().map_err(|error| format!("{error:#}"))?;
    let seen = |vm: Vm| {
        // Not one that has ended since it was listed.
        let told = tree::unless_gone(told(&vm, wanted, &clock))?;
        Some(Seen {
            told: told.map_err(|error| format!("{error:#}")),
            name: vm.name,
            process: vm.process,
        })
    };
    Ok(vms.into_iter().filter_map(seen).collect())
}

fn told(vm: &Vm, wanted: Wanted, clock: impl Fn() -> Duration) -> Result<Told> {
    let vcpus: Vec<Vcpu> = table(vm, None)?;
    let there = |vcpu: Option<u64>| vcpu.is_none_or(|n| vcpus.iter().any(|vcpu| vcpu.vcpu == n));
    let wanted = wanted.filter(|(name, vcpu)| *name == vm.name && there(*vcpu));
    Ok(Told {
        chosen: wanted.map(|(_, vcpu)| more(vm, vcpu, &clock)).transpose()?,
        exits: exits(vm, None, clock)?,
        vcpus,
    })
}

/// Read what is read only of what is chosen.
pub fn chosen(
    name: &str,
    vcpu: Option<u64>,
    clock: impl Fn() -> Duration,
) -> Result<Chosen, String> {
    let read = tree::find(name).and_then(|vm| more(&vm, vcpu, clock));
    read.map_err(|error| format!("{error:#}"))
}

fn more(vm: &Vm, vcpu: Option<u64>, clock: impl Fn() -> Duration) -> Result<Chosen> {
    Ok(Chosen {
        vcpu,
        exits: vcpu.map(|_| exits(vm, vcpu, clock)).transpose()?,
        histograms: table(vm, vcpu)?,
    })
}

fn exits(vm: &Vm, vcpu: Option<u64>, clock: impl Fn() -> Duration) -> Result<Exits> {
    let lines = table(vm, vcpu)?;
    Ok(Exits { at: clock(), lines })
}

fn table<R: Record>(vm: &Vm, vcpu: Option<u64>) -> Result<Vec<R>> {
    let vcpu = vcpu.map(u32::try_from).transpose()?;
    records::read(vm, vcpu).with_context(|| format!("VM {}", vm.name))
}
