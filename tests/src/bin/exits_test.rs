// SPDX-License-Identifier: GPL-2.0
//! `exits`: every VM exit counted once, whatever the guest, the vCPUs and the VMs.
//!
//! The oracles: the guest's own number of exiting instructions, and KVM's `exits` statistic, which
//! also has the exits that no guest asks for (the host's interrupts).

use anyhow::{ensure, Context, Result};
use kvm_ioctls::VcpuFd;
use kvmate_tests::{
    ensure_eq,
    guest::{self, long, real, Vm},
    ktap,
    module::{Kvmate, Stop},
    stats::Stats,
    storm,
};
use std::{process::ExitCode, thread, time::Duration};

fn main() -> ExitCode {
    ktap::main(&[
        ("port_writes_exact", port_writes_exact),
        ("cpuids_exact", cpuids_exact),
        ("long_mode_exact", long_mode_exact),
        ("first_exit_of_a_vm", first_exit_of_a_vm),
        ("two_vcpus", two_vcpus),
        ("two_vms", two_vms),
        ("vm_older_than_the_module", vm_older_than_the_module),
        ("not_observed_not_counted", not_observed_not_counted),
        ("count_survives_switching", count_survives_switching),
        ("switching_under_load", switching_under_load),
        ("unload_under_load", unload_under_load),
    ])
}

/// A real-mode guest that has run once, so that its pages are mapped.
struct Guest {
    vcpu: VcpuFd,
    stats: Stats,
    _vm: Vm,
}

impl Guest {
    fn new(program: real::Program) -> Result<Self> {
        let mut guest = Self::cold(program)?;
        guest.run(1)?;
        Ok(guest)
    }

    fn cold(program: real::Program) -> Result<Self> {
        let vm = Vm::new(1 << 16, false)?;
        real::load(&vm, program);
        let vcpu = vm.vcpu(0)?;
        let stats = Stats::of(&vcpu)?;
        Ok(Self {
            vcpu,
            stats,
            _vm: vm,
        })
    }

    fn run(&mut self, count: u32) -> Result<u64> {
        real::start(&self.vcpu, count)?;
        guest::run(&mut self.vcpu, None)
    }

    /// The exits KVM has counted: all, and those that are the host's doing, not the guest's.
    fn counted(&self) -> Result<(u64, u64)> {
        let mut foreign = 0;
        for name in [
            "irq_exits",
            "nmi_window_exits",
            "irq_window_exits",
            "pf_taken",
        ] {
            foreign += self.stats.get(name)?;
        }
        Ok((self.stats.get("exits")?, foreign))
    }
}

/// Run the guest once more and compare: kvmate's count with KVM's to the exit, and KVM's with what
/// the guest does (`count` times and one halt), less what the host did meanwhile.
fn exact(program: real::Program, count: u32) -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new(program)?;
    let (kvm, foreign) = guest.counted()?;
    let before = kvmate.exits()?;
    guest.run(count)?;
    let ours = kvmate.exits()? - before;
    let (kvm_after, foreign_after) = guest.counted()?;
    ensure_eq!(ours, kvm_after - kvm, "kvmate's count against KVM's");
    let own = ours - (foreign_after - foreign);
    ensure_eq!(own, u64::from(count) + 1, "exits of the guest's own");
    drop(guest);
    kvmate.unload()
}

fn port_writes_exact() -> Result<()> {
    exact(real::Program::Out, 1000)
}

fn cpuids_exact() -> Result<()> {
    exact(real::Program::Cpuid, 1000)
}

fn long_mode_exact() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    let stats = Stats::of(&vcpu)?;
    long::start(&vcpu, 0, 0x40, 0)?;
    long::run(&mut vcpu)?;
    for number in 1..=20 {
        let msi = kvm_bindings::kvm_msi {
            address_lo: 0xfee0_0000,
            data: 0x40,
            ..Default::default()
        };
        vm.fd.signal_msi(msi)?;
        long::start(&vcpu, 0, 0x40, number)?;
        long::run(&mut vcpu)?;
    }
    ensure_eq!(long::seen(&vm.memory, 0x40), 20, "interrupts the guest saw");
    ensure_eq!(
        kvmate.exits()?,
        stats.get("exits")?,
        "kvmate's count against KVM's"
    );
    drop(vcpu);
    kvmate.unload()
}

fn first_exit_of_a_vm() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::cold(real::Program::Out)?;
    guest.run(10)?;
    ensure_eq!(
        kvmate.exits()?,
        guest.counted()?.0,
        "all exits from the VM's first on"
    );
    kvmate.unload()
}

fn two_vcpus() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let vm = Vm::new(1 << 16, false)?;
    real::load(&vm, real::Program::Cpuid);
    let mut vcpus = [vm.vcpu(0)?, vm.vcpu(1)?];
    let stats = [Stats::of(&vcpus[0])?, Stats::of(&vcpus[1])?];
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = vcpus
            .iter_mut()
            .zip([300, 700])
            .map(|(vcpu, count)| {
                scope.spawn(move || real::start(vcpu, count).and_then(|()| guest::run(vcpu, None)))
            })
            .collect();
        for thread in threads {
            thread.join().expect("a vCPU's thread")?;
        }
        Ok(())
    })?;
    let kvm = stats[0].get("exits")? + stats[1].get("exits")?;
    ensure!(kvm >= 1002, "KVM counted {kvm} exits only");
    ensure_eq!(
        kvmate.exits()?,
        kvm,
        "kvmate's count against KVM's for both vCPUs"
    );
    kvmate.unload()
}

fn two_vms() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guests = [
        Guest::cold(real::Program::Out)?,
        Guest::cold(real::Program::Cpuid)?,
    ];
    thread::scope(|scope| {
        let threads = guests
            .each_mut()
            .map(|guest| scope.spawn(|| guest.run(500)));
        threads
            .into_iter()
            .try_for_each(|t| t.join().expect("a VM's thread").map(drop))
    })?;
    let kvm = guests[0].counted()?.0 + guests[1].counted()?.0;
    ensure!(kvm >= 1002, "KVM counted {kvm} exits only");
    ensure_eq!(
        kvmate.exits()?,
        kvm,
        "kvmate's count against KVM's for both VMs"
    );
    kvmate.unload()
}

fn vm_older_than_the_module() -> Result<()> {
    let mut guest = Guest::new(real::Program::Out)?;
    let before = guest.counted()?.0;
    let kvmate = Kvmate::load("")?;
    guest.run(200)?;
    ensure_eq!(
        kvmate.exits()?,
        guest.counted()?.0 - before,
        "exits since load"
    );
    kvmate.unload()
}

fn not_observed_not_counted() -> Result<()> {
    let kvmate = Kvmate::load("observe=0")?;
    ensure_eq!(kvmate.read("knobs/observe")?, "0", "knobs/observe");
    let mut guest = Guest::new(real::Program::Out)?;
    guest.run(100)?;
    ensure_eq!(kvmate.exits()?, 0, "exits while not observing");
    kvmate.unload()
}

fn count_survives_switching() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new(real::Program::Out)?;
    guest.run(100)?;
    let first = kvmate.exits()?;
    ensure_eq!(first, guest.counted()?.0, "exits before");
    kvmate.write("knobs/observe", "0").context("observe 0")?;
    guest.run(50)?;
    ensure_eq!(kvmate.exits()?, first, "exits while switched off");
    kvmate.write("knobs/observe", "1").context("observe 1")?;
    let between = guest.counted()?.0;
    guest.run(70)?;
    let expected = first + guest.counted()?.0 - between;
    ensure_eq!(kvmate.exits()?, expected, "exits after switching on again");
    kvmate.unload()
}

/// A guest that exits all the time on a thread of its own, while `work` goes on here.
fn under_load(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let stop = Stop::default();
    let mut guest = Guest::new(real::Program::Cpuid)?;
    thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<u64> {
            let mut runs = 0;
            while !stop.asked() {
                guest.run(20)?;
                runs += 1;
            }
            Ok(runs)
        });
        let done = {
            let _stop = stop.on_drop();
            work()
        };
        let runs = load.join().expect("the load's thread")?;
        ensure!(runs > 0, "the guest never ran meanwhile");
        done
    })
}

fn switching_under_load() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    under_load(|| {
        let mut last = 0;
        for round in 0..40 {
            kvmate.write("knobs/observe", if round % 2 == 0 { "0" } else { "1" })?;
            let now = kvmate.exits()?;
            ensure!(now >= last, "the count went back from {last} to {now}");
            last = now;
        }
        storm::until("it is counted after switching on", || {
            Ok(kvmate.exits()? > last)
        })
    })?;
    kvmate.unload()
}

fn unload_under_load() -> Result<()> {
    under_load(|| {
        for _ in 0..6 {
            let kvmate = Kvmate::load("")?;
            thread::sleep(Duration::from_millis(5));
            kvmate.unload()?;
        }
        Ok(())
    })
}
