// SPDX-License-Identifier: GPL-2.0
//! A VM's memory as it was read: slots, roots and ranges. The fields' names are those of `--json`,
//! which `tools/json.md` documents.

use crate::{
    table::{Row, Table},
    tree::Vm,
};
use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

/// All of it.
#[derive(Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Map {
    pub slots: Vec<Slot>,
    pub roots: Vec<Root>,
    pub ranges: Vec<Range>,
}

/// A memslot.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Slot {
    pub address_space: u64,
    pub slot: u64,
    pub gpa: u64,
    pub size: u64,
    pub hva: u64,
    pub flags: Vec<String>,
    pub dirty: Option<String>,
    pub backing: String,
    pub share: Option<String>,
    pub mappings: u64,
    pub inode: Option<u64>,
    pub offset: Option<u64>,
    pub file: Option<String>,
}

/// The tables that some of its vCPUs use.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Root {
    pub root: u64,
    pub mode: String,
    pub address_space: u64,
    pub vcpus: u64,
    /// How many levels they have.
    pub depth: u64,
    /// What was met on each, the topmost first; nothing of tables that are not walked.
    pub levels: Vec<Level>,
}

/// What was met at a level.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Level {
    pub level: u64,
    pub tables: u64,
    pub leaves: u64,
    pub bytes: u64,
    pub mmio: u64,
    pub frozen: u64,
    pub other: u64,
    pub held_ns: u64,
    /// Leaves by why they are small; without those that are none.
    pub why: BTreeMap<String, u64>,
}

/// Consecutive entries of the same kind.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Range {
    pub root: u64,
    pub kind: String,
    pub level: u64,
    pub gpa: u64,
    pub size: u64,
    pub access: Option<String>,
    pub memory_type: Option<String>,
    pub write: Option<String>,
    pub flags: Vec<String>,
    pub why: Option<String>,
}

fn text(row: &Row<'_>, column: &str) -> Result<Option<String>> {
    Ok(row.some(column)?.map(str::to_owned))
}

impl Slot {
    fn new(row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            address_space: row.number("as")?,
            slot: row.number("slot")?,
            gpa: row.number("gpa")?,
            size: row.number("size")?,
            hva: row.number("hva")?,
            flags: row.names("flags")?,
            dirty: text(row, "dirty")?,
            backing: row.get("backing")?.to_owned(),
            share: text(row, "share")?,
            mappings: row.number("vmas")?,
            inode: row.some_number("inode")?,
            offset: row.some_number("offset")?,
            file: row.some("file")?.map(unescaped),
        })
    }

    /// Whether that address is in it.
    pub fn has(&self, gpa: u64) -> bool {
        gpa >= self.gpa && gpa - self.gpa < self.size
    }
}

impl Range {
    fn new(row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            root: row.number("root")?,
            kind: row.get("kind")?.to_owned(),
            level: row.number("level")?,
            gpa: row.number("gpa")?,
            size: row.number("size")?,
            access: text(row, "access")?,
            memory_type: text(row, "type")?,
            write: text(row, "write")?,
            flags: row.names("flags")?,
            why: text(row, "why")?,
        })
    }
}

impl Level {
    /// `None`: these tables are not walked.
    fn new(row: &Row<'_>, reasons: &[&str]) -> Result<Option<Self>> {
        if row.some("tables")?.is_none() {
            return Ok(None);
        }
        let mut why = BTreeMap::new();
        for reason in reasons {
            let count = row.number(reason)?;
            if count > 0 {
                why.insert((*reason).to_owned(), count);
            }
        }
        Ok(Some(Self {
            level: row.number("level")?,
            tables: row.number("tables")?,
            leaves: row.number("leaves")?,
            bytes: row.number("bytes")?,
            mmio: row.number("mmio")?,
            frozen: row.number("frozen")?,
            other: row.number("other")?,
            held_ns: row.number("held_ns")?,
            why,
        }))
    }
}

/// A path, in which blanks and what is not ASCII stand as `\ooo`.
fn unescaped(path: &str) -> String {
    let bytes = path.as_bytes();
    let (mut at, mut out) = (0, Vec::with_capacity(bytes.len()));
    while let Some(&byte) = bytes.get(at) {
        let octal = (byte == b'\\')
            .then(|| path.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(octal.unwrap_or(byte));
        at += if octal.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Map {
    /// Read a VM's tables, one after the other.
    pub fn read(vm: &Vm) -> Result<Self> {
        let (slots, roots) = (vm.read("memslots")?, vm.read("stage2")?);
        Self::new(&slots, &roots, &vm.read("stage2_map")?)
    }

    /// From the tables' text.
    pub fn new(memslots: &str, stage2: &str, stage2_map: &str) -> Result<Self> {
        let slots = || -> Result<_> {
            let table = Table::new(memslots)?;
            let slots = table.rows().map(|row| Slot::new(&row?));
            slots.collect::<Result<Vec<_>>>()
        };
        let ranges = || -> Result<_> {
            let table = Table::new(stage2_map)?;
            let ranges = table.rows().map(|row| Range::new(&row?));
            ranges.collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            slots: slots().context("memslots")?,
            roots: roots(stage2).context("stage2")?,
            ranges: ranges().context("stage2_map")?,
        })
    }

    /// The slot with that address.
    pub fn slot_at(&self, address_space: u64, gpa: u64) -> Option<&Slot> {
        let mut of_space = self
            .slots
            .iter()
            .filter(|s| s.address_space == address_space);
        of_space.find(|slot| slot.has(gpa))
    }
}

fn roots(stage2: &str) -> Result<Vec<Root>> {
    let table = Table::new(stage2)?;
    let reasons = table.columns_behind("held_ns");
    let mut roots: Vec<Root> = Vec::new();
    for row in table.rows() {
        let row = row?;
        let number = row.number("root")?;
        if roots.last().is_none_or(|root| root.root != number) {
            roots.push(Root {
                root: number,
                mode: row.get("mode")?.to_owned(),
                address_space: row.number("as")?,
                vcpus: row.number("vcpus")?,
                depth: row.number("level")?,
                levels: Vec::new(),
            });
        }
        if let Some(root) = roots.last_mut() {
            root.levels.extend(Level::new(&row, reasons)?);
        }
    }
    Ok(roots)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const MEMSLOTS: &str = "\
as slot gpa size hva flags dirty backing share vmas inode offset file
0 0 0x0 0x10000 0x7f0000000000 - - anon private 1 - - -
0 1 0x40000000 0x800000 0x7f0010000000 dirty-log,read-only bitmap tmpfs shared 1 42 0x1000 /memfd:a\\040b
0 2 0xc0000000 0x40000000 0x7f0080000000 - - none - 0 - - -
1 1 0x0 0x10000 0x7f0000000000 - - anon private 1 - - -
";
    pub const STAGE2: &str = "\
root mode as vcpus level tables leaves bytes mmio frozen other held_ns slot-alignment edge host-4k
0 tdp 0 2 4 1 0 0 0 0 0 1500 0 0 0
0 tdp 0 2 3 1 1 1073741824 0 0 0 1500 0 0 0
0 tdp 0 2 2 1 2 4194304 0 0 0 1500 0 0 0
0 tdp 0 2 1 2 7 28672 1 0 0 1500 0 2 5
1 nested 0 1 4 - - - - - - - - - -
";
    pub const RANGES: &str = "\
root kind level gpa size access type write flags why
0 leaf 1 0x1000 0x2000 rwxu pat0 writable accessed,dirty edge
0 leaf 2 0x40000000 0x400000 rwxu pat0 writable accessed -
0 leaf 1 0x40600000 0x4000 rwxu pat0 writable accessed,dirty host-4k
0 leaf 1 0x40604000 0x1000 r-xu pat0 read-only accessed host-4k
0 leaf 3 0xc0000000 0x40000000 rwxu pat0 writable accessed,dirty -
0 mmio 1 0xfee00000 0x1000 - - - generation=3 -
";

    pub fn map() -> Map {
        Map::new(MEMSLOTS, STAGE2, RANGES).unwrap()
    }

    #[test]
    fn all_is_read() {
        let map = map();
        assert_eq!(
            (map.slots.len(), map.roots.len(), map.ranges.len()),
            (4, 2, 6)
        );
        let slot = &map.slots[1];
        assert_eq!(slot.flags, ["dirty-log", "read-only"]);
        assert_eq!(slot.dirty.as_deref(), Some("bitmap"));
        assert_eq!((slot.inode, slot.offset), (Some(42), Some(0x1000)));
        assert_eq!(slot.file.as_deref(), Some("/memfd:a b"));
        assert_eq!(map.slots[2].share, None);
        let [root, nested] = &map.roots[..] else {
            panic!("{:?}", map.roots)
        };
        assert_eq!((root.depth, root.vcpus, root.levels.len()), (4, 2, 4));
        assert_eq!(
            root.levels[3].why,
            BTreeMap::from([("edge".into(), 2), ("host-4k".into(), 5)])
        );
        assert_eq!((nested.mode.as_str(), nested.levels.len()), ("nested", 0));
        let mmio = &map.ranges[5];
        assert_eq!((mmio.kind.as_str(), &mmio.access), ("mmio", &None));
        assert_eq!(mmio.flags, ["generation=3"]);
        assert_eq!(map.slot_at(0, 0x407f_ffff).map(|slot| slot.slot), Some(1));
        assert_eq!(map.slot_at(0, 0x4080_0000), None);
        assert_eq!(map.slot_at(1, 0x40_0000), None);
    }

    #[test]
    fn json_is_as_documented() {
        let json = serde_json::to_value(map()).unwrap();
        assert_eq!(json["slots"][1]["file"], "/memfd:a b");
        assert_eq!(json["slots"][0]["inode"], serde_json::Value::Null);
        assert_eq!(json["roots"][0]["levels"][3]["why"]["host-4k"], 5);
        assert_eq!(json["ranges"][0]["gpa"], 0x1000);
        assert_eq!(json["ranges"][0]["memory_type"], "pat0");
        // Every field that there is, and no other, is in the documentation.
        let documented = include_str!("../../json.md");
        let mut fields: Vec<String> = Vec::new();
        for list in ["slots", "roots", "ranges"] {
            let object = json[list][0].as_object().unwrap();
            fields.extend(object.keys().cloned());
        }
        let level = json["roots"][0]["levels"][0].as_object().unwrap();
        fields.extend(level.keys().cloned());
        for field in fields {
            assert!(documented.contains(&format!("| `{field}`")), "{field}");
        }
    }

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/a", "/a"),
            ("/a\\040b", "/a b"),
            ("\\134", "\\"),
            ("\\303\\244", "ä"),
            ("a\\04", "a\\04"),
            ("\\", "\\"),
            ("\\9z9", "\\9z9"),
            ("\\777", "\\777"),
        ] {
            assert_eq!(unescaped(path), expected);
        }
    }

    #[test]
    fn other_versions_are_told() {
        let told =
            |slots, roots, ranges| format!("{:#}", Map::new(slots, roots, ranges).unwrap_err());
        assert!(
            told("as slot\n0 1\n", STAGE2, RANGES).starts_with("memslots: there is no column gpa")
        );
        assert!(told(MEMSLOTS, "root\n0\n", RANGES).starts_with("stage2: there is no column mode"));
        assert!(told(MEMSLOTS, STAGE2, "").starts_with("stage2_map: "));
        assert!(told(MEMSLOTS, STAGE2, &RANGES[..RANGES.len() - 20]).starts_with("stage2_map: "));
    }
}
