// SPDX-License-Identifier: GPL-2.0
//! What is recorded of one vCPU beside its exits ([`super::exits`]), in fixed memory.

use super::{faults::Faults, msrs::Msrs, vectors::Vectors, who::Who};
use core::{mem::size_of, sync::atomic::AtomicU64};

/// What is recorded. All zero bytes is the state before anything happened.
pub struct Events {
    /// MSRs.
    pub msrs: Msrs,
    /// Page faults.
    pub faults: Faults,
    /// Interrupts.
    pub vectors: Vectors,
    /// Whose they are.
    pub who: Who,
    /// Of the last exit that is traced: the reason's code and what hardware says beside it.
    pub traced: [AtomicU64; 2],
}

const _: () = assert!(size_of::<Events>() <= 24 << 10);
