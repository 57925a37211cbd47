// SPDX-License-Identifier: GPL-2.0
//! The tables `irqs`: one line a vector, of one vCPU or of all of a VM. See [`crate::pure::vectors`] for
//! who counts, and [`crate::wrap::accepts`] for what a KVM may not tell.

use super::vm::{Recording, Vcpu, Vm};
use crate::{pure::vectors::VECTORS, wrap::debugfs::Table};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// The running KVM does not tell of what LAPICs accept: found out when that is to be recorded. For files,
/// which cannot have the [`super::Watch`].
pub(super) static ACCEPTS_HIDDEN: AtomicBool = AtomicBool::new(false);

/// Whether interrupts are recorded now; likewise.
pub(super) static RECORDED: AtomicBool = AtomicBool::new(false);

/// A count, or `-` where nobody tells.
struct Count(Option<u64>);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(count) => write!(f, "{count}"),
            None => f.write_str("-"),
        }
    }
}

/// What is known of some vCPUs' interrupts together.
pub(super) struct Irqs {
    /// Hardware injects and ends by itself, or did: what was counted is not all of it.
    pub(super) hidden: bool,
    /// KVM does not tell what LAPICs accept.
    pub(super) accepts_hidden: bool,
    /// How many were injected, accepted and ended, by vector.
    pub(super) vectors: KVVec<[u64; 3]>,
}

impl Irqs {
    /// What was recorded of vCPUs of this VM.
    pub(super) fn of(vm: &Vm, recordings: &[Recording]) -> Result<Self> {
        let mut vectors = KVVec::from_elem([0; 3], VECTORS, GFP_KERNEL)?;
        // Of a VM that has just ended it is not known.
        let mut hidden = vm.gate.enter_irq_off(|vm| vm.apicv()) != Some(false);
        let hides = hidden && RECORDED.load(Relaxed);
        for (.., events) in recordings.iter().filter_map(Recording::hot) {
            if hides {
                events.vectors.hide();
            }
            hidden |= events.vectors.hidden();
            for (vector, sums) in vectors.iter_mut().enumerate() {
                for (sum, count) in sums.iter_mut().zip(events.vectors.of(vector)) {
                    *sum += count;
                }
            }
        }
        Ok(Self {
            hidden,
            accepts_hidden: ACCEPTS_HIDDEN.load(Relaxed),
            vectors,
        })
    }

    /// The table.
    pub(super) fn show(&self, out: &SeqFile) {
        seq_print!(out, "vector injected accepted eoi\n");
        let vectors = self.vectors.iter().enumerate();
        for (vector, &[injected, accepted, ended]) in vectors.filter(|(_, sums)| **sums != [0; 3]) {
            let [injected, ended] =
                [injected, ended].map(|count| Count((!self.hidden).then_some(count)));
            let accepted = Count((!self.accepts_hidden).then_some(accepted));
            seq_print!(out, "{vector:#x} {injected} {accepted} {ended}\n");
        }
    }
}

/// `vms/*/irqs`
pub(super) struct OfVm(pub(super) Arc<Vm>);

impl Table for OfVm {
    fn show(&self, out: &SeqFile) -> Result {
        Irqs::of(&self.0, &self.0.recordings()?)?.show(out);
        Ok(())
    }
}

/// `vms/*/vcpu*/irqs`
pub(super) struct OfVcpu(pub(super) Arc<Vcpu>);

impl Table for OfVcpu {
    fn show(&self, out: &SeqFile) -> Result {
        Irqs::of(&self.0.vm, &[self.0.recording()])?.show(out);
        Ok(())
    }
}
