// SPDX-License-Identifier: GPL-2.0
//! `KVMATE_BIND_IRQFD`: what it refuses, what a write to the eventfd comes to, and how a binding ends.

use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_enable_cap, KVM_CAP_SPLIT_IRQCHIP};
use kvmate_tests::{
    ensure_eq,
    guest::{
        irq::{Chips, Guest, Trigger},
        real, Vm,
    },
    ktap,
    module::{self, Kvmate, WithoutKvm},
    poke::{self, poked, Device, Events, Poked, MSI, MSI_VECTOR, PIN, VECTOR},
    seen, storm,
};
use kvmate_uapi::{kvmate_irqfd, KVMATE_IRQFD_MSI};
use nix::errno::Errno;
use std::{
    fs,
    os::fd::{AsRawFd, RawFd},
    process::ExitCode,
};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK, EFD_SEMAPHORE};

fn main() -> ExitCode {
    ktap::main(&[
        ("bad_fields", bad_fields),
        ("bad_descriptors", bad_descriptors),
        ("bad_pointers", bad_pointers),
        ("no_chips", no_chips),
        ("dead_vm", dead_vm),
        ("too_many_files", too_many_files),
        ("without_kvm", without_kvm),
        ("held_by_kvm", held_by_kvm),
        ("held_by_kvmate", held_by_kvmate),
        ("edges", edges),
        ("msis", msis),
        ("route_comes_and_goes", route_comes_and_goes),
        ("written_before", written_before),
        ("semaphore", semaphore),
        ("nothing_after_close", nothing_after_close),
        ("level_with_resample", level_with_resample),
        ("level_closed_while_up", level_closed_while_up),
        ("level_shared", level_shared),
        ("two_vms", two_vms),
        ("vm_without_vcpu", vm_without_vcpu),
        ("ends_in_any_order", ends_in_any_order),
        ("holds_the_module", holds_the_module),
        ("without_observing", without_observing),
    ])
}

fn eventfd() -> Result<EventFd> {
    Ok(EventFd::new(EFD_NONBLOCK)?)
}

/// A VM with all chips, not running.
fn vm() -> Result<Vm> {
    Vm::new(1 << 16, true)
}

/// Refused, and the eventfd is as free as before.
fn refused(device: &Device, asked: kvmate_irqfd, errno: Errno, what: &str) -> Result<()> {
    match device.bind(asked) {
        Err(found) => ensure_eq!(found, errno, "{what}"),
        Ok(_) => anyhow::bail!("{what} was taken"),
    }
    Ok(())
}

fn bad_fields() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, eventfd, resample) = (vm()?, eventfd()?, eventfd()?);
    let (v, e, r) = (vm.fd.as_raw_fd(), eventfd.as_raw_fd(), resample.as_raw_fd());
    for bit in 2..32 {
        let mut asked = poke::gsi(v, e, PIN);
        asked.flags |= 1 << bit;
        refused(&device, asked, Errno::EINVAL, &format!("flag {bit}"))?;
    }
    for word in 0..4 {
        for bit in 0..64 {
            let mut asked = poke::gsi(v, e, PIN);
            asked.reserved[word] = 1 << bit;
            refused(
                &device,
                asked,
                Errno::EINVAL,
                &format!("reserved {word}, {bit}"),
            )?;
        }
    }
    let msi = (0xfee0_0000, u32::from(MSI_VECTOR));
    type Change = fn(&mut kvmate_irqfd);
    let changes: [(&str, kvmate_irqfd, Change); 9] = [
        ("both flags", poke::level(v, e, r, PIN), |a| {
            a.flags |= KVMATE_IRQFD_MSI
        }),
        ("an MSI with a GSI", poke::msi_at(v, e, msi), |a| a.gsi = 1),
        ("an MSI elsewhere", poke::msi_at(v, e, msi), |a| {
            a.msi_address = 0xfed0_0000
        }),
        ("an MSI at 0", poke::msi_at(v, e, msi), |a| {
            a.msi_address = 0
        }),
        ("a GSI with an address", poke::gsi(v, e, PIN), |a| {
            a.msi_address = 0xfee0_0000
        }),
        ("a GSI with data", poke::gsi(v, e, PIN), |a| a.msi_data = 1),
        ("a level with data", poke::level(v, e, r, PIN), |a| {
            a.msi_data = 1
        }),
        ("no resample eventfd asked for", poke::gsi(v, e, PIN), |a| {
            a.resample_eventfd = 0
        }),
        ("one of an MSI", poke::msi_at(v, e, msi), |a| {
            a.resample_eventfd = a.eventfd
        }),
    ];
    for (what, mut asked, change) in changes {
        change(&mut asked);
        refused(&device, asked, Errno::EINVAL, what)?;
    }
    for gsi in [4096, 0xffff_ffff] {
        refused(&device, poke::gsi(v, e, gsi), Errno::ERANGE, "GSI")?;
        refused(&device, poke::level(v, e, r, gsi), Errno::ERANGE, "GSI")?;
    }
    let last = device.bind(poke::gsi(v, e, 4095))?;
    drop((last, device));
    kvmate.unload()
}

fn bad_descriptors() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, eventfd, resample) = (vm()?, eventfd()?, eventfd()?);
    let (v, e, r) = (vm.fd.as_raw_fd(), eventfd.as_raw_fd(), resample.as_raw_fd());
    let vcpu = vm.vcpu(0)?;
    let (pipe, _other_end) = nix::unistd::pipe()?;
    let null = fs::File::open("/dev/null")?;
    let p = pipe.as_raw_fd();
    let bind = |v: RawFd, e: RawFd, r: RawFd, errno: Errno, what: &str| {
        refused(&device, poke::level(v, e, r, PIN), errno, what)?;
        if r == resample.as_raw_fd() {
            refused(&device, poke::gsi(v, e, PIN), errno, what)?;
            let msi = (0xfee0_0000, u32::from(MSI_VECTOR));
            refused(&device, poke::msi_at(v, e, msi), errno, what)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    for none in [-1, i32::MIN, 9999] {
        bind(none, e, r, Errno::EBADF, "VM")?;
        bind(v, none, r, Errno::EBADF, "eventfd")?;
        bind(v, e, none, Errno::EBADF, "resample eventfd")?;
    }
    for other in [p, e, null.as_raw_fd(), vcpu.as_raw_fd(), vm.kvm.as_raw_fd()] {
        bind(other, e, r, Errno::EBADFD, "VM")?;
    }
    for other in [p, v, null.as_raw_fd(), vcpu.as_raw_fd()] {
        bind(v, other, r, Errno::EPROTOTYPE, "eventfd")?;
        bind(v, e, other, Errno::EPROTOTYPE, "resample eventfd")?;
    }
    let good = device.bind(poke::level(v, e, r, PIN))?;
    drop((good, device));
    kvmate.unload()
}

fn bad_pointers() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    for address in [0usize, 1, 0x7fff_ffff_f000, usize::MAX - 4095] {
        let found = device.bind_at(address).map(drop);
        ensure_eq!(found, Err(Errno::EFAULT), "argument at {address:#x}");
    }
    drop(device);
    kvmate.unload()
}

/// Resample takes the PIC and the IOAPIC in the kernel; KVM's own is refused then too.
fn no_chips() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let split = Vm::new(1 << 16, false)?;
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    cap.args[0] = 24;
    split.fd.enable_cap(&cap)?;
    let none = Vm::new(1 << 16, false)?;
    for vm in [&split, &none] {
        let (eventfd, resample) = (eventfd()?, eventfd()?);
        let (e, r) = (eventfd.as_raw_fd(), resample.as_raw_fd());
        let by_kvm = vm.fd.register_irqfd_with_resample(&eventfd, &resample, PIN);
        ensure!(by_kvm.is_err(), "KVM took it");
        let asked = poke::level(vm.fd.as_raw_fd(), e, r, PIN);
        refused(&device, asked, Errno::ENXIO, "resample")?;
        drop(device.bind(poke::gsi(vm.fd.as_raw_fd(), e, PIN))?);
    }
    drop(device);
    kvmate.unload()
}

/// A VM that KVM has given up.
fn dead_vm() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, eventfd) = (vm()?, eventfd()?);
    let asked = poke::gsi(vm.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    drop(device.bind(asked)?);
    // An SMI, and no memory for KVM to save the state in.
    if !vm.kvm.check_extension(kvm_ioctls::Cap::X86Smm) {
        return ktap::skip("KVM has no SMM");
    }
    real::load(&vm, real::Program::Out);
    let mut vcpu = vm.vcpu(0)?;
    real::start(&vcpu, 1)?;
    vcpu.run()?;
    vcpu.smi()?;
    let error = vcpu.run().map(|_| ()).err().map(|error| error.errno());
    ensure_eq!(error, Some(Errno::EIO as i32), "KVM_RUN of a dead VM");
    refused(&device, asked, Errno::ENODEV, "a dead VM")?;
    drop(device);
    kvmate.unload()
}

fn too_many_files() -> Result<()> {
    use nix::sys::resource::{getrlimit, setrlimit, Resource};
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, eventfd) = (vm()?, eventfd()?);
    let asked = poke::gsi(vm.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // The lowest that is free.
    let free = fs::File::open("/dev/null")?.as_raw_fd() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, free, hard)?;
    let found = device.bind(asked).map(drop);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    ensure_eq!(found, Err(Errno::EMFILE), "with no descriptor free");
    drop(device.bind(asked)?);
    drop(device);
    kvmate.unload()
}

fn without_kvm() -> Result<()> {
    let without = WithoutKvm::new()?;
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let eventfd = eventfd()?;
    let asked = poke::gsi(eventfd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    refused(&device, asked, Errno::EOPNOTSUPP, "without kvm")?;
    drop(without);
    refused(&device, asked, Errno::EBADFD, "with kvm")?;
    drop(device);
    kvmate.unload()
}

/// An eventfd has one owner: KVM's irqfd, or a binding, whichever comes first.
fn held_by_kvm() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, eventfd) = (vm()?, eventfd()?);
    let asked = poke::gsi(vm.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    for _ in 0..3 {
        vm.fd.register_irqfd(&eventfd, PIN)?;
        refused(&device, asked, Errno::EBUSY, "KVM's")?;
        vm.fd.unregister_irqfd(&eventfd, PIN)?;
        let binding = device.bind(asked)?;
        let by_kvm = vm.fd.register_irqfd(&eventfd, PIN);
        let by_kvm = by_kvm.map_err(|error| error.errno());
        ensure_eq!(by_kvm, Err(Errno::EBUSY as i32), "kvmate's, for KVM");
        drop(binding);
    }
    drop(device);
    kvmate.unload()
}

fn held_by_kvmate() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, other, eventfd) = (vm()?, vm()?, eventfd()?);
    let asked = poke::gsi(vm.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    let binding = device.bind(asked)?;
    refused(&device, asked, Errno::EBUSY, "the same again")?;
    let elsewhere = poke::gsi(other.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    refused(&device, elsewhere, Errno::EBUSY, "for another VM")?;
    let name = storm::name_of(&vm);
    ensure_eq!(poke::bindings(&name)?.len(), 1, "bindings");
    drop(binding);
    ensure_eq!(poke::bindings(&name)?.len(), 0, "bindings");
    drop(device.bind(elsewhere)?);
    drop(device);
    kvmate.unload()
}

/// What the table says of the only binding, as soon as the worker has come back from the guest's chips.
fn says(guest: &Poked<'_>, columns: &[(&str, &str)]) -> Result<()> {
    let mut rows = Vec::new();
    let said = storm::until("the table says so", || {
        rows = poke::bindings(&guest.name)?;
        ensure_eq!(rows.len(), 1, "bindings");
        Ok(columns
            .iter()
            .all(|(column, wanted)| rows[0].get(*column).is_some_and(|found| found == wanted)))
    });
    if rows.is_empty() {
        return said;
    }
    for (column, wanted) in columns {
        let found = rows[0].get(*column).with_context(|| column.to_string())?;
        ensure_eq!(found, wanted, "{column} in {:?}", rows[0]);
    }
    Ok(())
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
        says(
            guest,
            &[
                ("target", "gsi:10"),
                ("signalled", "100"),
                ("delivered", "100"),
                ("coalesced", "0"),
                ("failed", "0"),
                ("resampled", "-"),
                ("why", "-"),
                ("eventfd", "open"),
            ],
        )?;
        // While the guest takes none, one is kept by the IOAPIC's pin and one by the APIC.
        guest
            .running
            .held(|| (0..10).try_for_each(|_| Ok(eventfd.write(1)?)))?;
        guest.running.settled()?;
        let rows = poke::bindings(&guest.name)?;
        let of = |column: &str| -> Result<u64> { Ok(rows[0][column].parse()?) };
        ensure_eq!(of("signalled")?, 110, "signalled");
        ensure_eq!(
            of("delivered")? + of("coalesced")? + of("failed")?,
            110,
            "all"
        );
        drop(binding);
        Ok(())
    })?;
    drop(device);
    kvmate.unload()
}

/// MSIs: one of the binding's own, and a GSI that is routed to one. None is lost that the guest had
/// time to take, also when the kernel signals.
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
        says(
            guest,
            &[("target", "gsi:24"), ("delivered", "100"), ("failed", "0")],
        )?;
        drop(binding);
        let asked = poke::msi_at(vm, two.as_raw_fd(), (0xfee0_0000, 0x71));
        let binding = device.bind(asked)?;
        for count in 1..=100 {
            two.write(7)?;
            guest.until(0x71, count)?;
        }
        says(
            guest,
            &[
                ("target", "msi:0xfee00000:0x71"),
                ("delivered", "100"),
                ("coalesced", "-"),
                ("failed", "0"),
            ],
        )?;
        drop(binding);
        // To nobody.
        let asked = poke::msi_at(vm, two.as_raw_fd(), (0xfee0_7000, 0x71));
        let binding = device.bind(asked)?;
        two.write(1)?;
        says(
            guest,
            &[("delivered", "0"), ("failed", "1"), ("why", "ignored")],
        )?;
        drop(binding);
        guest.took(&[(MSI_VECTOR, 100), (0x71, 100)])
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
            says(guest, &[("signalled", "1"), ("delivered", "1")])?;
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
        let vm = guest.running.vm.fd.as_raw_fd();
        for gsi in [PIN, MSI] {
            for _ in 0..20 {
                let eventfd = eventfd()?;
                let binding = device.bind(poke::gsi(vm, eventfd.as_raw_fd(), gsi))?;
                eventfd.write(1)?;
                drop(binding);
                let events = Events::begin()?;
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
        let events = Events::begin()?;
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
                Ok(rows.iter().all(|row| row["signalled"] != "1"))
            })?;
            drop(one);
            Ok(())
        })?;
        storm::until("the other is told", || Ok(fds[1].1.read().is_ok()))?;
        ensure!(fds[0].1.read().is_err(), "the one that went is told");
        drop(two);
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
