// SPDX-License-Identifier: GPL-2.0
//! A VM's storm, and its files `storm` and `storm_status`. What a storm does is in [`super::storm`].
//!
//! A VM has one at a time. The last one stays, with what it counted, until the next. Process
//! context; see [`super`] for locks.

use super::{
    refusal::Refusal,
    storm::{State, Storm},
    Permit, Poke,
};
use crate::{
    pure::storm::{self as text, Bad, Plan, Request, Target},
    see::Vm,
    wrap::{command::Command, debugfs::Table, irq::Route},
};
use kernel::{
    fmt, new_mutex,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::{Arc, Mutex},
    time::{
        hrtimer::{ArcHrTimerHandle, HrTimerHandle, HrTimerPointer},
        Delta,
    },
};

/// What may be written.
const REQUESTS: &str = "not one of: gsi N count N rate R, msi ADDRESS DATA count N rate R, stop";

/// What a write came to.
#[derive(Clone, Copy)]
struct Told {
    request: Option<Request>,
    outcome: Result<(), Refusal>,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.request {
            None => f.write_str("-")?,
            Some(Request::Stop) => f.write_str("stop")?,
            Some(Request::Start(target, plan)) => {
                match target {
                    Target::Gsi(gsi) => write!(f, "gsi {gsi}")?,
                    Target::Msi(msi) => write!(f, "msi {:#x} {:#x}", msi.address, msi.data)?,
                }
                write!(f, " count {} rate {}", plan.count(), plan.rate())?;
            }
        }
        match (self.outcome, self.request) {
            (Ok(()), Some(Request::Stop)) => f.write_str(": stopped"),
            (Ok(()), _) => f.write_str(": started"),
            (Err(refusal), _) => {
                f.write_str(": ")?;
                fmt::Display::fmt(&refusal, f)
            }
        }
    }
}

/// A storm and its timer. Dropping it cancels that.
struct Begun {
    storm: Arc<Storm>,
    timer: ArcHrTimerHandle<Storm>,
}

struct Inner {
    last: Option<Begun>,
    told: Option<Told>,
}

/// A VM's storm.
#[pin_data]
pub(crate) struct Storms {
    #[pin]
    inner: Mutex<Inner>,
}

impl Storms {
    /// None yet. Any context.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_mutex!(Inner { last: None, told: None }),
        })
    }

    /// End the one that goes on, if any: when this returns nothing of it is delivered any more.
    pub(super) fn stop(&self, how: State) {
        if let Some(begun) = &mut self.inner.lock().last {
            begun.storm.stop(how);
            begun.timer.cancel();
        }
    }

    /// The VM has ended and its files are gone: forget the last one, which keeps the VM.
    pub(crate) fn forget(&self) {
        let last = self.inner.lock().last.take();
        drop(last);
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

    /// What the target is routed to.
    fn route(&self, target: Target) -> Result<Route, Refusal> {
        let route = self.vm.gate.enter_irq_off(|vm| match target {
            Target::Gsi(gsi) => vm.route(gsi),
            Target::Msi(_) if vm.takes_msis() => Ok(Route::Msi),
            Target::Msi(_) => Err(ENXIO),
        });
        Ok(route.ok_or(Refusal::Ended)??)
    }

    fn start(&self, permit: Permit, target: Target, plan: Plan) -> Result<(), Refusal> {
        let route = self.route(target)?;
        let mut inner = self.vm.poke.storms.inner.lock();
        if inner.last.as_ref().is_some_and(|begun| begun.storm.runs()) {
            return Err(Refusal::Busy);
        }
        let (vm, poke) = (self.vm.clone(), self.poke.clone());
        let storm =
            Storm::new(vm, poke, permit, target, plan, route).map_err(|_| Refusal::NoMemory)?;
        let timer = storm.clone().start(Delta::ZERO);
        inner.last = Some(Begun { storm, timer });
        Ok(())
    }
}

impl Command for StormFile {
    fn run(&self, text: Option<&[u8]>) -> Result {
        let storms = &self.vm.poke.storms;
        let (request, outcome) = match self.poke.permit() {
            None => (None, Err(Refusal::NotAllowed)),
            Some(permit) => match text.ok_or(Bad::NotUnderstood).and_then(text::parse) {
                Ok(Request::Stop) => (Some(Request::Stop), {
                    storms.stop(State::Stopped);
                    Ok(())
                }),
                Ok(request @ Request::Start(target, plan)) => {
                    (Some(request), self.start(permit, target, plan))
                }
                Err(Bad::NotUnderstood) => (None, Err(Refusal::NotUnderstood(REQUESTS))),
                Err(Bad::OutOfRange) => (None, Err(Refusal::OutOfRange)),
            },
        };
        storms.inner.lock().told = Some(Told { request, outcome });
        outcome.map_err(|refusal| refusal.errno())
    }
}

impl Table for StormFile {
    fn show(&self, out: &SeqFile) -> Result {
        let columns = "state target asked sent delivered coalesced failed late rate reached";
        seq_print!(out, "{columns}\n");
        if let Some(begun) = &self.vm.poke.storms.inner.lock().last {
            seq_print!(out, "{}\n", &*begun.storm);
        }
        Ok(())
    }
}

/// `vms/*/storm_status`
pub(crate) struct StormStatus(pub(crate) Arc<Vm>);

impl Table for StormStatus {
    fn show(&self, out: &SeqFile) -> Result {
        match &self.0.poke.storms.inner.lock().told {
            Some(told) => seq_print!(out, "{told}\n"),
            None => seq_print!(out, "-\n"),
        }
        Ok(())
    }
}
