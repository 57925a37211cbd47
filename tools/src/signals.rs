// SPDX-License-Identifier: GPL-2.0
//! Signals that ask for the end, noted for who has to undo something first.

use anyhow::Result;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};
use std::{
    fs,
    sync::{
        atomic::{AtomicUsize, Ordering::Relaxed},
        Arc,
    },
};

const ALL: [(i32, &str); 3] = [(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM"), (SIGHUP, "SIGHUP")];

/// The last of them that came.
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Note them from now on. What is ignored stays so: `nohup`, and jobs of shells without job control.
    pub fn catch() -> Result<Self> {
        let last = Arc::new(AtomicUsize::new(0));
        let ignored = ignored(&fs::read_to_string("/proc/self/status")?);
        for (number, (signal, _)) in (1..).zip(ALL) {
            if ignored & (1 << (signal - 1)) == 0 {
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

/// Which are ignored, by `/proc/PID/status`: a bit each.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_ones() {
        assert_eq!(
            ignored("SigBlk:\t0001\nSigIgn:\t0000000000001001\n"),
            0x1001
        );
        assert_eq!(ignored("Name:\tx\n"), 0);
    }
}
