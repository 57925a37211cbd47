// SPDX-License-Identifier: GPL-2.0
//! Every bit of an entry, written out once more; and walks against a plain model of memory.

use super::walk::{Met, Root, Run, Table, ENTRIES};
use super::*;
use proptest::prelude::*;
use std::{collections::BTreeMap, ops::ControlFlow};

const A: &str = "(address)";
/// No name: told in hexadecimal.
const X: &str = "";
/// A part of a field that is told as a number.
const T: &str = "(type)";
const K: &str = "(tracking)";
const G: &str = "(generation)";

/// The 64 names from bit 0 on: those of bits 0 to 12, the address up to bit 51, those of bits 52 to 63.
fn names(low: [&'static str; 13], high: [&'static str; 12]) -> Vec<&'static str> {
    [&low[..], &[A; 39], &high].concat()
}

/// All kinds of entries: format, level, the bits without which it would be another, and the names.
fn kinds() -> Vec<(Format, u8, u64, Class, Vec<&'static str>)> {
    use Class::{Leaf, Mmio, Table};
    use Format::{Ept, Npt};
    const NPT_HIGH: [&str; 12] = [X, X, X, X, X, X, X, X, K, K, X, "no-execute"];
    #[rustfmt::skip]
    const EPT_HIGH: [&str; 12] = [
        "saved-read", "host-writable", "saved-execute", "mmu-writable", X, "verify-guest-paging",
        "paging-write", X, K, K, "saved-user-execute", "suppress-ve",
    ];
    #[rustfmt::skip]
    let npt = |seven, twelve| names([
        "present", "write", "user", "pwt", "pcd", "accessed", "dirty", seven, "global",
        "host-writable", "mmu-writable", "mmu-present", twelve,
    ], NPT_HIGH);
    #[rustfmt::skip]
    let ept = |seven, twelve| names([
        "read", "write", "execute", T, T, T, "ignore-pat", seven, "accessed", "dirty",
        "user-execute", "mmu-present", twelve,
    ], EPT_HIGH);
    #[rustfmt::skip]
    let npt_table = names([
        "present", "write", "user", "pwt", "pcd", "accessed", X, X, X, X, X, "mmu-present", A,
    ], NPT_HIGH);
    #[rustfmt::skip]
    let ept_table = names([
        "read", "write", "execute", X, X, X, X, X, "accessed", X, "user-execute", "mmu-present", A,
    ], [X, X, X, X, X, X, X, X, K, K, X, "suppress-ve"]);
    let large = |mut names: Vec<&'static str>, level: u8| {
        // Reserved: between the flags and the address of a large page.
        for name in &mut names[13..12 + 9 * (usize::from(level) - 1)] {
            *name = X;
        }
        names
    };
    let mmio = |rwx: [&'static str; 3], top| {
        let low = [rwx[0], rwx[1], rwx[2], G, G, G, G, G, G, G, X, X, A];
        names(low, [G, G, G, G, G, G, G, G, G, G, G, top])
    };
    let mut all = Vec::new();
    for level in 1..=5 {
        if level == 1 {
            all.push((Npt, level, 1 << 11, Leaf, npt("pat", A)));
            all.push((Ept, level, 1 << 11, Leaf, ept(X, A)));
        } else {
            let bits = (1 << 11) | (1 << 7);
            all.push((Npt, level, bits, Leaf, large(npt("large", "pat"), level)));
            all.push((Ept, level, bits, Leaf, large(ept("large", X), level)));
            all.push((Npt, level, 1 << 11, Table, npt_table.clone()));
            all.push((Ept, level, 1 << 11, Table, ept_table.clone()));
        }
        let npt = mmio(["present", "write", "user"], "no-execute");
        all.push((Npt, level, 1, Mmio, npt));
        let ept = mmio(["read", "write", "execute"], "suppress-ve");
        all.push((Ept, level, 6, Mmio, ept));
    }
    all
}

#[test]
fn every_bit_of_every_kind() {
    for (format, level, base, class, names) in kinds() {
        assert_eq!(names.len(), 64);
        for (bit, name) in names.iter().enumerate() {
            let raw = base | (1 << bit);
            let entry = Entry { raw, level, format };
            if entry.class() != class {
                // Only what makes it what it is may change that.
                assert!(
                    matches!((class, bit), (Class::Table, 7) | (Class::Mmio, 0 | 11)),
                    "{class:?} {format:?} level {level} bit {bit}: {:?}",
                    entry.class()
                );
                continue;
            }
            let told = entry.flags().to_string();
            let told: Vec<_> = told.split(',').collect();
            let what = format!("{class:?} {format:?} level {level} bit {bit}: {told:?}");
            let expected = match *name {
                A if (base >> bit) & 1 == 0 => {
                    assert_eq!(entry.address(52), 1 << bit, "{what}");
                    assert_eq!(
                        entry.flags().to_string(),
                        Entry { raw: base, ..entry }.flags().to_string(),
                        "{what}"
                    );
                    continue;
                }
                X => format!("{:#x}", 1u64 << bit),
                T => format!("type={}", 1 << (bit - 3)),
                K => format!("tracking={}", 1 << (bit - 60)),
                G if bit < 10 => format!("generation={}", 1 << (bit - 3)),
                G => format!("generation={}", 1 << (bit - 52 + 7)),
                name => name.to_owned(),
            };
            assert!(told.contains(&&*expected), "{what}, not {expected}");
            assert_eq!(entry.address(52), 0, "{what}");
            // And those of the base, and nothing else.
            let others = told.len() - 1;
            assert_eq!(others, (base & !(1 << bit)).count_ones() as usize, "{what}");
        }
    }
}

#[test]
fn other_flags_leave_out_what_has_a_column() {
    for (format, level, base, class, names) in kinds() {
        if class != Class::Leaf {
            continue;
        }
        #[rustfmt::skip]
        let told_elsewhere = [
            "present", "write", "user", "pwt", "pcd", "pat", "host-writable", "mmu-writable", "mmu-present",
            "large", "no-execute", "read", "execute", "user-execute", T, "ignore-pat",
        ];
        for bit in (0..64).filter(|&bit| names[bit] != A) {
            let entry = Entry {
                raw: base | (1 << bit),
                level,
                format,
            };
            let expected = match names[bit] {
                name if told_elsewhere.contains(&name) => "-".to_owned(),
                X => format!("{:#x}", 1u64 << bit),
                K => format!("tracking={}", 1 << (bit - 60)),
                name => name.to_owned(),
            };
            assert_eq!(
                entry.other_flags().to_string(),
                expected,
                "{format:?} {level} bit {bit}"
            );
        }
    }
}

fn entry(format: Format, level: u8, raw: u64) -> Entry {
    Entry { raw, level, format }
}

#[test]
fn classes() {
    use Format::{Ept, Npt};
    for (format, raw, class) in [
        (Npt, 0, Class::Absent),
        (Ept, 0, Class::Absent),
        // SHADOW_NONPRESENT_VALUE, with and without FROZEN_SPTE
        (Npt, 1 << 63, Class::Absent),
        (Ept, 1 << 63, Class::Absent),
        (Npt, (1 << 63) | 0x1a0, Class::Frozen),
        (Ept, (1 << 63) | 0x1a0, Class::Frozen),
        (Npt, 0x1a0, Class::Frozen),
        (Npt, (1 << 51) | 0xfee0_0007, Class::Mmio),
        (Ept, (1 << 63) | 0xfee0_0006, Class::Mmio),
        (Ept, 0xfee0_0007, Class::Other),
        (Npt, 0xfee0_0002, Class::Other),
        (Npt, 0x1234_5867, Class::Leaf),
        // An access-tracked leaf: nothing for hardware.
        (
            Ept,
            (1 << 52) | (1 << 54) | (1 << 60) | 0x1234_5800,
            Class::Leaf,
        ),
    ] {
        assert_eq!(entry(format, 1, raw).class(), class, "{format:?} {raw:#x}");
    }
    assert_eq!(entry(Npt, 2, 0x1234_5827).class(), Class::Table);
    assert_eq!(entry(Npt, 2, 0x1220_08e7).class(), Class::Leaf);
    assert_eq!(entry(Ept, 4, (1 << 63) | 0x1234_5907).class(), Class::Table);
}

#[test]
fn frozen_entries_have_no_flags() {
    for format in [Format::Npt, Format::Ept] {
        let frozen = entry(format, 1, (1 << 63) | 0x1a0);
        assert_eq!(frozen.flags().to_string(), "-");
        assert_eq!(frozen.other_flags().to_string(), "-");
    }
}

#[test]
fn generation_is_put_together() {
    // As make_mmio_spte() puts it: 7 low bits from bit 3 on, 11 high ones from bit 52 on.
    for generation in [0u64, 1, 0x7f, 0x80, 0x2_aaaa, 0x3_ffff] {
        let raw = ((generation & 0x7f) << 3) | ((generation >> 7) << 52) | 0xfee0_0006;
        let entry = entry(Format::Ept, 1, raw);
        assert_eq!(u64::from(entry.mmio_generation()), generation);
    }
}

#[test]
fn permissions_and_types() {
    let text = |entry: Entry| String::from_utf8(entry.permissions().to_vec()).unwrap();
    use Format::{Ept, Npt};
    for (format, raw, permissions) in [
        (Npt, 0x807, "rwxu"),
        (Npt, 0x801, "r-x-"),
        (Npt, (1 << 63) | 0x805, "r--u"),
        (Ept, 0x800, "----"),
        (Ept, 0x807, "rwx-"),
        (Ept, 0xc05, "r-xu"),
        (Ept, 0xc00, "---u"),
    ] {
        assert_eq!(text(entry(format, 1, raw)), permissions, "{raw:#x}");
    }
    for (format, level, raw, memory) in [
        (Npt, 1, 0x800, "pat0"),
        (Npt, 1, 0x808, "pat1"),
        (Npt, 1, 0x810, "pat2"),
        (Npt, 1, 0x880, "pat4"),
        (Npt, 1, 0x898, "pat7"),
        (Npt, 2, 0x880, "pat0"),
        (Npt, 2, 0x1898, "pat7"),
        (Npt, 3, 0x1880, "pat4"),
        (Ept, 1, 0x800, "uc"),
        (Ept, 1, 0x808, "wc"),
        (Ept, 1, 0x810, "mt2"),
        (Ept, 1, 0x818, "mt3"),
        (Ept, 1, 0x820, "wt"),
        (Ept, 1, 0x828, "wp"),
        (Ept, 1, 0x830, "wb"),
        (Ept, 1, 0x838, "mt7"),
        (Ept, 2, 0x8f0, "wb+ipat"),
    ] {
        let found = entry(format, level, raw).memory_type().to_string();
        assert_eq!(found, memory, "{raw:#x}");
    }
    // The table above is_writable_pte() in spte.h.
    let (npt, ept) = ([1 << 9, 1 << 10], [1 << 53, 1 << 55]);
    for (format, [host, mmu]) in [(Npt, npt), (Ept, ept)] {
        for (raw, write) in [
            (host | mmu | 2, Write::Writable),
            (host | mmu, Write::DirtyLog),
            (host, Write::Tracked),
            (0, Write::ReadOnly),
        ] {
            assert_eq!(entry(format, 1, 0x801 | raw).write(), write, "{format:?}");
        }
    }
}

#[test]
fn encryption_is_no_address() {
    let c_bit = entry(Format::Npt, 1, (1 << 47) | 0x1234_5867);
    assert_eq!(
        (c_bit.address(43), c_bit.encryption(43)),
        (0x1234_5000, 1 << 4)
    );
    assert_eq!(
        (c_bit.address(48), c_bit.encryption(48)),
        ((1 << 47) | 0x1234_5000, 0)
    );
}

#[test]
fn sizes() {
    assert_eq!(
        (1..=5).map(bytes).collect::<Vec<_>>(),
        [4 << 10, 2 << 20, 1 << 30, 512 << 30, 256 << 40]
    );
}

/// Tables in a map: the number of a table and of an entry in it to the entry.
struct Model {
    format: Format,
    level: u8,
    entries: BTreeMap<(u64, usize), u64>,
    tables: u64,
}

#[derive(Clone, Copy)]
struct At<'a>(&'a Model, u64);

impl Table for At<'_> {
    fn entry(self, index: usize) -> u64 {
        self.0.entries.get(&(self.1, index)).copied().unwrap_or(0)
    }

    fn child(self, index: usize) -> Option<Self> {
        Some(At(self.0, (self.entry(index) >> 12) & 0xffff_ffff))
    }
}

/// What a leaf has beside its address.
fn leaf(level: u8, attributes: u64) -> u64 {
    0x801 | (attributes << 5) | if level > 1 { 1 << 7 } else { 0 }
}

impl Model {
    fn new(format: Format, level: u8) -> Self {
        Self {
            format,
            level,
            entries: BTreeMap::new(),
            tables: 1,
        }
    }

    /// Put an entry where that frame's is at that level.
    fn put(&mut self, gfn: u64, level: u8, raw: u64) {
        let mut table = 0;
        for at in (level + 1..=self.level).rev() {
            let key = (table, (gfn >> (9 * (at - 1))) as usize % ENTRIES);
            let tables = &mut self.tables;
            let entry = self.entries.entry(key).or_insert_with(|| {
                *tables += 1;
                ((*tables - 1) << 12) | 0x827
            });
            if *entry & (1 << 7) != 0 {
                return;
            }
            table = (*entry >> 12) & 0xffff_ffff;
        }
        let key = (table, (gfn >> (9 * (level - 1))) as usize % ENTRIES);
        self.entries.entry(key).or_insert(raw);
    }

    /// Everything that is met, in steps of that budget; steps break off after that many entries.
    fn walk(&self, budget: usize, room: usize) -> (Vec<(u64, u8, u64)>, [usize; 6]) {
        let root = Root {
            table: At(self, 0),
            level: self.level,
            format: self.format,
        };
        let (mut met, mut tables) = (Vec::new(), [0; 6]);
        let mut next = Some(0);
        while let Some(gfn) = next {
            let mut left = room;
            next = root.walk(gfn, budget, |what| {
                match what {
                    Met::Table(level) => tables[usize::from(level)] += 1,
                    Met::Entry(gfn, entry) => {
                        met.push((gfn, entry.level, entry.raw));
                        left -= 1;
                    }
                }
                match left {
                    0 => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            });
            assert!(next.is_none_or(|next| next > gfn), "no progress");
        }
        (met, tables)
    }
}

/// Leaves here and there: frame (in the low terabyte), level, attributes.
fn leaves() -> impl Strategy<Value = Vec<(u64, u8, u64)>> {
    let one = (0u64..1 << 28, 1u8..=3, 0u64..4, 1u64..600).prop_map(|(gfn, level, bits, count)| {
        (0..count)
            .map(|i| (gfn + i * pages(level), level, bits))
            .collect::<Vec<_>>()
    });
    prop::collection::vec(one, 0..6).prop_map(|all| all.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn all_is_met_once_whatever_the_steps(
        leaves in leaves(), five in any::<bool>(), budget in 1usize..3000, room in 1usize..700,
    ) {
        let mut model = Model::new(Format::Npt, 4 + u8::from(five));
        for (gfn, level, bits) in leaves {
            model.put(gfn, level, leaf(level, bits));
        }
        // By the model's own tables: leaves by their places, tables by their levels.
        let mut expected = Vec::new();
        let mut tables = [0; 6];
        let mut todo = vec![(0u64, model.level, 0u64)];
        while let Some((table, level, base)) = todo.pop() {
            tables[usize::from(level)] += 1;
            for ((_, index), raw) in model.entries.range((table, 0)..(table + 1, 0)) {
                let gfn = base + *index as u64 * pages(level);
                if level > 1 && raw & (1 << 7) == 0 {
                    todo.push(((raw >> 12) & 0xffff_ffff, level - 1, gfn));
                } else {
                    expected.push((gfn, level, *raw));
                }
            }
        }
        expected.sort();
        let (met, counted) = model.walk(budget, room);
        prop_assert_eq!(met, expected);
        prop_assert_eq!(counted, tables);
    }
}

#[test]
fn a_walk_into_the_middle_of_a_leaf_meets_it() {
    let mut model = Model::new(Format::Npt, 5);
    model.put(0x40_0000, 2, leaf(2, 0));
    let root = Root {
        table: At(&model, 0),
        level: 5,
        format: Format::Npt,
    };
    let mut met = Vec::new();
    let next = root.walk(0x40_0123, 1, |what| {
        met.push(what);
        ControlFlow::Continue(())
    });
    let entry = entry(Format::Npt, 2, leaf(2, 0));
    assert_eq!(met, [Met::Entry(0x40_0000, entry)]);
    assert_eq!(next, Some(0x40_0200));
    assert_eq!(
        root.walk(1 << 45, 1, |_| panic!("beyond the last frame")),
        None
    );
    assert_eq!(
        Root { level: 0, ..root }.walk(0, 1, |_| panic!("no table")),
        None
    );
    assert_eq!(
        Root { level: 6, ..root }.walk(0, 1, |_| panic!("too deep")),
        None
    );
}

#[test]
fn runs_go_on_with_equals_only() {
    let at = |gfn, level, raw| Run::new(gfn, entry(Format::Npt, level, raw));
    let run = at(0x200, 1, leaf(1, 1) | 0x1_2345_6000);
    assert_eq!((run.gfn, run.pages, run.entry.raw), (0x200, 1, leaf(1, 1)));
    assert!(run.goes_on(&at(0x201, 1, leaf(1, 1) | 0x7_0000_0000)));
    assert!(!run.goes_on(&at(0x202, 1, leaf(1, 1))), "a hole");
    assert!(!run.goes_on(&at(0x201, 1, leaf(1, 2))), "other attributes");
    assert!(!run.goes_on(&at(0x201, 1, 0x1a0)), "another class");
    let large = at(0x200, 2, leaf(2, 1) | 0x1_2340_0000);
    assert_eq!((large.pages, large.entry.raw), (0x200, leaf(2, 1)));
    assert!(large.goes_on(&at(0x400, 2, leaf(2, 1))));
    assert!(!large.goes_on(&at(0x400, 3, leaf(2, 1))), "another level");
    assert!(
        !large.goes_on(&at(0x400, 2, leaf(2, 1) | (1 << 12))),
        "another memory type"
    );
}
