// SPDX-License-Identifier: GPL-2.0
//! The hook on interrupts that KVM gives to a vCPU's LAPIC, whoever sent them.
//!
//! KVM's tracepoint there (`kvm_apic_accept_irq`) tells a vCPU's number but not of which VM, so the
//! function that it is in is hooked: `__apic_accept_irq(apic, delivery_mode, vector, level, trig_mode,
//! ...)`, which both ways of an interrupt go through, from a sender and from the LAPIC's own timer and
//! lines. It is KVM's own, not an interface: a kernel built without it as a function of that name is
//! told of (`ENOENT`), and what it gives is only compared with what we know, never followed. A compiler
//! that inlines it for one of its callers leaves the function for the others: that caller's are then
//! missed, and nothing tells. The tests compare with KVM's trace events.
//!
//! It runs in whatever context the sender is, any CPU at a time. A reader's section of RCU (preemption
//! is off) is what [`super::by_vcpu::ByVcpu::settle`] waits for.

use super::{
    function_hook::{FunctionHooks, Place},
    kvm::Lapic,
};
use crate::raw;
use core::marker::PhantomData;
use kernel::{
    bindings,
    ffi::c_ulong,
    prelude::*,
    sync::{Arc, ArcBorrow},
};

/// An interrupt that a LAPIC is given.
///
/// # Invariants
///
/// Preemption is off, and the hooked function stands at its begin, for `'a`.
pub(crate) struct Accepted<'a> {
    lapic: Lapic,
    /// As what.
    pub(crate) vector: u8,
    here: PhantomData<(&'a (), *mut ())>,
}

impl Accepted<'_> {
    /// Whose LAPIC.
    pub(crate) fn lapic(&self) -> Lapic {
        self.lapic
    }
}

/// What wants to know. Any context, several CPUs at once; no sleep.
pub(crate) trait Accepting: Send + Sync + 'static {
    /// A LAPIC is given an interrupt.
    fn on_accept(this: ArcBorrow<'_, Self>, accepted: Accepted<'_>);
}

/// The hook, registered; dropping it unregisters it, as [`FunctionHooks`] does.
pub(crate) struct Accepts<T: Accepting>(#[expect(dead_code)] FunctionHooks<Arc<T>>);

impl<T: Accepting> Accepts<T> {
    /// Let `target` know from now on. `ENOENT`: this KVM has no such function. `ENOMEM`, and what ftrace
    /// says where it is broken.
    pub(crate) fn register(target: Arc<T>) -> Result<Self> {
        let place = Place::of(c"__apic_accept_irq")?;
        // SAFETY: `on_accept` takes the private data for an `Arc<T>`, and that is its function.
        Ok(Self(unsafe {
            FunctionHooks::register([place], target, on_accept::<T>)
        }?))
    }
}

/// # Safety
///
/// ftrace calls it, for the hook made by [`Accepts::register`].
unsafe extern "C" fn on_accept<T: Accepting>(
    _ip: c_ulong,
    _parent: c_ulong,
    ops: *mut bindings::ftrace_ops,
    fregs: *mut bindings::ftrace_regs,
) {
    // The others have no vector. `APIC_DM_FIXED` and `APIC_DM_LOWEST`, as the field stands in the ICR.
    const FIXED: u32 = 0;
    const LOWEST: u32 = 0x100;
    // SAFETY: The registers of this call, whose first five arguments are in registers.
    let argument = |number| unsafe { raw::kvmate_ftrace_argument(fregs, number) }.addr();
    // What stands above an `int` in a register says nothing.
    let [mode, vector, level, trigger] = [1, 2, 3, 4].map(|number| argument(number) as u32);
    let taken_back = trigger != 0 && level == 0;
    let (Some(lapic), Ok(vector)) = (Lapic::new(argument(0)), u8::try_from(vector)) else {
        return;
    };
    if !matches!(mode, FIXED | LOWEST) || taken_back {
        return;
    }
    // SAFETY: The private data of a registered hook.
    let target = unsafe { &*(*ops).private.cast::<Arc<T>>() };
    // SAFETY: Any context; enabled again below.
    unsafe { raw::kvmate_preempt_disable() };
    // INVARIANT: Off just now, until `on_accept` has returned.
    let accepted = Accepted {
        lapic,
        vector,
        here: PhantomData,
    };
    T::on_accept(target.as_arc_borrow(), accepted);
    // SAFETY: Disabled above.
    unsafe { raw::kvmate_preempt_enable() };
}
