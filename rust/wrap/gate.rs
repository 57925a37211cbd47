// SPDX-License-Identifier: GPL-2.0
//! A VM's gate: behind it the VM's pointer may be followed, until the VM ends.
//!
//! There are two locks, because there are two kinds of callers:
//!
//! - [`Gate::enter_irq_off`] turns interrupts off, and may be used with interrupts off and in
//!   interrupts. Behind it: loads, and what KVM itself calls with interrupts off. Never a plain
//!   spinlock of KVM's (`pid_lock`, the PIC's, the IOAPIC's).
//! - [`Gate::enter`] leaves interrupts as they are, and may be used in process context only. Behind
//!   it: everything that does not sleep.
//!
//! [`Gate::close`] is called by the hook on `kvm_arch_pre_destroy_vm()`, before anything of the VM is
//! freed: it takes both locks in turn, so it returns when the last caller is out, and nobody comes
//! in after. What is behind a gate is short, so a VM's end is held up by no more than that. Work
//! that must sleep cannot be behind a gate: it holds one of the VM's files meanwhile.
//!
//! Lock order: outside of all of KVM's locks and inside all of ours, never one gate in another.

use super::kvm::{LiveVm, VmId};
use crate::raw;
use core::{ops::Deref, ptr::NonNull};
use kernel::{
    new_spinlock, new_spinlock_irq,
    prelude::*,
    sync::{SpinLock, SpinLockIrq},
};

/// A VM behind the gate that leaves interrupts on.
///
/// # Invariants
///
/// Interrupts are on, and stay so.
pub(crate) struct InTask<'a>(LiveVm<'a>);

impl InTask<'_> {
    /// Whether the current task is in `KVM_RUN` of one of its vCPUs.
    pub(crate) fn is_run_here(&self) -> bool {
        // SAFETY: A live VM (type invariant of `LiveVm`), and interrupts are on.
        unsafe { raw::kvmate_vm_is_run_here(self.0.as_ptr().as_ptr()) }
    }
}

impl<'a> Deref for InTask<'a> {
    type Target = LiveVm<'a>;

    fn deref(&self) -> &LiveVm<'a> {
        &self.0
    }
}

/// The gate of one VM.
///
/// # Invariants
///
/// While either lock's value is `true` (open) and that lock is held, the VM has not returned from
/// `kvm_arch_pre_destroy_vm()`.
#[pin_data]
pub(crate) struct Gate {
    vm: NonNull<raw::kvm>,
    #[pin]
    irq_off: SpinLockIrq<bool>,
    #[pin]
    task: SpinLock<bool>,
}

// SAFETY: The pointer is followed as the type invariant allows only, which holds on any thread.
unsafe impl Send for Gate {}
// SAFETY: As above.
unsafe impl Sync for Gate {}

impl Gate {
    /// The open gate of a VM, to be closed by the hook on its end.
    ///
    /// The caller sees to it that [`Gate::close`] is called in that hook; for this it must have made
    /// the gate known to the hook while the VM is live.
    pub(crate) fn new(vm: LiveVm<'_>) -> impl PinInit<Self> + use<> {
        // INVARIANT: Live now, and the hook closes before it lets the VM go on.
        let vm = vm.as_ptr();
        pin_init!(Self {
            vm,
            irq_off <- new_spinlock_irq!(true),
            task <- new_spinlock!(true),
        })
    }

    /// Which VM's.
    pub(crate) fn id(&self) -> VmId {
        self.live().id()
    }

    /// For comparing, or under a lock that was found open.
    fn live(&self) -> LiveVm<'_> {
        // SAFETY: Private to this file, where it is used to compare, or by the type invariant.
        unsafe { LiveVm::new(self.vm) }
    }

    /// Call `inside` with interrupts off while the VM is kept; `None` if it has ended.
    pub(crate) fn enter_irq_off<R>(&self, inside: impl FnOnce(LiveVm<'_>) -> R) -> Option<R> {
        let open = self.irq_off.lock();
        open.then(|| inside(self.live()))
    }

    /// Call `inside` while the VM is kept; `None` if it has ended. Process context.
    pub(crate) fn enter<R>(&self, inside: impl FnOnce(InTask<'_>) -> R) -> Option<R> {
        let open = self.task.lock();
        // INVARIANT: Process context, and a lock that turns nothing off.
        open.then(|| inside(InTask(self.live())))
    }

    /// The VM ends: wait until everybody is out, and let nobody in any more.
    pub(crate) fn close(&self) {
        *self.irq_off.lock() = false;
        *self.task.lock() = false;
    }
}
