// SPDX-License-Identifier: GPL-2.0
//! Walks through a VM's memory while everything in it changes: four vCPUs fault, slots are moved,
//! deleted and logged, memory is punched, and the VMM is killed.

use anyhow::{ensure, Context, Result};
use kvm_ioctls::VcpuFd;
use kvmate_tests::{
    guest::{
        pages::{self, set_slot, Region, Touch, LARGE, PAGE},
        Vm,
    },
    ktap, map,
    module::{Kvmate, Stop},
    seen,
    storm::{name_of, read_fleeting, rounds, until, Vmm},
};
use nix::libc;
use std::{
    fs::{self, OpenOptions},
    os::fd::AsRawFd,
    process::ExitCode,
    sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        Arc, RwLock,
    },
    thread,
    time::{Duration, Instant},
};

const AT: u64 = 1 << 30;
const SLOTS: u64 = 4;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--vmm") => vmm(),
        _ => ktap::main(&[
            ("walks_while_all_changes", walks_while_all_changes),
            ("walks_while_killed", walks_while_killed),
        ]),
    }
}

/// A VM with four vCPUs that touch all pages of four slots again and again.
struct Busy {
    vm: Vm,
    vcpus: Vec<VcpuFd>,
    region: Region,
    /// Held for reading by who runs a vCPU.
    running: RwLock<()>,
}

impl Busy {
    fn new() -> Result<Self> {
        let vm = Vm::new(pages::MEMORY, false)?;
        let region = Region::memfd("busy", SLOTS * LARGE)?;
        let busy = Self {
            vcpus: (0..4).map(|id| vm.vcpu(id)).collect::<Result<_>>()?,
            vm,
            region,
            running: RwLock::new(()),
        };
        for slot in 0..SLOTS {
            busy.put(slot, slot * LARGE, LARGE, 0)?;
        }
        // Some of each block, so that tables of all levels come and go.
        let list: Vec<_> = (0..SLOTS * 512)
            .step_by(3)
            .map(|page| (AT + page * PAGE, Touch::Write))
            .collect();
        pages::load(&busy.vm.memory, &list)?;
        Ok(busy)
    }

    fn put(&self, slot: u64, at: u64, size: u64, flags: u32) -> Result<()> {
        let hva = self.region.start + slot * LARGE;
        set_slot(&self.vm, slot as u32 + 1, AT + at, hva, size, flags)
    }

    /// What a VMM can do to a slot, in turn, while the vCPUs run.
    ///
    /// But for one thing: while a slot comes to be where vCPUs find none, they stand still. If one has
    /// found no slot and another maps the page of the new one first, KVM warns (`fault->pfn` is not
    /// the entry's, in `tdp_mmu_map_handle_target_level()`), with kvmate or without.
    fn change(&self, turn: u64) -> Result<()> {
        let slot = turn % SLOTS;
        let (here, elsewhere) = (slot * LARGE, (SLOTS + slot) * LARGE);
        match turn / SLOTS % 6 {
            0 => {
                self.put(slot, here, 0, 0)?;
                self.put(slot, elsewhere, LARGE, 0)
            }
            1 | 3 => {
                let _still = self.running.write();
                self.put(slot, here, LARGE, 0)
            }
            2 => self.put(slot, elsewhere, LARGE, 0),
            4 => {
                self.put(slot, here, LARGE, 1)?;
                self.put(slot, here, LARGE, 0)
            }
            _ => self.punch(slot),
        }
    }

    /// Have a vCPU go through the list once.
    fn run(&self, vcpu: &mut VcpuFd) -> Result<()> {
        let _running = self.running.read();
        pages::run(vcpu)
    }

    fn punch(&self, slot: u64) -> Result<()> {
        let file = self.region.file.as_ref().context("a file")?;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (from, length) = (slot * LARGE, LARGE / 2);
        // SAFETY: A call on a file of ours.
        let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, from as i64, length as i64) };
        ensure!(done == 0, "fallocate: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

/// Read all of a VM's memory once; what is read must be whole.
fn walk(vm: &str) -> Result<u64> {
    let folder = seen::vms().join(vm);
    let mut read = 0;
    for (name, columns) in [
        ("memslots", map::MEMSLOTS),
        ("stage2", map::STAGE2),
        ("stage2_map", map::RANGES),
    ] {
        let Some(text) = read_fleeting(&folder.join(name))? else {
            continue;
        };
        let rows = map::parse(&text, columns).context(name)?;
        read += 1;
        // Told once, in order, whatever changes.
        let mut end = 0;
        for row in rows.iter().filter(|row| !row.get("gpa").is_empty()) {
            if row.get("as") == "1" {
                continue;
            }
            let gpa = row.number("gpa")?;
            if name == "stage2_map" {
                ensure!(
                    gpa >= end || row.get("root") != "0",
                    "{name}: {row:?} after {end:#x}"
                );
                let named = row.get("kind") == "other" || !row.get("flags").contains("0x");
                ensure!(named, "bits without a name: {row:?}");
            }
            end = gpa + row.number("size")?;
        }
    }
    for page in [0, 3, 512, 2040] {
        let path = folder.join("lookup");
        let mut file = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => file,
            Err(_) => continue,
        };
        use std::io::Write;
        if file
            .write_all(format!("{:#x}", AT + page * PAGE).as_bytes())
            .is_ok()
            && read_fleeting(&path)?.is_some_and(|text| text.starts_with("gpa "))
        {
            read += 1;
        }
    }
    Ok(read)
}

fn walks_while_all_changes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut busy = Busy::new()?;
    let name = name_of(&busy.vm);
    let mut vcpus = std::mem::take(&mut busy.vcpus);
    let stop = Stop::default();
    let turns = rounds(2000);
    let (stop, busy, name) = (&stop, &busy, &*name);
    thread::scope(|scope| -> Result<()> {
        let runs: Vec<_> = vcpus
            .iter_mut()
            .map(|vcpu| {
                scope.spawn(move || -> Result<u64> {
                    let mut runs = 0;
                    while !stop.asked() {
                        busy.run(vcpu)?;
                        runs += 1;
                    }
                    Ok(runs)
                })
            })
            .collect();
        let walks: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(move || -> Result<u64> {
                    let mut read = 0;
                    while !stop.asked() {
                        read += walk(name)?;
                    }
                    Ok(read)
                })
            })
            .collect();
        let changed = {
            let _stop = stop.on_drop();
            let end = Instant::now() + Duration::from_secs(40);
            let mut turn = 0;
            while turn < u64::from(turns) && Instant::now() < end {
                busy.change(turn)?;
                turn += 1;
            }
            turn
        };
        for run in runs {
            ensure!(
                run.join().expect("a vCPU's thread")? > 0,
                "a vCPU never came through"
            );
        }
        for walk in walks {
            let read = walk.join().expect("a reader")?;
            ensure!(read > 10, "only {read} tables were read");
        }
        ensure!(changed > 16, "only {changed} changes");
        Ok(())
    })?;
    // And when all is at rest, all is as it should be.
    for slot in 0..SLOTS {
        busy.put(slot, slot * LARGE, 0, 0)?;
        busy.put(slot, slot * LARGE, LARGE, 0)?;
    }
    for vcpu in &mut vcpus {
        pages::run(vcpu)?;
    }
    let rows = map::table(name, "stage2", map::STAGE2)?;
    let leaves = rows.iter().map(|row| row.number("leaves"));
    let leaves: u64 = leaves.collect::<Result<Vec<_>>>()?.iter().sum();
    let by_kvm = map::kvm_pages(name)?.iter().sum::<u64>();
    ensure!(
        leaves == by_kvm && leaves > 600,
        "{leaves} leaves, {by_kvm} by KVM"
    );
    drop(vcpus);
    kvmate.unload()
}

/// The process that is killed.
fn vmm() -> ExitCode {
    let busy = || -> Result<()> {
        let mut busy = Busy::new()?;
        let vcpus = std::mem::take(&mut busy.vcpus);
        let busy = Arc::new(busy);
        for mut vcpu in vcpus {
            let busy = busy.clone();
            thread::spawn(move || while busy.run(&mut vcpu).is_ok() {});
        }
        println!("ready");
        for turn in 0.. {
            busy.change(turn)?;
        }
        Ok(())
    };
    match busy() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("# {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn walks_while_killed() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for round in 0..rounds(60).min(20) {
        let vmm = Vmm::of(&std::env::current_exe()?, &["--vmm"])?;
        let stop = Stop::default();
        let read = AtomicU64::new(0);
        thread::scope(|scope| -> Result<()> {
            let walks: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| -> Result<()> {
                        while !stop.asked() {
                            for name in seen::names_of_vms()? {
                                read.fetch_add(walk(&name)?, Relaxed);
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            let _stop = stop.on_drop();
            thread::sleep(Duration::from_millis(100 + 17 * u64::from(round)));
            until("something was read", || Ok(read.load(Relaxed) > 0))?;
            vmm.kill()?;
            until("the VM's folder is gone", || {
                Ok(seen::names_of_vms()?.is_empty())
            })?;
            stop.ask();
            let mut walks = walks.into_iter();
            walks.try_for_each(|walk| walk.join().expect("a reader"))
        })?;
    }
    ensure!(
        fs::read_dir(seen::vms())?.next().is_none(),
        "a folder is left"
    );
    kvmate.unload()
}
