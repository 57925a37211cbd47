// SPDX-License-Identifier: GPL-2.0
//! Which VMs there are.
//!
//! A vCPU is found when it is made (hook), when kvm is there already (a walk over all tasks' files),
//! or when it runs and nobody knows it (probe): by whom first. Finding may be done in any context
//! and only notes it; then somebody who may sleep gives it a record and a folder. When it was made
//! that is the task that made it, before it gets to run it, so not one exit is missed. Exits of a
//! vCPU that runs without a record are counted as such.
//!
//! See [`super`] for locks and ends.

use super::{
    ended::Ended,
    folder::{self, Folder},
    vm::{Hot, Vcpu, Vm},
};
use crate::{
    poke::Poke,
    trace::Trace,
    wrap::{
        by_vcpu::{ByVcpu, Owned},
        debugfs::Dir,
        files,
        kvm::{LiveVcpu, LiveVm, VmId},
        life::Life,
        percpu::PerCpuCounter,
        task_work::{InFlight, OnReturn},
        work_queue::WorkQueue,
    },
};
use core::{
    mem,
    sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering::Relaxed},
};
use kernel::{
    list::List,
    new_mutex, new_spinlock_irq, new_work, pr_warn_once,
    prelude::*,
    sync::{Arc, ArcBorrow, Mutex, SpinLockIrq},
    workqueue::{impl_has_work, Work, WorkItem},
};

/// The VMs, by what is to be done for them. No sleep while this is held.
struct Known {
    /// Whether VMs may be looked into, and hooks on their ends stand. Else there are none in `vms`.
    shown: bool,
    /// Those that have not ended.
    vms: List<Vm>,
    /// vCPUs without a record yet; their VMs are in `vms`.
    newcomers: List<Vcpu>,
    /// Those that have ended since their folders were last looked after.
    ending: List<Vm>,
}

/// The part of the debugfs tree that VMs have.
struct Tree {
    vms: Dir,
    /// Ended, their folders gone, and not freed yet.
    ended: List<Vm>,
}

/// What happened to a vCPU that was found.
pub(super) enum Found {
    /// VMs are not shown.
    NotShown,
    /// It was known and has a record.
    Recorded,
    /// It was known but has none yet.
    Waiting,
    /// It is new, or has waited long: somebody has to call [`Registry::look_after`].
    New,
}

/// The registry.
#[pin_data]
pub(crate) struct Registry {
    pub(super) total: PerCpuCounter,
    pub(super) hot: Arc<ByVcpu<Hot>>,
    #[pin]
    known: SpinLockIrq<Known>,
    #[pin]
    tree: Mutex<Tree>,
    in_flight: Arc<InFlight>,
    #[pin]
    queue: SpinLockIrq<Option<WorkQueue>>,
    #[pin]
    work: Work<Registry>,
    pub(super) trace: Arc<Trace>,
    /// Who wants exits traced: [`super::traced::LINES`], [`super::traced::EVENTS`]. As `splitting`.
    traced: AtomicU8,
    /// Odd while times are split. Changes, and is followed, under `known`.
    splitting: AtomicU64,
    /// `Known::shown`, for a glance without the lock.
    pub(super) shown: AtomicBool,
    /// How many VMs there have been.
    count: AtomicU64,
    /// Whether somebody could not be noted for want of memory: look at all files again.
    walk_wanted: AtomicBool,
    ended: Arc<Ended>,
    pub(super) poke: Arc<Poke>,
}

impl_has_work! {
    impl HasWork<Self> for Registry { self.work }
}

impl Registry {
    /// No VM yet. Their folders will be in `vms`.
    pub(crate) fn new(
        vms: Dir,
        ended: Arc<Ended>,
        poke: Arc<Poke>,
        trace: Arc<Trace>,
    ) -> Result<Arc<Self>> {
        let (total, hot) = (PerCpuCounter::new()?, ByVcpu::new()?);
        let (in_flight, queue) = (InFlight::new()?, WorkQueue::new(c"kvmate")?);
        Arc::pin_init(
            pin_init!(Self {
                total,
                hot,
                known <- new_spinlock_irq!(Known {
                    shown: false,
                    vms: List::new(),
                    newcomers: List::new(),
                    ending: List::new(),
                }),
                tree <- new_mutex!(Tree { vms, ended: List::new() }),
                in_flight,
                queue <- new_spinlock_irq!(Some(queue)),
                work <- new_work!("kvmate::registry"),
                trace,
                traced: AtomicU8::new(0),
                splitting: AtomicU64::new(0),
                shown: AtomicBool::new(false),
                count: AtomicU64::new(0),
                walk_wanted: AtomicBool::new(false),
                ended,
                poke,
            }),
            GFP_KERNEL,
        )
    }

    /// How many exits there were while observed, of all vCPUs, known or not.
    pub(crate) fn total(&self) -> u64 {
        self.total.sum()
    }

    /// No probe runs, and some may again: what follows the last exits is not seen.
    pub(super) fn lose_entries(&self) {
        self.hot.each(|(_, record, _)| record.lose_entry());
    }

    /// Split the times of exits from now on, or do not.
    pub(super) fn split_times(&self, on: bool) {
        let _known = self.known.lock();
        let turn = self.splitting.load(Relaxed);
        if on == (turn % 2 == 1) {
            return;
        }
        self.splitting.store(turn + 1, Relaxed);
        self.hot.each(|(source, ..)| source.set_split(turn + 1));
    }

    /// Somebody wants exits traced from now on, or does not any more. Any context.
    pub(super) fn trace_exits(&self, who: u8, on: bool) {
        let _known = self.known.lock();
        let before = self.traced.load(Relaxed);
        let wants = if on { before | who } else { before & !who };
        self.traced.store(wants, Relaxed);
        self.hot.each(|(source, ..)| source.set_traced(wants != 0));
    }

    /// Who does.
    pub(super) fn trace_wants(&self) -> u8 {
        self.traced.load(Relaxed)
    }

    /// Let probes find a record, with `known` held.
    fn connect(&self, hot: &Owned<Hot>, vcpu: &Vcpu) {
        let (source, _, events) = &**hot;
        source.set_split(self.splitting.load(Relaxed));
        source.set_traced(self.trace_wants() != 0);
        let name = folder::name_of(&vcpu.vm);
        events.who.set(name.bytes(), vcpu.number.unsigned_abs());
        hot.connect(vcpu.vm.id(), vcpu.id, vcpu.lapic);
    }

    /// Note a vCPU. Any context. `ran`: by an exit that no record has taken.
    pub(super) fn found(&self, vcpu: LiveVcpu<'_>, ran: bool) -> Result<Found> {
        let mut known = self.known.lock();
        if !known.shown {
            return Ok(Found::NotShown);
        }
        if self.hot.contains(vcpu.id()) {
            return Ok(Found::Recorded);
        }
        if let Some(waiting) = known.newcomers.iter().find(|v| v.id == vcpu.id()) {
            // Whoever looks after newcomers may have lacked memory: at each doubling it is tried again.
            if ran && waiting.exit_early().is_power_of_two() {
                return Ok(Found::New);
            }
            return Ok(Found::Waiting);
        }
        let vm = self.vm_of(&mut known, vcpu.vm())?;
        let newcomer = Vcpu::new(vm, vcpu)?;
        if ran {
            newcomer.exit_early();
        }
        known.newcomers.push_back(newcomer);
        Ok(Found::New)
    }

    /// The VM, noted if it is new.
    fn vm_of(&self, known: &mut Known, vm: LiveVm<'_>) -> Result<Arc<Vm>> {
        if let Some(vm) = known.vms.iter().find(|known| known.id() == vm.id()) {
            return Ok(vm.into());
        }
        let new = Vm::new(vm, self.count.fetch_add(1, Relaxed) + 1)?;
        let vm = new.clone_arc();
        known.vms.push_back(new);
        Ok(vm)
    }

    /// Have a worker look after what was found or has ended. Any context.
    pub(super) fn look_after_soon(this: ArcBorrow<'_, Self>) {
        if let Some(queue) = &*this.queue.lock() {
            // Already queued: then it has not begun, and will see this too.
            let _ = queue.enqueue(Arc::from(this));
        }
    }

    /// VMs may be looked into, and hooks stand: begin to know VMs.
    pub(super) fn show(self: &Arc<Self>) {
        self.in_flight.open();
        self.known.lock().shown = true;
        self.shown.store(true, Relaxed);
        self.walk();
    }

    /// Know a VM whose file the caller holds, also without a vCPU. `EOPNOTSUPP`: VMs are not shown.
    pub(super) fn adopt(self: &Arc<Self>, vm: LiveVm<'_>) -> Result<Arc<Vm>> {
        let noted = {
            let mut known = self.known.lock();
            if !known.shown {
                return Err(EOPNOTSUPP);
            }
            self.vm_of(&mut known, vm)?
        };
        let mut tree = self.tree.lock();
        self.remove_folders(&mut tree);
        self.make_folder(&tree, &noted);
        Ok(noted)
    }

    /// Find the VMs that are there already.
    fn walk(self: &Arc<Self>) {
        files::each_vm(|vm| {
            // Without memory: it is found again when it runs.
            let _ = self.adopt(vm);
            vm.each_vcpu(|vcpu| {
                let _ = self.found(vcpu, false);
            });
        });
        self.look_after();
    }

    /// Give every newcomer a record and a folder. Sleeps.
    fn look_after(self: &Arc<Self>) {
        let mut tree = self.tree.lock();
        loop {
            // Each time: the next newcomer may have the name of a VM that has just ended.
            self.remove_folders(&mut tree);
            let Some(vcpu) = self.known.lock().newcomers.iter().next().map(Arc::from) else {
                break;
            };
            if let Err(error) = self.equip(&tree, &vcpu) {
                pr_warn_once!("no record for a vCPU: {error:?}; its exits are only counted\n");
                break;
            }
        }
    }

    /// Give a newcomer a record and a folder.
    fn equip(self: &Arc<Self>, tree: &Tree, vcpu: &Arc<Vcpu>) -> Result {
        let hot = Arc::new(Owned::new(&self.hot)?, GFP_KERNEL)?;
        vcpu.vm.vcpus.lock().reserve(1, GFP_KERNEL)?;
        vcpu.recorded.lock().hot = Some(hot.clone());
        self.make_folder(tree, &vcpu.vm);
        if let Some(folder) = &mut *vcpu.vm.folder.lock() {
            folder
                .add(vcpu)
                .unwrap_or_else(|error| pr_warn!("no folder for a vCPU: {error:?}\n"));
        }
        let mut known = self.known.lock();
        let mut cursor = known.newcomers.cursor_front();
        while let Some(next) = cursor.peek_next() {
            if core::ptr::eq(&*next.arc(), &**vcpu) {
                next.remove();
                self.connect(&hot, vcpu);
                break;
            }
            cursor.move_next();
        }
        drop(known);
        // Only now can it be reset: else that could put another record in this one's place before
        // this one is connected. Cannot fail: there is room, which is taken under `tree` only.
        let _ = vcpu.vm.vcpus.lock().push_within_capacity(vcpu.clone());
        Ok(())
    }

    /// Make a VM's folder, if it has none and has not ended.
    fn make_folder(self: &Arc<Self>, tree: &Tree, vm: &Arc<Vm>) {
        let mut folder = vm.folder.lock();
        if folder.is_none() && !vm.ended() {
            *folder = Folder::new(&tree.vms, vm, self)
                .inspect_err(|error| pr_warn!("no folder for a VM: {error:?}\n"))
                .ok();
        }
    }

    /// Write down the totals of VMs that have ended, and then take their folders away, so that their
    /// names are free.
    fn remove_folders(&self, tree: &mut Tree) {
        let mut ending = mem::replace(&mut self.known.lock().ending, List::new());
        for vm in ending.iter() {
            self.ended.add(&vm);
            drop(vm.folder.lock().take());
        }
        tree.ended.push_all_back(&mut ending);
    }

    /// Free all that belongs to VMs that have ended. Sleeps.
    fn bury(&self) {
        let ended = {
            let mut tree = self.tree.lock();
            self.remove_folders(&mut tree);
            mem::replace(&mut tree.ended, List::new())
        };
        if ended.is_empty() {
            return;
        }
        self.hot.settle();
        for vm in ended.iter() {
            // Opens the circles.
            vm.poke.storms.forget();
            let vcpus = mem::replace(&mut *vm.vcpus.lock(), KVVec::new());
            drop(vcpus);
        }
    }

    /// Begin all records of a VM anew, or none: `ENOMEM`.
    pub(super) fn reset(&self, vm: &Vm) -> Result {
        let vcpus = vm.vcpus()?;
        let mut fresh = KVVec::with_capacity(vcpus.len(), GFP_KERNEL)?;
        for _ in vcpus.iter() {
            fresh.push(Arc::new(Owned::new(&self.hot)?, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        let mut before = KVVec::with_capacity(vcpus.len(), GFP_KERNEL)?;
        for (vcpu, fresh) in vcpus.iter().zip(fresh) {
            let old = vcpu.replace(fresh, |old, new| {
                let _known = self.known.lock();
                old.disconnect();
                if !vm.ended() {
                    self.connect(new, vcpu);
                }
            });
            before.push(old, GFP_KERNEL)?;
        }
        // The first to be dropped waits for probes, for all.
        Ok(())
    }

    /// A VM has ended. Any context.
    fn end(&self, vm: VmId) {
        let ended = {
            let mut known = self.known.lock();
            let Known {
                vms,
                newcomers,
                ending,
                ..
            } = &mut *known;
            let mut cursor = newcomers.cursor_front();
            while let Some(next) = cursor.peek_next() {
                if next.vm.id() == vm {
                    next.remove();
                } else {
                    cursor.move_next();
                }
            }
            let mut cursor = vms.cursor_front();
            loop {
                let Some(next) = cursor.peek_next() else {
                    return;
                };
                if next.id() == vm {
                    let ended = next.remove();
                    ended.set_ended();
                    let arc = ended.clone_arc();
                    ending.push_back(ended);
                    break arc;
                }
                cursor.move_next();
            }
        };
        ended.gate.close();
        self.hot.disconnect_vm(vm);
    }

    /// Hooks are about to go, and probes have gone: know no VM from now on, for nobody would tell of
    /// its end, and wait for the work that hooks gave to tasks.
    pub(super) fn hide(&self) {
        self.shown.store(false, Relaxed);
        self.known.lock().shown = false;
        self.in_flight.close();
        loop {
            let Some(vm) = self.known.lock().vms.iter().next().map(Arc::from) else {
                break;
            };
            vm.poke.let_go(&vm.gate);
            self.end(vm.id());
        }
    }

    /// We go: free all that is left of VMs. None is known, no hook stands and no probe runs any more.
    pub(super) fn free_all(&self) {
        self.poke.end();
        let queue = self.queue.lock().take();
        drop(queue);
        self.bury();
    }
}

impl Life for Registry {
    fn vcpu_made(this: ArcBorrow<'_, Self>, vcpu: LiveVcpu<'_>) {
        match this.found(vcpu, false) {
            Ok(Found::New) if this.in_flight.add(Arc::from(this)).is_ok() => {}
            Ok(Found::New) => Self::look_after_soon(this),
            Ok(_) => {}
            Err(_) => {
                this.walk_wanted.store(true, Relaxed);
                Self::look_after_soon(this);
            }
        }
    }

    fn vm_ends(this: ArcBorrow<'_, Self>, vm: LiveVm<'_>) {
        this.end(vm.id());
        Self::look_after_soon(this);
    }
}

impl OnReturn for Registry {
    fn on_return(this: &Arc<Self>) {
        this.look_after();
    }
}

impl WorkItem for Registry {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.bury();
        if this.walk_wanted.swap(false, Relaxed) {
            this.walk();
        } else {
            this.look_after();
        }
    }
}
