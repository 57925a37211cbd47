// SPDX-License-Identifier: GPL-2.0
//! `exits_hist`: how long exits took, by powers of two.

use super::{by_key, came, Record};
use crate::table::Row;
use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::Serialize;
use std::cmp::Reverse;

/// How many buckets the module has: 0 ns, from 1, from 2, from 4 and so on.
const BUCKETS: usize = 48;

/// How long exits for one reason took. Times are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Histogram {
    /// KVM's name of it.
    pub reason: String,
    /// How many exits had an entry after them.
    pub timed: u64,
    /// From these exits to the entries, all together.
    pub total_ns: u64,
    /// How many took how long, the shortest first; those that nothing took are left out.
    pub histogram: Vec<Bucket>,
}

/// Exits that took about as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Bucket {
    /// They took so long at least, and less than twice that, within a sixteenth. 0: nothing; 2^46: any longer
    /// time.
    pub from_ns: u64,
    /// How many.
    pub count: u64,
}

impl Bucket {
    /// The time is below 2 to the power of this, and not below half of that.
    pub fn bits(&self) -> u32 {
        self.from_ns.checked_ilog2().map_or(0, |bits| bits + 1)
    }

    /// The shortest time with so many bits.
    pub fn from_bits(bits: u32) -> u64 {
        bits.checked_sub(1).map_or(0, |bits| 1 << bits)
    }

    fn new(text: &str) -> Option<Self> {
        let (from, count) = text.split_once(':')?;
        let bucket = Self {
            from_ns: from.parse().ok()?,
            count: count.parse().ok()?,
        };
        let is_one = bucket.from_ns == Self::from_bits(bucket.bits());
        (is_one && (bucket.bits() as usize) < BUCKETS).then_some(bucket)
    }
}

impl Histogram {
    /// All that counts in it: exits, time, buckets.
    fn counters(&self) -> [u64; 2 + BUCKETS] {
        let mut all = [0; 2 + BUCKETS];
        (all[0], all[1]) = (self.timed, self.total_ns);
        for bucket in &self.histogram {
            all[2 + bucket.bits() as usize] = bucket.count;
        }
        all
    }

    fn of(reason: String, counters: [u64; 2 + BUCKETS]) -> Self {
        let buckets = (0..).zip(&counters[2..]).filter(|(_, &count)| count > 0);
        Self {
            reason,
            timed: counters[0],
            total_ns: counters[1],
            histogram: buckets
                .map(|(bits, &count)| Bucket {
                    from_ns: Bucket::from_bits(bits),
                    count,
                })
                .collect(),
        }
    }
}

impl Record for Histogram {
    const FILE: &'static str = "exits_hist";
    const KNOBS: &'static [&'static str] = &["observe"];

    fn new(row: &Row<'_>) -> Result<Self> {
        let buckets = row.names("histogram")?;
        let buckets: Option<Vec<_>> = buckets.iter().map(|text| Bucket::new(text)).collect();
        let timed = row.number("timed")?;
        let sound = |all: &Vec<Bucket>| {
            let sum = all.iter().map(|bucket| u128::from(bucket.count)).sum();
            all.is_sorted_by(|a, b| a.from_ns < b.from_ns) && u128::from(timed) == sum
        };
        let histogram = buckets.filter(sound);
        Ok(Self {
            reason: row.get("reason")?.to_owned(),
            timed,
            total_ns: row.number("total_ns")?,
            histogram: histogram
                .with_context(|| format!("histogram is {:?}", row.get("histogram").ok()))?,
        })
    }

    fn since(now: &[Self], before: &[Self]) -> Vec<Self> {
        let reason = |row: &Self| row.reason.clone();
        let mut rows = by_key(now, before, reason, |now, before| {
            let counters = came(now.counters(), before.map(Self::counters))?;
            Some(Self::of(now.reason.clone(), counters))
        });
        rows.sort_by_key(|row| Reverse(row.total_ns));
        rows
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::records::parse;

    pub fn table(rows: &str) -> Vec<Histogram> {
        parse(&format!("reason timed total_ns histogram\n{rows}")).unwrap()
    }

    #[test]
    fn buckets() {
        let rows = table("io 9 70 0:2,1:3,4:4\nhlt 0 0 -\nnpf 1 3 70368744177664:1\n");
        let told: Vec<_> = rows[0]
            .histogram
            .iter()
            .map(|bucket| (bucket.from_ns, bucket.bits(), bucket.count))
            .collect();
        assert_eq!(told, [(0, 0, 2), (1, 1, 3), (4, 3, 4)]);
        assert_eq!((rows[0].timed, rows[0].total_ns), (9, 70));
        assert_eq!((rows[1].timed, rows[1].histogram.len()), (0, 0));
        assert_eq!(rows[2].histogram[0].bits(), 47);
        // What went in comes out.
        for row in rows {
            assert_eq!(Histogram::of(row.reason.clone(), row.counters()), row);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for histogram in [
            "3:2",
            "4",
            "4:x",
            "x:2",
            "140737488355328:2",
            "4:1,,8:1",
            "8:1,4:1",
            "4:1,4:1",
            "4:3",
            "-",
        ] {
            let text = format!("reason timed total_ns histogram\nio 2 1 {histogram}\n");
            let said = format!("{:#}", parse::<Histogram>(&text).unwrap_err());
            assert!(said.starts_with("exits_hist: histogram is"), "{said}");
        }
    }

    #[test]
    fn what_came() {
        let before = table("io 4 100 16:3,32:1\nhlt 1 50 32:1\n");
        let now = table("io 6 160 16:3,32:2,64:1\nhlt 1 50 32:1\nmsr 1 9 8:1\n");
        let rows = Histogram::since(&now, &before);
        assert_eq!(rows, table("io 2 60 32:1,64:1\nmsr 1 9 8:1\n"));
        // One bucket that has less: it was reset.
        let anew = table("io 6 160 16:2,32:4\n");
        assert_eq!(Histogram::since(&anew, &before), anew);
    }
}
