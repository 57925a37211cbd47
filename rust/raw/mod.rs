// SPDX-License-Identifier: GPL-2.0
//! The raw layer: what bindgen made of [`bindings.h`], and nothing else.
//!
//! Only the wrappers (`crate::wrap`) use it. Types that the kernel crate has already are taken from
//! there, so that a pointer from one side is a pointer on the other.
#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    rustdoc::all,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

use kernel::{bindings::tracepoint, ffi};

include!(concat!(
    env!("KVMATE_OBJ"),
    "/rust/raw/bindings_generated.rs"
));
