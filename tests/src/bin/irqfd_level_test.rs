// SPDX-License-Identifier: GPL-2.0
//! `KVMATE_BIND_IRQFD` with a second eventfd: a line that stays up until the guest's EOI.

use anyhow::{ensure, Result};
use kvm_bindings::{kvm_irqchip, KVM_IRQCHIP_IOAPIC};
use kvmate_tests::{
    ensure_eq,
    guest::irq::{Chips, Guest, Trigger},
    ktap,
    module::Kvmate,
    poke::{self, eventfd, poked, Device, PIN, VECTOR},
    storm,
    traced::Traced,
};
use std::{collections::BTreeMap, os::fd::AsRawFd, process::ExitCode};

fn main() -> ExitCode {
    ktap::main(&[
        ("level_with_resample", level_with_resample),
        ("level_closed_while_up", level_closed_while_up),
        ("level_shared", level_shared),
        ("level_after_a_reset", level_after_a_reset),
    ])
}

/// Up until the EOI, then down, and told; the next write raises it again.
fn level_with_resample() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    guest.ioapic(11, Trigger::Level, 0, VECTOR);
    let pic = guest.pic(9, Trigger::Level);
    guest.route(&[])?;
    let name = storm::name_of(&guest.vm);
    guest.run(|running| {
        let vm = running.vm.fd.as_raw_fd();
        for (gsi, vector) in [(11, VECTOR), (9, pic)] {
            let (eventfd, resample) = (eventfd()?, eventfd()?);
            let asked = poke::level(vm, eventfd.as_raw_fd(), resample.as_raw_fd(), gsi);
            let binding = device.bind(asked)?;
            for count in 1..=50 {
                eventfd.write(1)?;
                running.until(0, vector, count)?;
                storm::until("it is told of the EOI", || {
                    Ok(resample.read().is_ok_and(|number| number == 1))
                })?;
            }
            storm::until("the worker has done all", || {
                let rows = poke::bindings(&name)?;
                let number = |column: &str| -> Result<u64> { Ok(rows[0][column].parse()?) };
                Ok(number("delivered")? + number("failed")? == 50)
            })?;
            running.settled()?;
            ensure_eq!(running.count(0, vector), 50, "interrupts of GSI {gsi}");
            ensure!(resample.read().is_err(), "told once more");
            let rows = poke::bindings(&name)?;
            for (column, wanted) in [
                ("target", format!("level:{gsi}")),
                ("signalled", "50".into()),
                ("coalesced", "0".into()),
                ("resampled", "50".into()),
            ] {
                ensure_eq!(rows[0][column], wanted, "{column}");
            }
            // KVM tells of an EOI before the IOAPIC's pin is free again: who is quick finds it taken, and
            // it is delivered when the EOI is done.
            let number = |column: &str| -> Result<u64> { Ok(rows[0][column].parse()?) };
            let (delivered, failed) = (number("delivered")?, number("failed")?);
            ensure_eq!(delivered + failed, 50, "delivered and failed");
            ensure!(delivered > 25, "{delivered} delivered");
            drop(binding);
        }
        Ok(())
    })?;
    drop(device);
    kvmate.unload()
}

/// While it is up more writes coalesce; closed while it is up, it goes down.
fn level_closed_while_up() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    poked(Trigger::Level, |guest| {
        let vm = guest.running.vm.fd.as_raw_fd();
        let (eventfd, resample) = (eventfd()?, eventfd()?);
        let asked = poke::level(vm, eventfd.as_raw_fd(), resample.as_raw_fd(), PIN);
        for round in 1..=3 {
            let binding = device.bind(asked)?;
            guest.running.held(|| {
                for _ in 0..10 {
                    eventfd.write(1)?;
                }
                storm::until("the worker is done", || {
                    Ok(poke::bindings(&guest.name)?[0]["coalesced"] == "9")
                })
            })?;
            guest.running.settled()?;
            ensure_eq!(guest.seen(VECTOR), round, "one for all ten");
            ensure_eq!(resample.read()?, 1, "told once");
            drop(binding);
        }
        // A pin that nobody ends, for it is masked.
        let asked = poke::level(vm, eventfd.as_raw_fd(), resample.as_raw_fd(), 11);
        let binding = device.bind(asked)?;
        eventfd.write(1)?;
        let events = Traced::begin()?;
        storm::until("it is up", || {
            Ok(poke::bindings(&guest.name)?[0]["failed"] == "1")
        })?;
        events.clear()?;
        drop(binding);
        let lowered = events.read()?;
        ensure_eq!(lowered.len(), 2, "at IOAPIC and PIC: {lowered:?}");
        ensure!(resample.read().is_err(), "told of no EOI");
        Ok(())
    })?;
    drop(device);
    kvmate.unload()
}

/// Two bindings of a GSI: the line is up while one of them holds it, and one EOI is for both.
fn level_shared() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    poked(Trigger::Level, |guest| {
        let vm = guest.running.vm.fd.as_raw_fd();
        let fds = [(eventfd()?, eventfd()?), (eventfd()?, eventfd()?)];
        let bind = |number: usize| {
            let (eventfd, resample) = &fds[number];
            device.bind(poke::level(
                vm,
                eventfd.as_raw_fd(),
                resample.as_raw_fd(),
                PIN,
            ))
        };
        let (one, two) = (bind(0)?, bind(1)?);
        guest.running.held(|| {
            for (eventfd, _) in &fds {
                eventfd.write(1)?;
            }
            storm::until("both are up", || {
                let rows = poke::bindings(&guest.name)?;
                Ok(rows
                    .iter()
                    .all(|row| row["delivered"] != "0" || row["failed"] != "0"))
            })
        })?;
        guest.running.settled()?;
        ensure_eq!(guest.seen(VECTOR), 1, "one interrupt for both");
        for (_, resample) in &fds {
            ensure_eq!(resample.read()?, 1, "both are told");
        }
        // One alone: the other is not told.
        fds[0].0.write(1)?;
        guest.until(VECTOR, 2)?;
        storm::until("it is told", || Ok(fds[0].1.read().is_ok()))?;
        guest.running.settled()?;
        ensure!(fds[1].1.read().is_err(), "the other is told");
        // One goes while both hold it: it stays up for the other.
        guest.running.held(|| {
            for (eventfd, _) in &fds {
                eventfd.write(1)?;
            }
            storm::until("both are up", || {
                let rows = poke::bindings(&guest.name)?;
                let sum = |row: &BTreeMap<String, String>, columns: &[&str]| -> Result<u64> {
                    let numbers = columns.iter().map(|column| row[*column].parse::<u64>());
                    Ok(numbers.sum::<Result<u64, _>>()?)
                };
                let up = |row| -> Result<bool> {
                    let done = sum(row, &["delivered", "coalesced", "failed"])?;
                    Ok(row["signalled"] != "1" && done == sum(row, &["signalled"])?)
                };
                Ok(up(&rows[0])? && up(&rows[1])?)
            })?;
            let traced = Traced::begin()?;
            drop(one);
            traced.none("the one that went")
        })?;
        storm::until("the other is told", || Ok(fds[1].1.read().is_ok()))?;
        ensure!(fds[0].1.read().is_err(), "the one that went is told");
        drop(two);
        Ok(())
    })?;
    drop(device);
    kvmate.unload()
}

/// The VMM sets the chips anew while the line is up, which then know nothing of it: the next write raises
/// it again, and its EOI is told.
fn level_after_a_reset() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    poked(Trigger::Level, |guest| {
        let vm = &guest.running.vm.fd;
        let (eventfd, resample) = (eventfd()?, eventfd()?);
        let pin = 11;
        let binding = device.bind(poke::level(
            vm.as_raw_fd(),
            eventfd.as_raw_fd(),
            resample.as_raw_fd(),
            pin,
        ))?;
        // The guest has masked it.
        eventfd.write(1)?;
        storm::until("it is up", || {
            Ok(poke::bindings(&guest.name)?[0]["failed"] == "1")
        })?;
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip)?;
        // SAFETY: KVM has written an IOAPIC's state there, as asked for; it is integers only.
        let ioapic = unsafe { &mut chip.chip.ioapic };
        ioapic.irr = 0;
        ioapic.redirtbl[pin as usize].bits = (1 << 15) | u64::from(VECTOR);
        vm.set_irqchip(&chip)?;
        guest.took(&[])?;
        eventfd.write(1)?;
        guest.until(VECTOR, 1)?;
        storm::until("it is told of the EOI", || Ok(resample.read().is_ok()))?;
        drop(binding);
        guest.took(&[(VECTOR, 1)])
    })?;
    drop(device);
    kvmate.unload()
}
