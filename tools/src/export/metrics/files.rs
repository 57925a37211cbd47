// SPDX-License-Identifier: GPL-2.0
//! The families of memory files.

use super::{super::model::MemoryFile, family, label, owned};
use prometheus_client::{
    encoding::DescriptorEncoder,
    metrics::MetricType::{self, Counter, Gauge},
    registry::Unit,
};
use std::fmt;

/// A memory file's numbers: the name in `info`, the family's, its unit, what it is, and help.
const NUMBERS: [(&str, &str, Option<Unit>, MetricType, &str); 9] = [
    (
        "size",
        "gmem_size",
        Some(Unit::Bytes),
        Gauge,
        "A memory file's size",
    ),
    (
        "allocated",
        "gmem_allocated",
        Some(Unit::Bytes),
        Gauge,
        "Memory that it has",
    ),
    (
        "fallbacks",
        "gmem_fallbacks",
        None,
        Counter,
        "Folios made smaller than would have fitted, for want of memory",
    ),
    (
        "punch_asked",
        "gmem_punch_asked",
        Some(Unit::Bytes),
        Counter,
        "What was asked to be punched",
    ),
    (
        "punch_freed",
        "gmem_punch_freed",
        Some(Unit::Bytes),
        Counter,
        "What punches gave back",
    ),
    (
        "punch_kept_unsplit",
        "gmem_punch_kept",
        Some(Unit::Bytes),
        Counter,
        "Whole pages that were zeroed and had to stay, for their folio could not be split",
    ),
    (
        "punch_kept_referenced",
        "gmem_punch_kept_referenced",
        Some(Unit::Bytes),
        Counter,
        "Of these, those of folios to which somebody held a reference",
    ),
    (
        "punch_refused",
        "gmem_punch_refused",
        None,
        Counter,
        "Edges of holes at which a folio could not be split",
    ),
    (
        "failed",
        "gmem_failed_pages",
        None,
        Gauge,
        "Pages that failed and were taken out, at offsets that nobody punched since",
    ),
];

/// What came of splits and merges: the end of the name in `info`, and the label.
const RESULTS: [(&str, &str); 5] = [
    ("done", "done"),
    ("failed_referenced", "referenced"),
    ("failed_memory", "memory"),
    ("failed_hole", "hole"),
    ("failed_poisoned", "poisoned"),
];

/// Write all of them.
pub fn encode(to: &mut DescriptorEncoder, files: &[MemoryFile]) -> fmt::Result {
    let of = |file: &MemoryFile| vec![owned("file", file.inode)];
    for (key, name, unit, kind, help) in NUMBERS {
        let there = files
            .iter()
            .filter_map(|file| Some((file, *file.numbers.get(key)?)));
        let samples = there.map(|(file, value)| (of(file), value.into()));
        family(to, name, help, unit, kind, samples)?;
    }
    for (key, name, kind, help) in [
        (
            "folios_order",
            "gmem_folios",
            Gauge,
            "Folios of 4 KiB << order that it has",
        ),
        (
            "faults_order",
            "gmem_faults",
            Counter,
            "Page faults, by the order of the folio that answered them",
        ),
    ] {
        let samples = files.iter().flat_map(|file| {
            file.by_order(key).map(move |(order, count)| {
                let mut labels = of(file);
                labels.push(owned("order", order));
                (labels, count.into())
            })
        });
        family(to, name, help, None, kind, samples)?;
    }
    for (key, name, help) in [
        (
            "split",
            "gmem_splits",
            "Splits of folios, whoever wanted them",
        ),
        (
            "merge",
            "gmem_merges",
            "Blocks that were to be merged to one folio",
        ),
    ] {
        let samples = files.iter().flat_map(|file| {
            RESULTS.into_iter().filter_map(move |(end, result)| {
                let count = file.numbers.get(&format!("{key}_{end}"))?;
                let mut labels = of(file);
                labels.push(label("result", result));
                Some((labels, (*count).into()))
            })
        });
        family(to, name, help, None, Counter, samples)?;
    }
    Ok(())
}
