// SPDX-License-Identifier: GPL-2.0
//! VMs in great number, killed and shut in any order, while kvmate and kvm come and go, `observe` is
//! switched, and everything is read. `races_test` has the same with the races made to happen.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    delay::Delay,
    ensure_eq,
    guest::{self, real, real::Program, Vm},
    ktap,
    module::{self, Kvmate, Stop, DEBUGFS},
    seen,
    stats::Stats,
    storm::{self, Guest, Lived, Vmm},
};
use nix::errno::Errno;
use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("a_thousand_vms", a_thousand_vms),
        ("same_address_never_mixed_up", same_address_never_mixed_up),
        ("vm_descriptor_closed", vm_descriptor_closed),
        ("vmm_killed", vmm_killed),
        ("readers_meanwhile", readers_meanwhile),
        ("reset_meanwhile", reset_meanwhile),
        ("rmmod_meanwhile", rmmod_meanwhile),
        ("kvm_goes_meanwhile", kvm_goes_meanwhile),
        ("open_files_hold", open_files_hold),
        ("observe_switched", observe_switched),
    ])
}

/// What a round's VM does: another thing each time.
fn varied(round: u32) -> (Program, u32, u32) {
    let program = [Program::Out, Program::Cpuid][round as usize % 2];
    (program, 3 + round % 17, 1 + round % 3 / 2)
}

/// Kernel memory that is not given back by itself, in KiB.
fn unreclaimable() -> Result<u64> {
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let text = fs::read_to_string("/proc/meminfo")?;
    let mut sum = 0;
    for name in ["SUnreclaim:", "VmallocUsed:", "Percpu:"] {
        let line = text.lines().find(|l| l.starts_with(name)).context(name)?;
        let number = line.split_whitespace().nth(1).context(name)?;
        sum += number.parse::<u64>().context(name)?;
    }
    Ok(sum)
}

fn a_thousand_vms() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (warm, rounds) = (storm::rounds(100), storm::rounds(1000));
    let mut last: VecDeque<Lived> = VecDeque::new();
    let mut before = 0;
    for round in 0..warm + rounds {
        if round == warm {
            storm::until_ended(warm.into())?;
            before = unreclaimable()?;
        }
        let (program, count, vcpus) = varied(round);
        last.push_back(storm::live(program, count, vcpus)?);
        if last.len() > 16 {
            last.pop_front();
        }
    }
    let all = u64::from(warm + rounds);
    storm::until_ended(all)?;
    let ended = seen::ended()?;
    ensure_eq!(ended.len(), 16, "VMs in ended");
    for ((past, lived), number) in ended.iter().zip(&last).zip(all - 15..) {
        ensure_eq!(past.number, number, "number");
        lived.is(past)?;
    }
    // KASAN's quarantine and kmemleak's own objects grow; there kmemleak tells what is left.
    if !storm::slow() {
        // Records are freed some grace periods after they are told of.
        let mut after = 0;
        storm::until("the VMs' memory is given back", || {
            after = unreclaimable()?;
            Ok(after < before + 1024)
        })
        .with_context(|| format!("{before} KiB before {rounds} VMs, {after} after"))?;
    }
    kvmate.unload()
}

/// VMs right after one another, at the same addresses, as `kvmate_delay` sees, while kvmate has not
/// buried the one before; each with another guest.
fn same_address_never_mixed_up() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let delay = Delay::load()?;
    delay.at("file_removed", Duration::from_millis(2))?;
    let rounds = storm::rounds(8);
    let mut ended = 0;
    for round in 0..rounds {
        let mut lived = Vec::new();
        for number in 0..16 {
            let (program, count, vcpus) = varied(16 * round + number);
            lived.push(storm::live(program, count, vcpus)?);
        }
        ended += 16;
        storm::until_ended(ended)?;
        for (past, lived) in seen::ended()?.iter().zip(&lived) {
            lived.is(past)?;
        }
    }
    // KASAN keeps what is freed from being used again soon.
    if !storm::slow() {
        for (what, again) in [
            ("VMs", delay.get("vms_again")?),
            ("vCPUs", delay.get("vcpus_again")?),
        ] {
            ensure!(
                again >= ended / 4,
                "{again} {what} only had an address of one before"
            );
        }
    }
    delay.unload()?;
    kvmate.unload()
}

/// vCPUs keep their VM: it is listed and counted on, and goes with the last of them.
fn vm_descriptor_closed() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for round in 0..storm::rounds(30) {
        let vm = Vm::new(1 << 16, false)?;
        let name = storm::name_of(&vm);
        real::load(&vm, Program::Out);
        let mut vcpus = [vm.fd.create_vcpu(0)?, vm.fd.create_vcpu(1)?];
        let stats = [Stats::of(&vcpus[0])?, Stats::of(&vcpus[1])?];
        let Vm { kvm, fd, memory } = vm;
        drop(fd);
        for (vcpu, count) in vcpus.iter_mut().zip([20, 30]) {
            real::start(vcpu, count)?;
            guest::run(vcpu, None)?;
        }
        let counts = seen::exits_of(&name)?;
        let all = stats[0].get("exits")? + stats[1].get("exits")?;
        ensure_eq!(counts.of(seen::names().out), 50, "port writes");
        ensure_eq!(counts.sum(), all, "all exits");
        drop(stats);
        let [first, mut second] = vcpus;
        drop(first);
        ensure_eq!(seen::names_of_vms()?, [name.clone()], "VMs with one vCPU");
        real::start(&second, 5)?;
        guest::run(&mut second, None)?;
        ensure_eq!(
            seen::exits_of(&name)?.of(seen::names().out),
            55,
            "port writes"
        );
        drop((second, memory, kvm));
        storm::until_ended(u64::from(round) + 1)?;
        let ended = seen::ended()?;
        let past = ended.last().context("nothing in ended")?;
        ensure_eq!(past.counts.of(seen::names().out), 55, "port writes, ended");
        ensure_eq!(past.name, name, "name, ended");
    }
    kvmate.unload()
}

/// No VM is left of VMMs that are killed at any moment.
fn vmm_killed() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for round in 0..storm::rounds(60) {
        let vmm = Vmm::start(round % 3 != 0)?;
        thread::sleep(Duration::from_micros(u64::from(round) * 7919 % 23_000));
        vmm.kill()?;
        storm::until("all folders are gone", || {
            Ok(seen::names_of_vms()?.is_empty())
        })?;
    }
    // And the next is counted as ever.
    storm::live(Program::Out, 10, 2)?.ends()?;
    kvmate.unload()
}

/// Everything is read all the time while VMs come and go on two threads.
fn readers_meanwhile() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let rounds = storm::rounds(120);
    let stop = Stop::default();
    let lived = thread::scope(|scope| -> Result<Vec<Lived>> {
        let readers: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| storm::read_everything(&stop)))
            .collect();
        let makers: Vec<_> = (0..2)
            .map(|maker| {
                scope.spawn(move || -> Result<Vec<Lived>> {
                    // A VM is known again by its count, which no other has.
                    (0..rounds)
                        .map(|round| storm::live(varied(round).0, 2 * round + maker + 5, 1))
                        .collect()
                })
            })
            .collect();
        let mut all = Vec::new();
        let made: Result<()> = makers.into_iter().try_for_each(|maker| {
            all.extend(maker.join().expect("a maker's thread")?);
            Ok(())
        });
        drop(stop.on_drop());
        for reader in readers {
            let read = reader.join().expect("a reader's thread")?;
            ensure!(read > 0, "a reader found no VM");
        }
        made.map(|()| all)
    })?;
    storm::until_ended(lived.len() as u64)?;
    for past in seen::ended()? {
        let names = seen::names();
        let count = past.counts.of(names.out) + past.counts.of(names.cpuid);
        let same = lived.iter().find(|lived| lived.count == count);
        same.with_context(|| format!("no such VM: {past:?}"))?
            .is(&past)?;
    }
    kvmate.unload()
}

/// Records begin anew all the time while their guests run; nothing is counted twice or to another.
fn reset_meanwhile() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guests = vec![Guest::new(Program::Cpuid)?, Guest::new(Program::Out)?];
    let names = guests.iter().map(|g| g.name.clone()).collect::<Vec<_>>();
    let stop = Stop::default();
    let reset = |name: &str| {
        let path = seen::vms().join(name).join("reset");
        fs::write(&path, "1").with_context(|| path.display().to_string())
    };
    let mut guests = storm::under_load(guests, Duration::ZERO, || {
        thread::scope(|scope| {
            let reader = scope.spawn(|| storm::read_everything(&stop));
            let done =
                (0..storm::rounds(80)).try_for_each(|_| names.iter().try_for_each(|n| reset(n)));
            drop(stop.on_drop());
            reader.join().expect("a reader's thread")?;
            done
        })
    })?;
    let mut all = 0;
    for guest in &mut guests {
        reset(&guest.name)?;
        ensure_eq!(seen::exits_of(&guest.name)?.sum(), 0, "exits after a reset");
        guest.exact()?;
        all += guest.stats.get("exits")?;
    }
    // The total of all VMs has nothing to do with resets.
    ensure_eq!(kvmate.exits()?, all, "all exits since load");
    drop(guests);
    kvmate.unload()
}

/// kvmate comes and goes while VMs do, are killed, and run.
fn rmmod_meanwhile() -> Result<()> {
    let guests = vec![Guest::new(Program::Cpuid)?];
    let stop = Stop::default();
    let mut guests = storm::under_load(guests, Duration::ZERO, || {
        thread::scope(|scope| {
            let makers: Vec<_> = (0..2)
                .map(|maker| {
                    let stop = &stop;
                    scope.spawn(move || -> Result<()> {
                        for round in 0.. {
                            let (program, count, vcpus) = varied(round);
                            if stop.asked() {
                                break;
                            } else if maker == 0 && round % 8 == 0 {
                                let vmm = Vmm::start(round % 16 == 0)?;
                                thread::sleep(Duration::from_millis(5));
                                vmm.kill()?;
                            } else {
                                storm::live(program, count, vcpus)?;
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            let done = (0..storm::rounds(12)).try_for_each(|round| {
                let kvmate = Kvmate::load(["", "observe=0"][round as usize % 2])?;
                thread::sleep(Duration::from_micros(u64::from(round) * 7919 % 9000));
                kvmate.unload().with_context(|| format!("round {round}"))
            });
            drop(stop.on_drop());
            for maker in makers {
                maker.join().expect("a maker's thread")?;
            }
            done
        })
    })?;
    let kvmate = Kvmate::load("")?;
    guests.iter_mut().try_for_each(Guest::exact)?;
    drop(guests);
    kvmate.unload()
}

/// kvm and its vendor module can go as soon as no VM's file is open, whatever kvmate is doing, and
/// when they come again all is counted as before.
fn kvm_goes_meanwhile() -> Result<()> {
    let vendor = module::vendor()?;
    let kvmate = Kvmate::load("")?;
    let stop = Stop::default();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| storm::read_everything(&stop)))
            .collect();
        let done = (0..if storm::slow() { 1 } else { 4 }).try_for_each(|round| -> Result<()> {
            let vmm = Vmm::start(true)?;
            ensure_eq!(
                module::unload(vendor),
                Err(Errno::EWOULDBLOCK),
                "rmmod {vendor} while VMs run"
            );
            vmm.kill()?;
            for name in [vendor, "kvm"] {
                module::unload(name)
                    .with_context(|| format!("rmmod {name} with no VM, round {round}"))?;
            }
            ensure_eq!(kvmate.read("exits")?, "-", "exits without kvm");
            module::modprobe(vendor)?;
            let (program, count, vcpus) = varied(round);
            storm::live(program, count, vcpus)?.ends()
        });
        drop(stop.on_drop());
        for reader in readers {
            reader.join().expect("a reader's thread")?;
        }
        done
    })?;
    kvmate.unload()
}

fn refused() -> Result<()> {
    let answer = module::unload("kvmate");
    if answer.is_ok() {
        anyhow::bail!("rmmod with a file open");
    }
    ensure_eq!(answer, Err(Errno::EWOULDBLOCK), "rmmod with a file open");
    Ok(())
}

/// An open descriptor of any file holds the module, also when its VM has ended, and answers cleanly.
fn open_files_hold() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new(Program::Out)?;
    let to_write = |name: &str| name.ends_with("reset") || name.ends_with("/inject");
    let open = |name: &str| -> Result<File> {
        let path = Path::new(DEBUGFS).join(name);
        OpenOptions::new()
            .read(!to_write(name))
            .write(to_write(name) || name.starts_with("knobs"))
            .open(&path)
            .with_context(|| path.display().to_string())
    };
    for name in [
        "version",
        "vermagic",
        "exits",
        "ended",
        "layouts",
        "trace_lost",
        "knobs/observe",
        "knobs/trace",
        "knobs/trace_vm",
    ] {
        let mut file = open(name)?;
        refused().with_context(|| name.to_owned())?;
        ensure!(file.read(&mut [0; 64])? > 0, "{name} says nothing");
    }
    let folder = format!("vms/{}", guest.name);
    kvmate.write(&format!("{folder}/lookup"), "0x1000")?;
    let mut held = Vec::new();
    for name in [
        "exits",
        "exits_hist",
        "vcpus",
        "vcpu0/exits",
        "times",
        "msrs",
        "faults",
        "irqs",
        "snapshot",
        "memslots",
        "stage2",
        "stage2_map",
        "lookup",
        "irqfds",
        "bindings",
        "latency",
        "inject_status",
        "storm",
        "storm_status",
        "inject",
        "reset",
    ] {
        let name = format!("{folder}/{name}");
        let file = open(&name)?;
        refused().with_context(|| name.clone())?;
        drop(file);
        held.push((name.clone(), open(&name)?));
    }
    // Half read: what is left of it belongs to a file that goes.
    for (name, file) in held.iter_mut().filter(|(name, _)| !to_write(name)) {
        ensure!(file.read(&mut [0; 2])? == 2, "{name} says nothing");
    }
    drop(guest);
    storm::until_ended(1)?;
    while let Some((name, mut file)) = held.pop() {
        let answers = if to_write(&name) {
            [file.write(b"1").map(drop), file.write(b"x").map(drop)]
        } else {
            [(); 2].map(|()| file.read(&mut [0; 64]).map(drop))
        };
        for answer in answers {
            let errno = answer.err().and_then(|error| error.raw_os_error());
            ensure_eq!(errno, Some(Errno::EIO as i32), "{name} after the VM's end");
        }
        refused().with_context(|| format!("{name}, after its VM's end"))?;
    }
    kvmate.unload()
}

fn observe_switched() -> Result<()> {
    storm::switch_observe(storm::rounds(1000))
}
