// SPDX-License-Identifier: GPL-2.0
//! Lines that are up until the guest's EOI: bindings with resample.
//!
//! KVM tells its own of an EOI by a list that no module can enter. But it passes a tracepoint on the
//! way, with none of the chips' locks held: there the line goes down, before KVM looks whether it
//! is still up, and the second eventfd is signalled. The tracepoint tells chip and pin; whose they
//! are follows from the task, which is the one that runs the vCPU.
//!
//! All bindings of a GSI share a source, as KVM's do: at the EOI the line goes down once, for all that
//! held it up.
//!
//! Locks: `list` (spinlock), inside it a gate. Taken by tasks only.

use super::binding::{Binding, What};
use crate::wrap::{
    acks::{Acks, Pin},
    gate::InTask,
    irq::{Source, Taken},
    kvm::MmId,
};
use core::sync::atomic::Ordering::Relaxed;
use kernel::{
    list::{List, ListArc},
    new_spinlock,
    prelude::*,
    sync::{Arc, ArcBorrow, SpinLock},
};

/// All bindings with resample.
#[pin_data]
pub(super) struct Levels {
    #[pin]
    list: SpinLock<List<Binding, 1>>,
}

/// Whether two bindings hold up the same line.
fn same_line(one: &Binding, gsi: u32, other: &Binding) -> bool {
    Arc::ptr_eq(&one.vm, &other.vm) && matches!(other.what, What::Level(its) if its == gsi)
}

impl Levels {
    /// None.
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                list <- new_spinlock!(List::new()),
            }),
            GFP_KERNEL,
        )
    }

    /// Add one.
    pub(super) fn join(&self, binding: ListArc<Binding, 1>) {
        self.list.lock().push_back(binding);
    }

    /// Raise a line.
    pub(super) fn raise(vm: &InTask<'_>, gsi: u32) -> Result<Taken> {
        vm.set_gsi(gsi, Source::Resample, true)
    }

    /// Close one and take it out; if nobody else holds its line up that goes down.
    pub(super) fn leave(&self, binding: &Binding) {
        let What::Level(gsi) = binding.what else {
            return;
        };
        let mut list = self.list.lock();
        binding.vm.gate.enter(|vm| {
            binding.closed.store(true, Relaxed);
            let was_up = binding.up.swap(false, Relaxed);
            let others = |other: &Binding| same_line(binding, gsi, other) && other.up.load(Relaxed);
            if was_up && !list.iter().any(|other| others(&other)) {
                // Fails if the route has gone: then the pin stays up, as KVM's own do.
                let _ = vm.set_gsi(gsi, Source::Resample, false);
            }
        });
        let mut cursor = list.cursor_front();
        while let Some(next) = cursor.peek_next() {
            if core::ptr::eq(&*next.arc(), binding) {
                next.remove();
                break;
            }
            cursor.move_next();
        }
    }

    /// Lower the line of a pin that the guest of the current task has ended, if it is ours.
    fn lower(&self, pin: Pin) {
        let mm = MmId::current();
        let list = self.list.lock();
        for binding in list.iter() {
            let What::Level(gsi) = binding.what else {
                continue;
            };
            if binding.mm != mm || !binding.up.load(Relaxed) {
                continue;
            }
            binding.vm.gate.enter(|vm| {
                if vm.gsi_of(pin) != Some(gsi) || !vm.is_run_here() {
                    return;
                }
                // Fails if the route has gone: then the pin stays up, as KVM's own do.
                let _ = vm.set_gsi(gsi, Source::Resample, false);
                for other in list.iter() {
                    if same_line(&binding, gsi, &other) && other.up.swap(false, Relaxed) {
                        other.owed.store(true, Relaxed);
                    }
                }
            });
        }
    }

    /// One that is to be told that its line has gone down.
    fn next_owed(&self) -> Option<Arc<Binding>> {
        let list = self.list.lock();
        let mut owed = list
            .iter()
            .filter(|binding| binding.owed.swap(false, Relaxed));
        owed.next().map(Arc::from)
    }
}

impl Acks for Levels {
    fn acked(this: ArcBorrow<'_, Self>, pin: Pin) {
        this.lower(pin);
        while let Some(binding) = this.next_owed() {
            binding.notify();
        }
    }
}
