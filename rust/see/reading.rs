// SPDX-License-Identifier: GPL-2.0
//! All that is recorded of a VM, read together.
//!
//! Each vCPU's record is taken up once, so that no reset comes in between; `exits` and `times` are of
//! one reading of it. A vCPU that runs meanwhile writes on: [`Reading::moved`] tells of how many that
//! is so. Owned by the call that makes it; takes `Vm::vcpus` and `Vcpu::recorded` for moments, and
//! sleeps for memory only.

use super::{
    exits::Exits,
    faults,
    irqs::Irqs,
    msrs,
    vm::{Recording, Vm},
};
use crate::pure::msrs::Line as Msr;
use kernel::prelude::*;

/// What was recorded.
pub(super) struct Reading {
    /// How many vCPUs there are.
    pub(super) vcpus: usize,
    /// How many of them have exited or entered while this was read.
    pub(super) moved: usize,
    pub(super) exits: Exits,
    pub(super) msrs: KVVec<Msr>,
    pub(super) faults: faults::Sums,
    pub(super) irqs: Irqs,
}

impl Reading {
    /// Read. `ENOMEM`; `EAGAIN` as of the table `exits`.
    pub(super) fn of(vm: &Vm) -> Result<Self> {
        let recordings = vm.recordings()?;
        let mut marks = KVVec::with_capacity(recordings.len(), GFP_KERNEL)?;
        for recording in &recordings {
            marks.push(recording.mark(), GFP_KERNEL)?;
        }
        let mut reading = Self {
            vcpus: recordings.len(),
            moved: 0,
            exits: Exits::of(&recordings)?,
            msrs: msrs::lines(&recordings)?,
            faults: faults::Sums::of(&recordings)?,
            irqs: Irqs::of(vm, &recordings)?,
        };
        let pairs = recordings.iter().map(Recording::mark).zip(&marks);
        reading.moved = pairs.filter(|(now, before)| now != *before).count();
        Ok(reading)
    }
}
