// SPDX-License-Identifier: GPL-2.0
//! The tool beside what is rare: NMIs and KVM's own irqfds to inject into, and a module of another version.
//!
//! Such a module's files are mounted over this one's, for the tool alone.

use anyhow::{Context, Result};
use kvmate_tests::{
    ensure_eq, gmem,
    guest::{
        irq::{shared::NMI, Trigger},
        steps::{Guest, Step},
    },
    ktap,
    module::{Kvmate, DEBUGFS},
    poke::{eventfd, poked, MSI, MSI_VECTOR},
    seen,
    tool::{self, mounted},
};
use std::{os::unix::fs::MetadataExt, process::ExitCode};

fn main() -> ExitCode {
    ktap::main(&[
        ("nmis", nmis),
        ("irqfds", irqfds),
        ("other_columns", other_columns),
        ("other_files", other_files),
    ])
}

fn load() -> Result<Kvmate> {
    let kvmate = Kvmate::load("")?;
    kvmate.write("knobs/inject", "1")?;
    Ok(kvmate)
}

/// As text and as JSON; each comes, and nothing else does.
fn nmis() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        for count in 1..=5 {
            let told = tool::run("inject", &[&guest.name, "nmi", "0"])?.well()?;
            ensure_eq!(told, "nmi 0: delivered\n", "what it says");
            guest.until(NMI, count)?;
        }
        let told = tool::json("inject", &[&guest.name, "nmi", "0"])?;
        ensure_eq!(told["request"], "nmi 0", "request");
        ensure_eq!(told["outcome"], "delivered", "outcome");
        guest.until(NMI, 6)?;
        guest.took(&[(NMI, 6)])
    })?;
    kvmate.unload()
}

/// Those that the VMM has given KVM, and only as long as it has.
fn irqfds() -> Result<()> {
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let vm = &guest.running.vm.fd;
        let given = eventfd()?;
        vm.register_irqfd(&given, MSI)?;
        for count in 1..=5 {
            let told = tool::run("inject", &[&guest.name, "irqfd", "24"])?.well()?;
            ensure_eq!(told, "irqfd 24: signalled\n", "what it says");
            guest.until(MSI_VECTOR, count)?;
        }
        let told = tool::json("inject", &[&guest.name, "irqfd", "24"])?;
        ensure_eq!(told["outcome"], "signalled", "outcome");
        guest.until(MSI_VECTOR, 6)?;
        vm.unregister_irqfd(&given, MSI)?;
        tool::run("inject", &[&guest.name, "irqfd", "24"])?.says(1, "no irqfd of GSI 24")?;
        guest.took(&[(MSI_VECTOR, 6)])
    })?;
    kvmate.unload()
}

const OTHER: &str = "of another version";

/// Tables that lack a column that is told, or a part: which one is said, and nothing is made up.
fn other_columns() -> Result<()> {
    let kvmate = load()?;
    let mut guest = Guest::new(&[Step::Out(5)])?;
    guest.run()?;
    let name = guest.name.as_str();
    let folder = seen::vms().join(name);
    let of_vm = |file: &str| folder.join(file).display().to_string();
    let exits = "reason count total_ns\nio 1 1";
    let slots = "as slot gpa\n0 0 0x0";
    let part = "[exits]\nreason count\nio 1";
    for (file, text, arguments, what) in [
        ("exits", exits, &["exits", name][..], "there is no column "),
        ("exits", exits, &["list"], "there is no column "),
        ("memslots", slots, &["list"], "there is no column "),
        ("memslots", slots, &["map", name], "there is no column "),
        ("snapshot", part, &["snapshot", name], "there is no part ["),
    ] {
        // All is well but for the mount.
        tool::run(arguments[0], &arguments[1..])?
            .well()
            .with_context(|| file.to_owned())?;
        let done = tool::behind(&mounted(text, &of_vm(file)), arguments[0], &arguments[1..])?;
        let says = done.says(1, what).and_then(|()| done.says(1, OTHER));
        says.with_context(|| format!("{arguments:?} without {what}in {file}"))?;
    }
    drop(guest);
    let file = gmem::create(gmem::HUGE, 0)?;
    let inode = file.metadata()?.ino().to_string();
    let info = format!("{DEBUGFS}/gmem/{inode}/info");
    tool::run("gmem", &["map", &inode])?.well()?;
    let done = tool::behind(&mounted("bytes 2097152", &info), "gmem", &["map", &inode])?;
    done.says(1, "info has no size")?;
    done.says(1, OTHER)?;
    drop(file);
    kvmate.unload()
}

/// Files that are not there, of a VM that is: it is not said to have ended.
fn other_files() -> Result<()> {
    let kvmate = load()?;
    let guest = Guest::new(&[Step::Out(5)])?;
    let name = guest.name.as_str();
    let folder = seen::vms().join(name);
    let empty = format!("mount -t tmpfs none {}", folder.display());
    for (file, arguments) in [
        ("exits", &["exits", name][..]),
        ("exits", &["list"]),
        ("memslots", &["map", name]),
        ("snapshot", &["snapshot", name]),
        ("inject", &["inject", name, "gsi", "10"]),
    ] {
        let done = tool::behind(&empty, arguments[0], &arguments[1..])?;
        let what = format!("there is no {}", folder.join(file).display());
        let says = done.says(1, &what).and_then(|()| done.says(1, OTHER));
        says.with_context(|| format!("{arguments:?}"))?;
    }
    drop(guest);
    kvmate.unload()
}
