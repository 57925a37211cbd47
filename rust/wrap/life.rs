// SPDX-License-Identifier: GPL-2.0
//! Hooks on the life of VMs: a vCPU has been made, a VM ends.
//!
//! They are function hooks by name: `kvm_arch_vcpu_postcreate()`, by when user space could have the
//! vCPU, and `kvm_arch_pre_destroy_vm()`, before which nothing of the VM is freed;
//! `kvm_arch_destroy_vm()` would be too late, the routing table is freed before it. A hook that could
//! be switched off would let a VM end unseen (see [`super::function_hook`]). They run in their caller's
//! process context, where sleeping is not allowed.

use super::{
    function_hook::{FunctionHooks, Place},
    kvm::{LiveVcpu, LiveVm},
};
use crate::raw;
use core::ptr::NonNull;
use kernel::{
    bindings,
    ffi::c_ulong,
    prelude::*,
    sync::{Arc, ArcBorrow},
};

/// What wants to know. No sleep.
pub(crate) trait Life: Send + Sync + 'static {
    /// A vCPU has been made, by this task.
    fn vcpu_made(this: ArcBorrow<'_, Self>, vcpu: LiveVcpu<'_>);
    /// A VM ends; it is live until this returns, and no vCPU of it runs any more.
    fn vm_ends(this: ArcBorrow<'_, Self>, vm: LiveVm<'_>);
}

/// Both hooks, registered; dropping it unregisters them, as [`FunctionHooks`] does.
pub(crate) struct LifeHooks<T: Life>(#[expect(dead_code)] FunctionHooks<Hooks<T>>);

/// What the callback gets.
struct Hooks<T> {
    made: Place,
    ends: Place,
    target: Arc<T>,
}

impl<T: Life> LifeHooks<T> {
    /// Let `target` know from now on. `ENOENT`: no such function.
    pub(crate) fn register(target: Arc<T>) -> Result<Self> {
        let hooks = Hooks {
            made: Place::of(c"kvm_arch_vcpu_postcreate")?,
            ends: Place::of(c"kvm_arch_pre_destroy_vm")?,
            target,
        };
        let places = [hooks.made, hooks.ends];
        // SAFETY: `on_call` takes the private data for these, and knows both functions.
        Ok(Self(unsafe {
            FunctionHooks::register(places, hooks, on_call::<T>)
        }?))
    }
}

/// # Safety
///
/// ftrace calls it, for hooks made by [`LifeHooks::register`].
unsafe extern "C" fn on_call<T: Life>(
    ip: c_ulong,
    _parent: c_ulong,
    ops: *mut bindings::ftrace_ops,
    fregs: *mut bindings::ftrace_regs,
) {
    // SAFETY: The private data of registered hooks.
    let hooks = unsafe { &*(*ops).private.cast::<Hooks<T>>() };
    // SAFETY: The registers of this call.
    let argument = unsafe { raw::kvmate_ftrace_argument(fregs, 0) };
    let target = hooks.target.as_arc_borrow();
    if hooks.ends.is(ip) {
        if let Some(vm) = NonNull::new(argument.cast()) {
            // SAFETY: The function's argument, which goes on only when we return.
            T::vm_ends(target, unsafe { LiveVm::new(vm) });
        }
    } else if hooks.made.is(ip) {
        if let Some(vcpu) = NonNull::new(argument.cast()) {
            // SAFETY: The function's argument; its caller has the VM's file in hand.
            T::vcpu_made(target, unsafe { LiveVcpu::new(vcpu) });
        }
    }
}
