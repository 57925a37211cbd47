// SPDX-License-Identifier: GPL-2.0
//! What a VM has as somebody into whom interrupts are injected.
//!
//! It is a part of [`crate::see::Vm`], and is freed with it. See [`super`] for locks and ends.

use super::{binding::Binding, inject::Told, storm::State, storms::Storms};
use crate::{
    pure::inject::GSIS,
    wrap::{gate::Gate, irq::Source},
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use kernel::{
    list::List,
    new_mutex, new_spinlock,
    prelude::*,
    sync::{Mutex, SpinLock},
};

const WORDS: usize = GSIS as usize / 64;

/// The part of a VM that is poked.
#[pin_data]
pub(crate) struct Target {
    /// What the last write to `inject` came to.
    #[pin]
    told: SpinLock<Option<Told>>,
    /// The GSIs that the shell holds up. Written behind the gate of tasks.
    held: [AtomicU64; WORDS],
    /// We go: no line is held up any more. Written behind the gate of tasks.
    gone: AtomicBool,
    /// Those that are open, also when the VM has ended.
    #[pin]
    pub(super) bindings: Mutex<List<Binding, 0>>,
    #[pin]
    pub(crate) storms: Storms,
}

impl Target {
    /// Nothing is held. Any context.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            told <- new_spinlock!(None),
            held: [const { AtomicU64::new(0) }; WORDS],
            gone: AtomicBool::new(false),
            bindings <- new_mutex!(List::new()),
            storms <- Storms::new(),
        })
    }

    /// Keep what a write came to.
    pub(super) fn tell(&self, told: Told) {
        *self.told.lock() = Some(told);
    }

    /// What the last write came to.
    pub(super) fn told(&self) -> Option<Told> {
        *self.told.lock()
    }

    /// Whether a line may still go up. To be asked behind the gate of tasks.
    pub(super) fn may_rise(&self) -> bool {
        !self.gone.load(Relaxed)
    }

    /// Remember whether a GSI is held up. To be called behind the gate of tasks.
    pub(super) fn hold(&self, gsi: u32, up: bool) {
        let Some(word) = self.held.get(gsi as usize / 64) else {
            return;
        };
        let bit = 1 << (gsi % 64);
        if up {
            word.fetch_or(bit, Relaxed);
        } else {
            word.fetch_and(!bit, Relaxed);
        }
    }

    /// We go: end the storm, lower all that is held up, and let nothing be held up any more.
    pub(crate) fn let_go(&self, gate: &Gate) {
        self.storms.stop(State::Ended);
        gate.enter(|vm| {
            self.gone.store(true, Relaxed);
            for (gsi, word) in (0..GSIS).step_by(64).zip(&self.held) {
                let held = word.swap(0, Relaxed);
                for gsi in (0..64)
                    .filter(|bit| held >> bit & 1 == 1)
                    .map(|bit| gsi + bit)
                {
                    // The route may have gone: then the pin stays up, as KVM's own do.
                    let _ = vm.set_gsi(gsi, Source::Held, false);
                }
            }
        });
    }
}
