// SPDX-License-Identifier: GPL-2.0
//! Memory drawn as a grid: 2 MiB a cell, 128 MiB a line.

use crate::units::size;
use anstyle::Style;
use std::{
    collections::BTreeMap,
    io::{self, Write},
};

/// How many bytes a cell is.
pub const CELL: u64 = 2 << 20;
/// How many cells a line has.
pub const WIDTH: usize = 64;
/// How many bytes a line is.
pub const LINE: u64 = CELL * WIDTH as u64;

/// What a cell shows. The later wins where there are several.
pub trait Kind: Copy + Ord {
    /// What a cell shows that nothing was put into.
    const NOTHING: Self;

    /// How it is drawn.
    fn letter(self) -> char;
    /// What that says.
    fn meaning(self) -> &'static str;
    /// In which colour.
    fn style(self) -> Style;
}

/// A line.
pub type Cells<K> = [K; WIDTH];

/// Lines of cells, by number; those without anything are left out.
pub struct Grid<K>(pub BTreeMap<u64, Cells<K>>);

impl<K: Kind> Grid<K> {
    /// An empty one.
    pub fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Put something from an address on.
    pub fn put(&mut self, at: u64, size: u64, kind: K) {
        let Some(last) = size.checked_sub(1).map(|size| at.saturating_add(size)) else {
            return;
        };
        for at in at / CELL..=last / CELL {
            let (line, column) = (at / WIDTH as u64, at as usize % WIDTH);
            let cells = self.0.entry(line).or_insert([K::NOTHING; WIDTH]);
            cells[column] = cells[column].max(kind);
        }
    }

    /// Draw it, with what is to be said behind each line; lines like the one before, of which nothing is
    /// said, are put together.
    pub fn draw(&self, out: &mut impl Write, said: impl Fn(u64) -> String) -> io::Result<()> {
        let mut before: Option<(u64, &Cells<K>)> = None;
        let mut alike = 0u64;
        for (&number, cells) in &self.0 {
            let text = said(number);
            let goes_on = before.is_some_and(|(at, same)| at + 1 == number && same == cells);
            before = Some((number, cells));
            if goes_on && text.is_empty() {
                alike += 1;
                continue;
            }
            same(out, &mut alike)?;
            line(out, number, cells)?;
            writeln!(out, "{text}")?;
        }
        same(out, &mut alike)
    }
}

/// Lines that are left out because they are as the one before.
fn same(out: &mut impl Write, alike: &mut u64) -> io::Result<()> {
    match std::mem::take(alike) {
        0 => Ok(()),
        lines => writeln!(out, "{:>18} and {} more like this", "*", size(lines * LINE)),
    }
}

fn line<K: Kind>(out: &mut impl Write, number: u64, cells: &Cells<K>) -> io::Result<()> {
    write!(out, "{:>#18x} |", number * LINE)?;
    for run in cells.chunk_by(|a, b| a == b) {
        let text: String = run.iter().map(|cell| cell.letter()).collect();
        match run.first().map(|cell| cell.style()) {
            Some(style) => write!(out, "{style}{text}{style:#}")?,
            None => write!(out, "{text}")?,
        }
    }
    write!(out, "|")
}

/// Tell what the letters say, and what else there is to be said.
pub fn legend<K: Kind>(out: &mut impl Write, all: &[K], end: &str) -> io::Result<()> {
    write!(out, "a cell is 2 MiB, a line 128 MiB:")?;
    for cell in all {
        let (style, letter, meaning) = (cell.style(), cell.letter(), cell.meaning());
        write!(out, " '{style}{letter}{style:#}' {meaning},")?;
    }
    writeln!(out, " {end}")
}
