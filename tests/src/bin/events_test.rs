// SPDX-License-Identifier: GPL-2.0
//! `msrs`, `faults`, `irqs`: what guests known in advance do, to the access.
//!
//! The oracles: the guest's own numbers; the table `exits`, for each page fault that KVM handles is an
//! exit for one; KVM's statistic of injected interrupts.

use anyhow::{ensure, Context, Result};
use kvm_ioctls::{VcpuExit, VcpuFd};
use kvmate_tests::{
    ensure_eq,
    guest::{
        long,
        steps::{self, Step},
        Vm,
    },
    ktap,
    module::Kvmate,
    oracle::name_of,
    seen,
    stats::Stats,
};
use std::{collections::BTreeMap, fs, process::ExitCode, thread};

fn main() -> ExitCode {
    ktap::main(&[
        ("msrs_exact", msrs_exact),
        ("msrs_of_two_vcpus", msrs_of_two_vcpus),
        ("msrs_hostile", msrs_hostile),
        ("faults_exact", faults_exact),
        ("faults_hostile", faults_hostile),
        ("irqs_exact", irqs_exact),
        ("two_threads_on_one_cpu", two_threads_on_one_cpu),
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
/// `mov [0], al; out DONE`
const TOUCH: &[u8] = &[0xa2, 0x00, 0x00, 0xe6, steps::DONE];

/// A VM with a vCPU whose code this is, and handlers for its faults.
fn vm(size: usize, code: &[u8]) -> Result<(Vm, VcpuFd)> {
    // Each page that the guest touches is to be one fault.
    // SAFETY: Takes numbers only.
    let done = unsafe { nix::libc::prctl(nix::libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    ensure_eq!(done, 0, "PR_SET_THP_DISABLE");
    let vm = Vm::new(size, false)?;
    steps::load(&vm, 0, &[]);
    vm.memory.write(steps::code(0), code);
    let vcpu = vm.vcpu(0)?;
    Ok((vm, vcpu))
}

/// Run it from the start with these registers, until it is done. Gives how often it went to memory
/// that is not there.
fn run(vcpu: &mut VcpuFd, base: u64, [rax, rcx, rdx, rsi]: [u64; 4]) -> Result<u64> {
    steps::start(vcpu, 0)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.ds.base = base;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rax, regs.rcx, regs.rdx, regs.rsi) = (rax, rcx, rdx, rsi);
    vcpu.set_regs(&regs)?;
    let mut nowhere = 0;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, _)) if port == u16::from(steps::DONE) => return Ok(nowhere),
            Ok(VcpuExit::MmioWrite(..)) => nowhere += 1,
            Ok(other) => anyhow::bail!("unexpected exit to user space: {other:?}"),
            Err(error) if error.errno() == nix::libc::EINTR => {}
            Err(error) => return Err(error).context("KVM_RUN"),
        }
    }
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

fn msrs_exact() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (guest, mut vcpu) = vm(steps::MEMORY, WRITE)?;
    let name = name_of(&guest.fd);
    for value in [0x1234, 0x5_0000_1234u64] {
        run(&mut vcpu, 0, [value, 0x79, value >> 32, 0])?;
    }
    run(&mut vcpu, 0, [7, 0x0bad_0000, 0, 0])?;
    guest.memory.write(steps::code(0), READ_ON);
    // 0x8b, and two that there are not.
    run(&mut vcpu, 0, [0, 0x8b, 0, 1])?;
    run(&mut vcpu, 0, [0, 0x0bad_0000, 0, 2])?;
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

fn msrs_of_two_vcpus() -> Result<()> {
    let kvmate = Kvmate::load("")?;
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

/// A guest that reads as many MSRs as it can: all are counted, few by name.
fn msrs_hostile() -> Result<()> {
    const INDICES: u64 = 1 << 13;
    let kvmate = Kvmate::load("")?;
    let (guest, mut vcpu) = vm(steps::MEMORY, READ_ON)?;
    run(&mut vcpu, 0, [0, 0x0bad_0000, 0, INDICES])?;
    let found = msrs(&kvmate, &name_of(&guest.fd))?;
    let sum = |number: usize| found.values().map(|line| line.1[number]).sum::<u64>();
    ensure_eq!(
        [sum(0), sum(1), sum(2)],
        [INDICES, 0, INDICES],
        "reads, writes and faults"
    );
    let other = found.get("other").context("a line for the others")?.1[0];
    ensure!(
        found.len() <= 257 && found.len() > 128 && other == INDICES - (found.len() as u64 - 1),
        "{} lines, {other} others",
        found.len()
    );
    drop((vcpu, guest));
    kvmate.unload()
}

/// A table `faults`: kind and which, count and error.
fn faults(kvmate: &Kvmate, vm: &str) -> Result<Vec<(String, String, u64, u64)>> {
    let text = kvmate.read(&format!("vms/{vm}/faults"))?;
    let mut lines = text.lines();
    ensure_eq!(lines.next(), Some("kind which count error"), "columns");
    lines
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            let [kind, which, count, error] = words[..] else {
                anyhow::bail!("not four columns: {line}");
            };
            Ok((kind.into(), which.into(), count.parse()?, error.parse()?))
        })
        .collect()
}

/// How many there are of a kind.
fn sum(lines: &[(String, String, u64, u64)], kind: &str) -> u64 {
    let of_kind = lines.iter().filter(|line| line.0 == kind);
    of_kind.map(|line| line.2).sum()
}

/// Exits for page faults in memory that the guest thinks is physical.
fn exits_for_faults(vm: &str) -> Result<u64> {
    let exits = seen::exits_of(vm)?;
    Ok(exits.of("npf") + exits.of("EPT_VIOLATION"))
}

fn faults_exact() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (guest, mut vcpu) = vm(8 << 20, TOUCH)?;
    guest.alias(5, 1 << 30, 4 << 20, 4 << 20)?;
    let name = name_of(&guest.fd);
    run(&mut vcpu, 0, [0; 4])?;
    let before = faults(&kvmate, &name)?;
    // Ten pages of slot 0, twenty of slot 5, three where there is nothing.
    let pages = |from: u64, count: u64| (0..count).map(move |page| from + page * 0x1000);
    let mut nowhere = 0;
    for address in pages(0x20_0000, 10)
        .chain(pages((1 << 30) + 0x20_0000, 20))
        .chain(pages(3 << 30, 3))
    {
        nowhere += run(&mut vcpu, address, [0; 4])?;
    }
    ensure_eq!(nowhere, 3, "writes to where nothing is");
    let after = faults(&kvmate, &name)?;
    let all = exits_for_faults(&name)?;
    for kind in ["class", "memslot", "range"] {
        ensure_eq!(sum(&after, kind), all, "faults by {kind}, against exits");
    }
    ensure!(after.iter().all(|line| line.3 == 0), "errors: {after:?}");
    let new = |kind: &str, which: &str| {
        let of = |lines: &[(String, String, u64, u64)]| {
            let line = lines.iter().find(|line| line.0 == kind && line.1 == which);
            line.map_or(0, |line| line.2)
        };
        of(&after) - of(&before)
    };
    // A fault that KVM could not resolve at once comes again.
    for (kind, which, least) in [
        ("memslot", "0:0", 10),
        ("memslot", "0:5", 20),
        ("memslot", "none", 3),
        ("range", "0x200000", 10),
        ("range", "0x40200000", 20),
        ("range", "0xc0000000", 3),
    ] {
        let found = new(kind, which);
        ensure!(
            (least..=least + 3).contains(&found),
            "{kind} {which}: {found} instead of {least}: {after:?}"
        );
    }
    let writes: u64 = after
        .iter()
        .filter(|line| line.0 == "class" && line.1.split(',').any(|part| part == "write"))
        .map(|line| line.2)
        .sum();
    ensure!(writes >= 33, "{writes} writes: {after:?}");
    drop((vcpu, guest));
    kvmate.unload()
}

/// A guest that touches as many ranges as it can, and one of them more often.
fn faults_hostile() -> Result<()> {
    // As many as a real-mode guest can reach behind the first two gigabytes.
    const RANGES: u64 = 1 << 10;
    let kvmate = Kvmate::load("")?;
    let (guest, mut vcpu) = vm(2 << 20, TOUCH)?;
    let name = name_of(&guest.fd);
    for range in 0..RANGES {
        run(&mut vcpu, (1 << 31) + (range << 21), [0; 4])?;
        if range % 4 == 0 {
            // Another page of it each time.
            run(&mut vcpu, (1 << 30) + range / 4 * 0x1000, [0; 4])?;
        }
    }
    let lines = faults(&kvmate, &name)?;
    let all = exits_for_faults(&name)?;
    ensure!(all >= RANGES, "{all} faults only");
    ensure_eq!(sum(&lines, "class"), all, "faults by class");
    ensure_eq!(sum(&lines, "memslot"), all, "faults by memslot");
    let ranges: Vec<_> = lines.iter().filter(|line| line.0 == "range").collect();
    ensure_eq!(ranges.len(), 32, "ranges shown");
    for (_, which, count, error) in &ranges {
        ensure!(
            *error <= all / 64 && error <= count,
            "{which}: {count} with an error of {error}, of {all}"
        );
    }
    let hot = ranges.first().context("a range")?;
    let bounds = hot.2 - hot.3..=hot.2;
    ensure!(bounds.contains(&(RANGES / 4)), "the hottest range: {hot:?}");
    ensure_eq!(hot.1, "0x40000000", "the hottest range");
    drop((vcpu, guest));
    kvmate.unload()
}

fn irqs_exact() -> Result<()> {
    const COUNT: u64 = 20;
    let kvmate = Kvmate::load("")?;
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    let stats = Stats::of(&vcpu)?;
    long::start(&vcpu, 0, 0x40, 0)?;
    long::run(&mut vcpu)?;
    for number in 1..=COUNT {
        for data in [0x40, 0x51] {
            let msi = kvm_bindings::kvm_msi {
                address_lo: 0xfee0_0000,
                data,
                ..Default::default()
            };
            vm.fd.signal_msi(msi)?;
        }
        // The higher one comes first.
        long::start(&vcpu, 0, 0x40, number)?;
        long::run(&mut vcpu)?;
    }
    let seen = [0x40, 0x51].map(|vector| long::seen(&vm.memory, vector));
    ensure_eq!(seen, [COUNT; 2], "interrupts that the guest saw");
    let table = kvmate.read(&format!("vms/{}/irqs", name_of(&vm.fd)))?;
    let apicv = [
        "kvm_intel/parameters/enable_apicv",
        "kvm_amd/parameters/avic",
    ]
    .iter()
    .any(|path| {
        fs::read_to_string(format!("/sys/module/{path}")).is_ok_and(|y| y.starts_with('Y'))
    });
    if apicv && table == "vector injected eoi\nall - -" {
        // Hardware did it.
        return kvmate.unload();
    }
    let expected = format!("vector injected eoi\n0x40 {COUNT} {COUNT}\n0x51 {COUNT} {COUNT}");
    ensure_eq!(table, expected, "irqs");
    // KVM counts once more what it has to put in again.
    let counted = stats.get("irq_injections")?;
    ensure!(counted >= 2 * COUNT, "KVM counted {counted} injections");
    drop(vcpu);
    drop(vm);
    kvmate.unload()
}

/// What happens to a vCPU is told of that vCPU, also where another one keeps coming in between.
fn two_threads_on_one_cpu() -> Result<()> {
    const TURNS: u64 = 20;
    let kvmate = Kvmate::load("")?;
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
