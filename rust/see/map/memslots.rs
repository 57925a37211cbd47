// SPDX-License-Identifier: GPL-2.0
//! The table `memslots`.

use super::{super::vm::Vm, backing::Backing};
use crate::wrap::{
    debugfs::Lines,
    memslot::{Slot, ADDRESS_SPACES, FLAGS},
    schedule,
};
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// How many slots are copied at a time.
pub(super) const BATCH: usize = 32;

/// `vms/*/memslots`
pub(in super::super) struct Memslots(pub(in super::super) Arc<Vm>);

/// Where a reader is.
pub(in super::super) struct Cursor {
    address_space: u32,
    /// Slots that end behind it are still to come.
    next: u64,
    batch: KVec<Slot>,
    /// How many of the batch there are, and which one is shown next.
    count: usize,
    at: usize,
    /// The slot of this line; nothing: the header's.
    slot: Option<Slot>,
    begun: bool,
    backing: Backing,
}

impl Cursor {
    fn rewind(&mut self) {
        (self.address_space, self.next) = (0, 0);
        (self.count, self.at, self.slot, self.begun) = (0, 0, None, false);
    }

    /// Slots from the VM, if there are any more.
    fn fill(&mut self, vm: &Vm) -> Result<bool> {
        while self.address_space < ADDRESS_SPACES {
            schedule::breathe()?;
            let (address_space, next) = (self.address_space, self.next);
            let batch = &mut self.batch;
            let count = vm.gate.enter(|vm| vm.slots(address_space, next, batch));
            self.count = count.ok_or(EIO)?;
            self.at = 0;
            if self.count > 0 {
                return Ok(true);
            }
            self.address_space += 1;
            self.next = 0;
        }
        Ok(false)
    }
}

/// Names of a slot's flags, with commas.
pub(super) struct Flags(pub(super) u32);

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let mut comma = "";
        for (flag, name) in FLAGS {
            if rest & flag != 0 {
                write!(f, "{comma}{name}")?;
                rest &= !flag;
                comma = ",";
            }
        }
        match (rest, comma) {
            (0, "") => f.write_str("-"),
            (0, _) => Ok(()),
            (rest, comma) => write!(f, "{comma}{rest:#x}"),
        }
    }
}

/// Where a slot's dirty pages are noted.
fn dirty(slot: &Slot) -> &'static str {
    let [(dirty_log, _), ..] = FLAGS;
    match (slot.flags & dirty_log != 0, slot.bitmap) {
        (false, _) => "-",
        (true, true) => "bitmap",
        (true, false) => "ring",
    }
}

impl Lines for Memslots {
    type Cursor = Cursor;

    fn open(&self) -> Result<Cursor> {
        Ok(Cursor {
            address_space: 0,
            next: 0,
            batch: KVec::from_elem(Slot::default(), BATCH, GFP_KERNEL)?,
            count: 0,
            at: 0,
            slot: None,
            begun: false,
            backing: Backing::new()?,
        })
    }

    fn rewind(&self, cursor: &mut Cursor) -> Result {
        cursor.rewind();
        Ok(())
    }

    /// `EIO`: the VM has ended. `EINTR`: a signal.
    fn next(&self, cursor: &mut Cursor) -> Result<bool> {
        if !cursor.begun {
            cursor.begun = true;
            return Ok(true);
        }
        if cursor.at == cursor.count && !cursor.fill(&self.0)? {
            return Ok(false);
        }
        let Some(&slot) = cursor.batch.get(cursor.at) else {
            return Ok(false);
        };
        cursor.backing.look(&self.0, &slot)?;
        cursor.at += 1;
        cursor.next = slot.gfn + slot.pages;
        cursor.slot = Some(slot);
        Ok(true)
    }

    fn show(&self, cursor: &Cursor, out: &SeqFile) -> Result {
        let Some(slot) = &cursor.slot else {
            seq_print!(
                out,
                "as slot gpa size hva flags dirty backing share vmas inode offset file\n"
            );
            return Ok(());
        };
        let (gpa, size) = (slot.gfn << 12, slot.pages << 12);
        seq_print!(
            out,
            "{} {} {gpa:#x} {size:#x} {:#x} {} {} {}\n",
            cursor.address_space,
            slot.id,
            slot.hva,
            Flags(slot.flags),
            dirty(slot),
            cursor.backing
        );
        Ok(())
    }
}
