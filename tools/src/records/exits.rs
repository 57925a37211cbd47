// SPDX-License-Identifier: GPL-2.0
//! `exits`: why guests exited, and how long until they went on.

use super::{by_key, came, Record};
use crate::table::Row;
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::cmp::Reverse;

/// Exits for one reason. Times are nanoseconds.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Exit {
    /// KVM's name of it.
    pub reason: String,
    /// How many exits.
    pub count: u64,
    /// From the exits to the next entries, all together.
    pub total_ns: u64,
    /// On average, of those that were timed; of an interval: `total_ns` by `count`, null without exits.
    pub avg_ns: Option<u64>,
    /// The median; null of an interval.
    pub p50_ns: Option<u64>,
    /// Of 100 exits 99 took no longer; null of an interval.
    pub p99_ns: Option<u64>,
    /// Of 1000 exits 999 took no longer; null of an interval.
    pub p999_ns: Option<u64>,
    /// The longest; null of an interval.
    pub max_ns: Option<u64>,
}

impl Record for Exit {
    const FILE: &'static str = "exits";
    const KNOBS: &'static [&'static str] = &["observe"];

    fn new(row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            reason: row.get("reason")?.to_owned(),
            count: row.number("count")?,
            total_ns: row.number("total_ns")?,
            avg_ns: row.some_number("avg_ns")?,
            p50_ns: row.some_number("p50_ns")?,
            p99_ns: row.some_number("p99_ns")?,
            p999_ns: row.some_number("p999_ns")?,
            max_ns: row.some_number("max_ns")?,
        })
    }

    fn since(now: &[Self], before: &[Self]) -> Vec<Self> {
        let counters = |row: &Self| [row.count, row.total_ns];
        let reason = |row: &Self| row.reason.clone();
        let mut rows = by_key(now, before, reason, |now, before| {
            let [count, total_ns] = came(counters(now), before.map(counters))?;
            Some(Self {
                reason: now.reason.clone(),
                count,
                total_ns,
                avg_ns: total_ns.checked_div(count),
                p50_ns: None,
                p99_ns: None,
                p999_ns: None,
                max_ns: None,
            })
        });
        rows.sort_by_key(|row| Reverse(row.total_ns));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::parse;

    const COLUMNS: &str = "reason count total_ns avg_ns p50_ns p99_ns p999_ns max_ns\n";

    fn table(rows: &str) -> Vec<Exit> {
        parse(&format!("{COLUMNS}{rows}")).unwrap()
    }

    #[test]
    fn all_columns() {
        let rows = table("io 4 100 25 24 40 41 42\nhlt 1 0 0 0 0 0 0\n");
        let expected = Exit {
            reason: "io".into(),
            count: 4,
            total_ns: 100,
            avg_ns: Some(25),
            p50_ns: Some(24),
            p99_ns: Some(40),
            p999_ns: Some(41),
            max_ns: Some(42),
        };
        assert_eq!(rows[0], expected);
        assert_eq!((rows.len(), rows[1].max_ns), (2, Some(0)));
    }

    #[test]
    fn what_came() {
        let before = table("io 4 100 25 24 40 41 42\nhlt 1 0 0 0 0 0 0\nnpf 3 30 10 10 10 10 10\n");
        let now = table(
            "hlt 1 900 900 9 9 9 900\nio 6 160 25 24 40 41 42\nnpf 3 30 10 10 10 10 10\n\
             msr 2 5 2 2 2 2 2\n",
        );
        let rows = Exit::since(&now, &before);
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.reason.as_str(), row.count, row.total_ns, row.avg_ns))
            .collect();
        // One that was under way has ended; npf is left out; a new reason is whole.
        assert_eq!(
            told,
            [
                ("hlt", 0, 900, None),
                ("io", 2, 60, Some(30)),
                ("msr", 2, 5, Some(2))
            ]
        );
        assert!(rows
            .iter()
            .all(|row| row.p99_ns.is_none() && row.max_ns.is_none()));
        assert_eq!(Exit::since(&now, &now), []);
    }
}
