// SPDX-License-Identifier: GPL-2.0
//! Per-CPU data: a counter with a part for each CPU, a pointer for each CPU.
//!
//! C header: [`include/linux/percpu.h`](srctree/include/linux/percpu.h)

use crate::raw;
use core::{
    marker::PhantomData,
    sync::atomic::{AtomicPtr, Ordering},
};
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
        // INVARIANT: Fresh, and per-CPU memory comes zeroed.
        Ok(Self(allocate(size_of::<u64>())?))
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
        for_each_part(self.0, |part| {
            // SAFETY: `part` is a CPU's aligned `u64`; a volatile load of it is whole.
            sum = sum.wrapping_add(unsafe { part.cast::<u64>().read_volatile() });
        });
        sum
    }
}

impl Drop for PerCpuCounter {
    fn drop(&mut self) {
        // SAFETY: The allocation is live (type invariant), and this is its owner's end.
        unsafe { bindings::free_percpu(self.0) };
    }
}

/// A pointer for each CPU.
///
/// # Invariants
///
/// The cookie is that of a live per-CPU allocation of one pointer for each possible CPU. A CPU's
/// pointer is set by that CPU only; others only exchange it for null, by an atomic instruction.
pub(crate) struct PerCpuPointer<T>(*mut c_void, PhantomData<*const T>);

// SAFETY: By the invariant; what the pointers point to is up to who follows them.
unsafe impl<T> Send for PerCpuPointer<T> {}
// SAFETY: As above.
unsafe impl<T> Sync for PerCpuPointer<T> {}

impl<T> PerCpuPointer<T> {
    /// All null.
    pub(crate) fn new() -> Result<Self> {
        // INVARIANT: Per-CPU memory comes zeroed.
        Ok(Self(allocate(size_of::<*const T>())?, PhantomData))
    }

    /// This CPU's.
    #[inline(always)]
    pub(crate) fn get(&self) -> *const T {
        let pointer: *const T;
        // SAFETY: As for `PerCpuCounter::increment`: a whole load of this CPU's pointer.
        unsafe {
            core::arch::asm!(
                "mov {pointer}, qword ptr gs:[{cookie}]",
                cookie = in(reg) self.0,
                pointer = out(reg) pointer,
                options(nostack, preserves_flags, readonly)
            )
        };
        pointer
    }

    /// Set this CPU's.
    pub(crate) fn set(&self, pointer: *const T) {
        // SAFETY: As for `PerCpuCounter::increment`: a whole store of this CPU's pointer.
        unsafe {
            core::arch::asm!(
                "mov qword ptr gs:[{cookie}], {pointer}",
                cookie = in(reg) self.0,
                pointer = in(reg) pointer,
                options(nostack, preserves_flags)
            )
        };
    }

    /// Make every CPU's null that `which` chooses. It is not asked of null.
    pub(crate) fn clear_everywhere(&self, which: impl Fn(*const T) -> bool) {
        for_each_part(self.0, |part| {
            // SAFETY: A live, aligned pointer of a CPU, changed by whole instructions only (type
            // invariant).
            let part = unsafe { AtomicPtr::from_ptr(part.cast::<*mut T>()) };
            let pointer = part.load(Ordering::Relaxed);
            if !pointer.is_null() && which(pointer) {
                // Failure: that CPU has gone on to another one.
                let _ = part.compare_exchange(
                    pointer,
                    core::ptr::null_mut(),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            }
        });
    }
}

impl<T> Drop for PerCpuPointer<T> {
    fn drop(&mut self) {
        // SAFETY: The allocation is live (type invariant), and this is its owner's end.
        unsafe { bindings::free_percpu(self.0) };
    }
}

/// How many CPUs there can be: their numbers are less.
pub(crate) fn possible_cpus() -> usize {
    // SAFETY: Reads a number that is set once, at boot.
    unsafe { raw::kvmate_nr_cpu_ids() as usize }
}

/// The CPU that this runs on; who may be preempted may be on another by now.
pub(crate) fn this_cpu() -> usize {
    // SAFETY: No condition.
    unsafe { bindings::raw_smp_processor_id() as usize }
}

/// Zeroed memory for each possible CPU, on cache lines of its own: neighbours in a CPU's area are
/// written by other code of that CPU only, but readers of theirs need not take ours along.
fn allocate(size: usize) -> Result<*mut c_void> {
    // SAFETY: No condition but process context, which constructors that give a `Result` have.
    let cookie = unsafe { raw::kvmate_percpu_alloc(size, 64) };
    if cookie.is_null() {
        return Err(ENOMEM);
    }
    Ok(cookie)
}

/// Visit each possible CPU's part of a live allocation.
fn for_each_part(cookie: *mut c_void, mut visit: impl FnMut(*mut c_void)) {
    // SAFETY: A look-up in a mask that does not change after boot.
    let mut cpu = unsafe { raw::kvmate_next_possible_cpu(0) };
    // SAFETY: Reads a number that is set once, at boot.
    let end = unsafe { raw::kvmate_nr_cpu_ids() };
    while cpu < end {
        // SAFETY: The cookie is live, as the callers' invariants say, and `cpu` is a possible CPU.
        visit(unsafe { raw::kvmate_percpu_ptr(cookie, cpu) });
        // SAFETY: As above.
        cpu = unsafe { raw::kvmate_next_possible_cpu(cpu + 1) };
    }
}
