// SPDX-License-Identifier: GPL-2.0
//! What is known of one VM, and of one vCPU.

use super::folder::Folder;
use crate::{
    poke::Target,
    pure::{
        events::Events,
        exits::{Last, Mark, Record},
        reason::Vendor,
    },
    wrap::{
        by_vcpu::Owned,
        exit_source::ExitSource,
        gate::Gate,
        kvm::{Lapic, LiveVcpu, LiveVm, VcpuId, VmId, VmName},
    },
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use kernel::{
    list::{impl_list_arc_safe, impl_list_item, ListArc, ListLinks},
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};

/// What the probes on a vCPU work on.
pub(crate) type Hot = (ExitSource, Record, Events);

/// A VM.
#[pin_data]
pub(crate) struct Vm {
    #[pin]
    links: ListLinks,
    #[pin]
    pub(crate) gate: Gate,
    #[pin]
    pub(crate) poke: Target,
    pub(super) name: VmName,
    /// Which VM it is, counted since load.
    pub(super) number: u64,
    /// Set under `Registry::known`.
    ended: AtomicBool,
    /// Whether its folder could not have KVM's name for it.
    other_name: AtomicBool,
    /// Those with a record. Pushed to while the VM is known, emptied when it has ended.
    #[pin]
    pub(super) vcpus: Mutex<KVVec<Arc<Vcpu>>>,
    /// Made and taken away under `Registry::tree`.
    #[pin]
    pub(super) folder: Mutex<Option<Folder>>,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Vm { untracked; }
}
impl_list_item! {
    impl ListItem<0> for Vm { using ListLinks { self.links }; }
}

/// Where a vCPU's exits are recorded.
pub(super) struct Recorded {
    pub(super) hot: Option<Arc<Owned<Hot>>>,
    /// The last exit before the record began.
    last_before: Option<(Vendor, Last)>,
}

/// What is recorded of a vCPU, to be read: whoever has it has one record, whatever is reset meanwhile.
pub(super) struct Recording {
    hot: Option<Arc<Owned<Hot>>>,
    /// Exits before there was a record for it.
    pub(super) early: u64,
}

impl Recording {
    /// Those of some vCPUs.
    pub(super) fn all_of(vcpus: &[Arc<Vcpu>]) -> Result<KVVec<Self>> {
        let mut all = KVVec::with_capacity(vcpus.len(), GFP_KERNEL)?;
        for vcpu in vcpus {
            all.push(vcpu.recording(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// Its record, if it has one.
    pub(super) fn hot(&self) -> Option<&Hot> {
        self.hot.as_deref().map(|hot| &**hot)
    }

    /// What changes with each exit and entry.
    pub(super) fn mark(&self) -> Option<Mark> {
        self.hot().map(|(_, record, _)| record.mark())
    }
}

/// A vCPU.
#[pin_data]
pub(crate) struct Vcpu {
    #[pin]
    links: ListLinks,
    /// A circle, until [`Vm::vcpus`] is emptied.
    pub(super) vm: Arc<Vm>,
    pub(super) id: VcpuId,
    pub(super) lapic: Option<Lapic>,
    /// The number user space gave it.
    pub(super) number: i32,
    /// Exits before there was a record for it.
    early: AtomicU64,
    #[pin]
    pub(super) recorded: Mutex<Recorded>,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Vcpu { untracked; }
}
impl_list_item! {
    impl ListItem<0> for Vcpu { using ListLinks { self.links }; }
}

/// Allocations in hooks and probes: they may fail, and then somebody comes again.
const ATOMIC: kernel::alloc::Flags = kernel::alloc::flags::GFP_ATOMIC;

impl Vm {
    /// For a VM that is to be put into `Registry::known` at once. Any context.
    pub(super) fn new(vm: LiveVm<'_>, number: u64) -> Result<ListArc<Self>> {
        ListArc::pin_init(
            try_pin_init!(Self {
                links <- ListLinks::new(),
                gate <- Gate::new(vm),
                poke <- Target::new(),
                name: vm.name(),
                number,
                ended: AtomicBool::new(false),
                other_name: AtomicBool::new(false),
                vcpus <- new_mutex!(KVVec::new()),
                folder <- new_mutex!(None),
            }),
            ATOMIC | __GFP_NOWARN,
        )
    }

    /// Which it is, as long as it has not ended.
    pub(super) fn id(&self) -> VmId {
        self.gate.id()
    }

    /// The number of the thread that made it.
    pub(crate) fn maker(&self) -> u32 {
        self.name.pid
    }

    /// Whether it has ended.
    pub(super) fn ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// It has, with `Registry::known` held.
    pub(super) fn set_ended(&self) {
        self.ended.store(true, Relaxed);
    }

    /// Whether its folder has KVM's name for it.
    pub(super) fn has_own_name(&self) -> bool {
        !self.other_name.load(Relaxed)
    }

    /// It has not: that name was taken.
    pub(super) fn set_other_name(&self) {
        self.other_name.store(true, Relaxed);
    }

    /// Its vCPUs now.
    pub(super) fn vcpus(&self) -> Result<KVVec<Arc<Vcpu>>> {
        let vcpus = self.vcpus.lock();
        let mut all = KVVec::with_capacity(vcpus.len(), GFP_KERNEL)?;
        for vcpu in vcpus.iter() {
            all.push(vcpu.clone(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// What is recorded of each of them.
    pub(super) fn recordings(&self) -> Result<KVVec<Recording>> {
        Recording::all_of(&self.vcpus()?)
    }
}

impl Vcpu {
    /// For a vCPU of that VM. Any context.
    pub(super) fn new(vm: Arc<Vm>, vcpu: LiveVcpu<'_>) -> Result<ListArc<Self>> {
        ListArc::pin_init(
            try_pin_init!(Self {
                links <- ListLinks::new(),
                vm,
                id: vcpu.id(),
                lapic: vcpu.lapic(),
                number: vcpu.number(),
                early: AtomicU64::new(0),
                recorded <- new_mutex!(Recorded { hot: None, last_before: None }),
            }),
            ATOMIC | __GFP_NOWARN,
        )
    }

    /// An exit that no record takes. Gives how many there have been.
    pub(super) fn exit_early(&self) -> u64 {
        self.early.fetch_add(1, Relaxed) + 1
    }

    /// What is recorded of it.
    pub(super) fn recording(&self) -> Recording {
        let recorded = self.recorded.lock();
        Recording {
            hot: recorded.hot.clone(),
            early: self.early.load(Relaxed),
        }
    }

    /// The last exit.
    pub(super) fn last(&self) -> Option<(Vendor, Last)> {
        let recorded = self.recorded.lock();
        recorded
            .hot
            .as_ref()
            .and_then(|hot| last_of(hot))
            .or(recorded.last_before)
    }

    /// Go on with another record, begun empty; gives the one before. `switch` makes probes go from
    /// that one to the new one; who does the same at the same time waits.
    pub(super) fn replace(
        &self,
        new: Arc<Owned<Hot>>,
        switch: impl FnOnce(&Owned<Hot>, &Owned<Hot>),
    ) -> Option<Arc<Owned<Hot>>> {
        let mut recorded = self.recorded.lock();
        let before = recorded.hot.replace(new.clone())?;
        switch(&before, &new);
        recorded.last_before = last_of(&before).or(recorded.last_before);
        self.early.store(0, Relaxed);
        Some(before)
    }
}

fn last_of(hot: &Owned<Hot>) -> Option<(Vendor, Last)> {
    let (source, record, _) = &**hot;
    let vendor = source.vendor();
    record.last(vendor).map(|last| (vendor, last))
}
