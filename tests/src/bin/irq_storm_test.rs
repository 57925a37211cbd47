// SPDX-License-Identifier: GPL-2.0
//! Storms: each interrupt asked for goes into KVM's chips once, as KVM's trace events say; what is
//! counted is what KVM answered; and none after a storm's end, however it came.

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{
    kvm_irq_routing_entry, KvmIrqRouting, KVM_IRQCHIP_IOAPIC, KVM_IRQ_ROUTING_IRQCHIP,
};
use kvmate_tests::{
    delay::Delay,
    ensure_eq,
    guest::{
        irq::{Chips, Guest, Trigger},
        Vm,
    },
    ktap,
    module::{Kvmate, Log},
    poke::{self, poked, Poked, MSI, MSI_VECTOR, PIN, VECTOR},
    seen, storm as life,
    traced::{Line, Traced},
};
use nix::errno::Errno;
use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    ktap::main(&[
        ("refused", refused),
        ("nothing_to_send_by", nothing_to_send_by),
        ("msis", msis),
        ("slow_msis_are_all_taken", slow_msis_are_all_taken),
        ("msis_to_nobody", msis_to_nobody),
        ("gsi_that_is_an_msi", gsi_that_is_an_msi),
        ("pins", pins),
        ("masked_pins", masked_pins),
        ("pins_coalesce", pins_coalesce),
        ("routes_change", routes_change),
        ("one_at_a_time", one_at_a_time),
        ("stop_at_once", stop_at_once),
        ("knob_ends_it", knob_ends_it),
        ("vm_ends", vm_ends),
        ("module_goes", module_goes),
        ("too_fast", too_fast),
    ])
}

const COLUMNS: &str = "state target asked sent delivered coalesced failed late rate reached";

/// kvmate, with injection allowed.
fn load() -> Result<Kvmate> {
    let kvmate = Kvmate::load("")?;
    kvmate.write("knobs/inject", "1")?;
    Ok(kvmate)
}

/// A VM's files of storms.
#[derive(Clone)]
struct Storm(PathBuf);

/// A line of `storm`.
#[derive(Debug, Default)]
struct Row {
    state: String,
    target: String,
    asked: u64,
    sent: u64,
    delivered: u64,
    /// `None`: `-`.
    coalesced: Option<u64>,
    failed: u64,
    late: u64,
    rate: u64,
    reached: Option<u64>,
}

impl Storm {
    fn of(name: &str) -> Self {
        Self(seen::vms().join(name))
    }

    fn of_guest(guest: &Poked<'_>) -> Self {
        Self::of(&guest.name)
    }

    fn write(&self, text: &str) -> nix::Result<()> {
        poke::write(&self.0.join("storm"), text.as_bytes())
    }

    fn status(&self) -> Result<String> {
        let text = fs::read_to_string(self.0.join("storm_status")).context("storm_status")?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    fn table(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.0.join("storm")).context("storm")?;
        let mut lines = text.lines();
        ensure_eq!(lines.next(), Some(COLUMNS), "header");
        Ok(lines.map(str::to_owned).collect())
    }

    /// Its line, in which everything adds up.
    fn row(&self) -> Result<Row> {
        let lines = self.table()?;
        ensure_eq!(lines.len(), 1, "lines");
        let words: Vec<_> = lines[0].split(' ').collect();
        ensure_eq!(words.len(), 10, "columns of {words:?}");
        let number = |at: usize| words[at].parse::<u64>().context(lines[0].clone());
        let maybe = |at: usize| match words[at] {
            "-" => Ok(None),
            _ => number(at).map(Some),
        };
        let row = Row {
            state: words[0].into(),
            target: words[1].into(),
            asked: number(2)?,
            sent: number(3)?,
            delivered: number(4)?,
            coalesced: maybe(5)?,
            failed: number(6)?,
            late: number(7)?,
            rate: number(8)?,
            reached: maybe(9)?,
        };
        let sum = row.delivered + row.coalesced.unwrap_or(0) + row.failed;
        ensure_eq!(row.sent, sum, "{row:?}");
        ensure!(row.sent <= row.asked && row.late <= row.sent, "{row:?}");
        Ok(row)
    }

    /// Stand by until it is over.
    fn ended(&self) -> Result<Row> {
        life::until("the storm is over", || Ok(self.row()?.state != "running"))
            .with_context(|| format!("{:?}", self.row()))?;
        self.row()
    }

    /// Stand by until so many were sent.
    fn until(&self, sent: u64) -> Result<()> {
        life::until("so many were sent", || Ok(self.row()?.sent >= sent))
            .with_context(|| format!("{sent}: {:?}", self.row()))
    }

    /// One that sends all it was asked for.
    fn complete(&self, target: &str, count: u64, rate: u64) -> Result<Row> {
        let text = format!("{target} count {count} rate {rate}");
        ensure_eq!(self.write(&text), Ok(()), "{text}");
        ensure_eq!(self.status()?, format!("{text}: started"), "status");
        let row = self.ended()?;
        ensure_eq!(row.state, "done", "{row:?}");
        ensure_eq!(
            (row.asked, row.sent, row.rate),
            (count, count, rate),
            "{row:?}"
        );
        // It never runs ahead.
        ensure!(row.reached.is_none_or(|reached| reached <= rate), "{row:?}");
        Ok(row)
    }
}

/// What is refused: an errno and a line each, and nothing goes into the chips.
fn refused() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    poked(Trigger::Edge, |guest| {
        let (storm, traced) = (Storm::of_guest(guest), Traced::begin()?);
        let refused = |text: &str, errno: Errno, shown: &str| -> Result<()> {
            ensure_eq!(storm.write(text), Err(errno), "{text:?}");
            let (status, start) = (storm.status()?, format!("{shown}: {errno:?}: "));
            ensure!(
                status.starts_with(&start) && status.len() > start.len() + 8,
                "{text:?}: {status}"
            );
            Ok(())
        };
        ensure_eq!(storm.status()?, "-", "the status at first");
        for text in ["gsi 10 count 1 rate 1", "stop", "nonsense"] {
            refused(text, Errno::EPERM, "-")?;
        }
        kvmate.write("knobs/inject", "1")?;
        let long = format!("gsi {}10 count 1 rate 1", " ".repeat(128));
        for text in [
            "\n",
            "gsi 10",
            "gsi 10 count 5",
            "gsi 10 rate 5 count 5",
            "gsi 10 high count 5 rate 5",
            "gsi 10 count 5 rate -5",
            "gsi 10 count 5 rate 99999999999999999999",
            "gsi 10 count 5 rate 5 stop",
            "nmi 0 count 5 rate 5",
            "msi 0xfee00000 count 5 rate 5",
            "msi 0xfed00000 0x51 count 5 rate 5",
            "stop stop",
            long.as_str(),
        ] {
            refused(text, Errno::EINVAL, "-")?;
        }
        for (count, rate) in [
            ("0", "5"),
            ("5", "0"),
            ("5", "1000000000"),
            ("4294967296", "5"),
        ] {
            let text = format!("gsi 10 count {count} rate {rate}");
            refused(&text, Errno::ERANGE, "-")?;
        }
        for gsi in [MSI + 1, 4096, u32::MAX] {
            let text = format!("gsi {gsi} count 5 rate 5");
            refused(&text, Errno::ENOENT, &text)?;
        }
        ensure_eq!(storm.table()?.len(), 0, "storms");
        // There is nothing to stop, and that is as well.
        ensure_eq!(storm.write("stop"), Ok(()), "stop");
        ensure_eq!(storm.status()?, "stop: stopped", "status");
        ensure_eq!(storm.table()?.len(), 0, "storms");
        ensure_eq!(traced.read()?.len(), 0, "events");
        guest.took(&[])
    })?;
    kvmate.unload()
}

/// VMs that have nothing that takes it.
fn nothing_to_send_by() -> Result<()> {
    let kvmate = load()?;
    let vm = Vm::new(1 << 16, true)?;
    let _vcpu = vm.vcpu(0)?;
    let bare = Vm::new(1 << 16, false)?;
    let _bare_vcpu = bare.vcpu(0)?;
    for (vm, text, errno) in [
        (&vm, "msi 0xfee00000 0x51 count 5 rate 5", Errno::ENXIO),
        (&vm, "gsi 24 count 5 rate 5", Errno::ENOENT),
        (&bare, "msi 0xfee00000 0x51 count 5 rate 5", Errno::ENXIO),
        (&bare, "gsi 10 count 5 rate 5", Errno::ENOENT),
    ] {
        let storm = Storm::of(&life::name_of(vm));
        ensure_eq!(storm.write(text), Err(errno), "{text}");
        ensure_eq!(storm.table()?.len(), 0, "storms");
    }
    kvmate.unload()
}

/// What went into the chips in a storm of MSIs.
fn msis_traced(traced: &Traced, vector: u8, count: u64) -> Result<()> {
    let lines = traced.read()?;
    let msis = lines.iter().filter(|line| **line == Line::Msi { vector });
    ensure_eq!(msis.count() as u64, count, "MSIs of vector {vector:#x}");
    ensure_eq!(lines.len() as u64, count, "events");
    Ok(())
}

/// Each MSI asked for goes into the chips once.
fn msis() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let (storm, traced) = (Storm::of_guest(guest), Traced::begin()?);
        let mut taken = 0;
        for (count, rate) in [(1, 1), (2, 1000), (1000, 5000), (3000, 100_000)] {
            traced.clear()?;
            let row = storm.complete("msi 0xfee00000 0x4071", count, rate)?;
            ensure_eq!(row.target, "msi:0xfee00000:0x4071", "target");
            ensure_eq!(row.delivered, count, "{row:?}");
            ensure_eq!(row.coalesced, None, "{row:?}");
            msis_traced(&traced, 0x71, count)?;
            // They may coalesce, but not all of them, and none comes twice.
            let counts = guest.running.settled()?;
            ensure_eq!(counts.len(), 1, "vectors taken: {counts:x?}");
            let now = guest.seen(0x71);
            ensure!(
                (1..=count).contains(&(now - taken)),
                "{now} after {taken}: {row:?}"
            );
            taken = now;
        }
        // While the guest takes none all become one.
        guest
            .running
            .held(|| storm.complete("msi 0xfee00000 0x4072", 50, 5000).map(drop))?;
        guest.took(&[(0x71, taken), (0x72, 1)])
    })?;
    kvmate.unload()
}

/// The guest takes every one that it has time for, and the rate is kept: in a run in which the machine
/// does not stand still for most of a period, of several.
fn all_are_taken(guest: &Poked<'_>, storm: &Storm, target: &str, vector: u8) -> Result<()> {
    const COUNT: u64 = 15;
    let mut runs = Vec::new();
    for _ in 0..5 {
        let (before, begin) = (guest.seen(vector), Instant::now());
        let row = storm.complete(target, COUNT, 10)?;
        // The last is due after 14 tenths of a second.
        let took = begin.elapsed();
        ensure!(took >= Duration::from_millis(1400), "{took:?}: {row:?}");
        guest.running.settled()?;
        let taken = guest.seen(vector) - before;
        ensure!(taken <= COUNT, "{taken} were taken: {row:?}");
        // Late are those right before which it stood still for a whole period.
        if taken + row.late >= COUNT && row.late <= COUNT / 3 && row.reached >= Some(9) {
            return Ok(());
        }
        runs.push((taken, row));
    }
    bail!("taken of each storm: {runs:?}")
}

fn slow_msis_are_all_taken() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        all_are_taken(guest, &Storm::of_guest(guest), "msi 0xfee00000 0x71", 0x71)
    })?;
    kvmate.unload()
}

/// To an APIC id that nobody has.
fn msis_to_nobody() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let (storm, traced) = (Storm::of_guest(guest), Traced::begin()?);
        let row = storm.complete("msi 0xfee07000 0x71", 100, 5000)?;
        ensure_eq!((row.delivered, row.failed), (0, 100), "{row:?}");
        msis_traced(&traced, 0x71, 100)?;
        guest.took(&[])
    })?;
    kvmate.unload()
}

/// A GSI that is routed to an MSI.
fn gsi_that_is_an_msi() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let (storm, traced) = (Storm::of_guest(guest), Traced::begin()?);
        let row = storm.complete(&format!("gsi {MSI}"), 200, 5000)?;
        ensure_eq!(row.target, format!("gsi:{MSI}"), "target");
        ensure_eq!((row.delivered, row.coalesced), (200, None), "{row:?}");
        msis_traced(&traced, MSI_VECTOR, 200)?;
        let taken = guest.running.settled()?;
        ensure!((1..=200).contains(&guest.seen(MSI_VECTOR)), "{taken:x?}");
        ensure_eq!(taken.len(), 1, "vectors taken: {taken:x?}");
        Ok(())
    })?;
    kvmate.unload()
}

/// What went into the chips in a storm of edges of a pin: up and down at the IOAPIC and at the PIC.
fn edges_traced(traced: &Traced, pin: u8, count: u64) -> Result<()> {
    let lines = traced.read()?;
    let of = |wanted: Line| lines.iter().filter(|line| **line == wanted).count() as u64;
    ensure_eq!(of(Line::Ioapic { pin }), 2 * count, "at the IOAPIC");
    ensure_eq!(of(Line::Pic { pin }), 2 * count, "at the PIC");
    Ok(())
}

/// Each edge asked for goes through the IOAPIC, in a worker.
fn pins() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let (storm, traced) = (Storm::of_guest(guest), Traced::begin()?);
        let mut taken = 0;
        for (count, rate) in [(1, 1), (500, 5000), (1000, 100_000)] {
            traced.clear()?;
            let row = storm.complete("gsi 10", count, rate)?;
            ensure_eq!(row.delivered, count, "{row:?}");
            ensure_eq!(row.coalesced, Some(0), "{row:?}");
            edges_traced(&traced, 10, count)?;
            guest.running.settled()?;
            let now = guest.seen(VECTOR);
            ensure!(
                (1..=count).contains(&(now - taken)),
                "{now} after {taken}: {row:?}"
            );
            taken = now;
        }
        all_are_taken(guest, &storm, "gsi 10", VECTOR)
    })?;
    kvmate.unload()
}

/// A pin that is masked everywhere.
fn masked_pins() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let (storm, traced) = (Storm::of_guest(guest), Traced::begin()?);
        let row = storm.complete("gsi 11", 100, 5000)?;
        ensure_eq!((row.delivered, row.failed), (0, 100), "{row:?}");
        edges_traced(&traced, 11, 100)?;
        guest.took(&[])
    })?;
    kvmate.unload()
}

/// While the guest takes none, the PIC takes the first only and says so of the others.
fn pins_coalesce() -> Result<()> {
    let kvmate = load()?;
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    let vector = guest.pic(5, Trigger::Edge);
    let storm = Storm::of(&life::name_of(&guest.vm));
    guest.run(|running| {
        for round in 1..=3 {
            running.held(|| {
                let row = storm.complete("gsi 5", 50, 2000)?;
                let counts = (row.delivered, row.coalesced, row.failed);
                ensure_eq!(counts, (1, Some(49), 0), "{row:?}");
                Ok(())
            })?;
            running.until(0, vector, round)?;
            running.settled()?;
            ensure_eq!(running.count(0, vector), round, "interrupts");
        }
        Ok(())
    })?;
    kvmate.unload()
}

/// A GSI that was an MSI becomes a pin, and then nothing: all are counted, and the storm goes on.
fn routes_change() -> Result<()> {
    let kvmate = load()?;
    let mut guest = Guest::new(Chips::Split, 1)?;
    guest.route(&[(0xfee0_0000, 0x61)])?;
    let storm = Storm::of(&life::name_of(&guest.vm));
    guest.run(|_| {
        ensure_eq!(storm.write("gsi 24 count 40000 rate 1000"), Ok(()), "storm");
        storm.until(20)
    })?;
    ensure_eq!(storm.row()?.failed, 0, "failed");
    // No route any more.
    guest.route(&[])?;
    life::until("it fails", || Ok(storm.row()?.failed > 20))?;
    guest.route(&[(0xfee0_0000, 0x61)])?;
    let before = storm.row()?.delivered;
    life::until("it delivers", || Ok(storm.row()?.delivered > before + 20))?;
    ensure_eq!(storm.write("stop"), Ok(()), "stop");
    let row = storm.row()?;
    ensure_eq!(row.state, "stopped", "{row:?}");
    drop(guest);

    // From an MSI to a pin: each goes where the route says.
    poked(Trigger::Edge, |guest| {
        let (storm, traced) = (Storm::of_guest(guest), Traced::begin()?);
        ensure_eq!(storm.write("gsi 24 count 40000 rate 1000"), Ok(()), "storm");
        storm.until(20)?;
        let mut entry = kvm_irq_routing_entry {
            gsi: MSI,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
        entry.u.irqchip.pin = PIN;
        let routing = KvmIrqRouting::from_entries(&[entry])?;
        guest.running.vm.fd.set_gsi_routing(&routing)?;
        let seen = guest.seen(VECTOR);
        guest.until(VECTOR, seen + 5)?;
        ensure_eq!(storm.write("stop"), Ok(()), "stop");
        let (row, lines) = (storm.row()?, traced.read()?);
        let msis = lines.iter().filter(|line| matches!(line, Line::Msi { .. }));
        let edges = lines
            .iter()
            .filter(|line| matches!(line, Line::Ioapic { .. }));
        let sent = msis.count() + edges.count() / 2;
        ensure_eq!(row.sent, sent as u64, "{row:?}");
        ensure_eq!((row.coalesced, row.failed), (Some(0), 0), "{row:?}");
        Ok(())
    })?;
    kvmate.unload()
}

/// A second is refused while the first goes on, and changes nothing of it.
fn one_at_a_time() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let storm = Storm::of_guest(guest);
        let first = "msi 0xfee00000 0x71 count 4294967295 rate 1000";
        ensure_eq!(storm.write(first), Ok(()), "the first");
        for second in [
            "gsi 10 count 1 rate 1",
            "msi 0xfee00000 0x72 count 1 rate 1",
        ] {
            ensure_eq!(storm.write(second), Err(Errno::EBUSY), "{second}");
            let status = storm.status()?;
            ensure!(
                status.starts_with(&format!("{second}: EBUSY: ")),
                "{status}"
            );
        }
        let row = storm.row()?;
        ensure_eq!(row.state, "running", "{row:?}");
        ensure_eq!(row.target, "msi:0xfee00000:0x71", "{row:?}");
        // Another VM has its own.
        poked(Trigger::Edge, |other| {
            let row = Storm::of_guest(other).complete("gsi 10", 10, 1000)?;
            ensure_eq!(row.delivered, 10, "{row:?}");
            // They may coalesce.
            other.until(VECTOR, 1)
        })?;
        ensure_eq!(storm.write("stop"), Ok(()), "stop");
        storm.complete("gsi 10", 10, 1000)?;
        let taken = guest.running.settled()?;
        ensure_eq!(taken.len(), 2, "vectors: {taken:x?}");
        Ok(())
    })?;
    kvmate.unload()
}

/// The storms that are ended in each way: one by the timer, one by the worker.
const ENDED: [&str; 2] = [
    "msi 0xfee00000 0x71 count 4000000 rate 20000",
    "gsi 10 count 4000000 rate 20000",
];

/// Nothing more comes.
fn is_over(traced: &Traced) -> Result<()> {
    thread::sleep(Duration::from_millis(50));
    ensure_eq!(traced.read()?.len(), 0, "events after the end");
    Ok(())
}

/// When `stop` has returned nothing is delivered any more.
fn stop_at_once() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let (storm, traced) = (Storm::of_guest(guest), Traced::begin()?);
        for round in 0..life::rounds(60) {
            let text = ENDED[round as usize % 2];
            ensure_eq!(storm.write(text), Ok(()), "{text}");
            storm.until(u64::from(round % 7) * 20 + 1)?;
            ensure_eq!(storm.write("stop"), Ok(()), "stop");
            traced.clear()?;
            let row = storm.row()?;
            ensure_eq!(row.state, "stopped", "{row:?}");
            ensure_eq!(storm.status()?, "stop: stopped", "status");
            is_over(&traced)?;
            ensure_eq!(storm.row()?.sent, row.sent, "sent");
        }
        Ok(())
    })?;
    kvmate.unload()
}

/// As does the knob: nothing is delivered when it has become 0.
fn knob_ends_it() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let (storm, traced) = (Storm::of_guest(guest), Traced::begin()?);
        for round in 0..life::rounds(20) {
            let text = ENDED[round as usize % 2];
            kvmate.write("knobs/inject", "1")?;
            ensure_eq!(storm.write(text), Ok(()), "{text}");
            storm.until(20)?;
            kvmate.write("knobs/inject", "0")?;
            traced.clear()?;
            is_over(&traced)?;
            let row = storm.row()?;
            ensure_eq!(row.state, "not_allowed", "{row:?}");
            ensure_eq!(storm.write("stop"), Err(Errno::EPERM), "stop");
        }
        // It does not go on when it may, nor does one that was not due to send meanwhile.
        kvmate.write("knobs/inject", "1")?;
        traced.clear()?;
        is_over(&traced)?;
        for slow in [
            "msi 0xfee00000 0x71 count 9 rate 1",
            "gsi 10 count 9 rate 1",
        ] {
            ensure_eq!(storm.write(slow), Ok(()), "{slow}");
            storm.until(1)?;
            kvmate.write("knobs/inject", "0")?;
            let over = storm.row()?;
            ensure_eq!(over.state, "not_allowed", "{slow}");
            kvmate.write("knobs/inject", "1")?;
            traced.clear()?;
            thread::sleep(Duration::from_millis(1500));
            traced.none("the knob")?;
            ensure_eq!(storm.row()?.sent, over.sent, "{slow}");
        }
        Ok(())
    })?;
    kvmate.unload()
}

/// A VM ends in the midst of a storm: nothing holds it up, nothing comes after.
fn vm_ends() -> Result<()> {
    let delay = Delay::load()?;
    let kvmate = load()?;
    let traced = Traced::begin()?;
    // From when the gate is closed to when the routing is freed.
    delay.at("ended", Duration::from_millis(20))?;
    for round in 0..life::rounds(24) {
        let name = poked(Trigger::Edge, |guest| {
            let storm = Storm::of_guest(guest);
            let text = ENDED[round as usize % 2];
            ensure_eq!(storm.write(text), Ok(()), "{text}");
            storm.until(u64::from(round % 5) * 10 + 1)?;
            Ok(guest.name.clone())
        })?;
        traced.clear()?;
        is_over(&traced)?;
        life::until("its folder is gone", || {
            Ok(!seen::vms().join(&name).exists())
        })?;
    }
    ensure_eq!(delay.hits("ended")?, u64::from(life::rounds(24)), "waits");
    drop(delay);
    kvmate.unload()
}

/// kvmate goes in the midst of a storm.
fn module_goes() -> Result<()> {
    for round in 0..life::rounds(24) {
        let kvmate = load()?;
        poked(Trigger::Edge, |guest| {
            let (storm, traced) = (Storm::of_guest(guest), Traced::begin()?);
            let text = ENDED[round as usize % 2];
            ensure_eq!(storm.write(text), Ok(()), "{text}");
            storm.until(u64::from(round % 5) * 10 + 1)?;
            kvmate.unload()?;
            traced.clear()?;
            is_over(&traced)
        })?;
    }
    Ok(())
}

/// A rate that cannot be kept: the machine goes on, all are sent, and the table tells the truth.
fn too_fast() -> Result<()> {
    let kvmate = load()?;
    let mut log = Log::from_now()?;
    poked(Trigger::Edge, |guest| {
        let storm = Storm::of_guest(guest);
        let count = u64::from(life::rounds(60)) * 200;
        for target in ["msi 0xfee00000 0x71", "gsi 10"] {
            // One that would hold a CPU for minutes, if it were sent in one go.
            let text = format!("{target} count 10000000 rate 1000000");
            ensure_eq!(storm.write(&text), Ok(()), "{text}");
            // This task gets to run meanwhile: a hundred times, each after a sleep.
            let mut slowest = Duration::ZERO;
            for _ in 0..100 {
                let asleep = Instant::now();
                thread::sleep(Duration::from_millis(1));
                slowest = slowest.max(asleep.elapsed());
            }
            ensure!(slowest < Duration::from_secs(60), "asleep for {slowest:?}");
            ensure_eq!(storm.write("stop"), Ok(()), "stop");
            let row = storm.row()?;
            ensure_eq!(row.state, "stopped", "{row:?}");
            ensure!((1..row.asked).contains(&row.sent), "{row:?}");

            let text = format!("{target} count {count} rate 1000000");
            let begin = Instant::now();
            ensure_eq!(storm.write(&text), Ok(()), "{text}");
            let row = storm.ended()?;
            let took = begin.elapsed();
            ensure_eq!(row.state, "done", "{row:?}");
            ensure_eq!((row.sent, row.delivered), (count, count), "{row:?}");
            let reached = row.reached.context("no rate")?;
            ensure!(reached <= 1_000_000 && row.late > 0, "{row:?}");
            // What it says it reached is what it took.
            let least = Duration::from_nanos((count - 1) * 1_000_000_000 / (reached + 1));
            ensure!(took >= least, "{took:?}: {row:?}");
            println!("# {target}: {reached} a second, slowest sleep {slowest:?}");
        }
        Ok(())
    })?;
    let lines = log.lines()?;
    let complaint = |line: &&String| {
        ["stall", "lockup", "hrtimer", "hogged", "blocked for"]
            .iter()
            .any(|word| line.contains(word))
    };
    ensure_eq!(lines.iter().find(complaint), None, "the kernel says");
    kvmate.unload()
}
