// SPDX-License-Identifier: GPL-2.0
//! The system's memory: what `/proc/meminfo` says, and whether all came back.

use anyhow::{ensure, Context, Result};
use std::{fs, thread, time::Duration};

/// A number of `/proc/meminfo`, in bytes.
pub fn meminfo(key: &str) -> Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(&format!("{key}:")));
    let number = line.and_then(|l| l.split_whitespace().next());
    Ok(number
        .with_context(|| format!("meminfo: no {key}"))?
        .parse::<i64>()?
        << 10)
}

/// How much processors have freed and keep for themselves, huge pages among it, which neither `MemFree`
/// nor `MemAvailable` counts: `/proc/zoneinfo`'s `count` of each.
pub fn kept_by_processors() -> Result<i64> {
    let mut pages = 0;
    for line in fs::read_to_string("/proc/zoneinfo")?.lines() {
        if let Some(count) = line.trim_start().strip_prefix("count:") {
            pages += count.trim().parse::<i64>()?;
        }
    }
    Ok(pages * super::PAGE as i64)
}

/// How much is in use that dropping caches does not bring back, and that is not processes' own: what
/// a test itself has freed, its allocator may keep.
fn used() -> Result<i64> {
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let free = meminfo("MemFree")? + meminfo("AnonPages")? + kept_by_processors()?;
    Ok(meminfo("MemTotal")? - free)
}

/// What was in use before.
pub struct Before(i64);

/// What the rest of the system takes and gives meanwhile: files of the test's own, caches of the
/// kernel's.
const NOISE: i64 = 8 << 20;

impl Before {
    /// Now.
    pub fn now() -> Result<Self> {
        used()?;
        Ok(Self(used()?))
    }

    /// Now as much is in use as then. What was done between should take many times 8 MiB if it
    /// gave nothing back.
    pub fn is_now(&self) -> Result<()> {
        let mut more = 0;
        for _ in 0..20 {
            more = used()? - self.0;
            if more < NOISE {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        ensure!(false, "{} KiB more are in use than before", more >> 10);
        Ok(())
    }
}
