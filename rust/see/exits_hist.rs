// SPDX-License-Identifier: GPL-2.0
//! The tables `exits_hist`: how long exits took, one line a reason, of one vCPU or of all of a VM. What
//! `exits` tells of as percentiles is here by powers of two, for those who add up or draw.

use super::exits::{self, Exits};
use crate::{
    pure::{cycles, exits::Line, histogram::Histogram, reason::Vendor},
    wrap::tsc,
};
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
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
pub(super) fn show(exits: &Exits, out: &SeqFile) -> Result {
    seq_print!(out, "reason timed total_ns histogram\n");
    let khz = tsc::khz();
    for line in &exits.lines {
        seq_print!(out, "{}\n", Row(exits.vendor, line, khz));
    }
    Ok(())
}
