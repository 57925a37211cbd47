// SPDX-License-Identifier: GPL-2.0
//! Where a vCPU's exit reason and instruction pointer are read, in the probe on `kvm_exit`.
//!
//! The tracepoint does not carry the reason. On VMX the VMCS is current on the CPU, and `VMREAD`
//! gives it. On SVM it is in the VMCB, and the pointer to that stands right behind the `struct
//! kvm_vcpu` in the private `struct vcpu_svm`: taken as true if that is proven for the running
//! kvm_amd, else after each vCPU has shown it: what is read there without
//! faulting must be the registers that KVM has copied from the VMCB, at many exits.
//!
//! What cannot be read is not guessed: SEV-ES, SNP and TDX guests hide their registers, and
//! Hyper-V's enlightened VMCS is not read by `VMREAD`.

use super::{by_vcpu::ZeroIsNew, kvm::LiveVcpu, names, probes::RunningVcpu};
use crate::{pure::reason::Vendor, raw};
use core::{
    mem::MaybeUninit,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU8, Ordering::Relaxed},
};
use kernel::{bindings, ffi::c_void, prelude::*};

/// Nothing decided: before the first exit.
const NEW: u8 = 0;
const SVM: u8 = 1;
const VMX: u8 = 2;
const UNKNOWN: u8 = 3;
/// From here on up: SVM, after so many more agreeing exits.
const PROVING: u8 = 0x80;
/// Beside each of them: times are to be split ([`ExitSource::set_split`]). No state that the hot path
/// knows has it, so what it costs is paid by those only that want it.
const SPLIT: u8 = 0x40;
/// As that: exits are traced ([`ExitSource::set_traced`]).
const TRACED: u8 = 0x20;
/// What stands beside what is decided.
const LONG_WAY: u8 = SPLIT | TRACED;
/// How many exits must agree.
const AGREEING: u8 = 32;

/// What is known of `struct vcpu_svm`, for vCPUs that begin to run: a [`Svm`].
static SVM_KNOWN: AtomicU8 = AtomicU8::new(Svm::Undecided as u8);
/// Whether a vCPU's VMCB was not where it should be.
static SVM_REFUTED: AtomicBool = AtomicBool::new(false);

/// What is known of the layout of the running kvm_amd's `struct vcpu_svm`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Svm {
    /// Nothing: each vCPU has to show it.
    Undecided,
    /// It is the one taken for true.
    Proven,
    /// It is another one.
    Refuted,
}

/// Tell what is known of the layout of `struct vcpu_svm`.
pub(crate) fn set_svm(svm: Svm) {
    SVM_KNOWN.store(svm as u8, Relaxed);
}

/// An exit, as hardware tells it.
#[derive(Clone, Copy)]
pub(crate) struct Exit {
    /// The reason, a code of [`ExitSource::vendor`]'s.
    pub(crate) code: u64,
    /// The guest's instruction pointer.
    pub(crate) rip: u64,
}

/// Where one vCPU's exits are read.
pub(crate) struct ExitSource {
    state: AtomicU8,
    /// Which turn of splitting it is: odd while times are to be split.
    turn: AtomicU32,
}

// SAFETY: Zero is `NEW`, and the turn before the first.
unsafe impl ZeroIsNew for ExitSource {}

impl ExitSource {
    /// The exit that the guest has just made, on SVM where all is decided.
    #[inline(always)]
    pub(crate) fn read_svm(&self, vcpu: RunningVcpu<'_>) -> Option<Exit> {
        // SAFETY: Proven, for this is how the state is reached.
        (self.state.load(Relaxed) == SVM).then(|| unsafe { svm_exit(vcpu) })
    }

    /// The exit that the guest has just made, on VMX where all is decided.
    #[inline(always)]
    pub(crate) fn read_vmx(&self, _: RunningVcpu<'_>) -> Option<Exit> {
        if self.state.load(Relaxed) != VMX {
            return None;
        }
        // SAFETY: Decided in a probe on VMX, and we are in a probe.
        unsafe { vmx_exit() }
    }

    /// Have the vCPU's exits take the long way, on which their times are split, in an odd turn, or the
    /// short one. Any context.
    pub(crate) fn set_split(&self, turn: u64) {
        self.turn.store(turn as u32, Relaxed);
        if turn % 2 == 1 {
            self.state.fetch_or(SPLIT, Relaxed);
        } else {
            self.state.fetch_and(!SPLIT, Relaxed);
        }
    }

    /// Which turn of splitting it is; in an odd one times are to be split.
    pub(crate) fn turn(&self) -> u64 {
        self.turn.load(Relaxed).into()
    }

    /// Have the vCPU's exits take the long way, on which they are traced, or the short one. Any context.
    pub(crate) fn set_traced(&self, on: bool) {
        if on {
            self.state.fetch_or(TRACED, Relaxed);
        } else {
            self.state.fetch_and(!TRACED, Relaxed);
        }
    }

    /// Whether exits are traced.
    pub(crate) fn is_traced(&self) -> bool {
        self.state.load(Relaxed) & TRACED != 0
    }

    /// What hardware says of the exit beside its reason: `EXITINFO1`, or the exit qualification.
    pub(crate) fn info(&self, vcpu: RunningVcpu<'_>) -> u64 {
        match self.state() {
            // SAFETY: Proven, for this is how the state is reached.
            SVM => unsafe { svm_field(vcpu, raw::VMCB_EXIT_INFO) },
            // SAFETY: Decided in a probe on VMX, and we are in a probe.
            VMX => unsafe { vmread(raw::VMCS_EXIT_QUALIFICATION) }.unwrap_or(0),
            _ => 0,
        }
    }

    /// What is decided.
    fn state(&self) -> u8 {
        self.state.load(Relaxed) & !LONG_WAY
    }

    /// Decide, from `before`. Only the CPU that runs the vCPU does, beside [`ExitSource::set_split`].
    fn decide(&self, before: u8, state: u8) {
        // The bits that differ.
        self.state.fetch_xor(before ^ state, Relaxed);
    }

    /// Whose codes it gives. Where nothing is decided, or nothing can be read: the processor's, which is
    /// whose KVM runs.
    pub(crate) fn vendor(&self) -> Vendor {
        match self.state() {
            VMX => Vendor::Vmx,
            NEW | UNKNOWN => names::vendor(),
            _ => Vendor::Svm,
        }
    }

    /// The exit that the guest has just made, wherever it is read; `None` if it cannot be told.
    pub(crate) fn read(&self, vcpu: RunningVcpu<'_>, isa: u32) -> Option<Exit> {
        if self.state() == NEW {
            self.decide(NEW, decide(*vcpu, isa));
        }
        let state = self.state();
        match state {
            // SAFETY: As in `read_svm`.
            SVM => Some(unsafe { svm_exit(vcpu) }),
            // SAFETY: As in `read_vmx`.
            VMX => unsafe { vmx_exit() },
            PROVING.. => match svm_exit_if_agreeing(*vcpu) {
                Ok(exit) => {
                    // Zeros agree with zeros anywhere: they prove nothing.
                    if exit.rip != 0 {
                        let next = if state == PROVING { SVM } else { state - 1 };
                        self.decide(state, next);
                    }
                    Some(exit)
                }
                Err(_) => {
                    self.decide(state, UNKNOWN);
                    if !SVM_REFUTED.swap(true, Relaxed) {
                        pr_warn!(
                            "kvm_amd's struct vcpu_svm has its VMCB elsewhere: reasons are unknown\n"
                        );
                    }
                    None
                }
            },
            _ => None,
        }
    }
}

fn decide(vcpu: LiveVcpu<'_>, isa: u32) -> u8 {
    if vcpu.hidden() {
        return UNKNOWN;
    }
    match isa {
        raw::ISA_SVM => match SVM_KNOWN.load(Relaxed) {
            known if known == Svm::Proven as u8 => SVM,
            known if known == Svm::Refuted as u8 => UNKNOWN,
            _ => PROVING + AGREEING - 1,
        },
        // SAFETY: Reads what is set at boot.
        raw::ISA_VMX if !unsafe { raw::kvmate_on_hyperv() } => VMX,
        _ => UNKNOWN,
    }
}

/// # Safety
///
/// `struct vcpu_svm` is proven to begin with the vCPU and the pointer to its VMCB; `offset` is that of
/// eight bytes of a VMCB.
#[inline(always)]
unsafe fn svm_field(vcpu: RunningVcpu<'_>, offset: usize) -> u64 {
    // SAFETY: The caller's promise: the pointer to the VMCB, which KVM itself reads at each exit.
    let vmcb = unsafe {
        vcpu.as_ptr()
            .cast::<*const u8>()
            .byte_add(raw::SVM_VMCB)
            .read()
    };
    // SAFETY: Inside the VMCB, which stays with the vCPU.
    unsafe { vmcb.byte_add(offset).cast::<u64>().read() }
}

/// # Safety
///
/// As [`svm_field`].
#[inline(always)]
unsafe fn svm_exit(vcpu: RunningVcpu<'_>) -> Exit {
    Exit {
        // SAFETY: The caller's promise, and a field.
        code: unsafe { svm_field(vcpu, raw::VMCB_EXIT_CODE) },
        // SAFETY: As above.
        rip: unsafe { svm_field(vcpu, raw::VMCB_RIP) },
    }
}

/// The exit, read at the place that is to be proven, if what else stands there is what KVM holds.
fn svm_exit_if_agreeing(vcpu: LiveVcpu<'_>) -> Result<Exit> {
    let vcpu: *const u8 = vcpu.as_ptr().cast();
    let vmcb = peek(vcpu.wrapping_byte_add(raw::SVM_VMCB))?;
    let vmcb = core::ptr::with_exposed_provenance::<u8>(vmcb as usize);
    let field = |offset: usize| peek(vmcb.wrapping_byte_add(offset));
    let held = |offset: usize| peek(vcpu.wrapping_byte_add(offset));
    for (there, here) in [
        (raw::VMCB_RIP, raw::VCPU_RIP),
        (raw::VMCB_RSP, raw::VCPU_RSP),
        (raw::VMCB_RAX, raw::VCPU_RAX),
    ] {
        if field(there)? != held(here)? {
            return Err(EINVAL);
        }
    }
    Ok(Exit {
        code: field(raw::VMCB_EXIT_CODE)?,
        rip: field(raw::VMCB_RIP)?,
    })
}

/// Read a word of kernel memory, or fail where there is none.
fn peek(from: *const u8) -> Result<u64> {
    let mut word = MaybeUninit::<u64>::uninit();
    // SAFETY: Writes eight bytes, or fails; whatever the source is, it does not fault.
    let failed = unsafe {
        bindings::copy_from_kernel_nofault(
            word.as_mut_ptr().cast::<c_void>(),
            from.cast(),
            size_of::<u64>(),
        )
    };
    if failed != 0 {
        return Err(EFAULT);
    }
    // SAFETY: Written, for it did not fail.
    Ok(unsafe { word.assume_init() })
}

/// # Safety
///
/// In the probe on `kvm_exit` of a VMX vCPU whose VMCS is a hardware one: it is current then.
#[inline(always)]
unsafe fn vmx_exit() -> Option<Exit> {
    // SAFETY: The caller's promise.
    let code = unsafe { vmread(raw::VMCS_EXIT_REASON) }?;
    // SAFETY: As above.
    let rip = unsafe { vmread(raw::VMCS_GUEST_RIP) }?;
    Some(Exit {
        code: code & 0xffff_ffff,
        rip,
    })
}

/// # Safety
///
/// As [`vmx_exit`].
#[inline(always)]
unsafe fn vmread(field: usize) -> Option<u64> {
    let value: u64;
    let failed: u8;
    // SAFETY: The caller's promise: in VMX operation. Changes only what is named.
    unsafe {
        core::arch::asm!(
            "vmread {value}, {field}",
            "setbe {failed}",
            field = in(reg) field,
            value = out(reg) value,
            failed = out(reg_byte) failed,
            options(nostack)
        )
    };
    (failed == 0).then_some(value)
}
