// SPDX-License-Identifier: GPL-2.0
//! The wrappers: one kernel object a file.
//!
//! Each owns its object, states its invariants and is safe to use; none decides anything. `unsafe`
//! stands here and in [`crate::raw`] only.

pub(crate) mod byte;
pub(crate) mod capability;
pub(crate) mod debugfs;
pub(crate) mod exit_probe;
pub(crate) mod percpu;
pub(crate) mod uabi;
