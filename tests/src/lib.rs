// SPDX-License-Identifier: GPL-2.0
//! What kvmate's tests are written with: [`ktap`] says how a test reports, [`guest`] makes small
//! guests on real KVM, [`module`] loads kvmate, [`table`] and [`seen`] read its tables, [`stats`],
//! [`binary_stats`] and [`trace`] ask KVM itself, [`oracle`] compares, [`poke`] and [`way`] inject, [`traced`] tells what went
//! into KVM's chips, [`storm`] has many VMs at once, [`delay`] makes races happen, [`gmem`] makes memory
//! files and holds, watches and starves them, [`tool`] runs the command-line tool, on a
//! [`terminal`] if it is to have one, [`export`] the exporter of it.

pub mod affinity;
pub mod bench;
pub mod binary_stats;
pub mod delay;
pub mod export;
pub mod ftrace;
pub mod gmem;
pub mod guest;
pub mod hung;
pub mod ktap;
pub mod map;
pub mod module;
pub mod oracle;
pub mod poke;
pub mod seen;
pub mod snapshot;
pub mod stats;
pub mod storm;
pub mod table;
pub mod terminal;
pub mod tool;
pub mod trace;
pub mod traced;
pub mod tsc;
pub mod way;
