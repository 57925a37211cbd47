// SPDX-License-Identifier: GPL-2.0
//! All that is recorded of a VM, read together.
//!
//! Each vCPU's record is taken up once, so that no reset comes in between; `exits` and `times` are of
//! one reading of it. A vCPU that runs meanwhile writes on: [`Taken::moved`] tells of how many that
//! is so. Owned by the call that makes it; takes `Vm::vcpus` and `Vcpu::recorded` for moments, and
//! sleeps for memory only.

use super::{
    exits::Exits,
    faults,
    irqs::Irqs,
    msrs,
    vm::{Recording, Vcpu, Vm},
};
use crate::pure::{exits::Mark, msrs::Line as Msr};
use kernel::{prelude::*, sync::Arc};

/// The vCPUs of a VM and their records, as they were when this was made.
pub(super) struct Taken {
    pub(super) vcpus: KVVec<Arc<Vcpu>>,
    recordings: KVVec<Recording>,
    marks: KVVec<Option<Mark>>,
}

impl Taken {
    /// Take them up. `ENOMEM`.
    pub(super) fn of(vm: &Vm) -> Result<Self> {
        let vcpus = vm.vcpus()?;
        let recordings = Recording::all_of(&vcpus)?;
        let mut marks = KVVec::with_capacity(recordings.len(), GFP_KERNEL)?;
        for recording in &recordings {
            marks.push(recording.mark(), GFP_KERNEL)?;
        }
        Ok(Self {
            vcpus,
            recordings,
            marks,
        })
    }

    /// How many of them have exited or entered since.
    pub(super) fn moved(&self) -> usize {
        let pairs = self.recordings.iter().map(Recording::mark).zip(&self.marks);
        pairs.filter(|(now, before)| now != *before).count()
    }
}

/// What was recorded.
pub(super) struct Reading {
    /// How many vCPUs there are.
    pub(super) vcpus: usize,
    pub(super) exits: Exits,
    pub(super) msrs: KVVec<Msr>,
    pub(super) faults: faults::Sums,
    pub(super) irqs: Irqs,
}

impl Reading {
    /// Read. `ENOMEM`; `EAGAIN` as of the table `exits`.
    pub(super) fn of(vm: &Vm, Taken { recordings, .. }: &Taken) -> Result<Self> {
        Ok(Self {
            vcpus: recordings.len(),
            exits: Exits::of(recordings)?,
            msrs: msrs::lines(recordings)?,
            faults: faults::Sums::of(recordings)?,
            irqs: Irqs::of(vm, recordings)?,
        })
    }
}
