// SPDX-License-Identifier: GPL-2.0
//! gmem: who pays for its memory, where the system shows it, what happens when it is short, and that all
//! of it comes back.

use anyhow::{ensure, Result};
use kvmate_tests::{
    affinity::Affinity,
    ensure_eq,
    gmem::{
        self, allocated,
        cgroup::Cgroup,
        child::{self, Ended},
        errno, fallocate, info_of,
        memory::{kept_by_processors, meminfo, Before},
        punch, Map, HUGE, PAGE,
    },
    ktap,
    module::Kvmate,
};
use kvmate_uapi::KVMATE_GMEM_SMALL;
use nix::{errno::Errno, libc, sys::signal::Signal, unistd::ForkResult};
use std::{fs, os::unix::fs::FileExt, process::ExitCode};

fn main() -> ExitCode {
    ktap::main(&[
        ("cgroup", cgroup),
        ("sigbus_at_the_limit", sigbus_at_the_limit),
        ("owner_of_the_mapping_pays", owner_of_the_mapping_pays),
        ("shown", shown),
        ("comes_back", comes_back),
    ])
}

fn cgroup() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    // A CPU that it leaves gives back what was charged ahead there.
    let _one = Affinity::one()?;
    let group = Cgroup::new("64M")?;
    let (size, end) = (128 << 20, 100 << 20);
    let file = gmem::create(size, 0)?;
    // Its page table is there before.
    let map = Map::new(&file, size)?;
    kvmate.write("knobs/gmem_order", "0")?;
    map.write(end + PAGE, 1);
    kvmate.write("knobs/gmem_order", "9")?;
    group.run(|| fallocate(&file, 0, 0, 16 << 20))??;
    ensure_eq!(group.stat("file")?, 16 << 20, "charged to the cgroup");
    ensure_eq!(group.stat("file_thp")?, 16 << 20, "as huge pages");
    ensure_eq!(
        group.stat("unevictable")?,
        16 << 20,
        "as not to be had back"
    );
    ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    // More than the limit: what can be had is had, in smaller folios at the end.
    let full = group.run(|| fallocate(&file, 0, 0, end as i64))?;
    ensure_eq!(full, Err(Errno::ENOMEM), "more than the limit");
    let (had, fallbacks) = (allocated(&file)?, info_of(&file, "fallbacks")?);
    ensure!(
        had > 60 << 20 && had <= 64 << 20,
        "{had} bytes of 64 MiB could be had"
    );
    ensure!(fallbacks > 0, "no fallback at the limit");
    let full = group.run(|| file.write_at(b"x", end as u64))?;
    ensure_eq!(errno(full), Some(Errno::ENOMEM), "a write then");
    // A fault: a call that writes to memory gets EFAULT where the task itself would get SIGBUS.
    let to = (map.address() + end) as *mut libc::c_void;
    let full = group.run(|| {
        // SAFETY: Inside the mapping.
        Errno::result(unsafe { libc::getrandom(to, 1, 0) })
    })?;
    ensure_eq!(full, Err(Errno::EFAULT), "a fault then");
    group.run(|| punch(&file, 0, size))??;
    ensure_eq!(allocated(&file)?, 0, "after the punch");
    ensure!(group.stat("file")? < 1 << 20, "uncharged");
    drop((map, file, group));
    kvmate.unload()
}

/// A task that touches more than its cgroup may have gets `SIGBUS`; it is not killed for memory.
fn sigbus_at_the_limit() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for flags in [0, KVMATE_GMEM_SMALL] {
        let group = Cgroup::new("32M")?;
        let file = gmem::create(64 << 20, flags)?;
        let map = Map::new(&file, 64 << 20)?;
        let end = 48 << 20;
        // Its page table is there before.
        kvmate.write("knobs/gmem_order", "0")?;
        map.write(end + PAGE, 1);
        kvmate.write("knobs/gmem_order", "9")?;
        for write in [true, false] {
            let full = group.run(|| fallocate(&file, 0, 0, end as i64))?;
            ensure_eq!(full, Err(Errno::ENOMEM), "more than the limit");
            let touch = |at: usize| match write {
                true => map.write(at, 1),
                false => _ = map.read(at),
            };
            let ended = child::run(|| {
                // What the child needs itself it has before.
                touch(end + PAGE);
                if group.enter().is_err() {
                    return 2;
                }
                // The limit is met where no CPU has pages left that it was charged for in advance, 64 at
                // most.
                (0..4 << 20)
                    .step_by(PAGE)
                    .for_each(|more| touch(end + more));
                0
            })?;
            ensure_eq!(
                ended,
                Ended::Killed(Signal::SIGBUS),
                "write: {write}, flags {flags}"
            );
        }
        ensure_eq!(group.events("oom_kill")?, 0, "killed for memory");
        let had = allocated(&file)?;
        punch(&file, 0, HUGE)?;
        group.run(|| file.write_all_at(b"x", end as u64))??;
        ensure!(allocated(&file)? < had, "after room was made");
        ensure_eq!(map.copy(end, 2), b"x\0", "what was written then");
        drop((map, file));
    }
    kvmate.unload()
}

/// Of a fault that another task has in one's memory (a debugger, a worker of KVM's), as with shmem.
fn owner_of_the_mapping_pays() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let group = Cgroup::new("64M")?;
    let file = gmem::create(16 << 20, 0)?;
    let map = Map::new(&file, 16 << 20)?;
    // SAFETY: The child waits to be killed.
    let child = match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => loop {
            nix::unistd::pause();
        },
        ForkResult::Parent { child } => child,
    };
    group.take(child.as_raw())?;
    let before = group.stat("file")?;
    let memory = fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/{child}/mem"))?;
    let written = memory.write_at(&[7], (map.address() + 4 * HUGE) as u64);
    let charged = group.stat("file")? - before;
    nix::sys::signal::kill(child, Signal::SIGKILL)?;
    nix::sys::wait::waitpid(child, None)?;
    ensure_eq!(written?, 1, "written into another's memory");
    ensure_eq!(map.read(4 * HUGE), 7, "what was written");
    ensure_eq!(
        charged,
        HUGE as u64,
        "charged to the cgroup of whose memory it is"
    );
    drop((map, file, group));
    kvmate.unload()
}

/// `/proc/meminfo`, `smaps` and `/proc/PID/status` say what `uapi/kvmate.h` tells of them.
fn shown() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (size, near) = (64i64 << 20, 3 << 20);
    let file = gmem::create(size as usize, 0)?;
    let map = Map::new(&file, size as usize)?;
    let grow = [
        "Cached",
        "Unevictable",
        "FileHugePages",
        "FilePmdMapped",
        "Mapped",
    ];
    let stay = [
        "Shmem",
        "ShmemHugePages",
        "Dirty",
        "Mlocked",
        "Active(file)",
        "Inactive(file)",
        "AnonPages",
    ];
    let all = || {
        grow.iter()
            .chain(&stay)
            .map(|k| meminfo(k))
            .collect::<Result<Vec<_>>>()
    };
    // The file takes what processors keep, too.
    let left = |key: &str| Ok::<_, anyhow::Error>(meminfo(key)? + kept_by_processors()?);
    let (free, available) = (left("MemFree")?, left("MemAvailable")?);
    let before = all()?;
    map.fill(0, size as usize, 1);
    let with = all()?;
    for (number, key) in grow.iter().chain(&stay).enumerate() {
        let more = with[number] - before[number];
        let expected = if number < grow.len() { size } else { 0 };
        ensure!((more - expected).abs() < near, "{key} grew by {more}");
    }
    for (key, before) in [("MemFree", free), ("MemAvailable", available)] {
        let less = before - left(key)?;
        ensure!((less - size).abs() < 2 * near, "{key} fell by {less}");
    }
    let size = size as usize;
    for (key, expected) in [
        ("Rss", size),
        ("Pss", size),
        ("Private_Dirty", size),
        ("Private_Clean", 0),
        ("Swap", 0),
        ("Anonymous", 0),
        ("FilePmdMapped", size),
        ("ShmemPmdMapped", 0),
        ("KernelPageSize", PAGE),
    ] {
        ensure_eq!(map.smaps(key)?, expected, "smaps: {key}");
    }
    let status = |key: &str| -> Result<usize> {
        let text = fs::read_to_string("/proc/self/status")?;
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(&format!("{key}:")));
        let number = line
            .and_then(|l| l.split_whitespace().next())
            .unwrap_or("0");
        Ok(number.parse::<usize>()? << 10)
    };
    let (file_pages, shmem) = (status("RssFile")?, status("RssShmem")?);
    ensure!(
        file_pages >= size && shmem < size,
        "status: RssFile {file_pages}, RssShmem {shmem}"
    );
    drop((map, file));
    // A per-processor rest may be counted later.
    fs::write("/proc/sys/vm/stat_refresh", "1")?;
    let after = all()?;
    for (number, key) in grow.iter().enumerate() {
        let more = after[number] - before[number];
        ensure!(more.abs() < near, "{key} is {more} more than before");
    }
    kvmate.unload()
}

/// Many times the noise of memory is taken and given back in every way.
fn comes_back() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    drop(gmem::create(HUGE, 0)?);
    let before = Before::now()?;
    for round in 0..24 {
        let flags = if round % 3 == 0 { KVMATE_GMEM_SMALL } else { 0 };
        let size = 24 << 20;
        let file = gmem::create(size, flags)?;
        let map = Map::new(&file, size)?;
        map.fill(0, size, 1);
        for at in (0..size).step_by(HUGE / 2) {
            punch(&file, at + round * PAGE + 7, 3 * PAGE)?;
        }
        match round % 4 {
            0 => punch(&file, 0, size)?,
            1 => drop(map),
            _ => {}
        }
    }
    before.is_now()?;
    kvmate.unload()
}
