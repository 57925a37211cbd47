// SPDX-License-Identifier: GPL-2.0
//! KVM's trace events `kvm_exit` and `kvm_entry`: an oracle for what kvmate sees, which shares no code
//! with it.

use crate::ftrace::{Buffer, Entry};
use anyhow::{Context, Result};

/// What happened to a vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The guest exited.
    Exit {
        /// Why, in kvmate's spelling of the event's name for it.
        reason: String,
        /// Where.
        rip: u64,
    },
    /// The guest was about to go on.
    Entry,
}

/// An event.
#[derive(Clone, Debug)]
pub struct Event {
    /// The thread that ran the vCPU.
    pub thread: u32,
    /// The number user space gave the vCPU.
    pub vcpu: u32,
    /// The time-stamp counter.
    pub when: u64,
    /// What it was.
    pub what: What,
}

/// The events traced.
const EVENTS: [&str; 2] = ["kvm/kvm_exit", "kvm/kvm_entry"];

/// A trace buffer of our own, into which all VMs' exits and entries go.
pub struct Trace(Buffer);

impl Trace {
    /// Begin. `kib` is for each CPU; an exit and its entry need 150 bytes.
    pub fn begin(name: &str, kib: u32) -> Result<Self> {
        let buffer = Buffer::of(name, kib, &EVENTS)?;
        buffer.write("trace_clock", "x86-tsc")?;
        // A clock that changes empties it, the same one does not.
        buffer.clear()?;
        Ok(Self(buffer))
    }

    /// All events so far, in the order of time.
    pub fn read(&self) -> Result<Vec<Event>> {
        let entries = self.0.read()?;
        entries
            .iter()
            .map(|entry| parse(entry).with_context(|| format!("not understood: {entry:?}")))
            .collect()
    }
}

/// `vcpu N reason NAME rip 0xN ...`, or `vcpu N ...`
fn parse(entry: &Entry) -> Option<Event> {
    let tail = entry.text.strip_prefix("vcpu ")?;
    let what = match &*entry.event {
        "kvm_entry" => What::Entry,
        "kvm_exit" => {
            let (name, rest) = tail.split_once(" reason ")?.1.split_once(" rip 0x")?;
            What::Exit {
                reason: spelled(name),
                rip: u64::from_str_radix(rest.split(' ').next()?, 16).ok()?,
            }
        }
        _ => return None,
    };
    Some(Event {
        thread: entry.thread,
        vcpu: tail.split([' ', ',']).next()?.parse().ok()?,
        when: entry.when.parse().ok()?,
        what,
    })
}

/// An event's name for a reason as kvmate spells it.
fn spelled(name: &str) -> String {
    let (name, failed) = match name.strip_suffix(" FAILED_VMENTRY") {
        Some(name) => (name, "|FAILED_VMENTRY"),
        None => (name, ""),
    };
    match name {
        // The event has 32 bits for the 64 of `SVM_EXIT_ERR`, and so no name for it.
        "0xffffffff" => "invalid_guest_state".into(),
        _ if name.starts_with("0x") => format!("unknown({name}){failed}"),
        _ => format!("{}{failed}", name.replace(' ', "_")),
    }
}
