// SPDX-License-Identifier: GPL-2.0
//! The table `stage2`: how much is mapped, by root and level.

use super::{
    super::vm::Vm,
    roots::{self, Mode, Root, Walk, RUNS},
    why::Why,
};
use crate::{
    pure::{
        cycles,
        stage2::{walk::Run, Class},
        why::Reason,
    },
    wrap::{debugfs::Lines, tsc},
};
use kernel::{
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// `vms/*/stage2`
pub(in super::super) struct Stage2(pub(in super::super) Arc<Vm>);

/// What was met at a level.
#[derive(Clone, Copy, Default)]
struct Level {
    tables: u64,
    leaves: u64,
    mmio: u64,
    frozen: u64,
    other: u64,
    why: [u64; Reason::ALL.len()],
}

/// What was met below a root.
struct Counts {
    levels: [Level; 6],
    /// For how long the MMU lock was held at most.
    held_ns: u64,
}

/// Where a reader is.
pub(in super::super) struct Cursor {
    why: Why,
    begun: bool,
    roots: KVVec<Root>,
    /// The root of this line, and its counts.
    root: usize,
    counts: Option<Counts>,
    /// The level of this line; 0: the header.
    level: u8,
    runs: KVec<Run>,
}

impl Cursor {
    fn count(&mut self, vm: &Vm, root: Root) -> Result<Counts> {
        let why = self.why;
        let mut levels = [Level::default(); 6];
        let mut walk = Walk::new(root.id, 0);
        self.runs.clear();
        while walk.step(vm, &mut self.runs)? {
            for run in &self.runs {
                let why = why.of(vm, root.id.role.address_space(), run)?;
                let level = usize::from(run.entry.level);
                let Some(level) = levels.get_mut(level) else {
                    continue;
                };
                let count = run.entries();
                match run.entry.class() {
                    Class::Leaf => level.leaves += count,
                    Class::Mmio => level.mmio += count,
                    Class::Frozen => level.frozen += count,
                    Class::Absent | Class::Table | Class::Other => level.other += count,
                }
                if let Some(sum) = why.and_then(|why| level.why.get_mut(why as usize)) {
                    *sum += count;
                }
            }
            self.runs.clear();
        }
        for (level, &tables) in levels.iter_mut().zip(&walk.tables) {
            level.tables = tables;
        }
        Ok(Counts {
            levels,
            held_ns: cycles::to_ns(walk.held, tsc::khz()),
        })
    }
}

impl Lines for Stage2 {
    type Cursor = Cursor;

    fn open(&self) -> Result<Cursor> {
        Ok(Cursor {
            why: Why::new(),
            begun: false,
            roots: KVVec::new(),
            root: 0,
            counts: None,
            level: 0,
            runs: KVec::with_capacity(RUNS, GFP_KERNEL)?,
        })
    }

    fn rewind(&self, cursor: &mut Cursor) -> Result {
        cursor.roots = roots::roots(&self.0)?;
        (cursor.begun, cursor.root, cursor.counts, cursor.level) = (false, 0, None, 0);
        Ok(())
    }

    /// Errors as those of [`Walk::step`].
    fn next(&self, cursor: &mut Cursor) -> Result<bool> {
        if !cursor.begun {
            cursor.begun = true;
            return Ok(true);
        }
        // The levels below, then the next root.
        if cursor.level > 1 && cursor.counts.is_some() {
            cursor.level -= 1;
            return Ok(true);
        }
        let next = cursor.root + usize::from(cursor.level > 0);
        let Some(&root) = cursor.roots.get(next) else {
            return Ok(false);
        };
        let counts = match root.mode {
            Mode::Tdp => Some(cursor.count(&self.0, root)?),
            Mode::Shadow | Mode::Nested => None,
        };
        (cursor.root, cursor.counts) = (next, counts);
        cursor.level = root.id.role.level().max(1);
        Ok(true)
    }

    fn show(&self, cursor: &Cursor, out: &SeqFile) -> Result {
        if cursor.level == 0 {
            seq_print!(
                out,
                "root mode as vcpus level tables leaves bytes mmio frozen other held_ns"
            );
            for reason in Reason::ALL {
                seq_print!(out, " {}", reason.name());
            }
            seq_print!(out, "\n");
            return Ok(());
        }
        let Some(root) = cursor.roots.get(cursor.root) else {
            return Ok(());
        };
        let (number, mode, vcpus) = (cursor.root, root.mode.name(), root.vcpus);
        let (level, address_space) = (cursor.level, root.id.role.address_space());
        seq_print!(out, "{number} {mode} {address_space} {vcpus} {level}");
        let Some(counts) = &cursor.counts else {
            seq_print!(out, " - - - - - - -");
            for _ in Reason::ALL {
                seq_print!(out, " -");
            }
            seq_print!(out, "\n");
            return Ok(());
        };
        let Some(of) = counts.levels.get(usize::from(level)) else {
            return Ok(());
        };
        let bytes = of.leaves * crate::pure::stage2::bytes(level);
        seq_print!(
            out,
            " {} {} {bytes} {} {} {} {}",
            of.tables,
            of.leaves,
            of.mmio,
            of.frozen,
            of.other,
            counts.held_ns
        );
        for count in of.why {
            seq_print!(out, " {count}");
        }
        seq_print!(out, "\n");
        Ok(())
    }
}
