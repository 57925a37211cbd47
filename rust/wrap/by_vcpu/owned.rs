// SPDX-License-Identifier: GPL-2.0
//! The owner of an entry of [`ByVcpu`]'s tables, of which it is a part: makes, connects, frees it.

use super::{By, ByVcpu, Entry, ZeroIsNew, ALL};
use crate::wrap::kvm::{Lapic, VcpuId, VmId};
use core::{
    ops::Deref,
    ptr::{self, NonNull},
    sync::atomic::Ordering::{Acquire, Relaxed, Release},
};
use kernel::{prelude::*, sync::Arc};

/// What a vCPU may cost.
const ENTRY_LIMIT: usize = 256 << 10;

/// The owner of an entry. Dropping it waits for probes (sleeps), unless that was done already.
///
/// # Invariants
///
/// The entry is a live box that only this owns.
pub(crate) struct Owned<T: Sync + Send + ZeroIsNew + 'static> {
    entry: NonNull<Entry<T>>,
    table: Arc<ByVcpu<T>>,
}

// SAFETY: It owns a `T` and shares atomics.
unsafe impl<T: Sync + Send + ZeroIsNew> Send for Owned<T> {}
// SAFETY: As above.
unsafe impl<T: Sync + Send + ZeroIsNew> Sync for Owned<T> {}

impl<T: Sync + Send + ZeroIsNew> Owned<T> {
    /// A new entry, not connected yet. It takes [`ENTRY_LIMIT`] at most.
    pub(crate) fn new(table: &Arc<ByVcpu<T>>) -> Result<Self> {
        const { assert!(size_of::<Entry<T>>() <= ENTRY_LIMIT) };
        let entry = KVBox::<Entry<T>>::new_uninit(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN)?;
        // SAFETY: The memory is zeroed, and zero is a value (trait).
        let entry = KVBox::into_raw(unsafe { entry.assume_init() });
        Ok(Self {
            // SAFETY: From a box.
            entry: unsafe { NonNull::new_unchecked(entry) },
            table: table.clone(),
        })
    }

    fn entry(&self) -> &Entry<T> {
        // SAFETY: Live (type invariant).
        unsafe { self.entry.as_ref() }
    }

    /// Let probes on that vCPU, and what its LAPIC gets if it has one, find it. Once; any context.
    pub(crate) fn connect(&self, vm: VmId, vcpu: VcpuId, lapic: Option<Lapic>) {
        let _writer = self.table.writer.lock();
        self.entry().vm.store(vm.0, Relaxed);
        for (by, key) in [(By::Vcpu, vcpu.0), (By::Lapic, lapic.map_or(0, Lapic::get))] {
            let Some(bucket) = self.table.bucket(by, key).filter(|_| key != 0) else {
                continue;
            };
            let link = self.entry().link(by);
            link.key.store(key, Relaxed);
            link.next.store(bucket.load(Relaxed), Relaxed);
            // INVARIANT: Live, connected, and under `writer`.
            bucket.store(self.entry.as_ptr(), Release);
        }
    }

    /// Let no probe find it any more. Any context.
    pub(crate) fn disconnect(&self) {
        let _writer = self.table.writer.lock();
        for by in ALL {
            let bucket = match self.entry().key(by) {
                0 => None,
                key => self.table.bucket(by, key),
            };
            if let Some(bucket) = bucket {
                self.table
                    .unlink(by, bucket, |entry| ptr::eq(entry, self.entry()));
            }
        }
    }
}

impl<T: Sync + Send + ZeroIsNew> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.entry().value
    }
}

impl<T: Sync + Send + ZeroIsNew> Drop for Owned<T> {
    fn drop(&mut self) {
        self.disconnect();
        if self.entry().free_after.load(Acquire) > self.table.done.load(Acquire) {
            self.table.settle();
        }
        // SAFETY: The box that `new` took apart (type invariant); nobody is in it any more.
        drop(unsafe { KVBox::from_raw(self.entry.as_ptr()) });
    }
}
