// SPDX-License-Identifier: GPL-2.0
//! See: what guests make KVM do.
//!
//! # The pieces
//!
//! - [`Watch`] follows kvm as it comes and goes, and owns the hooks and probes meanwhile.
//! - [`registry::Registry`] knows the VMs: how they are found, and how they end.
//! - [`hot`] is what probes do at each exit and entry; and, by a knob each, at pauses, accesses to MSRs,
//!   page faults and interrupts.
//! - [`vm`] is what is known of one VM and of one vCPU; [`folder`] its part of the debugfs tree.
//! - [`exits`], [`exits_hist`], [`times`], [`msrs`], [`faults`], [`irqs`], [`vcpus`], [`ended`] are the tables; [`map`] has those of a VM's
//!   memory. What the tables are made of together is a [`reading`]; [`stats`] is the same as numbers, by descriptor,
//!   and [`snapshot`] all of it in one text.
//! - [`traced`] writes lines and trace events of what vCPUs do, while somebody wants them.
//! - [`Layouts`] tells whether KVM's structures are those that we know; if not, no VM is looked into.
//!
//! # Locks, from outer to inner
//!
//! 1. `Watch::state` (mutex): what is hooked and probed. Held over registering, which sleeps. Taken
//!    inside the kernel's locks on modules coming and going, so those are never taken inside it.
//! 2. `Registry::tree` (mutex): VMs' folders being made and removed. Never taken by a file of such a
//!    folder: removing a folder waits for the readers of its files.
//! 3. `Vm::folder` (mutex), under `tree` only; then `Vm::vcpus`, `Vcpu::recorded` and `Ended::past`
//!    (mutexes), none in another; `ByVcpu::settling` (mutex), held over grace periods.
//! 4. A gate of a VM ([`crate::wrap::gate`]), never two; in it, of KVM's: `srcu`, and RCU with
//!    `mmu_lock` ([`map`]).
//! 5. `Registry::known` (spinlock, interrupts off; a reset takes it under `Vcpu::recorded`): which VMs there are. Taken in hooks and, for a
//!    vCPU that runs and was never seen before, in a probe.
//! 6. `ByVcpu::writer`, `Registry::queue` (spinlocks, interrupts off).
//!
//! [`Layouts`] has two of its own: `checking`, then a file's (of sysfs; or of its table), then
//! `verdicts`.
//!
//! A probe on a vCPU that is known takes no lock, nor does the hook on what its LAPIC accepts, which
//! runs in any context.
//!
//! # Ends
//!
//! A VM's end is the hook on `kvm_arch_pre_destroy_vm()`: it takes the VM out of `known`, closes its
//! gate and disconnects its vCPUs' records, all without sleeping; a worker writes the totals
//! to `ended`, takes the folder away, waits for probes, and frees. Unloading, in this order: no more
//! files that lead here but VMs' own; no more events of kvm; probes, and the hook on what LAPICs accept; then all VMs are hidden, which
//! lowers the lines that the shell holds up and closes their gates as if they had ended, and the work that hooks gave to tasks is waited for; only
//! then hooks; then the worker's queue; then folders and records. A descriptor of statistics holds the module, and of a VM
//! what is left when that is freed.

mod ended;
mod exits;
mod exits_hist;
mod faults;
mod folder;
mod hot;
mod irqs;
mod layouts;
mod map;
mod msrs;
mod reading;
mod registry;
mod snapshot;
mod stats;
mod times;
mod traced;
mod vcpus;
mod vm;
mod watch;

pub(crate) use ended::Ended;
pub(crate) use folder::name_of;
pub(crate) use layouts::Layouts;
pub(crate) use map::Answer;
pub(crate) use stats::open as open_stats;
pub(crate) use vm::Vm;
pub(crate) use watch::{Wanted, Watch, Watching};
