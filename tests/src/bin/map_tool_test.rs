// SPDX-License-Identifier: GPL-2.0
//! `kvmate map`, as a user runs it, on a VM that is known.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::pages::{Region, LARGE, PAGE},
    ktap,
    map::{
        self,
        guest::{every, writes, Guest, AT},
    },
    module::{Kvmate, Stop},
    storm::{rounds, until, Vmm},
    tool::{self, Done},
};
use serde_json::Value;
use std::{
    io::Read,
    process::{Command, ExitCode, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--vmm") => vmm(),
        _ => ktap::main(&[
            ("grid", grid),
            ("why", why),
            ("json", json),
            ("page", page),
            ("errors", errors),
            ("killed_while_read", killed_while_read),
        ]),
    }
}

fn tool(arguments: &[&str]) -> Result<Command> {
    tool::of("map", arguments)
}

fn run(arguments: &[&str]) -> Result<Done> {
    tool::run("map", arguments)
}

/// A guest with a slot of small pages, of which some are there, and one of large ones.
fn known() -> Result<(Guest, [Region; 2])> {
    let mut guest = Guest::new()?;
    let (small, large) = (
        Region::memfd("small", 4 * LARGE)?,
        Region::hugetlb(2 * LARGE)?,
    );
    small.put(&guest.vm, 1, AT, 0)?;
    large.put(&guest.vm, 2, AT + 8 * LARGE, 0)?;
    // And MMIO.
    let list = every(AT + LARGE, 3, PAGE).chain([AT + 8 * LARGE, AT + 9 * LARGE, AT + 16 * LARGE]);
    guest.touch(&writes(list))?;
    Ok((guest, [small, large]))
}

fn grid() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (guest, regions) = known()?;
    let pid = std::process::id().to_string();
    let by_name = run(&[&guest.name])?.well()?;
    ensure_eq!(run(&[&pid])?.well()?, by_name, "by the process's number");
    ensure_eq!(run(&["ap_tool"])?.well()?, by_name, "by a part of its name");
    let lines: Vec<_> = by_name.lines().collect();
    ensure!(
        lines[0].starts_with(&format!("VM {} of map_tool_test", guest.name)),
        "{}",
        lines[0]
    );
    ensure!(
        lines[1].starts_with("root 0: tdp, ") && lines[1].contains("; 2 of 2M; "),
        "{}",
        lines[1]
    );
    let line = lines
        .iter()
        .find(|line| line.trim_start().starts_with("0x40000000 |"));
    let line = line.with_context(|| format!("no line of the slots in {by_name}"))?;
    let cells: Vec<_> = line.split('|').collect();
    ensure_eq!(cells[1].trim_end(), ".k..    MM      i", "cells");
    ensure!(
        cells[2].contains(" 1: 8M at 0x40000000 tmpfs /memfd:small (deleted);"),
        "{line}"
    );
    ensure!(
        cells[2].contains(" 2: 4M at 0x41000000 hugetlbfs "),
        "{line}"
    );
    ensure!(!by_name.contains('\x1b'), "colours, not on a terminal");
    let mut coloured = tool(&[&guest.name])?;
    coloured.env("CLICOLOR_FORCE", "1");
    let coloured = Done::of(coloured)?.well()?;
    ensure!(
        coloured.contains("\x1b[33mk\x1b[0m"),
        "no colour in {coloured}"
    );
    drop((guest, regions));
    kvmate.unload()
}

fn why() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (guest, regions) = known()?;
    let text = run(&[&guest.name, "--why"])?.well()?;
    ensure!(text.contains("\nhost-4k: 3 pages, 12K: "), "{text}");
    let range = format!("{:>#18x} {:>8} {:>4} host-4k", AT + LARGE, "12K", 1);
    ensure!(
        text.lines().any(|line| line == range),
        "{range:?} is not in {text}"
    );
    drop((guest, regions));
    kvmate.unload()
}

fn json() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (guest, regions) = known()?;
    let told = tool::json("map", &[&guest.name])?;
    ensure_eq!(told["version"], 1, "version");
    ensure_eq!(told["vm"], guest.name.as_str(), "vm");
    ensure_eq!(told["pid"], std::process::id(), "pid");
    for (list, table, columns, fields) in [
        (
            "slots",
            "memslots",
            map::MEMSLOTS,
            ["slot", "gpa", "size", "hva"],
        ),
        (
            "ranges",
            "stage2_map",
            map::RANGES,
            ["root", "level", "gpa", "size"],
        ),
    ] {
        let rows = map::table(&guest.name, table, columns)?;
        let objects = told[list].as_array().context(list)?;
        ensure_eq!(objects.len(), rows.len(), "{list}");
        for (object, row) in objects.iter().zip(&rows) {
            for field in fields {
                ensure_eq!(object[field], row.number(field)?, "{field} of {row:?}");
            }
        }
    }
    let kvm = map::kvm_pages(&guest.name)?;
    let levels = told["roots"][0]["levels"].as_array().context("levels")?;
    for (level, pages) in kvm.into_iter().enumerate() {
        let found = levels.iter().find(|l| l["level"] == level + 1);
        ensure_eq!(
            found.context("no level")?["leaves"],
            pages,
            "leaves of level {}",
            level + 1
        );
    }
    drop((guest, regions));
    kvmate.unload()
}

fn page() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (guest, regions) = known()?;
    let told = map::look_up(&guest.name, AT + LARGE)?;
    for address in ["0x40200000", "1026M", "1075838976"] {
        let text = run(&[&guest.name, "--page", address])?.well()?;
        for name in ["gpa", "pfn", "hva", "why", "stage2_flags"] {
            let line = format!("{name:<17} {}", told.get(name));
            ensure!(text.lines().any(|l| l == line), "{line:?} is not in {text}");
        }
    }
    let json = run(&[&guest.name, "--json", "--page", "1026M"])?.well()?;
    let json = tool::valid("map-page", &json)?;
    ensure_eq!(json["page"]["pfn"], told.number("pfn")?, "pfn");
    ensure_eq!(json["page"]["why"], "host-4k", "why");
    let text = run(&[&guest.name, "--page", "3G"])?.well()?;
    ensure!(text.contains("no slot is there"), "{text}");
    drop((guest, regions));
    kvmate.unload()
}

fn errors() -> Result<()> {
    for wrong in [
        &[][..],
        &["x", "y"],
        &["x", "--page"],
        &["x", "--page", "1.5G"],
        &["x", "--no"],
    ] {
        run(wrong)?
            .says(2, "Usage: kvmate map")
            .or_else(|_| run(wrong)?.says(2, "--help"))?;
    }
    run(&["1-1"])?.says(1, "is not loaded: insmod kvmate.ko")?;
    let kvmate = Kvmate::load("")?;
    run(&["1-1"])?.says(1, "no VM is there")?;
    let (guest, regions) = known()?;
    let second = Guest::new()?;
    run(&["1-1"])?.says(1, &format!("there are: {} (map_tool_test, ", guest.name))?;
    run(&["map_tool_test"])?.says(1, "is 2 VMs")?;
    tool::run_as_nobody(&["map", &guest.name])?.says(1, "needs root")?;
    // Who reads only the beginning is no error.
    let mut child = tool(&[&guest.name, "--json"])?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(child.stdout.take());
    ensure_eq!(child.wait()?.code(), Some(0), "a closed pipe");
    let mut said = String::new();
    child
        .stderr
        .take()
        .context("stderr")?
        .read_to_string(&mut said)?;
    ensure_eq!(said, "", "of a closed pipe");
    drop((guest, second, regions));
    kvmate.unload()
}

/// The process that is killed: its VM's table takes many reads.
fn vmm() -> ExitCode {
    let busy = || -> Result<()> {
        let mut guest = Guest::new()?;
        let region = Region::memfd("many", 8 * LARGE)?;
        region.put(&guest.vm, 1, AT, 0)?;
        guest.touch(&writes(every(AT, 2000, 2 * PAGE)))?;
        println!("ready");
        loop {
            thread::park();
        }
    };
    if let Err(error) = busy() {
        eprintln!("# {error:#}");
    }
    ExitCode::FAILURE
}

/// The VM goes while the tool is at it: it says so, or was in time.
fn killed_while_read() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for round in 0..rounds(60).min(4) {
        let vmm = Vmm::of(&std::env::current_exe()?, &["--vmm"])?;
        let (stop, killed) = (Stop::default(), AtomicBool::new(false));
        let ran = thread::scope(|scope| -> Result<u32> {
            let tools = scope.spawn(|| -> Result<u32> {
                let mut ran = 0;
                while !stop.asked() {
                    let done = run(&["map_tool", "--json"])?;
                    if done.status == Some(0) {
                        // What a VMM had is taken away before its VM is.
                        let told: Value = serde_json::from_str(&done.out)?;
                        let ranges = told["ranges"].as_array().map_or(0, Vec::len);
                        let whole = ranges >= 2000 || killed.load(Ordering::Acquire);
                        ensure!(whole, "{ranges} ranges");
                        ran += 1;
                        continue;
                    }
                    let gone = ["ended", "is ending", "no VM is"];
                    ensure!(
                        done.status == Some(1) && gone.iter().any(|said| done.err.contains(said)),
                        "status {:?}: {}",
                        done.status,
                        done.err
                    );
                    ensure_eq!(done.out, "", "what was told of a VM that goes");
                }
                Ok(ran)
            });
            let _stop = stop.on_drop();
            thread::sleep(Duration::from_millis(300 + 7 * u64::from(round)));
            killed.store(true, Ordering::Release);
            vmm.kill()?;
            until("the VM is gone", || {
                Ok(kvmate_tests::seen::names_of_vms()?.is_empty())
            })?;
            stop.ask();
            tools.join().expect("the tools' thread")
        })?;
        println!("# the tool ran {ran} times");
    }
    kvmate.unload()
}
