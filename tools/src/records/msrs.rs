// SPDX-License-Identifier: GPL-2.0
//! `msrs`: accesses to MSRs that made the guest exit.

use super::{by_key, came, Record};
use crate::table::Row;
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::cmp::Reverse;

/// Accesses to one MSR.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Msr {
    /// Its number; null: all for which there was no place.
    pub msr: Option<u64>,
    /// The kernel's name of it.
    pub name: Option<String>,
    /// How often it was read.
    pub reads: u64,
    /// How often it was written.
    pub writes: u64,
    /// How many of these the guest got `#GP` for.
    pub faults: u64,
    /// What was written last without one.
    pub last_written: Option<u64>,
}

impl Record for Msr {
    const FILE: &'static str = "msrs";
    const KNOBS: &'static [&'static str] = &["observe", "msrs"];

    fn new(row: &Row<'_>) -> Result<Self> {
        let other = row.get("msr")? == "other";
        Ok(Self {
            msr: (!other).then(|| row.number("msr")).transpose()?,
            name: row.some("name")?.map(str::to_owned),
            reads: row.number("reads")?,
            writes: row.number("writes")?,
            faults: row.number("faults")?,
            last_written: row.some_number("last_written")?,
        })
    }

    fn since(now: &[Self], before: &[Self]) -> Vec<Self> {
        let counters = |row: &Self| [row.reads, row.writes, row.faults];
        let msr = |row: &Self| row.msr;
        let mut rows = by_key(now, before, msr, |now, before| {
            let [reads, writes, faults] = came(counters(now), before.map(counters))?;
            Some(Self {
                reads,
                writes,
                faults,
                ..now.clone()
            })
        });
        rows.sort_by_key(|row| Reverse(row.reads.saturating_add(row.writes)));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::parse;

    fn table(rows: &str) -> Vec<Msr> {
        let columns =
            "# accesses that made the guest exit\nmsr name reads writes faults last_written";
        parse(&format!("{columns}\n{rows}")).unwrap()
    }

    #[test]
    fn all_columns() {
        let rows =
            table("0x8b MSR_IA32_UCODE_REV 3 1 0 0x1234\n0xbad0000 - 1 0 1 -\nother - 7 0 7 -\n");
        assert_eq!(
            (rows[0].msr, rows[0].last_written),
            (Some(0x8b), Some(0x1234))
        );
        assert_eq!(rows[0].name.as_deref(), Some("MSR_IA32_UCODE_REV"));
        assert_eq!((rows[1].msr, &rows[1].name), (Some(0x0bad_0000), &None));
        assert_eq!((rows[2].msr, rows[2].faults), (None, 7));
    }

    #[test]
    fn what_came() {
        let before = table("0x8b A 3 1 0 0x1\n0x79 B 9 0 0 -\nother - 7 0 7 -\n");
        let now = table("0x79 B 9 0 0 -\nother - 8 0 8 -\n0x8b A 4 4 0 0x2\n");
        let expected = table("0x8b A 1 3 0 0x2\nother - 1 0 1 -\n");
        assert_eq!(Msr::since(&now, &before), expected);
    }
}
