// SPDX-License-Identifier: GPL-2.0
//! What is recorded of one vCPU beside its exits ([`super::exits`]), in fixed memory.

use super::{faults::Faults, msrs::Msrs, vectors::Vectors};
use core::mem::size_of;

/// What is recorded. All zero bytes is the state before anything happened.
pub struct Events {
    /// MSRs.
    pub msrs: Msrs,
    /// Page faults.
    pub faults: Faults,
    /// Interrupts.
    pub vectors: Vectors,
}

const _: () = assert!(size_of::<Events>() <= 24 << 10);
