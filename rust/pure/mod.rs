// SPDX-License-Identifier: GPL-2.0
//! What follows from values alone: no kernel, no state.
//!
//! The module compiles this folder as its `pure`, user space as the crate `kvmate-pure`, where its
//! tests run.

pub mod btf;
pub mod build_id;
pub mod cycles;
pub mod events;
pub mod exits;
pub mod faults;
pub mod histogram;
pub mod hole;
pub mod inject;
pub mod keyed;
pub mod latency;
pub mod layout;
pub mod line;
pub mod log_linear;
pub mod msrs;
pub mod page_flags;
pub mod range;
pub mod rate;
pub mod reason;
pub mod sketch;
pub mod sort;
pub mod stage2;
pub mod stats;
pub mod storm;
pub mod text;
pub mod times;
pub mod vectors;
pub mod who;
pub mod why;
