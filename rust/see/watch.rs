// SPDX-License-Identifier: GPL-2.0
//! Following kvm: hooks on VMs' lives while it is there, and probes on exits while they are wanted.

use super::{ended::Ended, layouts::Layouts, registry::Registry, vm::Vm};
use crate::{
    poke::Poke,
    wrap::{
        debugfs::Dir,
        kvm::LiveVm,
        kvm_module::{KvmEvents, KvmModule},
        life::LifeHooks,
        probes::{Probes, Tracepoints},
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

/// What stands at the moment.
struct State {
    /// `knobs/observe`
    wanted: bool,
    kvm: Option<Kvm>,
}

/// What stands while kvm is there. The fields' order is that of the end.
struct Kvm {
    probes: Option<Probes<Registry>>,
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
        wanted: bool,
    ) -> Result<Arc<Self>> {
        let registry = Registry::new(vms, ended, poke)?;
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
            _hide: HideAll(this.registry.clone()),
            _events: events,
            _free: free,
        })
    }

    /// Whether there is a kvm whose exits can be seen.
    pub(crate) fn possible() -> bool {
        POSSIBLE.load(Relaxed)
    }

    /// Whether exits are recorded, where there is a kvm.
    pub(crate) fn observing(&self) -> bool {
        self.state.lock().wanted
    }

    /// Record exits or do not, from now on: when this returns the last probe has run or the first
    /// will. Tells what was before.
    pub(crate) fn observe(&self, on: bool) -> Result<bool> {
        let mut state = self.state.lock();
        let before = state.wanted;
        if let Some(kvm) = &mut state.kvm {
            kvm.probe(on, &self.registry)?;
        }
        state.wanted = on;
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

impl Kvm {
    fn probe(&mut self, on: bool, registry: &Arc<Registry>) -> Result {
        if !on {
            self.probes = None;
            registry.lose_entries();
        } else if self.probes.is_none() {
            self.probes = Some(Probes::register(self.tracepoints, registry.clone())?);
        }
        Ok(())
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
            hooks: None,
            tracepoints,
        };
        self.registry.poke.kvm_is_there(tracepoints);
        self.hook(&mut kvm);
        if let Err(error) = kvm.probe(state.wanted, &self.registry) {
            pr_err!("exits are not seen: no probe on kvm_exit: {error:?}\n");
        }
        state.kvm = Some(kvm);
        POSSIBLE.store(true, Relaxed);
    }

    fn kvm_goes(&self) {
        POSSIBLE.store(false, Relaxed);
        let mut state = self.state.lock();
        if let Some(Kvm { probes, hooks, .. }) = state.kvm.take() {
            drop(probes);
            self.registry.hide();
            drop(hooks);
        }
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
