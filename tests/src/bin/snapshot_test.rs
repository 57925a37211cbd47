// SPDX-License-Identifier: GPL-2.0
//! `snapshot`: all that is known of a VM by one read, for guests and VMMs that hang where the test knows.

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{kvm_mp_state, KVM_MP_STATE_HALTED};
use kvm_ioctls::{VcpuExit, VcpuFd};
use kvmate_tests::{
    ensure_eq,
    guest::{
        steps::{self, Step},
        userfault::Missing,
        Vm,
    },
    hung::{self, hex, named, running, vm_of, User, Vmm},
    module::{Kvmate, Stop, EVERYTHING},
    oracle::name_of,
    snapshot::Snapshot,
    table::{self, Vcpu},
};
use nix::libc;
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    hung::main(&[
        ("never_run", never_run),
        ("halted", halted),
        ("in_the_kernel", in_the_kernel),
        ("in_user_space", in_user_space),
        ("vmm_stopped", vmm_stopped),
        ("spinning", spinning),
        ("pending", pending),
        ("busy", busy),
        ("many_vcpus", many_vcpus),
        ("after_the_end", after_the_end),
    ])
}

/// The line of its only vCPU.
fn only(snapshot: &Snapshot) -> Result<Vcpu> {
    let lines = table::vcpus(snapshot.part("vcpus")?)?;
    ensure_eq!(lines.len(), 1, "lines of a VM with one vCPU");
    Ok(lines.into_iter().next().expect("one"))
}

/// The first snapshot that is as wanted.
fn until(vm: &str, wanted: impl Fn(&Snapshot, &Vcpu) -> Result<bool>) -> Result<Snapshot> {
    let began = Instant::now();
    loop {
        let snapshot = Snapshot::of(vm)?;
        if wanted(&snapshot, &only(&snapshot)?)? {
            return Ok(snapshot);
        }
        ensure!(
            began.elapsed() < Duration::from_secs(100),
            "still {snapshot:?}"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Tables that say nothing of how long ago something was.
const LASTING: [&str; 8] = [
    "exits",
    "exits_hist",
    "times",
    "msrs",
    "faults",
    "irqs",
    "irqfds",
    "bindings",
];

/// Of a guest that stands still it says what the tables of what was recorded say.
fn as_tables(kvmate: &Kvmate, snapshot: &Snapshot) -> Result<()> {
    ensure_eq!(snapshot.moved, 0, "vCPUs that moved");
    for file in LASTING {
        let text = kvmate.read(&format!("vms/{}/{file}", snapshot.vm))?;
        ensure_eq!(snapshot.part(file)?, text, "[{file}] and the file");
    }
    Ok(())
}

/// Of a VM whose VMM stands still it says what all its files say.
fn as_files(kvmate: &Kvmate, snapshot: &Snapshot) -> Result<()> {
    as_tables(kvmate, snapshot)?;
    let text = kvmate.read(&format!("vms/{}/vcpus", snapshot.vm))?;
    // KVM asks for something whenever the task is switched to (KVM_REQ_STEAL_UPDATE).
    let still = |line: &Vcpu| Vcpu {
        ago: String::new(),
        requests: String::new(),
        ..line.clone()
    };
    let all = |text: &str| Ok::<_, anyhow::Error>(table::vcpus(text)?.iter().map(still).collect());
    let (ours, theirs): (Vec<_>, Vec<_>) = (all(snapshot.part("vcpus")?)?, all(&text)?);
    ensure_eq!(ours, theirs, "[vcpus] and the file");
    Ok(())
}

/// A task is blocked in these functions, among others.
fn blocked_in(snapshot: &Snapshot, states: &str, functions: &[&str]) -> Result<()> {
    let (_, state, frames) = snapshot.task(0)?;
    ensure!(
        states.contains(&state),
        "state {state}, not one of {states}"
    );
    let frames = frames.with_context(|| format!("no stack in state {state}"))?;
    for function in functions {
        let is = |frame: &String| frame.split('+').next() == Some(function);
        ensure!(frames.iter().any(is), "not in {function}: {frames:?}");
    }
    Ok(())
}

fn never_run() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, _vcpu) = vm_of(&[], false, false)?;
    let snapshot = Snapshot::of(&name_of(&vm.fd))?;
    as_files(&kvmate, &snapshot)?;
    ensure_eq!(snapshot.tries, 1, "tries");
    let none = ("-".to_owned(), "-".to_owned(), None);
    ensure_eq!(snapshot.task(0)?, none, "the task");
    ensure_eq!(snapshot.part("exits")?, table::EXITS, "exits");
    kvmate.unload()
}

fn halted() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    let steps = [Step::Cpuid(20), Step::Read(3), Step::Halt(1)];
    let (vm, mut vcpu) = vm_of(&steps, true, false)?;
    let name = name_of(&vm.fd);
    running(&mut vcpu, User::Wait, |task| {
        let snapshot = until(&name, |snapshot, line| {
            Ok(line.state == "halted" && snapshot.task(0)?.2.is_some())
        })?;
        as_files(&kvmate, &snapshot)?;
        ensure_eq!(
            only(&snapshot)?.last_exit,
            named("hlt", "HLT"),
            "the last exit"
        );
        ensure_eq!(snapshot.task(0)?.0, task, "the task");
        blocked_in(
            &snapshot,
            "S",
            &["kvm_vcpu_block", "kvm_vcpu_halt", "kvm_vcpu_ioctl"],
        )?;
        ensure_eq!(
            snapshot.pending(0)?,
            ["halted", "-", "-", "0", "0", "0"],
            "pending"
        );
        // All but the exit that it is in were split.
        ensure_eq!(snapshot.split_and_not()?.1, 1, "exits that were not split");
        let msrs = snapshot.lines("msrs", "msr name reads writes faults last_written")?;
        ensure_eq!(msrs.len(), 1, "MSRs: {msrs:?}");
        ensure_eq!(msrs[0][2], "3", "MSRs read");
        Ok(())
    })?;
    kvmate.unload()
}

/// KVM waits for guest memory that does not come.
fn in_the_kernel() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, mut vcpu) = vm_of(&[Step::Touch(1), Step::Out(1)], false, false)?;
    let name = name_of(&vm.fd);
    let missing = Missing::new(&vm.memory, steps::TOUCHED)?;
    running(&mut vcpu, User::Wait, |task| {
        let at = hex(steps::first(0));
        let snapshot = until(&name, |snapshot, line| {
            let (_, state, frames) = snapshot.task(0)?;
            Ok(line.rip == at && line.state == "kernel" && state != "R" && frames.is_some())
        })?;
        as_files(&kvmate, &snapshot)?;
        let line = only(&snapshot)?;
        ensure_eq!(
            line.last_exit,
            named("npf", "EPT_VIOLATION"),
            "the last exit"
        );
        ensure_eq!(line.task, task, "the task");
        blocked_in(&snapshot, "SD", &["handle_userfault", "kvm_vcpu_ioctl"])?;
        ensure_eq!(snapshot.pending(0)?[0], "runnable", "mp_state");
        missing.provide()
    })?;
    kvmate.unload()
}

/// A VMM that sleeps in user space, for a time that the table `vcpus` bounds on both sides.
fn in_user_space() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let vmm = Vmm::new("out")?;
    let snapshot = until(&vmm.name, |snapshot, line| {
        Ok(line.state == "user" && line.ago != "-" && snapshot.task(0)?.2.is_some())
    })?;
    as_files(&kvmate, &snapshot)?;
    blocked_in(&snapshot, "S", &["hrtimer_nanosleep"])?;
    let ago = || -> Result<u64> {
        let line = table::vcpus(&kvmate.read(&format!("vms/{}/vcpus", vmm.name))?)?;
        line.first().context("a line")?.ago()
    };
    let mut before = only(&snapshot)?.ago()?;
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(20));
        let (from, line, to) = (ago()?, only(&Snapshot::of(&vmm.name)?)?, ago()?);
        let now = line.ago()?;
        ensure!(
            (from..=to).contains(&now),
            "{now} ns ago, not in {from} to {to}"
        );
        ensure!(
            now >= before + 20_000_000,
            "20 ms after {before} ns it is {now}"
        );
        before = now;
        ensure_eq!(
            (line.task, line.rip),
            (vmm.task(), hex(steps::first(0))),
            "where"
        );
    }
    drop(vmm);
    kvmate.unload()
}

/// A VMM that is stopped, wherever its guest is.
fn vmm_stopped() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let at = hex(steps::first(0));
    for (what, reason) in [
        ("out", named("io", "IO_INSTRUCTION")),
        ("spin", named("interrupt", "EXTERNAL_INTERRUPT")),
        ("halt", named("hlt", "HLT")),
    ] {
        let vmm = Vmm::new(what)?;
        until(&vmm.name, |_, line| {
            Ok(line.last_exit == reason && line.rip == at)
        })?;
        vmm.stop()?;
        let snapshot = Snapshot::of(&vmm.name)?;
        as_files(&kvmate, &snapshot).context(what)?;
        ensure_eq!(snapshot.tries, 1, "tries of a VMM that stands still");
        let line = only(&snapshot)?;
        ensure_eq!(
            (line.state.as_str(), line.task),
            ("user", vmm.task()),
            "{what}"
        );
        blocked_in(&snapshot, "T", &["get_signal"]).context(what)?;
    }
    kvmate.unload()
}

/// A guest that spins: only the host's own interrupts end that, for moments.
fn spinning() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    let (vm, mut vcpu) = vm_of(&[Step::Spin], false, true)?;
    let name = name_of(&vm.fd);
    running(&mut vcpu, User::GoOn, |task| {
        let (at, reason) = (
            hex(steps::first(0)),
            named("interrupt", "EXTERNAL_INTERRUPT"),
        );
        until(&name, |_, line| {
            Ok(line.last_exit == reason && line.rip == at)
        })?;
        let mut before = 0;
        for _ in 0..10 {
            let snapshot = Snapshot::of(&name)?;
            let line = only(&snapshot)?;
            ensure_eq!(
                (line.task.as_str(), &line.rip),
                (task, &at),
                "where it spins"
            );
            ensure!(
                ["guest", "kernel"].contains(&line.state.as_str()),
                "{line:?}"
            );
            let (_, state, frames) = snapshot.task(0)?;
            ensure_eq!(
                (state.as_str(), frames),
                ("R", None),
                "who runs has no stack"
            );
            let (split, not) = snapshot.split_and_not()?;
            ensure!(not <= 1 || snapshot.moved > 0, "{not} exits were not split");
            ensure!(split + not >= before, "exits became fewer");
            before = split + not;
        }
        Ok(())
    })?;
    kvmate.unload()
}

fn pending() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, vcpu) = vm_of(&[Step::Out(1)], true, false)?;
    let name = name_of(&vm.fd);
    let pending = || Ok::<_, anyhow::Error>(Snapshot::of(&name)?.pending(0)?.join(" "));
    ensure_eq!(pending()?, "runnable - - 0 0 0", "nothing");
    vcpu.nmi()?;
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_HALTED,
    })?;
    ensure_eq!(
        pending()?,
        "halted - - 1 0 0",
        "an NMI to a vCPU that halts"
    );
    let mut events = vcpu.get_vcpu_events()?;
    events.interrupt.injected = 1;
    events.interrupt.nr = 0x42;
    vcpu.set_vcpu_events(&events)?;
    ensure_eq!(pending()?, "halted 0x42 - 1 0 0", "an interrupt as well");
    events.interrupt.injected = 0;
    events.exception.injected = 1;
    events.exception.nr = 13;
    events.nmi.injected = 1;
    vcpu.set_vcpu_events(&events)?;
    ensure_eq!(
        pending()?,
        "halted - 0xd 2 0 0",
        "an exception instead, and an NMI more"
    );
    if vm.kvm.check_extension(kvm_ioctls::Cap::X86Smm) {
        vcpu.smi()?;
        let requests = only(&Snapshot::of(&name)?)?.requests;
        ensure!(requests.contains("KVM_REQ_SMI"), "an SMI: {requests}");
    }
    drop((vcpu, vm));
    kvmate.unload()
}

/// Guests that exit as fast as they can: what it says is consistent all the same.
fn busy() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    let vm = Vm::new(steps::MEMORY, false)?;
    let mut vcpus = Vec::new();
    for id in 0..2 {
        steps::load(&vm, id, &[Step::Cpuid(50), Step::Read(3)]);
        let vcpu = vm.vcpu(id as u64)?;
        steps::start(&vcpu, id)?;
        vcpus.push(vcpu);
    }
    let (name, stop) = (name_of(&vm.fd), Stop::default());
    let go_on = |vcpu: &mut VcpuFd| -> Result<()> {
        while !stop.asked() {
            steps::run(vcpu, || ())?;
        }
        Ok(())
    };
    thread::scope(|scope| -> Result<()> {
        let mut threads = Vec::new();
        for vcpu in &mut vcpus {
            threads.push(scope.spawn(|| go_on(vcpu)));
        }
        let _stop = stop.on_drop();
        let mut before = 0;
        // On the only CPU nobody moves while somebody reads.
        let mut again = thread::available_parallelism()?.get() == 1;
        let began = Instant::now();
        for number in 0.. {
            if number >= 10 && before > 100 && again {
                break;
            }
            ensure!(
                began.elapsed() < Duration::from_secs(100),
                "{before} exits, taken up again: {again}"
            );
            let snapshot = Snapshot::of(&name)?;
            again |= snapshot.tries > 1;
            let (split, not) = snapshot.split_and_not()?;
            // Of each vCPU the one that it is in; for each reason, if it went on meanwhile.
            let reasons = snapshot.exits()?.len() as u64;
            let most = if snapshot.moved == 0 { 2 } else { 2 * reasons };
            ensure!(not <= most, "{not} exits were not split: {snapshot:?}");
            ensure!(split + not >= before, "exits became fewer");
            before = split + not;
        }
        stop.ask();
        let mut threads = threads.into_iter();
        threads.try_for_each(|t| t.join().expect("a vCPU's thread"))
    })?;
    as_tables(&kvmate, &Snapshot::of(&name)?)?;
    drop((vcpus, vm));
    kvmate.unload()
}

/// Longer than a page; read in pieces it is one snapshot, and from the middle another.
fn many_vcpus() -> Result<()> {
    const COUNT: u32 = 40;
    let kvmate = Kvmate::load("")?;
    let vm = Vm::new(steps::MEMORY, false)?;
    let vcpus: Vec<_> = (0..COUNT.into())
        .map(|id| vm.vcpu(id))
        .collect::<Result<_>>()?;
    let name = name_of(&vm.fd);
    let path = kvmate_tests::seen::vms().join(&name).join("snapshot");
    let mut file = File::open(path)?;
    let mut text = Vec::new();
    let mut piece = [0; 333];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            read => text.extend(&piece[..read]),
        }
    }
    let text = String::from_utf8(text)?;
    ensure!(text.len() > 6000, "{} bytes only", text.len());
    let snapshot = Snapshot::parse(&text)?;
    let lines = table::vcpus(snapshot.part("vcpus")?)?;
    let numbers: Vec<_> = lines.iter().map(|line| line.vcpu).collect();
    ensure_eq!(numbers, (0..COUNT).collect::<Vec<_>>(), "vCPUs");
    file.seek(SeekFrom::Start(0))?;
    let mut again = String::new();
    file.read_to_string(&mut again)?;
    ensure!(
        again != text,
        "no new snapshot after going back to the start"
    );
    Snapshot::parse(&again)?;
    drop((file, vcpus, vm));
    kvmate.unload()
}

/// Of a VM that has ended it says nothing, rather than a part.
fn after_the_end() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, mut vcpu) = vm_of(&[Step::Out(1)], false, false)?;
    match vcpu.run()? {
        VcpuExit::IoOut(..) => {}
        other => bail!("unexpected exit to user space: {other:?}"),
    }
    let name = name_of(&vm.fd);
    let file = File::open(kvmate_tests::seen::vms().join(&name).join("snapshot"))?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0)?;
    drop((vcpu, vm));
    let began = Instant::now();
    loop {
        match file.read_at(&mut byte, 0).map_err(|e| e.raw_os_error()) {
            Err(Some(libc::EIO)) => break,
            Err(other) => bail!("errno {other:?}"),
            Ok(_) => ensure!(began.elapsed() < Duration::from_secs(100), "it goes on"),
        }
    }
    drop(file);
    kvmate.unload()
}
