// SPDX-License-Identifier: GPL-2.0
//! A VM's part of the debugfs tree.

use super::{
    exits::{self, Exits},
    exits_hist, faults, irqs,
    map::{Lookup, Memslots, Ranges, Stage2},
    msrs,
    registry::Registry,
    snapshot::Snapshot,
    times,
    vcpus::Vcpus,
    vm::{Vcpu, Vm},
};
use crate::{
    poke::{Bindings, Inject, InjectStatus, Irqfds, LatencyTable, StormFile, StormStatus},
    pure::{line::Line, who::NAME},
    wrap::debugfs::{Dir, File},
};
use core::fmt::Write;
use kernel::{prelude::*, str::CString, sync::Arc};

/// `vcpu<N>/`. Files stand before their folders: they go first.
struct VcpuFolder {
    _files: [File; 6],
    _dir: Dir,
}

/// `vms/<pid>-<fd>/`
pub(crate) struct Folder {
    _files: [File; 20],
    vcpus: KVec<VcpuFolder>,
    dir: Dir,
}

/// The name that a VM's folder has or had. Any context.
pub(crate) fn name_of(vm: &Vm) -> Line<NAME> {
    let mut line = Line::new();
    let own = vm.name.own().filter(|_| vm.has_own_name());
    // Cannot fail: what is too long is cut.
    let _ = match own {
        Some(name) => line.write_fmt(fmt!("{name}")),
        None => line.write_fmt(fmt!("{}-x{}", vm.name.pid, vm.number)),
    };
    line
}

impl Folder {
    /// Make it in `vms`, by KVM's own name of the VM, or if that is taken by another.
    pub(super) fn new(vms: &Dir, vm: &Arc<Vm>, registry: &Arc<Registry>) -> Result<Self> {
        let dir = match vm.name.own().map(|name| Dir::new(name, Some(vms))) {
            None | Some(Err(EEXIST)) => {
                vm.set_other_name();
                Dir::new(name_of(vm).as_c_str(), Some(vms))?
            }
            Some(dir) => dir?,
        };
        let reset = exits::Reset {
            vm: vm.clone(),
            registry: registry.clone(),
        };
        let exits = Arc::new(exits::OfVm(vm.clone(), Exits::show), GFP_KERNEL)?;
        let exits_hist = Arc::new(exits::OfVm(vm.clone(), exits_hist::show), GFP_KERNEL)?;
        let vcpus = Arc::new(Vcpus(vm.clone()), GFP_KERNEL)?;
        let inject = Inject::new(vm.clone(), registry.poke.clone());
        let status = InjectStatus(vm.clone());
        let irqfds = Arc::new(Irqfds(vm.clone()), GFP_KERNEL)?;
        let latency = Arc::new(LatencyTable(vm.clone()), GFP_KERNEL)?;
        let bindings = Arc::new(Bindings(vm.clone()), GFP_KERNEL)?;
        let storm = StormFile::new(vm.clone(), registry.poke.clone());
        let storm_status = StormStatus(vm.clone());
        let times = Arc::new(exits::OfVm(vm.clone(), times::show), GFP_KERNEL)?;
        let msrs = Arc::new(msrs::OfVm(vm.clone()), GFP_KERNEL)?;
        let faults = Arc::new(faults::OfVm(vm.clone()), GFP_KERNEL)?;
        let irqs = Arc::new(irqs::OfVm(vm.clone()), GFP_KERNEL)?;
        let snapshot = Arc::new(Snapshot(vm.clone()), GFP_KERNEL)?;
        let memslots = Arc::new(Memslots(vm.clone()), GFP_KERNEL)?;
        let stage2 = Arc::new(Stage2(vm.clone()), GFP_KERNEL)?;
        let ranges = Arc::new(Ranges(vm.clone()), GFP_KERNEL)?;
        let lookup = Arc::new(Lookup::new(vm.clone()), GFP_KERNEL)?;
        Ok(Self {
            _files: [
                File::table(c"snapshot", &dir, snapshot)?,
                File::lines(c"memslots", &dir, memslots)?,
                File::lines(c"stage2", &dir, stage2)?,
                File::lines(c"stage2_map", &dir, ranges)?,
                File::question(c"lookup", &dir, lookup)?,
                File::table(c"exits", &dir, exits)?,
                File::table(c"exits_hist", &dir, exits_hist)?,
                File::table(c"vcpus", &dir, vcpus)?,
                File::table(c"times", &dir, times)?,
                File::table(c"msrs", &dir, msrs)?,
                File::table(c"faults", &dir, faults)?,
                File::table(c"irqs", &dir, irqs)?,
                File::trigger(c"reset", &dir, Arc::new(reset, GFP_KERNEL)?)?,
                File::command(c"inject", &dir, Arc::new(inject, GFP_KERNEL)?)?,
                File::table(c"irqfds", &dir, irqfds)?,
                File::table(c"bindings", &dir, bindings)?,
                File::table(c"latency", &dir, latency)?,
                File::table(c"inject_status", &dir, Arc::new(status, GFP_KERNEL)?)?,
                File::dialogue(c"storm", &dir, Arc::new(storm, GFP_KERNEL)?)?,
                File::table(c"storm_status", &dir, Arc::new(storm_status, GFP_KERNEL)?)?,
            ],
            vcpus: KVec::new(),
            dir,
        })
    }

    /// Add a vCPU's.
    pub(super) fn add(&mut self, vcpu: &Arc<Vcpu>) -> Result {
        self.vcpus.reserve(1, GFP_KERNEL)?;
        let name = CString::try_from_fmt(fmt!("vcpu{}", vcpu.number))?;
        let dir = Dir::new(&name, Some(&self.dir))?;
        let exits = Arc::new(exits::OfVcpu(vcpu.clone(), Exits::show), GFP_KERNEL)?;
        let exits_hist = Arc::new(exits::OfVcpu(vcpu.clone(), exits_hist::show), GFP_KERNEL)?;
        let times = Arc::new(exits::OfVcpu(vcpu.clone(), times::show), GFP_KERNEL)?;
        let msrs = Arc::new(msrs::OfVcpu(vcpu.clone()), GFP_KERNEL)?;
        let faults = Arc::new(faults::OfVcpu(vcpu.clone()), GFP_KERNEL)?;
        let irqs = Arc::new(irqs::OfVcpu(vcpu.clone()), GFP_KERNEL)?;
        let folder = VcpuFolder {
            _files: [
                File::table(c"exits", &dir, exits)?,
                File::table(c"exits_hist", &dir, exits_hist)?,
                File::table(c"times", &dir, times)?,
                File::table(c"msrs", &dir, msrs)?,
                File::table(c"faults", &dir, faults)?,
                File::table(c"irqs", &dir, irqs)?,
            ],
            _dir: dir,
        };
        self.vcpus.push(folder, GFP_KERNEL)?;
        Ok(())
    }
}
