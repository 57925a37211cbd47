// SPDX-License-Identifier: GPL-2.0
//! What happened between two readings of a table `exits`, and in which order it is shown.

use super::read::Exits;
use crate::records::Exit;
use std::cmp::Ordering;

/// A reason's line, and what happened since the reading before.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<'a> {
    pub exit: &'a Exit,
    /// Exits a second. None: there was no reading before, or the table was reset in between.
    pub rate: Option<f64>,
    /// The time that exits of it took.
    ns: Option<u64>,
    /// Which part that is of the time that exits of all reasons took, if they took any.
    pub share: Option<f64>,
}

/// By what rows are sorted; the largest stands first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Time,
    Rate,
    Count,
    P99,
    Name,
}

impl Order {
    /// The one that comes after it.
    pub fn next(self) -> Self {
        match self {
            Self::Time => Self::Rate,
            Self::Rate => Self::Count,
            Self::Count => Self::P99,
            Self::P99 => Self::Name,
            Self::Name => Self::Time,
        }
    }

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Rate => "rate",
            Self::Count => "count",
            Self::P99 => "p99",
            Self::Name => "name",
        }
    }
}

/// The rows, sorted.
pub fn rows<'a>(now: &'a Exits, before: Option<&Exits>, order: Order) -> Vec<Row<'a>> {
    let mut rows: Vec<Row> = now
        .lines
        .iter()
        .map(|exit| row(now, before, exit))
        .collect();
    let all: u64 = rows.iter().filter_map(|row| row.ns).sum();
    if all > 0 {
        for row in &mut rows {
            row.share = row.ns.map(|ns| ns as f64 / all as f64);
        }
    }
    // What a reason did up to now decides where nothing happened since.
    rows.sort_by(|a, b| {
        let by = match order {
            Order::Time => b.ns.cmp(&a.ns),
            Order::Rate => b.rate.partial_cmp(&a.rate).unwrap_or(Ordering::Equal),
            Order::Count => b.exit.count.cmp(&a.exit.count),
            Order::P99 => b.exit.p99_ns.cmp(&a.exit.p99_ns),
            Order::Name => Ordering::Equal,
        };
        let total = |row: &Row| match order {
            Order::Name => 0,
            _ => row.exit.total_ns,
        };
        by.then_with(|| total(b).cmp(&total(a)))
            .then_with(|| a.exit.reason.cmp(&b.exit.reason))
    });
    rows
}

/// Exits a second of all reasons together.
pub fn rate(now: &Exits, before: Option<&Exits>) -> Option<f64> {
    let rates = now.lines.iter().map(|exit| row(now, before, exit).rate);
    before.and_then(|_| rates.sum())
}

fn row<'a>(now: &Exits, before: Option<&Exits>, exit: &'a Exit) -> Row<'a> {
    let since = before.and_then(|before| {
        let then = before.lines.iter().find(|line| line.reason == exit.reason);
        let (count, ns) = then.map_or((0, 0), |then| (then.count, then.total_ns));
        let seconds = now.at.checked_sub(before.at)?.as_secs_f64();
        let (count, ns) = (
            exit.count.checked_sub(count)?,
            exit.total_ns.checked_sub(ns)?,
        );
        (seconds > 0.0).then_some((count as f64 / seconds, ns))
    });
    Row {
        exit,
        rate: since.map(|(rate, _)| rate),
        ns: since.map(|(_, ns)| ns),
        share: None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixture::exit, *};
    use std::time::Duration;

    fn exits(at: u64, lines: &[(&str, u64, u64, u64)]) -> Exits {
        let line = |&(reason, count, total_ns, p99_ns): &(&str, u64, u64, u64)| {
            exit(reason, count, total_ns, [0, p99_ns, 0, 0])
        };
        Exits {
            at: Duration::from_secs(at),
            lines: lines.iter().map(line).collect(),
        }
    }

    fn order(now: &Exits, before: Option<&Exits>, order: Order) -> Vec<String> {
        let rows = rows(now, before, order);
        rows.iter().map(|row| row.exit.reason.clone()).collect()
    }

    #[test]
    fn differences() {
        let before = exits(10, &[("io", 100, 1000, 0), ("hlt", 5, 9000, 0)]);
        let now = exits(
            12,
            &[
                ("hlt", 6, 9100, 0),
                ("io", 300, 1200, 0),
                ("msr", 8, 100, 0),
            ],
        );
        let rows = rows(&now, Some(&before), Order::Time);
        let found: Vec<_> = rows
            .iter()
            .map(|row| (&*row.exit.reason, row.rate.unwrap(), row.share.unwrap()))
            .collect();
        assert_eq!(
            found,
            [("io", 100.0, 0.5), ("hlt", 0.5, 0.25), ("msr", 4.0, 0.25)]
        );
        assert_eq!(rate(&now, Some(&before)), Some(104.5));
    }

    #[test]
    fn what_cannot_be_told_is_not() {
        let now = exits(12, &[("io", 100, 1000, 0)]);
        let rate_of = |before: Option<&Exits>| {
            let row = rows(&now, before, Order::Time).remove(0);
            (row.rate, row.share, rate(&now, before))
        };
        assert_eq!(rate_of(None), (None, None, None), "the first reading");
        let reset = exits(11, &[("io", 101, 1000, 0)]);
        assert_eq!(rate_of(Some(&reset)), (None, None, None), "reset");
        let same = exits(12, &[("io", 1, 1, 0)]);
        assert_eq!(rate_of(Some(&same)), (None, None, None), "no time between");
        let idle = exits(11, &[("io", 100, 1000, 0)]);
        assert_eq!(rate_of(Some(&idle)), (Some(0.0), None, Some(0.0)), "idle");
        assert_eq!(rate(&exits(2, &[]), Some(&exits(1, &[]))), Some(0.0));
    }

    #[test]
    fn orders() {
        let before = exits(0, &[("a", 0, 0, 0), ("b", 900, 500, 0), ("c", 0, 5, 0)]);
        let now = exits(1, &[("a", 10, 30, 7), ("b", 901, 510, 9), ("c", 20, 25, 8)]);
        let sorted = |by| order(&now, Some(&before), by).join("");
        assert_eq!(sorted(Order::Time), "acb");
        assert_eq!(sorted(Order::Rate), "cab");
        assert_eq!(sorted(Order::Count), "bca");
        assert_eq!(sorted(Order::P99), "bca");
        assert_eq!(sorted(Order::Name), "abc");
        // Where nothing happened, by what was.
        assert_eq!(order(&now, None, Order::Time), ["b", "a", "c"]);
        assert_eq!(order(&now, Some(&now), Order::Rate), ["b", "a", "c"]);
        let mut by = Order::Time;
        let mut names = Vec::new();
        for _ in 0..6 {
            names.push(by.name());
            by = by.next();
        }
        assert_eq!(names, ["time", "rate", "count", "p99", "name", "time"]);
    }
}
