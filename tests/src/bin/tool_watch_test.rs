// SPDX-License-Identifier: GPL-2.0
//! `kvmate … --watch`, as a user runs it: what came between two readings, Ctrl-C, and VMs that end.

use anyhow::{bail, ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::steps::{at_rest, Guest, Step},
    hung::{self, Vmm},
    module::{Kvmate, Stop, EVERYTHING},
    oracle::name_of,
    seen,
    tool::{self, Watch},
};
use serde_json::Value;
use std::{process::ExitCode, thread};

fn main() -> ExitCode {
    hung::main(&[
        ("what_came", what_came),
        ("all_vms", all_vms),
        ("rates", rates),
        ("for_people", for_people),
        ("interrupted", interrupted),
        ("ended", ended),
        ("unloaded", unloaded),
        ("closed_pipe", closed_pipe),
        ("killed_while_read", killed_while_read),
    ])
}

/// A field of a VM's row in a document, 0 if the row is not there.
fn number(document: &Value, vm: &str, key: (&str, &Value), field: &str) -> Result<u64> {
    let vms = document["vms"].as_array().context("vms")?;
    let vm = vms.iter().find(|told| told["vm"] == vm).context("the VM")?;
    let rows = vm["rows"].as_array().context("rows")?;
    let row = rows.iter().find(|row| row[key.0] == *key.1);
    row.map_or(Ok(0), |row| row[field].as_u64().context("a number"))
}

/// What is told one after the other adds up to what the guest did, to the exit.
fn what_came() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    let steps = [Step::Cpuid(100), Step::Read(10), Step::WriteNone(5)];
    let mut guest = Guest::new(&steps)?;
    guest.run()?;
    let cpuid = Value::from(seen::names().cpuid);
    let watched = [
        ("exits", ("reason", &cpuid), "count", 100),
        ("times", ("reason", &cpuid), "count", 100),
        ("msr", ("msr", &0x8b.into()), "reads", 10),
        ("msr", ("msr", &0x0bad_0000.into()), "faults", 5),
    ];
    for (subcommand, key, field, each) in watched {
        let mut watch = Watch::new(subcommand, &[&guest.name, "--json"])?;
        let first = watch.document()?;
        ensure_eq!(
            first["vms"][0]["rows"],
            Value::Array(vec![]),
            "{subcommand} of a guest that stands still"
        );
        for round in 1..=2 {
            for _ in 0..round {
                guest.run()?;
            }
            let (mut sum, expected) = (0, each * round);
            while sum < expected {
                let document = watch.document()?;
                for row in document["vms"][0]["rows"].as_array().context("rows")? {
                    // Percentiles are not known of an interval.
                    ensure!(row["p99_ns"].is_null(), "{row}");
                }
                sum += number(&document, &guest.name, key, field)?;
            }
            ensure_eq!(sum, expected, "{field} of {subcommand}, round {round}");
            let still = watch.document()?;
            ensure_eq!(
                number(&still, &guest.name, key, field)?,
                0,
                "{field} afterwards"
            );
        }
        // All of it began anew: what there is now came since.
        kvmate.write(&format!("vms/{}/reset", guest.name), "1")?;
        watch.document()?;
        watch.document()?;
        guest.run()?;
        let mut sum = 0;
        while sum == 0 {
            sum = number(&watch.document()?, &guest.name, key, field)?;
        }
        ensure!(sum <= each, "{sum} {field} of {subcommand} after a reset");
    }
    drop(guest);
    kvmate.unload()
}

/// A VM that comes is told of whole, one that ends is left out, and the others go on.
fn all_vms() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let cpuid = Value::from(seen::names().cpuid);
    let first = Guest::new(&[])?;
    let mut watch = Watch::new("exits", &["--json"])?;
    let names = |document: &Value| -> Result<Vec<String>> {
        let vms = document["vms"].as_array().context("vms")?;
        let names = vms.iter().filter_map(|vm| vm["vm"].as_str());
        Ok(names.map(str::to_owned).collect())
    };
    ensure_eq!(
        names(&watch.document()?)?,
        [first.name.as_str()],
        "at the begin"
    );
    let (second, vcpus) = at_rest(1, &[Step::Cpuid(77)])?;
    let name = name_of(&second.fd);
    let mut sum = 0;
    while sum < 77 {
        let document = watch.document()?;
        if names(&document)?.contains(&name) {
            sum += number(&document, &name, ("reason", &cpuid), "count")?;
        }
    }
    ensure_eq!(sum, 77, "CPUIDs of the second VM");
    drop((vcpus, second));
    while names(&watch.document()?)?.contains(&name) {}
    ensure_eq!(
        names(&watch.document()?)?,
        [first.name.as_str()],
        "at the end"
    );
    drop((watch, first));
    kvmate.unload()
}

/// The rates of `list` add up to the exits that there were.
fn rates() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new(&[Step::Cpuid(1000)])?;
    let mut watch = Watch::new("list", &["--json"])?;
    let before = watch.document()?["vms"][0]["exits"].clone();
    ensure_eq!(before, 0, "exits before");
    guest.run()?;
    let exits = seen::exits_of(&guest.name)?.sum();
    let (mut sum, mut last) = (0.0, 0);
    while last < exits {
        let document = watch.document()?;
        let vm = &document["vms"][0];
        let seconds = document["interval_ns"].as_f64().context("interval")? / 1e9;
        sum += vm["exits_per_second"].as_f64().context("a rate")? * seconds;
        last = vm["exits"].as_u64().context("exits")?;
    }
    ensure_eq!(last, exits, "exits");
    ensure!(
        (sum - exits as f64).abs() < 0.01,
        "rates add up to {sum}, not {exits}"
    );
    drop((watch, guest));
    kvmate.unload()
}

fn for_people() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new(&[Step::Cpuid(1500)])?;
    let mut watch = Watch::new("exits", &[&guest.name])?;
    let title = format!(
        "VM {} of tool_watch_test ({}), the last ",
        guest.name,
        std::process::id()
    );
    ensure!(watch.line()?.starts_with(&title), "the first line");
    ensure_eq!(
        watch.line()?,
        "\n",
        "what came to a guest that stands still"
    );
    guest.run()?;
    let cpuid = seen::names().cpuid;
    let mut sum = 0;
    while sum < 1500 {
        let line = watch.line()?;
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["reason", ref columns @ ..] => {
                ensure_eq!(columns, ["count", "total", "avg"], "columns");
            }
            [reason, count, ..] if reason == cpuid => {
                sum += count.replace(',', "").parse::<u64>()?;
            }
            _ => {}
        }
    }
    ensure_eq!(sum, 1500, "CPUIDs");
    drop((watch, guest));
    kvmate.unload()
}

/// Ctrl-C is how it is ended: no error, and nothing cut off.
fn interrupted() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new(&[])?;
    for subcommand in ["exits", "vcpus", "list"] {
        let mut watch = Watch::new(subcommand, &["--json"])?;
        watch.document()?;
        watch.interrupt()?;
        let rest = watch.end()?.well()?;
        for line in rest.lines() {
            tool::valid(subcommand, line)?;
        }
    }
    drop(guest);
    kvmate.unload()
}

/// The VM ends that is watched: it says so, and that is an error.
fn ended() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for subcommand in ["exits", "vcpus"] {
        let guest = Guest::new(&[])?;
        let mut watch = Watch::new(subcommand, &[&guest.name, "--json"])?;
        watch.document()?;
        let name = guest.name.clone();
        drop(guest);
        let done = watch.end()?;
        ensure_eq!(done.status, Some(1), "status; it said {}", done.err);
        let said = [
            format!("kvmate: error: VM {name} has ended: "),
            format!("kvmate: error: VM {name} is ending"),
        ];
        ensure!(
            said.iter().any(|said| done.err.starts_with(said)) && done.err.lines().count() == 1,
            "{}",
            done.err
        );
    }
    kvmate.unload()
}

/// It does not hold the module, and says when that goes.
fn unloaded() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new(&[])?;
    let mut watches = [
        Watch::new("exits", &["--json"])?,
        Watch::new("list", &["--json"])?,
    ];
    watches
        .iter_mut()
        .try_for_each(|watch| watch.document().map(drop))?;
    // While one of its files is read it is in use.
    kvmate_tests::storm::until("the module goes", || {
        Ok(kvmate_tests::module::unload("kvmate").is_ok())
    })?;
    for watch in watches {
        let done = watch.end()?;
        ensure_eq!(done.status, Some(1), "status; it said {}", done.err);
        ensure!(
            done.err.contains("is not loaded: insmod kvmate.ko") && done.err.lines().count() == 1,
            "{}",
            done.err
        );
    }
    drop(guest);
    std::mem::forget(kvmate);
    Ok(())
}

/// Who reads no further is no error, and ends it.
fn closed_pipe() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new(&[])?;
    let mut watch = Watch::new("exits", &[&guest.name, "--json"])?;
    watch.document()?;
    watch.read_no_further()?;
    watch.end()?.well()?;
    drop(guest);
    kvmate.unload()
}

/// VMs that are killed at any moment while tools read them.
fn killed_while_read() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    const TOOLS: [&str; 6] = ["exits", "times", "msr", "faults", "irq", "vcpus"];
    for _ in 0..4 {
        let vmm = Vmm::new("spin")?;
        let (name, stop) = (vmm.name.clone(), Stop::default());
        thread::scope(|scope| -> Result<()> {
            let one = scope.spawn(|| -> Result<u32> {
                // Until it is gone.
                for ran in 0.. {
                    let subcommand = TOOLS[ran as usize % TOOLS.len()];
                    let done = tool::run(subcommand, &[&name, "--json"])?;
                    if done.status == Some(0) {
                        tool::valid(subcommand, &done.out)?;
                        continue;
                    }
                    let gone = ["has ended", "is ending", "no VM is"];
                    ensure!(
                        done.status == Some(1) && gone.iter().any(|said| done.err.contains(said)),
                        "status {:?}: {}",
                        done.status,
                        done.err
                    );
                    ensure_eq!(done.out, "", "what was told of a VM that goes");
                    return Ok(ran);
                }
                bail!("it never went")
            });
            let all = scope.spawn(|| -> Result<()> {
                let mut subcommands = TOOLS.iter().chain(&["list"]).cycle();
                while !stop.asked() {
                    let subcommand = subcommands.next().context("a subcommand")?;
                    let done = tool::run(subcommand, &["--json"])?;
                    ensure_eq!(done.status, Some(0), "{subcommand}: {}", done.err);
                    tool::valid(subcommand, &done.out)?;
                }
                Ok(())
            });
            let _stop = stop.on_drop();
            thread::sleep(std::time::Duration::from_millis(200));
            drop(vmm);
            let ran = one.join().expect("a thread")?;
            println!("# the tool ran {ran} times");
            stop.ask();
            all.join().expect("a thread")
        })?;
    }
    kvmate.unload()
}
