// SPDX-License-Identifier: GPL-2.0
//! `irqs`: interrupts by vector.

use super::{by_key, Record};
use crate::table::Row;
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;

/// Interrupts with one vector. What hardware does by itself, or KVM does not tell of, is null.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Irq {
    /// The vector.
    pub vector: u64,
    /// How many were put into the guest.
    pub injected: Option<u64>,
    /// How many KVM gave to the vCPU's LAPIC.
    pub accepted: Option<u64>,
    /// How many the guest ended.
    pub eoi: Option<u64>,
}

impl Record for Irq {
    const FILE: &'static str = "irqs";
    const KNOBS: &'static [&'static str] = &["observe", "irqs"];

    fn new(row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            vector: row.number("vector")?,
            injected: row.some_number("injected")?,
            accepted: row.some_number("accepted")?,
            eoi: row.some_number("eoi")?,
        })
    }

    fn since(now: &[Self], before: &[Self]) -> Vec<Self> {
        let counters = |row: &Self| [row.injected, row.accepted, row.eoi];
        by_key(
            now,
            before,
            |row| row.vector,
            |now, before| {
                // What is not told now, or was not before, is not known of the time between.
                let before = before.map_or([Some(0); 3], counters);
                let mut pairs = [None; 3];
                for ((pair, now), before) in pairs.iter_mut().zip(counters(now)).zip(before) {
                    *pair = now.zip(before);
                }
                let anew = pairs.iter().flatten().any(|(now, before)| now < before);
                let came = pairs
                    .map(|pair| pair.map(|(now, before)| if anew { now } else { now - before }));
                let any = came.iter().any(|came| came.is_some_and(|came| came > 0));
                let [injected, accepted, eoi] = came;
                any.then_some(Self {
                    vector: now.vector,
                    injected,
                    accepted,
                    eoi,
                })
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::parse;

    fn table(rows: &str) -> Vec<Irq> {
        parse(&format!("vector injected accepted eoi\n{rows}")).unwrap()
    }

    #[test]
    fn what_came() {
        let before = table("0x20 3 4 3\n0x30 1 1 1\n0x40 - 7 -\n0x50 3 3 3\n0x60 9 9 9\n");
        let now = table("0x20 4 6 4\n0x30 1 1 1\n0x31 - 2 -\n0x40 - 8 -\n0x50 - 4 -\n0x60 1 1 0\n");
        let rows = Irq::since(&now, &before);
        assert_eq!(
            rows,
            table("0x20 1 2 1\n0x31 - 2 -\n0x40 - 1 -\n0x50 - 1 -\n0x60 1 1 0\n")
        );
        assert_eq!(rows[0].vector, 0x20);
        assert_eq!(Irq::since(&now, &now), []);
    }
}
