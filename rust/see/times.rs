// SPDX-License-Identifier: GPL-2.0
//! The tables `times`: where the time of exits went, one line a reason, of one vCPU or of all of a VM.
//!
//! Only exits made while `knobs/times` was 1 are in them: see [`crate::pure::times`].

use super::{
    exits::{self, Exits},
    vm::{Vcpu, Vm},
};
use crate::wrap::{debugfs::Table, tsc};
use kernel::{
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// The table.
pub(super) fn show(out: &SeqFile, exits: &Exits) {
    let khz = tsc::khz();
    seq_print!(
        out,
        "reason count total_ns user_ns halted_ns preempted_ns kernel_ns\n"
    );
    for line in exits.lines.iter().filter(|line| line.split > 0) {
        let (reason, count) = (exits::name(exits.vendor, line.reason), line.split);
        let [total, user, halted, preempted, kernel] = line.parts.ns(khz);
        seq_print!(
            out,
            "{reason} {count} {total} {user} {halted} {preempted} {kernel}\n"
        );
    }
}

/// `vms/*/times`
pub(super) struct OfVm(pub(super) Arc<Vm>);

impl Table for OfVm {
    fn show(&self, out: &SeqFile) -> Result {
        show(out, &Exits::of(&self.0.recordings()?)?);
        Ok(())
    }
}

/// `vms/*/vcpu*/times`
pub(super) struct OfVcpu(pub(super) Arc<Vcpu>);

impl Table for OfVcpu {
    fn show(&self, out: &SeqFile) -> Result {
        show(out, &Exits::of(&[self.0.recording()])?);
        Ok(())
    }
}
