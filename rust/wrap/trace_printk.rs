// SPDX-License-Identifier: GPL-2.0
//! `trace_printk()`: lines in `/sys/kernel/debug/tracing/trace`.
//!
//! Not by the macro: a module that has it makes the loader take the buffers and print the kernel's
//! notice. Here that waits until somebody wants a line.
//!
//! C header: [`include/linux/trace_printk.h`](srctree/include/linux/trace_printk.h)

use crate::raw;
use kernel::prelude::*;

/// Have the buffers taken, with the kernel's notice, if nobody has yet. One at a time, for the kernel does
/// not see to that; sleeps.
pub(crate) fn begin() {
    // SAFETY: Process context.
    unsafe { raw::kvmate_trace_begin() };
}

/// Write a line. Any context; without the buffers, into what little there is.
pub(crate) fn line(text: &CStr) {
    // SAFETY: A string that outlives the call, which copies it.
    unsafe { raw::kvmate_trace_line(text.as_char_ptr()) };
}
