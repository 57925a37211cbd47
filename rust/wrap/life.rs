// SPDX-License-Identifier: GPL-2.0
//! Hooks on the life of VMs: a vCPU has been made, a VM ends.
//!
//! They are function hooks (ftrace) by name: `kvm_arch_vcpu_postcreate()`, by when user space could
//! have the vCPU, and `kvm_arch_pre_destroy_vm()`, before which nothing of the VM is freed;
//! `kvm_arch_destroy_vm()` would be too late, the routing table is freed before it. Kernel probes
//! would do too, but can be switched off behind our back (`kprobes/enabled` in debugfs), and then a
//! VM would end unseen; ftrace no longer can. Hooks run in their caller's process context, where sleeping
//! is not allowed.
//!
//! C header: [`include/linux/ftrace.h`](srctree/include/linux/ftrace.h)

use super::kvm::{LiveVcpu, LiveVm};
use crate::raw;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::to_result,
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

/// Both hooks, registered. Drop it to unregister: after that no call runs any more, and no task is
/// in code of ours that a call gave it to run and that has returned since.
///
/// # Invariants
///
/// `ops` is registered for the two functions, stays where it is, and its private data is `_hooks`.
pub(crate) struct LifeHooks<T: Life> {
    ops: KBox<bindings::ftrace_ops>,
    // Where the private data of `ops` points.
    _hooks: KBox<Hooks<T>>,
}

/// What the callback gets.
struct Hooks<T> {
    made: Place,
    ends: Place,
    target: Arc<T>,
}

// SAFETY: Hooks may be unregistered from any thread, and the target may be sent.
unsafe impl<T: Life> Send for LifeHooks<T> {}

/// Where a function begins, or a few bytes behind.
struct Place(usize);

impl Place {
    /// That of a function, by its name.
    ///
    /// ftrace could find it too, but looks up the names of all that can be traced for it, which
    /// takes a third of a second on an emulated machine.
    fn of(function: &CStr) -> Result<Self> {
        // SAFETY: Process context; the name is used in the call only.
        match unsafe { raw::kvmate_probe_address(function.as_char_ptr()) } {
            0 => Err(ENOENT),
            address => Ok(Self(address)),
        }
    }

    /// Whether an address where ftrace hooks is this function's: functions begin sixteen bytes
    /// apart at least, and a hook is at most that far in.
    fn is(&self, ip: usize) -> bool {
        self.0 & !15 == ip & !15
    }
}

impl<T: Life> LifeHooks<T> {
    /// Let `target` know from now on. `ENOENT`: no such function.
    pub(crate) fn register(target: Arc<T>) -> Result<Self> {
        let hooks = Hooks {
            made: Place::of(c"kvm_arch_vcpu_postcreate")?,
            ends: Place::of(c"kvm_arch_pre_destroy_vm")?,
            target,
        };
        let mut places = [hooks.made.0, hooks.ends.0];
        let hooks = KBox::new(hooks, GFP_KERNEL)?;
        let private: *const Hooks<T> = &*hooks;
        let mut ops = KBox::new(
            bindings::ftrace_ops {
                func: Some(on_call::<T>),
                private: private.cast_mut().cast(),
                ..pin_init::zeroed()
            },
            GFP_KERNEL,
        )?;
        // SAFETY: `ops` is zeroed but for what its user sets; two places.
        let chosen = to_result(unsafe {
            bindings::ftrace_set_filter_ips(&mut *ops, places.as_mut_ptr(), 2, 0, 1)
        });
        let registered = chosen.and_then(|()| {
            // SAFETY: As above; only those functions are hooked, of which `on_call` knows; the boxes
            // keep `ops` and its private data in place until `drop` has unregistered.
            to_result(unsafe { bindings::register_ftrace_function(&mut *ops) })
        });
        if let Err(error) = registered {
            // SAFETY: Not registered.
            unsafe { bindings::ftrace_free_filter(&mut *ops) };
            return Err(error);
        }
        // INVARIANT: Registered just now.
        Ok(Self { ops, _hooks: hooks })
    }
}

impl<T: Life> Drop for LifeHooks<T> {
    fn drop(&mut self) {
        // SAFETY: Registered (type invariant). This waits until no task is in the hook, nor in other
        // code of ours that it was preempted in (RCU tasks).
        let unregistered = unsafe { bindings::unregister_ftrace_function(&mut *self.ops) };
        debug_assert_eq!(unregistered, 0);
        // SAFETY: No more registered.
        unsafe { bindings::ftrace_free_filter(&mut *self.ops) };
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
