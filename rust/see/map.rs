// SPDX-License-Identifier: GPL-2.0
//! A VM's memory: memslots, stage-2 tables, and what of the host stands behind.
//!
//! - [`Memslots`] is the table `memslots`; [`backing`] what the host has behind a slot.
//! - [`roots`] tells which tables there are, and walks them in steps; [`Stage2`] counts what is met,
//!   [`Ranges`] tells it range by range; [`why`] says why a page is small.
//! - [`Lookup`] is the file `lookup`, and [`lookup::look_up`] what it and `KVMATE_LOOKUP` tell.
//!
//! # Locks, and how long
//!
//! Readers keep no lock from one step to the next, and go on by frame numbers. A step is either
//! behind the VM's gate, where `kvm->srcu` or KVM's MMU lock and RCU are taken inside, and looks at
//! 1024 entries or 32 slots at most; or it has a reference to the VMM's
//! address space and `mmap_lock`, inside which the page tables' own locks are taken, one at a time.
//! Never both. Between steps others run, and a signal ends it.

mod backing;
mod lookup;
mod memslots;
mod ranges;
mod roots;
mod summary;
mod why;

pub(super) use lookup::{look_up, Lookup};
pub(super) use memslots::Memslots;
pub(super) use ranges::Ranges;
pub(super) use summary::Stage2;

pub(super) use why::Why;

pub(crate) use lookup::Answer;

use kernel::fmt;

/// What `pure` says how to display, for the kernel's macros.
struct Shown<T>(T);

impl<T: core::fmt::Display> fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
