// SPDX-License-Identifier: GPL-2.0
//! kvmate's interface to user space, generated from `kvmate.h`, whose comments document it; and its calls
//! ([`call`]).
#![allow(missing_docs, non_camel_case_types, non_upper_case_globals)]

pub mod call;

include!(concat!(env!("OUT_DIR"), "/uapi.rs"));
