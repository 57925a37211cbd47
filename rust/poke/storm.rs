// SPDX-License-Identifier: GPL-2.0
//! A storm: so many interrupts at such a rate.
//!
//! A timer (hrtimer, in interrupts) comes when the next one is due. What is routed to an MSI it
//! sends itself; for what is routed to pins it wakes a worker. If a route of the former kind becomes
//! one of the latter meanwhile, the worker goes on. So there is one who sends, and who counts.
//!
//! None is left out: what is late is sent as soon as can be, several at a time, and counted as late.
//! A timer that comes does no more than [`BURST`] and ends one that takes longer than [`LONG`]; then
//! it pauses for as long as it was late and at work ([`crate::pure::storm::pause`]). So it takes at most half of its CPU, a rate
//! that cannot be kept is not kept, and the table tells what was reached. The worker is a task as
//! any other, and leaves its CPU to others after each burst.
//!
//! # Ends
//!
//! Each interrupt is sent behind the VM's gate, and inside it is asked whether the storm goes on and
//! whether `knobs/inject` allows it. So [`Storm::stop`] passes the gates, the knob waits for a grace
//! period of RCU (which waits for who is in a gate), the VM's end closes its gate, and nothing is
//! delivered afterwards. The timer runs until it finds the storm over or is cancelled by
//! [`super::storms::Storms`], which does so before a VM is freed; work that is queued is waited for
//! when we go ([`Poke::end`]).

use super::{Permit, Poke};
use crate::{
    pure::{
        inject::{Line, Request},
        storm::{self as pure, Plan, Target},
    },
    see::Vm,
    wrap::{
        gate::InTask,
        irq::{Route, Taken},
        kvm::LiveVm,
        trace_event::Interrupt,
    },
};
use core::sync::atomic::{
    AtomicBool, AtomicU64, AtomicU8,
    Ordering::{Acquire, Relaxed, Release},
};
use kernel::{
    fmt, impl_has_hr_timer, new_work,
    prelude::*,
    sync::{Arc, ArcBorrow},
    time::{
        hrtimer::{HrTimer, HrTimerCallback, HrTimerCallbackContext, HrTimerRestart, RelativeMode},
        Delta, Instant, Monotonic,
    },
    workqueue::{impl_has_work, Work, WorkItem},
};

/// How many are sent at once.
const BURST: usize = 64;

/// How long the timer sends, in ns; the one that is being sent then is the last.
const LONG: u64 = 50_000;

/// What a storm does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// It goes on.
    Running,
    /// All were sent.
    Done,
    /// It was told to stop.
    Stopped,
    /// `knobs/inject` has become 0.
    NotAllowed,
    /// The VM has ended, or we go.
    Ended,
}

impl State {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Running, "running"),
        (Self::Done, "done"),
        (Self::Stopped, "stopped"),
        (Self::NotAllowed, "not_allowed"),
        (Self::Ended, "ended"),
    ];
}

/// What comes after one was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The next.
    More,
    /// The worker: it was not sent, for it is routed to pins.
    Worker,
    /// Nothing.
    Stop,
}

/// A storm.
#[pin_data]
pub(super) struct Storm {
    #[pin]
    timer: HrTimer<Self>,
    #[pin]
    work: Work<Self>,
    /// A circle, until [`super::storms::Storms`] forgets this.
    vm: Arc<Vm>,
    poke: Arc<Poke>,
    permit: Permit,
    target: Target,
    plan: Plan,
    began: Instant<Monotonic>,
    /// Whether the worker sends. Once it does it always will.
    by_worker: AtomicBool,
    /// A [`State`].
    state: AtomicU8,
    // Written by who sends.
    delivered: AtomicU64,
    coalesced: AtomicU64,
    failed: AtomicU64,
    /// Sent when the next was due as well.
    late: AtomicU64,
    /// When the last was sent, in ns after the begin.
    last: AtomicU64,
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
    /// One that begins now, when its timer is started at once.
    pub(super) fn new(
        vm: Arc<Vm>,
        poke: Arc<Poke>,
        permit: Permit,
        target: Target,
        plan: Plan,
        route: Route,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                timer <- HrTimer::new(),
                work <- new_work!("kvmate::storm"),
                vm,
                poke,
                permit,
                target,
                plan,
                began: Instant::now(),
                by_worker: AtomicBool::new(route == Route::Pins),
                state: AtomicU8::new(State::Running as u8),
                delivered: AtomicU64::new(0),
                coalesced: AtomicU64::new(0),
                failed: AtomicU64::new(0),
                late: AtomicU64::new(0),
                last: AtomicU64::new(0),
            }),
            GFP_KERNEL,
        )
    }

    /// Whether it goes on.
    pub(super) fn runs(&self) -> bool {
        if !self.poke.permits(self.permit) {
            self.finish(State::NotAllowed);
        }
        self.state.load(Acquire) == State::Running as u8
    }

    /// It is over, if it was not before.
    fn finish(&self, how: State) {
        let running = State::Running as u8;
        let _ = self
            .state
            .compare_exchange(running, how as u8, Release, Relaxed);
    }

    /// End it: when this returns nothing is delivered any more. Process context.
    pub(super) fn stop(&self, how: State) {
        self.finish(how);
        // Who is in there may have asked before; who comes in will see.
        self.vm.gate.enter_irq_off(|_| ());
        self.vm.gate.enter(|_| ());
    }

    fn elapsed(&self) -> u64 {
        self.began.elapsed().as_nanos().unsigned_abs()
    }

    fn sent(&self) -> u64 {
        let counts = [&self.delivered, &self.coalesced, &self.failed];
        counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Send one, in the timer. `EAGAIN`: it is for the worker.
    fn send(&self, vm: LiveVm<'_>) -> Result<Taken> {
        match self.target {
            Target::Msi(msi) => vm.send_msi(msi),
            Target::Gsi(gsi) => vm.send_gsi(gsi),
        }
    }

    /// Send one, in the worker.
    fn send_in_task(&self, vm: &InTask<'_>) -> Result<Taken> {
        match self.target {
            Target::Msi(msi) => vm.send_msi(msi),
            Target::Gsi(gsi) => vm.edge_gsi(gsi),
        }
    }

    /// How many are due now, and whether any of them has not been sent.
    fn due(&self) -> (u64, bool) {
        let due = self.plan.due(self.elapsed());
        (due, self.sent() < due)
    }

    /// Count one, of so many due, by what came of it; behind the gate, so that who has passed that
    /// finds it counted. Whether the storm goes on.
    fn count(&self, due: u64, answer: Result<Taken>) -> bool {
        let request = match self.target {
            Target::Gsi(gsi) => Request::Gsi(gsi, Line::Edge),
            Target::Msi(msi) => Request::Msi(msi),
        };
        self.poke
            .traces(Interrupt::Inject, &self.vm, request, answer.map(Some));
        let counter = match answer {
            Ok(Taken::Delivered) => &self.delivered,
            Ok(Taken::Coalesced) => &self.coalesced,
            Ok(Taken::Ignored) | Err(_) => &self.failed,
        };
        self.last.store(self.elapsed(), Relaxed);
        counter.fetch_add(1, Release);
        let sent = self.sent();
        if sent < due {
            self.late.fetch_add(1, Release);
        }
        if sent == self.plan.count() {
            self.finish(State::Done);
        }
        self.runs()
    }

    /// The VM has ended.
    fn ended(&self) -> Next {
        self.finish(State::Ended);
        Next::Stop
    }

    /// Send what is due, in the timer. When it has to come again, in ns after the begin.
    fn burst(this: ArcBorrow<'_, Self>) -> Option<u64> {
        let begin = this.elapsed();
        for _ in 0..BURST {
            let (due, any) = this.due();
            if !any || this.elapsed() - begin > LONG {
                break;
            }
            let gate = &this.vm.gate;
            let next = gate.enter_irq_off(|vm| match this.runs().then(|| this.send(vm)) {
                Some(Err(EAGAIN)) => Next::Worker,
                Some(answer) if this.count(due, answer) => Next::More,
                _ => Next::Stop,
            });
            match next.unwrap_or_else(|| this.ended()) {
                Next::More => {}
                Next::Worker => {
                    this.by_worker.store(true, Relaxed);
                    return Self::hand_over(this);
                }
                Next::Stop => return None,
            }
        }
        Some(this.plan.when(this.sent()))
    }

    /// Have the worker send what is due. When the timer has to come again.
    fn hand_over(this: ArcBorrow<'_, Self>) -> Option<u64> {
        let (due, _) = this.due();
        this.poke.enqueue(Arc::from(this));
        (this.runs() && due < this.plan.count()).then(|| this.plan.when(due))
    }
}

impl HrTimerCallback for Storm {
    type Pointer<'a> = Arc<Self>;

    fn run(
        this: ArcBorrow<'_, Self>,
        mut context: HrTimerCallbackContext<'_, Self>,
    ) -> HrTimerRestart {
        let next = if this.by_worker.load(Relaxed) {
            Self::hand_over(this)
        } else {
            Self::burst(this)
        };
        let Some(next) = next else {
            return HrTimerRestart::NoRestart;
        };
        let (expired, now) = (this.timer.expires(), Instant::now());
        let took = (now - expired).as_nanos().unsigned_abs();
        let soonest = (now - this.began).as_nanos().unsigned_abs() + pure::pause(took);
        let after = i64::try_from(next.max(soonest)).unwrap_or(i64::MAX);
        let interval = this.began - expired + Delta::from_nanos(after);
        // By once this interval.
        context.forward(expired, interval);
        HrTimerRestart::Restart
    }
}

impl WorkItem for Storm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        for _ in 0..BURST {
            let (due, any) = this.due();
            if !any {
                return;
            }
            let gate = &this.vm.gate;
            let next = gate.enter(|vm| {
                if this.runs() && this.count(due, this.send_in_task(&vm)) {
                    Next::More
                } else {
                    Next::Stop
                }
            });
            if next.unwrap_or_else(|| this.ended()) == Next::Stop {
                return;
            }
        }
        this.poke.enqueue(this.clone());
    }
}

impl fmt::Display for Storm {
    /// The table's line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.runs();
        let state = self.state.load(Acquire);
        let state = State::ALL.iter().find(|(s, _)| *s as u8 == state);
        f.write_str(state.map_or("-", |(_, name)| name))?;
        match self.target {
            Target::Gsi(gsi) => write!(f, " gsi:{gsi}")?,
            Target::Msi(msi) => write!(f, " msi:{:#x}:{:#x}", msi.address, msi.data)?,
        }
        // In this order the line is one that could be, also while it changes: never more that were
        // late than were sent, and never a rate above the one that was reached.
        let count = |counter: &AtomicU64| counter.load(Acquire);
        let late = count(&self.late);
        let (delivered, coalesced) = (count(&self.delivered), count(&self.coalesced));
        let failed = count(&self.failed);
        let last = count(&self.last);
        let sent = delivered + coalesced + failed;
        write!(f, " {} {sent} {delivered}", self.plan.count())?;
        if self.by_worker.load(Relaxed) {
            write!(f, " {coalesced}")?;
        } else {
            f.write_str(" -")?;
        }
        write!(f, " {failed} {late} {}", self.plan.rate())?;
        match pure::reached(sent, last) {
            Some(reached) => write!(f, " {reached}"),
            None => f.write_str(" -"),
        }
    }
}
