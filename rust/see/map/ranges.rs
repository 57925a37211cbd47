// SPDX-License-Identifier: GPL-2.0
//! The table `stage2_map`: what stage-2 tables map, range by range.

use super::{
    super::vm::Vm,
    roots::{self, Mode, Root, Walk, RUNS},
    why::Why,
    Shown,
};
use crate::{
    pure::{
        stage2::{walk::Run, Class},
        why::Reason,
    },
    wrap::debugfs::Lines,
};
use kernel::{
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// `vms/*/stage2_map`
pub(in super::super) struct Ranges(pub(in super::super) Arc<Vm>);

/// A line.
#[derive(Clone, Copy)]
struct Range {
    /// Which root, counted as in `stage2`.
    root: usize,
    run: Run,
    why: Option<Reason>,
}

/// Where a reader is.
pub(in super::super) struct Cursor {
    why: Why,
    begun: bool,
    roots: KVVec<Root>,
    /// How many roots have been begun.
    root: usize,
    walk: Option<Walk>,
    runs: KVec<Run>,
    /// Which of them is next.
    at: usize,
    /// What goes on, perhaps.
    pending: Option<Range>,
    /// This line; nothing: the header.
    line: Option<Range>,
}

impl Cursor {
    /// The next run, with the reason for it.
    fn piece(&mut self, vm: &Vm) -> Result<Option<Range>> {
        loop {
            let current = self.roots.get(self.root.wrapping_sub(1));
            if let (Some(&run), Some(current)) = (self.runs.get(self.at), current) {
                let why = self.why.of(vm, current.id.role.address_space(), &run)?;
                self.at += 1;
                let root = self.root - 1;
                return Ok(Some(Range { root, run, why }));
            }
            self.at = 0;
            self.runs.clear();
            if let Some(walk) = &mut self.walk {
                if walk.step(vm, &mut self.runs)? {
                    continue;
                }
            }
            let Some(next) = self.roots.get(self.root) else {
                return Ok(None);
            };
            self.walk = (next.mode == Mode::Tdp).then(|| Walk::new(next.id, 0));
            self.root += 1;
        }
    }
}

impl Lines for Ranges {
    type Cursor = Cursor;

    fn open(&self) -> Result<Cursor> {
        Ok(Cursor {
            why: Why::new(),
            begun: false,
            roots: KVVec::new(),
            root: 0,
            walk: None,
            runs: KVec::with_capacity(RUNS, GFP_KERNEL)?,
            at: 0,
            pending: None,
            line: None,
        })
    }

    fn rewind(&self, cursor: &mut Cursor) -> Result {
        cursor.roots = roots::roots(&self.0)?;
        cursor.runs.clear();
        (cursor.root, cursor.at, cursor.begun) = (0, 0, false);
        (cursor.walk, cursor.pending, cursor.line) = (None, None, None);
        Ok(())
    }

    /// Errors as those of [`Walk::step`].
    fn next(&self, cursor: &mut Cursor) -> Result<bool> {
        if !cursor.begun {
            cursor.begun = true;
            return Ok(true);
        }
        while let Some(next) = cursor.piece(&self.0)? {
            match &mut cursor.pending {
                Some(before)
                    if (before.root, before.why) == (next.root, next.why)
                        && before.run.goes_on(&next.run) =>
                {
                    before.run.pages += next.run.pages;
                }
                pending => {
                    if let Some(before) = pending.replace(next) {
                        cursor.line = Some(before);
                        return Ok(true);
                    }
                }
            }
        }
        cursor.line = cursor.pending.take();
        Ok(cursor.line.is_some())
    }

    fn show(&self, cursor: &Cursor, out: &SeqFile) -> Result {
        let Some(Range { root, run, why }) = &cursor.line else {
            seq_print!(
                out,
                "root kind level gpa size access type write flags why\n"
            );
            return Ok(());
        };
        let (entry, class) = (run.entry, run.entry.class());
        let (gpa, size) = (run.gfn << 12, run.pages << 12);
        seq_print!(
            out,
            "{root} {} {} {gpa:#x} {size:#x} ",
            class.name(),
            entry.level
        );
        if class == Class::Leaf {
            let access = entry.permissions();
            let access = core::str::from_utf8(&access).unwrap_or("?");
            let (memory, write) = (Shown(entry.memory_type()), entry.write().name());
            seq_print!(out, "{access} {memory} {write} ");
        } else {
            seq_print!(out, "- - - ");
        }
        let why = why.map_or("-", Reason::name);
        seq_print!(out, "{} {why}\n", Shown(entry.other_flags()));
        Ok(())
    }
}
