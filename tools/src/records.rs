// SPDX-License-Identifier: GPL-2.0
//! The rows of the module's tables as values, a module a table, and what came between two readings of one.
//!
//! The fields' names and comments are those of `--json`: `tools/schema` is made of them, and
//! `tools/json.md` tells of them.

mod exits;
mod exits_hist;
mod faults;
mod irqs;
mod msrs;
mod times;
mod vcpus;

pub use exits::Exit;
pub use exits_hist::{Bucket, Histogram};
pub use faults::Fault;
pub use irqs::Irq;
pub use msrs::Msr;
pub use times::Time;
pub use vcpus::{task, Vcpu};

use crate::{
    table::{Row, Table},
    tree::Vm,
};
use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

/// A row of one of a VM's tables.
pub trait Record: Clone + Serialize + JsonSchema {
    /// The file that the table is in.
    const FILE: &'static str;
    /// The knobs that must be 1 for anything to be recorded.
    const KNOBS: &'static [&'static str];

    /// From a line of the table.
    fn new(row: &Row<'_>) -> Result<Self>;

    /// What came between two readings of a table.
    fn since(now: &[Self], before: &[Self]) -> Vec<Self>;
}

/// All rows of a table.
pub fn parse<R: Record>(text: &str) -> Result<Vec<R>> {
    let rows = || -> Result<_> {
        let table = Table::new(text)?;
        let rows = table.rows().map(|row| R::new(&row?));
        rows.collect()
    };
    rows().context(R::FILE)
}

/// Read a VM's table, or that of one of its vCPUs.
pub fn read<R: Record>(vm: &Vm, vcpu: Option<u32>) -> Result<Vec<R>> {
    parse(&match vcpu {
        Some(vcpu) => vm.read(&format!("vcpu{vcpu}/{}", R::FILE))?,
        None => vm.read(R::FILE)?,
    })
}

/// Row by row: what `came` finds, of one that may have stood there before.
fn by_key<R, K: Ord>(
    now: &[R],
    before: &[R],
    key: impl Fn(&R) -> K,
    came: impl Fn(&R, Option<&R>) -> Option<R>,
) -> Vec<R> {
    let before: BTreeMap<K, &R> = before.iter().map(|row| (key(row), row)).collect();
    now.iter()
        .filter_map(|row| came(row, before.get(&key(row)).copied()))
        .collect()
}

/// How far counters of a row went, if one did. One that went back began anew meanwhile (`reset`), and
/// so did all of its row.
fn came<const N: usize>(now: [u64; N], before: Option<[u64; N]>) -> Option<[u64; N]> {
    let whole = |before: &[u64; N]| now.iter().zip(before).all(|(now, before)| now >= before);
    let mut came = now;
    if let Some(before) = before.filter(whole) {
        came.iter_mut().zip(before).for_each(|(n, b)| *n -= b);
    }
    came.iter().any(|&n| n > 0).then_some(came)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters() {
        assert_eq!(came([5, 7], Some([5, 3])), Some([0, 4]));
        assert_eq!(came([5, 7], Some([5, 7])), None);
        assert_eq!(came([5, 7], None), Some([5, 7]));
        // One that went back: all is new.
        assert_eq!(came([5, 2], Some([4, 3])), Some([5, 2]));
        assert_eq!(came([0, 0], Some([4, 3])), None);
    }

    #[test]
    fn other_versions_are_told() {
        let said = |told: Result<Vec<Exit>>| format!("{:#}", told.unwrap_err());
        let older = said(parse("reason count\nio 3\n"));
        assert!(
            older.starts_with("exits: there is no column total_ns"),
            "{older}"
        );
        assert!(said(parse("")).starts_with("exits: "));
        let half = "reason count total_ns avg_ns p50_ns p99_ns p999_ns max_ns\nio 3 1\n";
        assert!(said(parse(half)).starts_with("exits: 8 columns"));
    }
}
