// SPDX-License-Identifier: GPL-2.0
//! `KVMATE_BIND_IRQFD`: what a write to the eventfd comes to, and how a binding ends.

use anyhow::{ensure, Context, Result};
use kvm_ioctls::{IoEventAddress, NoDatamatch};
use kvmate_tests::{
    ensure_eq,
    guest::{
        irq::{Chips, Guest, Trigger},
        real, run, Vm,
    },
    ktap,
    module::{self, Kvmate},
    poke::{self, eventfd, poked, Device, Poked, MSI, MSI_VECTOR, PIN, VECTOR},
    seen, storm,
    traced::Traced,
};
use nix::errno::Errno;
use std::{os::fd::AsRawFd, process::ExitCode};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK, EFD_SEMAPHORE};

fn main() -> ExitCode {
    ktap::main(&[
        ("edges", edges),
        ("msis", msis),
        ("signalled_by_the_kernel", signalled_by_the_kernel),
        ("route_comes_and_goes", route_comes_and_goes),
        ("written_before", written_before),
        ("semaphore", semaphore),
        ("nothing_after_close", nothing_after_close),
        ("two_vms", two_vms),
        ("vm_without_vcpu", vm_without_vcpu),
        ("ends_in_any_order", ends_in_any_order),
        ("holds_the_module", holds_the_module),
        ("without_observing", without_observing),
    ])
}

/// A VM with all chips, not running.
fn vm() -> Result<Vm> {
    Vm::new(1 << 16, true)
}

/// Each write is an edge, whatever the number.
fn edges() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    poked(Trigger::Edge, |guest| {
        let eventfd = eventfd()?;
        let vm = guest.running.vm.fd.as_raw_fd();
        let binding = device.bind(poke::gsi(vm, eventfd.as_raw_fd(), PIN))?;
        for count in 1..=100 {
            eventfd.write(count)?;
            guest.until(VECTOR, count)?;
        }
        guest.took(&[(VECTOR, 100)])?;
        ensure!(eventfd.read().is_err(), "the number was not taken out");
        guest.says(&[
            ("target", "gsi:10"),
            ("signalled", "100"),
            ("delivered", "100"),
            ("coalesced", "0"),
            ("failed", "0"),
            ("resampled", "-"),
            ("why", "-"),
            ("eventfd", "open"),
        ])?;
        // While the guest takes none, one is kept by the IOAPIC's pin and one by the APIC.
        guest
            .running
            .held(|| (0..10).try_for_each(|_| Ok(eventfd.write(1)?)))?;
        let of =
            |column: &str| -> Result<u64> { Ok(poke::bindings(&guest.name)?[0][column].parse()?) };
        storm::until("the worker has done all", || {
            Ok(of("delivered")? + of("coalesced")? + of("failed")? == 110)
        })?;
        ensure_eq!(of("signalled")?, 110, "signalled");
        drop(binding);
        Ok(())
    })?;
    drop(device);
    kvmate.unload()
}

/// MSIs: one of the binding's own, and a GSI that is routed to one. None is lost that the guest had
/// time to take.
fn msis() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    poked(Trigger::Edge, |guest| {
        let (one, two) = (eventfd()?, eventfd()?);
        let vm = guest.running.vm.fd.as_raw_fd();
        let binding = device.bind(poke::gsi(vm, one.as_raw_fd(), MSI))?;
        for count in 1..=100 {
            one.write(1)?;
            guest.until(MSI_VECTOR, count)?;
        }
        guest.says(&[
            ("target", "gsi:24"),
            ("delivered", "100"),
            ("coalesced", "-"),
            ("failed", "0"),
        ])?;
        drop(binding);
        let asked = poke::msi_at(vm, two.as_raw_fd(), (0xfee0_0000, 0x71));
        let binding = device.bind(asked)?;
        for count in 1..=100 {
            two.write(7)?;
            guest.until(0x71, count)?;
        }
        guest.says(&[
            ("target", "msi:0xfee00000:0x71"),
            ("delivered", "100"),
            ("coalesced", "-"),
            ("failed", "0"),
        ])?;
        drop(binding);
        // To nobody.
        let asked = poke::msi_at(vm, two.as_raw_fd(), (0xfee0_7000, 0x71));
        let binding = device.bind(asked)?;
        two.write(1)?;
        guest.says(&[("delivered", "0"), ("failed", "1"), ("why", "ignored")])?;
        drop(binding);
        guest.took(&[(MSI_VECTOR, 100), (0x71, 100)])
    })?;
    drop(device);
    kvmate.unload()
}

/// Another VM's writes to a port are KVM's signals to the eventfd, from its vCPU's task: an interrupt
/// each, of the VM that it is bound to.
fn signalled_by_the_kernel() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    poked(Trigger::Edge, |guest| {
        let eventfd = eventfd()?;
        let binding = device.bind(poke::gsi(
            guest.running.vm.fd.as_raw_fd(),
            eventfd.as_raw_fd(),
            MSI,
        ))?;
        let other = Vm::new(1 << 16, false)?;
        let mut vcpu = other.vcpu(0)?;
        real::load(&other, real::Program::Out);
        let port = IoEventAddress::Pio(0x10);
        other.fd.register_ioevent(&eventfd, &port, NoDatamatch)?;
        for count in 1..=20 {
            real::start(&vcpu, 1)?;
            ensure_eq!(run(&mut vcpu, None)?, 0, "writes that the VMM saw");
            guest.until(MSI_VECTOR, count)?;
        }
        guest.says(&[("signalled", "20"), ("delivered", "20")])?;
        // With its last descriptor the eventfd is closed, though KVM has it still.
        drop(eventfd);
        guest.says(&[("eventfd", "closed")])?;
        real::start(&vcpu, 1)?;
        ensure_eq!(run(&mut vcpu, None)?, 0, "writes that the VMM saw");
        guest.running.settled()?;
        guest.says(&[("signalled", "20"), ("delivered", "20")])?;
        drop(binding);
        guest.took(&[(MSI_VECTOR, 20)])
    })?;
    drop(device);
    kvmate.unload()
}

/// The route is looked up at each interrupt.
fn route_comes_and_goes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    guest.ioapic(PIN as usize, Trigger::Edge, 0, VECTOR);
    let eventfd = eventfd()?;
    let vm = guest.vm.fd.as_raw_fd();
    let binding = device.bind(poke::gsi(vm, eventfd.as_raw_fd(), MSI))?;
    let name = storm::name_of(&guest.vm);
    let failed = |count: &str| -> Result<()> {
        let rows = poke::bindings(&name)?;
        ensure_eq!(rows[0]["failed"], count, "failed");
        ensure_eq!(rows[0]["why"], "no_route", "why");
        Ok(())
    };
    eventfd.write(1)?;
    failed("1")?;
    guest.route(&[(0xfee0_0000, MSI_VECTOR.into())])?;
    guest.run(|running| {
        eventfd.write(1)?;
        running.until(0, MSI_VECTOR, 1)?;
        failed("1")
    })?;
    guest.route(&[])?;
    eventfd.write(1)?;
    failed("2")?;
    drop((binding, device));
    kvmate.unload()
}

/// What was written before the binding is one interrupt.
fn written_before() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    poked(Trigger::Edge, |guest| {
        let vm = guest.running.vm.fd.as_raw_fd();
        for (asked_for, vector, count) in [(PIN, VECTOR, 1), (MSI, MSI_VECTOR, 1)] {
            let eventfd = eventfd()?;
            eventfd.write(3)?;
            eventfd.write(4)?;
            let binding = device.bind(poke::gsi(vm, eventfd.as_raw_fd(), asked_for))?;
            guest.until(vector, count)?;
            guest.says(&[("signalled", "1"), ("delivered", "1")])?;
            ensure!(eventfd.read().is_err(), "the number was not taken out");
            drop(binding);
        }
        guest.took(&[(VECTOR, 1), (MSI_VECTOR, 1)])
    })?;
    drop(device);
    kvmate.unload()
}

/// A semaphore's number is taken out one by one; a write is an interrupt all the same.
fn semaphore() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    poked(Trigger::Edge, |guest| {
        let eventfd = EventFd::new(EFD_NONBLOCK | EFD_SEMAPHORE)?;
        let vm = guest.running.vm.fd.as_raw_fd();
        let binding = device.bind(poke::gsi(vm, eventfd.as_raw_fd(), MSI))?;
        for count in 1..=5 {
            eventfd.write(2)?;
            guest.until(MSI_VECTOR, count)?;
        }
        drop(binding);
        guest.took(&[(MSI_VECTOR, 5)])
    })?;
    drop(device);
    kvmate.unload()
}

/// After the close nothing is delivered, and the eventfd is an eventfd again.
fn nothing_after_close() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    poked(Trigger::Edge, |guest| {
        let (vm, events) = (guest.running.vm.fd.as_raw_fd(), Traced::begin()?);
        for gsi in [PIN, MSI] {
            for _ in 0..20 {
                let eventfd = eventfd()?;
                let binding = device.bind(poke::gsi(vm, eventfd.as_raw_fd(), gsi))?;
                eventfd.write(1)?;
                drop(binding);
                events.clear()?;
                eventfd.write(5)?;
                ensure_eq!(eventfd.read()?, 5, "what was written after the close");
                events.none("the close")?;
            }
        }
        Ok(())
    })?;
    drop(device);
    kvmate.unload()
}

/// A handle on one VM gives nothing on another.
fn two_vms() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    poked(Trigger::Level, |one| {
        poked(Trigger::Level, |other| {
            let (eventfd, resample) = (eventfd()?, eventfd()?);
            let (other_eventfd, other_resample) = (self::eventfd()?, self::eventfd()?);
            let level = |guest: &Poked<'_>, e: &EventFd, r: &EventFd| {
                let vm = guest.running.vm.fd.as_raw_fd();
                device.bind(poke::level(vm, e.as_raw_fd(), r.as_raw_fd(), PIN))
            };
            let binding = level(one, &eventfd, &resample)?;
            let other_binding = level(other, &other_eventfd, &other_resample)?;
            for count in 1..=20 {
                eventfd.write(1)?;
                one.until(VECTOR, count)?;
                storm::until("it is told", || Ok(resample.read().is_ok()))?;
            }
            other.took(&[])?;
            ensure!(other_resample.read().is_err(), "the other is told");
            // Both at the same time, in one process.
            one.running.held(|| {
                other.running.held(|| {
                    eventfd.write(1)?;
                    Ok(other_eventfd.write(1)?)
                })
            })?;
            one.until(VECTOR, 21)?;
            other.until(VECTOR, 1)?;
            storm::until("both are told", || Ok(resample.read().is_ok()))?;
            storm::until("both are told", || Ok(other_resample.read().is_ok()))?;
            one.took(&[(VECTOR, 21)])?;
            other.took(&[(VECTOR, 1)])?;
            drop((binding, other_binding));
            Ok(())
        })
    })?;
    drop(device);
    kvmate.unload()
}

/// A VM of which nothing was seen yet is known when it is bound to, and its end is told.
fn vm_without_vcpu() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let vm = vm()?;
    ensure_eq!(seen::names_of_vms()?.len(), 0, "VMs seen before");
    let eventfd = eventfd()?;
    let asked = poke::gsi(vm.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    let binding = device.bind(asked)?;
    ensure_eq!(seen::names_of_vms()?, [storm::name_of(&vm)], "VMs seen");
    eventfd.write(1)?;
    drop(vm);
    storm::until("it has gone", || Ok(seen::names_of_vms()?.is_empty()))?;
    eventfd.write(1)?;
    drop((binding, device));
    kvmate.unload()
}

/// The binding, the eventfd, the VM and kvm itself end in any order; nothing keeps the VM.
fn ends_in_any_order() -> Result<()> {
    let vendor = module::vendor()?;
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        for level in [false, true] {
            let vm = vm()?;
            let _gone = vm.vcpu(0)?;
            drop(_gone);
            let (eventfd, resample) = (eventfd()?, eventfd()?);
            let (v, e, r) = (vm.fd.as_raw_fd(), eventfd.as_raw_fd(), resample.as_raw_fd());
            let binding = device.bind(match level {
                true => poke::level(v, e, r, PIN),
                false => poke::gsi(v, e, PIN),
            })?;
            let (mut vm, mut eventfd, mut binding) = (Some(vm), Some(eventfd), Some(binding));
            for step in order {
                if let Some(eventfd) = &eventfd {
                    eventfd.write(1)?;
                }
                match step {
                    0 => {
                        vm = None;
                        // The VM has gone for KVM too.
                        storm::until("it has gone", || Ok(seen::names_of_vms()?.is_empty()))?;
                        if order[0] == 0 && !level {
                            module::unload(vendor).context("rmmod with a binding")?;
                            module::unload("kvm").context("rmmod kvm with a binding")?;
                            module::modprobe(vendor)?;
                        }
                    }
                    1 => eventfd = None,
                    _ => binding = None,
                }
            }
            ensure!(
                vm.is_none() && eventfd.is_none() && binding.is_none(),
                "ended"
            );
        }
    }
    drop(device);
    kvmate.unload()
}

/// An open binding holds the module; what is passed on counts too.
fn holds_the_module() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, eventfd) = (vm()?, eventfd()?);
    let asked = poke::gsi(vm.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    let binding = device.bind(asked)?;
    drop(device);
    let passed_on = binding.0.try_clone()?;
    drop(binding);
    ensure_eq!(module::unload("kvmate"), Err(Errno::EWOULDBLOCK), "rmmod");
    drop(passed_on);
    kvmate.unload()
}

/// `knobs/observe` has nothing to do with it: no exit is probed, EOIs are told.
fn without_observing() -> Result<()> {
    let kvmate = Kvmate::load("observe=0")?;
    let device = Device::open()?;
    poked(Trigger::Level, |guest| {
        let (eventfd, resample) = (eventfd()?, eventfd()?);
        let vm = guest.running.vm.fd.as_raw_fd();
        let asked = poke::level(vm, eventfd.as_raw_fd(), resample.as_raw_fd(), PIN);
        let binding = device.bind(asked)?;
        for count in 1..=20 {
            eventfd.write(1)?;
            guest.until(VECTOR, count)?;
            storm::until("it is told of the EOI", || Ok(resample.read().is_ok()))?;
        }
        guest.took(&[(VECTOR, 20)])?;
        drop(binding);
        Ok(())
    })?;
    ensure_eq!(kvmate.exits()?, 0, "exits");
    drop(device);
    kvmate.unload()
}
