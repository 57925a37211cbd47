// SPDX-License-Identifier: GPL-2.0
//! VM exits, counted live.
//!
//! A probe on `kvm_exit` adds one to its CPU's part of a counter; a reader adds the parts up. While
//! nobody observes no probe is registered, and KVM runs as if we were not there. The count survives
//! switching off and on.

use crate::wrap::{
    exit_probe::{self, ExitProbe, OnExit},
    percpu::PerCpuCounter,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};

/// The counter, alone, for the probe.
struct Count(PerCpuCounter);

impl OnExit for Count {
    #[inline(always)]
    fn on_exit(&self) {
        self.0.increment();
    }
}

/// The count of exits and whether it goes on.
#[pin_data]
pub(crate) struct Exits {
    count: Arc<Count>,
    /// There while observing. The lock is held over registering and unregistering, which sleep.
    #[pin]
    probe: Mutex<Option<ExitProbe<Count>>>,
}

impl Exits {
    /// A count of zero, not observing.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let count = Arc::new(Count(PerCpuCounter::new()?), GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                count,
                probe <- new_mutex!(None),
            }),
            GFP_KERNEL,
        )
    }

    /// Whether there is a kvm to observe.
    pub(crate) fn possible() -> bool {
        exit_probe::available()
    }

    /// Whether exits are counted now.
    pub(crate) fn observing(&self) -> bool {
        self.probe.lock().is_some()
    }

    /// Count or do not, from now on: when this returns the last probe has run or the first will.
    /// Tells what was before.
    pub(crate) fn observe(&self, on: bool) -> Result<bool> {
        let mut probe = self.probe.lock();
        let before = probe.is_some();
        if on && !before {
            *probe = Some(ExitProbe::register(self.count.clone())?);
        } else if !on {
            *probe = None;
        }
        Ok(before)
    }

    /// How many exits were counted.
    pub(crate) fn total(&self) -> u64 {
        self.count.0.sum()
    }
}
