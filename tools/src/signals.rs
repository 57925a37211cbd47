// SPDX-License-Identifier: GPL-2.0
//! Signals that ask for the end, noted for who has to undo something first.

use anyhow::Result;
use signal_hook::{
    consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
    flag,
};
use std::{
    fs,
    sync::{
        atomic::{AtomicUsize, Ordering::Relaxed},
        Arc,
    },
};

/// Those that are sent by people, terminals and timers, and would end a process.
const ALL: [(i32, &str); 7] = [
    (SIGINT, "SIGINT"),
    (SIGTERM, "SIGTERM"),
    (SIGHUP, "SIGHUP"),
    (SIGQUIT, "SIGQUIT"),
    (SIGALRM, "SIGALRM"),
    (SIGUSR1, "SIGUSR1"),
    (SIGUSR2, "SIGUSR2"),
];

/// The last of them that came.
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Note them from now on. What is ignored stays so: `nohup`, and jobs of shells without job control.
    pub fn catch() -> Result<Self> {
        let last = Arc::new(AtomicUsize::new(0));
        let ignored = Ignored::now()?;
        for (number, (signal, _)) in (1..).zip(ALL) {
            if !ignored.has(signal) {
                flag::register_usize(signal, last.clone(), number)?;
            }
        }
        Ok(Self(last))
    }

    /// Its name, if one came.
    pub fn caught(&self) -> Option<&'static str> {
        let number = self.0.load(Relaxed);
        number.checked_sub(1).map(|at| ALL[at].1)
    }
}

/// Which signals are ignored, a bit each.
#[derive(Debug, PartialEq, Eq)]
pub struct Ignored(u64);

impl Ignored {
    /// Those of this process.
    pub fn now() -> Result<Self> {
        Ok(Self::of(&fs::read_to_string("/proc/self/status")?))
    }

    /// By `/proc/PID/status`.
    fn of(status: &str) -> Self {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        Self(mask.unwrap_or(0))
    }

    /// Whether that one is.
    pub fn has(&self, signal: i32) -> bool {
        self.0 & (1 << (signal - 1)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_ones() {
        let ignored = Ignored::of("SigBlk:\t0002\nSigIgn:\t0000000000001001\n");
        assert!(ignored.has(SIGHUP) && ignored.has(13) && !ignored.has(SIGINT));
        assert_eq!(Ignored::of("Name:\tx\n"), Ignored(0));
    }
}
