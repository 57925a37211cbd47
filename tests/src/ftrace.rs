// SPDX-License-Identifier: GPL-2.0
//! The kernel's trace buffers: nothing is lost, or reading them fails.

use anyhow::{ensure, Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where they are.
pub const TRACEFS: &str = "/sys/kernel/tracing";

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The thread that was running.
    pub thread: u32,
    /// On which CPU.
    pub cpu: usize,
    /// When, as the buffer's clock says it.
    pub when: String,
    /// The event's name; of what `trace_printk()` writes, the function's.
    pub event: String,
    /// What it says.
    pub text: String,
}

/// A trace buffer, from when it was begun or cleared.
pub struct Buffer {
    folder: PathBuf,
    events: Vec<String>,
}

impl Buffer {
    /// One of its own, for these events (`group/event`). `kib` is for each CPU.
    ///
    /// Making one takes the kernel long, so it stays, with nothing in it, until [`remove`].
    pub fn of(name: &str, kib: u32, events: &[&str]) -> Result<Self> {
        let folder = folder(name);
        if !folder.exists() {
            fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        Self::begin(folder, kib, events)
    }

    /// The one that `trace_printk()` writes to.
    pub fn top(kib: u32) -> Result<Self> {
        Self::begin(TRACEFS.into(), kib, &[])
    }

    fn begin(folder: PathBuf, kib: u32, events: &[&str]) -> Result<Self> {
        let events = events.iter().map(|event| (*event).to_owned()).collect();
        let buffer = Self { folder, events };
        // The newest are lost first, if any are, and then this tells.
        buffer.write("options/overwrite", "0")?;
        buffer.write("buffer_size_kb", &kib.to_string())?;
        buffer.clear()?;
        buffer.switch("1")?;
        Ok(buffer)
    }

    /// Set a file of its.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join(file), text).with_context(|| format!("{file} of a trace"))
    }

    /// Switch all its events.
    pub fn switch(&self, on: &str) -> Result<()> {
        let mut events = self.events.iter();
        events.try_for_each(|event| self.write(&format!("events/{event}/enable"), on))
    }

    /// Forget what there was.
    pub fn clear(&self) -> Result<()> {
        self.write("trace", "")
    }

    /// What has gone in since, in the order of time.
    pub fn read(&self) -> Result<Vec<Entry>> {
        self.write("tracing_on", "0")?;
        let text = fs::read_to_string(self.folder.join("trace")).context("trace")?;
        for cpu in fs::read_dir(self.folder.join("per_cpu"))? {
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

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Err(error) = self.switch("0") {
            eprintln!("# {error:#}");
        }
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(TRACEFS)
        .join("instances")
        .join(format!("kvmate-{name}"))
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

/// `COMM-THREAD [CPU] FLAGS WHEN: EVENT: TEXT`; a command's name may have anything in it.
fn parse(line: &str) -> Option<Entry> {
    let (task, cpu, rest) = line.match_indices(" [").find_map(|(at, _)| {
        let (cpu, rest) = line[at + 2..].split_once("] ")?;
        Some((&line[..at], cpu.parse().ok()?, rest))
    })?;
    let (when, rest) = rest.split_once(": ")?;
    let (event, text) = rest.split_once(": ")?;
    Some(Entry {
        thread: task.trim_end().rsplit_once('-')?.1.parse().ok()?,
        cpu,
        when: when.rsplit_once(' ')?.1.to_owned(),
        event: event.to_owned(),
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let entry = parse(
            "    a [b] c-97      [001] d..1.     7.5: kvm_exit: vcpu 0 reason io rip 0x1: info 0",
        );
        let expected = Entry {
            thread: 97,
            cpu: 1,
            when: "7.5".into(),
            event: "kvm_exit".into(),
            text: "vcpu 0 reason io rip 0x1: info 0".into(),
        };
        assert_eq!(entry, Some(expected));
        assert_eq!(parse("nothing"), None);
    }
}
