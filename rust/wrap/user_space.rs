// SPDX-License-Identifier: GPL-2.0
//! The address space of a VMM: what the host has behind a VM's memory.
//!
//! [`UserSpace`] keeps it from going, [`Mapped`] its mappings from changing. Nothing is faulted in,
//! and no reference to a page is taken: a page is looked at while its mapping's lock is held.
//!
//! A reference is held for a moment at a time: a VMM that is killed gives back its memory when it is
//! put. The kernel crate's `Mm` puts it where that may sleep, and cannot be interrupted when waiting
//! for `mmap_lock`.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! [`include/linux/pgtable.h`](srctree/include/linux/pgtable.h)

use super::{kvm::LiveVm, signal::fatal_signal_pending};
use crate::raw;
use core::ptr::NonNull;
use kernel::{
    bindings,
    ffi::c_int,
    prelude::*,
    time::{delay::fsleep, Delta},
};

pub(crate) use crate::raw::{kvmate_leaf as Leaf, kvmate_vma as Vma};

impl Clone for Vma {
    fn clone(&self) -> Self {
        *self
    }
}

// Numbers and text.
impl Copy for Vma {}

/// The address space of the process that made a VM.
///
/// # Invariants
///
/// A reference to its users is ours.
pub(crate) struct UserSpace(NonNull<bindings::mm_struct>);

impl LiveVm<'_> {
    /// The address space that its memory is in; `None` if the VMM has gone.
    pub(crate) fn user_space(self) -> Option<UserSpace> {
        // SAFETY: A live VM (type invariant), which keeps its `mm`.
        let mm = unsafe { raw::kvmate_vm_mmget(self.as_ptr().as_ptr()) };
        // INVARIANT: The reference that this gave.
        NonNull::new(mm).map(UserSpace)
    }
}

impl UserSpace {
    /// Keep the mappings as they are. `EINTR`: killed while waiting; `EIO`: `over` became true meanwhile.
    /// Who has the lock may keep it as long as it likes, and the VM's end waits for who reads its files:
    /// so this does not wait in the lock's queue. Sleeps.
    pub(crate) fn map(&self, over: impl Fn() -> bool) -> Result<Mapped<'_>> {
        // SAFETY: Kept by our reference; given back in `drop`.
        while !unsafe { raw::kvmate_mm_trylock(self.0.as_ptr()) } {
            if fatal_signal_pending() {
                return Err(EINTR);
            }
            if over() {
                return Err(EIO);
            }
            fsleep(Delta::from_micros(100));
        }
        // INVARIANT: Taken just now.
        Ok(Mapped(self))
    }
}

impl Drop for UserSpace {
    fn drop(&mut self) {
        // SAFETY: Our reference (type invariant). Does not sleep.
        unsafe { raw::kvmate_mm_put(self.0.as_ptr()) };
    }
}

/// The mappings of an address space.
///
/// # Invariants
///
/// `mmap_lock` is held for reading.
pub(crate) struct Mapped<'a>(&'a UserSpace);

impl Mapped<'_> {
    fn mm(&self) -> *mut bindings::mm_struct {
        self.0 .0.as_ptr()
    }

    /// The mapping at that address, or the next one. Its file's path goes into `path`, ended by a zero
    /// byte; nothing but that if there is none or it does not fit.
    pub(crate) fn vma(&self, address: u64, path: &mut [u8]) -> Option<Vma> {
        let mut vma = Vma::default();
        // SAFETY: The lock is held (type invariant); at most the path's length is written.
        let found = unsafe {
            raw::kvmate_mm_vma(
                self.mm(),
                address as usize,
                &mut vma,
                path.as_mut_ptr().cast(),
                path.len() as c_int,
            )
        };
        found.then_some(vma)
    }

    /// The level that an address is mapped at, 0 if it is not.
    pub(crate) fn level(&self, address: u64) -> u8 {
        // SAFETY: The lock is held (type invariant).
        unsafe { raw::kvmate_mm_level(self.mm(), address as usize) }
    }

    /// What is mapped at an address.
    pub(crate) fn leaf(&self, address: u64) -> Option<Leaf> {
        let mut leaf = Leaf::default();
        // SAFETY: The lock is held (type invariant).
        unsafe { raw::kvmate_mm_leaf(self.mm(), address as usize, &mut leaf) };
        (leaf.level != 0).then_some(leaf)
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        // SAFETY: Held (type invariant).
        unsafe { raw::kvmate_mm_unlock(self.mm()) };
    }
}
