// SPDX-License-Identifier: GPL-2.0
//! How long bindings' interrupts take, from the signal to the injection and to the guest's EOI; the table
//! `latency` of a VM.
//!
//! While `knobs/latency` is 1 three probes of KVM stand ([`crate::wrap::way_probes`]). What is accepted by
//! a LAPIC while a binding sends is that binding's, and is followed until its vector is injected
//! into that vCPU, and ended by its guest; see [`crate::pure::latency`]. What goes through the PIC is
//! not told.
//!
//! Locks: `followed`, inside it `Timed::way` (spinlocks, interrupts off), innermost: probes take them
//! with KVM's locks held, and call nothing of KVM inside.

use super::binding::Binding;
use crate::{
    pure::{
        cycles,
        latency::{Followed, Times, Way},
    },
    see::Vm,
    wrap::{
        debugfs::Table,
        gate::InTask,
        kvm::LiveVm,
        tsc,
        way_probes::{Runner, Sending, Ways},
    },
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use kernel::{
    fmt, new_spinlock_irq,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::{Arc, ArcBorrow, SpinLockIrq},
};

/// One of each vector of a LAPIC.
const VECTORS: usize = 256;

/// What was timed of a binding.
#[pin_data]
pub(super) struct Timed {
    #[pin]
    way: SpinLockIrq<Way>,
    /// When the first that the worker has not delivered was signalled; 0: nobody waits for it, or it is not timed.
    waits: AtomicU64,
}

impl Timed {
    /// Nothing.
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                way <- new_spinlock_irq!(Way::EMPTY),
                waits: AtomicU64::new(0),
            }),
            GFP_KERNEL,
        )
    }
}

/// A binding that sends.
pub(super) struct Sender {
    timed: Arc<Timed>,
    signalled: u64,
}

/// How long an interrupt is followed, in cycles: a second.
fn long() -> u64 {
    u64::from(tsc::khz()) * 1000
}

type Slot = Option<(Followed<Runner>, Arc<Timed>)>;

/// What is followed, of all VMs.
#[pin_data]
pub(super) struct Latency {
    /// The probes stand.
    on: AtomicBool,
    pub(super) sending: Arc<Sending<Sender>>,
    #[pin]
    followed: SpinLockIrq<KVVec<Slot>>,
    /// Which of them there are, for a glance without the lock.
    some: [AtomicU64; VECTORS / 64],
}

impl Latency {
    /// Nothing.
    pub(super) fn new() -> Result<Arc<Self>> {
        let sending = Arc::new(Sending::new()?, GFP_KERNEL)?;
        let mut slots = KVVec::with_capacity(VECTORS, GFP_KERNEL)?;
        for _ in 0..VECTORS {
            slots.push(None, GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                on: AtomicBool::new(false),
                sending,
                followed <- new_spinlock_irq!(slots),
                some: [const { AtomicU64::new(0) }; VECTORS / 64],
            }),
            GFP_KERNEL,
        )
    }

    /// The probes stand, or go.
    pub(super) fn switch(&self, on: bool) {
        self.on.store(on, Relaxed);
    }

    /// When something was signalled, if it is timed. Any context.
    pub(super) fn signalled(&self) -> Option<u64> {
        self.on.load(Relaxed).then(tsc::now)
    }

    /// It waits for the worker.
    pub(super) fn wait(timed: &Timed, signalled: Option<u64>) {
        if let Some(signalled) = signalled {
            let _ = timed.waits.compare_exchange(0, signalled, Relaxed, Relaxed);
        }
    }

    /// Send what was signalled then, with interrupts off.
    pub(super) fn irq_off<R>(
        &self,
        timed: &Arc<Timed>,
        signalled: Option<u64>,
        vm: LiveVm<'_>,
        send: impl FnOnce(LiveVm<'_>) -> R,
    ) -> R {
        let Some(signalled) = signalled else {
            return send(vm);
        };
        let timed = timed.clone();
        self.sending.irq_off(&Sender { timed, signalled }, vm, send)
    }

    /// Send what waited, in the worker.
    pub(super) fn in_task<R>(
        &self,
        timed: &Arc<Timed>,
        vm: &InTask<'_>,
        send: impl FnOnce(&InTask<'_>) -> R,
    ) -> R {
        match timed.waits.swap(0, Relaxed) {
            0 => send(vm),
            signalled => {
                let timed = timed.clone();
                self.sending.in_task(&Sender { timed, signalled }, vm, send)
            }
        }
    }

    /// Do something with what is followed of a vector, if anything is. It may be taken out.
    fn with(&self, vector: u8, what: impl FnOnce(&mut Slot)) {
        let (word, bit) = (usize::from(vector) / 64, 1u64 << (vector % 64));
        let Some(some) = self.some.get(word) else {
            return;
        };
        if some.load(Relaxed) & bit == 0 {
            return;
        }
        let mut followed = self.followed.lock();
        if let Some(slot) = followed.get_mut(usize::from(vector)) {
            // What nobody ended in time is not what is heard of now.
            slot.take_if(|(one, _)| one.is_lost(tsc::now(), long()));
            what(slot);
            if slot.is_none() {
                some.fetch_and(!bit, Relaxed);
            }
        }
    }
}

impl Ways for Latency {
    type Sender = Sender;

    fn accepted(this: ArcBorrow<'_, Self>, sender: &Sender, vcpu: Runner, vector: u8) {
        let new = Followed::new(vcpu, sender.signalled);
        let mut followed = this.followed.lock();
        let Some(slot) = followed.get_mut(usize::from(vector)) else {
            return;
        };
        if slot
            .as_ref()
            .is_none_or(|(one, _)| one.is_lost(sender.signalled, long()))
        {
            *slot = Some((new, sender.timed.clone()));
            if let Some(some) = this.some.get(usize::from(vector) / 64) {
                some.fetch_or(1 << (vector % 64), Relaxed);
            }
        }
    }

    fn injected(this: ArcBorrow<'_, Self>, vector: u8) {
        this.with(vector, |slot| {
            if let Some((one, timed)) = slot {
                one.inject(Runner::current(), tsc::now(), &mut timed.way.lock());
            }
        });
    }

    fn ended(this: ArcBorrow<'_, Self>, vector: u8) {
        this.with(vector, |slot| {
            let ended = slot.as_ref().is_some_and(|(one, timed)| {
                one.end(Runner::current(), tsc::now(), &mut timed.way.lock())
            });
            if ended {
                *slot = None;
            }
        });
    }
}

/// A line's numbers; `-` for each where nothing was told.
struct Row {
    count: u64,
    sums: [u64; 6],
}

impl Row {
    fn of(times: &Times) -> Self {
        Self {
            count: times.count(),
            sums: times.sums(),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return f.write_str(" - - - - - - -");
        }
        write!(f, " {}", self.count)?;
        let mut sums = self.sums.iter();
        sums.try_for_each(|sum| write!(f, " {}", cycles::to_ns(*sum, tsc::khz())))
    }
}

/// `vms/*/latency`
pub(crate) struct LatencyTable(pub(crate) Arc<Vm>);

impl LatencyTable {
    fn show_one(out: &SeqFile, binding: &Binding) {
        let (injected, ended) = {
            let way = binding.timed.way.lock();
            (Row::of(&way.injected), Row::of(&way.ended))
        };
        for (stage, row) in [("injected", injected), ("ended", ended)] {
            seq_print!(out, "{} {stage}{row}\n", binding.what);
        }
    }
}

impl Table for LatencyTable {
    fn show(&self, out: &SeqFile) -> Result {
        let columns = "target stage count total_ns avg_ns p50_ns p99_ns p999_ns max_ns";
        seq_print!(out, "{columns}\n");
        for binding in self.0.poke.bindings.lock().iter() {
            Self::show_one(out, &binding);
        }
        Ok(())
    }
}
