// SPDX-License-Identifier: GPL-2.0
//! The trace events under `events/kvmate/`: against kvmate's tables and KVM's own events, and as perf,
//! trace-cmd and bpftrace read them.

use anyhow::{ensure, Context, Result};
use kvm_ioctls::VcpuExit;
use kvmate_tests::{
    ensure_eq,
    ftrace::{self, Buffer, Entry, TRACEFS},
    gmem::{
        self,
        pins::{pin, By},
        shape::{self, Shape},
        Map, HUGE,
    },
    guest::{
        irq::Trigger,
        long,
        steps::{self, Guest, Step},
        Vm,
    },
    hung::named,
    ktap,
    module::{self, Kvmate, Stop},
    oracle,
    poke::{self, poked, PIN, VECTOR},
    seen, storm, table,
    trace::{Trace, What},
};
use nix::errno::Errno;
use std::{
    fs,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

fn main() -> ExitCode {
    let ended = ktap::main(&[
        ("listed", listed),
        ("exit", exit),
        ("exit_while_times_are_split", exit_while_times_are_split),
        ("exit_of_a_refused_state", exit_of_a_refused_state),
        ("interrupts", interrupts),
        ("gmem", gmem),
        ("gmem_reshaped", gmem_reshaped),
        (
            "on_before_vms_and_over_unload",
            on_before_vms_and_over_unload,
        ),
        ("switched_meanwhile", switched_meanwhile),
        ("perf_stat", perf_stat),
        ("trace_cmd", trace_cmd),
        ("bpftrace", bpftrace),
    ]);
    for name in ["events", "oracle"] {
        ftrace::remove(name);
    }
    ended
}

/// The events, with their fields.
const EVENTS: [(&str, &[&str]); 8] = [
    (
        "exit",
        &["vm", "name", "vcpu", "reason", "rip", "info", "ns"],
    ),
    ("inject", &["vm", "what", "answer"]),
    ("deliver", &["vm", "what", "answer"]),
    ("gmem_fault", &["file", "offset", "order"]),
    ("gmem_punch", &["file", "offset", "length", "freed", "kept"]),
    ("gmem_split", &["file", "offset", "from", "to"]),
    ("gmem_merge", &["file", "offset", "folios", "order"]),
    (
        "gmem_refused",
        &[
            "file",
            "offset",
            "what",
            "why",
            "order",
            "references",
            "expected",
            "mappings",
            "pinned",
        ],
    ),
];

fn events() -> Result<Buffer> {
    let all = EVENTS.map(|(name, _)| format!("kvmate/{name}"));
    Buffer::of("events", 4096, &all.each_ref().map(String::as_str))
}

fn of<'a>(entries: &'a [Entry], event: &str) -> Vec<&'a str> {
    let of_it = entries.iter().filter(|entry| entry.event == event);
    of_it.map(|entry| &*entry.text).collect()
}

/// Just these, with these fields, and gone with the module.
fn listed() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let folder = Path::new(TRACEFS).join("events/kvmate");
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort();
    let mut expected = EVENTS.map(|(name, _)| name.to_owned()).to_vec();
    expected.sort();
    ensure_eq!(found, expected, "events");
    for (name, fields) in EVENTS {
        let format = fs::read_to_string(folder.join(name).join("format"))?;
        let of_its = format
            .lines()
            .filter_map(|line| line.trim().strip_prefix("field:")?.split(';').next())
            .filter_map(|field| field.rsplit(' ').next()?.split('[').next())
            .filter(|field| !field.starts_with("common_"))
            .map(str::to_owned)
            .collect::<Vec<_>>();
        ensure_eq!(of_its, fields, "fields of {name}");
        let enable = fs::read_to_string(folder.join(name).join("enable"))?;
        ensure_eq!(enable.trim(), "0", "{name} after load");
    }
    kvmate.unload()?;
    ensure!(!folder.exists(), "events after unload");
    Ok(())
}

/// The number behind a word.
fn number(text: &str, word: &str) -> Result<u64> {
    let found = text
        .split_once(&format!(" {word} "))
        .and_then(|(_, rest)| rest.split(' ').next());
    let digits = found.with_context(|| format!("no {word} in {text}"))?;
    Ok(match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16)?,
        None => digits.parse()?,
    })
}

/// Each exit that had an entry after it, as KVM's events say it, with the time that the table adds up.
fn exits_are_told(parameters: &str) -> Result<()> {
    let kvmate = Kvmate::load(parameters)?;
    let mut guest = Guest::new(&[Step::Out(30), Step::Cpuid(5), Step::Read(4)])?;
    guest.run()?;
    kvmate.write(&format!("vms/{}/reset", guest.name), "1")?;
    // All events begin while the vCPU stands behind an exit, which is not theirs.
    let buffer = events()?;
    let oracle = Trace::begin("oracle", 2048)?;
    guest.run()?;
    let (entries, kvm) = (buffer.read()?, oracle.read()?);
    let found = of(&entries, "exit");
    let mut expected = Vec::new();
    for pair in kvm.windows(2) {
        if let (What::Exit { reason, rip }, What::Entry) = (&pair[0].what, &pair[1].what) {
            let (vm, vcpu) = (&guest.name, pair[0].vcpu);
            expected.push((format!("vm {vm} vcpu {vcpu}: {reason} "), *rip));
        }
    }
    ensure!(expected.len() >= 39, "{} exits", expected.len());
    ensure_eq!(found.len(), expected.len(), "events");
    for (found, (begin, rip)) in found.iter().zip(&expected) {
        ensure!(found.starts_with(begin), "{found}, not {begin}");
        ensure_eq!(number(found, "rip")?, *rip, "rip of {found}");
    }
    let sum = found
        .iter()
        .map(|text| number(text, "ns"))
        .sum::<Result<u64>>()?;
    let table = kvmate.read(&format!("vms/{}/exits", guest.name))?;
    let mut total = 0;
    for row in table::exits(&table)? {
        total += row.total;
    }
    // Each event's is rounded down by itself.
    ensure!(
        sum <= total && total - sum <= found.len() as u64 + 20,
        "{sum} ns of {} events, {total} ns in the table",
        found.len()
    );
    let ports = found
        .iter()
        .filter(|t| t.contains(&format!(": {} ", seen::names().out)));
    for text in ports {
        // Bits 31:16, on both vendors' hardware.
        let port = (number(text, "info")? >> 16) & 0xffff;
        ensure!([0x10, u64::from(steps::DONE)].contains(&port), "{text}");
    }
    drop(guest);
    kvmate.unload()
}

fn exit() -> Result<()> {
    exits_are_told("")
}

fn exit_while_times_are_split() -> Result<()> {
    exits_are_told("times=1")?;
    // And they are split as without the event: a VMM that sleeps is in user space.
    let kvmate = Kvmate::load("times=1")?;
    let buffer = events()?;
    let mut guest = Guest::new(&[Step::Out(5)])?;
    let pause = Duration::from_millis(20);
    steps::run(&mut guest.vcpu, || thread::sleep(pause))?;
    ensure!(!of(&buffer.read()?, "exit").is_empty(), "no event");
    let text = kvmate.read(&format!("vms/{}/times", guest.name))?;
    let rows = table::times(&text)?;
    let ports = rows.iter().find(|row| row.reason == seen::names().out);
    let ports = ports.with_context(|| format!("no ports in {text}"))?;
    // The last has no entry after it.
    ensure_eq!(ports.count, 5, "port writes: {text}");
    let slept = 5 * pause.as_nanos() as u64;
    ensure!(ports.user >= slept, "{} ns of {slept}: {text}", ports.user);
    drop(guest);
    kvmate.unload()
}

/// Hardware refuses a state, with all ones as code on SVM, and the VMM mends it: the event has the name that
/// the table has.
fn exit_of_a_refused_state() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let vm = Vm::new(long::MEMORY, false)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    long::start(&vcpu, 0, 0x40, 0)?;
    let sound = vcpu.get_sregs()?;
    let mut refused = sound;
    // 64-bit code with the default size of 32-bit code.
    refused.cs.db = 1;
    vcpu.set_sregs(&refused)?;
    let buffer = events()?;
    let failed = |answer| matches!(answer, VcpuExit::FailEntry(..));
    ensure!(failed(vcpu.run()?), "the state is not refused");
    vcpu.set_sregs(&sound)?;
    vcpu.run().context("the state that is mended")?;
    let entries = buffer.read()?;
    let found = of(&entries, "exit");
    let first = found.first().context("no event")?;
    let name = named("invalid_guest_state", "INVALID_STATE|FAILED_VMENTRY");
    let begin = format!("vm {} vcpu 0: {name} ", oracle::name_of(&vm.fd));
    ensure!(first.starts_with(&begin), "{first}, not {begin}");
    drop((vcpu, vm));
    kvmate.unload()
}

fn interrupts() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let buffer = events()?;
    kvmate.write("knobs/inject", "1")?;
    poked(Trigger::Edge, |guest| {
        let device = poke::Device::open()?;
        let eventfd = poke::eventfd()?;
        let vm = guest.running.vm.fd.as_raw_fd();
        let binding = device.bind(poke::gsi(vm, eventfd.as_raw_fd(), PIN))?;
        buffer.clear()?;
        guest.inject("msi 0xfee00000 0x4061")?;
        guest.until(poke::MSI_VECTOR, 1)?;
        ensure!(guest.inject("gsi 999").is_err(), "a GSI that is not there");
        eventfd.write(1)?;
        guest.until(VECTOR, 1)?;
        guest.says(&[("delivered", "1")])?;
        drop(binding);
        let found = buffer.read()?;
        let vm = &guest.name;
        ensure_eq!(
            of(&found, "inject"),
            [format!("vm {vm}: msi 0xfee00000 0x4061: delivered")],
            "inject"
        );
        ensure_eq!(
            of(&found, "deliver"),
            [format!("vm {vm}: gsi {PIN}: delivered")],
            "deliver"
        );
        Ok(())
    })?;
    kvmate.unload()
}

fn gmem() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let buffer = events()?;
    let file = gmem::create(4 * HUGE, 0)?;
    let number = file.metadata()?.ino();
    let map = Map::new(&file, 4 * HUGE)?;
    map.write(HUGE + 0x5000, 1);
    gmem::punch(&file, HUGE + 0x3000, 0x1000)?;
    let found = buffer.read()?;
    ensure_eq!(
        of(&found, "gmem_fault"),
        [format!("file {number} offset 0x205000 order 9")],
        "gmem_fault"
    );
    ensure_eq!(
        of(&found, "gmem_punch"),
        [format!(
            "file {number} offset 0x203000 length 0x1000: 1 pages freed, 0 kept"
        )],
        "gmem_punch"
    );
    let splits = of(&found, "gmem_split");
    let first = format!("file {number} offset 0x200000: order 9 to ");
    ensure!(
        splits.first().is_some_and(|text| text.starts_with(&first)),
        "gmem_split: {splits:?}"
    );
    drop((map, file));
    kvmate.unload()
}

/// Splits and merges, done and refused: one event each, and no other.
fn gmem_reshaped() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let buffer = events()?;
    let file = gmem::create(2 * HUGE, 0)?;
    let number = file.metadata()?.ino();
    let map = Map::new(&file, 2 * HUGE)?;
    gmem::fallocate(&file, 0, 0, HUGE as i64)?;
    let said = |event: &str, texts: &[&str]| -> Result<()> {
        let texts: Vec<_> = texts
            .iter()
            .map(|text| format!("file {number} offset {text}"))
            .collect();
        let entries = buffer.read()?;
        ensure_eq!(of(&entries, event), texts, "{event}");
        let others = entries.len() - of(&entries, "gmem_fault").len();
        ensure_eq!(others, texts.len(), "events: {entries:?}");
        buffer.clear()
    };
    let refused = |shape, at, order, errno| -> Result<()> {
        let found = shape::call(&file, shape, &mut shape::range(at, HUGE, order));
        ensure_eq!(found, Err(errno), "{shape:?} at {at:#x} to {order}");
        Ok(())
    };
    shape::split(&file, 0, HUGE, 7)?;
    let halves = ["0x0: order 9 to 7", "0x100000: order 8 to 7"];
    said("gmem_split", &halves)?;
    map.read(0x80_000);
    let pipe = pin(By::Pipe, &map, 0x80_000)?;
    refused(Shape::Merge, 0, 9, Errno::EAGAIN)?;
    said(
        "gmem_refused",
        &["0x80000: merge: referenced order 7 references 129 expected 128 mappings 0 pinned 0"],
    )?;
    drop(pipe);
    shape::merge(&file, 0, HUGE, 9)?;
    said("gmem_merge", &["0x0: 4 folios to order 9"])?;
    refused(Shape::Merge, HUGE, 9, Errno::EINVAL)?;
    said(
        "gmem_refused",
        &["0x200000: merge: hole order 0 references 0 expected 0 mappings 0 pinned 0"],
    )?;
    shape::merge_and_fill(&file, HUGE, HUGE, 9)?;
    said("gmem_merge", &["0x200000: 0 folios to order 9"])?;
    let ring = pin(By::Ring, &map, HUGE)?;
    refused(Shape::Split, HUGE, 8, Errno::EAGAIN)?;
    said(
        "gmem_refused",
        &["0x200000: split: referenced order 9 references 513 expected 512 mappings 0 pinned 1"],
    )?;
    drop(ring);
    shape::split(&file, HUGE, HUGE, 8)?;
    said("gmem_split", &["0x200000: order 9 to 8"])?;
    drop((map, file));
    kvmate.unload()
}

/// An event that is on stays on for VMs to come; it is no obstacle to unloading, and off after it.
fn on_before_vms_and_over_unload() -> Result<()> {
    for _ in 0..3 {
        let kvmate = Kvmate::load("")?;
        let enable = Path::new(TRACEFS).join("instances/kvmate-events/events/kvmate/exit/enable");
        if let Ok(on) = fs::read_to_string(enable) {
            ensure_eq!(
                on.trim(),
                "0",
                "the event after it was on and the module gone"
            );
        }
        let buffer = events()?;
        let mut guest = Guest::new(&[Step::Out(9)])?;
        guest.run()?;
        let found = buffer.read()?;
        let out = format!(": {} ", seen::names().out);
        let count = |found: &[Entry]| {
            of(found, "exit")
                .iter()
                .filter(|t| t.contains(&out))
                .count()
        };
        // The last has no entry after it.
        ensure_eq!(count(&found), 9, "port writes");
        kvmate.unload()?;
        guest.run()?;
        std::mem::forget(buffer);
    }
    ensure!(!module::is_loaded("kvmate"), "kvmate is there");
    Ok(())
}

/// Switched on and off all the time while guests run, come and go, and kvmate goes: nothing breaks.
fn switched_meanwhile() -> Result<()> {
    let stop = Stop::default();
    thread::scope(|scope| -> Result<()> {
        let guests: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while !stop.asked() {
                        let mut guest = Guest::new(&[Step::Out(20), Step::Read(5)])?;
                        for _ in 0..20 {
                            guest.run()?;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let done = (0..storm::rounds(20)).try_for_each(|round| -> Result<()> {
            let kvmate = Kvmate::load("")?;
            let enable = Path::new(TRACEFS).join("events/kvmate/enable");
            for on in 0..=6 + round % 2 {
                fs::write(&enable, (on % 2).to_string())?;
                kvmate.write("knobs/observe", &(on % 3 % 2).to_string())?;
            }
            // With the events on, every other time.
            kvmate.unload()
        });
        drop(stop.on_drop());
        for guest in guests {
            guest.join().expect("a guest's thread")?;
        }
        done
    })
}

/// Run a program of the distribution's; gives what it says.
fn tool(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| program.to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}: {text}{errors}",
        output.status
    );
    Ok(text + &errors)
}

/// A guest that writes this often to a port, then halts: so many events, for the halt has no entry
/// after it.
const WRITES: u64 = 250;

fn small_guest() -> Result<String> {
    let own = std::env::current_exe()?;
    let guest = own.with_file_name("small_guest");
    Ok(guest.to_str().context("a path that is text")?.to_owned())
}

fn perf_stat() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (guest, writes) = (small_guest()?, WRITES.to_string());
    let said = tool(
        "perf",
        &["stat", "-x,", "-a", "-e", "kvmate:*", "--", &guest, &writes],
    )?;
    let count = |event: &str| -> Result<u64> {
        let line = said.lines().find(|line| line.contains(event));
        let line = line.with_context(|| format!("no {event} in {said}"))?;
        Ok(line.split(',').next().unwrap_or_default().parse()?)
    };
    let exits = kvmate.exits()?;
    let found = count("kvmate:exit")?;
    // All exits but the last, which is the halt.
    ensure_eq!(found, exits - 1, "kvmate:exit, against all exits: {said}");
    ensure!(found >= WRITES, "{found} exits");
    ensure_eq!(count("kvmate:inject")?, 0, "kvmate:inject");
    ensure_eq!(count("kvmate:gmem_fault")?, 0, "kvmate:gmem_fault");
    kvmate.unload()
}

fn trace_cmd() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (guest, writes) = (small_guest()?, WRITES.to_string());
    let folder = tempfile()?;
    let file = format!("{folder}/trace.dat");
    tool(
        "trace-cmd",
        &["record", "-q", "-o", &file, "-e", "kvmate", &guest, &writes],
    )?;
    let report = tool("trace-cmd", &["report", "-i", &file])?;
    fs::remove_dir_all(&folder)?;
    let out = format!(": {} reason", seen::names().out);
    let lines = report
        .lines()
        .filter(|line| line.contains(" exit:") && line.contains(&out));
    ensure_eq!(lines.count() as u64, WRITES, "port writes in {report}");
    kvmate.unload()
}

fn tempfile() -> Result<String> {
    let folder = format!("/tmp/kvmate-trace-{}", std::process::id());
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Only where the kernel has BTF.
fn bpftrace() -> Result<()> {
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return ktap::skip("this kernel has no BTF");
    }
    let kvmate = Kvmate::load("")?;
    let program = "tracepoint:kvmate:exit { @[args.name] = count(); @ns = sum(args.ns); }";
    let command = format!("{} {WRITES}", small_guest()?);
    let said = tool("bpftrace", &["-e", program, "-c", &command])?;
    let line = format!("@[{}]: {WRITES}", seen::names().out);
    ensure!(said.lines().any(|l| l == line), "no {line} in {said}");
    ensure!(
        said.lines().any(|l| l.starts_with("@ns: ")),
        "no @ns in {said}"
    );
    kvmate.unload()
}
