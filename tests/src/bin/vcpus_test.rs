// SPDX-License-Identifier: GPL-2.0
//! The table `vcpus`: what each vCPU is doing, for guests of which the test knows just that.

use anyhow::{ensure, Result};
use kvmate_tests::{
    ensure_eq,
    guest::{
        steps::{self, Step},
        userfault::Missing,
        Vm,
    },
    hung::{self, hex, named, running, vm_of, User, Vmm},
    ktap,
    module::Kvmate,
    oracle::name_of,
    table::{self, Vcpu},
    tsc::{self, Rate},
};
use nix::libc;
use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    hung::main(&[
        ("never_run", never_run),
        ("in_user_space", in_user_space),
        ("in_the_guest", in_the_guest),
        ("halted", halted),
        ("in_the_kernel", in_the_kernel),
        ("each_by_itself", each_by_itself),
        ("requests", requests),
        ("dead", dead),
        ("vmm_stopped", vmm_stopped),
        ("halted_before_load", halted_before_load),
    ])
}

fn read(kvmate: &Kvmate, vm: &str) -> Result<Vec<Vcpu>> {
    table::vcpus(&kvmate.read(&format!("vms/{vm}/vcpus"))?)
}

/// The line of a VM's only vCPU.
fn only(kvmate: &Kvmate, vm: &str) -> Result<Vcpu> {
    let lines = read(kvmate, vm)?;
    ensure_eq!(lines.len(), 1, "lines of a VM with one vCPU");
    Ok(lines.into_iter().next().expect("one"))
}

/// The first line that is as wanted.
fn until(kvmate: &Kvmate, vm: &str, wanted: impl Fn(&Vcpu) -> bool) -> Result<Vcpu> {
    let began = Instant::now();
    loop {
        let line = only(kvmate, vm)?;
        if wanted(&line) {
            return Ok(line);
        }
        ensure!(began.elapsed() < Duration::from_secs(100), "still {line:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn until_state(kvmate: &Kvmate, vm: &str, state: &str) -> Result<Vcpu> {
    until(kvmate, vm, |line| line.state == state)
}

/// The last exit: why, and where.
fn last(line: &Vcpu) -> (&str, &str) {
    (&line.last_exit, &line.rip)
}

/// What is asked of a vCPU, but for what KVM asks of it whenever a CPU takes it up, or a page is moved.
fn asked(line: &Vcpu) -> Vec<&str> {
    const TAKEN_UP: [&str; 6] = [
        "-",
        "KVM_REQ_TLB_FLUSH",
        "KVM_REQ_STEAL_UPDATE",
        "KVM_REQ_MIGRATE_TIMER",
        "KVM_REQ_CLOCK_UPDATE",
        "KVM_REQ_GLOBAL_CLOCK_UPDATE",
    ];
    let all = line.requests.split(',');
    all.filter(|request| !TAKEN_UP.contains(request)).collect()
}

const NOTHING: [&str; 0] = [];

fn never_run() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, _vcpu) = vm_of(&[], false, false)?;
    let line = only(&kvmate, &name_of(&vm.fd))?;
    let columns = [
        &line.task,
        &line.state,
        &line.last_exit,
        &line.ago,
        &line.rip,
        &line.vm,
    ];
    ensure_eq!(
        columns,
        ["-", "user", "-", "-", "-", "-"],
        "all columns but requests"
    );
    ensure_eq!(line.vcpu, 0, "its number");
    kvmate.unload()
}

fn in_user_space() -> Result<()> {
    let rate = Rate::of_kernel()?;
    let kvmate = Kvmate::load("")?;
    let (vm, mut vcpu) = vm_of(&[Step::Out(1)], false, false)?;
    let name = name_of(&vm.fd);
    let begun = tsc::now();
    running(&mut vcpu, User::Wait, |task| {
        let io = named("io", "IO_INSTRUCTION");
        until(&kvmate, &name, |line| {
            last(line).0 == io && line.state == "user"
        })?;
        let returned = tsc::now();
        let mut before = 0;
        for _ in 0..5 {
            let from = tsc::now();
            let line = only(&kvmate, &name)?;
            let to = tsc::now();
            ensure_eq!(line.task, task, "the task");
            ensure_eq!(
                (line.state.as_str(), asked(&line)),
                ("user", vec![]),
                "{line:?}"
            );
            ensure_eq!(
                last(&line),
                (io, hex(steps::first(0)).as_str()),
                "the last exit"
            );
            let ago = line.ago()?;
            let (least, most) = (rate.ns(from - returned), rate.ns(to - begun));
            ensure!(
                (least..=most).contains(&ago),
                "{ago} ns ago: not in {least} to {most}"
            );
            ensure!(ago > before, "{ago} ns ago, and before that {before}");
            before = ago;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })?;
    kvmate.unload()
}

/// A guest that spins: only the host's own interrupts end that, for moments.
fn in_the_guest() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, mut vcpu) = vm_of(&[Step::Spin], false, true)?;
    let name = name_of(&vm.fd);
    // On the only CPU, whoever looks has preempted the guest.
    let state = match thread::available_parallelism()?.get() {
        1 => "kernel",
        _ => "guest",
    };
    running(&mut vcpu, User::GoOn, |task| {
        // The first interrupts may come before it spins.
        let at = hex(steps::first(0));
        let spins = (named("interrupt", "EXTERNAL_INTERRUPT"), at.as_str());
        let line = until(&kvmate, &name, |l| l.state == state && last(l) == spins)?;
        ensure_eq!(line.task, task, "the task");
        // It goes on spinning, and the table goes on answering.
        for _ in 0..50 {
            let line = only(&kvmate, &name)?;
            ensure_eq!(last(&line), spins, "the last exit");
            let state = line.state.as_str();
            ensure!(
                ["guest", "kernel"].contains(&state),
                "a spinning guest: {line:?}"
            );
        }
        Ok(())
    })?;
    kvmate.unload()
}

fn is_halted(line: &Vcpu) -> Result<()> {
    let hlt = named("hlt", "HLT");
    ensure_eq!(
        last(line),
        (hlt, hex(steps::first(0)).as_str()),
        "the last exit"
    );
    ensure_eq!(asked(line), NOTHING, "requests");
    Ok(())
}

fn halted() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, mut vcpu) = vm_of(&[Step::Halt(1)], true, false)?;
    let name = name_of(&vm.fd);
    running(&mut vcpu, User::Wait, |task| {
        let line = until_state(&kvmate, &name, "halted")?;
        is_halted(&line)?;
        ensure_eq!(line.task, task, "the task");
        thread::sleep(Duration::from_millis(20));
        let later = until_state(&kvmate, &name, "halted")?;
        is_halted(&later)?;
        ensure!(
            later.ago()? >= line.ago()? + 20_000_000,
            "20 ms later: {line:?}, {later:?}"
        );
        Ok(())
    })?;
    // Out of KVM_RUN it is not halted any more.
    ensure_eq!(
        only(&kvmate, &name)?.state,
        "user",
        "the state after KVM_RUN"
    );
    kvmate.unload()
}

/// KVM waits for guest memory that does not come.
fn in_the_kernel() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, mut vcpu) = vm_of(&[Step::Touch(1), Step::Out(1)], false, false)?;
    let name = name_of(&vm.fd);
    let missing = Missing::new(&vm.memory, steps::TOUCHED)?;
    running(&mut vcpu, User::Wait, |task| {
        let (fault, at) = (named("npf", "EPT_VIOLATION"), hex(steps::first(0)));
        let wanted = (fault, at.as_str());
        let first = until(&kvmate, &name, |l| last(l) == wanted)?;
        let mut ago = first.ago()?;
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(2));
            let line = only(&kvmate, &name)?;
            ensure_eq!(
                (line.state.as_str(), line.task.as_str()),
                ("kernel", task),
                "{line:?}"
            );
            ensure_eq!(last(&line), wanted, "the last exit");
            let now = line.ago()?;
            ensure!(now >= ago + 2_000_000, "2 ms after {ago} it is {now}");
            ago = now;
        }
        missing.provide()?;
        let io = named("io", "IO_INSTRUCTION");
        until(&kvmate, &name, |line| {
            last(line).0 == io && line.state == "user"
        })?;
        Ok(())
    })?;
    kvmate.unload()
}

/// Two vCPUs of one VM: one halts, one has never run, and their numbers are not 0 and 1.
fn each_by_itself() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let vm = Vm::new(steps::MEMORY, true)?;
    steps::load(&vm, 0, &[Step::Halt(1)]);
    let mut halting = vm.vcpu(5)?;
    let _other = vm.vcpu(2)?;
    steps::start(&halting, 0)?;
    // Only vCPU 0 of an in-kernel irqchip is runnable from its making on.
    halting.set_mp_state(kvm_bindings::kvm_mp_state {
        mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE,
    })?;
    let name = name_of(&vm.fd);
    running(&mut halting, User::Wait, |task| {
        let began = Instant::now();
        loop {
            let lines = read(&kvmate, &name)?;
            let numbers: Vec<_> = lines.iter().map(|line| line.vcpu).collect();
            ensure_eq!(numbers, [5, 2], "the vCPUs, in the order they were made");
            ensure_eq!(
                (lines[1].task.as_str(), lines[1].state.as_str()),
                ("-", "user"),
                "vCPU 2"
            );
            ensure_eq!(last(&lines[1]), ("-", "-"), "vCPU 2's last exit");
            if lines[0].state == "halted" {
                ensure_eq!(lines[0].task, task, "vCPU 5's task");
                return is_halted(&lines[0]);
            }
            ensure!(
                began.elapsed() < Duration::from_secs(100),
                "still {lines:?}"
            );
        }
    })?;
    kvmate.unload()
}

fn requests() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, mut vcpu) = vm_of(&[Step::Out(1)], false, false)?;
    let name = name_of(&vm.fd);
    steps::run(&mut vcpu, || ())?;
    let asked = || Ok::<_, anyhow::Error>(asked(&only(&kvmate, &name)?).join(","));
    ensure_eq!(asked()?, "", "requests of a vCPU that has run");
    vcpu.nmi()?;
    ensure_eq!(asked()?, "KVM_REQ_NMI", "requests after KVM_NMI");
    vcpu.set_regs(&vcpu.get_regs()?)?;
    ensure_eq!(
        asked()?,
        "KVM_REQ_EVENT,KVM_REQ_NMI",
        "requests after KVM_SET_REGS"
    );
    steps::run(&mut vcpu, || ())?;
    ensure_eq!(asked()?, "", "requests when it has run again");
    kvmate.unload()
}

/// A VM that KVM has given up: an SMI comes and there is no memory for it to save the state in.
fn dead() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, mut vcpu) = vm_of(&[Step::Out(1)], false, false)?;
    if !vm.kvm.check_extension(kvm_ioctls::Cap::X86Smm) {
        return ktap::skip("KVM has no SMM");
    }
    let name = name_of(&vm.fd);
    steps::run(&mut vcpu, || ())?;
    ensure_eq!(only(&kvmate, &name)?.vm, "-", "the VM before");
    vcpu.smi()?;
    let line = only(&kvmate, &name)?;
    ensure_eq!(
        (asked(&line), line.vm.as_str()),
        (vec!["KVM_REQ_SMI"], "-"),
        "{line:?}"
    );
    let error = vcpu.run().map(|_| ()).err().map(|error| error.errno());
    ensure_eq!(error, Some(libc::EIO), "KVM_RUN of a dead VM");
    let line = only(&kvmate, &name)?;
    ensure_eq!(line.vm, "dead", "the VM after");
    ensure!(asked(&line).contains(&"KVM_REQ_VM_DEAD"), "{line:?}");
    kvmate.unload()
}

/// A VMM that is stopped, wherever its guest is, and the table answers.
fn vmm_stopped() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let at = hex(steps::first(0));
    for (what, reason) in [
        ("out", named("io", "IO_INSTRUCTION")),
        ("spin", named("interrupt", "EXTERNAL_INTERRUPT")),
        ("halt", named("hlt", "HLT")),
    ] {
        let vmm = Vmm::new(what)?;
        let wanted = (reason, at.as_str());
        until(&kvmate, &vmm.name, |line| last(line) == wanted)?;
        vmm.stop()?;
        let line = only(&kvmate, &vmm.name)?;
        let state = (line.state.as_str(), line.task.as_str());
        ensure_eq!(
            state,
            ("user", vmm.task().as_str()),
            "{what}: a stopped VMM"
        );
        ensure_eq!(last(&line), wanted, "{what}: the last exit");
        thread::sleep(Duration::from_millis(20));
        let later = only(&kvmate, &vmm.name)?;
        ensure!(
            later.ago()? >= line.ago()? + 20_000_000,
            "20 ms later: {line:?}, {later:?}"
        );
        let exits = format!("vms/{}/exits", vmm.name);
        let exits = table::exits(&kvmate.read(&exits)?)?;
        ensure!(
            exits.iter().any(|row| row.reason == reason),
            "{what}: exits {exits:?}"
        );
    }
    kvmate.unload()
}

/// A VM that was made, ran and halted before kvmate came; it makes no exit that would tell of it.
fn halted_before_load() -> Result<()> {
    let vmm = Vmm::new("halt")?;
    let idle = Vmm::new("out")?;
    // Asleep: in the kernel for the halt, or after the write.
    for vmm in [&vmm, &idle] {
        vmm.until('S')?;
    }
    let kvmate = Kvmate::load("")?;
    for (vmm, state) in [(&vmm, "halted"), (&idle, "user")] {
        let line = only(&kvmate, &vmm.name)?;
        let found = [
            &line.state,
            &line.task,
            &line.last_exit,
            &line.ago,
            &line.rip,
        ];
        ensure_eq!(
            found,
            [state, vmm.task().as_str(), "-", "-", "-"],
            "found at load"
        );
        let exits = kvmate.read(&format!("vms/{}/vcpu0/exits", vmm.name))?;
        ensure_eq!(exits, table::EXITS, "exits since load");
    }
    ensure_eq!(kvmate.exits()?, 0, "exits since load");
    kvmate.unload()
}
