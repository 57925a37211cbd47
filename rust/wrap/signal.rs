// SPDX-License-Identifier: GPL-2.0
//! Signals of the current task, which the kernel crate does not tell.
//!
//! C header: [`include/linux/sched/signal.h`](srctree/include/linux/sched/signal.h)

use crate::raw;

/// Whether the current task has been killed. A regular file's read or write ends early for nothing
/// less.
pub(crate) fn fatal_signal_pending() -> bool {
    // SAFETY: No condition; it reads only `current`.
    unsafe { raw::kvmate_fatal_signal_pending() }
}
