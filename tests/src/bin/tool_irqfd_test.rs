// SPDX-License-Identifier: GPL-2.0
//! `kvmate irqfd`, as a user runs it, on guests that count their interrupts.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::{irq::Trigger, Vm},
    ktap,
    module::Kvmate,
    poke::{bindings, poked, VECTOR},
    tool::{self, Done},
};
use std::process::ExitCode;

fn main() -> ExitCode {
    ktap::main(&[("refused", refused), ("bound", bound), ("level", level)])
}

fn irqfd(arguments: &[&str]) -> Result<Done> {
    tool::run("irqfd", arguments)
}

/// Refused before the command is run, or because it cannot be run; nothing stays bound.
fn refused() -> Result<()> {
    for wrong in [
        &["x", "--", "true"][..],
        &["x", "--gsi", "10"],
        &["x", "--gsi", "10", "--msi", "0xfee00000:65", "--", "true"],
        &["x", "--msi", "0xfee00000:65", "--resample", "--", "true"],
    ] {
        let done = irqfd(wrong)?;
        done.says(2, "Usage: ")
            .or_else(|_| done.says(2, "--help"))?;
    }
    let any = ["1-1", "--gsi", "10", "--", "true"];
    irqfd(&any)?.says(1, "is not loaded: insmod kvmate.ko")?;
    let kvmate = Kvmate::load("")?;
    irqfd(&any)?.says(1, "no VM is there")?;
    tool::run_as_nobody(&[&["irqfd"][..], &any].concat())?.says(1, "needs root")?;
    poked(Trigger::Edge, |guest| {
        let says = |arguments: &[&str], status: i32, part: &str| {
            let arguments = [&[guest.name.as_str()], arguments].concat();
            irqfd(&arguments)?.says(status, part)?;
            ensure_eq!(bindings(&guest.name)?, [], "bindings after {arguments:?}");
            Ok(())
        };
        says(
            &["--gsi", "4096", "--", "true"],
            1,
            "GSI 4096 is 4096 or more",
        )?;
        says(
            &["--msi", "0xfed00000:65", "--", "true"],
            1,
            "no APIC listens",
        )?;
        says(
            &["--gsi", "10", "--", "/no/such"],
            127,
            "there is no such command",
        )?;
        says(&["--gsi", "10", "--", "/etc/passwd"], 126, "cannot be run")?;
        guest.took(&[])
    })?;
    kvmate.unload()
}

/// Whatever the command writes to its descriptor, each write is an interrupt of the VM that was named; it ends with
/// the command, whose status is told.
fn bound() -> Result<()> {
    const WRITE: &str = "printf '\\001\\000\\000\\000\\000\\000\\000\\000' >&";
    let kvmate = Kvmate::load("")?;
    // Another VM of this process's, with a lower descriptor.
    let other = Vm::new(1 << 16, true)?;
    let _vcpu = other.vcpu(0)?;
    poked(Trigger::Edge, |guest| {
        let run = |interrupt: &[&str], script: &str| {
            let command = ["--", "sh", "-c", script];
            irqfd(&[&[guest.name.as_str()], interrupt, &command].concat())
        };
        // A pin is raised by a worker, which does nothing more when the binding has ended.
        let table = guest.file("bindings").display().to_string();
        let script =
            format!("{WRITE}{{}}; until grep -q '^gsi:10 1 1 ' {table}; do :; done; exit 7");
        for count in 1..=3 {
            let done = run(&["--gsi", "10"], &script)?;
            ensure_eq!(
                (done.status, &*done.err),
                (Some(7), ""),
                "the command's status"
            );
            guest.until(VECTOR, count)?;
            ensure_eq!(bindings(&guest.name)?, [], "bindings after it");
        }
        let script = format!("{WRITE}$KVMATE_EVENTFD && {WRITE}$KVMATE_EVENTFD && cat {table}");
        let told = run(&["--msi", "0xfee00000:0x71"], &script)?.well()?;
        let row = told.lines().nth(1).context("no binding while it runs")?;
        ensure!(row.starts_with("msi:0xfee00000:0x71 2 2 "), "{row}");
        guest.until(0x71, 1)?;
        let taken = guest.seen(0x71);
        ensure!((1..=2).contains(&taken), "{taken} of 2");
        ensure_eq!(guest.seen(VECTOR), 3, "edges");
        Ok(())
    })?;
    kvmate.unload()
}

/// The second eventfd tells of the guest's EOI.
fn level() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    poked(Trigger::Level, |guest| {
        let script = "printf '\\001\\000\\000\\000\\000\\000\\000\\000' >&{}; \
                      head -c 8 <&$KVMATE_RESAMPLE_EVENTFD | od -An -tu8";
        for _ in 0..3 {
            let command = ["--gsi", "10", "--resample", "--", "sh", "-c", script];
            let told = irqfd(&[&[guest.name.as_str()], &command[..]].concat())?.well()?;
            ensure_eq!(told.trim(), "1", "EOIs");
        }
        guest.took(&[(VECTOR, 3)])
    })?;
    kvmate.unload()
}
