// SPDX-License-Identifier: GPL-2.0
//! The test library's own guests do what they promise, and KVM's statistics are read right.

use anyhow::Result;
use kvm_bindings::kvm_msi;
use kvmate_tests::{
    ensure_eq,
    guest::{self, long, real, Vm},
    ktap,
    stats::Stats,
};
use std::process::ExitCode;

fn main() -> ExitCode {
    ktap::main(&[
        ("real_mode_writes_ports", real_mode_writes_ports),
        ("real_mode_runs_again", real_mode_runs_again),
        ("kvm_counts_port_writes", kvm_counts_port_writes),
        ("long_mode_counts_msis", long_mode_counts_msis),
        ("long_mode_counts_by_vector", long_mode_counts_by_vector),
    ])
}

fn real_mode_writes_ports() -> Result<()> {
    real::write_ports(123)
}

fn real_mode_runs_again() -> Result<()> {
    let vm = Vm::new(1 << 16, false)?;
    real::load(&vm, real::Program::Out);
    let mut vcpu = vm.vcpu(0)?;
    for count in [1, 2, 50] {
        real::start(&vcpu, count)?;
        ensure_eq!(
            guest::run(&mut vcpu, None)?,
            u64::from(count),
            "port writes"
        );
    }
    Ok(())
}

fn kvm_counts_port_writes() -> Result<()> {
    let vm = Vm::new(1 << 16, false)?;
    real::load(&vm, real::Program::Out);
    let mut vcpu = vm.vcpu(0)?;
    let stats = Stats::of(&vcpu)?;
    let before = stats.get("io_exits")?;
    real::start(&vcpu, 77)?;
    guest::run(&mut vcpu, None)?;
    ensure_eq!(stats.get("io_exits")? - before, 77, "io_exits");
    Ok(())
}

/// Send an MSI of `vector` to LAPIC 0.
fn send(vm: &Vm, vector: u8) -> Result<()> {
    let msi = kvm_msi {
        address_lo: 0xfee0_0000,
        data: vector.into(),
        ..Default::default()
    };
    let delivered = vm.fd.signal_msi(msi)?;
    anyhow::ensure!(
        delivered > 0,
        "MSI of vector {vector} was not delivered: {delivered}"
    );
    Ok(())
}

fn long_mode_counts_msis() -> Result<()> {
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    // The LAPIC must be on before it takes an MSI: let the guest get there with nothing to wait for.
    long::start(&vcpu, 0, 0x40, 0)?;
    long::run(&mut vcpu)?;
    for number in 1..=20 {
        send(&vm, 0x40)?;
        long::start(&vcpu, 0, 0x40, number)?;
        long::run(&mut vcpu)?;
        ensure_eq!(
            long::seen(&vm.memory, 0x40),
            number,
            "interrupts of vector 0x40"
        );
    }
    Ok(())
}

fn long_mode_counts_by_vector() -> Result<()> {
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    long::start(&vcpu, 0, 0x40, 0)?;
    long::run(&mut vcpu)?;
    // The higher vector is taken first; the guest waits for the lowest, so all were taken then.
    for vector in [0x50, 0x81, 0xf0, 0x40] {
        send(&vm, vector)?;
    }
    long::start(&vcpu, 0, 0x40, 1)?;
    long::run(&mut vcpu)?;
    for vector in [0x40, 0x50, 0x81, 0xf0] {
        ensure_eq!(
            long::seen(&vm.memory, vector),
            1,
            "interrupts of vector {vector:#x}"
        );
    }
    ensure_eq!(
        long::seen(&vm.memory, 0x41),
        0,
        "interrupts of a vector not sent"
    );
    Ok(())
}
