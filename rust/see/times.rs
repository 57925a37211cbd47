// SPDX-License-Identifier: GPL-2.0
//! The tables `times`: where the time of exits went, one line a reason, of one vCPU or of all of a VM.
//!
//! Only exits made while `knobs/times` was 1 are in them: see [`crate::pure::times`].

use super::exits::{self, Exits};
use crate::wrap::tsc;
use kernel::{
    prelude::*,
    seq_file::{seq_print, SeqFile},
};

/// The table.
pub(super) fn show(exits: &Exits, out: &SeqFile) -> Result {
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
    Ok(())
}
