// SPDX-License-Identifier: GPL-2.0
//! Guest-physical memory as a grid, 2 MiB a cell.

use super::model::{Map, Range, Root, Slot};
use crate::{
    cells::{self, Kind, LINE},
    columns::printable,
    units::size,
};
use anstyle::{AnsiColor, Style};
use std::{
    collections::BTreeSet,
    io::{self, Write},
};

/// What a cell shows. The later wins where there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    /// No slot, and nothing mapped.
    Nothing,
    /// A slot, of which nothing is mapped.
    Absent,
    Gigantic,
    Large,
    Mmio,
    Small,
}

impl Cell {
    const ALL: [Self; 6] = [
        Self::Gigantic,
        Self::Large,
        Self::Small,
        Self::Mmio,
        Self::Absent,
        Self::Nothing,
    ];

    /// Of a range, if it shows.
    fn of(range: &Range) -> Option<Self> {
        Some(match (range.kind.as_str(), range.level) {
            ("leaf", 1) => Self::Small,
            ("leaf", 2) => Self::Large,
            ("leaf", _) => Self::Gigantic,
            ("mmio", _) => Self::Mmio,
            _ => return None,
        })
    }
}

impl Kind for Cell {
    const NOTHING: Self = Self::Nothing;

    fn letter(self) -> char {
        match self {
            Self::Nothing => ' ',
            Self::Absent => '.',
            Self::Gigantic => 'G',
            Self::Large => 'M',
            Self::Mmio => 'i',
            Self::Small => 'k',
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Nothing => "no slot",
            Self::Absent => "not mapped",
            Self::Gigantic => "1 GiB",
            Self::Large => "2 MiB",
            Self::Mmio => "MMIO",
            Self::Small => "by 4 KiB, wholly or in part",
        }
    }

    fn style(self) -> Style {
        let colour = match self {
            Self::Nothing => return Style::new(),
            Self::Absent => return Style::new().dimmed(),
            Self::Gigantic => AnsiColor::Cyan,
            Self::Large => AnsiColor::Green,
            Self::Mmio => AnsiColor::Magenta,
            Self::Small => AnsiColor::Yellow,
        };
        colour.on_default()
    }
}

type Grid = cells::Grid<Cell>;

/// Of a root's tables, or of an address space's slots alone.
fn grid(map: &Map, address_space: u64, root: Option<u64>) -> Grid {
    let mut grid = Grid::new();
    for slot in slots(map, address_space) {
        grid.put(slot.gpa, slot.size, Cell::Absent);
    }
    for range in map.ranges.iter().filter(|range| Some(range.root) == root) {
        if let Some(cell) = Cell::of(range) {
            grid.put(range.gpa, range.size, cell);
        }
    }
    grid
}

fn slots(map: &Map, address_space: u64) -> impl Iterator<Item = &Slot> {
    map.slots
        .iter()
        .filter(move |slot| slot.address_space == address_space)
}

/// Draw every root's tables, and the slots of address spaces that have none.
pub fn draw(out: &mut impl Write, map: &Map) -> io::Result<()> {
    let drawn = map.roots.iter().filter(|root| !root.levels.is_empty());
    let spaces: BTreeSet<u64> = drawn.map(|root| root.address_space).collect();
    for root in &map.roots {
        heading(out, root)?;
        if !root.levels.is_empty() {
            lines(out, map, root.address_space, Some(root.root))?;
        }
    }
    if map.roots.is_empty() {
        writeln!(out, "no vCPU has run yet, so there are no stage-2 tables")?;
    }
    let rest: BTreeSet<u64> = map.slots.iter().map(|slot| slot.address_space).collect();
    for space in rest.difference(&spaces) {
        writeln!(out, "slots of address space {space}, without tables:")?;
        lines(out, map, *space, None)?;
    }
    cells::legend(out, &Cell::ALL, "and the slots that begin there")
}

fn heading(out: &mut impl Write, root: &Root) -> io::Result<()> {
    let Root {
        root: number,
        mode,
        address_space,
        vcpus,
        depth,
        ..
    } = root;
    write!(
        out,
        "root {number}: {mode}, {depth} levels, address space {address_space}, vCPUs: {vcpus}"
    )?;
    if root.levels.is_empty() {
        return writeln!(out, "; such tables are not walked");
    }
    for level in root.levels.iter().filter(|level| level.leaves > 0) {
        let each = 4096 << (9 * (level.level.saturating_sub(1)));
        write!(out, "; {} of {}", level.leaves, size(each))?;
    }
    writeln!(out)
}

fn lines(out: &mut impl Write, map: &Map, address_space: u64, root: Option<u64>) -> io::Result<()> {
    grid(map, address_space, root).draw(out, |number| {
        let begin = |slot: &&Slot| slot.gpa / LINE == number;
        slots(map, address_space).filter(begin).map(told).collect()
    })
}

fn told(slot: &Slot) -> String {
    let (number, gpa, backing) = (slot.slot, slot.gpa, &slot.backing);
    let mut text = format!(" {number}: {} at {gpa:#x} {backing}", size(slot.size));
    for word in slot.file.iter().chain(&slot.flags) {
        text.push(' ');
        text += &printable(word);
    }
    text.push(';');
    text
}

#[cfg(test)]
mod tests {
    use super::{
        super::model::tests::{map, MEMSLOTS, RANGES},
        *,
    };
    use crate::cells::{CELL, WIDTH};

    fn drawn(map: &Map) -> Vec<String> {
        let mut out = anstream::StripStream::new(Vec::new());
        draw(&mut out, map).unwrap();
        let text = String::from_utf8(out.into_inner()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn letters_are_distinct() {
        let letters: BTreeSet<_> = Cell::ALL.iter().map(|cell| cell.letter()).collect();
        assert_eq!(letters.len(), Cell::ALL.len());
    }

    #[test]
    fn a_map() {
        let lines = drawn(&map());
        let cells = |line: &str| line.split('|').nth(1).unwrap().to_owned();
        assert_eq!(
            lines[0],
            "root 0: tdp, 4 levels, address space 0, vCPUs: 2; 1 of 1G; 2 of 2M; 7 of 4K"
        );
        // The code's slot is less than a cell.
        assert!(
            lines[1].starts_with("               0x0 |k"),
            "{}",
            lines[1]
        );
        assert_eq!(cells(&lines[1]).trim_end(), "k");
        assert!(lines[1].ends_with("| 0: 64K at 0x0 anon;"), "{}", lines[1]);
        // 2 MiB twice, nothing, and some pages of 4 KiB.
        assert!(lines[2].starts_with("        0x40000000 |"), "{}", lines[2]);
        assert_eq!(cells(&lines[2]).trim_end(), "MM.k");
        let slot = " 1: 8M at 0x40000000 tmpfs /memfd:a b dirty-log read-only;";
        assert!(lines[2].ends_with(slot), "{}", lines[2]);
        // A gigabyte is eight lines, with MMIO over a cell of the last but one.
        assert_eq!(cells(&lines[3]), "G".repeat(WIDTH));
        assert!(
            lines[3].ends_with("| 2: 1G at 0xc0000000 none;"),
            "{}",
            lines[3]
        );
        assert!(
            lines[4].ends_with("* and 768M more like this"),
            "{}",
            lines[4]
        );
        let last = format!("{}i{}", "G".repeat(55), "G".repeat(8));
        assert_eq!(cells(&lines[5]), last, "{}", lines[5]);
        assert_eq!(
            lines[6],
            "root 1: nested, 4 levels, address space 0, vCPUs: 1; such tables are not walked"
        );
        assert_eq!(lines[7], "slots of address space 1, without tables:");
        assert_eq!(cells(&lines[8]).trim_end(), ".");
        assert!(lines[9].starts_with("a cell is 2 MiB"), "{}", lines[9]);
        assert_eq!(lines.len(), 10);
    }

    #[test]
    fn nothing_has_run() {
        let columns = |table: &str| table.lines().next().unwrap().to_owned() + "\n";
        let roots = "root mode as vcpus level tables leaves bytes mmio frozen other held_ns\n";
        let map = Map::new(MEMSLOTS, roots, &columns(RANGES)).unwrap();
        let lines = drawn(&map);
        assert_eq!(
            lines[0],
            "no vCPU has run yet, so there are no stage-2 tables"
        );
        assert_eq!(lines[1], "slots of address space 0, without tables:");
        let empty = Map::new(&columns(MEMSLOTS), roots, &columns(RANGES)).unwrap();
        assert_eq!(drawn(&empty).len(), 2);
    }

    /// A file may be called anything.
    #[test]
    fn nothing_for_a_terminal_to_obey() {
        let file = MEMSLOTS.replace("/memfd:a\\040b", "/memfd:\\033[31m");
        let roots = "root mode as vcpus level tables leaves bytes mmio frozen other held_ns\n";
        let ranges = RANGES.lines().next().unwrap().to_owned() + "\n";
        let map = Map::new(&file, roots, &ranges).unwrap();
        let mut out = Vec::new();
        draw(&mut out, &map).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains(" tmpfs /memfd:?[31m "), "{text}");
    }

    /// However large a guest is, it is a few lines.
    #[test]
    fn a_terabyte() {
        let mut map = Map::default();
        let mut slot = super::super::model::tests::map().slots.swap_remove(0);
        (slot.gpa, slot.size) = (4 << 30, 1 << 40);
        map.slots.push(slot);
        let lines = drawn(&map);
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert!(
            lines[3].ends_with("* and 1048448M more like this"),
            "{}",
            lines[3]
        );
    }

    /// What ends at a border does not show behind it, and what goes over one shows on both sides.
    #[test]
    fn borders() {
        let mut grid = Grid::new();
        grid.put(CELL - 4096, 4096, Cell::Small);
        assert_eq!(grid.0[&0][..2], [Cell::Small, Cell::Nothing]);
        grid.put(LINE - 4096, 8192, Cell::Large);
        assert_eq!(grid.0[&0][WIDTH - 1], Cell::Large);
        assert_eq!(grid.0[&1][..2], [Cell::Large, Cell::Nothing]);
        grid.put(0, 0, Cell::Large);
        assert_eq!(grid.0[&0][0], Cell::Small);
        grid.put(u64::MAX - CELL, u64::MAX, Cell::Mmio);
        assert_eq!(grid.0.len(), 3);
    }
}
