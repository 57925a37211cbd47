// SPDX-License-Identifier: GPL-2.0
//! The time-stamp counter, which kvmate's times and the trace clock `x86-tsc` both are of.

use anyhow::{bail, Context, Result};
use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    thread,
    time::Duration,
};

/// The counter now, not before anything that stands before this.
pub fn now() -> u64 {
    // SAFETY: Every x86-64 processor has both.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        let now = std::arch::x86_64::_rdtsc();
        std::arch::x86_64::_mm_lfence();
        now
    }
}

/// A counter's rate, as the kernel has it.
#[derive(Clone, Copy, Debug)]
pub struct Rate(u32);

impl Rate {
    /// What the kernel's log says of it. Waits until the kernel has refined it, which it does once.
    pub fn of_kernel() -> Result<Self> {
        const CURRENT: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        for _ in 0..200 {
            if fs::read_to_string(CURRENT).context(CURRENT)?.trim() != "tsc-early" {
                return Self::said().context("the log tells no rate of the time-stamp counter");
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("the kernel does not refine the rate of the time-stamp counter")
    }

    /// The last of `tsc: Detected 2595.211 MHz processor` and
    /// `tsc: Refined TSC clocksource calibration: 2596.130 MHz`.
    fn said() -> Option<Self> {
        let mut log = File::options()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .ok()?;
        let mut record = [0; 8192];
        let mut rate = None;
        while let Ok(length @ 1..) = log.read(&mut record) {
            let text = String::from_utf8_lossy(&record[..length]);
            let Some((_, said)) = text.split_once(";tsc: ") else {
                continue;
            };
            let Some((before, _)) = said.split_once(" MHz") else {
                continue;
            };
            let number = before.rsplit(' ').next()?;
            rate = number.replace('.', "").parse().ok().map(Self).or(rate);
        }
        rate
    }

    /// So many cycles in whole nanoseconds.
    pub fn ns(self, cycles: u64) -> u64 {
        (u128::from(cycles) * 1_000_000 / u128::from(self.0)) as u64
    }

    /// How long a cycle is, in nanoseconds, rounded up.
    pub fn cycle_ns(self) -> u64 {
        1_000_000u64.div_ceil(self.0.into())
    }
}
