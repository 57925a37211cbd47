// SPDX-License-Identifier: GPL-2.0
//! KVM's names for numbers, from its public headers.

use crate::{pure::reason::Vendor, raw};
use kernel::prelude::*;

/// Whose exit codes this processor gives.
pub(crate) fn vendor() -> Vendor {
    // SAFETY: Reads what is set at boot.
    match unsafe { raw::kvmate_has_vmx() } {
        true => Vendor::Vmx,
        false => Vendor::Svm,
    }
}

/// The exit codes that have a name, and that, as KVM's trace events have it.
pub(crate) fn exits(vendor: Vendor) -> impl Iterator<Item = (u64, &'static CStr)> {
    let table = match vendor {
        Vendor::Svm => (&raw const raw::kvmate_svm_exits).cast(),
        Vendor::Vmx => (&raw const raw::kvmate_vmx_exits).cast(),
    };
    // SAFETY: One of the shim's tables.
    unsafe { names(table) }
}

/// The name of an exit code.
pub(crate) fn exit(vendor: Vendor, code: u64) -> Option<&'static CStr> {
    exits(vendor)
        .find(|&(value, _)| value == code)
        .map(|(_, name)| name)
}

/// The kernel's name of an MSR.
pub(crate) fn msr(index: u32) -> Option<&'static CStr> {
    // SAFETY: The shim's table.
    unsafe { names((&raw const raw::kvmate_msrs).cast()) }
        .find(|&(value, _)| value == index.into())
        .map(|(_, name)| name)
}

/// The name of a `KVM_MP_STATE_*`, of those that x86 has.
pub(crate) fn mp_state(number: i32) -> Option<&'static str> {
    Some(match u32::try_from(number).ok()? {
        raw::KVM_MP_STATE_RUNNABLE => "runnable",
        raw::KVM_MP_STATE_UNINITIALIZED => "uninitialized",
        raw::KVM_MP_STATE_INIT_RECEIVED => "init_received",
        raw::KVM_MP_STATE_HALTED => "halted",
        raw::KVM_MP_STATE_SIPI_RECEIVED => "sipi_received",
        raw::KVM_MP_STATE_AP_RESET_HOLD => "ap_reset_hold",
        _ => return None,
    })
}

/// The name of a bit of `vcpu->requests`, as `KVM_REQ_*`.
pub(crate) fn request(bit: u32) -> Option<&'static CStr> {
    // SAFETY: No condition.
    let name = unsafe { raw::kvmate_request_name(bit) };
    // SAFETY: Null, or a constant string of the shim.
    (!name.is_null()).then(|| unsafe { CStr::from_char_ptr(name) })
}

/// # Safety
///
/// `entry` is the first of a constant table that ends with a null name.
unsafe fn names(mut entry: *const raw::kvmate_name) -> impl Iterator<Item = (u64, &'static CStr)> {
    core::iter::from_fn(move || {
        // SAFETY: The caller's promise; we stop at the end.
        let raw::kvmate_name { value, name } = unsafe { entry.read() };
        if name.is_null() {
            return None;
        }
        // SAFETY: Not the end yet.
        entry = unsafe { entry.add(1) };
        // SAFETY: A constant string of the shim.
        Some((value, unsafe { CStr::from_char_ptr(name) }))
    })
}
