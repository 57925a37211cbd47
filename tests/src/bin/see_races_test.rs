// SPDX-License-Identifier: GPL-2.0
//! Statistics and snapshots are read while VMs run, are reset, killed and made anew, and at the end kvm
//! goes: whatever is read adds up, and what has ended says so.

use anyhow::{ensure, Result};
use kvmate_tests::{
    ensure_eq,
    guest::real::Program,
    ktap,
    module::{Kvmate, Stop, WithoutKvm, EVERYTHING},
    poke::Device,
    seen,
    snapshot::Snapshot,
    stats::Stats,
    storm::{self, Guest, Vmm},
};
use nix::{errno::Errno, libc};
use std::{collections::VecDeque, os::fd::AsRawFd, process::ExitCode, thread, time::Duration};

fn main() -> ExitCode {
    ktap::main(&[("everything", everything)])
}

/// How many descriptors of VMs, ended or not, a reader keeps.
const KEPT: usize = 12;

/// What a reader has read.
#[derive(Default)]
struct Read {
    snapshots: u64,
    numbers: u64,
    ended: u64,
    kept: VecDeque<Stats>,
}

impl Read {
    /// Read numbers: whether the VM is there still.
    fn numbers(&mut self, stats: &Stats) -> Result<bool> {
        match stats.read() {
            Ok(values) => {
                values.add_up()?;
                self.numbers += 1;
                Ok(true)
            }
            Err(error) => {
                ensure_eq!(error.raw_os_error(), Some(libc::ENODEV), "reading numbers");
                self.ended += 1;
                Ok(false)
            }
        }
    }

    /// All that there is of a VM, which may go at any time.
    fn vm(&mut self, device: &Device, name: &str) -> Result<()> {
        let folder = seen::vms().join(name);
        if let Some(text) = storm::read_fleeting(&folder.join("snapshot"))? {
            Snapshot::parse(&text)?;
            self.snapshots += 1;
        }
        // Gone already, or a descriptor of something else now.
        let Ok(vm) = seen::taken_from(name) else {
            return Ok(());
        };
        match device.stats(vm.as_raw_fd()) {
            Ok(file) => {
                // We have the VM's file: it cannot have ended.
                let stats = Stats::from_file(file)?;
                ensure!(self.numbers(&stats)?, "ended while its file is open");
                drop(vm);
                self.kept.push_back(stats);
            }
            Err(errno) => ensure_eq!(errno, Errno::EBADFD, "KVMATE_GET_VM_STATS"),
        }
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
        Ok(())
    }

    fn until(mut self, stop: &Stop) -> Result<Self> {
        let device = Device::open()?;
        while !stop.asked() {
            for name in seen::names_of_vms()? {
                self.vm(&device, &name)?;
            }
            let mut kept = std::mem::take(&mut self.kept);
            for stats in &kept {
                self.numbers(stats)?;
            }
            self.kept.append(&mut kept);
            thread::sleep(Duration::from_micros(200));
        }
        Ok(self)
    }
}

/// Begin all tables anew, of whatever VM is there.
fn reset(stop: &Stop) -> Result<u64> {
    let mut times = 0;
    while !stop.asked() {
        for name in seen::names_of_vms()? {
            times += u64::from(storm::reset_fleeting(&name)?);
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(times)
}

fn everything() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    let guests = vec![Guest::new(Program::Cpuid)?, Guest::new(Program::Out)?];
    let stop = Stop::default();
    let mut all = Read::default();
    let mut guests = storm::under_load(guests, Duration::from_millis(2), || {
        thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| Read::default().until(&stop)))
                .collect();
            let resets = scope.spawn(|| reset(&stop));
            let _stop = stop.on_drop();
            for round in 0..storm::rounds(36) {
                let vmm = Vmm::start(round % 3 != 0)?;
                thread::sleep(Duration::from_millis(10));
                vmm.kill()?;
            }
            stop.ask();
            for reader in readers {
                let read = reader.join().expect("a reader")?;
                all.snapshots += read.snapshots;
                all.numbers += read.numbers;
                all.ended += read.ended;
                all.kept.extend(read.kept);
            }
            ensure!(resets.join().expect("who resets")? > 0, "no reset");
            Ok(())
        })
    })?;
    guests.iter_mut().try_for_each(Guest::exact)?;
    let read = (all.snapshots, all.numbers, all.ended);
    ensure!(read.0 > 0 && read.1 > 0, "read {read:?}");
    drop(guests);
    storm::until("all VMs are gone", || Ok(seen::names_of_vms()?.is_empty()))?;
    ensure!(!all.kept.is_empty(), "no descriptor is left");
    let kept = std::mem::take(&mut all.kept);
    for stats in &kept {
        ensure!(!all.numbers(stats)?, "numbers of a VM that has ended");
    }
    {
        let _kvm = WithoutKvm::new()?;
        for stats in &kept {
            ensure!(!all.numbers(stats)?, "numbers without kvm");
        }
        drop(kept);
    }
    kvmate.unload()
}
