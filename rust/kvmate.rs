// SPDX-License-Identifier: GPL-2.0
//! kvmate: the companion that KVM and VMM developers load beside an unpatched KVM.
//!
//! # Layers
//!
//! - [`raw`]: what bindgen made of the headers, and the C shim's declarations.
//! - [`wrap`]: one kernel object a file; owns it, states its invariants, is safe to use, decides
//!   nothing. All `unsafe` ends here.
//! - The product, without `unsafe`: [`control`] (the debugfs tree, knobs, `/dev/kvmate`), [`see`]
//!   (what guests make KVM do), [`poke`] (interrupts into guests), [`hold`] (memory files for
//!   guests) and [`trace`] (all of that as lines and trace events).
//! - [`pure`]: what follows from values alone; it also builds and is tested in user space.
//!
//! # Life
//!
//! [`Kvmate`] owns everything, and its fields' order is the order of the end: first the ways in
//! (device, files), so that no call can come; then the watch over kvm with its probes and hooks,
//! after which nothing of ours runs in KVM; then what they wrote to, with the VMs' folders; then the
//! folder that all stood in. A memory file holds the module, so none is there then. The locks are told
//! in [`see`], [`poke`] and [`hold`]; a knob's own file mutex (VFS) is outside
//! of all of them.

use kernel::prelude::*;

#[forbid(unsafe_code)]
mod control;
#[forbid(unsafe_code)]
mod hold;
#[forbid(unsafe_code)]
mod poke;
// `pub` there is for the user-space crate.
#[allow(unreachable_pub)]
#[forbid(unsafe_code)]
mod pure;
mod raw;
#[forbid(unsafe_code)]
mod see;
#[forbid(unsafe_code)]
mod trace;
mod wrap;

module! {
    type: Kvmate,
    name: "kvmate",
    authors: ["The kvmate developers"],
    description: "See, poke and hold what KVM runs",
    license: "GPL",
    params: {
        observe: u64 {
            default: 1,
            description: "Count VM exits from load on: 0 or 1 (knobs/observe)",
        },
        times: u64 {
            default: 0,
            description: "Split exits' times from load on: 0 or 1 (knobs/times)",
        },
        msrs: u64 {
            default: 0,
            description: "Record accesses to MSRs from load on: 0 or 1 (knobs/msrs)",
        },
        faults: u64 {
            default: 0,
            description: "Record page faults from load on: 0 or 1 (knobs/faults)",
        },
        irqs: u64 {
            default: 0,
            description: "Record interrupts from load on: 0 or 1 (knobs/irqs)",
        },
        verbose: u8 {
            default: 0,
            description: "Not 0: a line in the log for each change of a knob (knobs/verbose)",
        },
    },
}

/// The loaded module.
struct Kvmate {
    _device: control::Device,
    _tree: control::Tree,
    _state: control::State,
}

impl kernel::Module for Kvmate {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let recorded = [
            &module_parameters::observe,
            &module_parameters::times,
            &module_parameters::msrs,
            &module_parameters::faults,
            &module_parameters::irqs,
        ]
        .map(|parameter| parameter.value());
        let state = control::State::new(recorded, module_parameters::verbose.value())?;
        let tree = control::Tree::new(&state)?;
        let device = control::Device::register(&state)?;
        Ok(Self {
            _device: device,
            _tree: tree,
            _state: state,
        })
    }
}
