// SPDX-License-Identifier: GPL-2.0
//! The tables `exits`: one line a reason, of one vCPU or of all of a VM.

use super::vm::{Recording, Vcpu, Vm};
use crate::{
    pure::{
        cycles,
        exits::{Line, Reason, SLOTS},
        reason::{self, Vendor},
    },
    wrap::{
        debugfs::{Number, Table},
        names, tsc,
    },
};
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// The header of a table's lines.
pub(super) const COLUMNS: &str = "reason count total_ns avg_ns p50_ns p99_ns p999_ns max_ns";

/// A line as it is shown: times in nanoseconds.
pub(super) struct Row {
    name: Name,
    count: u64,
    /// Total, average, the percentiles, maximum.
    times: [u64; 6],
}

/// What stands in the column `reason`.
enum Name {
    /// Why the guest exited.
    Reason(Vendor, Reason),
    /// Exits of a vCPU that had no record yet.
    Unrecorded,
}

/// A reason's name: KVM's own, with `_` for spaces; `unknown(0x...)` without one.
struct ReasonName(Vendor, Reason);

impl fmt::Display for ReasonName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reason::Code(code) = self.1 else {
            return f.write_str("unknown");
        };
        let (named, failed) = reason::named(self.0, code);
        let Some(name) = names::exit(self.0, named) else {
            return write!(f, "unknown({code:#x})");
        };
        for part in name.to_bytes().chunk_by(|&a, &b| a != b' ' && b != b' ') {
            f.write_str(match part {
                b" " => "_",
                text => core::str::from_utf8(text).unwrap_or("?"),
            })?;
        }
        f.write_str(if failed { "|FAILED_VMENTRY" } else { "" })
    }
}

/// A reason's name, for other tables.
pub(super) fn name(vendor: Vendor, reason: Reason) -> impl fmt::Display {
    ReasonName(vendor, reason)
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Name::Reason(vendor, reason) => fmt::Display::fmt(&ReasonName(vendor, reason), f)?,
            Name::Unrecorded => f.write_str("unrecorded")?,
        }
        write!(f, " {}", self.count)?;
        self.times.iter().try_for_each(|time| write!(f, " {time}"))
    }
}

impl Row {
    fn new(vendor: Vendor, line: &Line, khz: u32) -> Self {
        let cycles = [
            line.total,
            line.average(),
            line.percentile(500),
            line.percentile(990),
            line.percentile(999),
            line.max,
        ];
        Self {
            name: Name::Reason(vendor, line.reason),
            count: line.count,
            times: cycles.map(|cycles| cycles::to_ns(cycles, khz)),
        }
    }
}

/// What is known of some vCPUs' exits together.
pub(super) struct Exits {
    /// Whose reasons.
    pub(super) vendor: Vendor,
    /// The reason with the most time first.
    pub(super) lines: KVVec<Line>,
    /// Exits before there were records.
    pub(super) unrecorded: u64,
}

impl Exits {
    /// What was recorded.
    pub(super) fn of(recordings: &[Recording]) -> Result<Self> {
        let mut lines: KVVec<Line> = KVVec::new();
        let mut vendor = Vendor::Svm;
        let mut line = KVBox::new(Line::EMPTY, GFP_KERNEL)?;
        for (source, record, _) in recordings.iter().filter_map(Recording::hot) {
            for slot in 0..SLOTS {
                // Another CPU writes for some nanoseconds at a time.
                let seen = record
                    .read(source.vendor(), slot, &mut line, core::hint::spin_loop)
                    .map_err(|_| EAGAIN)?;
                if !seen {
                    continue;
                }
                // Only a vCPU that has exited knows.
                vendor = source.vendor();
                match lines.iter_mut().find(|l| l.reason == line.reason) {
                    Some(sum) => sum.add(&line),
                    None => lines.push((*line).clone(), GFP_KERNEL)?,
                }
            }
        }
        lines.sort_unstable_by(|a, b| (b.total, b.count).cmp(&(a.total, a.count)));
        Ok(Self {
            vendor,
            lines,
            unrecorded: recordings.iter().map(|recording| recording.early).sum(),
        })
    }

    /// As they are shown.
    pub(super) fn rows(&self) -> Result<KVVec<Row>> {
        let khz = tsc::khz();
        let mut rows = KVVec::with_capacity(self.lines.len() + 1, GFP_KERNEL)?;
        for line in &self.lines {
            rows.push(Row::new(self.vendor, line, khz), GFP_KERNEL)?;
        }
        if self.unrecorded > 0 {
            let row = Row {
                name: Name::Unrecorded,
                count: self.unrecorded,
                times: [0; 6],
            };
            rows.push(row, GFP_KERNEL)?;
        }
        Ok(rows)
    }

    /// The table.
    pub(super) fn show(&self, out: &SeqFile) -> Result {
        seq_print!(out, "{COLUMNS}\n");
        for row in &self.rows()? {
            seq_print!(out, "{row}\n");
        }
        Ok(())
    }
}

/// How a table tells of exits.
type Show = fn(&Exits, &SeqFile) -> Result;

/// `vms/*/exits` and its like: a table that is made of a VM's exits.
pub(super) struct OfVm(pub(super) Arc<Vm>, pub(super) Show);

impl Table for OfVm {
    fn show(&self, out: &SeqFile) -> Result {
        (self.1)(&Exits::of(&self.0.recordings()?)?, out)
    }
}

/// `vms/*/vcpu*/exits` and its like: of a vCPU's.
pub(super) struct OfVcpu(pub(super) Arc<Vcpu>, pub(super) Show);

impl Table for OfVcpu {
    fn show(&self, out: &SeqFile) -> Result {
        (self.1)(&Exits::of(&[self.0.recording()])?, out)
    }
}

/// `vms/*/reset`
pub(super) struct Reset {
    pub(super) vm: Arc<Vm>,
    pub(super) registry: Arc<super::registry::Registry>,
}

impl Number for Reset {
    fn get(&self) -> u64 {
        0
    }

    /// `EINVAL`: not 1. `ENOMEM`: nothing was reset.
    fn set(&self, value: u64) -> Result {
        if value != 1 {
            return Err(EINVAL);
        }
        self.registry.reset(&self.vm)
    }
}
