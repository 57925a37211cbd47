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
        let walked = map.roots.iter().filter(|root| !root.levels.is_empty());
        return match (walked.count(), map.roots.len()) {
            (0, _) => writeln!(
                out,
                "no tables were walked: of small pages nothing is known"
            ),
            (walked, all) if walked < all => {
                writeln!(
                    out,
                    "nothing is mapped by 4 KiB in the tables that were walked"
                )
            }
            _ => writeln!(out, "nothing is mapped by 4 KiB"),
        };
    }
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, range) in &ranges {
        *sums.entry(reason).or_default() += range.size;
    }
    for (reason, bytes) in sums {
        let (pages, bytes) = (bytes / 4096, size(bytes));
        writeln!(out, "{reason}: {pages} pages, {bytes}: {}", meaning(reason))?;
    }
    // Of several roots the same address may have several lines.
    let mut roots: Vec<_> = ranges.iter().map(|(_, range)| range.root).collect();
    roots.dedup();
    let mut before = None;
    for (reason, range) in &ranges {
        if before.replace(range.root) != Some(range.root) {
            if roots.len() > 1 {
                writeln!(out, "root {}:", range.root)?;
            }
            writeln!(out, "{:>18} {:>8} slot why", "gpa", "size")?;
        }
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
    }

    #[test]
    fn nothing_small() {
        let mut map = map();
        map.ranges.clear();
        assert_eq!(
            told(&map),
            "nothing is mapped by 4 KiB in the tables that were walked\n"
        );
        let nested = map.roots.pop();
        assert_eq!(told(&map), "nothing is mapped by 4 KiB\n");
        map.roots = nested.into_iter().collect();
        let none = "no tables were walked: of small pages nothing is known\n";
        assert_eq!(told(&map), none);
        assert_eq!(told(&Map::default()), none);
    }

    #[test]
    fn roots_apart() {
        let mut map = map();
        let mut other = map.ranges[0].clone();
        other.root = 1;
        map.ranges.push(other);
        let text = told(&map);
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!((lines[0], lines[4]), ("root 0:", "root 1:"), "{text}");
        assert!(lines[6].ends_with("0x1000       8K    0 edge"), "{text}");
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
