// SPDX-License-Identifier: GPL-2.0
//! `faults`: page faults that made the guest exit, by class, memslot and range.

use super::{by_key, came, Record};
use crate::table::{number, Row};
use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::Serialize;
use std::cmp::Reverse;

/// Page faults of one kind: `count` at most, and `count - error` at least.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Fault {
    /// What they are told apart by: `class`, `memslot` or `range`.
    pub kind: String,
    /// Which one.
    pub which: String,
    /// Of a range, the guest-physical address of its 2 MiB.
    pub gpa: Option<u64>,
    /// How many.
    pub count: u64,
    /// How many of them may have been of other ranges; of a class or memslot 0.
    pub error: u64,
}

/// How many ranges the module's table has at most.
const RANGES: usize = 32;

impl Fault {
    fn is_range(&self) -> bool {
        self.gpa.is_some()
    }

    /// How many there were at least.
    fn least(&self) -> u64 {
        self.count.saturating_sub(self.error)
    }

    /// The kinds, in the module's order.
    fn order(&self) -> usize {
        let kinds = ["class", "memslot", "range"];
        let at = kinds.iter().position(|kind| *kind == self.kind);
        at.unwrap_or(kinds.len())
    }

    /// Between two readings, `before` being how often a fault was there at least and at most.
    fn came(&self, (least, most): (u64, u64)) -> Option<Self> {
        // It cannot have been there less often: it began anew.
        let (least, most) = if self.count < least {
            (0, 0)
        } else {
            (least, most)
        };
        let count = self.count - least;
        (count > 0).then(|| Self {
            count,
            error: count - self.least().saturating_sub(most),
            ..self.clone()
        })
    }
}

impl Record for Fault {
    const FILE: &'static str = "faults";
    const KNOBS: &'static [&'static str] = &["observe", "faults"];

    fn new(row: &Row<'_>) -> Result<Self> {
        let (kind, which) = (row.get("kind")?, row.get("which")?);
        let gpa = (kind == "range")
            .then(|| number(which).with_context(|| format!("a range that begins at {which:?}")));
        Ok(Self {
            kind: kind.to_owned(),
            which: which.to_owned(),
            gpa: gpa.transpose()?,
            count: row.number("count")?,
            error: row.number("error")?,
        })
    }

    fn since(now: &[Self], before: &[Self]) -> Vec<Self> {
        let ranges = || before.iter().filter(|row| row.is_range());
        // What a range may have had that did not stand there: no more than each that did.
        let left_out = match ranges().count() {
            0..RANGES => 0,
            _ => ranges().map(|row| row.count).min().unwrap_or(0),
        };
        let key = |row: &Self| (row.kind.clone(), row.which.clone());
        let mut rows = by_key(now, before, key, |now, before| {
            if now.is_range() {
                now.came(before.map_or((0, left_out), |row| (row.least(), row.count)))
            } else {
                let [count] = came([now.count], before.map(|row| [row.count]))?;
                Some(Self {
                    count,
                    ..now.clone()
                })
            }
        });
        rows.sort_by_key(|row| (row.order(), Reverse(row.count)));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::parse;

    fn table(rows: &str) -> Vec<Fault> {
        parse(&format!("kind which count error\n{rows}")).unwrap()
    }

    #[test]
    fn all_columns() {
        let rows =
            table("class write,user 7 0\nmemslot 0:3 6 0\nmemslot none 1 0\nrange 0x200000 7 2\n");
        assert_eq!((rows[0].which.as_str(), rows[0].gpa), ("write,user", None));
        assert_eq!(
            (rows[3].gpa, rows[3].count, rows[3].error),
            (Some(2 << 20), 7, 2)
        );
        assert!(parse::<Fault>("kind which count error\nrange x 1 0\n").is_err());
    }

    #[test]
    fn what_came() {
        let before = table("class write 7 0\nmemslot 0:3 7 0\nrange 0x0 5 2\nrange 0x200000 2 0\n");
        let now = table(
            "class write 9 0\nclass read 4 0\nmemslot 0:3 13 0\nrange 0x0 10 2\nrange 0x200000 2 0\n\
             range 0x400000 1 0\n",
        );
        // Of the range at 0 there were 3 to 5, and are 8 to 10: 3 to 7 came.
        let expected = table(
            "class read 4 0\nclass write 2 0\nmemslot 0:3 6 0\nrange 0x0 7 4\nrange 0x400000 1 0\n",
        );
        assert_eq!(Fault::since(&now, &before), expected);
        let anew = table("class write 1 0\nmemslot 0:3 1 0\nrange 0x0 1 0\n");
        assert_eq!(Fault::since(&anew, &before), anew);
    }

    #[test]
    fn a_range_that_did_not_stand_there() {
        let lines: Vec<_> = (0..32)
            .map(|n| format!("range {:#x} {} 0\n", n << 21, 50 - n))
            .collect();
        let now = table("range 0x80000000 30 1\n");
        // It was there 19 times at most, as the least of the 32.
        let rows = Fault::since(&now, &table(&lines.concat()));
        assert_eq!((rows[0].count, rows[0].error), (30, 20));
        assert_eq!(Fault::since(&now, &table(&lines[..31].concat())), now);
    }
}
