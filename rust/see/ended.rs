// SPDX-License-Identifier: GPL-2.0
//! The table `ended`: the totals of the last VMs that ended.

use super::{
    exits::{self, Exits, Row},
    folder,
    vm::Vm,
};
use crate::{
    pure::{line::Line, who::NAME},
    wrap::debugfs::Table,
};
use kernel::{
    new_mutex,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::{Arc, Mutex},
};

/// How many VMs are kept.
const KEPT: usize = 16;

/// A VM that was.
struct Past {
    number: u64,
    name: Line<NAME>,
    vcpus: usize,
    rows: KVVec<Row>,
}

/// The last VMs that ended.
#[pin_data]
pub(crate) struct Ended {
    /// The oldest first.
    #[pin]
    past: Mutex<KVec<Past>>,
}

impl Ended {
    /// None yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let past = KVec::with_capacity(KEPT, GFP_KERNEL)?;
        Arc::pin_init(pin_init!(Self { past <- new_mutex!(past) }), GFP_KERNEL)
    }

    /// Keep what is known of a VM. One of which nothing can be kept for want of memory is left out,
    /// and the log says so.
    pub(super) fn add(&self, vm: &Vm) {
        match Past::of(vm) {
            Ok(new) => {
                let mut past = self.past.lock();
                if past.len() >= KEPT {
                    // Cannot fail: there is a first.
                    let _ = past.remove(0);
                }
                // Cannot fail: there is room.
                let _ = past.push_within_capacity(new);
            }
            Err(error) => pr_warn!("the totals of a VM that ended are lost: {error:?}\n"),
        }
    }
}

impl Past {
    fn of(vm: &Vm) -> Result<Self> {
        let recordings = vm.recordings()?;
        Ok(Self {
            number: vm.number,
            name: folder::name_of(vm),
            vcpus: recordings.len(),
            rows: Exits::of(&recordings)?.rows()?,
        })
    }
}

impl Table for Ended {
    fn show(&self, out: &SeqFile) -> Result {
        let columns = exits::COLUMNS;
        seq_print!(out, "number vm vcpus {columns}\n");
        for Past {
            number,
            name,
            vcpus,
            rows,
        } in self.past.lock().iter()
        {
            if rows.is_empty() {
                seq_print!(
                    out,
                    "{number} {} {vcpus} - 0 0 0 0 0 0 0\n",
                    name.as_c_str()
                );
            }
            for row in rows {
                seq_print!(out, "{number} {} {vcpus} {row}\n", name.as_c_str());
            }
        }
        Ok(())
    }
}
