// SPDX-License-Identifier: GPL-2.0
//! A byte that C code (`debugfs_create_u8`) stores to while we load it.

use core::cell::UnsafeCell;

/// A byte shared with C.
///
/// # Invariants
///
/// After [`SharedByte::new`] the byte is only ever read and written by single, whole accesses that
/// the compiler may not repeat or merge (volatile here, the kernel's `debugfs_u8_set()` in C).
pub(crate) struct SharedByte(UnsafeCell<u8>);

// SAFETY: By the invariant every access is one byte wide and whole, which races with no harm: a
// reader sees the old or the new value.
unsafe impl Sync for SharedByte {}

impl SharedByte {
    pub(crate) const fn new(value: u8) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The value now.
    pub(crate) fn load(&self) -> u8 {
        // SAFETY: `self` is alive; a volatile load of one byte is whole (type invariant).
        unsafe { self.0.get().read_volatile() }
    }

    /// For C to store to. Valid as long as `self`.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.0.get()
    }
}
