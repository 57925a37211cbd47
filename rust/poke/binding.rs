// SPDX-License-Identifier: GPL-2.0
//! A binding: an eventfd, and the interrupt of a VM that a write to it is.
//!
//! Owners: the file of the binding has a [`Bound`], which ends it; its VM's list, [`Levels`]' list and
//! the work hold references until then, or until they have run. It holds what kvmate keeps of the
//! VM, never the VM.
//!
//! Contexts: [`Signalled`] runs in the waker's, with interrupts off, under the eventfd's lock. What is
//! routed to an MSI is delivered there; the rest is counted in `pending` and delivered by a worker, a
//! pulse or rise for each.
//!
//! End: [`Bound`] first leaves the wait queue, after which nobody adds to `pending`; then it sets
//! `closed` behind the gate of tasks, which the worker looks at there, so that what is still pending is
//! not delivered; then it leaves the lists.

use super::{
    latency::{Latency, Timed},
    levels::Levels,
    Poke,
};
use crate::{
    pure::inject::{Line, Msi, Request},
    see::Vm,
    wrap::{
        eventfd::{EventFd, Signalled, Waiting},
        gate::InTask,
        irq::Taken,
        kvm::MmId,
        trace_event::Interrupt,
    },
};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};
use kernel::{
    fs::LocalFile,
    list::{impl_list_arc_safe, impl_list_item, ListArc, ListLinks},
    new_work,
    prelude::*,
    sync::{Arc, ArcBorrow, UniqueArc},
    workqueue::{impl_has_work, Work, WorkItem},
};

/// How many interrupts wait for the worker at most; more are taken as coalesced.
const PENDING: u32 = 1024;
/// How many the worker delivers before others have their turn.
const TURN: u32 = 64;

/// What a write is.
#[derive(Clone, Copy)]
pub(super) enum What {
    /// That MSI.
    Msi(Msi),
    /// The GSI: an edge, or the MSI that it is routed to.
    Gsi(u32),
    /// The GSI goes up until the guest's EOI.
    Level(u32),
}

impl What {
    /// It as who writes to `inject` would ask for it.
    fn request(self) -> Request {
        match self {
            Self::Msi(msi) => Request::Msi(msi),
            Self::Gsi(gsi) => Request::Gsi(gsi, Line::Edge),
            Self::Level(gsi) => Request::Gsi(gsi, Line::High),
        }
    }
}

/// What came of a binding's interrupts.
pub(super) struct Counts {
    pub(super) signalled: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) coalesced: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) resampled: AtomicU64,
    /// The errno of the last that failed; `EAGAIN`: it was ignored.
    pub(super) why: AtomicI32,
}

/// A binding.
#[pin_data]
pub(crate) struct Binding {
    #[pin]
    of_vm: ListLinks<0>,
    #[pin]
    of_levels: ListLinks<1>,
    #[pin]
    work: Work<Binding>,
    pub(super) vm: Arc<Vm>,
    poke: Arc<Poke>,
    pub(super) what: What,
    pub(super) resample: Option<EventFd>,
    pub(super) mm: MmId,
    pending: AtomicU32,
    /// Set behind the gate of tasks.
    pub(super) closed: AtomicBool,
    /// The line is up, for us. Changed behind the gate of tasks.
    pub(super) up: AtomicBool,
    /// It has gone down, and the second eventfd does not know yet.
    pub(super) owed: AtomicBool,
    /// The eventfd's last descriptor is closed. In the kernel somebody may have it still.
    pub(super) hung_up: AtomicBool,
    /// Something went to the worker: chips, which tell what coalesces.
    pub(super) deferred: AtomicBool,
    pub(super) counts: Counts,
    pub(super) timed: Arc<Timed>,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Binding { untracked; }
    impl ListArcSafe<1> for Binding { untracked; }
}
impl_list_item! {
    impl ListItem<0> for Binding { using ListLinks { self.of_vm }; }
    impl ListItem<1> for Binding { using ListLinks { self.of_levels }; }
}
impl_has_work! {
    impl HasWork<Self> for Binding { self.work }
}

impl Binding {
    /// Count what became of one interrupt.
    fn count(&self, taken: Result<Taken>) {
        self.poke.traces(
            Interrupt::Deliver,
            &self.vm,
            self.what.request(),
            taken.map(Some),
        );
        let counts = &self.counts;
        let counter = match taken {
            Ok(Taken::Delivered) => &counts.delivered,
            Ok(Taken::Coalesced) => &counts.coalesced,
            Ok(Taken::Ignored) => {
                counts.why.store(EAGAIN.to_errno(), Relaxed);
                &counts.failed
            }
            Err(error) => {
                counts.why.store(error.to_errno(), Relaxed);
                &counts.failed
            }
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Let the worker deliver one more.
    fn defer(this: ArcBorrow<'_, Self>) {
        this.deferred.store(true, Relaxed);
        let more = this.pending.fetch_update(Relaxed, Relaxed, |pending| {
            (pending < PENDING).then_some(pending + 1)
        });
        match more {
            Ok(_) => this.poke.enqueue(Arc::from(this)),
            Err(_) => this.count(Ok(Taken::Coalesced)),
        }
    }

    /// Deliver one, in the worker.
    fn deliver(&self, vm: &InTask<'_>) {
        let latency = &self.poke.latency;
        let taken = latency.in_task(&self.timed, vm, |vm| match self.what {
            What::Level(gsi) => {
                // Before, for the guest may end it before we are back. Raised also when it is up: the
                // VMM may have reset the chips meanwhile, which then know nothing of it.
                let was_up = self.up.swap(true, Relaxed);
                let taken = Levels::raise(vm, gsi);
                match taken {
                    // The chips say so of a pin that is in service, too.
                    Ok(Taken::Ignored) if was_up => Ok(Taken::Coalesced),
                    Err(_) if !was_up => {
                        self.up.store(false, Relaxed);
                        taken
                    }
                    _ => taken,
                }
            }
            What::Gsi(gsi) => vm.edge_gsi(gsi),
            What::Msi(msi) => vm.send_msi(msi),
        });
        self.count(taken);
    }

    /// The line has gone down: tell who raised it. Not behind a gate, for that may wake anybody.
    pub(super) fn notify(&self) {
        if let Some(eventfd) = &self.resample {
            self.counts.resampled.fetch_add(1, Relaxed);
            eventfd.signal();
        }
    }
}

impl Signalled for Binding {
    fn signalled(this: ArcBorrow<'_, Self>) {
        // As KVM's own irqfds are then.
        if this.hung_up.load(Relaxed) {
            return;
        }
        this.counts.signalled.fetch_add(1, Relaxed);
        let (latency, timed) = (&this.poke.latency, &this.timed);
        let signalled = latency.signalled();
        let gate = &this.vm.gate;
        let sent = match this.what {
            What::Msi(msi) => gate
                .enter_irq_off(|vm| latency.irq_off(timed, signalled, vm, |vm| vm.send_msi(msi))),
            What::Gsi(gsi) => gate
                .enter_irq_off(|vm| latency.irq_off(timed, signalled, vm, |vm| vm.send_gsi(gsi))),
            What::Level(_) => Some(Err(EAGAIN)),
        };
        match sent {
            Some(Err(EAGAIN)) => {
                Latency::wait(timed, signalled);
                Self::defer(this)
            }
            Some(taken) => this.count(taken),
            None => this.count(Err(ENODEV)),
        }
    }

    fn hung_up(this: ArcBorrow<'_, Self>) {
        this.hung_up.store(true, Relaxed);
    }
}

impl WorkItem for Binding {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        for _ in 0..TURN {
            let less = this
                .pending
                .fetch_update(Relaxed, Relaxed, |pending| pending.checked_sub(1));
            if less.is_err() {
                return;
            }
            let done = this.vm.gate.enter(|vm| {
                let closed = this.closed.load(Relaxed);
                if !closed {
                    this.deliver(&vm);
                }
                closed
            });
            match done {
                Some(false) => {}
                Some(true) => return,
                None => this.count(Err(ENODEV)),
            }
        }
        this.poke.enqueue(this.clone());
    }
}

/// A binding in its lists. Dropping it ends it.
struct Listed(Arc<Binding>);

/// What a binding's descriptor stands for. The fields' order is that of the end.
pub(super) struct Bound {
    _waiting: Waiting<Binding>,
    _listed: Listed,
}

impl Bound {
    /// Bind from now on. `EBUSY`: another one has the eventfd. `EOPNOTSUPP`: no EOI would be told.
    pub(super) fn new(
        poke: &Arc<Poke>,
        vm: &Arc<Vm>,
        mm: MmId,
        what: What,
        eventfd: &LocalFile,
        resample: Option<EventFd>,
    ) -> Result<Self> {
        let timed = Timed::new()?;
        let binding = UniqueArc::pin_init(
            pin_init!(Binding {
                of_vm <- ListLinks::new(),
                of_levels <- ListLinks::new(),
                work <- new_work!("kvmate::binding"),
                vm: vm.clone(),
                poke: poke.clone(),
                what,
                resample,
                mm,
                pending: AtomicU32::new(0),
                closed: AtomicBool::new(false),
                up: AtomicBool::new(false),
                owed: AtomicBool::new(false),
                hung_up: AtomicBool::new(false),
                deferred: AtomicBool::new(false),
                timed,
                counts: Counts {
                    signalled: AtomicU64::new(0),
                    delivered: AtomicU64::new(0),
                    coalesced: AtomicU64::new(0),
                    failed: AtomicU64::new(0),
                    resampled: AtomicU64::new(0),
                    why: AtomicI32::new(0),
                },
            }? Error),
            GFP_KERNEL,
        )?;
        let (of_vm, of_levels) = ListArc::<Binding, 0>::pair_from_pin_unique::<1>(binding);
        let binding = of_vm.clone_arc();
        if matches!(what, What::Level(_)) {
            poke.want_acks()?;
            poke.levels.join(of_levels);
        }
        vm.poke.bindings.lock().push_back(of_vm);
        let listed = Listed(binding.clone());
        Ok(Self {
            _waiting: Waiting::begin(eventfd, binding)?,
            _listed: listed,
        })
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let (binding, poke) = (&self.0, &self.0.poke);
        if matches!(binding.what, What::Level(_)) {
            poke.levels.leave(binding);
            poke.unwant_acks();
        } else {
            binding
                .vm
                .gate
                .enter(|_| binding.closed.store(true, Relaxed));
        }
        let mut bindings = binding.vm.poke.bindings.lock();
        let mut cursor = bindings.cursor_front();
        while let Some(next) = cursor.peek_next() {
            if core::ptr::eq(&*next.arc(), &**binding) {
                next.remove();
                break;
            }
            cursor.move_next();
        }
    }
}
