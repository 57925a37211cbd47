// SPDX-License-Identifier: GPL-2.0
//! A memory file drawn, 2 MiB a cell.

use super::{record::Record, Content};
use crate::{
    cells::{self, Grid, Kind, CELL},
    units::size,
};
use anstyle::{AnsiColor, Style};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::Range,
};

/// What a cell shows. The later wins where there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    /// Behind the end.
    Behind,
    Hole,
    Huge,
    /// Smaller folios only.
    Split,
    /// Smaller folios and holes.
    Partly,
    /// More references than there should be.
    Held,
    Pinned,
    Poisoned,
}

impl Cell {
    const ALL: [Self; 7] = [
        Self::Huge,
        Self::Split,
        Self::Partly,
        Self::Hole,
        Self::Held,
        Self::Pinned,
        Self::Poisoned,
    ];

    /// Of a folio, or of a page that is gone.
    fn of(record: &Record) -> Option<Self> {
        Some(match record {
            _ if record.is("poisoned") => Self::Poisoned,
            _ if record.hole => return None,
            _ if record.is("pinned") => Self::Pinned,
            _ if record.references > record.expected => Self::Held,
            _ if record.length == CELL => Self::Huge,
            _ => Self::Split,
        })
    }
}

impl Kind for Cell {
    const NOTHING: Self = Self::Behind;

    fn letter(self) -> char {
        match self {
            Self::Behind => ' ',
            Self::Hole => '.',
            Self::Huge => 'M',
            Self::Split => 'k',
            Self::Partly => '-',
            Self::Held => 'h',
            Self::Pinned => 'p',
            Self::Poisoned => '!',
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Behind => "behind the end",
            Self::Hole => "hole",
            Self::Huge => "huge",
            Self::Split => "split",
            Self::Partly => "split, with holes",
            Self::Held => "held by somebody",
            Self::Pinned => "pinned",
            Self::Poisoned => "failed",
        }
    }

    fn style(self) -> Style {
        let colour = match self {
            Self::Behind => return Style::new(),
            Self::Hole => return Style::new().dimmed(),
            Self::Huge => AnsiColor::Green,
            Self::Split | Self::Partly => AnsiColor::Yellow,
            Self::Held | Self::Pinned => AnsiColor::Magenta,
            Self::Poisoned => AnsiColor::Red,
        };
        colour.on_default()
    }
}

/// What is in each cell of a part that has any memory: no more of them than there is memory for.
fn filled(records: &[Record], part: &Range<u64>) -> BTreeMap<u64, Cell> {
    let mut cells: BTreeMap<u64, (Cell, u64)> = BTreeMap::new();
    for record in records {
        let Some(cell) = Cell::of(record) else {
            continue;
        };
        let length = if record.hole {
            0
        } else {
            record.bytes_in(part)
        };
        let (found, bytes) = cells.entry(record.offset / CELL).or_insert((cell, 0));
        *found = cell.max(*found);
        *bytes += length;
    }
    // At the part's ends a cell may be less.
    let wanted = |at: u64| part.end.min((at + 1) * CELL) - part.start.max(at * CELL);
    let whole = |(at, (cell, bytes))| match cell {
        Cell::Split if bytes < wanted(at) => (at, Cell::Partly),
        _ => (at, cell),
    };
    cells.into_iter().map(whole).collect()
}

/// Draw it.
pub fn draw(out: &mut impl Write, content: &Content) -> io::Result<()> {
    let part = content.part.clone().unwrap_or(0..content.size);
    let folios = content.records.iter().filter(|record| !record.hole);
    let (mut huge, mut small) = (0, 0);
    for record in folios {
        match record.length {
            CELL => huge += record.bytes_in(&part),
            _ => small += record.bytes_in(&part),
        }
    }
    if content.part.is_some() {
        write!(out, "part {:#x} to {:#x} of ", part.start, part.end)?;
    }
    writeln!(
        out,
        "file {}: {}, of which {} by 2 MiB and {} by less",
        content.inode,
        size(part.end - part.start),
        size(huge),
        size(small)
    )?;
    let mut grid = Grid::new();
    for (at, cell) in filled(&content.records, &part) {
        grid.put(at * CELL, CELL, cell);
    }
    // Lines that have some memory; a file may be as long as can be.
    let inside = part.start / CELL..part.end.div_ceil(CELL);
    for (line, cells) in &mut grid.0 {
        for (at, cell) in (line * cells.len() as u64..).zip(cells) {
            if inside.contains(&at) {
                *cell = (*cell).max(Cell::Hole);
            }
        }
    }
    grid.draw(out, |_| String::new())?;
    cells::legend(out, &Cell::ALL, "and lines of holes only are left out")
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::MAP, *};

    fn drawn(map: &str, size: u64) -> Vec<String> {
        drawn_part(map, size, None)
    }

    fn drawn_part(map: &str, size: u64, part: Option<Range<u64>>) -> Vec<String> {
        let of = part.clone().unwrap_or(0..size);
        let records = Record::parse_all(map).unwrap().into_iter();
        let records = records.filter_map(|record| record.within(&of)).collect();
        let mut out = anstream::StripStream::new(Vec::new());
        let inode = 2;
        draw(
            &mut out,
            &Content {
                inode,
                size,
                records,
                part,
            },
        )
        .unwrap();
        let text = String::from_utf8(out.into_inner()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_file() {
        let lines = drawn(MAP, 0x100_2000);
        assert_eq!(
            lines[0],
            "file 2: 16392K, of which 6M by 2 MiB and 2052K by less"
        );
        assert_eq!(
            lines[1],
            format!("               0x0 |Mhk-..p!.{}|", " ".repeat(55))
        );
        assert!(lines[2].starts_with("a cell is 2 MiB"), "{}", lines[2]);
        assert_eq!(lines.len(), 3);
    }

    /// What is not asked for is not drawn, as a hole least of all.
    #[test]
    fn a_part() {
        // The end of a huge folio, a half of what is split, and of the hole behind it.
        for (part, title, cells) in [
            (
                0x10_0000..0x50_0000,
                "part 0x100000 to 0x500000 of file 2: 4M, of which 3M by 2 MiB and 1M by less",
                "Mhk",
            ),
            (
                0x60_0000..0xa0_0000,
                "part 0x600000 to 0xa00000 of file 2: 4M, of which 0 by 2 MiB and 4K by less",
                "   -.",
            ),
            (
                0xc0_0000..0xe0_0000,
                "part 0xc00000 to 0xe00000 of file 2: 2M, of which 2M by 2 MiB and 0 by less",
                "      p",
            ),
        ] {
            let lines = drawn_part(MAP, 0x100_2000, Some(part));
            assert_eq!(lines[0], title);
            assert_eq!(lines[1], format!("               0x0 |{cells:<64}|"));
        }
    }

    /// However long a file is, it is a few lines.
    #[test]
    fn the_longest() {
        let size = (1 << 63) - 4096;
        let text = format!("0x0 {size:#x} hole\n");
        assert_eq!(drawn(&text, size).len(), 2);
        let end = size & !0x1f_ffff;
        let text = format!("0x0 {end:#x} hole\n{end:#x} 0x1000 folio 0 1 1 0 dirty\n");
        let lines = drawn(&text, size);
        assert_eq!(lines.len(), 3);
        assert!(lines[1].ends_with(".-|"), "{}", lines[1]);
    }

    #[test]
    fn many_alike() {
        let folio = |at| format!("{:#x} 0x200000 folio 9 512 512 0 dirty", at * CELL);
        let all: Vec<_> = (0..1024).map(folio).collect();
        let text = all.join("\n");
        let lines = drawn(&text, 2 << 30);
        assert_eq!(lines.len(), 4);
        assert!(
            lines[2].ends_with("* and 1920M more like this"),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn letters_are_distinct() {
        let mut letters: Vec<_> = Cell::ALL.iter().map(|cell| cell.letter()).collect();
        letters.sort_unstable();
        letters.dedup();
        assert_eq!(letters.len(), Cell::ALL.len());
    }
}
