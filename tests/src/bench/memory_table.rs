// SPDX-License-Identifier: GPL-2.0
//! The tables of [`super::memory`]: instructions for each 4 KiB, judged; and time, which on an emulated
//! machine is only told.

use super::{
    memory::{Holder, HOLDERS, STEPS},
    sample::Cost,
    table::{print, row, spread},
};

/// What was measured of the holders in turn, each once, or why it was not.
pub type Pass = Vec<(Holder, Result<[Cost; STEPS.len()], String>)>;

/// How exact a count is: a punch is so short that a tick of the clock more or less is seen.
pub(super) const EXACT: f64 = 0.02;

/// Whether something could not be measured.
pub fn failed(pass: &Pass) -> bool {
    pass.iter().any(|(_, result)| result.is_err())
}

/// What a figure of a cost is.
#[derive(Clone, Copy)]
pub enum Figure {
    /// Ticks of the TSC: instructions, where the machine counts.
    Instructions,
    /// Nanoseconds.
    Nanoseconds,
}

impl Figure {
    pub(super) fn of(self, cost: &Cost) -> f64 {
        match self {
            Self::Instructions => cost.ticks,
            Self::Nanoseconds => cost.ns,
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Instructions => "instructions/4 KiB",
            Self::Nanoseconds => "ns/4 KiB",
        }
    }
}

/// All holders: medians, and their ratios to the best of the peers, and to the best of those that have
/// no pool. Tells in how many columns gmem costs more than `target` times the latter.
pub fn show(passes: &[Pass], figure: Figure, target: f64) -> usize {
    let mut missed = 0;
    for (step, what) in STEPS.iter().enumerate() {
        println!("\n{what}");
        let figures = |holder: Holder| {
            let mine = passes.iter().flatten().filter(|(h, _)| *h == holder);
            let costs = mine.filter_map(|(_, result)| result.as_ref().ok());
            spread(costs.map(|costs| figure.of(&costs[step])).collect())
        };
        let best = |of: fn(Holder) -> bool| {
            let peers = HOLDERS.into_iter().filter(|holder| of(*holder));
            let medians = peers.filter_map(|holder| figures(holder).map(|(_, median, _)| median));
            medians.min_by(f64::total_cmp)
        };
        let (best, best_poolless) = (
            best(Holder::is_peer),
            best(|h| h.is_peer() && !h.has_a_pool()),
        );
        let mut rows = vec![row(&[
            "holder",
            figure.unit(),
            "lowest",
            "highest",
            "to best",
            "without pool",
            "target",
            "",
        ])];
        for holder in HOLDERS {
            let mut cells = row(&[holder.name(), "-", "-", "-", "-", "-", "-"]);
            let mut remark = String::new();
            if let (Some((lowest, median, highest)), Some(best), Some(best_poolless)) =
                (figures(holder), best, best_poolless)
            {
                let ratio = median / best_poolless;
                cells[1] = format!("{median:.1}");
                cells[2] = format!("{lowest:.1}");
                cells[3] = format!("{highest:.1}");
                cells[4] = format!("{:.4}", median / best);
                cells[5] = format!("{ratio:.4}");
                if holder == Holder::Gmem && target.is_finite() {
                    let over = ratio - target - EXACT;
                    missed += usize::from(over > 0.0);
                    cells[6] = format!("{target} +{EXACT}");
                    remark = match over > 0.0 {
                        true => format!("MISSED by {over:.4}"),
                        false => "ok".into(),
                    };
                }
            }
            let mut mine = passes.iter().flatten().filter(|(h, _)| *h == holder);
            if let Some(why) = mine.find_map(|(_, result)| result.as_ref().err()) {
                remark = format!("FAILED: {why}");
            }
            cells.push(remark);
            rows.push(cells);
        }
        print(&rows);
    }
    missed
}
