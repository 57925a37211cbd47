// SPDX-License-Identifier: GPL-2.0
//! Poke: interrupts into running guests.
//!
//! # The pieces
//!
//! - [`Poke`] is what all VMs share: whether the shell may inject.
//! - [`target::Target`] is what a VM has of this; a [`crate::see::Vm`] has one.
//! - [`inject`] is injection from the shell.
//!
//! How an interrupt gets into a VM is [`crate::wrap::irq`]: what is routed to an MSI goes in with
//! interrupts off, from any context; what is routed to pins from tasks and workers only.
//!
//! # Who may
//!
//! Opening `/dev/kvmate` and debugfs takes root. Beyond that `knobs/inject` guards what is done to a VM
//! by its name in debugfs, so that who only looks cannot inject by mistake; a binding asks for the
//! VM's own descriptor instead.
//!
//! # Locks
//!
//! None of these is taken inside a lock of [`crate::see`] but as said here; those of [`crate::see`]
//! come first.
//!
//! 1. A gate of a VM (number 4 there). Lines go up and down behind the one of tasks, so that what is
//!    held up is known for sure.
//! 2. `Target::status` (spinlock), innermost.
//!
//! # Ends
//!
//! Everything that reaches into a VM does so behind its gate, and does nothing more when that is
//! closed. When we go, lines that the shell holds up are lowered before gates are closed
//! ([`target::Target::let_go`]).

mod inject;
mod target;

pub(crate) use inject::{Inject, InjectStatus};
pub(crate) use target::Target;

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use kernel::{prelude::*, sync::Arc};

/// What all VMs share.
pub(crate) struct Poke {
    /// `knobs/inject`
    allowed: AtomicBool,
}

impl Poke {
    /// Nothing is allowed yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let poke = Self {
            allowed: AtomicBool::new(false),
        };
        Ok(Arc::new(poke, GFP_KERNEL)?)
    }

    /// Whether the shell may inject.
    pub(crate) fn allowed(&self) -> bool {
        self.allowed.load(Relaxed)
    }

    /// Let the shell inject, or do not, from now on. Tells what was before.
    pub(crate) fn allow(&self, on: bool) -> bool {
        self.allowed.swap(on, Relaxed)
    }
}
