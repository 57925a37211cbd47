// SPDX-License-Identifier: GPL-2.0
//! `kvmate inject`, as a user runs it, on guests that count their interrupts.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::irq::{msi, Chips, Guest, Trigger},
    ktap,
    module::{Kvmate, Stop},
    poke::{bindings, poked, Poked, MSI, MSI_VECTOR, PIN, VECTOR},
    seen,
    storm::{self, until, Vmm},
    tool::{self, Done},
    traced::Traced,
};
use nix::{
    sys::signal::{kill, Signal},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs,
    process::{Child, ExitCode},
    thread,
};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--vmm") => vmm(),
        _ => ktap::main(&[
            ("bad_input", bad_input),
            ("refused", refused),
            ("injected", injected),
            ("others_write_meanwhile", others_write_meanwhile),
            ("storms", storms),
            ("storm_interrupted", storm_interrupted),
            ("storm_taken_away", storm_taken_away),
            ("killed_meanwhile", killed_meanwhile),
            ("irqfd_keeps_no_vm", irqfd_keeps_no_vm),
        ]),
    }
}

fn inject(arguments: &[&str]) -> Result<Done> {
    tool::run("inject", arguments)
}

/// kvmate, with injection allowed.
fn load() -> Result<Kvmate> {
    let kvmate = Kvmate::load("")?;
    kvmate.write("knobs/inject", "1")?;
    Ok(kvmate)
}

fn bad_input() -> Result<()> {
    for wrong in [
        &[][..],
        &["x"],
        &["x", "gsi"],
        &["x", "gsi", "ten"],
        &["x", "gsi", "10", "up"],
        &["x", "msi", "0xfee00000"],
        &["x", "gsi", "10", "--storm", "5"],
        &["x", "gsi", "10", "--storm", "0", "--rate", "5"],
        &["x", "nmi", "0", "--storm", "5", "--rate", "5"],
    ] {
        let done = inject(wrong)?;
        done.says(2, "Usage: ")
            .or_else(|_| done.says(2, "--help"))?;
    }
    inject(&["1-1", "gsi", "10"])?.says(1, "is not loaded: insmod kvmate.ko")?;
    let kvmate = Kvmate::load("")?;
    inject(&["1-1", "gsi", "10"])?.says(1, "no VM is there")?;
    tool::run_as_nobody(&["inject", "1-1", "gsi", "10"])?.says(1, "needs root")?;
    kvmate.unload()
}

/// What the module refuses: nothing goes into the chips, and the cause and the next step are told.
fn refused() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    poked(Trigger::Edge, |guest| {
        let events = Traced::begin()?;
        let says = |arguments: &[&str], part: &str| {
            let arguments = [&[guest.name.as_str()], arguments].concat();
            inject(&arguments)?.says(1, part)
        };
        let knob = "knobs/inject is 0: echo 1 > /sys/kernel/debug/kvmate/knobs/inject";
        says(&["gsi", "10"], knob)?;
        says(&["gsi", "10", "--storm", "5", "--rate", "5"], knob)?;
        kvmate.write("knobs/inject", "1")?;
        says(&["gsi", "99"], "has no route of GSI 99")?;
        says(&["gsi", "24", "high"], "without high and low")?;
        says(&["nmi", "1"], "has no vCPU 1")?;
        says(&["irqfd", "10"], "no irqfd of GSI 10")?;
        says(
            &["msi", "0xfed00000", "0x51"],
            "no APIC listens at 0xfed00000",
        )?;
        says(
            &["gsi", "99", "--storm", "5", "--rate", "5"],
            "has no route of GSI 99",
        )?;
        events.none("refusals")?;
        guest.took(&[])
    })?;
    kvmate.unload()
}

fn injected() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let says = |arguments: &[&str]| -> Result<String> {
            let arguments = [&[guest.name.as_str()], arguments].concat();
            inject(&arguments)?.well()
        };
        for count in 1..=5 {
            ensure_eq!(says(&["gsi", "10"])?, "gsi 10: delivered\n", "gsi");
            guest.until(VECTOR, count)?;
            let told = says(&["msi", "0xfee00000", "0x71"])?;
            ensure_eq!(told, "msi 0xfee00000 0x71: delivered\n", "msi");
            guest.until(0x71, count)?;
        }
        ensure_eq!(says(&["gsi", "11"])?, "gsi 11: ignored\n", "a masked pin");
        let told = tool::valid("inject", &says(&["gsi", "24", "--json"])?)?;
        ensure_eq!(told["version"], 1, "version");
        ensure_eq!(told["vm"], guest.name.as_str(), "vm");
        ensure_eq!(told["request"], "gsi 24", "request");
        ensure_eq!(told["outcome"], "delivered", "outcome");
        // A line that is up gives no edge.
        ensure_eq!(
            says(&["gsi", "10", "high"])?,
            "gsi 10 high: delivered\n",
            "up"
        );
        guest.until(VECTOR, 6)?;
        ensure_eq!(
            says(&["gsi", "10", "high"])?,
            "gsi 10 high: coalesced\n",
            "up again"
        );
        ensure!(
            says(&["gsi", "10", "low"])?.starts_with("gsi 10 low: "),
            "down"
        );
        guest.took(&[(VECTOR, 6), (0x71, 5), (MSI_VECTOR, 1)])
    })?;
    kvmate.unload()
}

/// Somebody else writes the file all the time: what is told is our own answer or none, and all of ours
/// come, once each.
fn others_write_meanwhile() -> Result<()> {
    const OURS: (u8, u64) = (0x71, 30);
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let (stop, mut told) = (Stop::default(), Vec::new());
        thread::scope(|scope| -> Result<()> {
            let other = scope.spawn(|| {
                while !stop.asked() {
                    let _ = guest.inject("gsi 99");
                }
            });
            let _stop = stop.on_drop();
            for count in 1..=OURS.1 {
                told.push(inject(&[&guest.name, "msi", "0xfee00000", "0x71"])?.well()?);
                guest.until(OURS.0, count)?;
            }
            stop.ask();
            other.join().expect("who writes");
            Ok(())
        })?;
        let is = |outcome: &str| {
            let line = format!("msi 0xfee00000 0x71: {outcome}\n");
            told.iter().filter(|told| **told == line).count()
        };
        let (delivered, unknown) = (is("delivered"), is("unknown"));
        println!("# {delivered} known, {unknown} not");
        ensure_eq!(delivered + unknown, told.len(), "answers: {told:?}");
        guest.took(&[OURS])
    })?;
    kvmate.unload()
}

/// The line of the VM's file `storm`: its cells.
fn line(guest: &Poked<'_>) -> Result<Vec<String>> {
    let text = fs::read_to_string(guest.file("storm"))?;
    let line = text.lines().nth(1).context("no storm")?;
    Ok(line.split(' ').map(str::to_owned).collect())
}

fn storms() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let run = |arguments: &[&str]| inject(&[&[guest.name.as_str()], arguments].concat());
        // One: of more the second may come before the guest took the first.
        let told = run(&["gsi", "10", "--storm", "1", "--rate", "10"])?.well()?;
        ensure!(
            told.starts_with("gsi 10: done: 1 of 1 sent: 1 delivered, 0 coalesced, 0 failed, "),
            "{told}"
        );
        guest.took(&[(VECTOR, 1)])?;
        let told = run(&[
            "msi",
            "0xfee00000",
            "0x71",
            "--storm",
            "500",
            "--rate",
            "5000",
            "--json",
        ])?;
        let told = tool::valid("inject-storm", &told.well()?)?;
        let cells = line(guest)?;
        let columns = "state target asked sent delivered coalesced failed late rate reached";
        for (field, cell) in columns.split(' ').zip(&cells) {
            let found = match &told[field] {
                Value::String(text) => text.clone(),
                Value::Null => "-".into(),
                other => other.to_string(),
            };
            ensure_eq!(found, *cell, "{field}");
        }
        ensure_eq!(
            cells[..4],
            ["done", "msi:0xfee00000:0x71", "500", "500"],
            "it"
        );
        guest.until(0x71, 1)?;
        let taken = guest.seen(0x71);
        ensure!((1..=500).contains(&taken), "{taken} of 500");
        // One that is not waited for.
        let told = run(&[
            "gsi",
            "24",
            "--storm",
            "1000000",
            "--rate",
            "100",
            "--no-wait",
        ])?
        .well()?;
        ensure!(told.starts_with("gsi 24: running: "), "{told}");
        ensure_eq!(line(guest)?[0], "running", "it goes on");
        run(&["gsi", "24", "--storm", "1", "--rate", "1"])?.says(1, "a storm goes on in VM")?;
        storm::until("some have come", || Ok(guest.seen(MSI_VECTOR) >= 5))
    })?;
    kvmate.unload()
}

/// A storm that is waited for, of which the guest has taken some.
fn begun(guest: &Poked<'_>) -> Result<Child> {
    let msi = MSI.to_string();
    let tool = tool::start(
        "inject",
        &[
            &guest.name,
            "gsi",
            &msi,
            "--storm",
            "1000000",
            "--rate",
            "200",
        ],
    )?;
    let before = guest.seen(MSI_VECTOR);
    guest.until(MSI_VECTOR, before + 5)?;
    Ok(tool)
}

/// Signals stop it, and how many there were is told; with none left behind.
fn storm_interrupted() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        for (signal, name) in [
            (Signal::SIGINT, "SIGINT"),
            (Signal::SIGTERM, "SIGTERM"),
            (Signal::SIGHUP, "SIGHUP"),
            (Signal::SIGQUIT, "SIGQUIT"),
        ] {
            let before = guest.seen(MSI_VECTOR);
            let tool = begun(guest)?;
            kill(Pid::from_raw(tool.id().try_into()?), signal)?;
            let done = Done::awaited(tool)?;
            let cells = line(guest)?;
            ensure_eq!(done.status, Some(1), "status: {}", done.err);
            ensure_eq!(cells[0], "stopped", "state");
            let (sent, delivered) = (&cells[3], &cells[4]);
            let (out, err) = (
                format!(
                    "gsi {MSI}: stopped: {sent} of 1000000 sent: {delivered} delivered, 0 failed, "
                ),
                format!("stopped by {name}: {delivered} of 1000000 were delivered"),
            );
            ensure!(
                done.out.starts_with(&out),
                "{out:?} is not in {:?}",
                done.out
            );
            ensure!(done.err.contains(&err), "{err:?} is not in {:?}", done.err);
            guest.running.settled()?;
            let taken = guest.seen(MSI_VECTOR) - before;
            let most: u64 = delivered.parse()?;
            ensure!((5..=most).contains(&taken), "{taken} taken of {most}");
        }
        Ok(())
    })?;
    kvmate.unload()
}

/// Somebody else stops it, forbids it, or begins another.
fn storm_taken_away() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let tool = begun(guest)?;
        ensure_eq!(
            kvmate_tests::poke::write(&guest.file("storm"), b"stop"),
            Ok(()),
            "stop"
        );
        let done = Done::awaited(tool)?;
        ensure!(
            done.status == Some(1) && done.err.contains("somebody has stopped it"),
            "{}",
            done.err
        );
        let tool = begun(guest)?;
        kvmate.write("knobs/inject", "0")?;
        let done = Done::awaited(tool)?;
        let said = "knobs/inject has become 0";
        ensure!(
            done.status == Some(1) && done.err.contains(said),
            "{}",
            done.err
        );
        kvmate.write("knobs/inject", "1")?;
        let tool = begun(guest)?;
        let other = format!("gsi {PIN} count 1 rate 1");
        for text in ["stop", &other] {
            ensure_eq!(
                kvmate_tests::poke::write(&guest.file("storm"), text.as_bytes()),
                Ok(()),
                "{text}"
            );
        }
        let done = Done::awaited(tool)?;
        // It may just have seen that it was stopped.
        let told = ["somebody else has begun another", "somebody has stopped it"];
        ensure!(
            done.status == Some(1) && told.iter().any(|told| done.err.contains(told)),
            "{}",
            done.err
        );
        Ok(())
    })?;
    kvmate.unload()
}

/// The process that is killed: a guest that takes interrupts.
fn vmm() -> ExitCode {
    let busy = || -> Result<()> {
        let mut guest = Guest::new(Chips::Kernel, 1)?;
        guest.route(&[msi(0, MSI_VECTOR)])?;
        guest.run(|_| {
            println!("ready");
            loop {
                thread::park();
            }
        })
    };
    if let Err(error) = busy() {
        eprintln!("# {error:#}");
    }
    ExitCode::FAILURE
}

/// The VM goes under a storm: that is told.
fn killed_meanwhile() -> Result<()> {
    let kvmate = load()?;
    for _ in 0..3 {
        let vmm = Vmm::of(&std::env::current_exe()?, &["--vmm"])?;
        let names = seen::names_of_vms()?;
        let [name] = &names[..] else {
            anyhow::bail!("VMs: {names:?}");
        };
        let msi = MSI.to_string();
        let tool = tool::start(
            "inject",
            &[name, "gsi", &msi, "--storm", "1000000", "--rate", "500"],
        )?;
        let file = seen::vms().join(name).join("storm");
        until("the storm goes on", || {
            Ok(fs::read_to_string(&file)?.contains("\nrunning "))
        })?;
        vmm.kill()?;
        let done = Done::awaited(tool)?;
        let said = [
            "the VM has ended",
            &format!("VM {name} has ended"),
            "is ending",
        ];
        ensure!(
            done.status == Some(1) && said.iter().any(|said| done.err.contains(said)),
            "status {:?}: {}",
            done.status,
            done.err
        );
        ensure_eq!(done.err.lines().count(), 1, "lines: {}", done.err);
        until("the VM is gone", || Ok(seen::names_of_vms()?.is_empty()))?;
        inject(&[name, "gsi", "10"])?.says(1, "no VM is there")?;
    }
    kvmate.unload()
}

/// The VM goes while the command runs, and the command's signals are its own.
fn irqfd_keeps_no_vm() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let vmm = Vmm::of(&std::env::current_exe()?, &["--vmm"])?;
    let names = seen::names_of_vms()?;
    let name = names.first().context("no VM")?;
    let tool = tool::start("irqfd", &[name, "--gsi", "24", "--", "sleep", "1000"])?;
    tool::became(&tool, "sleep")?;
    ensure_eq!(bindings(name)?.len(), 1, "bindings");
    vmm.kill()?;
    until("the VM is gone", || Ok(seen::names_of_vms()?.is_empty()))?;
    kill(Pid::from_raw(tool.id().try_into()?), Signal::SIGTERM)?;
    let done = Done::awaited(tool)?;
    ensure_eq!((done.status, &*done.err), (None, ""), "killed by a signal");
    kvmate.unload()
}
