// SPDX-License-Identifier: GPL-2.0
//! `kvmate list`, `exits`, `times`, `msr`, `faults`, `irq` and `vcpus`, as a user runs them.
//!
//! Of guests that stand still they have to tell, to the number, what the module's own tables tell, which the
//! test reads itself; and what such a guest is known to have done.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::{
        long,
        steps::{self, at_rest, Guest, Step},
        Vm,
    },
    ktap,
    module::{Kvmate, EVERYTHING},
    oracle::name_of,
    seen,
    tool::{self, json, run, Done},
};
use serde_json::Value;
use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
};

fn main() -> ExitCode {
    ktap::main(&[
        ("list", list),
        ("tables", tables),
        ("interrupts", interrupts),
        ("vcpus", vcpus),
        ("all_vms", all_vms),
        ("for_people", for_people),
        ("nothing_recorded", nothing_recorded),
        ("errors", errors),
        ("schemas", schemas),
    ])
}

/// Subcommands, and the files of a VM that they read.
const TABLES: [(&str, &str); 5] = [
    ("exits", "exits"),
    ("times", "times"),
    ("msr", "msrs"),
    ("faults", "faults"),
    ("irq", "irqs"),
];

/// What a guest does of which all tables but `irqs` tell.
const STEPS: [Step; 5] = [
    Step::Cpuid(1200),
    Step::Read(7),
    Step::Write(2),
    Step::WriteNone(3),
    Step::Touch(1),
];

/// The VMs that a document tells of.
fn vms(document: &Value) -> Result<&[Value]> {
    ensure_eq!(document["version"], 1, "version");
    Ok(document["vms"].as_array().context("vms")?)
}

/// The only one.
fn only(document: &Value) -> Result<&Value> {
    let vms = vms(document)?;
    ensure_eq!(vms.len(), 1, "VMs in {document}");
    Ok(&vms[0])
}

/// Whose rows these are, and that they are those of the module's table at that path.
fn is_table(kvmate: &Kvmate, told: &Value, path: &str, vcpu: Option<u32>) -> Result<usize> {
    let (vm, file) = (path.split('/').next(), path.rsplit('/').next());
    ensure_eq!(told["vm"].as_str(), vm, "vm");
    ensure_eq!(told["pid"], std::process::id(), "pid");
    ensure_eq!(told["process"], "tool_tables_tes", "process");
    ensure_eq!(told["vcpu"].as_u64(), vcpu.map(u64::from), "vcpu");
    let text = kvmate.read(&format!("vms/{path}"))?;
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let columns: Vec<_> = lines.next().context("columns")?.split(' ').collect();
    let rows = told["rows"].as_array().context("rows")?;
    let lines: Vec<_> = lines.collect();
    ensure_eq!(rows.len(), lines.len(), "rows of {path}");
    for (row, line) in rows.iter().zip(lines) {
        let cells: Vec<_> = line.split(' ').collect();
        ensure_eq!(cells.len(), columns.len(), "cells of {line}");
        for (column, cell) in columns.iter().zip(cells) {
            ensure!(
                is_cell(&row[*column], cell),
                "{column} of {file:?}: told {}, the table has {line}",
                row[*column]
            );
        }
    }
    Ok(rows.len())
}

/// Whether a field is what stands in a cell.
fn is_cell(field: &Value, cell: &str) -> bool {
    let digits = cell.strip_prefix("0x");
    match field {
        Value::Null => cell == "-" || cell == "other",
        Value::Number(number) => match digits {
            Some(digits) => number.as_u64() == u64::from_str_radix(digits, 16).ok(),
            None => number.to_string() == cell,
        },
        Value::String(text) => text == cell,
        _ => false,
    }
}

/// A row by what stands in one of its fields.
fn row<'a>(told: &'a Value, field: &str, value: &str) -> Result<&'a Value> {
    let rows = told["rows"].as_array().context("rows")?;
    let found = rows.iter().find(|row| row[field] == value);
    found.with_context(|| format!("no {value} in {told}"))
}

fn list() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    ensure_eq!(vms(&json("list", &["--interval", "0"])?)?.len(), 0, "VMs");
    let (first, _vcpus) = at_rest(2, &STEPS)?;
    let second = Guest::new(&[])?;
    let document = json("list", &["--interval", "0"])?;
    ensure_eq!(document["interval_ns"], Value::Null, "the interval");
    let told = vms(&document)?;
    ensure_eq!(told.len(), 2, "VMs");
    let memory = steps::MEMORY as u64;
    for (name, vcpus) in [(name_of(&first.fd), 2), (second.name.clone(), 1)] {
        let vm = told.iter().find(|vm| vm["vm"] == name.as_str());
        let vm = vm.with_context(|| format!("{name} is not in {document}"))?;
        ensure_eq!(vm["pid"], std::process::id(), "pid");
        ensure_eq!(vm["process"], "tool_tables_tes", "process");
        ensure_eq!(vm["vcpus"], vcpus, "vCPUs of {name}");
        ensure_eq!(vm["memory"], memory, "memory of {name}");
        let exits = seen::exits_of(&name)?.sum();
        ensure_eq!(vm["exits"], exits, "exits of {name}");
        ensure_eq!(vm["exits_per_second"], Value::Null, "without an interval");
    }
    // In an interval in which nothing happens.
    let document = json("list", &["--interval", "0.1"])?;
    let long = document["interval_ns"].as_u64().context("interval_ns")?;
    ensure!(long >= 100_000_000, "an interval of {long} ns");
    for vm in vms(&document)? {
        ensure_eq!(vm["exits_per_second"], 0.0, "of a VM that stands still");
    }
    let text = run("list", &["--interval", "0"])?.well()?;
    let words = |at: usize| -> Vec<_> {
        let line = text.lines().nth(at).unwrap_or_default();
        line.split_whitespace().collect()
    };
    let columns = ["vm", "pid", "process", "vcpus", "memory", "exits"];
    ensure_eq!(words(0), columns, "columns");
    let line = (1..3).map(words).find(|words| words[0] == second.name);
    let pid = std::process::id().to_string();
    let expected = [&second.name, &pid, "tool_tables_tes", "1", "64K", "0"];
    ensure_eq!(line.as_deref(), Some(&expected[..]), "a line of {text}");
    drop((first, second));
    kvmate.unload()
}

fn tables() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    let (vm, vcpus) = at_rest(2, &STEPS)?;
    let name = name_of(&vm.fd);
    for (subcommand, file) in TABLES {
        let mut rows = 0;
        for vcpu in [None, Some(0), Some(1)] {
            let number = vcpu.map(|vcpu: u32| vcpu.to_string());
            let mut arguments = vec![name.as_str()];
            arguments.extend(number.iter().flat_map(|number| ["--vcpu", number]));
            let document = if file == "irqs" {
                // There are none, and nothing that would have to be switched on.
                let none = run(subcommand, &[&arguments[..], &["--json"]].concat())?;
                tool::valid(subcommand, &none.well()?)?
            } else {
                json(subcommand, &arguments)?
            };
            ensure_eq!(document["interval_ns"], Value::Null, "the interval");
            let path = match vcpu {
                Some(vcpu) => format!("{name}/vcpu{vcpu}/{file}"),
                None => format!("{name}/{file}"),
            };
            rows += is_table(&kvmate, only(&document)?, &path, vcpu)
                .with_context(|| subcommand.to_owned())?;
        }
        ensure!((rows > 0) != (file == "irqs"), "{rows} rows of {file}");
    }
    // What it is known to have done.
    let cpuid = seen::names().cpuid;
    for (arguments, times) in [(&[name.as_str()][..], 2), (&[&name, "--vcpu", "1"], 1)] {
        let document = json("exits", arguments)?;
        let row = row(only(&document)?, "reason", cpuid)?;
        ensure_eq!(row["count"], 1200 * times, "CPUIDs by {arguments:?}");
        let document = json("times", arguments)?;
        let row = self::row(only(&document)?, "reason", cpuid)?;
        ensure_eq!(row["count"], 1200 * times, "CPUIDs that were split");
        let document = json("msr", arguments)?;
        let msrs = only(&document)?["rows"].as_array().context("rows")?;
        let of = |msr: u64| msrs.iter().find(|row| row["msr"] == msr).context("an MSR");
        let (read, none) = (of(0x8b)?, of(0x0bad_0000)?);
        ensure_eq!(read["reads"], 7 * times, "reads of 0x8b");
        ensure_eq!(read["name"], "MSR_IA32_UCODE_REV", "the name of 0x8b");
        ensure_eq!(none["writes"], 3 * times, "writes of 0xbad0000");
        ensure_eq!(none["faults"], 3 * times, "faults of 0xbad0000");
    }
    drop((vcpus, vm));
    kvmate.unload()
}

fn interrupts() -> Result<()> {
    const VECTOR: u8 = 0x40;
    let kvmate = Kvmate::load("irqs=1")?;
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    let name = name_of(&vm.fd);
    long::start(&vcpu, 0, VECTOR, 0)?;
    long::run(&mut vcpu)?;
    for number in 1..=5 {
        let msi = kvm_bindings::kvm_msi {
            address_lo: 0xfee0_0000,
            data: VECTOR.into(),
            ..Default::default()
        };
        vm.fd.signal_msi(msi)?;
        long::start(&vcpu, 0, VECTOR, number)?;
        long::run(&mut vcpu)?;
    }
    for (arguments, path, id) in [
        (&[name.as_str()][..], format!("{name}/irqs"), None),
        (
            &[&name, "--vcpu", "0"],
            format!("{name}/vcpu0/irqs"),
            Some(0),
        ),
    ] {
        let document = json("irq", arguments)?;
        let told = only(&document)?;
        is_table(&kvmate, told, &path, id)?;
        let rows = told["rows"].as_array().context("rows")?;
        let vector = rows.iter().find(|row| row["vector"] == VECTOR);
        let vector = vector.with_context(|| format!("no {VECTOR:#x} in {told}"))?;
        ensure_eq!(vector["accepted"], 5, "accepted by {arguments:?}");
    }
    drop((vcpu, vm));
    kvmate.unload()
}

fn vcpus() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, vcpus) = at_rest(2, &STEPS)?;
    let second = Guest::new(&[])?;
    let name = name_of(&vm.fd);
    let document = json("vcpus", &[&name])?;
    let rows = only(&document)?["rows"].as_array().context("rows")?.clone();
    let table = kvmate_tests::table::vcpus(&kvmate.read(&format!("vms/{name}/vcpus"))?)?;
    ensure_eq!(rows.len(), table.len(), "rows");
    ensure_eq!(rows.len(), 2, "vCPUs");
    for (row, line) in rows.iter().zip(&table) {
        ensure_eq!(row["vcpu"], line.vcpu, "vcpu");
        let task = format!("{}:{}", row["tid"], row["task"].as_str().context("task")?);
        ensure_eq!(task, line.task, "task");
        ensure_eq!(row["state"], "user", "state");
        ensure_eq!(row["last_exit"], seen::names().out, "last_exit");
        ensure!(is_cell(&row["rip"], &line.rip), "rip of {row}: {line:?}");
        let ago = row["ago_ns"].as_u64().context("ago_ns")?;
        ensure!(ago > 0 && ago <= line.ago()?, "{row}, then {line:?}");
        ensure_eq!(row["vm_state"], Value::Array(vec![]), "vm_state");
        let requests = row["requests"].as_array().context("requests")?.iter();
        let requests: Vec<_> = requests.filter_map(Value::as_str).collect();
        let expected = line.requests.split(',').filter(|name| *name != "-");
        ensure_eq!(requests, expected.collect::<Vec<_>>(), "requests");
    }
    // One that has never run: nothing is known.
    let document = json("vcpus", &[&second.name])?;
    let row = &only(&document)?["rows"][0];
    for field in ["tid", "task", "last_exit", "ago_ns", "rip"] {
        ensure_eq!(row[field], Value::Null, "{field}");
    }
    ensure_eq!(vms(&json("vcpus", &[])?)?.len(), 2, "of all VMs");
    drop((vcpus, vm, second));
    kvmate.unload()
}

fn all_vms() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    let guests = [at_rest(1, &STEPS)?, at_rest(2, &[Step::Cpuid(3)])?];
    for (subcommand, file) in TABLES {
        let document = tool::valid(subcommand, &run(subcommand, &["--json"])?.well()?)?;
        let told = vms(&document)?;
        ensure_eq!(told.len(), 2, "VMs of {subcommand}");
        for (vm, _) in &guests {
            let name = name_of(&vm.fd);
            let table = told.iter().find(|told| told["vm"] == name.as_str());
            let table = table.with_context(|| format!("no {name} in {document}"))?;
            is_table(&kvmate, table, &format!("{name}/{file}"), None)?;
        }
    }
    drop(guests);
    kvmate.unload()
}

fn for_people() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, vcpus) = at_rest(1, &STEPS)?;
    let (name, cpuid) = (name_of(&vm.fd), seen::names().cpuid);
    let title = format!("VM {name} of tool_tables_tes ({})", std::process::id());
    let text = run("exits", &[&name])?.well()?;
    let mut lines = text.lines();
    ensure_eq!(lines.next(), Some(title.as_str()), "the title");
    let words = |line: Option<&str>| -> Vec<String> {
        line.into_iter()
            .flat_map(str::split_whitespace)
            .map(str::to_owned)
            .collect()
    };
    let columns = [
        "reason", "count", "total", "avg", "p50", "p99", "p999", "max",
    ];
    ensure_eq!(words(lines.next()), columns, "columns");
    let line = words(lines.find(|line| line.starts_with(cpuid)));
    ensure_eq!(line[1], "1,200", "count of {line:?}");
    for time in &line[2..] {
        ensure!(time.ends_with('s'), "{time} has no unit: {line:?}");
    }
    let text = run("exits", &[&name, "--vcpu", "0"])?.well()?;
    ensure_eq!(text.lines().next(), Some(&*(title + ", vCPU 0")), "title");
    // Of several VMs each line names its own.
    let (other, _vcpus) = at_rest(1, &[])?;
    let text = run("exits", &[])?.well()?;
    let mut lines = text.lines();
    ensure_eq!(lines.next(), Some("all VMs"), "the title");
    ensure_eq!(words(lines.next())[..2], ["vm", "reason"], "columns");
    let lines: Vec<_> = lines.map(|line| words(Some(line))).collect();
    for name in [name, name_of(&other.fd)] {
        let found = lines.iter().filter(|line| line[0] == name).count();
        ensure_eq!(
            found,
            seen::exits_of(&name)?.0.len(),
            "lines of {name} in {text}"
        );
    }
    drop((vcpus, vm, other));
    kvmate.unload()
}

/// Where there is nothing because a knob is 0 it says which, and there is a document all the same.
fn nothing_recorded() -> Result<()> {
    let kvmate = Kvmate::load("observe=0")?;
    let (vm, vcpus) = at_rest(1, &STEPS)?;
    let name = name_of(&vm.fd);
    let says = |subcommand: &str, knobs: &[&str]| -> Result<()> {
        let done = run(subcommand, &[&name, "--json"])?;
        ensure_eq!(done.status, Some(0), "status; it said {:?}", done.err);
        let document = tool::valid(subcommand, &done.out)?;
        ensure_eq!(only(&document)?["rows"], Value::Array(vec![]), "rows");
        ensure_eq!(
            done.err.lines().count(),
            knobs.len(),
            "lines of {}",
            done.err
        );
        for knob in knobs {
            let next = format!("echo 1 > /sys/kernel/debug/kvmate/knobs/{knob}\n");
            ensure!(done.err.contains(&next), "{next:?} is not in {}", done.err);
        }
        Ok(())
    };
    for (subcommand, file) in TABLES {
        let knobs = ["observe", file];
        let knobs = if file == "exits" { &knobs[..1] } else { &knobs };
        says(subcommand, knobs)?;
        kvmate.write("knobs/observe", "1")?;
        says(subcommand, &knobs[1..])?;
        if file != "exits" {
            kvmate.write(&format!("knobs/{file}"), "1")?;
            says(subcommand, &[])?;
        }
        kvmate.write("knobs/observe", "0")?;
    }
    // A list has VMs all the same, and says it too.
    for (observe, lines) in [("0", 1), ("1", 0)] {
        kvmate.write("knobs/observe", observe)?;
        let done = run("list", &["--interval", "0"])?;
        ensure!(done.out.contains(&name), "{name} is not in {}", done.out);
        ensure_eq!(done.err.lines().count(), lines, "lines of {}", done.err);
        let next = done
            .err
            .contains("echo 1 > /sys/kernel/debug/kvmate/knobs/observe");
        ensure_eq!(next, lines == 1, "what to do, in {}", done.err);
    }
    drop((vcpus, vm));
    kvmate.unload()
}

fn errors() -> Result<()> {
    let all = TABLES.map(|(subcommand, _)| subcommand);
    let all = || all.into_iter().chain(["vcpus", "list"]);
    for subcommand in all() {
        run(subcommand, &["--no"])?.says(2, &format!("Usage: kvmate {subcommand}"))?;
        run(subcommand, &["--watch", "0"])?.says(2, "--help")?;
        run(subcommand, &[])?.says(1, "is not loaded: insmod kvmate.ko")?;
    }
    run("exits", &["--vcpu", "0"])?.says(2, "Usage: kvmate exits")?;
    let kvmate = Kvmate::load("")?;
    run("exits", &["1-1"])?.says(1, "no VM is there")?;
    let done = run("exits", &[])?;
    ensure_eq!(done.status, Some(0), "status without a VM");
    ensure!(done.err.contains("no VM is there"), "{:?}", done.err);
    let (vm, vcpus) = at_rest(2, &[])?;
    let name = name_of(&vm.fd);
    run("irq", &["1-1"])?.says(1, &format!("there are: {name} (tool_tables_tes, "))?;
    run("msr", &[&name, "--vcpu", "7"])?.says(1, "has no vCPU 7; it has: 0, 1")?;
    // Where the tool is, others cannot look.
    let copy = std::env::temp_dir().join("kvmate-tool");
    fs::copy(std::env::current_exe()?.with_file_name("kvmate"), &copy)?;
    for subcommand in all() {
        let mut nobody = Command::new(&copy);
        nobody.arg(subcommand).uid(65534);
        Done::of(nobody)?.says(1, "needs root")?;
    }
    fs::remove_file(copy)?;
    // Who reads only the beginning is no error.
    for subcommand in all() {
        let mut command = tool::command(subcommand)?;
        let (reader, writer) = nix::unistd::pipe()?;
        drop(reader);
        let done = command.stdout(writer).stderr(Stdio::piped()).output()?;
        ensure_eq!(done.status.code(), Some(0), "{subcommand}, a closed pipe");
        let said = String::from_utf8(done.stderr)?;
        ensure!(!said.contains("error"), "{subcommand}: {said}");
    }
    drop((vcpus, vm));
    kvmate.unload()
}

/// What it prints is what is committed, by which the other tests judge.
fn schemas() -> Result<()> {
    for (name, committed) in tool::SCHEMAS {
        let printed: Value = serde_json::from_str(&run("schema", &[name])?.well()?)?;
        ensure_eq!(printed, serde_json::from_str::<Value>(committed)?, "{name}");
    }
    run("schema", &["no"])?.says(2, "possible values: list, exits")
}
