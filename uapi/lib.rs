// SPDX-License-Identifier: GPL-2.0
//! kvmate's interface to user space, generated from `kvmate.h`, whose comments document it, and
//! safe calls of it ([`control`]).
#![allow(missing_docs, non_camel_case_types, non_upper_case_globals)]

pub mod control;

include!(concat!(env!("OUT_DIR"), "/uapi.rs"));
