// SPDX-License-Identifier: GPL-2.0
//! A probe on KVM's tracepoint `kvm_ack_irq`: a guest has ended an interrupt of the PIC or IOAPIC.
//!
//! It fires in the task that runs the vCPU, with interrupts on, and with no lock of the chips held:
//! KVM calls its own notifiers right after it.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

use super::probes::{synchronize, Probe, Tracepoints};
use crate::raw;
use kernel::{
    ffi::{c_uint, c_void},
    prelude::*,
    sync::{Arc, ArcBorrow},
};

/// A pin of one of KVM's chips.
#[derive(Clone, Copy)]
pub(crate) struct Pin {
    pub(super) chip: u32,
    pub(super) pin: u32,
}

/// What wants to know. No sleep.
pub(crate) trait Acks: Send + Sync + 'static {
    /// The guest that the current task runs has ended an interrupt of that pin.
    fn acked(this: ArcBorrow<'_, Self>, pin: Pin);
}

/// The probe, registered. Drop it to unregister: after that no call runs any more. Sleeps.
pub(crate) struct AckProbe<T: Acks> {
    probe: Option<Probe>,
    // Where the probe's data points.
    _target: Arc<T>,
}

// SAFETY: Probes may be unregistered from any thread, and the target may be sent.
unsafe impl<T: Acks> Send for AckProbe<T> {}

impl<T: Acks> AckProbe<T> {
    /// Let `target` know from now on. `ENOENT`: no such tracepoint.
    pub(crate) fn register(tracepoints: Tracepoints, target: Arc<T>) -> Result<Self> {
        let acked: raw::kvmate_kvm_ack_irq_probe = Some(on_ack::<T>);
        let address = acked.map_or(core::ptr::null_mut(), |f| f as *mut c_void);
        let data = Arc::as_ptr(&target).cast_mut().cast();
        // SAFETY: `on_ack` has the prototype of that tracepoint's probes; `drop` waits before the
        // target goes.
        let probe = unsafe { Probe::register(tracepoints.ack.ok_or(ENOENT)?, address, data) }?;
        Ok(Self {
            probe: Some(probe),
            _target: target,
        })
    }
}

impl<T: Acks> Drop for AckProbe<T> {
    fn drop(&mut self) {
        self.probe = None;
        synchronize();
    }
}

/// Wait until every call that runs now has returned. Sleeps.
pub(crate) fn wait() {
    synchronize();
}

/// # Safety
///
/// `data` is that of a live [`AckProbe<T>`], and KVM calls this by `kvm_ack_irq`.
unsafe extern "C" fn on_ack<T: Acks>(data: *mut c_void, chip: c_uint, pin: c_uint) {
    // SAFETY: The caller's promise: the probe is unregistered and waited for before the `Arc` goes.
    let target = unsafe { ArcBorrow::from_raw(data.cast::<T>()) };
    T::acked(target, Pin { chip, pin });
}
