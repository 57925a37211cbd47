// SPDX-License-Identifier: GPL-2.0
//! What the host has behind a memslot: one mapping, or several.

use super::super::vm::Vm;
use crate::{
    pure::text::Column,
    wrap::{memslot::Slot, user_space::Vma},
};
use kernel::{fmt, prelude::*};

/// How many mappings are looked at; a slot can have some 65,000.
const MOST: u32 = 64;
/// The longest path that is told.
const PATH: usize = 1024;

/// What is behind a slot.
pub(super) struct Backing {
    /// The first mapping in the slot's range.
    first: Option<Vma>,
    /// How many there are, [`MOST`] at most.
    vmas: u32,
    /// They differ, or leave holes.
    mixed: bool,
    /// The first one's file.
    path: KVec<u8>,
    /// The slot's own address.
    hva: u64,
}

fn kind(vma: &Vma) -> &[u8] {
    match vma.file {
        true => &vma.kind,
        false => b"anon\0",
    }
}

/// The text in front of the first zero byte.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

impl Backing {
    /// Room for one.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            first: None,
            vmas: 0,
            mixed: false,
            path: KVec::from_elem(0, PATH, GFP_KERNEL)?,
            hva: 0,
        })
    }

    /// Look behind a slot. `EIO`: the VM has ended.
    pub(super) fn look(&mut self, vm: &Vm, slot: &Slot) -> Result {
        (self.first, self.vmas, self.mixed, self.hva) = (None, 0, false, slot.hva);
        let user_space = vm.gate.enter(|vm| vm.user_space()).ok_or(EIO)?;
        let Some(user_space) = user_space else {
            return Ok(());
        };
        let mapped = user_space.map(|| vm.ended())?;
        let mut at = slot.hva;
        let end = at.saturating_add(slot.pages << 12);
        while at < end && self.vmas < MOST {
            let path = match self.first {
                None => &mut self.path[..],
                Some(_) => &mut [],
            };
            let vma = mapped.vma(at, path).filter(|vma| vma.start < end);
            let Some(vma) = vma else {
                self.mixed = true;
                break;
            };
            let first = self.first.get_or_insert(vma);
            self.mixed |= vma.start > at
                || text(kind(first)) != text(kind(&vma))
                || first.inode != vma.inode
                || first.shared != vma.shared;
            self.vmas += 1;
            at = vma.end;
        }
        Ok(())
    }
}

/// The columns `backing share vmas inode offset file`.
impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = &self.first else {
            return f.write_str("none - 0 - - -");
        };
        let kind = match self.mixed {
            true => b"mixed",
            false => text(kind(first)),
        };
        let share = if first.shared { "shared" } else { "private" };
        write!(f, "{} {share} {}", Column(kind), self.vmas)?;
        if !first.file {
            return f.write_str(" - - -");
        }
        let offset = first.offset + self.hva.saturating_sub(first.start);
        let path = Column(text(&self.path));
        write!(f, " {} {offset:#x} {path}", first.inode)
    }
}
