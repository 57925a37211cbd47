// SPDX-License-Identifier: GPL-2.0
//! The task that a probe runs in, and what the kernel knows of it.
//!
//! KVM's tracepoints that tell of no vCPU fire in the task that runs one. While that is in KVM's hands
//! it has registered the vCPU's preempt notifier with itself (`vcpu_load()`), which tells exactly
//! which one it is, whatever else has run on this CPU since its last exit.
//!
//! C headers: [`include/linux/preempt.h`](srctree/include/linux/preempt.h),
//! [`include/linux/sched.h`](srctree/include/linux/sched.h)

use super::kvm::VcpuId;
use crate::{pure::times::Moment, raw};
use core::marker::PhantomData;
use kernel::bindings;

/// The current task, in a probe.
///
/// # Invariants
///
/// For `'a` a probe runs in the current task, which stays on this CPU: preemption or interrupts are
/// off, and `tracepoint_synchronize_unregister()` waits for us.
#[derive(Clone, Copy)]
pub(crate) struct InTask<'a>(PhantomData<&'a ()>, PhantomData<*mut ()>);

impl<'a> InTask<'a> {
    /// # Safety
    ///
    /// The type's invariants hold.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        // INVARIANT: The caller's promise.
        Self(PhantomData, PhantomData)
    }

    /// Which task it is, and how long it has waited for a CPU. Without `CONFIG_SCHED_INFO` it never
    /// has.
    pub(crate) fn moment(self) -> Moment {
        // SAFETY: There is always a current task.
        let task = unsafe { bindings::get_current() };
        Moment {
            task: task.addr(),
            // SAFETY: The current task, in which this is set once, before it runs.
            made: unsafe { (*task).start_time },
            // SAFETY: Reads a number of the current task's, which changes only while it does not run.
            delay: unsafe { raw::kvmate_run_delay() },
        }
    }

    /// The vCPU that the task has loaded, if it has one.
    ///
    /// KVM alone uses preempt notifiers; if another did, this would be the address of no vCPU, which
    /// is why it is only compared.
    pub(crate) fn loaded(self) -> Option<VcpuId> {
        // SAFETY: The current task's own list, which only it changes.
        let vcpu = unsafe { raw::kvmate_loaded_vcpu() };
        (!vcpu.is_null()).then(|| VcpuId(vcpu.addr()))
    }
}

/// Call `inside`, a part of a probe that runs in a task, with preemption off.
///
/// # Safety
///
/// The caller is such a probe.
pub(super) unsafe fn in_probe(inside: impl FnOnce(InTask<'_>)) {
    // SAFETY: Any context; enabled again below.
    unsafe { raw::kvmate_preempt_disable() };
    // SAFETY: The caller's promise, and preemption is off.
    inside(unsafe { InTask::new() });
    // SAFETY: Disabled above.
    unsafe { raw::kvmate_preempt_enable() };
}
