// SPDX-License-Identifier: GPL-2.0
//! Poke: interrupts into running guests.
//!
//! # The pieces
//!
//! - [`Poke`] is what all VMs share: whether the shell may inject.
//! - [`target::Target`] is what a VM has of this; a [`crate::see::Vm`] has one.
//! - [`inject`] is injection from the shell.
//! - [`bind`](mod@bind) checks what `KVMATE_BIND_IRQFD` asks for, and makes a [`binding::Binding`]: an eventfd and the
//!   interrupt that it is. [`levels`] are those with resample, [`table`] shows all.
//! - [`latency`] times what bindings send.
//! - [`storm`] is many injections by a timer, [`storms`] the files that begin and end one.
//! - [`irqfds`] are KVM's own. [`refusal`] is why the shell was refused.
//!
//! How an interrupt gets into a VM is [`crate::wrap::irq`]: what is routed to an MSI goes in with
//! interrupts off, from any context; what is routed to pins from tasks and workers only.
//!
//! # Who may
//!
//! Opening `/dev/kvmate` and debugfs takes root. Beyond that `knobs/inject` guards what is done to a VM
//! by its name in debugfs, so that who only looks cannot inject by mistake; a binding asks for the
//! VM's own descriptor instead.
//!
//! # Locks
//!
//! None of these is taken inside a lock of [`crate::see`] but as said here; those of [`crate::see`]
//! come first.
//!
//! 1. `Poke::acks` (mutex): the probe on EOIs, held over registering and grace periods. `Target::bindings`
//!    (mutex). `Storms::inner` (mutex): held while a storm is begun and ended; no timer and no worker takes
//!    it. None in another.
//! 2. `Levels::list` (spinlock): bindings with resample. Taken by tasks, and in the probe on EOIs, which
//!    is a vCPU's task with interrupts on.
//! 3. An eventfd's own lock (of its wait queue, interrupts off): calls of [`crate::wrap::eventfd::Signalled`]
//!    run under it. No eventfd is signalled inside 2 or 5,
//!    nor inside 4 but those of KVM's irqfds, of which KVM is the only one that is told.
//! 4. A gate of a VM (number 4 there), never two. Lines go up and down behind the one of tasks, so that
//!    what is held up is known for sure.
//! 5. `Latency::followed`, inside it `Timed::way` (spinlocks, interrupts off): taken in probes, also inside
//!    KVM's locks. `Target::told` (spinlock), `Poke::queue` (spinlock, interrupts off), innermost.
//!
//! # Ends
//!
//! Everything that reaches into a VM does so behind its gate, and does nothing more when that is
//! closed. When we go, lines that the shell holds up are lowered before gates are closed
//! ([`target::Target::let_go`]), and storms are ended.
//!
//! - A binding's last descriptor is closed: [`binding`]. While one is open it holds the module, so that
//!   there is none when we go.
//! - The eventfd's last descriptor is closed: the binding keeps the eventfd's context and does nothing.
//! - The VM ends: its gate is closed; what is signalled from then on fails. Its storm is taken away when it
//!   is buried.
//! - kvm goes: no VM is there any more, and all probes go with the tracepoints.
//! - We go: no binding is there; the worker's queue is waited for before our code goes.

mod bind;
mod binding;
mod inject;
mod irqfds;
mod latency;
mod levels;
mod refusal;
mod storm;
mod storms;
mod table;
mod target;
mod traced;

pub(crate) use bind::bind;
pub(crate) use inject::{Inject, InjectStatus};
pub(crate) use irqfds::Irqfds;
pub(crate) use latency::LatencyTable;
pub(crate) use storms::{StormFile, StormStatus};
pub(crate) use table::Bindings;
pub(crate) use target::Target;

use crate::{
    trace::Trace,
    wrap::{
        acks::{self, AckProbe},
        probes::Tracepoints,
        way_probes::WayProbes,
        work_queue::WorkQueue,
    },
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use kernel::{
    new_mutex, new_spinlock_irq,
    prelude::*,
    sync::{rcu::synchronize_rcu, Arc, Mutex, SpinLockIrq},
    workqueue::RawWorkItem,
};
use latency::Latency;
use levels::Levels;

/// The probe on EOIs, and what it needs.
struct Acks {
    /// kvm's, while it is there.
    tracepoints: Option<Tracepoints>,
    /// How many bindings want it.
    wanted: usize,
    probe: Option<AckProbe<Levels>>,
    /// `knobs/latency`
    timing: bool,
    ways: Option<WayProbes<Latency>>,
}

/// What `knobs/inject` permitted, until that becomes 0, also if it is 1 again later.
#[derive(Clone, Copy)]
struct Permit(u64);

/// What all VMs share.
#[pin_data]
pub(crate) struct Poke {
    /// `knobs/inject`: odd while it is 1, and never the same again.
    allowed: AtomicU64,
    /// Taken away at the end.
    #[pin]
    queue: SpinLockIrq<Option<WorkQueue>>,
    levels: Arc<Levels>,
    latency: Arc<Latency>,
    trace: Arc<Trace>,
    #[pin]
    acks: Mutex<Acks>,
}

impl Poke {
    /// Nothing is allowed yet.
    pub(crate) fn new(trace: Arc<Trace>) -> Result<Arc<Self>> {
        let (queue, levels) = (WorkQueue::new(c"kvmate-poke")?, Levels::new()?);
        let latency = Latency::new()?;
        Arc::pin_init(
            pin_init!(Self {
                allowed: AtomicU64::new(0),
                queue <- new_spinlock_irq!(Some(queue)),
                levels,
                latency,
                trace,
                acks <- new_mutex!(Acks {
                    tracepoints: None,
                    wanted: 0,
                    probe: None,
                    timing: false,
                    ways: None,
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// Whether the shell may inject.
    pub(crate) fn allowed(&self) -> bool {
        self.permit().is_some()
    }

    /// A permit to inject, while the shell may.
    fn permit(&self) -> Option<Permit> {
        let allowed = self.allowed.load(Relaxed);
        (allowed & 1 == 1).then_some(Permit(allowed))
    }

    /// Whether a permit is good still. To be asked behind a gate, by who then injects.
    fn permits(&self, Permit(permit): Permit) -> bool {
        self.allowed.load(Relaxed) == permit
    }

    /// Let the shell inject, or do not, from now on. Tells what was before. When it may not any
    /// more, nothing that was permitted before is injected when this returns. Sleeps.
    pub(crate) fn allow(&self, on: bool) -> bool {
        let turn = |allowed: u64| ((allowed & 1 == 1) != on).then_some(allowed + 1);
        let changed = self.allowed.fetch_update(Relaxed, Relaxed, turn).is_ok();
        if changed && !on {
            // Who injects asks in a gate, where nobody is preempted.
            synchronize_rcu();
        }
        changed != on
    }

    /// kvm is there, with these tracepoints.
    pub(crate) fn kvm_is_there(&self, tracepoints: Tracepoints) {
        let mut acks = self.acks.lock();
        acks.tracepoints = Some(tracepoints);
        if acks.timing {
            if let Err(error) = self.probe_ways(&mut acks) {
                pr_err!("latencies are not timed: {error:?}\n");
            }
        }
    }

    /// kvm goes.
    pub(crate) fn kvm_goes(&self) {
        let mut acks = self.acks.lock();
        acks.tracepoints = None;
        acks.probe = None;
        self.latency.switch(false);
        acks.ways = None;
    }

    /// We go: wait for the worker, which has nothing more to do, for no VM is known any more.
    pub(crate) fn end(&self) {
        let queue = self.queue.lock().take();
        drop(queue);
    }

    /// Have the worker deliver what is pending of a binding, or due of a storm. Any context.
    fn enqueue<W: RawWorkItem<0> + Send + 'static>(&self, work: W) {
        if let Some(queue) = &*self.queue.lock() {
            // Already queued: then it has not begun, and will see what is pending.
            let _ = queue.enqueue(work);
        }
    }

    /// Register what tells of interrupts' ways, if kvm is there.
    fn probe_ways(&self, acks: &mut Acks) -> Result {
        if let (None, Some(tracepoints)) = (&acks.ways, acks.tracepoints) {
            let sending = self.latency.sending.clone();
            let probes = WayProbes::register(tracepoints, self.latency.clone(), sending)?;
            acks.ways = Some(probes);
            self.latency.switch(true);
        }
        Ok(())
    }

    /// Whether bindings' interrupts are timed, where there is a kvm.
    pub(crate) fn times(&self) -> bool {
        self.acks.lock().timing
    }

    /// Time them, or do not, from now on. Tells what was before.
    pub(crate) fn time(&self, on: bool) -> Result<bool> {
        let mut acks = self.acks.lock();
        if on {
            self.probe_ways(&mut acks)?;
        } else {
            self.latency.switch(false);
            acks.ways = None;
        }
        Ok(core::mem::replace(&mut acks.timing, on))
    }

    /// A binding has to be told of EOIs. `EOPNOTSUPP`: nobody tells.
    fn want_acks(&self) -> Result {
        let mut acks = self.acks.lock();
        if acks.probe.is_none() {
            let tracepoints = acks.tracepoints.ok_or(EOPNOTSUPP)?;
            let probe = AckProbe::register(tracepoints, self.levels.clone());
            acks.probe = Some(probe.map_err(|error| match error {
                ENOENT => EOPNOTSUPP,
                other => other,
            })?);
        }
        acks.wanted += 1;
        Ok(())
    }

    /// One has not any more; when this returns it is told no more. Sleeps.
    fn unwant_acks(&self) {
        let mut acks = self.acks.lock();
        acks.wanted = acks.wanted.saturating_sub(1);
        if acks.wanted == 0 {
            acks.probe = None;
        } else {
            acks::wait();
        }
    }
}
