// SPDX-License-Identifier: GPL-2.0
//! KVM's trace events `kvm_exit` and `kvm_entry`: an oracle for what kvmate sees, which shares no code
//! with it.

use anyhow::{ensure, Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

const INSTANCES: &str = "/sys/kernel/tracing/instances";

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
const EVENTS: [&str; 2] = ["kvm_exit", "kvm_entry"];

/// A trace buffer of our own, into which all VMs' exits and entries go. Events that were lost make
/// reading it fail.
///
/// Making one takes the kernel long, so it stays, with nothing in it, until [`Trace::remove`].
pub struct Trace(PathBuf);

impl Trace {
    /// Begin. `kib` is for each CPU; an exit and its entry need 150 bytes.
    pub fn begin(name: &str, kib: u32) -> Result<Self> {
        let folder = folder(name);
        if !folder.exists() {
            fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let trace = Self(folder);
        trace.write("trace_clock", "x86-tsc")?;
        trace.write("buffer_size_kb", &kib.to_string())?;
        // The newest are lost first, if any are: an exit is never taken for another.
        trace.write("options/overwrite", "0")?;
        // This empties it.
        trace.write("trace", "")?;
        trace.switch("1")?;
        Ok(trace)
    }

    /// Remove one that has ended, if it was ever begun.
    pub fn remove(name: &str) {
        let folder = folder(name);
        if folder.exists() {
            if let Err(error) = fs::remove_dir(&folder) {
                eprintln!("# rmdir {}: {error}", folder.display());
            }
        }
    }

    fn switch(&self, on: &str) -> Result<()> {
        let mut events = EVENTS.iter();
        events.try_for_each(|event| self.write(&format!("events/kvm/{event}/enable"), on))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.0.join(file), text).with_context(|| format!("{file} of a trace instance"))
    }

    /// All events so far, in the order of time.
    pub fn read(&self) -> Result<Vec<Event>> {
        self.write("tracing_on", "0")?;
        let text = fs::read_to_string(self.0.join("trace"))?;
        for cpu in fs::read_dir(self.0.join("per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            for name in ["overrun", "commit overrun", "dropped events"] {
                let lost = stats
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                    .with_context(|| format!("no {name} in the buffer's stats"))?;
                ensure!(lost == "0", "the trace lost events: {name} {lost}");
            }
        }
        self.write("tracing_on", "1")?;
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| parse(line).with_context(|| format!("not understood: {line}")))
            .collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = self.switch("0") {
            eprintln!("# {error:#}");
        }
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(INSTANCES).join(format!("kvmate-{name}"))
}

/// `COMM-THREAD [CPU] FLAGS WHEN: kvm_exit: vcpu N reason NAME rip 0xN ...`
fn parse(line: &str) -> Option<Event> {
    let exit = line.split_once(": kvm_exit: vcpu ");
    let (head, tail) = exit.or_else(|| line.split_once(": kvm_entry: vcpu "))?;
    let (task, head) = head.rsplit_once(" [")?;
    let thread = task.trim_end().rsplit_once('-')?.1.parse().ok()?;
    let when = head.rsplit_once(' ')?.1.parse().ok()?;
    let vcpu = tail.split([' ', ',']).next()?.parse().ok()?;
    let what = match exit {
        None => What::Entry,
        Some(_) => {
            let (name, rest) = tail.split_once(" reason ")?.1.split_once(" rip 0x")?;
            What::Exit {
                reason: spelled(name),
                rip: u64::from_str_radix(rest.split(' ').next()?, 16).ok()?,
            }
        }
    };
    Some(Event {
        thread,
        vcpu,
        when,
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
