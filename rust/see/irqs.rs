// SPDX-License-Identifier: GPL-2.0
//! The tables `irqs`: one line a vector, of one vCPU or of all of a VM.

use super::vm::{Vcpu, Vm};
use crate::{pure::vectors::VECTORS, wrap::debugfs::Table};
use kernel::{
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

fn show(out: &SeqFile, vm: &Vm, vcpus: &[Arc<Vcpu>]) -> Result {
    seq_print!(out, "vector injected eoi\n");
    // Hardware does both by itself: what was counted is not all of it.
    if vm.gate.enter_irq_off(|vm| vm.apicv()) == Some(true) {
        seq_print!(out, "all - -\n");
        return Ok(());
    }
    for vector in 0..VECTORS {
        let (mut injected, mut ended) = (0u64, 0u64);
        for vcpu in vcpus {
            let Some(hot) = vcpu.hot() else { continue };
            let (.., events) = &**hot;
            let [injected_here, ended_here] = events.vectors.of(vector);
            injected += injected_here;
            ended += ended_here;
        }
        if injected > 0 || ended > 0 {
            seq_print!(out, "{vector:#x} {injected} {ended}\n");
        }
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
