// SPDX-License-Identifier: GPL-2.0
//! A walk through stage-2 tables, in steps.
//!
//! A step begins at the root and goes by guest frame number, so that nothing need be remembered of
//! the tables between two steps but the number to go on with: meanwhile all of them may change.

use super::{pages, Class, Entry, Format};
use core::ops::ControlFlow;

/// How many entries a table has.
pub const ENTRIES: usize = 512;

/// A table that stays while it is walked.
pub trait Table: Copy {
    /// An entry of it, now.
    fn entry(self, index: usize) -> u64;
    /// The table that an entry leads to, if it leads to one now.
    fn child(self, index: usize) -> Option<Self>;
}

/// What is met on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// A table of that level, for the first time.
    Table(u8),
    /// An entry that is neither absent nor leads to a table, for that frame and those after it.
    Entry(u64, Entry),
}

/// Where to walk.
#[derive(Clone, Copy, Debug)]
pub struct Root<T> {
    /// The topmost table.
    pub table: T,
    /// Its level: 4 or 5.
    pub level: u8,
    /// Whose entries.
    pub format: Format,
}

/// The deepest there is.
const LEVELS: usize = 5;

/// How many frames a table of a level is for.
const fn span(level: u8) -> u64 {
    pages(level) * ENTRIES as u64
}

impl<T: Table> Root<T> {
    /// Walk from frame `from` on, over `budget` entries, or until `met` breaks. Gives the frame to go
    /// on with, or nothing when all is walked. At least one entry is met or passed each time.
    #[inline(always)]
    pub fn walk(
        &self,
        from: u64,
        budget: usize,
        mut met: impl FnMut(Met) -> ControlFlow<()>,
    ) -> Option<u64> {
        let top = self.level;
        let mut path = [self.table; LEVELS + 1];
        let (mut gfn, mut level, mut read) = (from, top, 0);
        let mut stop = ControlFlow::Continue(());
        if top == 0 || usize::from(top) > LEVELS || gfn >= span(top) {
            return None;
        }
        if gfn == 0 {
            stop = met(Met::Table(top));
        }
        'tables: loop {
            let table = path[usize::from(level)];
            let (shift, format) = (9 * (u32::from(level) - 1), self.format);
            let first = (gfn >> shift) as usize % ENTRIES;
            let base = (gfn >> shift) - first as u64;
            for index in first..ENTRIES {
                let raw = table.entry(index);
                let entry = Entry { raw, level, format };
                let begin = (base + index as u64) << shift;
                read += 1;
                let class = entry.class();
                if class == Class::Table {
                    // It may have gone since: then nothing is there.
                    if let Some(child) = table.child(index) {
                        // A step may go on in the middle of it.
                        gfn = gfn.max(begin);
                        level -= 1;
                        path[usize::from(level)] = child;
                        if gfn == begin {
                            stop = either(stop, met(Met::Table(level)));
                        }
                        continue 'tables;
                    }
                }
                if !matches!(class, Class::Absent | Class::Table) {
                    stop = either(stop, met(Met::Entry(begin, entry)));
                }
                if stop.is_break() || read >= budget {
                    let next = begin + (1 << shift);
                    return (next < span(top)).then_some(next);
                }
            }
            gfn = (base + ENTRIES as u64) << shift;
            while gfn & (span(level) - 1) == 0 {
                if level == top {
                    return None;
                }
                level += 1;
            }
        }
    }
}

fn either(a: ControlFlow<()>, b: ControlFlow<()>) -> ControlFlow<()> {
    if a.is_break() {
        a
    } else {
        b
    }
}

/// Consecutive entries of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first frame.
    pub gfn: u64,
    /// How many frames.
    pub pages: u64,
    /// One of the entries, without its address.
    pub entry: Entry,
}

impl Run {
    /// Of one entry.
    #[inline(always)]
    pub const fn new(gfn: u64, entry: Entry) -> Self {
        Self {
            gfn,
            pages: pages(entry.level),
            entry: Entry {
                raw: entry.attributes(),
                ..entry
            },
        }
    }

    /// How many entries.
    pub const fn entries(&self) -> u64 {
        self.pages / pages(self.entry.level)
    }

    /// Whether `next` goes on with it.
    #[inline(always)]
    pub fn goes_on(&self, next: &Self) -> bool {
        self.gfn + self.pages == next.gfn && self.entry == next.entry
    }
}
