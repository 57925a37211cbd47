// SPDX-License-Identifier: GPL-2.0
//! Probes on KVM's other tracepoints: they fire in the task that runs a vCPU, and cost only where
//! they fire. What they tell of comes from whichever vCPU that task has loaded.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

use super::{
    in_task::{in_probe, InTask},
    kvm::LiveVcpu,
    probes::{Probes, Tracepoints},
};
use crate::{pure::msrs::Access, raw};
use core::{ops::Deref, ptr::NonNull};
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

/// The vCPU whose guest has taken a page fault, in the probe on `kvm_page_fault`. Whether it may be
/// followed is for the user to know: it must be one that is shown.
///
/// # Invariants
///
/// The current task runs it, in a probe: it is live, and KVM holds `kvm->srcu`.
#[derive(Clone, Copy)]
pub(crate) struct FaultingVcpu<'a>(LiveVcpu<'a>);

impl<'a> Deref for FaultingVcpu<'a> {
    type Target = LiveVcpu<'a>;

    fn deref(&self) -> &LiveVcpu<'a> {
        &self.0
    }
}

impl FaultingVcpu<'_> {
    /// The memslot of a guest-physical address: its number, with its address space's above bit 16.
    pub(crate) fn memslot(self, gpa: u64) -> Option<u32> {
        // SAFETY: A live vCPU, and KVM holds its VM's memslots (type invariant).
        let slot = unsafe { raw::kvmate_vcpu_memslot(self.0.as_ptr(), gpa >> 12) };
        u32::try_from(slot).ok()
    }
}

/// What wants to know what else a vCPU does. No lock, no sleep.
pub(crate) trait Happenings: Send + Sync + 'static {
    /// The guest has accessed an MSR.
    fn on_msr(this: ArcBorrow<'_, Self>, task: InTask<'_>, access: Access);
    /// The guest has taken a page fault that made it exit. What the address and the code mean depends
    /// on why it exited.
    fn on_page_fault(
        this: ArcBorrow<'_, Self>,
        task: InTask<'_>,
        vcpu: FaultingVcpu<'_>,
        address: u64,
        code: u64,
    );
    /// An interrupt is put into the guest.
    fn on_injection(this: ArcBorrow<'_, Self>, task: InTask<'_>, vector: u32);
    /// The guest has ended an interrupt.
    fn on_eoi(this: ArcBorrow<'_, Self>, task: InTask<'_>, vector: u32);
}

impl<T: Happenings> Probes<T> {
    /// Let `target` know of accesses to MSRs from now on. `ENOENT`: this KVM has no such tracepoint.
    pub(crate) fn of_msrs(tracepoints: Tracepoints, target: Arc<T>) -> Result<Self> {
        let msr: raw::kvmate_kvm_msr_probe = Some(on_msr::<T>);
        let places = [(
            tracepoints.msr.ok_or(ENOENT)?,
            msr.map(|f| f as *mut c_void),
        )];
        // SAFETY: It has the prototype of its tracepoint's probes, and takes an `Arc<T>`'s pointer.
        unsafe { Self::register_at(&places, target) }
    }

    /// Let `target` know of page faults from now on. `ENOENT`: likewise.
    pub(crate) fn of_page_faults(tracepoints: Tracepoints, target: Arc<T>) -> Result<Self> {
        let page_fault: raw::kvmate_kvm_page_fault_probe = Some(on_page_fault::<T>);
        let places = [(
            tracepoints.page_fault.ok_or(ENOENT)?,
            page_fault.map(|f| f as *mut c_void),
        )];
        // SAFETY: As in `of_msrs`.
        unsafe { Self::register_at(&places, target) }
    }

    /// Let `target` know of injections and EOIs from now on. `ENOENT`: likewise.
    pub(crate) fn of_interrupts(tracepoints: Tracepoints, target: Arc<T>) -> Result<Self> {
        let inj_virq: raw::kvmate_kvm_inj_virq_probe = Some(on_inj_virq::<T>);
        let eoi: raw::kvmate_kvm_eoi_probe = Some(on_eoi::<T>);
        // Not `kvm_pv_eoi`: KVM fires it behind `kvm_eoi`, of the same interrupt.
        let [inject, end] = tracepoints.interrupts.ok_or(ENOENT)?;
        let places = [
            (inject, inj_virq.map(|f| f as *mut c_void)),
            (end, eoi.map(|f| f as *mut c_void)),
        ];
        // SAFETY: Each has the prototype of its tracepoint's probes, and takes an `Arc<T>`'s pointer.
        unsafe { Self::register_at(&places, target) }
    }
}

/// # Safety
///
/// As for [`on_user_exit`], by `kvm_msr`.
unsafe extern "C" fn on_msr<T: Happenings>(
    data: *mut c_void,
    write: u32,
    index: u32,
    value: u64,
    fault: bool,
) {
    // SAFETY: As in `on_user_exit`.
    let target = unsafe { ArcBorrow::from_raw(data.cast::<T>()) };
    let access = Access {
        write: write != 0,
        index,
        value,
        fault,
    };
    // SAFETY: KVM fires it in the task that runs the vCPU.
    unsafe { in_probe(|task| T::on_msr(target, task, access)) };
}

/// # Safety
///
/// As for [`on_user_exit`], by `kvm_page_fault` with a vCPU that the current task runs.
unsafe extern "C" fn on_page_fault<T: Happenings>(
    data: *mut c_void,
    vcpu: *mut raw::kvm_vcpu,
    address: u64,
    code: u64,
) {
    // SAFETY: As in `on_user_exit`.
    let target = unsafe { ArcBorrow::from_raw(data.cast::<T>()) };
    let Some(vcpu) = NonNull::new(vcpu) else {
        return;
    };
    // SAFETY: The caller's promise: a vCPU that runs is live.
    // INVARIANT: And KVM holds `kvm->srcu` whenever it handles an exit.
    let vcpu = FaultingVcpu(unsafe { LiveVcpu::new(vcpu) });
    // SAFETY: KVM fires it in the task that runs the vCPU.
    unsafe { in_probe(|task| T::on_page_fault(target, task, vcpu, address, code)) };
}

/// # Safety
///
/// As for [`on_user_exit`], by `kvm_inj_virq`.
unsafe extern "C" fn on_inj_virq<T: Happenings>(
    data: *mut c_void,
    vector: u32,
    soft: bool,
    reinjected: bool,
) {
    // One that the guest made itself is no interrupt, and one that is put in again is no other.
    if soft || reinjected {
        return;
    }
    // SAFETY: As in `on_user_exit`.
    let target = unsafe { ArcBorrow::from_raw(data.cast::<T>()) };
    // SAFETY: KVM fires it in the task that runs the vCPU.
    unsafe { in_probe(|task| T::on_injection(target, task, vector)) };
}

/// # Safety
///
/// As for [`on_user_exit`], by `kvm_eoi`.
unsafe extern "C" fn on_eoi<T: Happenings>(
    data: *mut c_void,
    _apic: *mut raw::kvm_lapic,
    vector: c_int,
) {
    // Below nothing: there was none to end.
    let Ok(vector) = u32::try_from(vector) else {
        return;
    };
    // SAFETY: As in `on_user_exit`.
    let target = unsafe { ArcBorrow::from_raw(data.cast::<T>()) };
    // SAFETY: KVM fires it in the task that runs the vCPU whose LAPIC it is.
    unsafe { in_probe(|task| T::on_eoi(target, task, vector)) };
}

impl<T: Pauses> Probes<T> {
    /// Let `target` know of every pause from now on. `ENOENT`: this KVM lacks one of the tracepoints.
    pub(crate) fn of_pauses(tracepoints: Tracepoints, target: Arc<T>) -> Result<Self> {
        let user_exit: raw::kvmate_kvm_userspace_exit_probe = Some(on_user_exit::<T>);
        let wakeup: raw::kvmate_kvm_vcpu_wakeup_probe = Some(on_wakeup::<T>);
        let [leave, wake] = tracepoints.pauses.ok_or(ENOENT)?;
        let places = [
            (leave, user_exit.map(|f| f as *mut c_void)),
            (wake, wakeup.map(|f| f as *mut c_void)),
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
