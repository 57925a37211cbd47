// SPDX-License-Identifier: GPL-2.0
//! What kvmate should say of a run, by KVM's own trace events.
//!
//! [`Oracle`] traces the run twice: into a buffer whose probes were there before kvmate's, and into
//! one whose probes came after. A tracepoint calls its probes in that order, with interrupts off, so
//! of each exit and entry there is a time before and one after kvmate read its own. All that kvmate
//! says of times must lie between, however slow the machine is and whenever it stands still: there is
//! no tolerance but the one kvmate's histograms have, a sixteenth.

use crate::{
    ensure_eq, ftrace,
    module::{Kvmate, DEBUGFS},
    storm,
    table::{self, Histogram, Row},
    trace::{Trace, What},
    tsc::Rate,
};
use anyhow::{ensure, Context, Result};
use std::{collections::BTreeMap, path::Path};

/// An event, with the times before and after kvmate's own.
#[derive(Clone, Debug)]
pub struct Event {
    /// The thread that ran the vCPU.
    pub thread: u32,
    /// The number user space gave the vCPU.
    pub vcpu: u32,
    /// kvmate's time is not before this,
    pub from: u64,
    /// and not after this.
    pub to: u64,
    /// What it was.
    pub what: What,
}

/// The exits for one reason: how many, and the least and the most that each can have taken.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// How many, timed or not.
    pub count: u64,
    /// In cycles, of those with an entry after them; in order.
    pub least: Vec<u64>,
    /// The same.
    pub most: Vec<u64>,
}

/// Exits by reason.
pub type Reasons = BTreeMap<String, Times>;

/// A loaded kvmate, and the traces on both sides of it.
pub struct Oracle {
    // Their order is that of the end.
    after: Option<Trace>,
    kvmate: Option<Kvmate>,
    before: Option<Trace>,
    rate: Rate,
}

/// For each CPU and buffer.
const KIB: u32 = 2048;
/// The buffers'.
const NAMES: [&str; 2] = ["before", "after"];

impl Oracle {
    /// Load kvmate, and begin.
    pub fn begin() -> Result<Self> {
        let rate = Rate::of_kernel()?;
        let before = Some(Trace::begin(NAMES[0], KIB)?);
        let kvmate = Some(Kvmate::load("")?);
        let after = Some(Trace::begin(NAMES[1], KIB)?);
        Ok(Self {
            after,
            kvmate,
            before,
            rate,
        })
    }

    /// Leave nothing behind, after the last.
    pub fn clean_up() {
        NAMES.map(ftrace::remove);
    }

    /// kvmate itself.
    pub fn kvmate(&self) -> &Kvmate {
        self.kvmate.as_ref().expect("there until the end")
    }

    /// The counter's rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Do something that neither kvmate nor the traces see. Gives the events until then; those after
    /// begin anew.
    pub fn unobserved(&mut self, work: impl FnOnce() -> Result<()>) -> Result<Vec<Event>> {
        let events = self.events()?;
        (self.after, self.before) = (None, None);
        self.kvmate().write("knobs/observe", "0")?;
        work()?;
        self.before = Some(Trace::begin(NAMES[0], KIB)?);
        self.kvmate().write("knobs/observe", "1")?;
        self.after = Some(Trace::begin(NAMES[1], KIB)?);
        Ok(events)
    }

    /// Unload kvmate.
    pub fn end(mut self) -> Result<()> {
        self.after = None;
        match self.kvmate.take() {
            Some(kvmate) => kvmate.unload(),
            None => Ok(()),
        }
    }

    /// All events so far, those of a thread in order. No vCPU runs meanwhile.
    pub fn events(&self) -> Result<Vec<Event>> {
        // In order for each thread: between threads, times may cross.
        let read = |trace: &Option<Trace>| -> Result<_> {
            let mut events = trace.as_ref().context("a trace")?.read()?;
            events.sort_by_key(|event| event.thread);
            Ok(events)
        };
        let (before, after) = (read(&self.before)?, read(&self.after)?);
        ensure_eq!(after.len(), before.len(), "events in both traces");
        before
            .into_iter()
            .zip(after)
            .map(|(before, after)| {
                let same = (before.thread, before.vcpu, &before.what)
                    == (after.thread, after.vcpu, &after.what);
                ensure!(same, "the traces differ: {before:?}, {after:?}");
                ensure!(
                    before.when < after.when,
                    "out of order: {before:?}, {after:?}"
                );
                Ok(Event {
                    thread: before.thread,
                    vcpu: before.vcpu,
                    from: before.when,
                    to: after.when,
                    what: before.what,
                })
            })
            .collect()
    }

    /// A table `exits` says what `expected` says, and so does `exits_hist` beside it.
    pub fn compare(&self, table: &str, expected: &Reasons) -> Result<Vec<Row>> {
        let text = self.kvmate().read(table)?;
        let rows = table::exits(&text).with_context(|| table.to_owned())?;
        agree(&rows, expected, self.rate).with_context(|| format!("{table}\n{text}"))?;
        let table = format!("{table}_hist");
        let text = self.kvmate().read(&table)?;
        let lines = table::exits_hist(&text).with_context(|| table.clone())?;
        histograms_agree(&lines, &rows, expected, self.rate)
            .with_context(|| format!("{table}\n{text}"))?;
        Ok(rows)
    }
}

/// The name of the VM with that descriptor, made by this thread.
pub fn name_of(fd: &impl std::os::fd::AsRawFd) -> String {
    format!("{}-{}", nix::unistd::gettid(), fd.as_raw_fd())
}

/// How many exits there are among events.
pub fn exits(events: &[Event]) -> u64 {
    let exits = events
        .iter()
        .filter(|e| matches!(e.what, What::Exit { .. }));
    exits.count() as u64
}

/// Events of one vCPU, in order, by reason: each exit is timed by the entry that follows it here.
pub fn reasons<'a>(events: impl IntoIterator<Item = &'a Event>) -> Result<Reasons> {
    let mut reasons = Reasons::new();
    let mut open: Option<(&Event, &String)> = None;
    for event in events {
        match (&event.what, open.take()) {
            (What::Exit { reason, .. }, before) => {
                ensure!(
                    before.is_none(),
                    "two exits without an entry: {before:?}, {event:?}"
                );
                reasons.entry(reason.clone()).or_default().count += 1;
                open = Some((event, reason));
            }
            (What::Entry, Some((exit, reason))) => {
                let times = reasons.entry(reason.clone()).or_default();
                times.least.push(event.from - exit.to);
                times.most.push(event.to - exit.from);
            }
            (What::Entry, None) => {}
        }
    }
    reasons.values_mut().for_each(Times::sort);
    Ok(reasons)
}

/// Those of several vCPUs, or of several spans of time, together.
pub fn sum(parts: impl IntoIterator<Item = Reasons>) -> Reasons {
    let mut sum = Reasons::new();
    for (reason, times) in parts.into_iter().flatten() {
        let all = sum.entry(reason).or_default();
        all.count += times.count;
        all.least.extend(times.least);
        all.most.extend(times.most);
        all.sort();
    }
    sum
}

impl Times {
    fn sort(&mut self) {
        self.least.sort_unstable();
        self.most.sort_unstable();
    }
}

/// Rows of a table say what is expected, reason by reason.
fn agree(rows: &[Row], expected: &Reasons, rate: Rate) -> Result<()> {
    let found: BTreeMap<_, _> = rows.iter().map(|r| (r.reason.as_str(), r.count)).collect();
    let wanted: BTreeMap<_, _> = expected
        .iter()
        .map(|(r, t)| (r.as_str(), t.count))
        .collect();
    ensure_eq!(found, wanted, "counts by reason");
    ensure_eq!(rows.len(), found.len(), "a row for a reason");
    for row in rows {
        ensure!(
            !row.reason.starts_with("unknown") && row.reason != "unrecorded",
            "a reason is {}",
            row.reason
        );
        times_agree(row, &expected[&row.reason], rate).with_context(|| row.reason.clone())?;
    }
    let sorted = rows.is_sorted_by(|a, b| (a.total, a.count) >= (b.total, b.count));
    ensure!(sorted, "not sorted by total time");
    Ok(())
}

fn times_agree(row: &Row, times: &Times, rate: Rate) -> Result<()> {
    let between = |what: &str, found: u64, least: u64, most: u64| {
        ensure!(
            (least..=most).contains(&found),
            "{what}: {found} ns, which is not between {least} and {most}"
        );
        Ok(())
    };
    let ns = |cycles: Option<&u64>| rate.ns(cycles.copied().unwrap_or(0));
    let timed = times.least.len() as u64;
    let sums = [times.least.iter().sum(), times.most.iter().sum()].map(|cycles| rate.ns(cycles));
    between("total", row.total, sums[0], sums[1])?;
    between(
        "max",
        row.max,
        ns(times.least.last()),
        ns(times.most.last()),
    )?;
    // Both are rounded down, the average first to a cycle.
    let rounding = timed * (rate.cycle_ns() + 1) + 1;
    let averages = row.average * timed;
    between(
        "average times timed",
        averages,
        row.total.saturating_sub(rounding),
        row.total,
    )?;
    let [p50, p99, p999] = row.percentiles;
    ensure!(
        [p50, p99, p999, row.max].is_sorted(),
        "the percentiles fall: {row:?}"
    );
    for (per_mille, found) in [500, 990, 999].into_iter().zip(row.percentiles) {
        // The nearest rank. What a rank takes at least is the rank of the least, and so for the most.
        let rank = (timed * per_mille).div_ceil(1000);
        let at = |sorted: &[u64]| ns(rank.checked_sub(1).and_then(|i| sorted.get(i as usize)));
        let (least, most) = (at(&times.least), at(&times.most));
        // A sixteenth, and what rounding to nanoseconds can add to that.
        let (least, most) = ((least - least / 16).saturating_sub(2), most + most / 16 + 2);
        between(&format!("at {per_mille} thousandths"), found, least, most)?;
    }
    Ok(())
}

/// Histograms have the times that are expected, and stand in the order of `rows`.
fn histograms_agree(
    lines: &[Histogram],
    rows: &[Row],
    expected: &Reasons,
    rate: Rate,
) -> Result<()> {
    let of_lines: Vec<_> = lines
        .iter()
        .map(|line| (&line.reason, line.total))
        .collect();
    let of_rows: Vec<_> = rows.iter().map(|row| (&row.reason, row.total)).collect();
    ensure_eq!(of_lines, of_rows, "reasons and totals");
    for line in lines {
        let times = &expected[&line.reason];
        ensure_eq!(line.timed, times.least.len() as u64, "timed: {line:?}");
        for bits in 0..line.buckets.len() - 1 {
            let bound = 1 << bits;
            // A sixteenth to either side, and what rounding to nanoseconds can add to that.
            let below = |sorted: &[u64], seen: fn(u64) -> u64| {
                sorted.partition_point(|&cycles| seen(rate.ns(cycles)) < bound) as u64
            };
            let least = below(&times.most, |ns| ns + ns / 16 + 2);
            let most = below(&times.least, |ns| (ns - ns / 16).saturating_sub(2));
            let found = line.below(bits);
            ensure!(
                (least..=most).contains(&found),
                "{found} below {bound} ns, which is not between {least} and {most}: {line:?}"
            );
        }
    }
    Ok(())
}

/// The folder of a vCPU's table, below that of its VM.
pub fn of_vcpu(vm: &str, vcpu: u64) -> String {
    format!("vms/{vm}/vcpu{vcpu}/exits")
}

/// The folder of a VM's table.
pub fn of_vm(vm: &str) -> String {
    format!("vms/{vm}/exits")
}

/// Wait until the VM's folder is gone, and its row in `ended` there.
pub fn wait_for_end(vm: &str) -> Result<()> {
    storm::until(&format!("{vm} has ended"), || {
        let ended = std::fs::read_to_string(Path::new(DEBUGFS).join("ended"))?;
        Ok(!Path::new(DEBUGFS).join("vms").join(vm).exists() && ended.contains(vm))
    })
}
