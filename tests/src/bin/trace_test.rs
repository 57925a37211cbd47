// SPDX-License-Identifier: GPL-2.0
//! `knobs/trace*`: lines in the kernel's trace, against what guests known in advance do and against KVM's
//! own trace events of the same.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    affinity::Affinity,
    ensure_eq,
    ftrace::{Buffer, Entry},
    gmem::{
        self, fallocate,
        pins::{pin, By},
        Map, HUGE,
    },
    guest::{
        irq::Trigger,
        steps::{self, Guest, Step},
        Vm,
    },
    ktap,
    module::{Kvmate, Log, Stop},
    oracle::name_of,
    poke::{self, poked, PIN, VECTOR},
    stats::Stats,
    storm,
    trace::{Trace, What},
};
use std::{collections::BTreeMap, io::ErrorKind, process::ExitCode, thread, time::Instant};

const EXITS: &str = "1";
const MSRS: &str = "2";
const FAULTS: &str = "4";
const INTERRUPTS: &str = "8";
const GMEM: &str = "16";

fn main() -> ExitCode {
    let ended = ktap::main(&[
        ("off", off),
        ("bad_values", bad_values),
        ("exits", exits),
        ("msrs", msrs),
        ("faults", faults),
        ("interrupts", interrupts),
        ("injections", injections),
        ("gmem", gmem),
        ("bit_by_bit", bit_by_bit),
        ("rate", rate),
        ("one_vm", one_vm),
        ("not_observed", not_observed),
        ("switched_meanwhile", switched_meanwhile),
    ]);
    for name in ["before", "kvm"] {
        kvmate_tests::ftrace::remove(name);
    }
    ended
}

/// What kvmate has written.
fn lines(buffer: &Buffer) -> Result<Vec<String>> {
    let entries = buffer.read()?;
    let ours = |entry: &&Entry| entry.event == "kvmate_trace_line";
    Ok(entries
        .iter()
        .filter(ours)
        .map(|e| e.text.clone())
        .collect())
}

/// How many times the kernel has told that `trace_printk()` is used.
fn notices() -> Result<usize> {
    let log = Log::from_beginning()?.lines()?;
    let notice = "trace_printk() being used";
    Ok(log.iter().filter(|line| line.contains(notice)).count())
}

/// Nothing is written, and the kernel's buffers are not taken, before the first bit is set.
fn off() -> Result<()> {
    let buffer = Buffer::top(4096)?;
    let before = notices()?;
    let kvmate = Kvmate::load("")?;
    ensure_eq!(kvmate.read("knobs/trace")?, "0", "trace");
    ensure_eq!(kvmate.read("knobs/trace_rate")?, "0", "trace_rate");
    ensure_eq!(kvmate.read("knobs/trace_vm")?, "", "trace_vm");
    kvmate.write("knobs/trace_rate", "10")?;
    kvmate.write("knobs/trace_vm", "1-1")?;
    kvmate.write("knobs/trace", "0")?;
    Guest::new(&[Step::Out(10), Step::Read(3), Step::Touch(1)])?.run()?;
    ensure_eq!(lines(&buffer)?, Vec::<String>::new(), "lines while off");
    ensure_eq!(notices()?, before, "the kernel's notices while off");
    kvmate.write("knobs/trace", EXITS)?;
    // Once since boot, by whoever was first.
    ensure_eq!(notices()?, 1, "the kernel's notices");
    kvmate.unload()
}

fn bad_values() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    kvmate.write("knobs/trace", "17")?;
    kvmate.write("knobs/trace_rate", "1000000")?;
    kvmate.write("knobs/trace_vm", " 12-3\n")?;
    let refused = [
        ("trace", &["32", "256", "-1", "x"][..]),
        ("trace_rate", &["1000001", "-1", "many"]),
        ("trace_vm", &["12", "-", "a-b", "12-3-4", "12-y3", "12 3"]),
    ];
    for (knob, values) in refused {
        for value in values {
            let error = kvmate.write(&format!("knobs/{knob}"), value).err();
            let kind = error
                .with_context(|| format!("{knob} took {value:?}"))?
                .kind();
            ensure_eq!(kind, ErrorKind::InvalidInput, "{knob}, {value:?}");
        }
    }
    let long = "1".repeat(200);
    let error = kvmate
        .write("knobs/trace_vm", &long)
        .err()
        .context("taken")?;
    ensure_eq!(error.kind(), ErrorKind::InvalidInput, "a long name");
    ensure_eq!(kvmate.read("knobs/trace")?, "17", "trace");
    ensure_eq!(kvmate.read("knobs/trace_rate")?, "1000000", "trace_rate");
    ensure_eq!(kvmate.read("knobs/trace_vm")?, "12-3", "trace_vm");
    kvmate.write("knobs/trace_vm", "\n")?;
    ensure_eq!(kvmate.read("knobs/trace_vm")?, "", "trace_vm");
    kvmate.unload()
}

/// Each exit is a line: reason, place and what hardware says beside it, as KVM's own event has them.
fn exits() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new(&[Step::Out(20), Step::Cpuid(7), Step::ReadNone(3)])?;
    // What a VM's first run does else is over.
    guest.run()?;
    let (buffer, oracle) = (
        Buffer::top(4096)?,
        Buffer::of("kvm", 2048, &["kvm/kvm_exit"])?,
    );
    let stats = Stats::of(&guest.vcpu)?;
    let before = stats.get("exits")?;
    kvmate.write("knobs/trace", EXITS)?;
    guest.run()?;
    kvmate.write("knobs/trace", "0")?;
    guest.run()?;
    let found = lines(&buffer)?;
    let expected: Vec<_> = oracle
        .read()?
        .iter()
        .map(|entry| expected_exit(&guest.name, &entry.text))
        .collect::<Result<_>>()?;
    let all = stats.get("exits")? - before;
    ensure_eq!(
        expected.len() as u64,
        all,
        "KVM's events, against its statistics"
    );
    // Twice the same but for what else interrupts a guest.
    ensure!(
        found.len() >= 30 && found.len() < expected.len(),
        "{} lines of {} exits",
        found.len(),
        expected.len()
    );
    ensure_eq!(found, expected[..found.len()], "lines");
    kvmate.unload()
}

/// KVM's `vcpu N reason NAME rip 0xN info1 0xN ...` in kvmate's words.
fn expected_exit(vm: &str, text: &str) -> Result<String> {
    let parse = || {
        let (vcpu, rest) = text.strip_prefix("vcpu ")?.split_once(" reason ")?;
        let (name, rest) = rest.split_once(" rip 0x")?;
        let (rip, rest) = rest.split_once(" info1 0x")?;
        let info = u64::from_str_radix(rest.split(' ').next()?, 16).ok()?;
        let name = name.replace(' ', "_");
        Some(format!(
            "vm {vm} vcpu {vcpu}: exit {name} rip 0x{rip} info {info:#x}"
        ))
    };
    parse().with_context(|| format!("not understood: {text}"))
}

/// Lines, and the same event of KVM's in kvmate's words.
fn like(
    mask: &str,
    event: &str,
    what: &[Step],
    words: impl Fn(&str) -> Option<String>,
) -> Result<[Vec<String>; 2]> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new(what)?;
    let (buffer, oracle) = (Buffer::top(4096)?, Buffer::of("kvm", 2048, &[event])?);
    kvmate.write("knobs/trace", mask)?;
    guest.run()?;
    kvmate.write("knobs/trace", "0")?;
    let found = lines(&buffer)?;
    let expected: Vec<_> = oracle
        .read()?
        .iter()
        .map(|entry| {
            let words = words(&entry.text);
            let words = words.with_context(|| format!("not understood: {}", entry.text))?;
            Ok(format!("vm {} vcpu 0: {words}", guest.name))
        })
        .collect::<Result<_>>()?;
    kvmate.unload()?;
    Ok([found, expected])
}

fn msrs() -> Result<()> {
    let names = BTreeMap::from([("79", "MSR_IA32_UCODE_WRITE"), ("8b", "MSR_IA32_UCODE_REV")]);
    let what = [
        Step::Read(2),
        Step::Write(3),
        Step::ReadNone(4),
        Step::WriteNone(1),
    ];
    let [found, expected] = like(MSRS, "kvm/kvm_msr", &what, |text| {
        let (verb, rest) = text.split_once(' ')?;
        let (index, value) = rest.split_once(" = ")?;
        let verb = match verb {
            "msr_read" => "rdmsr",
            "msr_write" => "wrmsr",
            _ => return None,
        };
        let name = names.get(index).map(|name| (*name).to_owned());
        let name = name.unwrap_or_else(|| format!("0x{index}"));
        Some(match value.split_once(" (#GP)") {
            Some(_) => format!("{verb} {name} #GP"),
            None => format!("{verb} {name} {value}"),
        })
    })?;
    ensure_eq!(found, expected, "lines");
    ensure_eq!(found.len(), 10, "lines");
    let ends = |end: &str| found.iter().filter(|line| line.ends_with(end)).count();
    ensure_eq!(ends("#GP"), 5, "faults");
    Ok(())
}

fn faults() -> Result<()> {
    let [found, expected] = like(FAULTS, "kvm/kvm_page_fault", &[Step::Touch(3)], |text| {
        let (_, rest) = text.split_once(" address 0x")?;
        let (address, _) = rest.split_once(" error_code 0x")?;
        let address = u64::from_str_radix(address, 16).ok()?;
        Some(format!("page_fault {address:#x}"))
    })?;
    let mut addresses = Vec::new();
    for line in &found {
        // What the bits are called is the table `faults`', and its test's.
        let (line, names) = line.rsplit_once(' ').context("no names of bits")?;
        ensure!(
            names.starts_with(|c: char| c.is_ascii_lowercase()),
            "{names}"
        );
        addresses.push(line.to_owned());
    }
    ensure_eq!(addresses, expected, "lines");
    let touched = format!(": page_fault {:#x}", steps::MEMORY - 0x1000);
    let wrote = |line: &String| line.contains(&touched) && line.contains("write");
    ensure!(found.iter().any(wrote), "{found:?}");
    Ok(())
}

/// What KVM puts into the guest, and what the guest ends.
fn interrupts() -> Result<()> {
    const COUNT: usize = 20;
    let kvmate = Kvmate::load("")?;
    let buffer = Buffer::top(4096)?;
    poked(Trigger::Edge, |guest| {
        kvmate.write("knobs/trace", INTERRUPTS)?;
        for count in 1..=COUNT as u64 {
            guest.running.vm.fd.set_irq_line(PIN, true)?;
            guest.running.vm.fd.set_irq_line(PIN, false)?;
            guest.until(VECTOR, count)?;
        }
        kvmate.write("knobs/trace", "0")?;
        let found = lines(&buffer)?;
        let vm = &guest.name;
        for what in ["injected", "eoi"] {
            let line = format!("vm {vm} vcpu 0: {what} {VECTOR:#x}");
            let count = found.iter().filter(|found| **found == line).count();
            // The last one's EOI may come after the guest has told of it.
            ensure!(
                (COUNT - usize::from(what == "eoi")..=COUNT).contains(&count),
                "{count} lines {line} of {found:?}"
            );
        }
        ensure!(found.len() <= 2 * COUNT, "{found:?}");
        Ok(())
    })?;
    kvmate.unload()
}

/// What kvmate puts in, by whatever way, in the words that `inject` takes, with KVM's answer.
fn injections() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let buffer = Buffer::top(4096)?;
    kvmate.write("knobs/inject", "1")?;
    poked(Trigger::Edge, |guest| {
        kvmate.write("knobs/trace", INTERRUPTS)?;
        guest.inject(format!("gsi {PIN}"))?;
        guest.until(VECTOR, 1)?;
        ensure!(guest.inject("gsi 999").is_err(), "a GSI that is not there");
        guest.inject("msi 0xfee00000 0x4061")?;
        guest.until(poke::MSI_VECTOR, 1)?;
        let device = poke::Device::open()?;
        let eventfd = poke::eventfd()?;
        use std::os::fd::AsRawFd;
        let vm = guest.running.vm.fd.as_raw_fd();
        let binding = device.bind(poke::gsi(vm, eventfd.as_raw_fd(), poke::MSI))?;
        eventfd.write(1)?;
        guest.until(poke::MSI_VECTOR, 2)?;
        guest.says(&[("delivered", "1")])?;
        drop(binding);
        poke::write(
            &guest.file("storm"),
            b"msi 0xfee00000 0x4061 count 3 rate 100",
        )?;
        storm::until("the storm is over", || {
            Ok(kvmate
                .read(&format!("vms/{}/storm", guest.name))?
                .contains("done"))
        })?;
        kvmate.write("knobs/trace", "0")?;
        let prefix = format!("vm {}: ", guest.name);
        let found = lines(&buffer)?;
        let ours: Vec<_> = found
            .iter()
            .filter_map(|line| line.strip_prefix(&prefix))
            .collect();
        let msi = "inject msi 0xfee00000 0x4061: delivered";
        let expected = [
            &format!("inject gsi {PIN}: delivered"),
            msi,
            "deliver gsi 24: delivered",
            msi,
            msi,
            msi,
        ];
        ensure_eq!(ours, expected, "injections");
        Ok(())
    })?;
    kvmate.unload()
}

fn gmem() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let buffer = Buffer::top(4096)?;
    kvmate.write("knobs/trace", GMEM)?;
    let file = gmem::create(4 * HUGE, 0)?;
    let number = std::os::unix::fs::MetadataExt::ino(&file.metadata()?);
    let map = Map::new(&file, 4 * HUGE)?;
    map.write(HUGE + 0x5000, 1);
    fallocate(&file, 0, 0, HUGE as i64)?;
    // Where there is something: one page of it, of a folio that is split to that.
    gmem::punch(&file, HUGE + 0x3000, 0x1000)?;
    gmem::punch(&file, 0, HUGE)?;
    let hole = gmem::shape::merge(&file, 0, HUGE, 9);
    ensure!(hole.is_err(), "a hole was merged");
    gmem::shape::merge_and_fill(&file, 0, HUGE, 9)?;
    let held = pin(By::Ring, &map, HUGE / 2)?;
    let range = &mut gmem::shape::range(0, HUGE, 8);
    let split = gmem::shape::call(&file, gmem::shape::Shape::Split, range);
    ensure!(split.is_err(), "a pinned folio was split");
    drop(held);
    kvmate.write("knobs/trace", "0")?;
    let found = lines(&buffer)?;
    let prefix = format!("gmem {number}: ");
    let ours: Vec<_> = found
        .iter()
        .filter_map(|line| line.strip_prefix(&prefix))
        .collect();
    ensure_eq!(ours.len(), found.len(), "lines of that file: {found:?}");
    let splits: Vec<_> = ours
        .iter()
        .filter(|line| line.starts_with("split 0"))
        .collect();
    ensure!(
        (1..=2).contains(&splits.len()) && splits[0].starts_with("split 0x200000: order 9 to "),
        "{ours:?}"
    );
    let others: Vec<_> = ours
        .iter()
        .filter(|line| !line.starts_with("split 0"))
        .collect();
    ensure_eq!(
        others,
        [
            &"fault 0x205000 order 9",
            &"punch 0x203000 0x1000: 1 pages freed, 0 kept",
            &"punch 0x0 0x200000: 512 pages freed, 0 kept",
            &"merge refused at 0x0: hole, 0 references, 0 expected, 0 mappings",
            &"merge 0x0: 0 folios to order 9",
            &"fault 0x100000 order 9",
            &"split refused at 0x0: referenced, 513 references, 512 expected, 0 mappings, pinned",
        ],
        "lines"
    );
    drop((map, file));
    kvmate.unload()
}

/// What a line is about.
fn class(line: &str) -> &'static str {
    let what = line.split(": ").nth(1).unwrap_or_default();
    match what.split(' ').next().unwrap_or_default() {
        "exit" => EXITS,
        "rdmsr" | "wrmsr" => MSRS,
        "page_fault" => FAULTS,
        "injected" | "eoi" | "inject" | "deliver" => INTERRUPTS,
        "fault" | "punch" | "split" | "merge" => GMEM,
        _ => "",
    }
}

/// Each bit gives its lines and no others, two bits those of both.
fn bit_by_bit() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let buffer = Buffer::top(4096)?;
    kvmate.write("knobs/inject", "1")?;
    let all = [EXITS, MSRS, FAULTS, INTERRUPTS, GMEM];
    for mask in 0..32u8 {
        buffer.clear()?;
        kvmate.write("knobs/trace", &mask.to_string())?;
        ensure_eq!(kvmate.read("knobs/trace")?, mask.to_string(), "the mask");
        // A fresh VM each: its first touches of memory are faults.
        let mut guest = Guest::new(&[Step::Out(2), Step::Read(2), Step::Touch(1)])?;
        guest.run()?;
        let vm = Vm::new(steps::MEMORY, true)?;
        let _vcpu = vm.vcpu(0)?;
        let inject = format!("vms/{}/inject", name_of(&vm.fd));
        kvmate.write(&inject, "gsi 4")?;
        let file = gmem::create(HUGE, 0)?;
        gmem::punch(&file, 0, HUGE)?;
        Map::new(&file, HUGE)?.write(0, 1);
        kvmate.write("knobs/trace", "0")?;
        let found = lines(&buffer)?;
        for (bit, name) in all.iter().enumerate() {
            let any = found.iter().any(|line| class(line) == *name);
            ensure_eq!(
                any,
                (mask >> bit) & 1 == 1,
                "lines of {name} with {mask}: {found:?}"
            );
        }
        ensure!(
            found.iter().all(|line| !class(line).is_empty()),
            "{found:?}"
        );
    }
    kvmate.unload()
}

/// So many a second on each CPU; each other one is counted, and told of.
fn rate() -> Result<()> {
    const RATE: u64 = 50;
    // A CPU tells of what it lost when something is traced there again.
    let _one = Affinity::one()?;
    let kvmate = Kvmate::load("")?;
    let buffer = Buffer::top(4096)?;
    let mut guest = Guest::new(&[Step::Out(500)])?;
    let stats = Stats::of(&guest.vcpu)?;
    let before = stats.get("exits")?;
    kvmate.write("knobs/trace_rate", &RATE.to_string())?;
    kvmate.write("knobs/trace", EXITS)?;
    let begin = Instant::now();
    for _ in 0..4 {
        guest.run()?;
    }
    let seconds = begin.elapsed().as_secs() + 2;
    // A second later there is room for one more, which tells of those before it.
    thread::sleep(std::time::Duration::from_millis(1100));
    guest.run()?;
    kvmate.write("knobs/trace", "0")?;
    let all = stats.get("exits")? - before;
    let entries = buffer.read()?;
    let mut written: BTreeMap<usize, u64> = BTreeMap::new();
    let mut told: BTreeMap<usize, u64> = BTreeMap::new();
    for Entry { cpu, text, .. } in &entries {
        let lost = text
            .strip_prefix("kvmate: ")
            .and_then(|rest| rest.strip_suffix(" lines lost on this CPU (knobs/trace_rate)"));
        match lost {
            Some(lost) => *told.entry(*cpu).or_default() += lost.parse::<u64>()?,
            None => *written.entry(*cpu).or_default() += 1,
        }
    }
    let table = kvmate.read("trace_lost")?;
    let mut rows = table.lines();
    ensure_eq!(rows.next(), Some("cpu lost"), "columns");
    let mut lost_in_all = 0;
    for (cpu, row) in rows.enumerate() {
        let (number, lost) = row.split_once(' ').context("two columns")?;
        ensure_eq!(number, cpu.to_string(), "CPU");
        let lost: u64 = lost.parse()?;
        lost_in_all += lost;
        let told = told.get(&cpu).copied().unwrap_or(0);
        ensure!(told <= lost, "CPU {cpu}: {told} told of {lost}");
    }
    let written_in_all: u64 = written.values().sum();
    ensure_eq!(
        written_in_all + lost_in_all,
        all,
        "written and lost, against KVM's exits"
    );
    for (cpu, written) in &written {
        ensure!(
            *written <= RATE * (seconds + 2),
            "CPU {cpu}: {written} lines in {seconds} s"
        );
    }
    ensure!(
        lost_in_all > 0 && !told.is_empty(),
        "nothing lost: {all} exits"
    );
    kvmate.unload()
}

/// Two VMs run, and only one of them is told of; what belongs to no VM is not.
fn one_vm() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let buffer = Buffer::top(4096)?;
    let what = [Step::Out(5), Step::Read(2)];
    let (mut first, mut second) = (Guest::new(&what)?, Guest::new(&what)?);
    kvmate.write("knobs/trace", "31")?;
    let names = [first.name.clone(), second.name.clone()];
    let mut each = |filter: &str| -> Result<[usize; 3]> {
        kvmate.write("knobs/trace_vm", &format!("{filter}\n"))?;
        ensure_eq!(kvmate.read("knobs/trace_vm")?, filter, "the filter");
        buffer.clear()?;
        first.run()?;
        second.run()?;
        let file = gmem::create(HUGE, 0)?;
        Map::new(&file, HUGE)?.write(0, 1);
        let found = lines(&buffer)?;
        let of = |prefix: &str| found.iter().filter(|l| l.starts_with(prefix)).count();
        Ok([
            of(&format!("vm {} ", names[0])),
            of(&format!("vm {} ", names[1])),
            of("gmem "),
        ])
    };
    let [one, two, files] = each("")?;
    ensure!(one >= 10 && two >= 10 && files == 1, "{one} {two} {files}");
    let [one, two, files] = each(&names[0])?;
    ensure!(one >= 10 && two == 0 && files == 0, "{one} {two} {files}");
    let [one, two, files] = each(&names[1])?;
    ensure!(one == 0 && two >= 10 && files == 0, "{one} {two} {files}");
    ensure_eq!(each("1-1")?, [0; 3], "lines of a VM that is not there");
    // A name that begins as the VM's does is another.
    ensure_eq!(each(&format!("{}0", names[0]))?, [0; 3], "lines");
    drop((first.vm, second.vm));
    kvmate.unload()
}

/// Exits are traced while they are observed, and again when they are again.
fn not_observed() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let buffer = Buffer::top(4096)?;
    let mut guest = Guest::new(&[Step::Out(5), Step::Read(1)])?;
    kvmate.write("knobs/trace", "3")?;
    kvmate.write("knobs/observe", "0")?;
    guest.run()?;
    ensure_eq!(
        lines(&buffer)?,
        Vec::<String>::new(),
        "lines while not observed"
    );
    kvmate.write("knobs/observe", "1")?;
    guest.run()?;
    let found = lines(&buffer)?;
    ensure!(found.iter().any(|line| class(line) == EXITS), "{found:?}");
    ensure!(found.iter().any(|line| class(line) == MSRS), "{found:?}");
    kvmate.unload()
}

/// All of it switched all the time, while guests run: nothing breaks, and it works after.
fn switched_meanwhile() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let _buffer = Buffer::top(4096)?;
    let stop = Stop::default();
    thread::scope(|scope| -> Result<()> {
        let guests: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while !stop.asked() {
                        let mut guest =
                            Guest::new(&[Step::Out(20), Step::Read(5), Step::Touch(1)])?;
                        for _ in 0..20 {
                            guest.run()?;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let done = (0..storm::rounds(60)).try_for_each(|round| -> Result<()> {
            kvmate.write("knobs/trace", &(round % 32).to_string())?;
            kvmate.write("knobs/trace_rate", &(round % 3 * 100).to_string())?;
            kvmate.write("knobs/trace_vm", if round % 5 == 0 { "1-1" } else { "\n" })?;
            if round % 7 == 0 {
                kvmate.write("knobs/observe", "0")?;
                kvmate.write("knobs/observe", "1")?;
            }
            Ok(())
        });
        drop(stop.on_drop());
        for guest in guests {
            guest.join().expect("a guest's thread")?;
        }
        done
    })?;
    // It works still.
    kvmate.write("knobs/trace_vm", "\n")?;
    kvmate.write("knobs/trace_rate", "0")?;
    kvmate.write("knobs/trace", EXITS)?;
    let trace = Trace::begin("before", 512)?;
    let buffer = Buffer::top(4096)?;
    let mut guest = Guest::new(&[Step::Out(20)])?;
    guest.run()?;
    let exits = trace
        .read()?
        .iter()
        .filter(|event| event.what != What::Entry)
        .count();
    // The first may be about lines that were lost before.
    let found = lines(&buffer)?;
    let found = found.iter().filter(|line| class(line) == EXITS).count();
    ensure_eq!(found, exits, "lines, against KVM's events");
    kvmate.unload()
}
