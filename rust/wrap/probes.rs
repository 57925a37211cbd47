// SPDX-License-Identifier: GPL-2.0
//! Probes on KVM's tracepoints `kvm_exit` and `kvm_entry`.
//!
//! Both fire on the CPU that runs the guest, in `vcpu_enter_guest()`, with interrupts off; once an
//! exit each, but for entries that fail.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

use super::{in_task::InTask, kvm::LiveVcpu};
use crate::raw;
use core::{marker::PhantomData, ops::Deref, ptr::NonNull};
use kernel::{
    bindings,
    error::to_result,
    ffi::c_void,
    prelude::*,
    sync::{Arc, ArcBorrow},
};

/// The vCPU that this CPU runs, in a probe.
///
/// # Invariants
///
/// The vCPU is live, and a probe runs on this CPU for `'a`: interrupts are off, and
/// `tracepoint_synchronize_unregister()` waits for us.
#[derive(Clone, Copy)]
pub(crate) struct RunningVcpu<'a>(LiveVcpu<'a>, PhantomData<*mut ()>);

impl<'a> RunningVcpu<'a> {
    /// The task that runs it.
    #[inline(always)]
    pub(crate) fn in_task(self) -> InTask<'a> {
        // SAFETY: A probe runs in this task, with interrupts off (type invariant).
        unsafe { InTask::new() }
    }
}

impl<'a> Deref for RunningVcpu<'a> {
    type Target = LiveVcpu<'a>;

    #[inline(always)]
    fn deref(&self) -> &LiveVcpu<'a> {
        &self.0
    }
}

/// What wants to know of exits and entries. This is the hot path: no lock, no allocation, no sleep.
pub(crate) trait Watcher: Send + Sync + 'static {
    /// The guest has exited; `isa` is the tracepoint's.
    fn on_exit(this: ArcBorrow<'_, Self>, vcpu: RunningVcpu<'_>, isa: u32);
    /// The guest is about to go on.
    fn on_entry(this: ArcBorrow<'_, Self>, vcpu: RunningVcpu<'_>);
}

/// KVM's tracepoints; those that this KVM lacks are `None`, and what needs them is refused.
///
/// # Invariants
///
/// All stay until kvm.ko goes, and whoever has this is told of that before ([`super::kvm_module`]).
#[derive(Clone, Copy)]
pub(crate) struct Tracepoints {
    exit: Tracepoint,
    entry: Tracepoint,
    pub(super) ack: Option<Tracepoint>,
    /// `kvm_apic_accept_irq`, `kvm_inj_virq`, `kvm_eoi`
    pub(super) way: Option<[Tracepoint; 3]>,
    /// `kvm_userspace_exit`, `kvm_vcpu_wakeup`
    pub(super) pauses: Option<[Tracepoint; 2]>,
    pub(super) msr: Option<Tracepoint>,
    pub(super) page_fault: Option<Tracepoint>,
    /// `kvm_inj_virq`, `kvm_eoi`
    pub(super) interrupts: Option<[Tracepoint; 2]>,
}

type Tracepoint = NonNull<bindings::tracepoint>;

// SAFETY: Pointers to what any thread may register probes at.
unsafe impl Send for Tracepoints {}

impl Tracepoints {
    /// Those that `find` gives for their names.
    ///
    /// # Safety
    ///
    /// What `find` gives fulfils the type's invariant.
    pub(super) unsafe fn find(
        find: impl Fn(&CStr) -> *mut bindings::tracepoint,
    ) -> Option<Tracepoints> {
        let find = |name| NonNull::new(find(name));
        let (accept, inject) = (find(c"kvm_apic_accept_irq"), find(c"kvm_inj_virq"));
        let eoi = find(c"kvm_eoi");
        // INVARIANT: The caller's promise.
        Some(Tracepoints {
            exit: find(c"kvm_exit")?,
            entry: find(c"kvm_entry")?,
            ack: find(c"kvm_ack_irq"),
            way: all([accept, inject, eoi]),
            pauses: all([find(c"kvm_userspace_exit"), find(c"kvm_vcpu_wakeup")]),
            msr: find(c"kvm_msr"),
            page_fault: find(c"kvm_page_fault"),
            interrupts: all([inject, eoi]),
        })
    }
}

/// All of them, or none.
fn all<const N: usize>(found: [Option<Tracepoint>; N]) -> Option<[Tracepoint; N]> {
    let first = found.first().copied().flatten()?;
    let mut all = [first; N];
    for (to, from) in all.iter_mut().zip(found) {
        *to = from?;
    }
    Some(all)
}

/// One registered probe.
///
/// # Invariants
///
/// `probe` is registered at `tracepoint` with `data`, once.
pub(super) struct Probe {
    tracepoint: Tracepoint,
    probe: *mut c_void,
    data: *mut c_void,
}

impl Probe {
    /// # Safety
    ///
    /// `probe` has the prototype of the tracepoint's probes, and `data` stays valid until this is
    /// dropped and `tracepoint_synchronize_unregister()` has returned.
    pub(super) unsafe fn register(
        tracepoint: Tracepoint,
        probe: *mut c_void,
        data: *mut c_void,
    ) -> Result<Self> {
        // SAFETY: The tracepoint is there (invariant of `Tracepoints`); the rest is the caller's
        // promise.
        to_result(unsafe {
            bindings::tracepoint_probe_register(tracepoint.as_ptr(), probe, data)
        })?;
        // INVARIANT: Registered just now.
        Ok(Self {
            tracepoint,
            probe,
            data,
        })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: Registered with just these (type invariant).
        let unregistered = unsafe {
            bindings::tracepoint_probe_unregister(self.tracepoint.as_ptr(), self.probe, self.data)
        };
        debug_assert_eq!(unregistered, 0);
    }
}

/// Probes, registered. Drop it to unregister: after that no call runs any more.
pub(crate) struct Probes<T: Send + Sync + 'static> {
    // In the order of registering; the last goes first.
    probes: KVec<Probe>,
    // Where the probes' data points.
    _target: Arc<T>,
}

// SAFETY: Probes may be unregistered from any thread, and the target may be sent.
unsafe impl<T: Send + Sync> Send for Probes<T> {}

impl<T: Send + Sync> Probes<T> {
    /// Register probes with `target` for their data, in that order, or none.
    ///
    /// # Safety
    ///
    /// Each has the prototype of its tracepoint's probes, and works on data that is the pointer of an
    /// `Arc<T>` which outlives it.
    pub(super) unsafe fn register_at(
        places: &[(Tracepoint, Option<*mut c_void>)],
        target: Arc<T>,
    ) -> Result<Self> {
        let data: *mut c_void = Arc::as_ptr(&target).cast_mut().cast();
        // Dropping it unregisters what there is.
        let mut this = Self {
            probes: KVec::with_capacity(places.len(), GFP_KERNEL)?,
            _target: target,
        };
        for &(tracepoint, probe) in places {
            let probe = probe.unwrap_or(core::ptr::null_mut());
            // SAFETY: The caller's promise; `drop` waits before the target goes.
            let probe = unsafe { Probe::register(tracepoint, probe, data) }?;
            this.probes.push(probe, GFP_KERNEL)?;
        }
        Ok(this)
    }
}

impl<T: Watcher> Probes<T> {
    /// Let `target` know of every exit and entry from now on.
    pub(crate) fn register(tracepoints: Tracepoints, target: Arc<T>) -> Result<Self> {
        let exit: raw::kvmate_kvm_exit_probe = Some(on_exit::<T>);
        let entry: raw::kvmate_kvm_entry_probe = Some(on_entry::<T>);
        let places = [
            (tracepoints.entry, entry.map(|f| f as *mut c_void)),
            (tracepoints.exit, exit.map(|f| f as *mut c_void)),
        ];
        // SAFETY: Each has the prototype of its tracepoint's probes, and takes an `Arc<T>`'s pointer.
        unsafe { Self::register_at(&places, target) }
    }
}

impl<T: Send + Sync> Drop for Probes<T> {
    fn drop(&mut self) {
        while self.probes.pop().is_some() {}
        synchronize();
    }
}

/// Wait until every probe that runs now has returned. Sleeps.
pub(super) fn synchronize() {
    // SAFETY: Process context, as the users of this file are.
    unsafe { raw::kvmate_tracepoint_synchronize() };
}

/// # Safety
///
/// `data` is that of a live [`Probes<T>`], and KVM calls this by `kvm_exit` with a running vCPU.
unsafe extern "C" fn on_exit<T: Watcher>(data: *mut c_void, vcpu: *mut raw::kvm_vcpu, isa: u32) {
    // SAFETY: The caller's promise: probes are unregistered and waited for before the `Arc` goes.
    let target = unsafe { ArcBorrow::from_raw(data.cast::<T>()) };
    // SAFETY: The caller's promise.
    T::on_exit(target, unsafe { running(vcpu) }, isa);
}

/// # Safety
///
/// As for [`on_exit`], by `kvm_entry`.
unsafe extern "C" fn on_entry<T: Watcher>(data: *mut c_void, vcpu: *mut raw::kvm_vcpu, _: bool) {
    // SAFETY: As in `on_exit`.
    let target = unsafe { ArcBorrow::from_raw(data.cast::<T>()) };
    // SAFETY: The caller's promise.
    T::on_entry(target, unsafe { running(vcpu) });
}

/// # Safety
///
/// KVM runs the vCPU, and this is in a probe, for `'a`.
#[inline(always)]
unsafe fn running<'a>(vcpu: *mut raw::kvm_vcpu) -> RunningVcpu<'a> {
    // SAFETY: KVM gives its tracepoints no null pointer; a vCPU that runs is live.
    let vcpu = unsafe { LiveVcpu::new(NonNull::new_unchecked(vcpu)) };
    // INVARIANT: The caller's promise.
    RunningVcpu(vcpu, PhantomData)
}
