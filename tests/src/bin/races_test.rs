// SPDX-License-Identifier: GPL-2.0
//! Races in VMs' lives, made to happen: `kvmate_delay` waits between two steps of KVM, of kvmate or of
//! the probes, and what races with them is done meanwhile.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    delay::Delay,
    ensure_eq,
    guest::{self, real, real::Program, Vm},
    ktap,
    module::{self, Kvmate, Stop},
    seen,
    stats::Stats,
    storm::{self, Guest, Vmm},
};
use nix::{errno::Errno, libc};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::fd::AsRawFd,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    ktap::main(&[
        ("observe_off_in_probes", observe_off_in_probes),
        ("unload_in_probes", unload_in_probes),
        (
            "unload_before_the_maker_returns",
            unload_before_the_maker_returns,
        ),
        ("runs_before_it_is_known", runs_before_it_is_known),
        ("closed_before_it_is_known", closed_before_it_is_known),
        (
            "closed_while_it_gets_a_folder",
            closed_while_it_gets_a_folder,
        ),
        ("read_after_the_end", read_after_the_end),
        ("kvm_goes_at_the_burial", kvm_goes_at_the_burial),
        ("everything_late", everything_late),
    ])
}

const MS: Duration = Duration::from_millis(1);

/// `observe` is switched off while probes run: it waits for them, and then all is exact.
fn observe_off_in_probes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let delay = Delay::load()?;
    let guests = vec![Guest::new(Program::Cpuid)?, Guest::new(Program::Out)?];
    delay.set("one_in", 16)?;
    let points = ["exit_before", "exit_after", "entry_before", "entry_after"];
    let mut guests = storm::under_load(guests, MS, || {
        for point in points {
            for _ in 0..storm::rounds(12) {
                delay.at(point, 2 * MS)?;
                delay.until_hit(point, delay.hits(point)?)?;
                kvmate.write("knobs/observe", "0")?;
                let total = kvmate.exits()?;
                thread::sleep(2 * MS);
                ensure_eq!(kvmate.exits()?, total, "exits after it is off, {point}");
                kvmate.write("knobs/observe", "1")?;
                delay.set(point, 0)?;
            }
        }
        Ok(())
    })?;
    guests.iter_mut().try_for_each(Guest::exact)?;
    drop(guests);
    delay.unload()?;
    kvmate.unload()
}

/// kvmate goes while probes run.
fn unload_in_probes() -> Result<()> {
    let delay = Delay::load()?;
    let guests = vec![Guest::new(Program::Cpuid)?, Guest::new(Program::Out)?];
    delay.set("one_in", 16)?;
    let points = ["exit_before", "entry_before", "exit_after", "entry_after"];
    storm::under_load(guests, MS, || {
        for point in points {
            for _ in 0..storm::rounds(3) {
                let kvmate = Kvmate::load("")?;
                delay.at(point, 3 * MS)?;
                delay.until_hit(point, delay.hits(point)?)?;
                kvmate.unload()?;
                delay.set(point, 0)?;
            }
        }
        Ok(())
    })?;
    delay.unload()
}

/// The descriptor that is free next. Nothing may be opened until it is used.
fn next_descriptor(vm: &Vm) -> Result<i32> {
    // SAFETY: No condition; a new descriptor, closed at once.
    let next = unsafe { libc::dup(vm.fd.as_raw_fd()) };
    ensure!(next >= 0, "dup: {}", Errno::last());
    // SAFETY: Ours.
    unsafe { libc::close(next) };
    Ok(next)
}

/// Stand by until a descriptor is open, without opening one.
fn until_open(descriptor: i32) -> Result<()> {
    storm::until("the vCPU's descriptor is there", || {
        // SAFETY: No condition.
        Ok(unsafe { libc::fcntl(descriptor, libc::F_GETFD) } >= 0)
    })
}

const KVM_CREATE_VCPU: libc::c_ulong = 0xae41;
const KVM_RUN: libc::c_ulong = 0xae80;

/// A vCPU is made on a thread; `meanwhile` gets its descriptor when it is there, by when KVM has not
/// told kvmate of it, or its maker has not returned. The descriptor is `meanwhile`'s.
fn while_made<R>(vm: &Vm, meanwhile: impl FnOnce(i32) -> Result<R>) -> Result<R> {
    let descriptor = next_descriptor(vm)?;
    thread::scope(|scope| {
        // SAFETY: A VM's descriptor; the argument is the vCPU's number.
        let maker = scope.spawn(|| unsafe { libc::ioctl(vm.fd.as_raw_fd(), KVM_CREATE_VCPU, 0) });
        until_open(descriptor)?;
        let done = meanwhile(descriptor);
        let made = maker.join().expect("the maker's thread");
        ensure_eq!(made, descriptor, "the vCPU's descriptor");
        done
    })
}

/// kvmate goes while a vCPU's maker, who is to give it a record on his way back, is held up in KVM:
/// another thread runs the vCPU already, and he waits for it. `rmmod` waits for him.
fn unload_before_the_maker_returns() -> Result<()> {
    let delay = Delay::load()?;
    delay.at("made_before", 30 * MS)?;
    for _ in 0..storm::rounds(5) {
        let kvmate = Kvmate::load("")?;
        let vm = Vm::new(1 << 16, false)?;
        real::load(&vm, Program::Cpuid);
        let (running, run) = (AtomicBool::new(false), AtomicBool::new(false));
        while_made(&vm, |descriptor| {
            thread::scope(|scope| {
                let runner = scope.spawn(|| -> Result<()> {
                    // SAFETY: A vCPU's descriptor, which only this uses.
                    let mut vcpu = unsafe { vm.fd.create_vcpu_from_rawfd(descriptor) }?;
                    real::start(&vcpu, 30_000)?;
                    running.store(true, SeqCst);
                    guest::run(&mut vcpu, None)?;
                    run.store(true, SeqCst);
                    Ok(())
                });
                storm::until("the vCPU runs", || Ok(running.load(SeqCst)))?;
                // By now the maker is in the hook or behind it.
                thread::sleep(40 * MS);
                kvmate.unload()?;
                runner.join().expect("the runner's thread")
            })
        })?;
        ensure!(run.load(SeqCst), "the vCPU did not run");
    }
    delay.unload()
}

/// A vCPU runs before kvmate was told of it: its first exits are counted, without a reason.
fn runs_before_it_is_known() -> Result<()> {
    // The one that is loaded last is asked first.
    let kvmate = Kvmate::load("")?;
    let delay = Delay::load()?;
    delay.at("made_before", 20 * MS)?;
    let mut unrecorded = 0;
    for round in 0.. {
        if round >= storm::rounds(12) && (unrecorded > 0 || round >= 40) {
            break;
        }
        let vm = Vm::new(1 << 16, false)?;
        let name = storm::name_of(&vm);
        // Its first instruction is where no memory is: each run is an exit.
        let (vcpu, stats) = while_made(&vm, |descriptor| {
            for _ in 0..50 {
                // SAFETY: A vCPU's descriptor; KVM_RUN takes no argument.
                let ran = unsafe { libc::ioctl(descriptor, KVM_RUN, 0) };
                ensure_eq!(ran, 0, "KVM_RUN ({})", Errno::last());
            }
            // SAFETY: As above; nobody else uses it from here on.
            let vcpu = unsafe { vm.fd.create_vcpu_from_rawfd(descriptor) }?;
            let stats = Stats::of(&vcpu)?;
            Ok((vcpu, stats))
        })?;
        let (kvm, counts) = (stats.get("exits")?, seen::exits_of(&name)?);
        ensure!(kvm >= 50, "{kvm} exits only");
        ensure_eq!(counts.sum(), kvm, "all exits: {counts:?}");
        unrecorded += counts.of("unrecorded");
        drop((stats, vcpu, vm));
    }
    ensure!(unrecorded > 0, "each had a record at once");
    delay.unload()?;
    kvmate.unload()
}

/// All descriptors of a VM are closed while its vCPU's maker is in KVM: it ends on his way back.
fn closed_before_it_is_known() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let delay = Delay::load()?;
    for round in 0..storm::rounds(40) {
        let point = ["made_before", "made_after"][round as usize % 2];
        delay.at(point, 10 * MS)?;
        let vm = Vm::new(1 << 16, false)?;
        while_made(&vm, |descriptor| {
            thread::sleep(2 * MS);
            for descriptor in [vm.fd.as_raw_fd(), descriptor] {
                // SAFETY: Nobody uses it any more.
                unsafe { libc::close(descriptor) };
            }
            Ok(())
        })?;
        let Vm { fd, .. } = vm;
        // Closed.
        std::mem::forget(fd);
        delay.set(point, 0)?;
        storm::until("it is gone", || Ok(seen::names_of_vms()?.is_empty()))?;
        storm::live(Program::Out, 3 + round, 1)?.ends()?;
    }
    delay.unload()?;
    kvmate.unload()
}

/// The same while kvmate makes the VM's folders, and its vCPU's, which takes its time.
fn closed_while_it_gets_a_folder() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let delay = Delay::load()?;
    for round in 0..storm::rounds(40) {
        // KVM's for the VM; the hook; KVM's for the vCPU; ours for the VM; ours for the vCPU.
        let vm = Vm::new(1 << 16, false)?;
        delay.at("folder_made", 10 * MS)?;
        while_made(&vm, |descriptor| {
            thread::sleep(Duration::from_millis([13, 23][round as usize % 2]));
            for descriptor in [vm.fd.as_raw_fd(), descriptor] {
                // SAFETY: Nobody uses it any more.
                unsafe { libc::close(descriptor) };
            }
            Ok(())
        })?;
        let Vm { fd, .. } = vm;
        // Closed.
        std::mem::forget(fd);
        delay.set("folder_made", 0)?;
        storm::until("it is gone", || Ok(seen::names_of_vms()?.is_empty()))?;
        storm::live(Program::Cpuid, 3 + round, 1)?.ends()?;
    }
    delay.unload()?;
    kvmate.unload()
}

/// From `kvm_arch_pre_destroy_vm()` on nothing of a VM is looked at, although its files are there
/// still: while KVM takes it apart, and when its memory is free and another VM's.
fn read_after_the_end() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let delay = Delay::load()?;
    for round in 0..storm::rounds(20) {
        let guest = Guest::new(Program::Out)?;
        let folder = seen::vms().join(&guest.name);
        let mut table = File::open(folder.join("vcpus"))?;
        let mut read = || -> Result<Option<usize>> {
            let mut text = String::new();
            table.seek(SeekFrom::Start(0)).ok();
            match table.read_to_string(&mut text) {
                Ok(_) => storm::vcpu_lines(&text).map(Some),
                Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        ensure_eq!(read()?, Some(1), "lines while it lives");
        let points = ["ended", "destroy", "file_removed"];
        for point in points {
            delay.at(point, 20 * MS)?;
        }
        let hits = delay.hits("ended")?;
        thread::scope(|scope| -> Result<()> {
            let closer = scope.spawn(move || drop(guest));
            delay.until_hit("ended", hits)?;
            while !closer.is_finished() {
                ensure!(
                    read()?.unwrap_or(0) == 0,
                    "a vCPU of a VM that ends, round {round}"
                );
            }
            closer.join().expect("the closer's thread");
            Ok(())
        })?;
        // The next, whose maker waits until the folder has gone, so that his VM can have the name.
        let next = storm::live(Program::Cpuid, 7 + round, 2);
        while read()?.is_some_and(|lines| lines == 0) {
            thread::sleep(MS / 4);
        }
        ensure_eq!(read()?, None, "what a file that is gone says");
        for point in points {
            delay.set(point, 0)?;
        }
        next?.ends()?;
    }
    delay.unload()?;
    kvmate.unload()
}

/// kvm goes, and comes again, while kvmate still takes the last VM's folder away.
fn kvm_goes_at_the_burial() -> Result<()> {
    let vendor = module::vendor()?;
    let kvmate = Kvmate::load("")?;
    let delay = Delay::load()?;
    for round in 0..storm::rounds(5) {
        let guest = Guest::new(Program::Out)?;
        delay.at("file_removed", 80 * MS)?;
        let hits = delay.hits("file_removed")?;
        drop(guest);
        delay.until_hit("file_removed", hits)?;
        module::unload(vendor).with_context(|| format!("rmmod {vendor}, round {round}"))?;
        let gone = module::unload("kvm");
        module::modprobe(vendor)?;
        gone.with_context(|| format!("rmmod kvm, round {round}"))?;
        delay.set("file_removed", 0)?;
        storm::live(Program::Out, 9 + round, 1)?.ends()?;
    }
    delay.unload()?;
    kvmate.unload()
}

/// All of it at once, each step late by chance or a little: VMMs are killed, everything is read,
/// records begin anew, `observe` is switched, kvmate goes.
fn everything_late() -> Result<()> {
    let delay = Delay::load()?;
    delay.set("one_in", 8)?;
    for (point, micros) in [
        ("exit_before", 300),
        ("exit_after", 200),
        ("entry_before", 250),
        ("entry_after", 150),
        ("made_before", 1500),
        ("made_after", 2500),
        ("ended", 3000),
        ("destroy", 3000),
        ("folder_made", 400),
        ("file_removed", 700),
    ] {
        delay.at(point, Duration::from_micros(micros))?;
    }
    let end = Instant::now() + Duration::from_secs(if storm::slow() { 20 } else { 8 });
    let mut kills = 0u64;
    while Instant::now() < end {
        let kvmate = Kvmate::load("")?;
        let stop = Stop::default();
        thread::scope(|scope| -> Result<()> {
            let reader = scope.spawn(|| storm::read_everything(&stop));
            let resetter = scope.spawn(|| -> Result<()> {
                while !stop.asked() {
                    for name in seen::names_of_vms()? {
                        storm::reset_fleeting(&name)?;
                    }
                    thread::sleep(MS);
                }
                Ok(())
            });
            let done = (0..4).try_for_each(|_| -> Result<()> {
                let vmm = Vmm::start(kills % 2 == 0)?;
                kvmate.write("knobs/observe", "0")?;
                kvmate.write("knobs/observe", "1")?;
                thread::sleep(Duration::from_micros(kills * 7919 % 31_000));
                kills += 1;
                vmm.kill()
            });
            drop(stop.on_drop());
            reader.join().expect("the reader's thread")?;
            resetter.join().expect("the resetter's thread")?;
            done
        })?;
        storm::live(Program::Out, 20, 2)?.ends()?;
        kvmate.unload()?;
    }
    delay.unload()
}
