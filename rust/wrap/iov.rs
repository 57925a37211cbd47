// SPDX-License-Identifier: GPL-2.0
//! The caller's buffers in a read or a write.
//!
//! The kernel crate's `iov` copies with faults on; a file that holds locks a fault may want needs it
//! the other way: fault in first, then copy without.
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)

use crate::raw;
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{bindings, prelude::*};

/// An iterator that lives as long as the call.
///
/// # Invariants
///
/// A live iterator, and ours alone for `'a`.
struct Iter<'a>(NonNull<bindings::iov_iter>, PhantomData<&'a mut ()>);

impl Iter<'_> {
    fn remaining(&self) -> usize {
        // SAFETY: Live (type invariant).
        unsafe { raw::kvmate_iov_iter_count(self.0.as_ptr()) }
    }
}

/// What is read into.
pub(crate) struct Destination<'a>(Iter<'a>);

impl Destination<'_> {
    /// # Safety
    ///
    /// The iterator is one to copy to, live, and nobody else's while the result is there.
    pub(super) unsafe fn new(iter: NonNull<bindings::iov_iter>) -> Self {
        // INVARIANT: The caller's promise.
        Self(Iter(iter, PhantomData))
    }

    /// How many bytes there is room for.
    pub(crate) fn remaining(&self) -> usize {
        self.0.remaining()
    }

    /// Make the next bytes present. `EFAULT` if not a single one can be. Faults: no lock of a file's.
    pub(crate) fn fault_in(&self, bytes: usize) -> Result {
        // SAFETY: Live (type invariant).
        let missing = unsafe { bindings::fault_in_iov_iter_writeable(self.0 .0.as_ptr(), bytes) };
        (missing < bytes).then_some(()).ok_or(EFAULT)
    }

    /// Write zeros; tells how many. Does not fault.
    pub(crate) fn zero(&mut self, bytes: usize) -> usize {
        // SAFETY: Live (type invariant).
        self.without_faults(|iter| unsafe { bindings::iov_iter_zero(bytes, iter) })
    }

    pub(super) fn without_faults(
        &mut self,
        copy: impl FnOnce(*mut bindings::iov_iter) -> usize,
    ) -> usize {
        // SAFETY: No condition; the counterpart follows.
        unsafe { raw::kvmate_pagefault_disable() };
        let copied = copy(self.0 .0.as_ptr());
        // SAFETY: Disabled above.
        unsafe { raw::kvmate_pagefault_enable() };
        copied
    }
}

/// What is written from.
pub(crate) struct Source<'a>(Iter<'a>);

impl Source<'_> {
    /// # Safety
    ///
    /// The iterator is one to copy from, live, and nobody else's while the result is there.
    pub(super) unsafe fn new(iter: NonNull<bindings::iov_iter>) -> Self {
        // INVARIANT: The caller's promise.
        Self(Iter(iter, PhantomData))
    }

    /// How many bytes there are.
    pub(crate) fn remaining(&self) -> usize {
        self.0.remaining()
    }

    /// Make the next bytes present. `EFAULT` if not a single one can be. Faults: no lock of a file's.
    pub(crate) fn fault_in(&self, bytes: usize) -> Result {
        // SAFETY: Live (type invariant).
        let missing = unsafe { bindings::fault_in_iov_iter_readable(self.0 .0.as_ptr(), bytes) };
        (missing < bytes).then_some(()).ok_or(EFAULT)
    }

    pub(super) fn as_ptr(&mut self) -> *mut bindings::iov_iter {
        self.0 .0.as_ptr()
    }
}
