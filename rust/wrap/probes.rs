// SPDX-License-Identifier: GPL-2.0
//! Probes on KVM's tracepoints `kvm_exit` and `kvm_entry`.
//!
//! Both fire on the CPU that runs the guest, in `vcpu_enter_guest()`, with interrupts off; once an
//! exit each, but for entries that fail.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

use super::kvm::LiveVcpu;
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

/// KVM's tracepoints.
///
/// # Invariants
///
/// They stay until kvm.ko goes, and whoever has this is told of that before ([`super::kvm_module`]).
#[derive(Clone, Copy)]
pub(crate) struct Tracepoints {
    exit: NonNull<bindings::tracepoint>,
    entry: NonNull<bindings::tracepoint>,
    pub(super) ack: Option<NonNull<bindings::tracepoint>>,
    /// `kvm_apic_accept_irq`, `kvm_inj_virq`, `kvm_eoi`
    pub(super) way: Option<[NonNull<bindings::tracepoint>; 3]>,
}

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
        let way = || {
            Some([
                NonNull::new(find(c"kvm_apic_accept_irq"))?,
                NonNull::new(find(c"kvm_inj_virq"))?,
                NonNull::new(find(c"kvm_eoi"))?,
            ])
        };
        // INVARIANT: The caller's promise.
        Some(Tracepoints {
            exit: NonNull::new(find(c"kvm_exit"))?,
            entry: NonNull::new(find(c"kvm_entry"))?,
            ack: NonNull::new(find(c"kvm_ack_irq")),
            way: way(),
        })
    }
}

/// One registered probe.
///
/// # Invariants
///
/// `probe` is registered at `tracepoint` with `data`, once.
pub(super) struct Probe {
    tracepoint: NonNull<bindings::tracepoint>,
    probe: *mut c_void,
    data: *mut c_void,
}

impl Probe {
    /// # Safety
    ///
    /// `probe` has the prototype of the tracepoint's probes, and `data` stays valid until this is
    /// dropped and `tracepoint_synchronize_unregister()` has returned.
    pub(super) unsafe fn register(
        tracepoint: NonNull<bindings::tracepoint>,
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

/// Both probes, registered. Drop it to unregister: after that no call runs any more.
pub(crate) struct Probes<T: Watcher> {
    probes: Option<[Probe; 2]>,
    // Where the probes' data points.
    _target: Arc<T>,
}

// SAFETY: Probes may be unregistered from any thread, and the target may be sent.
unsafe impl<T: Watcher> Send for Probes<T> {}

impl<T: Watcher> Probes<T> {
    /// Let `target` know of every exit and entry from now on.
    pub(crate) fn register(tracepoints: Tracepoints, target: Arc<T>) -> Result<Self> {
        let data: *mut c_void = Arc::as_ptr(&target).cast_mut().cast();
        let exit: raw::kvmate_kvm_exit_probe = Some(on_exit::<T>);
        let entry: raw::kvmate_kvm_entry_probe = Some(on_entry::<T>);
        let address = |f: Option<*mut c_void>| f.unwrap_or(core::ptr::null_mut());
        // SAFETY: `on_entry` has the prototype of the probes of `kvm_entry`; `drop` waits before the
        // target goes.
        let entry = unsafe {
            Probe::register(
                tracepoints.entry,
                address(entry.map(|f| f as *mut c_void)),
                data,
            )
        }?;
        // SAFETY: As above, for `kvm_exit`.
        let exit = unsafe {
            Probe::register(
                tracepoints.exit,
                address(exit.map(|f| f as *mut c_void)),
                data,
            )
        };
        let probes = match exit {
            Ok(exit) => [exit, entry],
            Err(error) => {
                drop(entry);
                synchronize();
                return Err(error);
            }
        };
        Ok(Self {
            probes: Some(probes),
            _target: target,
        })
    }
}

impl<T: Watcher> Drop for Probes<T> {
    fn drop(&mut self) {
        self.probes = None;
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
