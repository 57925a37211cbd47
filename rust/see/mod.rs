// SPDX-License-Identifier: GPL-2.0
//! See: what guests make KVM do.

mod exits;

pub(crate) use exits::Exits;
