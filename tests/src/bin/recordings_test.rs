// SPDX-License-Identifier: GPL-2.0
//! What is recorded beside exits, in the lives of VMs: knobs are switched while guests run, tables are
//! read and begun anew, VMMs are killed, and kvmate goes, all at any time. Afterwards all is exact.

use anyhow::{ensure, Result};
use kvm_bindings::kvm_msi;
use kvmate_tests::{
    delay::Delay,
    ensure_eq,
    guest::{irq, real::Program},
    ktap,
    module::{Kvmate, Stop},
    seen,
    storm::{self, Guest, Vmm},
};
use std::{process::ExitCode, thread, time::Duration};

fn main() -> ExitCode {
    ktap::main(&[
        ("switched_while_guests_run", switched_while_guests_run),
        ("begun_anew_while_guests_run", begun_anew_while_guests_run),
        ("vmm_killed", vmm_killed),
        ("rmmod_meanwhile", rmmod_meanwhile),
    ])
}

const ALL: &str = "times=1 msrs=1 faults=1 irqs=1";
const KNOBS: [&str; 4] = ["times", "msrs", "faults", "irqs"];
const MS: Duration = Duration::from_millis(1);

/// Guests that do what is recorded.
fn guests() -> Result<Vec<Guest>> {
    [Program::Msr, Program::Mmio, Program::Out]
        .map(Guest::new)
        .into_iter()
        .collect()
}

/// Send a guest interrupts, from a thread that runs no vCPU, while `meanwhile` goes on; and after it
/// so many more of another vector, one by one.
fn interrupted(more: u64, meanwhile: impl FnOnce() -> Result<()>) -> Result<irq::Guest> {
    let mut guest = irq::Guest::new(irq::Chips::Kernel, 1)?;
    guest.run(|running| {
        let stop = Stop::default();
        thread::scope(|scope| {
            let sender = scope.spawn(|| -> Result<()> {
                while !stop.asked() {
                    let (address, data) = irq::msi(0, 0x51);
                    running.vm.fd.signal_msi(kvm_msi {
                        address_lo: address as u32,
                        data,
                        ..Default::default()
                    })?;
                    thread::sleep(MS / 4);
                }
                Ok(())
            });
            let done = {
                let _stop = stop.on_drop();
                meanwhile()
            };
            sender.join().expect("the sender's thread")?;
            done
        })?;
        running.settled()?;
        for number in 1..=more {
            running.signal(irq::msi(0, 0x61))?;
            running.until(0, 0x61, number)?;
        }
        running.settled().map(drop)
    })?;
    Ok(guest)
}

/// The numbers after a line's beginning, in a table of a VM.
fn line(kvmate: &Kvmate, path: &str, begin: &str) -> Result<Vec<u64>> {
    let text = kvmate.read(&format!("vms/{path}"))?;
    let rest = text.lines().find_map(|line| line.strip_prefix(begin));
    let words = rest.unwrap_or_default().split_whitespace();
    Ok(words.filter_map(|word| word.parse().ok()).collect())
}

/// Each guest once more, and its own table says so to the access.
fn exact(kvmate: &Kvmate, guests: &mut [Guest]) -> Result<()> {
    for guest in guests {
        let name = guest.name.clone();
        let numbers = || -> Result<[u64; 3]> {
            let first = |file: &str, begin: &str| -> Result<u64> {
                let path = format!("{name}/{file}");
                Ok(line(kvmate, &path, begin)?.first().copied().unwrap_or(0))
            };
            let io = format!("{} ", seen::names().out);
            Ok([
                first("msrs", "0x8b MSR_IA32_UCODE_REV ")?,
                first("faults", "memslot none ")?,
                first("times", &io)?,
            ])
        };
        let before = numbers()?;
        guest.exact()?;
        let after = numbers()?;
        let added = [0, 1, 2].map(|number| after[number] - before[number]);
        let expected = match guest.program {
            Program::Msr => [100, 0, 0],
            Program::Mmio => [0, 100, 0],
            _ => [0, 0, 100],
        };
        ensure_eq!(
            added,
            expected,
            "reads, faults, split port writes of {name}"
        );
    }
    Ok(())
}

fn switched_while_guests_run() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let delay = Delay::load()?;
    delay.set("one_in", 32)?;
    for point in ["exit_after", "entry_before"] {
        delay.at(point, MS / 2)?;
    }
    let guests = guests()?;
    let mut ran = None;
    let stop = Stop::default();
    let guest = thread::scope(|scope| {
        let reader = scope.spawn(|| storm::read_everything(&stop));
        let guest = {
            let _stop = stop.on_drop();
            interrupted(20, || {
                let switch = || -> Result<()> {
                    for turn in 0..storm::rounds(20) as usize {
                        for (number, knob) in KNOBS.iter().enumerate() {
                            let on = (turn >> (number % 3)) & 1;
                            kvmate.write(&format!("knobs/{knob}"), ["1", "0"][on])?;
                        }
                        if turn % 8 == 5 {
                            kvmate.write("knobs/observe", "0")?;
                            kvmate.write("knobs/observe", "1")?;
                        }
                    }
                    KNOBS
                        .iter()
                        .try_for_each(|knob| Ok(kvmate.write(&format!("knobs/{knob}"), "1")?))
                };
                ran = Some(storm::under_load(guests, MS, switch)?);
                Ok(())
            })
        };
        ensure!(
            reader.join().expect("the reader's thread")? > 0,
            "nothing read"
        );
        guest
    })?;
    delay.unload()?;
    exact(&kvmate, &mut ran.unwrap_or_default())?;
    let path = format!("{}/irqs", storm::name_of(&guest.vm));
    ensure_eq!(line(&kvmate, &path, "0x61 ")?, [20, 20, 20], "irqs");
    drop(guest);
    kvmate.unload()
}

/// A record goes while probes, and senders of interrupts on another CPU, may be in it.
fn begun_anew_while_guests_run() -> Result<()> {
    let kvmate = Kvmate::load(ALL)?;
    let guests = guests()?;
    let mut ran = None;
    let guest = interrupted(20, || {
        let reset = || -> Result<()> {
            for _ in 0..storm::rounds(12) {
                for name in seen::names_of_vms()? {
                    kvmate.write(&format!("vms/{name}/reset"), "1")?;
                }
            }
            Ok(())
        };
        ran = Some(storm::under_load(guests, MS, reset)?);
        Ok(())
    })?;
    exact(&kvmate, &mut ran.unwrap_or_default())?;
    let path = format!("{}/irqs", storm::name_of(&guest.vm));
    ensure_eq!(line(&kvmate, &path, "0x61 ")?, [20, 20, 20], "irqs");
    drop(guest);
    kvmate.unload()
}

fn vmm_killed() -> Result<()> {
    let kvmate = Kvmate::load(ALL)?;
    let stop = Stop::default();
    thread::scope(|scope| -> Result<()> {
        let reader = scope.spawn(|| storm::read_everything(&stop));
        let done = {
            let _stop = stop.on_drop();
            (0..storm::rounds(10)).try_for_each(|round| -> Result<()> {
                let vmm = Vmm::start(round % 3 != 0)?;
                thread::sleep(Duration::from_micros(u64::from(round) * 7919 % 31_000));
                for name in seen::names_of_vms()? {
                    storm::reset_fleeting(&name)?;
                }
                vmm.kill()
            })
        };
        reader.join().expect("the reader's thread")?;
        done
    })?;
    storm::until("all are gone", || Ok(seen::names_of_vms()?.is_empty()))?;
    let mut guests = guests()?;
    exact(&kvmate, &mut guests)?;
    drop(guests);
    kvmate.unload()
}

fn rmmod_meanwhile() -> Result<()> {
    let delay = Delay::load()?;
    delay.set("one_in", 16)?;
    for point in ["exit_before", "exit_after", "entry_before"] {
        delay.at(point, MS)?;
    }
    let guests = guests()?;
    let _vmm = Vmm::start(true)?;
    interrupted(3, || {
        let load = || -> Result<()> {
            for round in 0..storm::rounds(10) {
                let kvmate = Kvmate::load(ALL)?;
                thread::sleep(Duration::from_micros(u64::from(round) * 7919 % 23_000));
                kvmate.unload()?;
            }
            Ok(())
        };
        storm::under_load(guests, MS, load).map(drop)
    })?;
    delay.unload()
}
