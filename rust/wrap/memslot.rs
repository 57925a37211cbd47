// SPDX-License-Identifier: GPL-2.0
//! A VM's memslots: copies, made under `kvm->srcu`.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use super::kvm::LiveVm;
use crate::raw;

pub(crate) use crate::raw::kvmate_slot as Slot;

impl Clone for Slot {
    fn clone(&self) -> Self {
        *self
    }
}

// Numbers.
impl Copy for Slot {}

/// How many address spaces a VM can have: the second is that of system management mode.
pub(crate) const ADDRESS_SPACES: u32 = 2;

/// Bits of [`Slot`]'s flags, as user space gives them.
pub(crate) const FLAGS: [(u32, &str); 3] = [
    (raw::KVMATE_SLOT_DIRTY_LOG, "dirty-log"),
    (raw::KVMATE_SLOT_READ_ONLY, "read-only"),
    (raw::KVMATE_SLOT_GUEST_MEMFD, "guest-memfd"),
];

impl LiveVm<'_> {
    /// Fill `slots` with those of an address space that end behind `gfn`, the lowest first, and tell
    /// how many there were.
    pub(crate) fn slots(self, address_space: u32, gfn: u64, slots: &mut [Slot]) -> usize {
        let max = slots.len() as u32;
        // SAFETY: A live VM (type invariant); at most `max` are written.
        let count = unsafe {
            raw::kvmate_slots(
                self.as_ptr().as_ptr(),
                address_space,
                gfn,
                slots.as_mut_ptr(),
                max,
            )
        };
        count as usize
    }

    /// What KVM counts against a mapping of 2 MiB at that frame.
    pub(crate) fn disallow_large(self, address_space: u32, gfn: u64) -> u32 {
        // SAFETY: A live VM (type invariant).
        unsafe { raw::kvmate_slot_disallow(self.as_ptr().as_ptr(), address_space, gfn) }
    }

    /// Whether this VM may have executable large pages although KVM gives others none.
    pub(crate) fn nx_exempt(self) -> bool {
        // SAFETY: A live VM (type invariant).
        unsafe { raw::kvmate_nx_exempt(self.as_ptr().as_ptr()) }
    }
}
