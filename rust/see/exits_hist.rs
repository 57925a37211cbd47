// SPDX-License-Identifier: GPL-2.0
//! The tables `exits_hist`: how long exits took, one line a reason, of one vCPU or of all of a VM. What
//! `exits` tells of as percentiles is here by powers of two, for those who add up or draw.

use super::{
    exits::{self, Exits},
    vm::{Vcpu, Vm},
};
use crate::{
    pure::{cycles, exits::Line, histogram::Histogram, reason::Vendor},
    wrap::{debugfs::Table, tsc},
};
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// A line as it is shown.
struct Row<'a>(Vendor, &'a Line, u32);

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(vendor, line, khz) = *self;
        let mut histogram = Histogram::EMPTY;
        histogram.add(&line.buckets, khz);
        fmt::Display::fmt(&exits::name(vendor, line.reason), f)?;
        let (timed, total) = (histogram.sum(), cycles::to_ns(line.total, khz));
        write!(f, " {timed} {total} {histogram}")
    }
}

/// The table.
pub(super) fn show(out: &SeqFile, exits: &Exits) {
    seq_print!(out, "reason timed total_ns histogram\n");
    let khz = tsc::khz();
    for line in &exits.lines {
        seq_print!(out, "{}\n", Row(exits.vendor, line, khz));
    }
}

/// `vms/*/exits_hist`
pub(super) struct OfVm(pub(super) Arc<Vm>);

impl Table for OfVm {
    fn show(&self, out: &SeqFile) -> Result {
        show(out, &Exits::of(&self.0.recordings()?)?);
        Ok(())
    }
}

/// `vms/*/vcpu*/exits_hist`
pub(super) struct OfVcpu(pub(super) Arc<Vcpu>);

impl Table for OfVcpu {
    fn show(&self, out: &SeqFile) -> Result {
        show(out, &Exits::of(&[self.0.recording()])?);
        Ok(())
    }
}
