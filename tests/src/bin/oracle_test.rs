// SPDX-License-Identifier: GPL-2.0
//! The tables `exits` and `ended` against everything that knows better: what the guest does, KVM's
//! statistic `exits`, and the trace events `kvm_exit` and `kvm_entry` of the same run. Every count is
//! exact, for every reason there is; every time is between two that were taken around kvmate's own
//! (see [`kvmate_tests::oracle`]).

use anyhow::{ensure, Context, Result};
use kvm_bindings::kvm_msi;
use kvm_ioctls::{VcpuExit, VcpuFd};
use kvmate_tests::{
    affinity::Affinity,
    ensure_eq,
    guest::{
        long,
        steps::{self, Step},
        Vm,
    },
    ktap,
    module::{is_loaded, Stop},
    oracle::{self, exits, name_of, of_vcpu, of_vm, reasons, sum, Event, Oracle, Reasons},
    stats::Stats,
    storm,
    table::{self, Row},
    trace::What,
    tsc,
};
use nix::unistd::gettid;
use std::{
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    let verdict = ktap::main(&[
        ("mixture_exact", mixture_exact),
        ("first_and_last_exit", first_and_last_exit),
        ("halts_in_kernel", halts_in_kernel),
        ("two_vcpus", two_vcpus),
        ("two_vms", two_vms),
        ("vm_older_than_the_module", vm_older_than_the_module),
        ("vcpu_goes_from_cpu_to_cpu", vcpu_goes_from_cpu_to_cpu),
        ("vcpus_take_turns_on_a_cpu", vcpus_take_turns_on_a_cpu),
        ("spread_times", spread_times),
        ("failed_entry_has_its_name", failed_entry_has_its_name),
        ("reset", reset),
        ("reset_while_running", reset_while_running),
        (
            "unobserved_exits_leave_no_time",
            unobserved_exits_leave_no_time,
        ),
    ]);
    Oracle::clean_up();
    verdict
}

/// So many, or fewer where an exit takes long.
fn some(count: u32) -> u32 {
    if Path::new("/sys/kernel/debug/kmemleak").exists() {
        count.div_ceil(5)
    } else if vmx() {
        count.div_ceil(2)
    } else {
        count
    }
}

fn vmx() -> bool {
    is_loaded("kvm_intel")
}

/// A vCPU, and what it was made with.
struct Guest {
    vcpu: VcpuFd,
    stats: Stats,
}

impl Guest {
    fn new(vm: &Vm, id: usize, what: &[Step]) -> Result<Self> {
        steps::load(vm, id, what);
        let vcpu = vm.vcpu(id as u64)?;
        steps::start(&vcpu, id)?;
        let stats = Stats::of(&vcpu)?;
        Ok(Self { vcpu, stats })
    }

    fn run(&mut self) -> Result<()> {
        steps::run(&mut self.vcpu, || ())
    }

    fn counted(&self) -> Result<u64> {
        self.stats.get("exits")
    }
}

/// A VM without an irqchip, whose vCPUs go through these steps.
fn vm_of(programs: &[&[Step]]) -> Result<(Vm, Vec<Guest>)> {
    let vm = Vm::new(steps::MEMORY, false)?;
    let guests = programs.iter().enumerate();
    let guests = guests.map(|(id, steps)| Guest::new(&vm, id, steps));
    let guests = guests.collect::<Result<_>>()?;
    Ok((vm, guests))
}

/// Each guest `rounds` times through its steps, on a thread of its own; gives the threads' numbers.
fn run_together(guests: &mut [&mut Guest], rounds: u32) -> Result<Vec<u32>> {
    thread::scope(|scope| {
        let threads: Vec<_> = guests
            .iter_mut()
            .map(|guest| {
                scope.spawn(move || -> Result<u32> {
                    for _ in 0..rounds {
                        guest.run()?;
                    }
                    Ok(gettid().as_raw() as u32)
                })
            })
            .collect();
        let results = threads
            .into_iter()
            .map(|t| t.join().expect("a vCPU's thread"));
        results.collect()
    })
}

fn of_thread(events: &[Event], thread: u32) -> impl Iterator<Item = &Event> {
    events.iter().filter(move |event| event.thread == thread)
}

fn count_of(rows: &[Row], name: &str) -> u64 {
    let row = rows.iter().find(|row| row.reason == name);
    row.map_or(0, |row| row.count)
}

/// A table says just what the guest is known to have done in `rounds` rounds.
fn as_known(rows: &[Row], what: &[Step], rounds: u64) -> Result<()> {
    let known = steps::known(what);
    let expected = if vmx() {
        vec![
            ("IO_INSTRUCTION", known.ports),
            ("CPUID", known.cpuids),
            ("HLT", known.halts),
            ("MSR_READ", known.reads),
            ("MSR_WRITE", known.writes),
        ]
    } else {
        vec![
            ("io", known.ports),
            ("cpuid", known.cpuids),
            ("hlt", known.halts),
            ("msr", known.reads + known.writes),
        ]
    };
    for (name, count) in expected {
        ensure_eq!(
            count_of(rows, name),
            count * rounds,
            "{name} by the guest's own count"
        );
    }
    Ok(())
}

fn counts(rows: &[Row]) -> u64 {
    rows.iter().map(|row| row.count).sum()
}

fn mixture() -> Vec<Step> {
    vec![
        Step::Out(some(100)),
        Step::Cpuid(some(150)),
        Step::Read(some(30)),
        Step::ReadNone(some(20)),
        Step::Halt(some(10)),
        Step::WriteNone(some(25)),
        Step::Write(some(40)),
        Step::In(some(15)),
    ]
}

fn mixture_exact() -> Result<()> {
    let oracle = Oracle::begin()?;
    let what = mixture();
    let (vm, mut guests) = vm_of(&[&what])?;
    for _ in 0..2 {
        guests[0].run()?;
    }
    ensure_eq!(
        steps::faults(&vm),
        2 * steps::known(&what).faults,
        "faults the guest took"
    );
    let events = oracle.events()?;
    let rows = oracle.compare(&of_vcpu(&name_of(&vm.fd), 0), &reasons(&events)?)?;
    as_known(&rows, &what, 2)?;
    ensure_eq!(
        counts(&rows),
        guests[0].counted()?,
        "the table's sum against KVM's statistic"
    );
    ensure_eq!(
        oracle.kvmate().exits()?,
        exits(&events),
        "exits against the trace's"
    );
    oracle.end()
}

/// One exit that counts and has no time, because the guest never goes on.
fn first_and_last_exit() -> Result<()> {
    let oracle = Oracle::begin()?;
    let (vm, mut guests) = vm_of(&[&[]])?;
    let table = of_vcpu(&name_of(&vm.fd), 0);
    ensure_eq!(
        oracle.kvmate().read(&table)?,
        table::EXITS,
        "the table before any exit"
    );
    guests[0].run()?;
    let rows = oracle.compare(&table, &reasons(&oracle.events()?)?)?;
    let name = if vmx() { "IO_INSTRUCTION" } else { "io" };
    let last = rows.last().context("a row")?;
    let times = [last.total, last.average, last.max];
    ensure_eq!(
        (last.reason.as_str(), last.count),
        (name, 1),
        "the last exit"
    );
    ensure_eq!((times, last.percentiles), ([0; 3], [0; 3]), "its times");
    // With an entry after it, it has.
    guests[0].run()?;
    let rows = oracle.compare(&table, &reasons(&oracle.events()?)?)?;
    let row = rows
        .iter()
        .find(|row| row.reason == name)
        .context("a row")?;
    ensure!(row.count == 2 && row.total > 0, "no time: {row:?}");
    oracle.end()
}

/// HLTs that KVM handles itself: each waits for the interrupt that is sent when it does.
fn halts_in_kernel() -> Result<()> {
    const VECTOR: u8 = 0x40;
    let halts = u64::from(some(30));
    let oracle = Oracle::begin()?;
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    let stats = Stats::of(&vcpu)?;
    long::start(&vcpu, 0, VECTOR, halts)?;
    thread::scope(|scope| -> Result<()> {
        let guest = scope.spawn(|| long::run(&mut vcpu));
        let send = |number| -> Result<()> {
            // KVM says so itself.
            wait("the guest halts", || {
                Ok(guest.is_finished() || stats.get("blocking")? == 1)
            })?;
            vm.fd.signal_msi(kvm_msi {
                address_lo: 0xfee0_0000,
                data: VECTOR.into(),
                ..Default::default()
            })?;
            wait("the guest takes the interrupt", || {
                Ok(guest.is_finished() || long::seen(&vm.memory, VECTOR) == number)
            })
        };
        let sent = (1..=halts).try_for_each(send);
        if sent.is_err() && !guest.is_finished() {
            // It would wait for ever for the rest.
            eprintln!("# {} of {halts} interrupts", long::seen(&vm.memory, VECTOR));
            std::process::exit(1);
        }
        guest.join().expect("the vCPU's thread").and(sent)
    })?;
    let rows = oracle.compare(&of_vcpu(&name_of(&vm.fd), 0), &reasons(&oracle.events()?)?)?;
    let name = if vmx() { "HLT" } else { "hlt" };
    ensure_eq!(count_of(&rows, name), halts, "halts");
    ensure_eq!(
        counts(&rows),
        stats.get("exits")?,
        "the table's sum against KVM's statistic"
    );
    oracle.end()
}

/// Wait for what is sure to come.
fn wait(what: &str, come: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !come()? {
        ensure!(
            began.elapsed() < Duration::from_secs(100),
            "waiting in vain: {what}"
        );
        thread::yield_now();
    }
    Ok(())
}

/// The tables of a VM's vCPUs, and the VM's own, which is their sum. Gives how many exits.
fn compare_vm(oracle: &Oracle, vm: &str, of_vcpus: &[Reasons]) -> Result<u64> {
    let mut counted = 0;
    let mut totals = 0;
    for (id, expected) in of_vcpus.iter().enumerate() {
        let rows = oracle.compare(&of_vcpu(vm, id as u64), expected)?;
        counted += counts(&rows);
        totals += rows.iter().map(|row| row.total).sum::<u64>();
    }
    let rows = oracle.compare(&of_vm(vm), &sum(of_vcpus.iter().cloned()))?;
    ensure_eq!(counts(&rows), counted, "the VM's exits against its vCPUs'");
    let total: u64 = rows.iter().map(|row| row.total).sum();
    // Each row is rounded down to a nanosecond.
    let rounding = (rows.len() * (1 + of_vcpus.len())) as u64;
    ensure!(
        total.abs_diff(totals) <= rounding,
        "total {total} against {totals}"
    );
    Ok(counted)
}

fn two_vcpus() -> Result<()> {
    let oracle = Oracle::begin()?;
    let what: [&[Step]; 2] = [
        &[Step::Out(some(80)), Step::ReadNone(some(20))],
        &[
            Step::Cpuid(some(120)),
            Step::Halt(some(15)),
            Step::Write(some(7)),
        ],
    ];
    let (vm, mut guests) = vm_of(&what)?;
    let threads = run_together(&mut guests.iter_mut().collect::<Vec<_>>(), 2)?;
    let events = oracle.events()?;
    let parts = threads
        .iter()
        .map(|&thread| reasons(of_thread(&events, thread)));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let name = name_of(&vm.fd);
    let all = compare_vm(&oracle, &name, &parts)?;
    for (id, what) in what.iter().enumerate() {
        let rows = table::exits(&oracle.kvmate().read(&of_vcpu(&name, id as u64))?)?;
        as_known(&rows, what, 2)?;
        ensure_eq!(
            counts(&rows),
            guests[id].counted()?,
            "vCPU {id} against KVM's statistic"
        );
    }
    ensure_eq!(oracle.kvmate().exits()?, all, "exits against the VM's");
    ensure_eq!(exits(&events), all, "the trace's exits against the VM's");
    oracle.end()
}

fn two_vms() -> Result<()> {
    let oracle = Oracle::begin()?;
    let what: [&[Step]; 2] = [
        &[Step::Out(some(60)), Step::Cpuid(some(10))],
        &[Step::Cpuid(some(90)), Step::WriteNone(some(12))],
    ];
    let mut vms = [vm_of(&what[..1])?, vm_of(&what[1..])?];
    let names = [name_of(&vms[0].0.fd), name_of(&vms[1].0.fd)];
    let [(_, first), (_, second)] = &mut vms;
    let threads = run_together(&mut [&mut first[0], &mut second[0]], 2)?;
    let events = oracle.events()?;
    let mut all = 0;
    let mut tables = Vec::new();
    for (name, (&thread, what)) in names.iter().zip(threads.iter().zip(what)) {
        all += compare_vm(&oracle, name, &[reasons(of_thread(&events, thread))?])?;
        let rows = table::exits(&oracle.kvmate().read(&of_vm(name))?)?;
        as_known(&rows, what, 2)?;
        tables.push(rows);
    }
    ensure_eq!(oracle.kvmate().exits()?, all, "exits against both VMs'");
    ensure_eq!(exits(&events), all, "the trace's exits against both VMs'");
    drop(vms);
    for (name, rows) in names.iter().zip(tables) {
        oracle::wait_for_end(name)?;
        let ended = table::ended(&oracle.kvmate().read("ended")?, name)?;
        ensure_eq!(ended, (1, rows), "the ended VM {name}");
    }
    ensure_eq!(oracle.kvmate().exits()?, all, "exits after the end");
    oracle.end()
}

fn vm_older_than_the_module() -> Result<()> {
    let what = [Step::Out(some(30)), Step::Cpuid(some(30))];
    let (vm, mut guests) = vm_of(&[&what])?;
    guests[0].run()?;
    let before = guests[0].counted()?;
    let oracle = Oracle::begin()?;
    guests[0].run()?;
    let rows = oracle.compare(&of_vcpu(&name_of(&vm.fd), 0), &reasons(&oracle.events()?)?)?;
    as_known(&rows, &what, 1)?;
    ensure_eq!(
        counts(&rows),
        guests[0].counted()? - before,
        "exits since load"
    );
    oracle.end()
}

/// The exit on one CPU, the next entry on another.
fn vcpu_goes_from_cpu_to_cpu() -> Result<()> {
    let cpus = thread::available_parallelism()?.get();
    let oracle = Oracle::begin()?;
    let what = [Step::Out(some(60)), Step::Cpuid(some(10))];
    let (vm, mut guests) = vm_of(&[&what])?;
    let mut turn = 0;
    let guest = &mut guests[0];
    let affinity = Affinity::now()?;
    steps::run(&mut guest.vcpu, || {
        turn += 1;
        affinity.pin(turn % cpus).expect("sched_setaffinity");
    })?;
    drop(affinity);
    let rows = oracle.compare(&of_vcpu(&name_of(&vm.fd), 0), &reasons(&oracle.events()?)?)?;
    as_known(&rows, &what, 1)?;
    oracle.end()
}

/// Between an exit and the next entry the same CPU runs another vCPU.
fn vcpus_take_turns_on_a_cpu() -> Result<()> {
    let oracle = Oracle::begin()?;
    let what: [&[Step]; 2] = [
        &[Step::Out(3), Step::Cpuid(2)],
        &[Step::Halt(2), Step::ReadNone(1)],
    ];
    let (vm, mut guests) = vm_of(&what)?;
    const ROUNDS: u64 = 10;
    let affinity = Affinity::now()?;
    affinity.pin(0)?;
    for _ in 0..ROUNDS {
        guests.iter_mut().try_for_each(Guest::run)?;
    }
    drop(affinity);
    let events = oracle.events()?;
    let of_vcpu = |id| reasons(events.iter().filter(|event| event.vcpu == id));
    let name = name_of(&vm.fd);
    compare_vm(&oracle, &name, &[of_vcpu(0)?, of_vcpu(1)?])?;
    for (id, what) in what.iter().enumerate() {
        let rows = table::exits(&oracle.kvmate().read(&oracle::of_vcpu(&name, id as u64))?)?;
        as_known(&rows, what, ROUNDS)?;
    }
    oracle.end()
}

/// A VMM that takes known times, from one to fifty milliseconds.
fn spread_times() -> Result<()> {
    let oracle = Oracle::begin()?;
    let sleeps: Vec<u64> = [(1, 60), (5, 30), (20, 8), (50, 2)]
        .into_iter()
        .flat_map(|(ms, times)| vec![ms; times])
        .collect();
    let what = [Step::Cpuid(5), Step::Out(sleeps.len() as u32)];
    let (vm, mut guests) = vm_of(&[&what])?;
    let mut slept = Vec::new();
    steps::run(&mut guests[0].vcpu, || {
        // Long and short ones in turn: a time that is counted for another exit is a wrong one.
        let Some(&ms) = sleeps.get(slept.len() * 37 % sleeps.len()) else {
            return;
        };
        let from = tsc::now();
        thread::sleep(Duration::from_millis(ms));
        slept.push(tsc::now() - from);
    })?;
    // The last is after the exit that is not followed by an entry.
    slept.pop();
    let rows = oracle.compare(&of_vcpu(&name_of(&vm.fd), 0), &reasons(&oracle.events()?)?)?;
    let name = if vmx() { "IO_INSTRUCTION" } else { "io" };
    let row = &rows[0];
    ensure_eq!(row.reason, name, "the reason with the most time");
    // What the VMM itself knows: it slept at least so long.
    slept.sort_unstable();
    let rate = oracle.rate();
    let rank = |per_mille: usize| rate.ns(slept[(slept.len() * per_mille).div_ceil(1000) - 1]);
    ensure!(
        row.total >= rate.ns(slept.iter().sum()),
        "less than the VMM slept: {row:?}"
    );
    ensure!(
        row.max >= rank(1000),
        "the longest is less than the VMM slept: {row:?}"
    );
    for (per_mille, found) in [500, 990, 999].into_iter().zip(row.percentiles) {
        let least = rank(per_mille);
        ensure!(
            found >= least - least / 16,
            "{found} at {per_mille}, slept {least}: {row:?}"
        );
    }
    oracle.end()
}

/// Hardware refuses the guest's state: an exit with a code that is none of the small numbers.
fn failed_entry_has_its_name() -> Result<()> {
    let oracle = Oracle::begin()?;
    let vm = Vm::new(long::MEMORY, false)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    long::start(&vcpu, 0, 0x40, 0)?;
    let mut sregs = vcpu.get_sregs()?;
    // 64-bit code with the default size of 32-bit code.
    sregs.cs.db = 1;
    vcpu.set_sregs(&sregs)?;
    match vcpu.run()? {
        VcpuExit::FailEntry(..) => {}
        other => anyhow::bail!("the state is not refused: {other:?}"),
    }
    let name = if vmx() {
        "INVALID_STATE|FAILED_VMENTRY"
    } else {
        "invalid_guest_state"
    };
    let rows = oracle.compare(&of_vcpu(&name_of(&vm.fd), 0), &reasons(&oracle.events()?)?)?;
    ensure_eq!(count_of(&rows, name), 1, "failed entries");
    oracle.end()
}

/// Those at or after a moment at which no vCPU ran.
fn since(events: &[Event], moment: u64) -> impl Iterator<Item = &Event> {
    events.iter().filter(move |event| event.from >= moment)
}

fn reset() -> Result<()> {
    let oracle = Oracle::begin()?;
    let what = mixture();
    let (vm, mut guests) = vm_of(&[&what])?;
    let name = name_of(&vm.fd);
    let reset = format!("vms/{name}/reset");
    guests[0].run()?;
    let all = oracle.kvmate().exits()?;
    for refused in ["0", "2", "x"] {
        let error = oracle.kvmate().write(&reset, refused).err();
        let error = error.and_then(|e| e.raw_os_error());
        ensure_eq!(error, Some(nix::libc::EINVAL), "errno of reset {refused}");
    }
    oracle.compare(&of_vm(&name), &reasons(&oracle.events()?)?)?;
    // The guest's last exit is under way now: its entry comes after the reset.
    oracle.kvmate().write(&reset, "1")?;
    let moment = tsc::now();
    for table in [of_vm(&name), of_vcpu(&name, 0)] {
        ensure_eq!(
            oracle.kvmate().read(&table)?,
            table::EXITS,
            "{table} after the reset"
        );
    }
    guests[0].run()?;
    let events = oracle.events()?;
    let expected = reasons(since(&events, moment))?;
    let rows = oracle.compare(&of_vcpu(&name, 0), &expected)?;
    oracle.compare(&of_vm(&name), &expected)?;
    as_known(&rows, &what, 1)?;
    ensure!(
        oracle.kvmate().exits()? > all,
        "the root's exits went with the reset"
    );
    ensure_eq!(
        oracle.kvmate().exits()?,
        exits(&events),
        "exits, which a reset leaves"
    );
    oracle.end()
}

/// The reset is at one moment for a running vCPU too: between just before and just after the write.
fn reset_while_running() -> Result<()> {
    let oracle = Oracle::begin()?;
    let (vm, mut guests) = vm_of(&[&[Step::Cpuid(some(100)), Step::Out(some(20))]])?;
    let name = name_of(&vm.fd);
    let (guest, stop) = (&mut guests[0], Stop::default());
    let mut write = (0, 0);
    let thread = thread::scope(|scope| -> Result<_> {
        let run = scope.spawn(|| -> Result<u32> {
            while !stop.asked() {
                guest.run()?;
            }
            Ok(gettid().as_raw() as u32)
        });
        let _stop = stop.on_drop();
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(5));
            write.0 = tsc::now();
            oracle.kvmate().write(&format!("vms/{name}/reset"), "1")?;
            write.1 = tsc::now();
        }
        let then = oracle.kvmate().exits()?;
        storm::until("it goes on after the last one", || {
            Ok(oracle.kvmate().exits()? > then + 1)
        })?;
        stop.ask();
        run.join().expect("the vCPU's thread")
    })?;
    let events = oracle.events()?;
    let rows = table::exits(&oracle.kvmate().read(&of_vcpu(&name, 0))?)?;
    // One may be under way, known to the trace and not to kvmate yet, while the table is emptied.
    let most = reasons(of_thread(&events, thread).filter(|e| e.to >= write.0))?;
    let least = reasons(since(&events, write.1).filter(|e| e.thread == thread))?;
    ensure!(!least.is_empty(), "no exit after the last one");
    for (reason, most) in &most {
        let least = least.get(reason).map_or(0, |times| times.count);
        let found = count_of(&rows, reason);
        ensure!(
            (least..=most.count).contains(&found),
            "{reason}: {found} exits, not between {least} and {}",
            most.count
        );
    }
    ensure!(
        rows.iter().all(|row| most.contains_key(&row.reason)),
        "a reason too many: {rows:?}"
    );
    // A last one with the guest at rest, and all is exact again.
    oracle.kvmate().write(&format!("vms/{name}/reset"), "1")?;
    let moment = tsc::now();
    guests[0].run()?;
    let expected = reasons(since(&oracle.events()?, moment))?;
    oracle.compare(&of_vcpu(&name, 0), &expected)?;
    oracle.end()
}

/// Observing is switched off after an exit, and on again much later: the entry that kvmate sees next
/// is not the one that followed that exit.
fn unobserved_exits_leave_no_time() -> Result<()> {
    let mut oracle = Oracle::begin()?;
    let what = [Step::Out(3), Step::Cpuid(3)];
    let (vm, mut guests) = vm_of(&[&what])?;
    guests[0].run()?;
    let before = oracle.unobserved(|| {
        guests[0].run()?;
        thread::sleep(Duration::from_millis(20));
        Ok(())
    })?;
    guests[0].run()?;
    let after = oracle.events()?;
    ensure!(
        matches!(after[0].what, What::Entry),
        "not an entry first: {:?}",
        after[0]
    );
    let expected = sum([reasons(&before)?, reasons(&after)?]);
    let rows = oracle.compare(&of_vcpu(&name_of(&vm.fd), 0), &expected)?;
    as_known(&rows, &what, 2)?;
    oracle.end()
}
