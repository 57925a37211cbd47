// SPDX-License-Identifier: GPL-2.0
//! `msrs`: accesses to MSRs by guests known in advance, to the access. The oracles are the guest's own
//! numbers, among them the faults that its handler counts.

use anyhow::{ensure, Context, Result};
use kvm_ioctls::VcpuFd;
use kvmate_tests::{
    ensure_eq,
    guest::{
        chosen::{self, Registers},
        steps::{self, Step},
        Vm,
    },
    ktap,
    module::Kvmate,
    oracle::name_of,
    storm,
};
use std::{collections::BTreeMap, process::ExitCode, thread};

fn main() -> ExitCode {
    ktap::main(&[
        ("off_by_default", off_by_default),
        ("exact", exact),
        ("of_two_vcpus", of_two_vcpus),
        ("two_threads_on_one_cpu", two_threads_on_one_cpu),
        ("switching", switching),
        ("hostile", hostile),
    ])
}

/// `rdmsr; inc ecx; dec esi; jnz; out DONE`
const READ_ON: &[u8] = &[
    0x0f,
    0x32,
    0x66,
    0x41,
    0x66,
    0x4e,
    0x75,
    0xf8,
    0xe6,
    steps::DONE,
];
/// `wrmsr; out DONE`
const WRITE: &[u8] = &[0x0f, 0x30, 0xe6, steps::DONE];

/// No MSR has this number, nor a million after it.
const NONE: u64 = 0x0bad_0000;

fn run(vcpu: &mut VcpuFd, general: [u64; 4]) -> Result<()> {
    let registers = Registers {
        general,
        ..Registers::default()
    };
    chosen::run(vcpu, registers).map(drop)
}

/// A line of `msrs`: name, reads, writes, faults, what was written last.
type Msr = (String, [u64; 3], String);

/// A table `msrs`, by what stands in its first column.
fn msrs(kvmate: &Kvmate, path: &str) -> Result<BTreeMap<String, Msr>> {
    let text = kvmate.read(&format!("vms/{path}/msrs"))?;
    let mut lines = text.lines();
    let said = lines.next().unwrap_or_default();
    ensure!(
        said.starts_with("# ") && said.contains("passed through") && said.contains("never"),
        "it does not say what is missing: {said}"
    );
    ensure_eq!(
        lines.next(),
        Some("msr name reads writes faults last_written"),
        "columns"
    );
    let mut all = BTreeMap::new();
    for line in lines {
        let words: Vec<_> = line.split(' ').collect();
        let [msr, name, reads, writes, faults, last] = words[..] else {
            anyhow::bail!("not six columns: {line}");
        };
        let numbers = [reads.parse()?, writes.parse()?, faults.parse()?];
        let before = all.insert(msr.to_owned(), (name.into(), numbers, last.into()));
        ensure!(before.is_none(), "two lines of {msr}");
    }
    Ok(all)
}

fn msr(name: &str, numbers: [u64; 3], last: &str) -> Msr {
    (name.into(), numbers, last.into())
}

fn exact() -> Result<()> {
    let kvmate = Kvmate::load("msrs=1")?;
    let (guest, mut vcpu) = chosen::vm(steps::MEMORY, WRITE)?;
    let name = name_of(&guest.fd);
    for value in [0x1234, 0x5_0000_1234u64] {
        run(&mut vcpu, [value, 0x79, value >> 32, 0])?;
    }
    run(&mut vcpu, [7, NONE, 0, 0])?;
    guest.memory.write(steps::code(0), READ_ON);
    // 0x8b, and two that there are not.
    run(&mut vcpu, [0, 0x8b, 0, 1])?;
    run(&mut vcpu, [0, NONE, 0, 2])?;
    let expected = BTreeMap::from([
        (
            "0x79".into(),
            msr("MSR_IA32_UCODE_WRITE", [0, 2, 0], "0x500001234"),
        ),
        ("0x8b".into(), msr("MSR_IA32_UCODE_REV", [1, 0, 0], "-")),
        ("0xbad0000".into(), msr("-", [1, 1, 2], "-")),
        ("0xbad0001".into(), msr("-", [1, 0, 1], "-")),
    ]);
    ensure_eq!(msrs(&kvmate, &name)?, expected, "msrs");
    ensure_eq!(steps::faults(&guest), 3, "faults that the guest took");
    kvmate.write(&format!("vms/{name}/reset"), "1")?;
    ensure_eq!(msrs(&kvmate, &name)?, BTreeMap::new(), "msrs after a reset");
    drop((vcpu, guest));
    kvmate.unload()
}

fn of_two_vcpus() -> Result<()> {
    let kvmate = Kvmate::load("msrs=1")?;
    let vm = Vm::new(steps::MEMORY, false)?;
    let mut vcpus = Vec::new();
    for (id, reads) in [(0, 11), (1, 17)] {
        steps::load(
            &vm,
            id,
            &[Step::Read(reads), Step::WriteNone(id as u32 + 1)],
        );
        let mut vcpu = vm.vcpu(id as u64)?;
        steps::start(&vcpu, id)?;
        steps::run(&mut vcpu, || ())?;
        vcpus.push(vcpu);
    }
    let name = name_of(&vm.fd);
    for (path, reads, faults) in [
        (name.clone(), 28, 3),
        (format!("{name}/vcpu0"), 11, 1),
        (format!("{name}/vcpu1"), 17, 2),
    ] {
        let found = msrs(&kvmate, &path)?;
        let read = &found.get("0x8b").context("0x8b")?.1;
        let none = &found.get("0xbad0000").context("0xbad0000")?.1;
        ensure_eq!(
            (read, none),
            (&[reads, 0, 0], &[0, faults, faults]),
            "{path}"
        );
    }
    drop((vcpus, vm));
    kvmate.unload()
}

/// What happens to a vCPU is told of that vCPU, also where another one keeps coming in between.
fn two_threads_on_one_cpu() -> Result<()> {
    const TURNS: u64 = 20;
    let kvmate = Kvmate::load("msrs=1")?;
    let vm = Vm::new(steps::MEMORY, false)?;
    let mut vcpus = Vec::new();
    for (id, step) in [(0, Step::Read(50)), (1, Step::WriteNone(50))] {
        steps::load(&vm, id, &[step]);
        let vcpu = vm.vcpu(id as u64)?;
        steps::start(&vcpu, id)?;
        vcpus.push(vcpu);
    }
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = vcpus
            .iter_mut()
            .map(|vcpu| {
                scope.spawn(|| -> Result<()> {
                    let mut cpus = nix::sched::CpuSet::new();
                    cpus.set(0)?;
                    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus)?;
                    for _ in 0..TURNS {
                        steps::run(vcpu, thread::yield_now)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let mut threads = threads.into_iter();
        threads.try_for_each(|t| t.join().expect("a vCPU's thread"))
    })?;
    let name = name_of(&vm.fd);
    let each = 50 * TURNS;
    for (id, msr, numbers) in [(0, "0x8b", [each, 0, 0]), (1, "0xbad0000", [0, each, each])] {
        let found = msrs(&kvmate, &format!("{name}/vcpu{id}"))?;
        let found: Vec<_> = found
            .iter()
            .map(|(msr, line)| (msr.as_str(), line.1))
            .collect();
        ensure_eq!(found, [(msr, numbers)], "MSRs of vCPU {id}");
    }
    drop((vcpus, vm));
    kvmate.unload()
}

fn off_by_default() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    ensure_eq!(kvmate.read("knobs/msrs")?, "0", "knobs/msrs");
    let (guest, mut vcpu) = chosen::vm(steps::MEMORY, READ_ON)?;
    run(&mut vcpu, [0, 0x8b, 0, 3])?;
    let found = msrs(&kvmate, &name_of(&guest.fd))?;
    ensure_eq!(found, BTreeMap::new(), "msrs while switched off");
    drop((vcpu, guest));
    kvmate.unload()
}

/// What is accessed while the knob is 0 is not told, and what was told stands.
fn switching() -> Result<()> {
    let kvmate = Kvmate::load("msrs=1")?;
    let (guest, mut vcpu) = chosen::vm(steps::MEMORY, READ_ON)?;
    let (name, mut expected) = (name_of(&guest.fd), 0);
    for turn in 0..9u64 {
        let on = turn % 3 == 0;
        kvmate.write("knobs/msrs", if on { "1" } else { "0" })?;
        // Without observing nothing is recorded, whatever else is wanted.
        kvmate.write("knobs/observe", if turn == 6 { "0" } else { "1" })?;
        run(&mut vcpu, [0, 0x8b, 0, 10 + turn])?;
        // It reads each MSR from there on once.
        expected += u64::from(on && turn != 6);
        let reads = msrs(&kvmate, &name)?
            .get("0x8b")
            .map_or(0, |line| line.1[0]);
        ensure_eq!(reads, expected, "reads after turn {turn}");
    }
    drop((vcpu, guest));
    kvmate.unload()
}

/// A guest that reads as many MSRs as it can: all are counted, few by name.
fn hostile() -> Result<()> {
    let indices = if storm::slow() { 1 << 12 } else { 1u64 << 20 };
    let kvmate = Kvmate::load("msrs=1")?;
    let (guest, mut vcpu) = chosen::vm(steps::MEMORY, READ_ON)?;
    run(&mut vcpu, [0, NONE, 0, indices])?;
    let found = msrs(&kvmate, &name_of(&guest.fd))?;
    let sum = |number: usize| found.values().map(|line| line.1[number]).sum::<u64>();
    ensure_eq!(
        [sum(0), sum(1), sum(2)],
        [indices, 0, indices],
        "reads, writes and faults"
    );
    ensure_eq!(steps::faults(&guest), indices, "faults that the guest took");
    let other = found.get("other").context("a line for the others")?.1[0];
    ensure!(
        found.len() <= 257 && found.len() > 128 && other == indices - (found.len() as u64 - 1),
        "{} lines, {other} others",
        found.len()
    );
    drop((vcpu, guest));
    kvmate.unload()
}
