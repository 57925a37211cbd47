// SPDX-License-Identifier: GPL-2.0
//! Following kvm: hooks on VMs' lives while it is there, and probes on exits while they are wanted.

use super::{
    ended::Ended,
    irqs::{ACCEPTS_HIDDEN, RECORDED},
    layouts::Layouts,
    map::{self, Answer, Why},
    registry::Registry,
    traced::{self, Tracer},
    vm::Vm,
};
use crate::{
    poke::Poke,
    trace::{Class, Trace},
    wrap::{
        accepts::Accepts,
        debugfs::Dir,
        files,
        kvm::LiveVm,
        kvm_module::{KvmEvents, KvmModule},
        life::LifeHooks,
        probes::{Probes, Tracepoints},
        trace_event::FollowedExits,
    },
};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};

/// Whether kvm is there; for those who cannot have the [`Watch`].
static POSSIBLE: AtomicBool = AtomicBool::new(false);

/// What is recorded if there is a kvm: knobs by these names. All others want `observe` too.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) observe: bool,
    pub(crate) times: bool,
    pub(crate) msrs: bool,
    pub(crate) faults: bool,
    pub(crate) irqs: bool,
    /// `knobs/trace`: bits of [`Class`].
    pub(crate) trace: u8,
}

impl Wanted {
    /// Whether lines of that class are wanted of what happens in exits.
    fn traces(self, class: Class) -> bool {
        self.observe && self.asks(class)
    }

    /// Whether a knob asks for it, though it may not be observed.
    fn asks(self, class: Class) -> bool {
        self.trace & class as u8 != 0
    }
}

/// What stands at the moment.
struct State {
    wanted: Wanted,
    kvm: Option<Kvm>,
}

/// What stands while kvm is there. The fields' order is that of the end.
struct Kvm {
    probes: Option<Probes<Registry>>,
    pauses: Option<Probes<Registry>>,
    msrs: Option<Probes<Registry>>,
    faults: Option<Probes<Registry>>,
    irqs: Option<(Probes<Registry>, Option<Accepts<Registry>>)>,
    traced: [Option<Probes<Tracer>>; 3],
    hooks: Option<LifeHooks<Registry>>,
    tracepoints: Tracepoints,
}

/// The watch over kvm.
#[pin_data]
pub(crate) struct Watch {
    registry: Arc<Registry>,
    layouts: Arc<Layouts>,
    #[pin]
    state: Mutex<State>,
}

/// Its end: dropping this ends the watch and forgets all VMs.
pub(crate) struct Watching {
    _exits: FollowedExits<Registry>,
    _hide: HideAll,
    _events: Pin<KBox<KvmModule<Watch>>>,
    _free: FreeAll,
}

/// Hides all VMs before the kernel's locks on modules are taken for the events' end: a task may be in
/// `KVM_CREATE_VCPU` for as long as a VMM likes.
struct HideAll(Arc<Registry>);

impl Drop for HideAll {
    fn drop(&mut self) {
        self.0.hide();
    }
}

struct FreeAll(Arc<Registry>);

impl Drop for FreeAll {
    fn drop(&mut self) {
        self.0.free_all();
    }
}

impl Watch {
    /// A watch that has not begun. VMs' folders will be in `vms`.
    pub(crate) fn new(
        vms: Dir,
        ended: Arc<Ended>,
        layouts: Arc<Layouts>,
        poke: Arc<Poke>,
        trace: Arc<Trace>,
        wanted: Wanted,
    ) -> Result<Arc<Self>> {
        let registry = Registry::new(vms, ended, poke, trace)?;
        Arc::pin_init(
            pin_init!(Self {
                registry,
                layouts,
                state <- new_mutex!(State { wanted, kvm: None }),
            }),
            GFP_KERNEL,
        )
    }

    /// Begin: follow kvm until what this gives is dropped.
    pub(crate) fn begin(this: &Arc<Self>) -> Result<Watching> {
        let free = FreeAll(this.registry.clone());
        let events = KvmModule::register(this.clone())?;
        if !Self::possible() {
            pr_info!("kvm is not there yet: VMs are seen when it comes\n");
        }
        Ok(Watching {
            _exits: FollowedExits::begin(this.registry.clone()),
            _hide: HideAll(this.registry.clone()),
            _events: events,
            _free: free,
        })
    }

    /// Whether there is a kvm whose exits can be seen.
    pub(crate) fn possible() -> bool {
        POSSIBLE.load(Relaxed)
    }

    /// What is recorded, where there is a kvm.
    pub(crate) fn wanted(&self) -> Wanted {
        self.state.lock().wanted
    }

    /// Record something or do not, from now on: when this returns the last probe has run or the first
    /// will. Tells what was before; an error changes nothing.
    pub(crate) fn want(&self, change: impl FnOnce(&mut Wanted) -> Result) -> Result<Wanted> {
        let mut state = self.state.lock();
        let before = state.wanted;
        let mut now = before;
        change(&mut now)?;
        Trace::prepare(now.trace);
        if let Some(kvm) = &mut state.kvm {
            if let Err(error) = kvm.probe(now, before, &self.registry) {
                // Only takes away what was new.
                let _ = kvm.probe(before, before, &self.registry);
                return Err(error);
            }
        }
        self.registry.trace.want(now.trace);
        state.wanted = now;
        Ok(before)
    }

    /// Whether VMs are looked into, and so can be poked.
    pub(crate) fn shows_vms(&self) -> bool {
        self.registry.shown.load(Relaxed)
    }

    /// What is kept of a VM whose file the caller holds. `EOPNOTSUPP`: VMs are not shown.
    pub(crate) fn vm_of(&self, vm: LiveVm<'_>) -> Result<Arc<Vm>> {
        self.registry.adopt(vm)
    }

    /// Look up a guest-physical address in the VM whose file the current task has as `descriptor`.
    /// Sleeps. Errors are those of `KVMATE_LOOKUP`.
    pub(crate) fn look_up(&self, descriptor: i32, address_space: u32, gpa: u64) -> Result<Answer> {
        if !self.shows_vms() {
            return Err(EOPNOTSUPP);
        }
        let file = files::of_descriptor(descriptor)?;
        let vm = self.vm_of(files::vm_of(&file).ok_or(EBADFD)?)?;
        map::look_up(&vm, address_space, gpa, Why::new())
    }

    /// Exits that were seen, all VMs together.
    pub(crate) fn total(&self) -> u64 {
        self.registry.total()
    }
}

impl Watch {
    /// Hook on VMs' lives and show VMs, if kvm is proven: without proof no VM is looked into, and
    /// without hooks nobody would be told of its end; then exits are only counted.
    fn hook(&self, kvm: &mut Kvm) {
        if kvm.hooks.is_some() || !self.layouts.kvm_proven() {
            return;
        }
        kvm.hooks = LifeHooks::register(self.registry.clone())
            .inspect_err(|error| pr_err!("VMs are not shown: no hook on their end: {error:?}\n"))
            .ok();
        if kvm.hooks.is_some() {
            self.registry.show();
        }
    }
}

/// Have something, or do not. What was wanted `before` and this KVM lacks has been told of when KVM came:
/// it is in nobody's way.
fn have<T>(
    it: &mut Option<T>,
    wanted: bool,
    before: bool,
    get: impl FnOnce() -> Result<T>,
) -> Result {
    if !wanted {
        *it = None;
    } else if it.is_none() {
        match get() {
            Ok(got) => *it = Some(got),
            Err(ENOENT) if before => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Kvm {
    /// Have the probes that are wanted, where others were wanted `before`. The first error, after all were
    /// tried; it leaves those that stood.
    fn probe(&mut self, wanted: Wanted, before: Wanted, registry: &Arc<Registry>) -> Result {
        let tracepoints = self.tracepoints;
        let [times, msrs, faults, irqs] =
            [wanted.times, wanted.msrs, wanted.faults, wanted.irqs].map(|on| on && wanted.observe);
        have(&mut self.probes, wanted.observe, before.observe, || {
            Probes::register(tracepoints, registry.clone())
        })?;
        if !wanted.observe {
            registry.lose_entries();
        }
        // Exits whose time is split want all their pauses told.
        registry.split_times(times && self.pauses.is_some());
        let pauses = have(&mut self.pauses, times, before.times, || {
            Probes::of_pauses(tracepoints, registry.clone())
        });
        registry.split_times(times && self.pauses.is_some());
        let msrs = have(&mut self.msrs, msrs, before.msrs, || {
            Probes::of_msrs(tracepoints, registry.clone())
        });
        let faults = have(&mut self.faults, faults, before.faults, || {
            Probes::of_page_faults(tracepoints, registry.clone())
        });
        let irqs = have(&mut self.irqs, irqs, before.irqs, || {
            let probes = Probes::of_interrupts(tracepoints, registry.clone())?;
            // A KVM may have been built without such a function: then nobody tells.
            let accepts = match Accepts::register(registry.clone()) {
                Err(ENOENT) => None,
                registered => Some(registered?),
            };
            ACCEPTS_HIDDEN.store(accepts.is_none(), Relaxed);
            Ok((probes, accepts))
        });
        registry.trace_exits(traced::LINES, wanted.traces(Class::Exits));
        let tracer = || Ok::<_, Error>(Arc::new(Tracer(registry.clone()), GFP_KERNEL)?);
        let [of_msrs, of_faults, of_irqs] = &mut self.traced;
        let traced = have(
            of_msrs,
            wanted.traces(Class::Msrs),
            before.asks(Class::Msrs),
            || Probes::of_msrs(tracepoints, tracer()?),
        )
        .and(have(
            of_faults,
            wanted.traces(Class::Faults),
            before.asks(Class::Faults),
            || Probes::of_page_faults(tracepoints, tracer()?),
        ))
        .and(have(
            of_irqs,
            wanted.traces(Class::Interrupts),
            before.asks(Class::Interrupts),
            || Probes::of_interrupts(tracepoints, tracer()?),
        ));
        RECORDED.store(self.irqs.is_some(), Relaxed);
        pauses.and(msrs).and(faults).and(irqs).and(traced)
    }
}

impl KvmEvents for Watch {
    fn kvm_is_there(&self, tracepoints: Tracepoints) {
        self.layouts.check(false);
        let mut state = self.state.lock();
        if state.kvm.is_some() {
            return;
        }
        let mut kvm = Kvm {
            probes: None,
            pauses: None,
            msrs: None,
            faults: None,
            irqs: None,
            traced: [None, None, None],
            hooks: None,
            tracepoints,
        };
        self.registry.poke.kvm_is_there(tracepoints);
        self.hook(&mut kvm);
        // Whatever is there: all that is not is told of.
        if let Err(error) = kvm.probe(state.wanted, Wanted::default(), &self.registry) {
            pr_err!("not all that knobs ask for is recorded: no probe for it: {error:?}\n");
        }
        state.kvm = Some(kvm);
        POSSIBLE.store(true, Relaxed);
    }

    fn kvm_goes(&self) {
        POSSIBLE.store(false, Relaxed);
        let mut state = self.state.lock();
        if let Some(mut kvm) = state.kvm.take() {
            // Without any wish there is nothing that could fail.
            let _ = kvm.probe(Wanted::default(), state.wanted, &self.registry);
            self.registry.hide();
            drop(kvm);
        }
        // Another may be of another build.
        ACCEPTS_HIDDEN.store(false, Relaxed);
        self.registry.poke.kvm_goes();
        drop(state);
        self.layouts.forget();
    }

    fn vendor_changed(&self) {
        // While hooks stand kvm is the one that was proven.
        let hooked = |state: &State| state.kvm.as_ref().is_some_and(|kvm| kvm.hooks.is_some());
        let before = hooked(&self.state.lock());
        self.layouts.check(before);
        if let Some(kvm) = &mut self.state.lock().kvm {
            self.hook(kvm);
        }
    }
}
