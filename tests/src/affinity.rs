// SPDX-License-Identifier: GPL-2.0
//! Which CPUs a thread runs on.

use anyhow::Result;
use nix::{
    sched::{sched_getaffinity, sched_setaffinity, CpuSet},
    unistd::Pid,
};

/// Where this thread may run; dropping it makes that so again.
pub struct Affinity(CpuSet);

impl Affinity {
    /// As it is now.
    pub fn now() -> Result<Self> {
        Ok(Self(sched_getaffinity(Pid::from_raw(0))?))
    }

    /// The CPUs that it may run on.
    pub fn cpus(&self) -> Vec<usize> {
        (0..CpuSet::count())
            .filter(|cpu| self.0.is_set(*cpu).unwrap_or(false))
            .collect()
    }

    /// On one CPU only.
    pub fn pin(&self, cpu: usize) -> Result<()> {
        let mut only = CpuSet::new();
        only.set(cpu)?;
        Ok(sched_setaffinity(Pid::from_raw(0), &only)?)
    }

    /// On one CPU only, whichever.
    pub fn one() -> Result<Self> {
        let before = Self::now()?;
        before.pin(before.cpus()[0])?;
        Ok(before)
    }
}

impl Drop for Affinity {
    fn drop(&mut self) {
        sched_setaffinity(Pid::from_raw(0), &self.0).expect("what was allowed before");
    }
}
