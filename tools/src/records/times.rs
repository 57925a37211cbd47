// SPDX-License-Identifier: GPL-2.0
//! `times`: where the time of exits went.

use super::{by_key, came, Record};
use crate::table::Row;
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::cmp::Reverse;

/// Exits for one reason whose time was split. The four parts add up to `total_ns`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Time {
    /// KVM's name of it.
    pub reason: String,
    /// How many exits were split.
    pub count: u64,
    /// From these exits to the next entries, all together.
    pub total_ns: u64,
    /// In user space.
    pub user_ns: u64,
    /// Halted.
    pub halted_ns: u64,
    /// Waiting for a CPU.
    pub preempted_ns: u64,
    /// In the kernel otherwise.
    pub kernel_ns: u64,
}

impl Record for Time {
    const FILE: &'static str = "times";
    const KNOBS: &'static [&'static str] = &["observe", "times"];

    fn new(row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            reason: row.get("reason")?.to_owned(),
            count: row.number("count")?,
            total_ns: row.number("total_ns")?,
            user_ns: row.number("user_ns")?,
            halted_ns: row.number("halted_ns")?,
            preempted_ns: row.number("preempted_ns")?,
            kernel_ns: row.number("kernel_ns")?,
        })
    }

    fn since(now: &[Self], before: &[Self]) -> Vec<Self> {
        let counters = |row: &Self| {
            let parts = [row.user_ns, row.halted_ns, row.preempted_ns, row.kernel_ns];
            let [user, halted, preempted, kernel] = parts;
            [row.count, row.total_ns, user, halted, preempted, kernel]
        };
        let reason = |row: &Self| row.reason.clone();
        let mut rows = by_key(now, before, reason, |now, before| {
            let [count, total_ns, user_ns, halted_ns, preempted_ns, kernel_ns] =
                came(counters(now), before.map(counters))?;
            Some(Self {
                reason: now.reason.clone(),
                count,
                total_ns,
                user_ns,
                halted_ns,
                preempted_ns,
                kernel_ns,
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

    fn table(rows: &str) -> Vec<Time> {
        let columns = "reason count total_ns user_ns halted_ns preempted_ns kernel_ns";
        parse(&format!("{columns}\n{rows}")).unwrap()
    }

    #[test]
    fn what_came() {
        let before = table("io 4 100 40 30 20 10\nhlt 1 50 0 50 0 0\n");
        let rows = Time::since(&table("io 6 160 60 50 30 20\nhlt 1 50 0 50 0 0\n"), &before);
        assert_eq!(rows, table("io 2 60 20 20 10 10\n"));
        // One part that is less: it was reset.
        let anew = table("io 5 160 100 30 10 20\n");
        assert_eq!(Time::since(&anew, &before), anew);
    }
}
