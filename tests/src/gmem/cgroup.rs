// SPDX-License-Identifier: GPL-2.0
//! A memory cgroup with a limit.

use anyhow::{Context, Result};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
};

/// A cgroup with a limit. Its and its parent's files are opened before the limit is reached: behind
/// it, opening one more has the process killed.
pub struct Cgroup {
    path: &'static str,
    inside: File,
    outside: File,
}

impl Cgroup {
    /// Make it.
    pub fn new(limit: &str) -> Result<Self> {
        let root = "/sys/fs/cgroup";
        fs::write(format!("{root}/cgroup.subtree_control"), "+memory").context("+memory")?;
        let path = "/sys/fs/cgroup/kvmate-test";
        fs::create_dir(path)?;
        fs::write(format!("{path}/memory.max"), limit)?;
        let open = |path: &str| {
            OpenOptions::new()
                .write(true)
                .open(format!("{path}/cgroup.procs"))
        };
        Ok(Self {
            path,
            inside: open(path)?,
            outside: open(root)?,
        })
    }

    /// Go in, for good; for a child.
    pub fn enter(&self) -> Result<()> {
        Ok(self.inside.write_all_at(b"0", 0)?)
    }

    /// Do something inside.
    pub fn run<T>(&self, inside: impl FnOnce() -> T) -> Result<T> {
        self.enter()?;
        let result = inside();
        self.outside.write_all_at(b"0", 0)?;
        Ok(result)
    }

    /// Put another process into it.
    pub fn take(&self, pid: i32) -> Result<()> {
        Ok(self.inside.write_all_at(pid.to_string().as_bytes(), 0)?)
    }

    fn number(&self, file: &str, key: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("{}/{file}", self.path))?;
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(&format!("{key} ")));
        Ok(line.with_context(|| format!("{file}: no {key}"))?.parse()?)
    }

    /// A number of `memory.stat`.
    pub fn stat(&self, key: &str) -> Result<u64> {
        self.number("memory.stat", key)
    }

    /// A number of `memory.events`.
    pub fn events(&self, key: &str) -> Result<u64> {
        self.number("memory.events", key)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(self.path) {
            eprintln!("# rmdir {}: {error}", self.path);
        }
    }
}
