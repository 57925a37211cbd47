// SPDX-License-Identifier: GPL-2.0
//! Which memory is mapped by 4 KiB where 2 MiB could be, and why.

use super::model::{Map, Range};
use crate::units::size;
use std::{
    collections::BTreeMap,
    io::{self, Write},
};

/// What a reason means, and what to do about it.
fn meaning(reason: &str) -> &'static str {
    match reason {
        "slot-alignment" => {
            "guest and host addresses differ modulo 2 MiB: have the VMM align its memory"
        }
        "edge" => "these 2 MiB are not all in one slot",
        "dirty-log" => "the slot's dirty pages are logged (migration): goes when that ends",
        "write-tracked" => "KVM or another tracks writes to a page of these 2 MiB",
        "mixed-permissions" => {
            "the host has several mappings there, or these 2 MiB are partly private"
        }
        "host-4k" => "the host maps it by 4 KiB: give it hugetlb, transparent huge pages or gmem",
        "nx-recovery" => {
            "it was executed, and KVM gives no executable huge pages (nx_huge_pages of kvm)"
        }
        "unknown" => "none of these any more: KVM makes it large when it next comes by",
        _ => "",
    }
}

/// Neighbours with the same reason, whatever else differs.
fn joined(map: &Map) -> Vec<(&str, Range)> {
    let mut all: Vec<(&str, Range)> = Vec::new();
    for range in &map.ranges {
        let Some(reason) = &range.why else { continue };
        match all.last_mut() {
            Some((same, last))
                if same == reason
                    && last.root == range.root
                    && last.gpa + last.size == range.gpa =>
            {
                last.size += range.size;
            }
            _ => all.push((reason, range.clone())),
        }
    }
    all
}

/// Tell it: the sums, then the ranges.
pub fn tell(out: &mut impl Write, map: &Map) -> io::Result<()> {
    let ranges = joined(map);
    if ranges.is_empty() {
        return writeln!(out, "nothing is mapped by 4 KiB");
    }
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, range) in &ranges {
        *sums.entry(reason).or_default() += range.size;
    }
    for (reason, bytes) in sums {
        let (pages, bytes) = (bytes / 4096, size(bytes));
        writeln!(out, "{reason}: {pages} pages, {bytes}: {}", meaning(reason))?;
    }
    writeln!(out, "{:>18} {:>8} slot why", "gpa", "size")?;
    for (reason, range) in &ranges {
        let root = map.roots.iter().find(|root| root.root == range.root);
        let slot = root.and_then(|root| map.slot_at(root.address_space, range.gpa));
        let slot = slot.map_or("-".to_owned(), |slot| slot.slot.to_string());
        let (gpa, size) = (range.gpa, size(range.size));
        writeln!(out, "{gpa:>#18x} {size:>8} {slot:>4} {reason}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::model::tests::map, *};

    fn told(map: &Map) -> String {
        let mut out = Vec::new();
        tell(&mut out, map).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn sums_and_ranges() {
        let text = told(&map());
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("edge: 2 pages, 8K: "), "{text}");
        assert!(lines[1].starts_with("host-4k: 5 pages, 20K: "), "{text}");
        assert_eq!(lines[2], "               gpa     size slot why");
        assert_eq!(lines[3], "            0x1000       8K    0 edge");
        // Two ranges with different bits are one.
        assert_eq!(lines[4], "        0x40600000      20K    1 host-4k");
        assert_eq!(lines.len(), 5);
        assert_eq!(told(&Map::default()), "nothing is mapped by 4 KiB\n");
    }

    #[test]
    fn each_reason_has_a_meaning() {
        for reason in include_str!("../../../uapi/debugfs.md")
            .lines()
            .skip_while(|line| !line.starts_with("| reason | a leaf of 4 KiB"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
        {
            let name = reason.split('`').nth(1).unwrap();
            assert!(!meaning(name).is_empty(), "{name}");
        }
    }
}
