// SPDX-License-Identifier: GPL-2.0
//! A place in static memory for what only exists while we are loaded, for callbacks that are given
//! nothing of ours.

use core::{
    ptr,
    sync::atomic::{
        AtomicPtr,
        Ordering::{Acquire, Release},
    },
};
use kernel::sync::{rcu, Arc, ArcBorrow};

/// The place.
///
/// # Invariants
///
/// Null, or from [`Arc::into_raw`], whose reference is dropped an RCU grace period after this is
/// null again.
pub(crate) struct Slot<T>(AtomicPtr<T>);

impl<T: Send + Sync + 'static> Slot<T> {
    /// Nothing is there.
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// What is there.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        let _rcu = rcu::read_lock();
        let there = self.0.load(Acquire);
        // SAFETY: Not null, and its reference stays for as long as we are here (type invariant).
        (!there.is_null()).then(|| unsafe { ArcBorrow::from_raw(there) }.into())
    }

    /// Put something there until what this gives is dropped.
    pub(crate) fn fill(&'static self, value: Arc<T>) -> Filled<T> {
        let filled = Filled(self);
        filled.exchange(Arc::into_raw(value).cast_mut());
        filled
    }
}

/// Empties the place when dropped. Sleeps.
pub(crate) struct Filled<T: Send + Sync + 'static>(&'static Slot<T>);

impl<T: Send + Sync + 'static> Filled<T> {
    fn exchange(&self, value: *mut T) {
        let before = self.0 .0.swap(value, Release);
        if !before.is_null() {
            rcu::synchronize_rcu();
            // SAFETY: From `Arc::into_raw`, and nobody is looking at it any more (type invariant).
            drop(unsafe { Arc::from_raw(before) });
        }
    }
}

impl<T: Send + Sync + 'static> Drop for Filled<T> {
    fn drop(&mut self) {
        self.exchange(ptr::null_mut());
    }
}
