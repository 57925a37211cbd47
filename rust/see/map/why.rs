// SPDX-License-Identifier: GPL-2.0
//! The facts behind the reason why a page is mapped by 4 KiB.

use super::super::vm::Vm;
use crate::{
    pure::{
        stage2::{walk::Run, Class},
        why::{self, Host, Reason},
    },
    wrap::{
        memslot::{Slot, FLAGS},
        sysfs,
    },
};
use kernel::prelude::*;

/// More than the parameter's text.
const TEXT: usize = 1 << 13;

/// Whether KVM gives guests executable large pages, as it was when a reader came.
#[derive(Clone, Copy)]
pub(in super::super) struct Why {
    nx_huge_pages: bool,
}

impl Why {
    /// Ask KVM. Reads a file of sysfs: not to be called by what a `seq_file` shows.
    pub(in super::super) fn new() -> Self {
        let parameter = sysfs::read(c"/sys/module/kvm/parameters/nx_huge_pages", TEXT);
        Self {
            nx_huge_pages: parameter.is_ok_and(|text| text.starts_with(b"Y")),
        }
    }

    /// The same, as it was told before.
    pub(super) fn with(nx_huge_pages: bool) -> Self {
        Self { nx_huge_pages }
    }

    /// What is known, for [`Self::with`].
    pub(super) fn nx_huge_pages(self) -> bool {
        self.nx_huge_pages
    }

    /// The reason for a run of leaves of level 1 in one table; none for others. Sleeps. `EIO`: the VM
    /// has ended.
    pub(super) fn of(self, vm: &Vm, address_space: u32, run: &Run) -> Result<Option<Reason>> {
        if (run.entry.level, run.entry.class()) != (1, Class::Leaf) {
            return Ok(None);
        }
        let mut found = [Slot::default()];
        let facts = vm.gate.enter(|vm| {
            let count = vm.slots(address_space, run.gfn, &mut found);
            let disallow = vm.disallow_large(address_space, run.gfn);
            (count, disallow, vm.nx_exempt(), vm.user_space())
        });
        let (count, disallow, exempt, user_space) = facts.ok_or(EIO)?;
        let [slot] = found;
        if count == 0 || slot.gfn > run.gfn {
            return Ok(Some(Reason::Unknown));
        }
        let [(dirty_log, _), ..] = FLAGS;
        let slot = why::Slot {
            gfn: slot.gfn,
            pages: slot.pages,
            hva: slot.hva,
            dirty_log: slot.flags & dirty_log != 0,
            disallow,
        };
        let mut host = None;
        if let (None, Some(user_space)) = (slot.rules_out(run.gfn), user_space) {
            let hva = slot.hva + ((run.gfn - slot.gfn) << 12);
            let mapped = user_space.map(|| vm.ended())?;
            host = mapped.vma(hva, &mut []).map(|vma| Host {
                start: vma.start,
                end: vma.end,
                level: mapped.level(hva),
            });
        }
        let executable = run.entry.permissions()[2] == b'x';
        let nx = self.nx_huge_pages && !exempt && executable;
        Ok(Some(why::why(run.gfn, &slot, host, nx)))
    }
}
