// SPDX-License-Identifier: GPL-2.0
//! The time-stamp counter.

use kernel::bindings;

/// This CPU's counter now. Not ordered against what stands around it: a few cycles.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: Every x86-64 processor has the instruction, and the kernel may always use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Thousands of cycles a second.
pub(crate) fn khz() -> u32 {
    // SAFETY: A number that the kernel sets at boot and refines once.
    unsafe { (&raw const bindings::tsc_khz).read_volatile() }
}
