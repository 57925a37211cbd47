// SPDX-License-Identifier: GPL-2.0
//! What kvmate's tests are written with: [`ktap`] says how a test reports, [`guest`] makes small
//! guests on real KVM, [`module`] loads kvmate, [`table`] reads its tables, [`stats`] and [`trace`] ask
//! KVM itself, [`oracle`] compares.

pub mod bench;
pub mod guest;
pub mod ktap;
pub mod module;
pub mod oracle;
pub mod stats;
pub mod table;
pub mod trace;
pub mod tsc;
