// SPDX-License-Identifier: GPL-2.0
//! Injection from the shell: what it refuses, and that a guest takes what it does not refuse.

use anyhow::{ensure, Result};
use kvmate_tests::{
    ensure_eq,
    guest::{
        irq::{shared::NMI, Chips, Guest, Trigger},
        Vm,
    },
    ktap,
    module::Kvmate,
    poke::{self, poked, Poked, MSI, MSI_VECTOR, PIN, VECTOR},
    seen, storm,
    traced::Traced,
};
use nix::errno::Errno;
use std::{fs, os::fd::AsRawFd, process::ExitCode};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

fn main() -> ExitCode {
    ktap::main(&[
        ("not_allowed", not_allowed),
        ("bad_text", bad_text),
        ("no_such_thing", no_such_thing),
        ("no_msi_route", no_msi_route),
        ("edges", edges),
        ("masked", masked),
        ("msis", msis),
        ("nmis", nmis),
        ("levels", levels),
        ("levels_fall_with_the_module", levels_fall_with_the_module),
        ("one_vm_only", one_vm_only),
        ("irqfds_of_kvm", irqfds_of_kvm),
        ("irqfd_signalled", irqfd_signalled),
    ])
}

/// kvmate, with injection allowed.
fn load() -> Result<Kvmate> {
    let kvmate = Kvmate::load("")?;
    kvmate.write("knobs/inject", "1")?;
    Ok(kvmate)
}

/// Without the knob nothing is injected, whatever is written.
fn not_allowed() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    ensure_eq!(kvmate.read("knobs/inject")?, "0", "the knob at first");
    poked(Trigger::Edge, |guest| {
        ensure_eq!(guest.status()?, "-", "the status at first");
        let events = Traced::begin()?;
        for text in [
            "gsi 10",
            "gsi 10 high",
            "msi 0xfee00000 0x51",
            "nmi 0",
            "nonsense",
        ] {
            ensure_eq!(guest.inject(text), Err(Errno::EPERM), "{text}");
            ensure_eq!(guest.status()?, "-: EPERM: knobs/inject is 0", "status");
        }
        events.none("EPERM")?;
        kvmate.write("knobs/inject", "1")?;
        ensure_eq!(guest.inject("gsi 10"), Ok(()), "gsi 10 with the knob");
        guest.until(VECTOR, 1)?;
        kvmate.write("knobs/inject", "0")?;
        events.clear()?;
        ensure_eq!(guest.inject("gsi 10"), Err(Errno::EPERM), "gsi 10 without");
        events.none("EPERM")?;
        for bad in ["2", "-1", "x"] {
            let refused = poke::write(&seen::vms().join("../knobs/inject"), bad.as_bytes());
            ensure_eq!(refused, Err(Errno::EINVAL), "the knob given {bad:?}");
            ensure_eq!(kvmate.read("knobs/inject")?, "0", "the knob after {bad:?}");
        }
        guest.took(&[(VECTOR, 1)])
    })?;
    kvmate.unload()
}

/// What is no request is `EINVAL`, and nothing goes into the chips.
fn bad_text() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let events = Traced::begin()?;
        let long = format!("gsi {}10", " ".repeat(200));
        let longest = format!("gsi{}10", " ".repeat(123));
        ensure_eq!(longest.len(), 128, "length");
        for text in [
            "\n",
            " ",
            "gsi",
            "gsi ten",
            "gsi -1",
            "gsi 10 up",
            "gsi 10 high low",
            "gsi 4294967296",
            "gsi 10\ngsi 10",
            "gsi 10\0",
            "GSI 10",
            "msi",
            "msi 0xfee00000",
            "msi 0xfed00000 0x51",
            "msi 0xfee00000 0x51 0",
            "msi 0x1fee00000 0x51",
            "msi 0xfee00000 0x100000051",
            "nmi",
            "nmi 0 0",
            "nmi -1",
            "irqfd",
            "irqfd x",
            "10",
            "storm",
            long.as_str(),
        ] {
            ensure_eq!(guest.inject(text), Err(Errno::EINVAL), "{text:?}");
            let status = guest.status()?;
            ensure!(
                status.starts_with("-: EINVAL: not one of: gsi N"),
                "{text:?}: {status}"
            );
        }
        events.none("EINVAL")?;
        ensure_eq!(guest.inject(&longest), Ok(()), "as long as may be");
        guest.until(VECTOR, 1)?;
        guest.took(&[(VECTOR, 1)])
    })?;
    kvmate.unload()
}

/// A request that is understood and refused.
fn refused(guest: &Poked<'_>, text: &str, errno: Errno) -> Result<()> {
    ensure_eq!(guest.inject(text), Err(errno), "{text}");
    let (status, start) = (guest.status()?, format!("{text}: {errno:?}: "));
    ensure!(
        status.starts_with(&start) && status.len() > start.len() + 8,
        "{status}"
    );
    Ok(())
}

/// What is understood and cannot be: an errno each, and nothing goes into the chips.
fn no_such_thing() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let events = Traced::begin()?;
        for gsi in [MSI + 1, 4095, 4096, u32::MAX] {
            for text in [
                format!("gsi {gsi}"),
                format!("gsi {gsi} high"),
                format!("gsi {gsi} low"),
            ] {
                refused(guest, &text, Errno::ENOENT)?;
            }
        }
        refused(guest, &format!("gsi {MSI} high"), Errno::EOPNOTSUPP)?;
        refused(guest, &format!("gsi {MSI} low"), Errno::EOPNOTSUPP)?;
        for gsi in [PIN, MSI, 4096, u32::MAX] {
            refused(guest, &format!("irqfd {gsi}"), Errno::ENOTCONN)?;
        }
        for vcpu in [1, 300, u32::MAX] {
            refused(guest, &format!("nmi {vcpu}"), Errno::ESRCH)?;
        }
        events.none("refusals")?;
        guest.took(&[])
    })?;
    kvmate.unload()
}

/// Without a GSI that is routed to an MSI nothing takes one; without chips there is no route at all.
fn no_msi_route() -> Result<()> {
    let kvmate = load()?;
    let vm = Vm::new(1 << 16, true)?;
    let _vcpu = vm.vcpu(0)?;
    let bare = Vm::new(1 << 16, false)?;
    let _bare_vcpu = bare.vcpu(0)?;
    let events = Traced::begin()?;
    for (vm, texts) in [
        (&vm, &["gsi 24", "gsi 100"] as &[_]),
        (&bare, &["gsi 0", "gsi 10", "gsi 10 high", "gsi 24"]),
    ] {
        let inject = seen::vms().join(storm::name_of(vm)).join("inject");
        for text in ["msi 0xfee00000 0x51", "nmi 0"] {
            let found = poke::write(&inject, text.as_bytes());
            ensure_eq!(found, Err(Errno::ENXIO), "{text}");
        }
        for text in texts {
            let found = poke::write(&inject, text.as_bytes());
            ensure_eq!(found, Err(Errno::ENOENT), "{text}");
        }
    }
    events.none("refusals")?;
    kvmate.unload()
}

/// Edges through the IOAPIC and through the PIC, each counted by the guest.
fn edges() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let events = Traced::begin()?;
        for count in 1..=50 {
            ensure_eq!(guest.inject("gsi 10"), Ok(()), "gsi 10");
            ensure_eq!(guest.status()?, "gsi 10: delivered", "status");
            guest.until(VECTOR, count)?;
        }
        // Up and down, at the IOAPIC and at the PIC.
        ensure_eq!(events.read()?.len(), 50 * 2 * 2, "events");
        guest.took(&[(VECTOR, 50)])
    })?;
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    let vector = guest.pic(5, Trigger::Edge);
    let inject = seen::vms().join(storm::name_of(&guest.vm)).join("inject");
    guest.run(|running| {
        for count in 1..=50 {
            ensure_eq!(poke::write(&inject, b"gsi 5"), Ok(()), "gsi 5");
            running.until(0, vector, count)?;
        }
        ensure_eq!(running.settled()?.len(), 1, "vectors");
        ensure_eq!(running.count(0, vector), 50, "interrupts");
        Ok(())
    })?;
    kvmate.unload()
}

/// A pin that is masked everywhere ignores an edge.
fn masked() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        ensure_eq!(guest.inject("gsi 11"), Ok(()), "gsi 11");
        ensure_eq!(guest.status()?, "gsi 11: ignored", "status");
        guest.took(&[])
    })?;
    kvmate.unload()
}

/// MSIs: any, and by a GSI that is routed to one.
fn msis() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        for count in 1..=50 {
            ensure_eq!(guest.inject("msi 0xfee00000 0x4071\n"), Ok(()), "msi");
            let status = guest.status()?;
            ensure_eq!(status, "msi 0xfee00000 0x4071: delivered", "status");
            guest.until(0x71, count)?;
            ensure_eq!(guest.inject("gsi 24"), Ok(()), "gsi 24");
            ensure_eq!(guest.status()?, "gsi 24: delivered", "status");
            guest.until(MSI_VECTOR, count)?;
        }
        // To an APIC id that nobody has.
        ensure_eq!(guest.inject("msi 0xfee07000 0x71"), Ok(()), "to nobody");
        ensure_eq!(guest.status()?, "msi 0xfee07000 0x71: ignored", "status");
        guest.took(&[(0x71, 50), (MSI_VECTOR, 50)])
    })?;
    kvmate.unload()
}

/// NMIs, each counted by the guest, of which one is for the other vCPU.
fn nmis() -> Result<()> {
    let kvmate = load()?;
    let mut guest = Guest::new(Chips::Kernel, 2)?;
    guest.route(&[(0xfee0_0000, VECTOR.into())])?;
    let inject = seen::vms().join(storm::name_of(&guest.vm)).join("inject");
    guest.run(|running| {
        for count in 1..=20 {
            ensure_eq!(poke::write(&inject, b"nmi 1"), Ok(()), "nmi 1");
            running.until(1, NMI, count)?;
        }
        ensure_eq!(poke::write(&inject, b"nmi 0"), Ok(()), "nmi 0");
        running.until(0, NMI, 1)?;
        let counts = running.settled()?;
        ensure_eq!(counts, [((0, NMI), 1), ((1, NMI), 20)].into(), "interrupts");
        Ok(())
    })?;
    kvmate.unload()
}

/// A level stays up until it is told to go down: the guest takes it again after each EOI.
fn levels() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Level, |guest| {
        for _ in 0..5 {
            ensure_eq!(guest.inject("gsi 10 high"), Ok(()), "high");
            ensure_eq!(guest.status()?, "gsi 10 high: delivered", "status");
            guest.until(VECTOR, guest.seen(VECTOR) + 20)?;
            // An edge on top does not lower it.
            ensure_eq!(guest.inject("gsi 10"), Ok(()), "edge");
            guest.until(VECTOR, guest.seen(VECTOR) + 20)?;
            ensure_eq!(guest.inject("gsi 10 low"), Ok(()), "low");
            is_down(guest)?;
        }
        // Lower than low.
        ensure_eq!(guest.inject("gsi 10 low"), Ok(()), "low again");
        is_down(guest)
    })?;
    kvmate.unload()
}

/// The line is down: no more come.
fn is_down(guest: &Poked<'_>) -> Result<()> {
    let counts = guest.running.settled()?;
    ensure_eq!(guest.running.settled()?, counts, "with the line down");
    Ok(())
}

/// What the shell holds up is down when kvmate has gone.
fn levels_fall_with_the_module() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Level, |guest| {
        ensure_eq!(guest.inject("gsi 10 high"), Ok(()), "high");
        guest.until(VECTOR, 20)?;
        kvmate.unload()?;
        is_down(guest)
    })
}

/// What is injected into one VM goes into that one.
fn one_vm_only() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |one| {
        poked(Trigger::Edge, |other| {
            for count in 1..=10 {
                ensure_eq!(one.inject("gsi 10"), Ok(()), "gsi 10");
                ensure_eq!(one.inject("msi 0xfee00000 0x71"), Ok(()), "msi");
                one.until(VECTOR, count)?;
                one.until(0x71, count)?;
            }
            other.took(&[])?;
            ensure_eq!(other.status()?, "-", "the other's status");
            ensure_eq!(other.inject("gsi 10"), Ok(()), "gsi 10");
            other.until(VECTOR, 1)?;
            other.took(&[(VECTOR, 1)])
        })?;
        one.took(&[(VECTOR, 10), (0x71, 10)])
    })?;
    kvmate.unload()
}

/// KVM's irqfds as the VMM made them: GSI, route, and its descriptor.
fn irqfds_of_kvm() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Level, |guest| {
        let table = guest.file("irqfds");
        let read = || -> Result<Vec<String>> {
            let text = fs::read_to_string(&table)?;
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            ensure_eq!(lines.remove(0), "gsi route resample fd", "header");
            lines.sort();
            Ok(lines)
        };
        ensure_eq!(read()?, Vec::<String>::new(), "irqfds at first");
        let fds: Vec<_> = (0..4)
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<std::io::Result<_>>()?;
        let fd = |number: usize| fds[number].as_raw_fd();
        let vm = &guest.running.vm.fd;
        vm.register_irqfd(&fds[0], MSI)?;
        vm.register_irqfd_with_resample(&fds[1], &fds[2], PIN)?;
        vm.register_irqfd(&fds[3], 100)?;
        let mut expected = vec![
            format!("24 msi:0xfee00000:{MSI_VECTOR:#x} 0 {}", fd(0)),
            format!("100 - 0 {}", fd(3)),
        ];
        let mut lines = read()?;
        let at = lines.iter().position(|line| line.starts_with("10 "));
        let pins = lines.remove(at.unwrap_or(0));
        let [one, other] = ["ioapic:10,pic:10", "pic:10,ioapic:10"];
        ensure!(
            [one, other]
                .map(|route| format!("10 {route} 1 {}", fd(1)))
                .contains(&pins),
            "{pins}"
        );
        expected.sort();
        ensure_eq!(lines, expected, "the other irqfds");
        vm.unregister_irqfd(&fds[0], MSI)?;
        ensure_eq!(read()?.len(), 2, "irqfds without the first");
        Ok(())
    })?;
    kvmate.unload()
}

/// Signalling one of KVM's is what a write by the VMM would have been.
fn irqfd_signalled() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Level, |guest| {
        let vm = &guest.running.vm.fd;
        let (msi, eventfd, resample) = (
            EventFd::new(EFD_NONBLOCK)?,
            EventFd::new(EFD_NONBLOCK)?,
            EventFd::new(EFD_NONBLOCK)?,
        );
        vm.register_irqfd(&msi, MSI)?;
        vm.register_irqfd_with_resample(&eventfd, &resample, PIN)?;
        for count in 1..=20 {
            ensure_eq!(guest.inject("irqfd 24"), Ok(()), "irqfd 24");
            ensure_eq!(guest.status()?, "irqfd 24: signalled", "status");
            guest.until(MSI_VECTOR, count)?;
            ensure_eq!(guest.inject("irqfd 10"), Ok(()), "irqfd 10");
            guest.until(VECTOR, count)?;
            storm::until("the VMM is told", || Ok(resample.read().is_ok()))?;
        }
        guest.took(&[(MSI_VECTOR, 20), (VECTOR, 20)])?;
        vm.unregister_irqfd(&msi, MSI)?;
        ensure_eq!(guest.inject("irqfd 24"), Err(Errno::ENOTCONN), "irqfd 24");
        guest.took(&[(MSI_VECTOR, 20), (VECTOR, 20)])
    })?;
    kvmate.unload()
}
