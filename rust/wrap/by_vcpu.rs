// SPDX-License-Identifier: GPL-2.0
//! What is kept for each vCPU, found from a probe without a lock.
//!
//! A hash table by the vCPU's address and another by its LAPIC's, and before the first for each CPU a
//! pointer to what it found last: a vCPU that runs again where it ran before costs a load and a
//! comparison.
//!
//! An [`Entry`] is made by its owner ([`Owned`]), connected to a vCPU in any context and
//! disconnected in any context; from then on no probe finds it. It is freed only when no probe can
//! still be in it and no CPU remembers it: [`ByVcpu::settle`] sees to that for all that are
//! disconnected, by turns.
//!
//! Locks: `settling` (mutex), one at a time; `writer`, taken to connect and disconnect only,
//! innermost.

mod owned;

pub(crate) use owned::Owned;

use super::{
    accepts::Accepted,
    events::FaultingVcpu,
    in_task::InTask,
    kvm::{LiveVm, VcpuId, VmId},
    percpu::PerCpuPointer,
    probes::{self, RunningVcpu},
};
use crate::pure::{events::Events, exits::Record};
use core::{
    ptr::{self, NonNull},
    sync::atomic::{
        AtomicPtr, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};
use kernel::{
    bindings, new_mutex, new_spinlock_irq,
    prelude::*,
    sync::{Arc, Mutex, SpinLockIrq},
};

const BUCKETS: usize = 1024;

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

/// What an entry is found by.
#[derive(Clone, Copy)]
enum By {
    Vcpu,
    Lapic,
}

const ALL: [By; 2] = [By::Vcpu, By::Lapic];

/// An entry's place in one of the tables.
struct Link<T> {
    /// An address, or 0 while not connected, and of a vCPU without a LAPIC.
    key: AtomicUsize,
    next: AtomicPtr<Entry<T>>,
}

/// An entry of the tables. The value is first, so that the hot path needs no other pointer than the
/// entry's.
#[repr(C)]
pub(crate) struct Entry<T> {
    value: T,
    /// By [`By`].
    links: [Link<T>; 2],
    /// The address of the vCPU's VM.
    vm: AtomicUsize,
    /// After which turn of settling it may be freed. 0 if it was never connected.
    free_after: AtomicU64,
}

impl<T> Entry<T> {
    #[inline(always)]
    fn link(&self, by: By) -> &Link<T> {
        let [vcpu, lapic] = &self.links;
        match by {
            By::Vcpu => vcpu,
            By::Lapic => lapic,
        }
    }

    #[inline(always)]
    fn key(&self, by: By) -> usize {
        self.link(by).key.load(Relaxed)
    }
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
    /// By [`By`], one behind the other.
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
        let mut buckets = KVVec::with_capacity(ALL.len() * BUCKETS, GFP_KERNEL)?;
        for _ in 0..ALL.len() * BUCKETS {
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

    fn bucket(&self, by: By, key: usize) -> Option<&AtomicPtr<Entry<T>>> {
        // The high bits of a multiplication depend on all that distinguishes addresses.
        let hash = (key as u64).wrapping_mul(0x61c8_8646_80b5_83eb) >> (64 - 10);
        self.buckets.get(by as usize * BUCKETS + hash as usize)
    }

    /// The buckets of vCPUs: all entries are in one of them.
    fn all(&self) -> &[AtomicPtr<Entry<T>>] {
        self.buckets.get(..BUCKETS).unwrap_or_default()
    }

    /// The entry with that key.
    ///
    /// # Safety
    ///
    /// For `'a` settling waits for the caller, or it holds `writer` (then entries stay connected).
    unsafe fn search<'a>(&self, by: By, key: usize) -> Option<&'a Entry<T>> {
        let mut at = self.bucket(by, key)?.load(Acquire);
        // SAFETY: Connected when loaded (type invariant), and it stays for `'a`: the caller's promise.
        while let Some(entry) = unsafe { at.cast_const().as_ref() } {
            if entry.key(by) == key {
                return Some(entry);
            }
            at = entry.link(by).next.load(Acquire);
        }
        None
    }

    /// What is kept for the vCPU that runs, if this CPU remembers it.
    #[inline(always)]
    pub(crate) fn remembered<'a>(&self, vcpu: RunningVcpu<'a>) -> Option<&'a T> {
        // SAFETY: Not to be freed yet (type invariant), and settling waits for the probe we are in.
        let last = unsafe { self.last.get().as_ref() }?;
        (last.key(By::Vcpu) == vcpu.id().0).then_some(&last.value)
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
            Some(last) if last.key(By::Vcpu) == vcpu.0 => Some(&last.value),
            _ => self.find_by(vcpu, task),
        }
    }

    /// What is kept for the vCPU that the task runs, if anything. This CPU will remember it.
    pub(crate) fn of<'a>(&self, vcpu: FaultingVcpu<'a>, task: InTask<'a>) -> Option<&'a T> {
        self.find_by(vcpu.id(), task)
    }

    /// What is kept for the vCPU whose LAPIC has accepted an interrupt, if anything, and its VM.
    pub(crate) fn of_lapic<'a>(&self, accepted: &Accepted<'a>) -> Option<(LiveVm<'a>, &'a T)> {
        // SAFETY: Preemption is off for `'a`, and settling waits for RCU.
        let entry = unsafe { self.search(By::Lapic, accepted.lapic().get()) }?;
        let vm = ptr::with_exposed_provenance_mut(entry.vm.load(Relaxed));
        // SAFETY: KVM's function that we are called at begins with that LAPIC in hand, which goes
        // with its VM only; and for `'a` it has not gone on.
        let vm = unsafe { LiveVm::new(NonNull::new(vm)?) };
        Some((vm, &entry.value))
    }

    /// What `which` chooses, if it chooses any: it is asked of what this CPU remembers first, which is nearly
    /// always right. Else all are walked with preemption off: [`BUCKETS`] loads, and what each vCPU there
    /// is costs `which`.
    pub(crate) fn choose<'a>(&self, _: InTask<'a>, which: impl Fn(&T) -> bool) -> Option<&'a T> {
        // SAFETY: As in `of_loaded`.
        let last = unsafe { self.last.get().as_ref() };
        if let Some(last) = last.filter(|last| which(&last.value)) {
            return Some(&last.value);
        }
        for bucket in self.all() {
            let mut at = bucket.load(Acquire);
            // SAFETY: Connected when loaded (type invariant), and freed only after the probe we are
            // in.
            while let Some(entry) = unsafe { at.cast_const().as_ref() } {
                if which(&entry.value) {
                    return Some(&entry.value);
                }
                at = entry.link(By::Vcpu).next.load(Acquire);
            }
        }
        None
    }

    /// What is kept for a vCPU, if anything. This CPU, on which the probe stays, will remember it.
    fn find_by<'a>(&self, vcpu: VcpuId, _: InTask<'a>) -> Option<&'a T> {
        // SAFETY: Settling waits for the probe we are in.
        let entry = unsafe { self.search(By::Vcpu, vcpu.0) }?;
        // INVARIANT: Connected; should it be disconnected meanwhile, settling waits for us before it
        // clears the pointers.
        self.last.set(core::ptr::from_ref(entry).cast_mut());
        Some(&entry.value)
    }

    /// Whether something is kept for that vCPU. Any context.
    pub(crate) fn contains(&self, vcpu: VcpuId) -> bool {
        let _writer = self.writer.lock();
        // SAFETY: With `writer` held.
        unsafe { self.search(By::Vcpu, vcpu.0) }.is_some()
    }

    /// Call `visit` for all that is kept. Any context; `visit` does not sleep.
    pub(crate) fn each(&self, visit: impl Fn(&T)) {
        let _writer = self.writer.lock();
        for bucket in self.all() {
            let mut at = bucket.load(Relaxed);
            // SAFETY: Connected (type invariant), and its owner disconnects it under `writer` first.
            while let Some(entry) = unsafe { at.cast_const().as_ref() } {
                visit(&entry.value);
                at = entry.link(By::Vcpu).next.load(Relaxed);
            }
        }
    }

    /// Disconnect all that is kept for a VM's vCPUs. Any context.
    pub(crate) fn disconnect_vm(&self, vm: VmId) {
        let _writer = self.writer.lock();
        for by in ALL {
            for bucket in self
                .buckets
                .iter()
                .skip(by as usize * BUCKETS)
                .take(BUCKETS)
            {
                self.unlink(by, bucket, |entry| entry.vm.load(Relaxed) == vm.0);
            }
        }
    }

    /// Disconnect those of a bucket that `which` chooses; with `writer` held.
    fn unlink(&self, by: By, bucket: &AtomicPtr<Entry<T>>, which: impl Fn(&Entry<T>) -> bool) {
        let mut link = bucket;
        // SAFETY: Connected (type invariant), and its owner disconnects it under `writer` first.
        while let Some(entry) = unsafe { link.load(Relaxed).cast_const().as_ref() } {
            let Link { key, next } = entry.link(by);
            if which(entry) {
                key.store(0, Relaxed);
                link.store(next.load(Relaxed), Release);
                // The turn that begins next sees it disconnected.
                entry
                    .free_after
                    .store(self.begun.load(Relaxed) + 1, Release);
            } else {
                link = next;
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
        // From here on no CPU begins to remember one, and no hook that is no probe is in one ...
        probes::synchronize();
        // SAFETY: Process context, as the callers' is, which may sleep.
        unsafe { bindings::synchronize_rcu() };
        self.last.clear_everywhere(|entry| {
            // SAFETY: What a CPU remembers is not freed yet (type invariant): not before this turn.
            unsafe { (*entry).key(By::Vcpu) == 0 }
        });
        // ... and from here on nobody looks at what a CPU remembered.
        probes::synchronize();
        self.done.store(turn, Release);
    }
}
