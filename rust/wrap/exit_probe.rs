// SPDX-License-Identifier: GPL-2.0
//! A probe on KVM's tracepoint `kvm_exit`.
//!
//! KVM exports the tracepoint, and the shim refers to it weakly: without kvm it is not there. It
//! fires once an exit, on the CPU that ran the guest, with preemption off and often interrupts too.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

use crate::raw;
use kernel::{bindings, error::to_result, ffi::c_void, prelude::*, sync::Arc};

/// What wants to know of exits.
pub(crate) trait OnExit: Send + Sync + 'static {
    /// A guest has exited. No lock, no allocation, no sleep: this is the hot path.
    fn on_exit(&self);
}

/// Whether kvm's tracepoint is there to be probed.
pub(crate) fn available() -> bool {
    !tracepoint().is_null()
}

fn tracepoint() -> *mut bindings::tracepoint {
    // SAFETY: Gives an address; linked at load time, so it stays as long as we are loaded.
    unsafe { raw::kvmate_tracepoint_kvm_exit() }
}

/// A registered probe. Drop it to unregister: after that no call runs any more.
///
/// # Invariants
///
/// `on_exit::<T>` is registered at [`tracepoint()`] with the target's address, once.
pub(crate) struct ExitProbe<T: OnExit> {
    target: Arc<T>,
}

impl<T: OnExit> ExitProbe<T> {
    /// Let `target` know of every exit from now on. `ENODEV` without kvm.
    pub(crate) fn register(target: Arc<T>) -> Result<Self> {
        if !available() {
            return Err(ENODEV);
        }
        // SAFETY: The tracepoint is there; `on_exit::<T>` has the prototype of its probes
        // (data, vcpu, isa); the data stays valid until `drop` has unregistered it.
        to_result(unsafe {
            bindings::tracepoint_probe_register(tracepoint(), Self::function(), data(&target))
        })?;
        // INVARIANT: Registered just now.
        Ok(Self { target })
    }

    fn function() -> *mut c_void {
        let probe: raw::kvmate_kvm_exit_probe = Some(on_exit::<T>);
        probe.map_or(core::ptr::null_mut(), |probe| probe as *mut c_void)
    }
}

fn data<T>(target: &Arc<T>) -> *mut c_void {
    core::ptr::from_ref::<T>(target).cast_mut().cast()
}

impl<T: OnExit> Drop for ExitProbe<T> {
    fn drop(&mut self) {
        // SAFETY: Registered with just these (type invariant).
        let unregistered = unsafe {
            bindings::tracepoint_probe_unregister(
                tracepoint(),
                Self::function(),
                data(&self.target),
            )
        };
        debug_assert_eq!(unregistered, 0);
        // SAFETY: Process context; waits until no CPU runs a probe that was registered before.
        unsafe { raw::kvmate_tracepoint_synchronize() };
    }
}

/// The probe, and that it has the prototype that the tracepoint calls.
///
/// # Safety
///
/// `data` is that of a live [`ExitProbe<T>`].
unsafe extern "C" fn on_exit<T: OnExit>(data: *mut c_void, _vcpu: *mut raw::kvm_vcpu, _isa: u32) {
    // SAFETY: The caller's promise: the probe is unregistered and waited for before `T` goes.
    unsafe { &*data.cast::<T>() }.on_exit();
}
