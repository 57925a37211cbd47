// SPDX-License-Identifier: GPL-2.0
//! Memory cgroups: who pays for a folio.
//!
//! A folio that enters the page cache is charged to the current task's cgroup. A fault may be handled
//! by another task than the one whose memory it is: `ptrace`, `process_vm_writev()`, a worker of
//! KVM's. Then the owner of the memory is to pay, as for shmem.
//!
//! C header: [`include/linux/memcontrol.h`](srctree/include/linux/memcontrol.h)

use super::folio::LockedFolio;
use crate::raw;
use core::ptr;
use kernel::{bindings, current};

/// What is charged to nobody in particular goes to one cgroup while this is there.
///
/// # Invariants
///
/// Made and dropped by the same task; if there is something in it, the first is a cgroup that we have
/// a reference to and that is charged now, the second was charged before.
pub(crate) struct ChargedTo(Option<(*mut bindings::mem_cgroup, *mut bindings::mem_cgroup)>);

impl ChargedTo {
    /// Charge to who paid for a folio.
    pub(crate) fn payer_of(folio: &LockedFolio) -> Self {
        // SAFETY: Locked, so what it is charged to does not change (linux/memcontrol.h); gives a
        // reference.
        let memcg = unsafe { raw::kvmate_memcg_of_folio(folio.as_ptr()) };
        if memcg.is_null() {
            return Self(None);
        }
        // SAFETY: We have a reference, which `drop` puts after it is charged no more.
        let before = unsafe { raw::kvmate_charge_to(memcg) };
        // INVARIANT: As just done. The type is not `Send`.
        Self(Some((memcg, before)))
    }

    /// Charge to the owner of an address space, if that is not the current task.
    ///
    /// # Safety
    ///
    /// `mm` is an address space, or null.
    pub(super) unsafe fn owner_of(mm: *mut bindings::mm_struct) -> Self {
        // SAFETY: The current task is there; its `mm` is changed by itself only.
        if mm.is_null() || ptr::eq(mm, unsafe { (*current!().as_ptr()).mm }) {
            return Self(None);
        }
        // SAFETY: The caller's promise.
        let memcg = unsafe { raw::kvmate_memcg_of(mm) };
        // SAFETY: We have a reference, which `drop` puts after it is charged no more.
        let before = unsafe { raw::kvmate_charge_to(memcg) };
        // INVARIANT: As just done. The type is not `Send`.
        Self(Some((memcg, before)))
    }
}

impl Drop for ChargedTo {
    fn drop(&mut self) {
        if let Some((memcg, before)) = self.0 {
            // SAFETY: What was charged before, by this very task (type invariant).
            unsafe { raw::kvmate_charge_to(before) };
            // SAFETY: Our reference (type invariant).
            unsafe { raw::kvmate_memcg_put(memcg) };
        }
    }
}
