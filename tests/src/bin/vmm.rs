// SPDX-License-Identifier: GPL-2.0
//! A VMM to be killed: a VM that exits all the time, one that halts on two vCPUs and gets interrupts, and VMs that come
//! and go, some of them held by their vCPU alone. Says a line when all of that has begun.

use anyhow::Result;
use kvm_bindings::kvm_msi;
use kvmate_tests::guest::{self, long, real, Vm};
use std::{io::Write, thread, time::Duration};

fn main() -> Result<()> {
    let busy = Vm::new(1 << 16, false)?;
    real::load(&busy, real::Program::Msr);
    let mut busy_vcpu = busy.fd.create_vcpu(0)?;
    real::start(&busy_vcpu, u32::MAX)?;
    thread::spawn(move || guest::run(&mut busy_vcpu, None));

    let halted = Vm::new(long::MEMORY, true)?;
    long::load(&halted);
    for id in 0..2 {
        let mut vcpu = halted.vcpu(id)?;
        // An interrupt that never comes.
        long::start(&vcpu, id as usize, 0x40, 1)?;
        thread::spawn(move || long::run(&mut vcpu));
    }

    // Others, from a thread that runs neither.
    thread::spawn(move || loop {
        let _ = halted.fd.signal_msi(kvm_msi {
            address_lo: 0xfee0_0000,
            data: 0x41,
            ..Default::default()
        });
        thread::sleep(Duration::from_millis(1));
    });

    for round in 0u32.. {
        let Vm { kvm, fd, memory } = Vm::new(1 << 16, false)?;
        let vcpu = fd.create_vcpu(0)?;
        if round % 2 == 0 {
            drop(fd);
        }
        drop((vcpu, memory, kvm));
        if round == 1 {
            // Perhaps nobody listens.
            let _ = writeln!(std::io::stdout(), "ready");
        }
    }
    Ok(())
}
