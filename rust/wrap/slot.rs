// SPDX-License-Identifier: GPL-2.0
//! A place for what calls without any data of ours want: a miscellaneous device's `open()`.

use core::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};
use kernel::{bindings, prelude::*, sync::rcu, sync::Arc};

/// A static place that may have something.
///
/// # Invariants
///
/// The pointer is null or from `Arc::into_raw()` with the reference that a [`Filled`] puts, a grace
/// period after the pointer is null.
pub(crate) struct Slot<T: Send + Sync + 'static>(AtomicPtr<T>);

/// Something is in the slot while this is there.
pub(crate) struct Filled<T: Send + Sync + 'static>(&'static Slot<T>);

impl<T: Send + Sync + 'static> Slot<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Put something in. `EBUSY`: there is something.
    pub(crate) fn fill(&'static self, value: Arc<T>) -> Result<Filled<T>> {
        let value = Arc::into_raw(value).cast_mut();
        let put =
            self.0
                .compare_exchange(ptr::null_mut(), value, Ordering::Release, Ordering::Relaxed);
        match put {
            Ok(_) => Ok(Filled(self)),
            Err(_) => {
                // SAFETY: From `into_raw()` above, and nobody else has it.
                drop(unsafe { Arc::from_raw(value) });
                Err(EBUSY)
            }
        }
    }

    /// What is in it.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        let _guard = rcu::read_lock();
        let value = self.0.load(Ordering::Acquire);
        if value.is_null() {
            return None;
        }
        // SAFETY: From `into_raw()`, and its reference is there until a grace period after we loaded
        // it (type invariant): the borrow ends with the guard.
        let borrowed = unsafe { kernel::sync::ArcBorrow::from_raw(value) };
        Some(borrowed.into())
    }
}

impl<T: Send + Sync + 'static> Drop for Filled<T> {
    fn drop(&mut self) {
        let value = self.0 .0.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: Process context.
        unsafe { bindings::synchronize_rcu() };
        // SAFETY: From `into_raw()`; by the invariant its reference is ours to put.
        drop(unsafe { Arc::from_raw(value) });
    }
}
