// SPDX-License-Identifier: GPL-2.0
//! KVM's VMs and vCPUs, as far as they are looked into.
//!
//! # The rule
//!
//! kvmate holds no reference to a `struct kvm`: one that outlives the VM's files would race
//! `kvm_destroy_vm()` against the vendor module's removal. A pointer to a VM or vCPU is followed
//! only while something else keeps it, and then it is a [`LiveVm`] or [`LiveVcpu`], whose lifetime
//! is that of the reason:
//!
//! - in a probe on `kvm_exit` or `kvm_entry`: KVM is running that vCPU ([`super::probes`]);
//! - in the hook on what a LAPIC accepts, whose caller has the LAPIC in hand ([`super::accepts`]);
//! - in the hooks on `kvm_arch_vcpu_postcreate()` and `kvm_arch_pre_destroy_vm()`, whose caller has
//!   the VM in hand ([`super::life`]);
//! - while a file of the VM is held ([`super::files`]), for work that must sleep;
//! - behind the VM's gate ([`super::gate`]), which the second hook closes.
//!
//! All else keeps a [`VmId`] or [`VcpuId`]: an address to compare, never to follow.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use super::task::TaskRef;
use crate::raw;
use core::{marker::PhantomData, num::NonZero, ptr::NonNull};
use kernel::{ffi::c_void, prelude::*, task::Task};

/// Which VM; another one may have the same once it has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct VmId(pub(super) usize);

/// Which vCPU; another one may have the same once its VM has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct VcpuId(pub(super) usize);

/// A vCPU's LAPIC: likewise.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lapic(NonZero<usize>);

impl Lapic {
    pub(super) fn new(address: usize) -> Option<Self> {
        NonZero::new(address).map(Self)
    }

    pub(super) fn get(self) -> usize {
        self.0.get()
    }
}

/// Whose memory a VM has; another one's may have the same once all of this one's users are gone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MmId(usize);

impl MmId {
    /// The current task's.
    pub(crate) fn current() -> Self {
        // SAFETY: The current task, whose memory is its own to look at.
        Self(unsafe { (*Task::current_raw()).mm }.addr())
    }
}

/// A VM that stays for `'a`.
///
/// # Invariants
///
/// The pointer is to a `struct kvm` that [`the rule`](self) keeps from `kvm_arch_pre_destroy_vm()`'s
/// return for `'a`, and whose layout is the one we were built with.
#[derive(Clone, Copy)]
pub(crate) struct LiveVm<'a>(NonNull<raw::kvm>, PhantomData<&'a ()>);

/// A vCPU that stays for `'a`.
///
/// # Invariants
///
/// The pointer is to a `struct kvm_vcpu` of a VM as [`LiveVm`] has it, and user space could have it.
#[derive(Clone, Copy)]
pub(crate) struct LiveVcpu<'a>(NonNull<raw::kvm_vcpu>, PhantomData<&'a ()>);

/// The longest name of a VM: two numbers, and a zero byte.
const NAME: usize = 32;

/// A VM's name, in the form that KVM's debugfs has.
pub(crate) struct VmName {
    /// KVM's own name of it, `<pid>-<fd>`; empty where KVM has none.
    text: [u8; NAME],
    /// The number of the thread that made it.
    pub(crate) pid: u32,
}

impl VmName {
    /// KVM's own name, where it has one.
    pub(crate) fn own(&self) -> Option<&CStr> {
        CStr::from_bytes_until_nul(&self.text)
            .ok()
            .filter(|name| !name.is_empty())
    }
}

/// What a vCPU is doing.
pub(crate) struct Sample {
    /// `vcpu->requests`
    pub(crate) requests: u64,
    /// Not `OUTSIDE_GUEST_MODE`.
    pub(crate) in_guest: bool,
    /// Waiting for something to wake it (halted).
    pub(crate) blocking: bool,
    /// In `KVM_RUN`.
    pub(crate) in_kernel: bool,
}

/// What waits to get into a guest, as far as KVM tells.
pub(crate) struct Pending {
    /// `KVM_MP_STATE_*`
    pub(crate) mp_state: i32,
    /// The vector of an interrupt that KVM has taken from its chips and is putting in.
    pub(crate) interrupt: Option<u8>,
    /// The vector of an exception.
    pub(crate) exception: Option<u8>,
    /// How many NMIs.
    pub(crate) nmis: u32,
    /// An SMI.
    pub(crate) smi: bool,
    /// A wake-up by another vCPU (`KVM_HC_KICK_CPU`).
    pub(crate) unhalted: bool,
}

impl<'a> LiveVm<'a> {
    /// # Safety
    ///
    /// The type's invariants hold.
    pub(super) unsafe fn new(vm: NonNull<raw::kvm>) -> Self {
        // INVARIANT: The caller's promise.
        Self(vm, PhantomData)
    }

    /// Which it is.
    pub(crate) fn id(self) -> VmId {
        VmId(self.0.as_ptr().addr())
    }

    /// For a gate, which makes it live again.
    pub(super) fn as_ptr(self) -> NonNull<raw::kvm> {
        self.0
    }

    /// Its name. KVM sets it before user space has the VM.
    pub(crate) fn name(self) -> VmName {
        let mut text = [0; NAME];
        // SAFETY: A live VM (type invariant) whose folder goes only after it is no more live; at
        // most `NAME` bytes are written.
        unsafe { raw::kvmate_vm_name(self.0.as_ptr(), text.as_mut_ptr().cast(), NAME) };
        // SAFETY: As above; a string inside the VM that never changes.
        let id = unsafe { CStr::from_char_ptr(raw::kvmate_vm_stats_id(self.0.as_ptr())) };
        let number = id.to_bytes().strip_prefix(b"kvm-").unwrap_or_default();
        VmName {
            text,
            pid: number.iter().fold(0, |n: u32, &digit| {
                n.wrapping_mul(10)
                    .wrapping_add(digit.wrapping_sub(b'0').into())
            }),
        }
    }

    /// Its VMM's memory.
    pub(crate) fn mm(self) -> MmId {
        // SAFETY: A live VM (type invariant).
        MmId(unsafe { raw::kvmate_vm_mm(self.0.as_ptr()) }.addr())
    }

    /// `vm_bugged`
    pub(crate) fn bugged(self) -> bool {
        // SAFETY: A live VM (type invariant).
        unsafe { raw::kvmate_vm_bugged(self.0.as_ptr()) }
    }

    /// Whether hardware delivers its interrupts by itself (APICv, AVIC) now.
    pub(crate) fn apicv(self) -> bool {
        // SAFETY: A live VM (type invariant).
        unsafe { raw::kvmate_vm_apicv(self.0.as_ptr()) }
    }

    /// `vm_dead`
    pub(crate) fn dead(self) -> bool {
        // SAFETY: A live VM (type invariant).
        unsafe { raw::kvmate_vm_dead(self.0.as_ptr()) }
    }

    /// The vCPU that user space gave this number.
    pub(crate) fn vcpu(self, number: i32) -> Option<LiveVcpu<'a>> {
        // SAFETY: A live VM (type invariant).
        let vcpu = unsafe { raw::kvmate_vm_vcpu(self.0.as_ptr(), number) };
        // INVARIANT: vCPUs go with their VM.
        NonNull::new(vcpu).map(|vcpu| LiveVcpu(vcpu, PhantomData))
    }

    /// Call `visit` for every vCPU. No sleep if `visit` does not.
    pub(crate) fn each_vcpu<F: FnMut(LiveVcpu<'a>)>(self, mut visit: F) {
        /// # Safety
        ///
        /// `visit` is the `F` below; the vCPU is one of a VM live for `'a`.
        unsafe extern "C" fn call<'a, F: FnMut(LiveVcpu<'a>)>(
            visit: *mut c_void,
            vcpu: *mut raw::kvm_vcpu,
        ) {
            if let Some(vcpu) = NonNull::new(vcpu) {
                // SAFETY: The caller's promise.
                let visit = unsafe { &mut *visit.cast::<F>() };
                // INVARIANT: The caller's promise.
                visit(LiveVcpu(vcpu, PhantomData));
            }
        }
        // SAFETY: A live VM (type invariant), and vCPUs go with their VM; `visit` outlives the call.
        unsafe {
            raw::kvmate_vm_each_vcpu(
                self.0.as_ptr(),
                Some(call::<F>),
                (&raw mut visit).cast::<c_void>(),
            )
        };
    }
}

impl<'a> LiveVcpu<'a> {
    /// # Safety
    ///
    /// The type's invariants hold.
    pub(super) unsafe fn new(vcpu: NonNull<raw::kvm_vcpu>) -> Self {
        // INVARIANT: The caller's promise.
        Self(vcpu, PhantomData)
    }

    /// Its LAPIC, if KVM has one for it.
    pub(crate) fn lapic(self) -> Option<Lapic> {
        // SAFETY: A live vCPU (type invariant).
        Lapic::new(unsafe { raw::kvmate_vcpu_lapic(self.0.as_ptr()) }.addr())
    }

    /// Which it is.
    #[inline(always)]
    pub(crate) fn id(self) -> VcpuId {
        VcpuId(self.0.as_ptr().addr())
    }

    #[inline(always)]
    pub(super) fn as_ptr(self) -> *mut raw::kvm_vcpu {
        self.0.as_ptr()
    }

    /// The number user space gave it.
    pub(crate) fn number(self) -> i32 {
        // SAFETY: A live vCPU (type invariant).
        unsafe { raw::kvmate_vcpu_id(self.0.as_ptr()) }
    }

    /// Its VM.
    pub(crate) fn vm(self) -> LiveVm<'a> {
        // SAFETY: A live vCPU (type invariant).
        let vm = unsafe { raw::kvmate_vcpu_kvm(self.0.as_ptr()) };
        // SAFETY: Never null: KVM sets it before user space has the vCPU.
        let vm = unsafe { NonNull::new_unchecked(vm) };
        // INVARIANT: A live vCPU's VM is live.
        LiveVm(vm, PhantomData)
    }

    /// Whether its registers and reasons are out of the host's sight.
    pub(super) fn hidden(self) -> bool {
        // SAFETY: A live vCPU (type invariant).
        unsafe { raw::kvmate_vcpu_hidden(self.0.as_ptr()) }
    }

    /// What it is doing.
    pub(crate) fn sample(self) -> Sample {
        let mut sample = raw::kvmate_vcpu_sample::default();
        // SAFETY: A live vCPU (type invariant).
        unsafe { raw::kvmate_vcpu_sample(self.0.as_ptr(), &mut sample) };
        Sample {
            requests: sample.requests,
            in_guest: sample.in_guest,
            blocking: sample.blocking,
            in_kernel: sample.in_kernel,
        }
    }

    /// What waits to get in.
    pub(crate) fn pending(self) -> Pending {
        let mut pending = raw::kvmate_vcpu_pending::default();
        // SAFETY: A live vCPU (type invariant).
        unsafe { raw::kvmate_vcpu_pending(self.0.as_ptr(), &mut pending) };
        Pending {
            mp_state: pending.mp_state,
            interrupt: u8::try_from(pending.interrupt).ok(),
            exception: u8::try_from(pending.exception).ok(),
            nmis: pending.nmis,
            smi: pending.smi,
            unhalted: pending.unhalted,
        }
    }

    /// The task that last ran it, if that is there still. Takes a plain lock of KVM's: not with
    /// interrupts off.
    pub(crate) fn task(self) -> Option<TaskRef> {
        // SAFETY: A live vCPU (type invariant); gives a reference.
        let task = NonNull::new(unsafe { raw::kvmate_vcpu_task(self.0.as_ptr()) })?;
        // SAFETY: That task, and the reference.
        Some(unsafe { TaskRef::from_raw(task) })
    }
}
