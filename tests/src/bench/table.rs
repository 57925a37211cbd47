// SPDX-License-Identifier: GPL-2.0
//! The tables: instructions an exit, judged; and time, which on an emulated machine is only told.

use super::{
    sample::{Cost, GUESTS},
    watcher::{Watched, Watcher, WATCHERS},
};

/// How far "off" and the second bare run may be from the first bare one.
pub const OFF: f64 = 0.001;

/// What became of a watcher.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was measured.
    Measured(Watched),
    /// It cannot be had here, and why.
    Skipped(String),
    /// It could have been had, and why it was not.
    Failed(String),
}

/// Watchers in turn, each once.
pub type Pass = Vec<(Watcher, Outcome)>;

/// What all passes have to say of a watcher.
struct Summary {
    costs: Vec<[Cost; GUESTS.len()]>,
    recorded: Option<f64>,
    remark: String,
}

impl Summary {
    fn of(watcher: Watcher, passes: &[Pass]) -> Self {
        let mut summary = Self {
            costs: Vec::new(),
            recorded: None,
            remark: String::new(),
        };
        for (_, outcome) in passes.iter().flatten().filter(|(w, _)| *w == watcher) {
            match outcome {
                Outcome::Measured(watched) => {
                    summary.costs.push(watched.sample.costs);
                    summary.recorded = watched.recorded;
                }
                Outcome::Skipped(why) => summary.remark = format!("skipped: {why}"),
                Outcome::Failed(why) => summary.remark = format!("FAILED: {why}"),
            }
        }
        summary
    }

    fn ticks(&self, guest: usize) -> Vec<f64> {
        self.costs.iter().map(|costs| costs[guest].ticks).collect()
    }
}

/// Whether a pass has something that could have been measured and was not.
pub fn failed(pass: &Pass) -> bool {
    pass.iter().any(|(_, o)| matches!(o, Outcome::Failed(_)))
}

/// Lines with columns: the first to the left, the last as it is, those between to the right.
pub(super) fn print(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            line += &match column {
                0 => format!("{cell:width$}"),
                _ if column == columns - 1 => format!("  {cell}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        println!("{}", line.trim_end());
    }
}

pub(super) fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Lowest, median, highest.
pub(super) fn spread(mut values: Vec<f64>) -> Option<(f64, f64, f64)> {
    values.sort_by(f64::total_cmp);
    let (lowest, highest) = (*values.first()?, *values.last()?);
    let (left, right) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    Some((lowest, (left + right) / 2.0, highest))
}

/// What a ratio is to be, as text, and by how much it is missed if it is.
fn judge(watcher: Watcher, guest: usize, ratio: f64, on: f64) -> Option<(String, Option<f64>)> {
    let (target, missed_by) = match watcher {
        Watcher::Off | Watcher::NobodyAgain => (format!("1.000 ±{OFF}"), (ratio - 1.0).abs() - OFF),
        // An observer that costs nothing does not observe.
        Watcher::On if ratio <= 1.0 => return Some(("above 1".into(), Some(1.0 - ratio))),
        // The target is one for exits that user space handles.
        Watcher::On if guest == 0 => (format!("{on}"), ratio - on),
        _ => return None,
    };
    Some((target, (missed_by > 0.0).then_some(missed_by)))
}

/// Instructions an exit: the median of all passes. Tells how many targets were missed.
pub fn instructions(passes: &[Pass], on: f64) -> usize {
    let mut missed = 0;
    for (guest, (_, what)) in GUESTS.iter().enumerate() {
        println!("\n{what}");
        let bare = spread(Summary::of(Watcher::Nobody, passes).ticks(guest));
        let mut rows = vec![row(&[
            "watcher",
            "instructions/exit",
            "lowest",
            "highest",
            "ratio",
            "added",
            "recorded",
            "target",
            "",
        ])];
        for watcher in WATCHERS {
            let summary = Summary::of(watcher, passes);
            let mut cells = row(&[watcher.name(), "-", "-", "-", "-", "-", "-", "-"]);
            let mut remark = summary.remark.clone();
            if let Some((lowest, ticks, highest)) = spread(summary.ticks(guest)) {
                cells[1] = format!("{ticks:.1}");
                cells[2] = format!("{lowest:.1}");
                cells[3] = format!("{highest:.1}");
                if let Some((_, bare, _)) = bare {
                    let ratio = ticks / bare;
                    cells[4] = format!("{ratio:.4}");
                    cells[5] = format!("{:.1}", ticks - bare);
                    if let Some((target, missed_by)) = judge(watcher, guest, ratio, on) {
                        cells[7] = target;
                        missed += usize::from(missed_by.is_some());
                        let verdict = missed_by.map(|by| format!("MISSED by {by:.4}"));
                        remark = format!("{} {remark}", verdict.as_deref().unwrap_or("ok"));
                    }
                }
            }
            if let Some(part) = summary.recorded {
                cells[6] = format!("{:.1} %", part * 100.0);
            }
            cells.push(remark);
            rows.push(cells);
        }
        print(&rows);
    }
    missed
}

/// Time an exit: medians, and of the ratios to the two bare runs of the same pass.
pub fn time(passes: &[Pass]) {
    for (guest, (_, what)) in GUESTS.iter().enumerate() {
        println!("\n{what}");
        let mut rows = vec![row(&[
            "watcher", "us/exit", "ratio", "lowest", "highest", "",
        ])];
        for watcher in WATCHERS {
            let summary = Summary::of(watcher, passes);
            let mut cells = row(&[watcher.name(), "-", "-", "-", "-"]);
            let us = summary.costs.iter().map(|c| c[guest].ns / 1000.0).collect();
            let ratios = passes.iter().filter_map(|pass| {
                let ns = |watcher| {
                    let summary = Summary::of(watcher, std::slice::from_ref(pass));
                    summary.costs.first().map(|costs| costs[guest].ns)
                };
                let bare = ns(Watcher::Nobody)? + ns(Watcher::NobodyAgain)?;
                Some(ns(watcher)? * 2.0 / bare)
            });
            let ratios = spread(ratios.collect());
            if let (Some((_, us, _)), Some((lowest, ratio, highest))) = (spread(us), ratios) {
                cells[1] = format!("{us:.1}");
                cells[2] = format!("{ratio:.2}");
                cells[3] = format!("{lowest:.2}");
                cells[4] = format!("{highest:.2}");
            }
            cells.push(summary.remark);
            rows.push(cells);
        }
        print(&rows);
    }
}
