// SPDX-License-Identifier: GPL-2.0
//! The knobs that have the module write lines, set for so long as somebody reads them.

use crate::{
    say::say,
    tree::{knob, write},
};
use anyhow::{anyhow, Context, Result};
use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
};

/// What the knobs say: `trace`, `trace_rate`, `trace_vm`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub mask: u64,
    pub rate: u64,
    pub vm: String,
}

const NAMES: [&str; 3] = ["trace", "trace_rate", "trace_vm"];

impl Wanted {
    /// As they are written: by the names of [`NAMES`].
    fn texts(&self) -> [String; 3] {
        [
            self.mask.to_string(),
            self.rate.to_string(),
            self.vm.clone(),
        ]
    }
}

/// The knobs, which say what they said before when this is dropped.
pub struct Knobs {
    before: [String; 3],
    ours: [String; 3],
    /// Of the file of the first one: another, if the module has come again.
    inode: u64,
}

fn read(name: &str) -> io::Result<String> {
    let text = fs::read_to_string(knob(name))?;
    Ok(text.trim_end_matches('\n').to_owned())
}

fn set(name: &str, text: &str) -> io::Result<()> {
    // An empty write would be none at all.
    write(&knob(name), &format!("{text}\n"))
}

fn failed(name: &str, error: &io::Error) -> anyhow::Error {
    let path = knob(name).display().to_string();
    match error.kind() {
        ErrorKind::NotFound => {
            anyhow!("there is no {path}: the module kvmate has gone, or is of another version")
        }
        ErrorKind::PermissionDenied => {
            anyhow!("{path}: {error}: this needs root, and a kernel that is not locked down")
        }
        ErrorKind::OutOfMemory => anyhow!("{path}: the kernel is short of memory for its probes"),
        _ => anyhow!("{path}: {error}"),
    }
}

impl Knobs {
    /// Set them, the one that begins it last. `left`: who set what they say now has been killed.
    pub fn set(wanted: &Wanted, left: bool) -> Result<Self> {
        let mut before = Wanted::default().texts();
        for (name, text) in NAMES.iter().zip(&mut before).filter(|_| !left) {
            *text = read(name).map_err(|error| failed(name, &error))?;
        }
        let about = fs::metadata(knob(NAMES[0])).context(NAMES[0])?;
        let knobs = Self {
            before,
            ours: wanted.texts(),
            inode: about.ino(),
        };
        for (name, text) in NAMES.iter().zip(&knobs.ours).rev() {
            set(name, text).map_err(|error| failed(name, &error))?;
        }
        Ok(knobs)
    }

    /// Whether the module is the one that they were set of.
    pub fn there(&self) -> bool {
        fs::metadata(knob(NAMES[0])).is_ok_and(|about| about.ino() == self.inode)
    }
}

impl Drop for Knobs {
    fn drop(&mut self) {
        if !self.there() {
            return;
        }
        for ((name, before), ours) in NAMES.iter().zip(&self.before).zip(&self.ours) {
            // What somebody else has set since is theirs.
            if !read(name).is_ok_and(|now| now == *ours) {
                continue;
            }
            if let Err(error) = set(name, before) {
                if self.there() {
                    say(format_args!("not set back: {:#}", failed(name, &error)));
                }
            }
        }
    }
}
