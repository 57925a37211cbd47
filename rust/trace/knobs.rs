// SPDX-License-Identifier: GPL-2.0
//! What says how much is traced: the values that `knobs/trace*` may have, the filter's file, and the table
//! of what was lost.

use super::Trace;
use crate::{
    pure::{line::Line, range::Range, text, who::NAME},
    wrap::{command::Command, debugfs::Table},
};
use core::sync::atomic::Ordering::Relaxed;
use kernel::{
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// `trace`
pub(crate) const MASK: Range = Range { min: 0, max: 31 };

/// `trace_rate`: lines a second on each CPU; 0: as many as come.
pub(crate) const RATE: Range = Range {
    min: 0,
    max: 1_000_000,
};

impl Trace {
    /// Lines a second.
    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Relaxed)
    }

    /// Set them. Gives what was before.
    pub(crate) fn set_rate(&self, rate: u64) -> u64 {
        self.rate.swap(rate, Relaxed)
    }
}

/// `knobs/trace_vm`: the name of the only VM that is traced, or nothing.
pub(crate) struct VmFilter(pub(crate) Arc<Trace>);

impl Command for VmFilter {
    /// `EINVAL`: that cannot be a VM's name.
    fn run(&self, text: Option<&[u8]>) -> Result {
        let name = text::vm_name(text.ok_or(EINVAL)?).ok_or(EINVAL)?;
        let mut vm = self.0.vm.lock();
        *vm = text::fixed(name);
        self.0.filtered.store(!name.is_empty(), Relaxed);
        Ok(())
    }
}

impl Table for VmFilter {
    fn show(&self, out: &SeqFile) -> Result {
        let name = Line::<NAME>::of(&*self.0.vm.lock());
        seq_print!(out, "{}\n", name.as_c_str());
        Ok(())
    }
}

/// `trace_lost`: how many lines `knobs/trace_rate` has cost.
pub(crate) struct LostTable(pub(crate) Arc<Trace>);

impl Table for LostTable {
    fn show(&self, out: &SeqFile) -> Result {
        seq_print!(out, "cpu lost\n");
        for (number, cpu) in self.0.cpus.iter().enumerate() {
            let lost = cpu.lock().lost();
            seq_print!(out, "{number} {lost}\n");
        }
        Ok(())
    }
}
