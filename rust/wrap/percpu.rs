// SPDX-License-Identifier: GPL-2.0
//! A counter with a part for each CPU.
//!
//! C header: [`include/linux/percpu.h`](srctree/include/linux/percpu.h)

use crate::raw;
use kernel::{bindings, ffi::c_void, prelude::*};

/// A counter that every CPU adds to on a cache line of its own.
///
/// # Invariants
///
/// The cookie is that of a live per-CPU allocation of one `u64` for each possible CPU. A CPU's part
/// is written only by that CPU, one whole instruction at a time.
pub(crate) struct PerCpuCounter(*mut c_void);

// SAFETY: By the invariant parts are written by their own CPU only; others load them whole.
unsafe impl Send for PerCpuCounter {}
// SAFETY: As above.
unsafe impl Sync for PerCpuCounter {}

impl PerCpuCounter {
    /// A counter at zero.
    pub(crate) fn new() -> Result<Self> {
        // A cache line each: neighbours in a CPU's area are written by other code of that CPU only,
        // but readers of theirs need not take ours along.
        // SAFETY: No condition but process context, which `Result`-returning constructors have.
        let cookie = unsafe { raw::kvmate_percpu_alloc(size_of::<u64>(), 64) };
        if cookie.is_null() {
            return Err(ENOMEM);
        }
        // INVARIANT: Fresh, and per-CPU memory comes zeroed.
        Ok(Self(cookie))
    }

    /// Add one to this CPU's part: one instruction, good in any context and against interrupts.
    #[inline(always)]
    pub(crate) fn increment(&self) {
        // SAFETY: On x86-64 a per-CPU cookie is an offset from GS' base, so this writes the `u64` of
        // the CPU that executes it (type invariant), whole, whatever preempts or interrupts.
        unsafe {
            core::arch::asm!(
                "inc qword ptr gs:[{cookie}]",
                cookie = in(reg) self.0,
                options(nostack)
            )
        };
    }

    /// The sum of all parts, each read once. Monotonic for a single reader.
    pub(crate) fn sum(&self) -> u64 {
        let mut sum = 0u64;
        // SAFETY: A look-up in a mask that does not change after boot.
        let mut cpu = unsafe { raw::kvmate_next_possible_cpu(0) };
        // SAFETY: Reads a number that is set once, at boot.
        let end = unsafe { raw::kvmate_nr_cpu_ids() };
        while cpu < end {
            // SAFETY: The cookie is live (type invariant) and `cpu` is a possible CPU.
            let part = unsafe { raw::kvmate_percpu_ptr(self.0, cpu) }.cast::<u64>();
            // SAFETY: `part` is that CPU's aligned `u64`; a volatile load of it is whole.
            sum = sum.wrapping_add(unsafe { part.read_volatile() });
            // SAFETY: As above.
            cpu = unsafe { raw::kvmate_next_possible_cpu(cpu + 1) };
        }
        sum
    }
}

impl Drop for PerCpuCounter {
    fn drop(&mut self) {
        // SAFETY: The allocation is live (type invariant), and this is its owner's end.
        unsafe { bindings::free_percpu(self.0) };
    }
}
