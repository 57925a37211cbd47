// SPDX-License-Identifier: GPL-2.0
//! What `tools/testing/selftests/kvm/kvm_binary_stats_test.c` checks of a statistics descriptor, check
//! by check in its order, and beyond it that names are unique and numbers do not overlap.

use crate::ensure_eq;
use anyhow::{ensure, Context, Result};
use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt};

const HEADER: usize = 24;
/// A descriptor without its name.
const DESCRIPTOR: usize = 16;

const TYPE_LINEAR_HIST: u32 = 3;
const TYPE_LOG_HIST: u32 = 4;
const UNIT_SECONDS: u32 = 2;
const UNIT_BOOLEAN: u32 = 4;
const BASE_POW2: u32 = 1;

/// A statistic as its descriptor has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// `KVM_STATS_TYPE_*`
    pub kind: u32,
    /// `KVM_STATS_UNIT_*`, shifted down.
    pub unit: u32,
    /// Of ten.
    pub exponent: i16,
    /// How many numbers it has.
    pub size: usize,
    /// Where they are in the file.
    pub offset: usize,
}

/// What is found: the id, and each statistic by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The id.
    pub id: String,
    /// The statistics.
    pub all: BTreeMap<String, Described>,
}

fn pread(file: &File, size: usize, offset: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    let read = file.read_at(&mut bytes, offset as u64)?;
    ensure_eq!(read, size, "bytes read at {offset}");
    Ok(bytes)
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

/// A text that ends with a zero byte before its field does.
fn text(field: &[u8]) -> Result<String> {
    let end = field.iter().position(|&b| b == 0).context("too long")?;
    Ok(String::from_utf8(field[..end].to_vec())?)
}

/// Check a descriptor's file.
pub fn check(file: &File) -> Result<Layout> {
    let header = pread(file, HEADER, 0)?;
    let [flags, name_size, count, id, descriptors, data] =
        [0, 4, 8, 12, 16, 20].map(|at| word(&header, at));
    ensure_eq!((flags, id), (0, HEADER), "flags, and where the id is");
    let id = text(&pread(file, name_size, HEADER)?).context("id")?;
    ensure!(id.starts_with("kvm"), "id {id}");
    ensure!(count > 0, "no statistics");
    ensure!(
        descriptors >= HEADER && data >= HEADER,
        "blocks in the header"
    );
    let each = DESCRIPTOR + name_size;
    ensure!(
        descriptors > data || descriptors + each * count <= data,
        "descriptors overlap data"
    );
    let bytes = pread(file, each * count, descriptors)?;
    let mut all = BTreeMap::new();
    let mut data_size = 0;
    for one in bytes.chunks_exact(each) {
        let name = text(&one[DESCRIPTOR..])?;
        let described = describe(one).with_context(|| name.clone())?;
        data_size = data_size.max(described.offset + 8 * described.size);
        let described = Described {
            offset: data + described.offset,
            ..described
        };
        let twice = all.insert(name.clone(), described);
        ensure!(twice.is_none(), "two statistics {name}");
    }
    ensure!(
        data >= descriptors || data + data_size <= descriptors,
        "data overlaps descriptors"
    );
    ensure!(data_size >= 8 * count, "data of {data_size} bytes");
    pread(file, data_size, data).context("the data as a whole")?;
    for (name, one) in &all {
        pread(file, 8 * one.size, one.offset).context(name.clone())?;
    }
    let mut places: Vec<_> = all.values().map(|one| (one.offset, one.size)).collect();
    places.sort_unstable();
    for pair in places.windows(2) {
        ensure!(
            pair[0].0 + 8 * pair[0].1 <= pair[1].0,
            "numbers overlap: {pair:?}"
        );
    }
    Ok(Layout { id, all })
}

/// A descriptor, without its name; the offset is in the data.
fn describe(one: &[u8]) -> Result<Described> {
    let flags = word(one, 0) as u32;
    let [kind, unit, base] = [0, 4, 8].map(|shift| (flags >> shift) & 0xf);
    let exponent = i16::from_ne_bytes([one[4], one[5]]);
    let size = u16::from_ne_bytes([one[6], one[7]]).into();
    let (offset, bucket_size) = (word(one, 8), word(one, 12));
    ensure!(kind <= TYPE_LOG_HIST, "type {kind}");
    ensure!(unit <= UNIT_BOOLEAN, "unit {unit}");
    ensure!(base <= BASE_POW2, "base {base}");
    let fits = match unit {
        UNIT_SECONDS => exponent <= 0,
        UNIT_BOOLEAN => exponent == 0,
        _ => exponent >= 0,
    };
    ensure!(fits, "exponent {exponent} of unit {unit}");
    ensure!(size > 0, "no numbers");
    ensure_eq!(
        bucket_size > 0,
        kind == TYPE_LINEAR_HIST,
        "bucket size {bucket_size}"
    );
    Ok(Described {
        kind,
        unit,
        exponent,
        size,
        offset,
    })
}
