// SPDX-License-Identifier: GPL-2.0
//! The tables `irqs`: one line a vector, of one vCPU or of all of a VM. See [`crate::pure::vectors`] for
//! who counts, and [`crate::wrap::accepts`] for what a KVM may not tell.

use super::vm::{Vcpu, Vm};
use crate::{pure::vectors::VECTORS, wrap::debugfs::Table};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// Whether the running KVM tells of what LAPICs accept; for files, which cannot have the
/// [`super::Watch`].
pub(super) static ACCEPTS_TOLD: AtomicBool = AtomicBool::new(false);

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

fn show(out: &SeqFile, vm: &Vm, vcpus: &[Arc<Vcpu>]) -> Result {
    seq_print!(out, "vector injected accepted eoi\n");
    // Hardware injects and ends by itself then: what was counted is not all of it.
    let seen = vm.gate.enter_irq_off(|vm| !vm.apicv()) != Some(false);
    let told = ACCEPTS_TOLD.load(Relaxed);
    for vector in 0..VECTORS {
        let mut sums = [0; 3];
        for vcpu in vcpus {
            let Some(hot) = vcpu.hot() else { continue };
            let (.., events) = &**hot;
            for (sum, count) in sums.iter_mut().zip(events.vectors.of(vector)) {
                *sum += count;
            }
        }
        if sums == [0; 3] {
            continue;
        }
        let [injected, accepted, ended] = sums;
        let [injected, ended] = [injected, ended].map(|count| Count(seen.then_some(count)));
        let accepted = Count(told.then_some(accepted));
        seq_print!(out, "{vector:#x} {injected} {accepted} {ended}\n");
    }
    Ok(())
}

/// `vms/*/irqs`
pub(super) struct OfVm(pub(super) Arc<Vm>);

impl Table for OfVm {
    fn show(&self, out: &SeqFile) -> Result {
        show(out, &self.0, &self.0.vcpus()?)
    }
}

/// `vms/*/vcpu*/irqs`
pub(super) struct OfVcpu(pub(super) Arc<Vcpu>);

impl Table for OfVcpu {
    fn show(&self, out: &SeqFile) -> Result {
        show(out, &self.0.vm, core::slice::from_ref(&self.0))
    }
}
