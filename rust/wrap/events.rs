// SPDX-License-Identifier: GPL-2.0
//! Probes on KVM's other tracepoints: they fire in the task that runs a vCPU, and cost only where
//! they fire.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

use super::{
    in_task::{in_probe, InTask},
    probes::{Probes, Tracepoints},
};
use crate::raw;
use kernel::{
    ffi::{c_int, c_void},
    prelude::*,
    sync::{Arc, ArcBorrow},
};

/// What wants to know when a task that runs a vCPU stops doing so for a while. No lock, no sleep.
pub(crate) trait Pauses: Send + Sync + 'static {
    /// `KVM_RUN` is about to return to user space. KVM has put the vCPU down already.
    fn on_user_exit(this: ArcBorrow<'_, Self>, task: InTask<'_>);
    /// The vCPU has halted for so many nanoseconds.
    fn on_wakeup(this: ArcBorrow<'_, Self>, task: InTask<'_>, ns: u64);
}

impl<T: Pauses> Probes<T> {
    /// Let `target` know of every pause from now on.
    pub(crate) fn of_pauses(tracepoints: Tracepoints, target: Arc<T>) -> Result<Self> {
        let user_exit: raw::kvmate_kvm_userspace_exit_probe = Some(on_user_exit::<T>);
        let wakeup: raw::kvmate_kvm_vcpu_wakeup_probe = Some(on_wakeup::<T>);
        let places = [
            (tracepoints.user_exit, user_exit.map(|f| f as *mut c_void)),
            (tracepoints.wakeup, wakeup.map(|f| f as *mut c_void)),
        ];
        // SAFETY: Each has the prototype of its tracepoint's probes, and takes an `Arc<T>`'s pointer.
        unsafe { Self::register_at(&places, target) }
    }
}

/// # Safety
///
/// `data` is that of a live [`Probes<T>`], and KVM calls this by `kvm_userspace_exit`.
unsafe extern "C" fn on_user_exit<T: Pauses>(data: *mut c_void, _reason: u32, _errno: c_int) {
    // SAFETY: The caller's promise: probes are unregistered and waited for before the `Arc` goes.
    let target = unsafe { ArcBorrow::from_raw(data.cast::<T>()) };
    // SAFETY: KVM fires it in the task that ran the vCPU.
    unsafe { in_probe(|task| T::on_user_exit(target, task)) };
}

/// # Safety
///
/// As for [`on_user_exit`], by `kvm_vcpu_wakeup`.
unsafe extern "C" fn on_wakeup<T: Pauses>(data: *mut c_void, ns: u64, _waited: bool, _valid: bool) {
    // SAFETY: As in `on_user_exit`.
    let target = unsafe { ArcBorrow::from_raw(data.cast::<T>()) };
    // SAFETY: KVM fires it in the task that runs the vCPU.
    unsafe { in_probe(|task| T::on_wakeup(target, task, ns)) };
}
