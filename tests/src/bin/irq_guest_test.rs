// SPDX-License-Identifier: GPL-2.0
//! The guest that counts interrupts counts what KVM's own interfaces send, each way: what it says of
//! kvmate can be believed. kvmate is not loaded here.

use anyhow::{ensure, Result};
use kvmate_tests::{
    ensure_eq,
    guest::irq::{self, shared::NMI, Chips, Counts, Guest, Trigger},
    ktap, storm,
};
use std::{process::ExitCode, sync::atomic::Ordering::SeqCst};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

fn main() -> ExitCode {
    ktap::main(&[
        ("edges_through_the_ioapic", edges_through_the_ioapic),
        ("edges_through_the_pic", edges_through_the_pic),
        ("level_until_it_is_served", level_until_it_is_served),
        ("msis_to_each_vcpu", msis_to_each_vcpu),
        ("nmis", nmis),
        ("held_interrupts_coalesce", held_interrupts_coalesce),
        ("resample", resample),
        ("split_irqchip", split_irqchip),
        ("goes_on_where_it_was", goes_on_where_it_was),
    ])
}

const VECTOR: u8 = 0x51;

fn only(cpu: usize, vector: u8, count: u64) -> Counts {
    Counts::from([((cpu, vector), count)])
}

fn edges(guest: &mut Guest, line: u32, vector: u8) -> Result<()> {
    guest.run(|running| {
        let edge = || -> Result<()> {
            running.vm.fd.set_irq_line(line, true)?;
            Ok(running.vm.fd.set_irq_line(line, false)?)
        };
        for number in 1..=50 {
            edge()?;
            running.until(0, vector, number)?;
        }
        running.spin()?;
        for number in 51..=100 {
            edge()?;
            running.until(0, vector, number)?;
        }
        // Up is one interrupt, and so is up again without having been down.
        running.vm.fd.set_irq_line(line, true)?;
        running.until(0, vector, 101)?;
        running.vm.fd.set_irq_line(line, true)?;
        running.vm.fd.set_irq_line(line, false)?;
        ensure_eq!(running.settled()?, only(0, vector, 101), "all interrupts");
        Ok(())
    })
}

fn edges_through_the_ioapic() -> Result<()> {
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    guest.ioapic(10, Trigger::Edge, 0, VECTOR);
    edges(&mut guest, 10, VECTOR)
}

fn edges_through_the_pic() -> Result<()> {
    for line in [5, 10] {
        let mut guest = Guest::new(Chips::Kernel, 1)?;
        let vector = guest.pic(line, Trigger::Edge);
        edges(&mut guest, line.into(), vector)?;
    }
    Ok(())
}

/// A line that is up comes again and again, until whoever raised it lowers it.
fn level_until_it_is_served() -> Result<()> {
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    guest.ioapic(11, Trigger::Level, 0, VECTOR);
    let pic = guest.pic(9, Trigger::Level);
    guest.run(|running| {
        for (line, vector) in [(11, VECTOR), (9, pic)] {
            running.vm.fd.set_irq_line(line, true)?;
            running.until(0, vector, 10)?;
            running.vm.fd.set_irq_line(line, false)?;
            let counts = running.settled()?;
            ensure_eq!(running.settled()?, counts, "with the line down");
        }
        Ok(())
    })
}

fn msis_to_each_vcpu() -> Result<()> {
    let mut guest = Guest::new(Chips::Kernel, 2)?;
    guest.run(|running| {
        for number in 1..=50 {
            for cpu in 0..2 {
                running.signal(irq::msi(cpu, VECTOR + cpu as u8))?;
                running.until(cpu, VECTOR + cpu as u8, number)?;
            }
        }
        let all = Counts::from([((0, VECTOR), 50), ((1, VECTOR + 1), 50)]);
        ensure_eq!(running.settled()?, all, "all interrupts");
        Ok(())
    })
}

fn nmis() -> Result<()> {
    let mut guest = Guest::new(Chips::Kernel, 2)?;
    guest.run(|running| {
        for number in 1..=20 {
            running.signal(irq::nmi(1))?;
            running.until(1, NMI, number)?;
        }
        running.spin()?;
        for number in 21..=40 {
            running.signal(irq::nmi(1))?;
            running.until(1, NMI, number)?;
        }
        ensure_eq!(running.settled()?, only(1, NMI, 40), "all interrupts");
        // A guest that takes no interrupts takes NMIs.
        running.held(|| {
            running.signal(irq::nmi(1))?;
            running.until(1, NMI, 41)
        })
    })?;
    // KVM_NMI, to a vCPU that does not run.
    guest.vcpu(0).nmi()?;
    guest.run(|running| {
        running.until(0, NMI, 1)?;
        let all = Counts::from([((0, NMI), 1), ((1, NMI), 41)]);
        ensure_eq!(running.settled()?, all, "all interrupts");
        Ok(())
    })
}

fn held_interrupts_coalesce() -> Result<()> {
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    guest.run(|running| {
        running.held(|| {
            for _ in 0..5 {
                running.signal(irq::msi(0, VECTOR))?;
                running.signal(irq::msi(0, VECTOR + 1))?;
            }
            ensure_eq!(running.counts(), Counts::new(), "while it holds");
            Ok(())
        })?;
        let all = Counts::from([((0, VECTOR), 1), ((0, VECTOR + 1), 1)]);
        ensure_eq!(running.settled()?, all, "all interrupts");
        Ok(())
    })
}

/// A device that wants more raises the line again when it is told of the guest's EOI.
fn resample() -> Result<()> {
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    guest.ioapic(11, Trigger::Level, 0, VECTOR);
    let pic = guest.pic(9, Trigger::Level);
    guest.run(|running| {
        for (line, vector) in [(11, VECTOR), (9, pic)] {
            let (raise, served) = (EventFd::new(0)?, EventFd::new(EFD_NONBLOCK)?);
            running
                .vm
                .fd
                .register_irqfd_with_resample(&raise, &served, line)?;
            let device = &running.machine().devices[usize::from(vector)];
            device.store(30, SeqCst);
            raise.write(1)?;
            for number in 1..=30 {
                storm::until("the guest's EOI", || Ok(served.read().is_ok()))?;
                ensure_eq!(running.count(0, vector), number, "interrupts at its EOI");
                ensure_eq!(device.load(SeqCst), 30 - number, "what is left");
                if device.load(SeqCst) > 0 {
                    raise.write(1)?;
                }
            }
            let counts = running.settled()?;
            ensure_eq!(counts[&(0, vector)], 30, "interrupts");
            ensure!(served.read().is_err(), "one EOI more");
            running.vm.fd.unregister_irqfd(&raise, line)?;
        }
        let all = Counts::from([((0, VECTOR), 30), ((0, pic), 30)]);
        ensure_eq!(running.settled()?, all, "all interrupts");
        Ok(())
    })
}

fn split_irqchip() -> Result<()> {
    let mut guest = Guest::new(Chips::Split, 1)?;
    guest.route(&[irq::msi(0, VECTOR)])?;
    guest.run(|running| {
        let signal = EventFd::new(0)?;
        running.vm.fd.register_irqfd(&signal, 24)?;
        for number in 1..=20 {
            signal.write(1)?;
            running.until(0, VECTOR, number)?;
        }
        ensure_eq!(running.settled()?, only(0, VECTOR, 20), "all interrupts");
        let (raise, served) = (EventFd::new(0)?, EventFd::new(0)?);
        let resample = running
            .vm
            .fd
            .register_irqfd_with_resample(&raise, &served, 11);
        ensure!(
            resample.is_err(),
            "resample without a chip to tell of the EOI"
        );
        Ok(())
    })
}

/// It can be stopped and run on; what came meanwhile is taken then.
fn goes_on_where_it_was() -> Result<()> {
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    for number in 1..=5 {
        guest.run(|running| {
            running.until(0, VECTOR, number - 1)?;
            running.signal(irq::msi(0, VECTOR))?;
            running.until(0, VECTOR, number)?;
            ensure_eq!(
                running.settled()?,
                only(0, VECTOR, number),
                "all interrupts"
            );
            Ok(())
        })?;
    }
    Ok(())
}
