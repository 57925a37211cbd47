// SPDX-License-Identifier: GPL-2.0
//! A folio or a hole of a memory file, as the module tells of it: by its file in debugfs or by
//! `KVMATE_GMEM_QUERY`.

use crate::table::number;
use anyhow::{Context, Result};
use kvmate_uapi::{
    call, kvmate_gmem_record, KVMATE_GMEM_DIRTY, KVMATE_GMEM_HOLE, KVMATE_GMEM_LOCKED,
    KVMATE_GMEM_MAPPED, KVMATE_GMEM_PINNED, KVMATE_GMEM_POISONED,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::{io, ops::Range, os::fd::AsFd};

const FLAGS: [(u32, &str); 5] = [
    (KVMATE_GMEM_MAPPED, "mapped"),
    (KVMATE_GMEM_PINNED, "pinned"),
    (KVMATE_GMEM_POISONED, "poisoned"),
    (KVMATE_GMEM_LOCKED, "locked"),
    (KVMATE_GMEM_DIRTY, "dirty"),
];

/// It; the fields' names are those of `--json`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Record {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// It has no memory; then the numbers below are 0.
    pub hole: bool,
    /// log2 of the folio's pages.
    pub order: u64,
    /// References to it.
    pub references: u64,
    /// How many it has if nobody holds it.
    pub expected: u64,
    /// How often its pages stand in page tables.
    pub mappings: u64,
    /// `mapped`, `pinned`, `poisoned`, `locked`, `dirty`.
    pub flags: Vec<String>,
}

impl Record {
    /// How much of it is in a part of the file.
    pub fn bytes_in(&self, part: &Range<u64>) -> u64 {
        let end = self.offset.saturating_add(self.length).min(part.end);
        end.saturating_sub(self.offset.max(part.start))
    }

    /// As `KVMATE_GMEM_QUERY` tells it of a part: folios whole, holes as far as the part goes.
    pub fn within(mut self, part: &Range<u64>) -> Option<Self> {
        let length = self.bytes_in(part);
        if self.hole {
            self.offset = self.offset.max(part.start);
            self.length = length;
        }
        (length > 0).then_some(self)
    }

    /// Whether a flag is set.
    pub fn is(&self, flag: &str) -> bool {
        self.flags.iter().any(|name| name == flag)
    }

    /// A line of the file `map`.
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        let mut record = Self {
            offset: number(words.first()?)?,
            length: number(words.get(1)?)?,
            hole: true,
            order: 0,
            references: 0,
            expected: 0,
            mappings: 0,
            flags: Vec::new(),
        };
        match words[2..] {
            ["hole"] => {}
            ["hole", "poisoned"] => record.flags.push("poisoned".into()),
            ["folio", order, references, expected, mappings, flags] => {
                record.hole = false;
                record.order = number(order)?;
                record.references = number(references)?;
                record.expected = number(expected)?;
                record.mappings = number(mappings)?;
                let flags = flags.split(',').filter(|flag| !["", "-"].contains(flag));
                record.flags = flags.map(str::to_owned).collect();
            }
            _ => return None,
        }
        Some(record)
    }

    /// The file `map`.
    pub fn parse_all(text: &str) -> Result<Vec<Self>> {
        let lines = text.lines();
        lines
            .map(|line| {
                Self::parse(line).with_context(|| {
                    format!("map: the line {line:?}: the module is of another version")
                })
            })
            .collect()
    }

    /// Those of a part of an open file.
    pub fn query(file: impl AsFd, part: Range<u64>) -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        let mut rest = part;
        while !rest.is_empty() {
            let mut room = [kvmate_gmem_record::default(); 256];
            let (count, left) = call::query(&file, rest, &mut room)?;
            all.extend(room[..count].iter().map(Self::from));
            rest = left;
        }
        Ok(all)
    }
}

impl From<&kvmate_gmem_record> for Record {
    fn from(record: &kvmate_gmem_record) -> Self {
        let set = |(bit, _): &&(u32, &str)| record.flags & bit != 0;
        Self {
            offset: record.offset,
            length: record.length,
            hole: record.flags & KVMATE_GMEM_HOLE != 0,
            order: record.order.into(),
            references: record.references.into(),
            expected: record.expected.into(),
            mappings: record.mappings.into(),
            flags: FLAGS
                .iter()
                .filter(set)
                .map(|(_, name)| (*name).to_owned())
                .collect(),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A huge folio, one that is held, small ones, a hole, one that is pinned.
    pub const MAP: &str = "\
0x0 0x200000 folio 9 513 513 1 mapped,dirty
0x200000 0x200000 folio 9 514 512 0 dirty
0x400000 0x100000 folio 8 256 256 0 dirty
0x500000 0x100000 folio 8 256 256 0 dirty
0x600000 0x1000 folio 0 1 1 0 dirty
0x601000 0x5ff000 hole
0xc00000 0x200000 folio 9 1536 512 0 pinned,dirty
0xe00000 0x1000 hole poisoned
0xe01000 0x201000 hole
";

    #[test]
    fn lines() {
        let all = Record::parse_all(MAP).unwrap();
        assert_eq!(all.len(), 9);
        assert!(all[0].is("mapped") && !all[0].is("pinned") && all[6].is("pinned"));
        assert_eq!((all[1].references, all[1].expected), (514, 512));
        assert!(all[5].hole && all[5].flags.is_empty() && all[7].is("poisoned"));
        for wrong in [
            "",
            "0x0",
            "0x0 0x1000",
            "0x0 x hole",
            "0x0 0x1000 folio 9",
            "0x0 0x1000 what",
        ] {
            assert!(Record::parse_all(&format!("{wrong}\n")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn parts() {
        let within = |part| {
            let all = Record::parse_all(MAP).unwrap().into_iter();
            let found = all.filter_map(|record| record.within(&part));
            found
                .map(|record| (record.offset, record.length))
                .collect::<Vec<_>>()
        };
        let expected = [(0x40_0000, 0x10_0000), (0x50_0000, 0x10_0000)];
        assert_eq!(within(0x4f_f000..0x50_1000), expected);
        assert_eq!(within(0x70_0000..0x80_0000), [(0x70_0000, 0x10_0000)]);
        assert_eq!(
            within(0x60_0000..0x60_2000),
            [(0x60_0000, 0x1000), (0x60_1000, 0x1000)]
        );
        assert_eq!(within(0x20_0000..0x40_0000), [(0x20_0000, 0x20_0000)]);
    }

    #[test]
    fn records() {
        let record = kvmate_gmem_record {
            offset: 0xc0_0000,
            length: 0x20_0000,
            order: 9,
            flags: KVMATE_GMEM_PINNED | KVMATE_GMEM_DIRTY,
            references: 1536,
            expected: 512,
            ..Default::default()
        };
        assert_eq!(Record::from(&record), Record::parse_all(MAP).unwrap()[6]);
        let hole = kvmate_gmem_record {
            offset: 0xe0_0000,
            length: 4096,
            flags: KVMATE_GMEM_HOLE | KVMATE_GMEM_POISONED,
            ..Default::default()
        };
        assert_eq!(Record::from(&hole), Record::parse_all(MAP).unwrap()[7]);
    }

    /// Every field that there is is in the documentation.
    #[test]
    fn json_is_as_documented() {
        let json = serde_json::to_value(&Record::parse_all(MAP).unwrap()[0]).unwrap();
        let documented = include_str!("../../json.md");
        for field in json.as_object().unwrap().keys() {
            assert!(documented.contains(&format!("`{field}`")), "{field}");
        }
    }
}
