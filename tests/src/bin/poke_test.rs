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
    poke::{self, poked, Events, Poked, MSI, MSI_VECTOR, PIN, VECTOR},
    seen, storm,
};
use nix::errno::Errno;
use std::{collections::BTreeMap, fs, os::fd::AsRawFd, process::ExitCode, time::Duration};
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
        ("storm_refuses", storm_refuses),
        ("storm_of_msis", storm_of_msis),
        ("storm_of_edges", storm_of_edges),
        ("storm_too_fast", storm_too_fast),
        ("storm_stops", storm_stops),
        ("storm_ends_with_the_vm", storm_ends_with_the_vm),
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
        let events = Events::begin()?;
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
        let events = Events::begin()?;
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
        let events = Events::begin()?;
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
    let events = Events::begin()?;
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
        let events = Events::begin()?;
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

/// The table `storm`, by the columns' names.
fn storm_of(guest: &Poked<'_>) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(guest.file("storm"))?;
    let mut lines = text.lines();
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    ensure!(lines.next().is_none(), "{text}");
    let names = names.split(' ').map(str::to_owned);
    Ok(names.zip(values.split(' ').map(str::to_owned)).collect())
}

fn storm(guest: &Poked<'_>, text: &str) -> nix::Result<()> {
    poke::write(&guest.file("storm"), text.as_bytes())
}

/// A number of that table.
fn number(guest: &Poked<'_>, column: &str) -> Result<u64> {
    Ok(storm_of(guest)?[column].parse()?)
}

fn until_done(guest: &Poked<'_>) -> Result<()> {
    storm::until("the storm is done", || {
        Ok(storm_of(guest)?["state"] == "done")
    })
}

fn storm_refuses() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    poked(Trigger::Edge, |guest| {
        let good = "gsi 10 count 5 rate 100";
        ensure_eq!(storm(guest, good), Err(Errno::EPERM), "without the knob");
        ensure_eq!(
            storm(guest, "nonsense"),
            Err(Errno::EPERM),
            "without the knob"
        );
        kvmate.write("knobs/inject", "1")?;
        for text in [
            "",
            "gsi 10",
            "gsi 10 count 5",
            "gsi 10 count 0 rate 5",
            "gsi 10 count 5 rate 0",
            "gsi 10 count 5 rate 1000001",
            "gsi 10 high count 5 rate 5",
            "nmi 0 count 5 rate 5",
            "msi 0xfed00000 0x51 count 5 rate 5",
            "stop now",
        ] {
            if !text.is_empty() {
                ensure_eq!(storm(guest, text), Err(Errno::EINVAL), "{text:?}");
            }
        }
        ensure_eq!(storm_of(guest)?["state"], "-", "the state");
        guest.took(&[])?;
        ensure_eq!(storm(guest, "stop"), Ok(()), "stop of none");
        ensure_eq!(storm(guest, "gsi 10 count 1000 rate 10"), Ok(()), "slow");
        ensure_eq!(storm(guest, good), Err(Errno::EBUSY), "another");
        ensure_eq!(storm_of(guest)?["state"], "running", "the state");
        kvmate.write("knobs/inject", "0")?;
        ensure_eq!(storm(guest, "stop"), Ok(()), "stop without the knob");
        ensure_eq!(storm_of(guest)?["state"], "stopped", "the state");
        Ok(())
    })?;
    kvmate.unload()
}

/// A storm so slow that each is taken before the next comes, unless this machine stalls: then again.
/// Whatever the guest had time for, KVM's events say how many went in, each making `each` of them.
fn slowly(guest: &Poked<'_>, of: &str, vector: u8, each: usize) -> Result<()> {
    for attempt in 1.. {
        let (events, before) = (Events::begin()?, guest.seen(vector));
        ensure_eq!(
            storm(guest, &format!("{of} count 10 rate 20")),
            Ok(()),
            "{of}"
        );
        until_done(guest)?;
        let found = storm_of(guest)?;
        for (column, wanted) in [("sent", "10"), ("failed", "0")] {
            ensure_eq!(found[column], wanted, "{column} of {of}");
        }
        guest.running.settled()?;
        let seen = guest.seen(vector) - before;
        // The test's own fence is one more.
        ensure_eq!(events.read()?.len(), 10 * each + 1, "events of {of}");
        if seen == 10 {
            ensure_eq!(found["delivered"], "10", "delivered of {of}");
            return Ok(());
        }
        ensure!(
            attempt < 6 && seen < 10,
            "{of}: the guest took {seen} of 10"
        );
    }
    Ok(())
}

fn storm_of_msis() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        slowly(guest, "msi 0xfee00000 0x71", 0x71, 1)?;
        ensure_eq!(storm_of(guest)?["coalesced"], "-", "coalesced");
        let seen = guest.seen(0x71);
        // To nobody.
        let nobody = "msi 0xfee07000 0x71 count 10 rate 1000";
        ensure_eq!(storm(guest, nobody), Ok(()), "to nobody");
        until_done(guest)?;
        ensure_eq!(storm_of(guest)?["failed"], "10", "failed");
        guest.took(&[(0x71, seen)])
    })?;
    kvmate.unload()
}

fn storm_of_edges() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        // Up and down, at the IOAPIC and at the PIC.
        slowly(guest, "gsi 10", VECTOR, 4)?;
        slowly(guest, "gsi 24", MSI_VECTOR, 1)?;
        let before = (guest.seen(VECTOR), guest.seen(MSI_VECTOR));
        // No route.
        ensure_eq!(storm(guest, "gsi 99 count 5 rate 500"), Ok(()), "no route");
        until_done(guest)?;
        ensure_eq!(storm_of(guest)?["failed"], "5", "failed");
        guest.took(&[(VECTOR, before.0), (MSI_VECTOR, before.1)])
    })?;
    kvmate.unload()
}

/// At a rate that nothing here keeps all are sent all the same, and what the guest took is not more.
fn storm_too_fast() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        for (text, vector) in [
            ("msi 0xfee00000 0x71 count 20000 rate 1000000", 0x71),
            ("gsi 10 count 20000 rate 1000000", VECTOR),
        ] {
            ensure_eq!(storm(guest, text), Ok(()), "{text}");
            until_done(guest)?;
            let sent = number(guest, "sent")?;
            ensure_eq!(sent, 20_000, "sent of {text}");
            guest.running.settled()?;
            let seen = guest.seen(vector);
            ensure!(seen > 0 && seen <= 20_000, "{seen} of {text}");
            if vector == VECTOR {
                let coalesced = number(guest, "coalesced")?;
                let delivered = number(guest, "delivered")?;
                ensure_eq!(delivered + coalesced, 20_000, "by what the chips said");
                ensure!(seen <= delivered, "{seen} of {delivered}");
            }
        }
        Ok(())
    })?;
    kvmate.unload()
}

/// When `stop` has returned nothing more goes into the chips.
fn storm_stops() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        for text in [
            "msi 0xfee00000 0x71 count 1000000 rate 100000",
            "gsi 10 count 1000000 rate 100000",
        ] {
            for _ in 0..5 {
                ensure_eq!(storm(guest, text), Ok(()), "{text}");
                storm::until("it blows", || Ok(number(guest, "sent")? > 10))?;
                ensure_eq!(storm(guest, "stop"), Ok(()), "stop");
                let events = Events::begin()?;
                let sent = number(guest, "sent")?;
                std::thread::sleep(Duration::from_millis(20));
                events.none("stop")?;
                ensure_eq!(number(guest, "sent")?, sent, "sent after stop");
                ensure_eq!(storm_of(guest)?["state"], "stopped", "the state");
            }
        }
        Ok(())
    })?;
    kvmate.unload()
}

/// It keeps neither the VM nor the module.
fn storm_ends_with_the_vm() -> Result<()> {
    let kvmate = load()?;
    for text in [
        "msi 0xfee00000 0x71 count 1000000 rate 5000",
        "gsi 10 count 1000000 rate 5000",
    ] {
        poked(Trigger::Edge, |guest| {
            ensure_eq!(storm(guest, text), Ok(()), "{text}");
            storm::until("it blows", || Ok(number(guest, "sent")? > 10))
        })?;
        storm::until("the VM has gone", || Ok(seen::names_of_vms()?.is_empty()))?;
    }
    // kvmate goes while one blows.
    poked(Trigger::Edge, |guest| {
        let text = "msi 0xfee00000 0x71 count 1000000 rate 5000";
        ensure_eq!(storm(guest, text), Ok(()), "{text}");
        storm::until("it blows", || Ok(number(guest, "sent")? > 10))?;
        kvmate.unload()?;
        let events = Events::begin()?;
        std::thread::sleep(Duration::from_millis(20));
        events.none("rmmod")
    })
}
