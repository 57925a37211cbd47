// SPDX-License-Identifier: GPL-2.0
//! What kvmate's tests are written with: [`ktap`] says how a test reports, [`guest`] makes small
//! guests on real KVM, [`module`] loads kvmate, [`stats`] asks KVM itself.

pub mod bench;
pub mod guest;
pub mod ktap;
pub mod module;
pub mod stats;
