// SPDX-License-Identifier: GPL-2.0
//! The ways in: the debugfs tree, its knobs, and `/dev/kvmate`.
//!
//! [`State`] is what there is to control, shared by reference counts; [`Tree`] and [`Device`] are
//! made of it and go first.

mod device;
mod knobs;
mod tree;

pub(crate) use device::{Device, Registration};
pub(crate) use tree::Tree;

use crate::{see::Exits, wrap::byte::SharedByte};
use kernel::{prelude::*, sync::Arc};
use knobs::Log;

/// What the files and the device work on.
pub(crate) struct State {
    log: Log,
    exits: Arc<Exits>,
}

impl State {
    /// The state at load, from the module's parameters.
    pub(crate) fn new(observe: u64, verbose: u8) -> Result<Self> {
        if !knobs::OBSERVE.contains(observe) {
            pr_err!("parameter observe={observe}: 0 or 1\n");
            return Err(EINVAL);
        }
        let state = Self {
            log: Log::new(Arc::new(SharedByte::new(verbose), GFP_KERNEL)?),
            exits: Exits::new()?,
        };
        if !Exits::possible() {
            pr_info!("kvm is not loaded: VMs are not seen; load kvm, then kvmate again\n");
        } else if observe == 1 {
            state.exits.observe(true).inspect_err(|error| {
                pr_err!("no probe on kvm_exit: {error:?}\n");
            })?;
        }
        Ok(state)
    }
}
