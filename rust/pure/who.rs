// SPDX-License-Identifier: GPL-2.0
//! Which vCPU of which VM something is kept for, as tables and folders call them; written once, before
//! anybody looks, and read without a lock.

use core::sync::atomic::{
    AtomicU64, AtomicU8,
    Ordering::{Relaxed, Release},
};

/// The longest name of a VM, with a zero byte.
pub const NAME: usize = 32;

/// A vCPU's number and its VM's name. All zero bytes: not known.
pub struct Who {
    name: [AtomicU8; NAME],
    vcpu: AtomicU64,
}

impl Who {
    /// It is this one.
    pub fn set(&self, name: &[u8; NAME], vcpu: u32) {
        for (to, &from) in self.name.iter().zip(name) {
            to.store(from, Relaxed);
        }
        self.vcpu.store(vcpu.into(), Release);
    }

    /// The VM's name, with zero bytes behind it.
    pub fn name(&self) -> [u8; NAME] {
        let mut name = [0; NAME];
        for (to, from) in name.iter_mut().zip(&self.name) {
            *to = from.load(Relaxed);
        }
        name
    }

    /// The vCPU's number.
    pub fn vcpu(&self) -> u32 {
        self.vcpu.load(Relaxed) as u32
    }
}
