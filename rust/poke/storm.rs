// SPDX-License-Identifier: GPL-2.0
//! Storms: so many injections at such a rate.
//!
//! A timer (interrupt context) looks at the clock and sends what is due: MSIs at once, of a GSI's it tells
//! the worker. It never sends more than [`pace::AT_ONCE`] at a time, and rests three times as long as it
//! worked, so that a rate that cannot be kept is not kept, and nothing else is hurt.
//!
//! Owner: [`super::Target`] has the last one of its VM, with the timer; the worker holds a reference while it
//! has something to do. End: [`Running`] is dropped when the next begins and when the VM has ended; `stop` is
//! behind both gates, so that nothing is sent when it has returned.

use super::Poke;
use crate::{
    pure::{
        inject::{self as text, Msi, Of},
        pace,
    },
    see::Vm,
    wrap::{command::Command, debugfs::Table, gate::InTask, irq::Taken},
};
use core::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use kernel::{
    impl_has_hr_timer, new_work,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::{Arc, ArcBorrow},
    time::{
        hrtimer::{
            ArcHrTimerHandle, HrTimer, HrTimerCallback, HrTimerCallbackContext, HrTimerPointer,
            HrTimerRestart, RelativeMode,
        },
        Delta, Instant, Monotonic,
    },
    workqueue::{impl_has_work, Work, WorkItem},
};

/// How many GSIs wait for the worker at most.
const BEHIND: u64 = 1024;

/// A storm.
#[pin_data]
pub(super) struct Storm {
    #[pin]
    timer: HrTimer<Storm>,
    #[pin]
    work: Work<Storm>,
    vm: Arc<Vm>,
    poke: Arc<Poke>,
    of: Of,
    count: u64,
    rate: u64,
    begun: Instant<Monotonic>,
    /// The timer's own: when it looked last, since `begun`, and what it had left over.
    looked: AtomicI64,
    left: AtomicU64,
    /// Given out by the timer.
    due: AtomicU64,
    /// What became of them.
    delivered: AtomicU64,
    coalesced: AtomicU64,
    failed: AtomicU64,
    /// Set behind both gates.
    stopped: AtomicBool,
    /// The VM has ended.
    ended: AtomicBool,
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Storm {
        mode: RelativeMode<Monotonic>, field: self.timer
    }
}
impl_has_work! {
    impl HasWork<Self> for Storm { self.work }
}

impl Storm {
    fn new(vm: &Arc<Vm>, poke: &Arc<Poke>, of: Of, count: u64, rate: u64) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                timer <- HrTimer::new(),
                work <- new_work!("kvmate::storm"),
                vm: vm.clone(),
                poke: poke.clone(),
                of,
                count,
                rate,
                begun: Instant::now(),
                looked: AtomicI64::new(0),
                left: AtomicU64::new(0),
                due: AtomicU64::new(0),
                delivered: AtomicU64::new(0),
                coalesced: AtomicU64::new(0),
                failed: AtomicU64::new(0),
                stopped: AtomicBool::new(false),
                ended: AtomicBool::new(false),
            }),
            GFP_KERNEL,
        )
    }

    /// How many were sent.
    fn sent(&self) -> u64 {
        [&self.delivered, &self.coalesced, &self.failed]
            .iter()
            .map(|counter| counter.load(Acquire))
            .sum()
    }

    fn state(&self) -> &'static str {
        if self.sent() == self.count {
            "done"
        } else if self.stopped.load(Relaxed) {
            "stopped"
        } else if self.ended.load(Relaxed) {
            "ended"
        } else {
            "running"
        }
    }

    fn count(&self, taken: Result<Taken>) {
        let counter = match taken {
            Ok(Taken::Delivered) => &self.delivered,
            Ok(Taken::Coalesced) => &self.coalesced,
            Ok(Taken::Ignored) | Err(_) => &self.failed,
        };
        counter.fetch_add(1, AcqRel);
    }

    /// Send so many MSIs. No sleep.
    fn send(&self, msi: Msi, count: u64) {
        let sent = self.vm.gate.enter_irq_off(|vm| {
            if !self.stopped.load(Relaxed) {
                (0..count).for_each(|_| self.count(vm.send_msi(msi)));
            }
        });
        if sent.is_none() {
            self.ended.store(true, Relaxed);
        }
    }

    /// Send one of a GSI's, in the worker. `None`: no more are to be sent.
    fn send_gsi(&self, gsi: u32) -> Option<()> {
        let gate = &self.vm.gate;
        let stopped = || self.stopped.load(Relaxed);
        let by_msi = gate.enter_irq_off(|vm| match stopped() {
            true => None,
            false => Some(vm.send_gsi(gsi)),
        });
        let pulse = |vm: InTask<'_>| match stopped() {
            true => None,
            false => Some(vm.pulse_gsi(gsi)),
        };
        let taken = match by_msi {
            Some(Some(Err(EAGAIN))) => gate.enter(pulse),
            other => other,
        };
        let Some(taken) = taken else {
            self.ended.store(true, Relaxed);
            return None;
        };
        self.count(taken?);
        Some(())
    }

    /// Nothing more is sent when this returns.
    fn stop(&self) {
        let stop = || self.stopped.store(true, Relaxed);
        self.vm.gate.enter_irq_off(|_| stop());
        self.vm.gate.enter(|_| stop());
        stop();
    }

    /// The timer: send what is due. Whether more is to come.
    fn look(this: ArcBorrow<'_, Self>) -> bool {
        if this.stopped.load(Relaxed) || this.ended.load(Relaxed) {
            return false;
        }
        let now = this.begun.elapsed().as_nanos();
        let elapsed = now.saturating_sub(this.looked.swap(now, Relaxed));
        let left = this.left.load(Relaxed);
        let (due, left) = pace::due(this.rate, elapsed.try_into().unwrap_or(0), left);
        this.left.store(left, Relaxed);
        let given = this.due.load(Relaxed);
        let mut due = due.min(this.count.saturating_sub(given));
        if let Of::Gsi(_) = this.of {
            let behind = given.saturating_sub(this.sent());
            due = due.min(BEHIND.saturating_sub(behind));
        }
        this.due.store(given + due, Relaxed);
        match this.of {
            _ if due == 0 => {}
            Of::Msi(msi) => this.send(msi, due),
            Of::Gsi(_) => this.poke.enqueue(Arc::from(this)),
        }
        given + due < this.count
    }
}

impl HrTimerCallback for Storm {
    type Pointer<'a> = Arc<Self>;

    fn run(
        this: ArcBorrow<'_, Self>,
        mut context: HrTimerCallbackContext<'_, Self>,
    ) -> HrTimerRestart {
        let before = Instant::<Monotonic>::now();
        if !Self::look(this) {
            return HrTimerRestart::NoRestart;
        }
        let worked = before.elapsed().as_nanos();
        let rest = i64::try_from(pace::interval(this.rate)).unwrap_or(i64::MAX);
        context.forward_now(Delta::from_nanos(rest.max(worked.saturating_mul(4))));
        HrTimerRestart::Restart
    }
}

impl WorkItem for Storm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let Of::Gsi(gsi) = this.of else { return };
        for _ in 0..pace::AT_ONCE {
            if this.sent() >= this.due.load(Relaxed) {
                return;
            }
            if this.send_gsi(gsi).is_none() {
                return;
            }
        }
        this.poke.enqueue(this.clone());
    }
}

/// A storm that has begun, and its timer. Dropping it waits for the timer.
pub(super) struct Running {
    storm: Arc<Storm>,
    _timer: ArcHrTimerHandle<Storm>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.storm.stop();
    }
}

/// `vms/*/storm`
pub(crate) struct StormFile {
    vm: Arc<Vm>,
    poke: Arc<Poke>,
}

impl StormFile {
    /// For that VM.
    pub(crate) fn new(vm: Arc<Vm>, poke: Arc<Poke>) -> Self {
        Self { vm, poke }
    }
}

impl Command for StormFile {
    /// `EINVAL`: no request. `EPERM`: not allowed. `EBUSY`: one is running. `EIO`: the VM has ended.
    fn run(&self, text: Option<&[u8]>) -> Result {
        let request = text.and_then(text::parse_storm);
        let (of, count, rate) = match request {
            Some(text::Storm::Stop) => {
                if let Some(running) = &*self.vm.poke.storm.lock() {
                    running.storm.stop();
                }
                return Ok(());
            }
            _ if !self.poke.allowed() => return Err(EPERM),
            Some(text::Storm::Begin { of, count, rate }) => (of, count, rate),
            None => return Err(EINVAL),
        };
        let storm = Storm::new(&self.vm, &self.poke, of, count, rate)?;
        let mut last = self.vm.poke.storm.lock();
        if last
            .as_ref()
            .is_some_and(|running| running.storm.state() == "running")
        {
            return Err(EBUSY);
        }
        // Asked under the lock that the end takes: either it finds this one, or this finds the end.
        if self.vm.gate.enter(|_| ()).is_none() {
            return Err(EIO);
        }
        let first = Delta::from_nanos(pace::interval(rate) as i64);
        *last = Some(Running {
            _timer: storm.clone().start(first),
            storm,
        });
        Ok(())
    }
}

impl Table for StormFile {
    fn show(&self, out: &SeqFile) -> Result {
        seq_print!(out, "state sent delivered coalesced failed\n");
        let last = self.vm.poke.storm.lock();
        let Some(storm) = last.as_ref().map(|running| &running.storm) else {
            seq_print!(out, "- 0 0 0 0\n");
            return Ok(());
        };
        let number = |counter: &AtomicU64| counter.load(Relaxed);
        let (state, delivered, failed) = (
            storm.state(),
            number(&storm.delivered),
            number(&storm.failed),
        );
        let coalesced = number(&storm.coalesced);
        let sent = delivered + coalesced + failed;
        match storm.of {
            // An MSI that coalesces is answered as delivered.
            Of::Msi(_) => seq_print!(out, "{state} {sent} {delivered} - {failed}\n"),
            Of::Gsi(_) => seq_print!(out, "{state} {sent} {delivered} {coalesced} {failed}\n"),
        }
        Ok(())
    }
}
