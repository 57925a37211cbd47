// SPDX-License-Identifier: GPL-2.0
//! The file `snapshot` of a VM, read: its parts, and what must be so of them together.

use crate::{
    ensure_eq, seen,
    table::{self, sum_of, Row},
};
use anyhow::{ensure, Context, Result};
use std::collections::BTreeMap;

/// The parts that there are, in their order.
pub const PARTS: [&str; 14] = [
    "snapshot",
    "vcpus",
    "pending",
    "tasks",
    "stacks",
    "exits",
    "exits_hist",
    "times",
    "msrs",
    "faults",
    "irqs",
    "irqfds",
    "bindings",
    "latency",
];

/// A snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The text of each part.
    pub parts: BTreeMap<String, String>,
    /// The VM's name.
    pub vm: String,
    /// How long it took to take it up, in nanoseconds.
    pub took: u64,
    /// How often it was taken up.
    pub tries: u64,
    /// How many vCPUs have moved meanwhile.
    pub moved: u64,
}

impl Snapshot {
    /// Parse, and check what must be so whatever the guest does.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        for part in text.split("\n\n") {
            let (name, text) = part.split_once("]\n").context("no name of a part")?;
            let name = name.strip_prefix('[').context("no name of a part")?;
            parts.push((name.to_owned(), text.trim_end_matches('\n').to_owned()));
        }
        let names: Vec<_> = parts.iter().map(|(name, _)| name.as_str()).collect();
        ensure_eq!(names, PARTS, "the parts");
        let mut snapshot = Self {
            parts: parts.into_iter().collect(),
            vm: String::new(),
            took: 0,
            tries: 0,
            moved: 0,
        };
        let lines = snapshot.lines("snapshot", "vm kvmate monotonic_ns took_ns tries moved")?;
        let [line] = &lines[..] else {
            anyhow::bail!("[snapshot]: {lines:?}");
        };
        snapshot.vm = line[0].clone();
        let number = |at: usize| line[at].parse().with_context(|| format!("{line:?}"));
        (snapshot.took, snapshot.tries, snapshot.moved) = (number(3)?, number(4)?, number(5)?);
        snapshot.agrees()?;
        Ok(snapshot)
    }

    /// Read that of a VM.
    pub fn of(vm: &str) -> Result<Self> {
        let path = seen::vms().join(vm).join("snapshot");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let snapshot = Self::parse(&text).with_context(|| text.clone())?;
        ensure_eq!(snapshot.vm, vm, "the VM");
        Ok(snapshot)
    }

    /// A part's text.
    pub fn part(&self, name: &str) -> Result<&str> {
        self.parts.get(name).map(String::as_str).context("no part")
    }

    /// The words of a part's lines, below its columns and what it says of itself.
    pub fn lines(&self, name: &str, columns: &str) -> Result<Vec<Vec<String>>> {
        let mut lines = self.part(name)?.lines().filter(|l| !l.starts_with('#'));
        ensure_eq!(lines.next(), Some(columns), "[{name}]'s columns");
        let count = columns.split(' ').count();
        lines
            .map(|line| {
                let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
                ensure_eq!(words.len(), count, "words in [{name}]: {line}");
                Ok(words)
            })
            .collect()
    }

    /// A part with a line for each vCPU: that of one.
    fn of_vcpu(&self, name: &str, columns: &str, vcpu: u32) -> Result<Vec<String>> {
        let lines = self.lines(name, columns)?;
        let line = lines.into_iter().find(|line| line[0] == vcpu.to_string());
        line.with_context(|| format!("no vCPU {vcpu} in [{name}]"))
    }

    /// What waits to get into a vCPU.
    pub fn pending(&self, vcpu: u32) -> Result<Vec<String>> {
        let columns = "vcpu mp_state interrupt exception nmis smi unhalted";
        Ok(self.of_vcpu("pending", columns, vcpu)?.split_off(1))
    }

    /// A vCPU's task: who, its state, and the functions it is blocked in.
    pub fn task(&self, vcpu: u32) -> Result<(String, String, Option<Vec<String>>)> {
        let line = self.of_vcpu("tasks", "vcpu task state frames", vcpu)?;
        let stacks = self.lines("stacks", "vcpu frame function")?;
        let own = stacks.into_iter().filter(|l| l[0] == vcpu.to_string());
        let mut frames = Vec::new();
        for (depth, frame) in own.enumerate() {
            ensure_eq!(frame[1], depth.to_string(), "depth of {frame:?}");
            frames.push(frame[2].clone());
        }
        let frames = match line[3].as_str() {
            "-" => {
                ensure!(frames.is_empty(), "frames of who runs: {frames:?}");
                None
            }
            count => {
                ensure_eq!(count, frames.len().to_string(), "frames of vCPU {vcpu}");
                Some(frames)
            }
        };
        Ok((line[1].clone(), line[2].clone(), frames))
    }

    /// All exits.
    pub fn exits(&self) -> Result<Vec<Row>> {
        table::exits(self.part("exits")?)
    }

    /// What must be so of its tables, whatever the guest does; more if it did nothing.
    fn agrees(&self) -> Result<()> {
        let exits = self.exits()?;
        let histograms = table::exits_hist(self.part("exits_hist")?)?;
        let recorded = exits.iter().filter(|row| row.reason != "unrecorded");
        ensure_eq!(recorded.count(), histograms.len(), "histograms");
        for (row, line) in exits.iter().zip(&histograms) {
            ensure!(
                row.reason == line.reason && row.total == line.total && line.timed <= row.count,
                "{line:?}, {row:?}"
            );
        }
        let times = table::times(self.part("times")?)?;
        for line in &times {
            let row = exits.iter().find(|row| row.reason == line.reason);
            let row = row.with_context(|| format!("split, but no exit: {line:?}"))?;
            ensure!(
                line.count <= row.count && line.total <= row.total,
                "{line:?}, {row:?}"
            );
        }
        let vcpus = table::vcpus(self.part("vcpus")?)?;
        for vcpu in &vcpus {
            self.pending(vcpu.vcpu)?;
            ensure_eq!(self.task(vcpu.vcpu)?.0, vcpu.task, "the task of {vcpu:?}");
        }
        ensure!((1..=5).contains(&self.tries), "{} tries", self.tries);
        ensure!(
            self.moved == 0 || self.tries == 5,
            "{} moved after {}",
            self.moved,
            self.tries
        );
        let faults = table::faults(self.part("faults")?)?;
        let sum = |kind: &str| {
            let of_kind = faults.iter().filter(|fault| fault.kind == kind);
            of_kind.map(|fault| fault.count).sum::<u64>()
        };
        let apart = sum("class").abs_diff(sum("memslot"));
        let most = if self.moved == 0 {
            vcpus.len() as u64
        } else {
            u64::MAX
        };
        ensure!(
            apart <= most,
            "faults by class and memslot differ by {apart}"
        );
        Ok(())
    }

    /// Exits that were split and such that were not, where all were made while `times` was 1.
    pub fn split_and_not(&self) -> Result<(u64, u64)> {
        let all: u64 = self.exits()?.iter().map(|row| row.count).sum();
        let split = sum_of(&table::times(self.part("times")?)?).count;
        Ok((
            split,
            all.checked_sub(split)
                .context("more split than there were")?,
        ))
    }
}
