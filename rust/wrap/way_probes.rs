// SPDX-License-Identifier: GPL-2.0
//! Probes on an interrupt's way through KVM: `kvm_apic_accept_irq`, `kvm_inj_virq`, `kvm_eoi`.
//!
//! The first fires while whoever sends an interrupt is in KVM, on that CPU, and so belongs to what
//! [`Sending`] says there; it tells the vCPU's number and the vector. The others fire in the task that
//! runs the vCPU, and tell the vector. Where the processor injects and ends interrupts itself (AVIC,
//! APICv) they do not fire.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

use super::{
    gate::InTask,
    kvm::LiveVm,
    percpu::PerCpuPointer,
    probes::{synchronize, Probe, Tracepoints},
};
use crate::raw;
use core::ops::Deref;
use kernel::{
    ffi::{c_int, c_uint, c_ulong, c_void},
    prelude::*,
    sync::{Arc, ArcBorrow},
};

/// Which task runs a vCPU, by its `struct pid`: an address to compare, never to follow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Runner(usize);

impl Runner {
    /// The current task.
    pub(crate) fn current() -> Self {
        // SAFETY: No condition.
        Self(unsafe { raw::kvmate_current_pid() } as usize)
    }
}

/// What wants to know. Any context; no sleep.
pub(crate) trait Ways: Send + Sync + 'static {
    /// What is said of one who sends.
    type Sender;

    /// What that one sends is accepted as this vector by a vCPU that is run by that task.
    fn accepted(this: ArcBorrow<'_, Self>, sender: &Self::Sender, vcpu: Runner, vector: u8);
    /// A vector is injected into the vCPU that the current task runs.
    fn injected(this: ArcBorrow<'_, Self>, vector: u8);
    /// The guest that the current task runs has ended a vector.
    fn ended(this: ArcBorrow<'_, Self>, vector: u8);
}

/// One who is in KVM, on a CPU.
struct Sent<'a, S> {
    sender: &'a S,
    vm: LiveVm<'a>,
    /// What the CPU served then: what an interrupt sends that comes meanwhile is not this one's.
    interrupts: c_ulong,
}

/// Which interrupts this CPU serves.
fn interrupts() -> c_ulong {
    // SAFETY: No condition.
    unsafe { raw::kvmate_interrupts() }
}

/// Who sends on each CPU at the moment.
///
/// # Invariants
///
/// A CPU's pointer is null, or to a [`Sent`] that stays until it is set again on that CPU.
pub(crate) struct Sending<S: 'static>(PerCpuPointer<Sent<'static, S>>);

impl<S: Sync> Sending<S> {
    /// Nobody.
    pub(crate) fn new() -> Result<Self> {
        // INVARIANT: All null.
        Ok(Self(PerCpuPointer::new()?))
    }

    /// Say who sends while `send` does. `vm` is behind a gate, so that this CPU stays the one.
    fn during<R>(&self, sender: &S, vm: LiveVm<'_>, send: impl FnOnce() -> R) -> R {
        let interrupts = interrupts();
        let sent = Sent {
            sender,
            vm,
            interrupts,
        };
        let before = self.0.get();
        // INVARIANT: `sent` outlives `send`, after which what was before is there again: an
        // interrupt's sender comes and goes meanwhile, and no task does.
        self.0.set((&raw const sent).cast());
        let done = send();
        self.0.set(before);
        done
    }

    /// Say so in a gate that turns interrupts off.
    pub(crate) fn irq_off<R>(
        &self,
        sender: &S,
        vm: LiveVm<'_>,
        send: impl FnOnce(LiveVm<'_>) -> R,
    ) -> R {
        self.during(sender, vm, || send(vm))
    }

    /// Say so in a gate of tasks.
    pub(crate) fn in_task<R>(
        &self,
        sender: &S,
        vm: &InTask<'_>,
        send: impl FnOnce(&InTask<'_>) -> R,
    ) -> R {
        self.during(sender, *vm.deref(), || send(vm))
    }
}

/// The probes, registered. Drop it to unregister: after that no call runs any more. Sleeps.
pub(crate) struct WayProbes<T: Ways> {
    probes: Option<[Probe; 3]>,
    // Where the probes' data points.
    _data: Pin<KBox<WayData<T>>>,
}

struct WayData<T: Ways> {
    target: Arc<T>,
    sending: Arc<Sending<T::Sender>>,
}

// SAFETY: Probes may be unregistered from any thread, and what they point to may be sent.
unsafe impl<T: Ways> Send for WayProbes<T> {}

impl<T: Ways<Sender: Sync>> WayProbes<T> {
    /// Let `target` know from now on. `ENOENT`: KVM has not all of them.
    pub(crate) fn register(
        tracepoints: Tracepoints,
        target: Arc<T>,
        sending: Arc<Sending<T::Sender>>,
    ) -> Result<Self> {
        let accept: raw::kvmate_kvm_apic_accept_irq_probe = Some(on_accept::<T>);
        let inject: raw::kvmate_kvm_inj_virq_probe = Some(on_inject::<T>);
        let eoi: raw::kvmate_kvm_eoi_probe = Some(on_eoi::<T>);
        let null = core::ptr::null_mut();
        let functions = [
            accept.map_or(null, |f| f as *mut c_void),
            inject.map_or(null, |f| f as *mut c_void),
            eoi.map_or(null, |f| f as *mut c_void),
        ];
        let data = KBox::pin(WayData { target, sending }, GFP_KERNEL)?;
        let pointer = (&raw const *data).cast_mut().cast::<c_void>();
        let [accept, inject, eoi] = tracepoints.way.ok_or(ENOENT)?;
        let register = |tracepoint, function| {
            // SAFETY: `function` has the prototype of that tracepoint's probes (the pairs below);
            // `drop`, or this function where it fails, waits before the data goes.
            unsafe { Probe::register(tracepoint, function, pointer) }
        };
        let probes = (|| {
            Ok([
                register(eoi, functions[2])?,
                register(inject, functions[1])?,
                register(accept, functions[0])?,
            ])
        })();
        match probes {
            Ok(probes) => Ok(Self {
                probes: Some(probes),
                _data: data,
            }),
            Err(error) => {
                synchronize();
                Err(error)
            }
        }
    }
}

impl<T: Ways> Drop for WayProbes<T> {
    fn drop(&mut self) {
        self.probes = None;
        synchronize();
    }
}

/// # Safety
///
/// `data` is that of live [`WayProbes<T>`], and KVM calls this by `kvm_apic_accept_irq`.
unsafe extern "C" fn on_accept<T: Ways>(data: *mut c_void, id: u32, mode: u16, _: u16, vector: u8) {
    // The others have no vector. `APIC_DM_FIXED` and `APIC_DM_LOWEST`, as the field stands in the ICR.
    const FIXED: u16 = 0;
    const LOWEST: u16 = 0x100;
    // SAFETY: The caller's promise: the data goes after the probes were unregistered and waited for.
    let data = unsafe { &*data.cast::<WayData<T>>() };
    let sent = data.sending.0.get();
    if sent.is_null() || !matches!(mode, FIXED | LOWEST) {
        return;
    }
    // SAFETY: This CPU's, and whoever set it is interrupted by us or has called us (invariant of
    // `Sending`).
    let sent = unsafe { &*sent };
    if sent.interrupts != interrupts() {
        return;
    }
    let vcpu = i32::try_from(id).ok().and_then(|id| sent.vm.vcpu(id));
    let Some(vcpu) = vcpu else { return };
    // SAFETY: A live vCPU.
    let runner = Runner(unsafe { raw::kvmate_vcpu_pid(vcpu.as_ptr()) } as usize);
    T::accepted(data.target.as_arc_borrow(), sent.sender, runner, vector);
}

/// # Safety
///
/// As for [`on_accept`], by `kvm_inj_virq`.
unsafe extern "C" fn on_inject<T: Ways>(data: *mut c_void, vector: c_uint, soft: bool, _: bool) {
    // SAFETY: As in `on_accept`.
    let data = unsafe { &*data.cast::<WayData<T>>() };
    if let (Ok(vector), false) = (u8::try_from(vector), soft) {
        T::injected(data.target.as_arc_borrow(), vector);
    }
}

/// # Safety
///
/// As for [`on_accept`], by `kvm_eoi`.
unsafe extern "C" fn on_eoi<T: Ways>(data: *mut c_void, _: *mut raw::kvm_lapic, vector: c_int) {
    // SAFETY: As in `on_accept`.
    let data = unsafe { &*data.cast::<WayData<T>>() };
    if let Ok(vector) = u8::try_from(vector) {
        T::ended(data.target.as_arc_borrow(), vector);
    }
}
