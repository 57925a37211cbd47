// SPDX-License-Identifier: GPL-2.0
//! What is kept for each vCPU, found from a probe without a lock.
//!
//! A hash table by the vCPU's address, and before it for each CPU a pointer to what it found last: a
//! vCPU that runs again where it ran before costs a load and a comparison.
//!
//! An [`Entry`] is made by its owner ([`Owned`]), connected to a vCPU in any context and
//! disconnected in any context; from then on no probe finds it. It is freed only when no probe can
//! still be in it and no CPU remembers it: [`ByVcpu::settle`] sees to that for all that are
//! disconnected, by turns.
//!
//! Locks: `settling` (mutex), one at a time; `writer`, taken to connect and disconnect only,
//! innermost.

use super::{
    events::FaultingVcpu,
    in_task::InTask,
    kvm::{VcpuId, VmId},
    percpu::PerCpuPointer,
    probes::{self, RunningVcpu},
};
use crate::pure::{events::Events, exits::Record};
use core::{
    ops::Deref,
    ptr::{self, NonNull},
    sync::atomic::{
        AtomicPtr, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};
use kernel::{
    new_mutex, new_spinlock_irq,
    prelude::*,
    sync::{Arc, Mutex, SpinLockIrq},
};

const BUCKETS: usize = 1024;

/// What a vCPU may cost.
const ENTRY_LIMIT: usize = 256 << 10;

/// A type of which all zero bytes are a value.
///
/// # Safety
///
/// That is so.
pub(crate) unsafe trait ZeroIsNew {}

// SAFETY: Atomic integers and arrays of them.
unsafe impl ZeroIsNew for Record {}
// SAFETY: As above.
unsafe impl ZeroIsNew for Events {}
// SAFETY: Zero is a value of each part.
unsafe impl<A: ZeroIsNew, B: ZeroIsNew, C: ZeroIsNew> ZeroIsNew for (A, B, C) {}

/// An entry of the table.
pub(crate) struct Entry<T> {
    /// The address of the vCPU, or 0 while not connected.
    key: AtomicUsize,
    /// That of its VM.
    vm: AtomicUsize,
    next: AtomicPtr<Entry<T>>,
    /// After which turn of settling it may be freed. 0 if it was never connected.
    free_after: AtomicU64,
    value: T,
}

// SAFETY: Zero is a value of the atomics, and of `T`.
unsafe impl<T: ZeroIsNew> ZeroIsNew for Entry<T> {}

/// The table.
///
/// # Invariants
///
/// Buckets and `next` pointers are null or point to entries that are connected and live; they
/// change under `writer` only. A CPU's pointer is null or points to an entry that may not be freed
/// yet.
#[pin_data]
pub(crate) struct ByVcpu<T> {
    last: PerCpuPointer<Entry<T>>,
    buckets: KVVec<AtomicPtr<Entry<T>>>,
    #[pin]
    writer: SpinLockIrq<()>,
    #[pin]
    settling: Mutex<()>,
    /// Turns of settling that have begun, and that are done.
    begun: AtomicU64,
    done: AtomicU64,
}

impl<T: Sync + Send + ZeroIsNew + 'static> ByVcpu<T> {
    /// An empty table.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let mut buckets = KVVec::with_capacity(BUCKETS, GFP_KERNEL)?;
        for _ in 0..BUCKETS {
            buckets.push(AtomicPtr::new(ptr::null_mut()), GFP_KERNEL)?;
        }
        let last = PerCpuPointer::new()?;
        // INVARIANT: All null.
        Arc::pin_init(
            pin_init!(Self {
                last,
                buckets,
                writer <- new_spinlock_irq!(()),
                settling <- new_mutex!(()),
                begun: AtomicU64::new(0),
                done: AtomicU64::new(0),
            }),
            GFP_KERNEL,
        )
    }

    fn bucket(&self, vcpu: usize) -> Option<&AtomicPtr<Entry<T>>> {
        // The high bits of a multiplication depend on all that distinguishes addresses.
        let hash = (vcpu as u64).wrapping_mul(0x61c8_8646_80b5_83eb) >> (64 - 10);
        self.buckets.get(hash as usize)
    }

    /// What is kept for the vCPU that runs, if this CPU remembers it.
    #[inline(always)]
    pub(crate) fn remembered<'a>(&self, vcpu: RunningVcpu<'a>) -> Option<&'a T> {
        // SAFETY: Not to be freed yet (type invariant), and settling waits for the probe we are in.
        let last = unsafe { self.last.get().as_ref() }?;
        (last.key.load(Relaxed) == vcpu.id().0).then_some(&last.value)
    }

    /// What is kept for the vCPU that runs, if anything. This CPU will remember it.
    pub(crate) fn find<'a>(&self, vcpu: RunningVcpu<'a>) -> Option<&'a T> {
        self.find_by(vcpu.id(), vcpu.in_task())
    }

    /// What is kept for the vCPU that the task has loaded, if anything. This CPU will remember it.
    pub(crate) fn of_loaded<'a>(&self, task: InTask<'a>) -> Option<&'a T> {
        let vcpu = task.loaded()?;
        // SAFETY: Not to be freed yet (type invariant), and settling waits for the probe we are in.
        let last = unsafe { self.last.get().as_ref() };
        match last {
            Some(last) if last.key.load(Relaxed) == vcpu.0 => Some(&last.value),
            _ => self.find_by(vcpu, task),
        }
    }

    /// What is kept for the vCPU that the task runs, if anything. This CPU will remember it.
    pub(crate) fn of<'a>(&self, vcpu: FaultingVcpu<'a>, task: InTask<'a>) -> Option<&'a T> {
        self.find_by(vcpu.id(), task)
    }

    /// What `which` chooses, if it chooses any: it is asked of what this CPU remembers first.
    pub(crate) fn choose<'a>(&self, _: InTask<'a>, which: impl Fn(&T) -> bool) -> Option<&'a T> {
        // SAFETY: As in `of_loaded`.
        let last = unsafe { self.last.get().as_ref() };
        if let Some(last) = last.filter(|last| which(&last.value)) {
            return Some(&last.value);
        }
        for bucket in self.buckets.iter() {
            let mut at = bucket.load(Acquire);
            // SAFETY: Connected when loaded (type invariant), and freed only after the probe we are
            // in.
            while let Some(entry) = unsafe { at.cast_const().as_ref() } {
                if which(&entry.value) {
                    return Some(&entry.value);
                }
                at = entry.next.load(Acquire);
            }
        }
        None
    }

    /// What is kept for a vCPU, if anything. This CPU, on which the probe stays, will remember it.
    fn find_by<'a>(&self, vcpu: VcpuId, _: InTask<'a>) -> Option<&'a T> {
        let key = vcpu.0;
        let mut at = self.bucket(key)?.load(Acquire);
        // SAFETY: Connected when loaded (type invariant), and freed only after the probe we are in.
        while let Some(entry) = unsafe { at.cast_const().as_ref() } {
            if entry.key.load(Relaxed) == key {
                // INVARIANT: Connected; should it be disconnected meanwhile, settling waits for us
                // before it clears the pointers.
                self.last.set(at);
                return Some(&entry.value);
            }
            at = entry.next.load(Acquire);
        }
        None
    }

    /// Whether something is kept for that vCPU. Any context.
    pub(crate) fn contains(&self, vcpu: VcpuId) -> bool {
        let _writer = self.writer.lock();
        let mut at = self.bucket(vcpu.0).map(|bucket| bucket.load(Relaxed));
        // SAFETY: Connected (type invariant), and its owner disconnects it under `writer` first.
        while let Some(entry) = at.and_then(|at| unsafe { at.cast_const().as_ref() }) {
            if entry.key.load(Relaxed) == vcpu.0 {
                return true;
            }
            at = Some(entry.next.load(Relaxed));
        }
        false
    }

    /// Call `visit` for all that is kept. Any context; `visit` does not sleep.
    pub(crate) fn each(&self, visit: impl Fn(&T)) {
        let _writer = self.writer.lock();
        for bucket in self.buckets.iter() {
            let mut at = bucket.load(Relaxed);
            // SAFETY: Connected (type invariant), and its owner disconnects it under `writer` first.
            while let Some(entry) = unsafe { at.cast_const().as_ref() } {
                visit(&entry.value);
                at = entry.next.load(Relaxed);
            }
        }
    }

    /// Disconnect all that is kept for a VM's vCPUs. Any context.
    pub(crate) fn disconnect_vm(&self, vm: VmId) {
        let _writer = self.writer.lock();
        for bucket in self.buckets.iter() {
            self.unlink(bucket, |entry| entry.vm.load(Relaxed) == vm.0);
        }
    }

    /// Disconnect those of a bucket that `which` chooses; with `writer` held.
    fn unlink(&self, bucket: &AtomicPtr<Entry<T>>, which: impl Fn(&Entry<T>) -> bool) {
        let mut link = bucket;
        // SAFETY: Connected (type invariant), and its owner disconnects it under `writer` first.
        while let Some(entry) = unsafe { link.load(Relaxed).cast_const().as_ref() } {
            if which(entry) {
                entry.key.store(0, Relaxed);
                link.store(entry.next.load(Relaxed), Release);
                // The turn that begins next sees it disconnected.
                entry
                    .free_after
                    .store(self.begun.load(Relaxed) + 1, Release);
            } else {
                link = &entry.next;
            }
        }
    }

    /// Wait until no probe is in any entry that was disconnected before, and no CPU remembers one,
    /// so that dropping them does not have to. Sleeps.
    pub(crate) fn settle(&self) {
        let _settling = self.settling.lock();
        let turn = {
            let _writer = self.writer.lock();
            let turn = self.begun.load(Relaxed) + 1;
            self.begun.store(turn, Relaxed);
            turn
        };
        // From here on no CPU begins to remember one ...
        probes::synchronize();
        self.last.clear_everywhere(|entry| {
            // SAFETY: What a CPU remembers is not freed yet (type invariant): not before this turn.
            unsafe { (*entry).key.load(Relaxed) == 0 }
        });
        // ... and from here on nobody looks at what a CPU remembered.
        probes::synchronize();
        self.done.store(turn, Release);
    }
}

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

    /// Let probes on that vCPU find it. Once; any context.
    pub(crate) fn connect(&self, vm: VmId, vcpu: VcpuId) {
        let Some(bucket) = self.table.bucket(vcpu.0) else {
            return;
        };
        let _writer = self.table.writer.lock();
        self.entry().vm.store(vm.0, Relaxed);
        self.entry().key.store(vcpu.0, Relaxed);
        self.entry().next.store(bucket.load(Relaxed), Relaxed);
        // INVARIANT: Live, connected, and under `writer`.
        bucket.store(self.entry.as_ptr(), Release);
    }

    /// Let no probe find it any more. Any context.
    pub(crate) fn disconnect(&self) {
        let _writer = self.table.writer.lock();
        let bucket = match self.entry().key.load(Relaxed) {
            0 => None,
            key => self.table.bucket(key),
        };
        if let Some(bucket) = bucket {
            self.table
                .unlink(bucket, |entry| ptr::eq(entry, self.entry()));
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
