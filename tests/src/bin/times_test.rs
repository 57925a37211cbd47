// SPDX-License-Identifier: GPL-2.0
//! `times`: where the time of exits went.
//!
//! The oracles: the table `exits`, whose totals the parts must add up to, to the nanosecond; what the
//! VMM measures of its own stays in user space; KVM's own statistics of halting; and the scheduler's
//! own of waiting (`/proc/<pid>/task/<tid>/schedstat`). Times of different parts do not overlap, so
//! that what one oracle has measured bounds the other parts from above, however slow the machine is.

use anyhow::{ensure, Context, Result};
use kvm_ioctls::VcpuFd;
use kvmate_tests::{
    delay::Delay,
    ensure_eq,
    guest::{
        long,
        steps::{self, Step},
        Vm,
    },
    ktap,
    module::{Kvmate, Stop},
    oracle::name_of,
    stats::Stats,
    table::{self, Parts},
};
use nix::sched::{sched_setaffinity, CpuSet};
use std::{
    fs,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    ktap::main(&[
        ("off_by_default", off_by_default),
        ("totals_of_exits", totals_of_exits),
        ("switching", switching),
        ("user", user),
        ("two_vcpus_of_a_thread", two_vcpus_of_a_thread),
        ("two_threads_of_a_vcpu", two_threads_of_a_vcpu),
        ("halted", halted),
        ("preempted", preempted),
        ("preempted_before_a_halt", preempted_before_a_halt),
    ])
}

/// Several exits of several kinds.
const STEPS: [Step; 4] = [
    Step::Out(30),
    Step::Cpuid(40),
    Step::ReadNone(5),
    Step::Halt(3),
];

/// A VM with some vCPUs that take these steps.
fn stepping(count: usize, steps: &[Step]) -> Result<(Vm, Vec<VcpuFd>)> {
    let vm = Vm::new(steps::MEMORY, false)?;
    let vcpus = (0..count)
        .map(|id| {
            steps::load(&vm, id, steps);
            let vcpu = vm.vcpu(id as u64)?;
            steps::start(&vcpu, id)?;
            Ok(vcpu)
        })
        .collect::<Result<_>>()?;
    Ok((vm, vcpus))
}

fn times(kvmate: &Kvmate, path: &str) -> Result<Vec<Parts>> {
    table::times(&kvmate.read(&format!("vms/{path}/times"))?).with_context(|| path.to_owned())
}

fn off_by_default() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    ensure_eq!(kvmate.read("knobs/times")?, "0", "knobs/times");
    let (vm, mut vcpus) = stepping(1, &STEPS)?;
    steps::run(&mut vcpus[0], || ())?;
    let lines = times(&kvmate, &name_of(&vm.fd))?;
    ensure!(lines.is_empty(), "times while switched off: {lines:?}");
    kvmate.unload()
}

fn totals_of_exits() -> Result<()> {
    let kvmate = Kvmate::load("times=1")?;
    ensure_eq!(kvmate.read("knobs/times")?, "1", "knobs/times");
    let (vm, mut vcpus) = stepping(2, &STEPS)?;
    for vcpu in &mut vcpus {
        steps::run(vcpu, || ())?;
    }
    let name = name_of(&vm.fd);
    // The last exits, without an entry, are in `exits` only.
    for id in 0..vcpus.len() {
        let last = format!("{name}/vcpu{id}");
        let (all, timed) = (
            table::exits(&kvmate.read(&format!("vms/{last}/exits"))?)?,
            times(&kvmate, &last)?,
        );
        let all: u64 = all.iter().map(|row| row.count).sum();
        ensure_eq!(table::sum_of(&timed).count, all - 1, "exits of {last}");
    }
    let lines = times(&kvmate, &name)?;
    for line in &lines {
        ensure!(line.total > 0, "nothing took time: {line:?}");
    }
    let sorted = lines.is_sorted_by(|a, b| a.total >= b.total);
    ensure!(sorted, "not sorted by total time: {lines:?}");
    // The totals are those of `exits`, which has them of the same exits.
    let exits = table::exits(&kvmate.read(&format!("vms/{name}/exits"))?)?;
    for line in &lines {
        let row = exits.iter().find(|row| row.reason == line.reason);
        let row = row.with_context(|| format!("no such exit: {line:?}"))?;
        ensure_eq!(line.total, row.total, "the total of {}", line.reason);
    }
    let sums: Vec<_> = [0, 1]
        .into_iter()
        .map(|id| Ok(table::sum_of(&times(&kvmate, &format!("{name}/vcpu{id}"))?)))
        .collect::<Result<_>>()?;
    let (both, all) = (table::sum_of(&sums), table::sum_of(&lines));
    ensure_eq!(both.count, all.count, "exits of both vCPUs");
    // Each is rounded down by itself.
    let slack = 2 * lines.len() as u64;
    ensure!(
        all.total.abs_diff(both.total) <= slack && all.user.abs_diff(both.user) <= slack,
        "of the VM {all:?}, of its vCPUs {both:?}"
    );
    kvmate.write(&format!("vms/{name}/reset"), "1")?;
    ensure!(times(&kvmate, &name)?.is_empty(), "reset left something");
    // A record that is new has the knob's value.
    steps::run(&mut vcpus[0], || ())?;
    let again = table::sum_of(&times(&kvmate, &name)?).count;
    ensure!(again > 0, "nothing is split after a reset");
    drop(vcpus);
    drop(vm);
    kvmate.unload()
}

/// Exits are counted all the same while the knob is turned, also in the middle of one.
fn switching() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, mut vcpus) = stepping(1, &[Step::Out(50)])?;
    let stats = Stats::of(&vcpus[0])?;
    let (name, mut turn, mut expected) = (name_of(&vm.fd), 0, 0);
    for _ in 0..4 {
        steps::run(&mut vcpus[0], || {
            turn += 1;
            // In user space: an exit is open.
            let on = turn % 4 >= 2;
            kvmate
                .write("knobs/times", if on { "1" } else { "0" })
                .expect("a knob");
            // Begun while it was on, and on since.
            expected += u64::from(turn % 4 == 3);
        })?;
    }
    ensure_eq!(kvmate.exits()?, stats.get("exits")?, "exits");
    let exits = table::exits(&kvmate.read(&format!("vms/{name}/exits"))?)?;
    let exits: u64 = exits.iter().map(|row| row.count).sum();
    ensure_eq!(exits, stats.get("exits")?, "exits of the VM");
    // The last one is open. The host's interrupts come in between.
    let foreign = stats.get("irq_exits")? + stats.get("pf_taken")?;
    let split = table::sum_of(&times(&kvmate, &name)?).count;
    ensure!(
        (expected - 1..=expected + foreign).contains(&split),
        "{split} exits are split, of {expected} and {foreign} foreign ones"
    );
    for bad in ["2", "-1", "x"] {
        let refused = kvmate
            .write("knobs/times", bad)
            .map_err(|e| e.raw_os_error());
        ensure_eq!(refused, Err(Some(nix::libc::EINVAL)), "times {bad}");
    }
    drop(vcpus);
    drop(vm);
    kvmate.unload()
}

/// How long a vCPU's VMM has been in user space between its runs, while it is looked at.
#[derive(Default)]
struct Stay {
    since: Option<Instant>,
    sum: Duration,
}

impl Stay {
    fn leave(&mut self) {
        self.sum += self.since.take().map_or(Duration::ZERO, |s| s.elapsed());
    }
}

/// What is said of a VMM that stayed in user space for `stay`, in a test that took `all`.
fn stayed(parts: &Parts, stay: Duration, all: Duration) -> Result<()> {
    let [stay, all] = [stay, all].map(|d| d.as_nanos() as u64);
    ensure!(
        parts.user + parts.preempted >= stay,
        "in user space for {stay} ns: {parts:?}"
    );
    ensure!(
        parts.kernel + parts.halted <= all - stay,
        "elsewhere for {} ns at most: {parts:?}",
        all - stay
    );
    Ok(())
}

fn user() -> Result<()> {
    let kvmate = Kvmate::load("times=1")?;
    let (vm, mut vcpus) = stepping(1, &[Step::Cpuid(20), Step::Out(4)])?;
    let (begin, mut stay) = (Instant::now(), Duration::ZERO);
    for _ in 0..3 {
        steps::run(&mut vcpus[0], || {
            let since = Instant::now();
            thread::sleep(Duration::from_millis(20));
            stay += since.elapsed();
        })?;
    }
    // The last stay has no entry yet.
    steps::run(&mut vcpus[0], || ())?;
    let all = begin.elapsed();
    ensure!(stay >= Duration::from_millis(300), "it did not sleep");
    let lines = times(&kvmate, &name_of(&vm.fd))?;
    let sum = table::sum_of(&lines);
    stayed(&sum, stay, all)?;
    ensure_eq!(sum.halted, 0, "halted without an irqchip");
    // All of it was for the port.
    let port = lines
        .iter()
        .max_by_key(|line| line.user)
        .context("a line")?;
    stayed(port, stay, all)?;
    for line in lines.iter().filter(|line| line.reason != port.reason) {
        // The host's interrupts may end in a signal; CPUID does not.
        ensure!(
            line.count < 20 || line.user == 0,
            "what the kernel handles was in user space: {line:?}"
        );
    }
    drop(vcpus);
    drop(vm);
    kvmate.unload()
}

/// A thread that runs two vCPUs in turn: each is in user space while the other runs.
fn two_vcpus_of_a_thread() -> Result<()> {
    let kvmate = Kvmate::load("times=1")?;
    let (vm, mut vcpus) = stepping(2, &[])?;
    let (begin, mut stays) = (Instant::now(), [Stay::default(), Stay::default()]);
    for turn in 0..12 {
        let (vcpu, stay) = (&mut vcpus[turn % 2], &mut stays[turn % 2]);
        stay.leave();
        steps::run(vcpu, || stay.since = Some(Instant::now()))?;
        thread::sleep(Duration::from_millis(10));
    }
    let (name, all) = (name_of(&vm.fd), begin.elapsed());
    for (id, Stay { sum, .. }) in stays.iter().enumerate() {
        ensure!(*sum >= Duration::from_millis(90), "{sum:?} is too little");
        let parts = table::sum_of(&times(&kvmate, &format!("{name}/vcpu{id}"))?);
        stayed(&parts, *sum, all).with_context(|| format!("vCPU {id}"))?;
    }
    drop(vcpus);
    drop(vm);
    kvmate.unload()
}

/// Two threads that run a vCPU in turn, the second after having waited for a CPU: that was not for it.
fn two_threads_of_a_vcpu() -> Result<()> {
    let kvmate = Kvmate::load("times=1")?;
    let (vm, mut vcpus) = stepping(1, &[])?;
    let (begin, mut stay) = (Instant::now(), Stay::default());
    let mut other = 0;
    for turn in 0..12 {
        let (vcpu, stay) = (&mut vcpus[0], &mut stay);
        other += thread::scope(|scope| -> Result<u64> {
            let runs = scope.spawn(|| -> Result<u64> {
                pin()?;
                // Something else on this CPU makes this thread wait, before it has to do with the vCPU.
                let since = Instant::now();
                let before = thread::scope(|scope| -> Result<u64> {
                    let spins = |from: Instant| while from.elapsed() < Duration::from_millis(12) {};
                    // Every other one: the thread before has waited less.
                    let rival = (turn % 2 == 1).then(|| {
                        scope.spawn(move || -> Result<()> {
                            pin()?;
                            spins(since);
                            Ok(())
                        })
                    });
                    spins(since);
                    rival.map_or(Ok(()), |rival| rival.join().expect("the rival"))?;
                    waited()
                })?;
                stay.leave();
                steps::run(vcpu, || stay.since = Some(Instant::now()))?;
                Ok(before)
            });
            runs.join().expect("a thread")
        })
        .with_context(|| format!("turn {turn}"))?;
    }
    let (name, all) = (name_of(&vm.fd), begin.elapsed());
    let parts = table::sum_of(&times(&kvmate, &name)?);
    stayed(&parts, stay.sum, all)?;
    ensure!(other >= 2_000_000, "threads waited for {other} ns only");
    ensure!(
        parts.preempted < other / 2,
        "of {other} ns of waiting for something else: {parts:?}"
    );
    drop(vcpus);
    drop(vm);
    kvmate.unload()
}

/// What KVM says that a vCPU has halted, in nanoseconds.
fn halts(stats: &Stats) -> Result<u64> {
    ["halt_wait_ns", "halt_poll_success_ns", "halt_poll_fail_ns"]
        .iter()
        .map(|name| stats.get(name))
        .sum()
}

fn halted() -> Result<()> {
    let kvmate = Kvmate::load("times=1")?;
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    let stats = Stats::of(&vcpu)?;
    // Before the first exit: what the table has was in this time.
    let begin = Instant::now();
    long::start(&vcpu, 0, 0x40, 0)?;
    long::run(&mut vcpu)?;
    long::start(&vcpu, 0, 0x40, 8)?;
    thread::scope(|scope| -> Result<()> {
        let running = scope.spawn(|| long::run(&mut vcpu));
        for number in 1..=8 {
            thread::sleep(Duration::from_millis(25));
            let msi = kvm_bindings::kvm_msi {
                address_lo: 0xfee0_0000,
                data: 0x40,
                ..Default::default()
            };
            vm.fd.signal_msi(msi)?;
            // Two of one vector would be one.
            while long::seen(&vm.memory, 0x40) < number && !running.is_finished() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        running.join().expect("the vCPU's thread")
    })?;
    let (all, kvm) = (begin.elapsed().as_nanos() as u64, halts(&stats)?);
    let sum = table::sum_of(&times(&kvmate, &name_of(&vm.fd))?);
    ensure!(kvm >= 40_000_000, "KVM says it halted for {kvm} ns only");
    // Rounded down, an exit each.
    ensure!(
        sum.halted + sum.preempted + sum.count >= kvm,
        "KVM says it halted for {kvm} ns: {sum:?}"
    );
    ensure!(
        sum.kernel <= all.saturating_sub(kvm),
        "of {all} ns it halted for {kvm}: {sum:?}"
    );
    // KVM's statistics leave out a halt that was over before it began to wait.
    ensure!(
        sum.halted <= kvm + kvm / 16,
        "more than the {kvm} ns that KVM says: {sum:?}"
    );
    drop(vcpu);
    drop(vm);
    kvmate.unload()
}

/// How long this thread has waited for a CPU, by the scheduler.
fn waited() -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let waited = text.split(' ').nth(1).context("schedstat")?;
    waited.parse().context("schedstat")
}

/// Have this thread run on the first CPU only.
fn pin() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).context("sched_setaffinity")
}

/// Two vCPUs on one CPU: each waits while the other runs.
fn preempted() -> Result<()> {
    let kvmate = Kvmate::load("times=1")?;
    let (vm, mut vcpus) = stepping(2, &[Step::Cpuid(100)])?;
    let stop = Stop::default();
    let waits: Vec<[u64; 2]> = thread::scope(|scope| {
        let threads: Vec<_> = vcpus
            .iter_mut()
            .map(|vcpu| {
                scope.spawn(|| -> Result<[u64; 2]> {
                    let _stop = stop.on_drop();
                    pin()?;
                    // From the first exit on.
                    steps::run(vcpu, || ())?;
                    let (before, begin) = (waited()?, Instant::now());
                    while !stop.asked() && begin.elapsed() < Duration::from_secs(1) {
                        steps::run(vcpu, || ())?;
                    }
                    let after = waited()?;
                    steps::run(vcpu, || ())?;
                    Ok([after - before, waited()?])
                })
            })
            .collect();
        let threads = threads
            .into_iter()
            .map(|t| t.join().expect("a vCPU's thread"));
        threads.collect::<Result<_>>()
    })?;
    let name = name_of(&vm.fd);
    for (id, [least, most]) in waits.iter().enumerate() {
        let parts = table::sum_of(&times(&kvmate, &format!("{name}/vcpu{id}"))?);
        ensure!(*least >= 20_000_000, "it waited for {least} ns only");
        // Rounded down, an exit each.
        ensure!(
            (*least..=*most + parts.count).contains(&(parts.preempted + parts.count)),
            "vCPU {id} waited for {least} ns to {most}: {parts:?}"
        );
    }
    drop(vcpus);
    drop(vm);
    kvmate.unload()
}

/// A vCPU that waits for a CPU between its exit and its halt, which is over at once: the interrupt for
/// it is there by then.
fn preempted_before_a_halt() -> Result<()> {
    const ROUNDS: u64 = 6;
    let kvmate = Kvmate::load("times=1")?;
    let delay = Delay::load()?;
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    let stop = Stop::default();
    // Before there is anybody to come there.
    delay.at("halting", Duration::from_millis(15))?;
    let [least, most] = thread::scope(|scope| -> Result<_> {
        let _stop = stop.on_drop();
        let other = scope.spawn(|| -> Result<()> {
            pin()?;
            while !stop.asked() {
                std::hint::spin_loop();
            }
            Ok(())
        });
        let running = scope.spawn(|| -> Result<_> {
            pin()?;
            long::start(&vcpu, 0, 0x40, 0)?;
            long::run(&mut vcpu)?;
            let before = waited()?;
            long::start(&vcpu, 0, 0x40, ROUNDS)?;
            long::run(&mut vcpu)?;
            let after = waited()?;
            long::run(&mut vcpu)?;
            Ok([after - before, waited()?])
        });
        for number in 1..=ROUNDS {
            delay.until_hit("halting", number - 1)?;
            vm.fd.signal_msi(kvm_bindings::kvm_msi {
                address_lo: 0xfee0_0000,
                data: 0x40,
                ..Default::default()
            })?;
            // Two of one vector would be one.
            while long::seen(&vm.memory, 0x40) < number && !running.is_finished() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let waits = running.join().expect("the vCPU's thread")?;
        stop.ask();
        other.join().expect("the other thread")?;
        Ok(waits)
    })?;
    delay.unload()?;
    let parts = table::sum_of(&times(&kvmate, &name_of(&vm.fd))?);
    ensure!(least >= 2_000_000, "it waited for {least} ns only");
    // Rounded down, an exit each.
    ensure!(
        (least..=most + parts.count).contains(&(parts.preempted + parts.count)),
        "it waited for {least} ns to {most}: {parts:?}"
    );
    drop(vcpu);
    drop(vm);
    kvmate.unload()
}
