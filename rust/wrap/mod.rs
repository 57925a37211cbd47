// SPDX-License-Identifier: GPL-2.0
//! The wrappers: one kernel object a file.
//!
//! Each owns its object, states its invariants and is safe to use; none decides anything. `unsafe`
//! stands here and in [`crate::raw`] only.

pub(crate) mod accepts;
pub(crate) mod acks;
pub(crate) mod anon_file;
pub(crate) mod by_vcpu;
pub(crate) mod byte;
pub(crate) mod capability;
pub(crate) mod command;
pub(crate) mod debugfs;
pub(crate) mod eventfd;
pub(crate) mod events;
pub(crate) mod exit_source;
pub(crate) mod failed_folio;
pub(crate) mod files;
pub(crate) mod folio;
mod function_hook;
pub(crate) mod gate;
pub(crate) mod in_task;
pub(crate) mod iov;
pub(crate) mod irq;
pub(crate) mod irqfds;
pub(crate) mod kvm;
pub(crate) mod kvm_module;
pub(crate) mod layout;
pub(crate) mod life;
pub(crate) mod listing;
pub(crate) mod mapping;
pub(crate) mod memcg;
pub(crate) mod memory_file;
pub(crate) mod memslot;
pub(crate) mod merge;
pub(crate) mod names;
pub(crate) mod percpu;
pub(crate) mod probes;
pub(crate) mod schedule;
pub(crate) mod signal;
pub(crate) mod slot;
pub(crate) mod stage2;
pub(crate) mod sysfs;
pub(crate) mod task;
pub(crate) mod task_work;
pub(crate) mod trace_event;
pub(crate) mod trace_printk;
pub(crate) mod tsc;
pub(crate) mod uabi;
pub(crate) mod user_space;
pub(crate) mod way_probes;
pub(crate) mod work_queue;
