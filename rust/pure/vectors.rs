// SPDX-License-Identifier: GPL-2.0
//! What is recorded of one vCPU's interrupts, by vector.
//!
//! One writer, the task that runs the vCPU, but of what is accepted: that anybody may send. Readers
//! get each counter as it is when they read it.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// How many vectors there are.
pub const VECTORS: usize = 256;

/// What is recorded. All zero bytes is the state without any interrupt.
pub struct Vectors {
    injected: [AtomicU64; VECTORS],
    accepted: [AtomicU64; VECTORS],
    ended: [AtomicU64; VECTORS],
    /// Hardware has injected and ended some of them by itself, or may have.
    hidden: AtomicBool,
}

/// A number that is no vector is ignored.
fn bump(counters: &[AtomicU64; VECTORS], vector: u32) {
    if let Some(counter) = counters.get(vector as usize) {
        counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

impl Vectors {
    /// The writer: an interrupt was put into the guest.
    pub fn inject(&self, vector: u32) {
        bump(&self.injected, vector);
    }

    /// Whoever sends: the vCPU's LAPIC was given an interrupt.
    pub fn accept(&self, vector: u8) {
        if let Some(counter) = self.accepted.get(usize::from(vector)) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// The writer: the guest has ended one.
    pub fn end(&self, vector: u32) {
        bump(&self.ended, vector);
    }

    /// Whoever knows: what is counted as injected and ended is not all, from now on.
    pub fn hide(&self) {
        self.hidden.store(true, Relaxed);
    }

    /// A reader: whether it is not all.
    pub fn hidden(&self) -> bool {
        self.hidden.load(Relaxed)
    }

    /// A reader: how many were injected, accepted, and ended.
    pub fn of(&self, vector: usize) -> [u64; 3] {
        [&self.injected, &self.accepted, &self.ended]
            .map(|counters| counters.get(vector).map_or(0, |c| c.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own() {
        let vectors = Vectors {
            injected: [const { AtomicU64::new(0) }; VECTORS],
            accepted: [const { AtomicU64::new(0) }; VECTORS],
            ended: [const { AtomicU64::new(0) }; VECTORS],
            hidden: AtomicBool::new(false),
        };
        assert!(!vectors.hidden());
        vectors.hide();
        assert!(vectors.hidden());
        for vector in 0..300 {
            (0..vector).for_each(|_| vectors.inject(vector));
            (0..vector / 2).for_each(|_| vectors.end(vector));
            if let Ok(vector) = u8::try_from(vector) {
                (0..vector / 3).for_each(|_| vectors.accept(vector));
            }
        }
        for vector in 0..VECTORS {
            let number = vector as u64;
            assert_eq!(vectors.of(vector), [number, number / 3, number / 2]);
        }
        assert_eq!(vectors.of(VECTORS), [0; 3]);
    }
}
