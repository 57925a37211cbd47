// SPDX-License-Identifier: GPL-2.0
//! The tables `msrs`: one line an MSR, of one vCPU or of all of a VM.

use super::vm::{Recording, Vcpu, Vm};
use crate::{
    pure::{msrs::Line, sort},
    wrap::{debugfs::Table, names, task},
};
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// An MSR's name; its index where it has none.
pub(super) struct Name(pub(super) u32);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match names::msr(self.0) {
            Some(name) => fmt::Display::fmt(name, f),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

struct Row<'a>(&'a Line);

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line {
            index,
            reads,
            writes,
            faults,
            last,
        } = self.0;
        match index {
            None => f.write_str("other -")?,
            Some(index) => {
                write!(f, "{index:#x} ")?;
                match names::msr(*index) {
                    Some(name) => fmt::Display::fmt(name, f)?,
                    None => f.write_str("-")?,
                }
            }
        }
        write!(f, " {reads} {writes} {faults} ")?;
        match last {
            Some((_, value)) => write!(f, "{value:#x}"),
            None => f.write_str("-"),
        }
    }
}

/// What is known of each MSR, of all these vCPUs.
pub(super) fn lines(recordings: &[Recording]) -> Result<KVVec<Line>> {
    let mut lines: KVVec<Line> = KVVec::new();
    for (.., events) in recordings.iter().filter_map(Recording::hot) {
        for line in events.msrs.lines() {
            lines.push(line, GFP_KERNEL)?;
        }
        task::give_way();
    }
    let length = sort::merge_by_key(&mut lines, |line| line.index, Line::add);
    lines.truncate(length);
    sort::by_key(&mut lines, Line::order);
    Ok(lines)
}

/// The table.
pub(super) fn show(out: &SeqFile, lines: &[Line]) {
    seq_print!(
        out,
        "# accesses that made the guest exit: MSRs passed through to it never appear\n\
         msr name reads writes faults last_written\n"
    );
    for line in lines {
        seq_print!(out, "{}\n", Row(line));
    }
}

/// `vms/*/msrs`
pub(super) struct OfVm(pub(super) Arc<Vm>);

impl Table for OfVm {
    fn show(&self, out: &SeqFile) -> Result {
        show(out, &lines(&self.0.recordings()?)?);
        Ok(())
    }
}

/// `vms/*/vcpu*/msrs`
pub(super) struct OfVcpu(pub(super) Arc<Vcpu>);

impl Table for OfVcpu {
    fn show(&self, out: &SeqFile) -> Result {
        show(out, &lines(&[self.0.recording()])?);
        Ok(())
    }
}
