// SPDX-License-Identifier: GPL-2.0
//! Which stage-2 tables a VM's vCPUs use, and walks through them.

use super::super::vm::Vm;
use crate::{
    pure::stage2::{
        walk::{Met, Run, ENTRIES},
        Entry,
    },
    wrap::{
        kvm::LiveVm,
        schedule,
        stage2::{Mmu, RootId},
        tsc,
    },
};
use core::ops::ControlFlow;
use kernel::prelude::*;

/// How many entries a step looks at. KVM's MMU lock is held meanwhile: 130,000 instructions at most, and 8 KiB
/// of tables that may all have to come from memory, are tens of microseconds. That it is taken for writing
/// before, and waited for, is not counted.
const STEP: usize = 2 * ENTRIES;
/// How many runs a step can give.
pub(super) const RUNS: usize = ENTRIES;
/// How often a step is tried again when vCPUs get other roots all the time.
const TRIES: u32 = 64;

/// What a root's tables translate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Guest-physical addresses, in hardware's format.
    Tdp,
    /// Whatever the guest's own page tables do: it has no stage 2.
    Shadow,
    /// The same for the guest of a guest.
    Nested,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tdp => "tdp",
            Self::Shadow => "shadow",
            Self::Nested => "nested",
        }
    }
}

/// A root that is in use.
#[derive(Clone, Copy)]
pub(super) struct Root {
    pub(super) id: RootId,
    pub(super) mode: Mode,
    /// How many vCPUs have it.
    pub(super) vcpus: u32,
}

/// The roots that are in use, in the order of the first vCPU that has each. `EIO`: the VM has ended.
pub(super) fn roots(vm: &Vm) -> Result<KVVec<Root>> {
    let mut each = KVVec::new();
    // Behind the gate nothing is allocated: count there, and come again with that room.
    loop {
        let mut missed = 0;
        each.clear();
        let mut note = |id: Option<RootId>, mode| {
            let Some(id) = id else { return };
            let root = Root { id, mode, vcpus: 1 };
            missed += usize::from(each.push_within_capacity(root).is_err());
        };
        let looked = vm.gate.enter(|vm| {
            vm.each_vcpu(|vcpu| {
                let (own, nested) = vcpu.roots();
                let tdp = own.is_some_and(|id| id.role.is_stage2());
                note(own, if tdp { Mode::Tdp } else { Mode::Shadow });
                note(nested, Mode::Nested);
            });
        });
        looked.ok_or(EIO)?;
        if missed == 0 {
            break;
        }
        let room = each.len() + missed;
        each.clear();
        each.reserve(room, GFP_KERNEL)?;
    }
    let mut roots: KVVec<Root> = KVVec::new();
    for root in &each {
        schedule::breathe()?;
        match roots.iter_mut().find(|other| other.id == root.id) {
            Some(other) => other.vcpus += 1,
            None => roots.push(*root, GFP_KERNEL)?,
        }
    }
    Ok(roots)
}

/// A walk through the tables of a root.
pub(super) struct Walk {
    root: RootId,
    /// The frame to go on with.
    next: Option<u64>,
    /// Tables met, by level.
    pub(super) tables: [u64; 6],
    /// For how many cycles the MMU lock was held at most.
    pub(super) held: u64,
}

impl Walk {
    /// From frame `from` on.
    pub(super) fn new(root: RootId, from: u64) -> Self {
        Self {
            root,
            next: Some(from),
            tables: [0; 6],
            held: 0,
        }
    }

    /// One step: add what is met to `runs`, which is empty and has room for [`RUNS`]. False: there
    /// is nothing more. Runs of level 1 end with their table. Errors as [`Self::go`].
    pub(super) fn step(&mut self, vm: &Vm, runs: &mut KVec<Run>) -> Result<bool> {
        let mut tables = self.tables;
        let more = self.go(vm, STEP, |met| note(met, &mut tables, runs))?;
        self.tables = tables;
        Ok(more)
    }

    /// The entry of the frame that the walk stands at, with its address; none: nothing is there.
    /// Errors as [`Self::go`].
    pub(super) fn entry(&mut self, vm: &Vm) -> Result<Option<Entry>> {
        let mut found = None;
        self.go(vm, 1, |met| {
            if let Met::Entry(_, entry) = met {
                found = Some(entry);
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Go over `budget` entries. False: there was nothing more. `EIO`: the VM has ended. `EINTR`: a
    /// signal. `EAGAIN`: vCPUs got other roots each time.
    fn go(
        &mut self,
        vm: &Vm,
        budget: usize,
        mut met: impl FnMut(Met) -> ControlFlow<()>,
    ) -> Result<bool> {
        let Some(from) = self.next else {
            return Ok(false);
        };
        for _ in 0..TRIES {
            schedule::breathe()?;
            let Some((vcpu, root)) = vm.gate.enter(|vm| self.vcpu(*vm)).ok_or(EIO)? else {
                // No vCPU uses such tables any more.
                self.next = None;
                return Ok(false);
            };
            let walked = vm.gate.enter(|vm| {
                let mmu = Mmu::enter(vm.vcpu(vcpu)?);
                if mmu.id() != Some(root) {
                    return None;
                }
                let began = tsc::now();
                let next = mmu.root()?.walk(from, budget, &mut met);
                Some((next, tsc::now().wrapping_sub(began)))
            });
            if let Some((next, held)) = walked.ok_or(EIO)? {
                (self.root, self.next) = (root, next);
                self.held = self.held.max(held);
                return Ok(true);
            }
        }
        Err(EAGAIN)
    }

    /// A vCPU that uses the root; else one with another in its place.
    fn vcpu(&self, vm: LiveVm<'_>) -> Option<(i32, RootId)> {
        let (mut same, mut like) = (None, None);
        vm.each_vcpu(|vcpu| {
            let (Some(root), _) = vcpu.roots() else {
                return;
            };
            if root == self.root {
                same = Some((vcpu.number(), root));
            } else if root.role == self.root.role {
                like = Some((vcpu.number(), root));
            }
        });
        same.or(like)
    }
}

#[inline(always)]
fn note(met: Met, tables: &mut [u64; 6], runs: &mut KVec<Run>) -> ControlFlow<()> {
    let (gfn, entry) = match met {
        Met::Table(level) => {
            if let Some(count) = tables.get_mut(usize::from(level)) {
                *count += 1;
            }
            return ControlFlow::Continue(());
        }
        Met::Entry(gfn, entry) => (gfn, entry),
    };
    let run = Run::new(gfn, entry);
    let new_table = entry.level == 1 && gfn % ENTRIES as u64 == 0;
    match runs.last_mut() {
        Some(last) if last.goes_on(&run) && !new_table => last.pages += run.pages,
        _ => {
            // Cannot fail: the walk ends when it is full.
            let _ = runs.push_within_capacity(run);
        }
    }
    match runs.len() < RUNS {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    }
}
