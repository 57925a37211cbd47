// SPDX-License-Identifier: GPL-2.0
//! Long work in process context: letting others run, and being stopped.

use kernel::{bindings, current, prelude::*};

/// Let others run. `EINTR`: a signal wants the current task to stop. Sleeps.
pub(crate) fn breathe() -> Result {
    // SAFETY: Process context, in which all our callers are, with no lock held.
    unsafe { bindings::__cond_resched() };
    match current!().signal_pending() {
        true => Err(EINTR),
        false => Ok(()),
    }
}
