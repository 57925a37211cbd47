// SPDX-License-Identifier: GPL-2.0
//! A page of a guest: its slot, its leaf in stage 2, its leaf on the host, and the folio there.

use super::{
    super::vm::Vm,
    backing::Backing,
    memslots::Flags,
    roots::{self, Mode, Walk},
    why::Why,
    Shown,
};
use crate::{
    pure::{
        page_flags::PageFlags,
        stage2::{walk::Run, Class, Entry},
        why::Reason,
    },
    wrap::{
        debugfs::{Question, Table},
        memslot::{Slot, ADDRESS_SPACES},
        stage2,
        user_space::Leaf,
    },
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use kernel::{
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// Guest-physical addresses have no more bits.
const GPA_BITS: u32 = 52;

/// What is known of a guest-physical address; each part only if there is such a thing.
pub(crate) struct Answer {
    /// The memslot.
    pub(crate) slot: Option<Slot>,
    /// The host's virtual address.
    pub(crate) hva: u64,
    /// The entry of stage 2 at which the walk ended, unless it was absent.
    pub(crate) entry: Option<Entry>,
    /// Why it is small.
    pub(crate) why: Option<Reason>,
    /// What the host has mapped there.
    pub(crate) leaf: Option<Leaf>,
    backing: Backing,
}

/// Look an address up in an address space. Nothing is faulted in by it. Sleeps. `EINVAL`: no such
/// address or address space. Else as [`Walk::entry`].
pub(in super::super) fn look_up(vm: &Vm, address_space: u32, gpa: u64, why: Why) -> Result<Answer> {
    if !Answer::can_be(address_space, gpa) {
        return Err(EINVAL);
    }
    let gfn = gpa >> 12;
    let entry = entry(vm, address_space, gfn)?;
    let why = match entry {
        Some(entry) => why.of(vm, address_space, &Run::new(gfn, entry))?,
        None => None,
    };
    let mut answer = Answer {
        slot: None,
        hva: 0,
        entry,
        why,
        leaf: None,
        backing: Backing::new()?,
    };
    let mut found = [Slot::default()];
    let looked = vm.gate.enter(|vm| {
        let count = vm.slots(address_space, gfn, &mut found);
        (count, vm.user_space())
    });
    let (count, user_space) = looked.ok_or(EIO)?;
    let [slot] = found;
    if count == 0 || slot.gfn > gfn {
        return Ok(answer);
    }
    answer.hva = slot.hva + (gpa - (slot.gfn << 12));
    answer.slot = Some(slot);
    // Of the page alone.
    let page = Slot {
        hva: answer.hva & !0xfff,
        pages: 1,
        ..slot
    };
    answer.backing.look(vm, &page)?;
    if let Some(user_space) = user_space {
        answer.leaf = user_space.map(|| vm.ended())?.leaf(answer.hva);
    }
    Ok(answer)
}

/// The entry of stage 2 for that frame, in the first table that has one.
fn entry(vm: &Vm, address_space: u32, gfn: u64) -> Result<Option<Entry>> {
    for root in &roots::roots(vm)? {
        if root.mode == Mode::Tdp && root.id.role.address_space() == address_space {
            if let Some(entry) = Walk::new(root.id, gfn).entry(vm)? {
                return Ok(Some(entry));
            }
        }
    }
    Ok(None)
}

/// `vms/*/lookup`
pub(in super::super) struct Lookup {
    vm: Arc<Vm>,
    /// What was asked for last.
    asked: AtomicU64,
}

/// In `asked`: nothing yet; and beside an address, what [`Why`] knew then.
const NOTHING: u64 = u64::MAX;
const NX_HUGE_PAGES: u64 = 1 << 63;

impl Lookup {
    pub(in super::super) fn new(vm: Arc<Vm>) -> Self {
        let asked = AtomicU64::new(NOTHING);
        Self { vm, asked }
    }
}

impl Question for Lookup {
    /// `EINVAL`: no guest-physical address.
    fn ask(&self, gpa: u64) -> Result {
        if !Answer::can_be(0, gpa) {
            return Err(EINVAL);
        }
        let nx = if Why::new().nx_huge_pages() {
            NX_HUGE_PAGES
        } else {
            0
        };
        self.asked.store(gpa | nx, Relaxed);
        Ok(())
    }
}

impl Table for Lookup {
    /// `ENODATA`: nothing was asked yet. Else as [`look_up`].
    fn show(&self, out: &SeqFile) -> Result {
        let asked = self.asked.load(Relaxed);
        if asked == NOTHING {
            return Err(ENODATA);
        }
        let gpa = asked & !NX_HUGE_PAGES;
        let why = Why::with(asked & NX_HUGE_PAGES != 0);
        seq_print!(out, "gpa {gpa:#x}\n");
        look_up(&self.vm, 0, gpa, why)?.show(out);
        Ok(())
    }
}

impl Answer {
    /// Whether there can be such an address in such an address space.
    pub(crate) fn can_be(address_space: u32, gpa: u64) -> bool {
        gpa >> GPA_BITS == 0 && address_space < ADDRESS_SPACES
    }

    /// A line a fact: its name, a blank, and the fact.
    fn show(&self, out: &SeqFile) {
        if let Some(slot) = &self.slot {
            seq_print!(out, "slot {}\n", slot.id);
            seq_print!(out, "slot_gpa {:#x}\n", slot.gfn << 12);
            seq_print!(out, "slot_size {:#x}\n", slot.pages << 12);
            seq_print!(out, "slot_flags {}\n", Flags(slot.flags));
            seq_print!(out, "hva {:#x}\n", self.hva);
            seq_print!(out, "backing {}\n", self.backing);
        }
        if let Some(entry) = &self.entry {
            let width = stage2::physical_bits();
            seq_print!(out, "stage2_kind {}\n", entry.class().name());
            seq_print!(out, "stage2_level {}\n", entry.level);
            seq_print!(out, "stage2_entry {:#x}\n", entry.raw);
            seq_print!(out, "stage2_flags {}\n", Shown(entry.flags()));
            if entry.class() == Class::Leaf {
                let access = entry.permissions();
                let access = core::str::from_utf8(&access).unwrap_or("?");
                seq_print!(out, "stage2_address {:#x}\n", entry.address(width));
                seq_print!(out, "stage2_encryption {:#x}\n", entry.encryption(width));
                seq_print!(out, "stage2_access {access}\n");
                seq_print!(out, "stage2_type {}\n", Shown(entry.memory_type()));
                seq_print!(out, "stage2_write {}\n", entry.write().name());
            }
        }
        if let Some(why) = self.why {
            seq_print!(out, "why {}\n", why.name());
        }
        if let Some(leaf) = &self.leaf {
            show_leaf(leaf, out);
        }
    }
}

fn show_leaf(leaf: &Leaf, out: &SeqFile) {
    seq_print!(out, "host_level {}\n", leaf.level);
    seq_print!(out, "host_write {}\n", u8::from(leaf.writable));
    seq_print!(out, "host_dirty {}\n", u8::from(leaf.dirty));
    seq_print!(out, "host_accessed {}\n", u8::from(leaf.accessed));
    seq_print!(out, "pfn {:#x}\n", leaf.pfn);
    if leaf.folio {
        seq_print!(out, "order {}\n", leaf.order);
        seq_print!(out, "refcount {}\n", leaf.refcount);
        seq_print!(out, "expected {}\n", leaf.expected);
        seq_print!(out, "mapcount {}\n", leaf.mapcount);
        seq_print!(out, "flags {}\n", Shown(PageFlags(leaf.flags)));
        seq_print!(out, "cgroup {}\n", leaf.cgroup);
        seq_print!(out, "node {}\n", leaf.node);
    }
}
