// SPDX-License-Identifier: GPL-2.0
//! `irqs`: interrupts of guests known in advance, to the interrupt. The oracles: what was sent, what
//! guests' handlers count, and KVM's trace events.

use anyhow::{ensure, Context, Result};
use kvm_bindings::kvm_msi;
use kvmate_tests::{
    ensure_eq,
    guest::{
        irq::{msi, nmi, shared::FENCE, Chips, Guest, Trigger},
        long, Vm,
    },
    ktap,
    module::Kvmate,
    oracle::name_of,
    storm,
    traced::{Line, Traced, LAPICS},
};
use std::{collections::BTreeMap, fs, process::ExitCode};

fn main() -> ExitCode {
    ktap::main(&[
        ("off_by_default", off_by_default),
        ("exact", exact),
        ("coalesced", coalesced),
        ("of_the_lapics_own_timer", of_the_lapics_own_timer),
        ("ended_by_memory", ended_by_memory),
        ("switching", switching),
    ])
}

/// Injected, accepted, ended; `None` for `-`.
type Numbers = [Option<u64>; 3];

/// A table `irqs`, by vector.
fn irqs(kvmate: &Kvmate, path: &str) -> Result<BTreeMap<u8, Numbers>> {
    let text = kvmate.read(&format!("vms/{path}/irqs"))?;
    let mut lines = text.lines();
    ensure_eq!(
        lines.next(),
        Some("vector injected accepted eoi"),
        "columns"
    );
    let mut table = BTreeMap::new();
    for line in lines {
        let words: Vec<_> = line.split(' ').collect();
        let [vector, numbers @ ..] = &words[..] else {
            anyhow::bail!("no columns: {line}");
        };
        let vector = vector.strip_prefix("0x").context("a vector")?;
        let numbers = numbers.iter().map(|number| match *number {
            "-" => Ok(None),
            number => number.parse().map(Some),
        });
        let numbers: Vec<_> = numbers.collect::<Result<_, _>>()?;
        let numbers = numbers.try_into().map_err(|n| anyhow::anyhow!("{n:?}"))?;
        let before = table.insert(u8::from_str_radix(vector, 16)?, numbers);
        ensure!(before.is_none(), "two lines of {vector}");
    }
    Ok(table)
}

/// Whether the processor injects and ends interrupts by itself.
fn hidden() -> bool {
    let parameters = [
        "kvm_intel/parameters/enable_apicv",
        "kvm_amd/parameters/avic",
    ];
    let mut values = parameters.iter().map(|path| format!("/sys/module/{path}"));
    values.any(|path| fs::read_to_string(path).is_ok_and(|value| value.starts_with('Y')))
}

/// What a line is to be.
fn numbers(injected: u64, accepted: u64, ended: u64) -> Numbers {
    let seen = |count| (!hidden()).then_some(count);
    [seen(injected), Some(accepted), seen(ended)]
}

fn off_by_default() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    ensure_eq!(kvmate.read("knobs/irqs")?, "0", "knobs/irqs");
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    let name = storm::name_of(&guest.vm);
    guest.run(|running| {
        running.signal(msi(0, 0x51))?;
        running.until(0, 0x51, 1)
    })?;
    ensure_eq!(irqs(&kvmate, &name)?, BTreeMap::new(), "irqs");
    drop(guest);
    kvmate.unload()
}

/// Two VMs, whose vCPUs have the same numbers, and several ways in.
fn exact() -> Result<()> {
    const PIN: usize = 10;
    let kvmate = Kvmate::load("irqs=1")?;
    let traced = Traced::begin_with(LAPICS)?;
    let (mut first, mut second) = (Guest::new(Chips::Kernel, 2)?, Guest::new(Chips::Kernel, 1)?);
    first.ioapic(PIN, Trigger::Edge, 1, 0x71);
    let names = [storm::name_of(&first.vm), storm::name_of(&second.vm)];
    // By VM, vCPU and vector.
    let sent = [
        (0, 0, 0x51, 20),
        (0, 0, 0x61, 3),
        (0, 1, 0x51, 13),
        (0, 1, 0x71, 5),
        (1, 0, 0x51, 7),
    ];
    let counts = first.run(|first| {
        second.run(|second| {
            let both = [first, second];
            for (vm, cpu, vector, count) in sent {
                for number in 1..=count {
                    if vector == 0x71 {
                        first.vm.fd.set_irq_line(PIN as u32, true)?;
                        first.vm.fd.set_irq_line(PIN as u32, false)?;
                    } else {
                        both[vm].signal(msi(cpu, vector))?;
                    }
                    both[vm].until(cpu, vector, number)?;
                }
            }
            // It has no vector.
            first.signal(nmi(0))?;
            let mut counts = Vec::new();
            for (vm, running) in both.into_iter().enumerate() {
                running.settled()?;
                for cpu in 0..2 - vm {
                    let of = |vector| (vm, cpu, vector, running.count(cpu, vector));
                    counts.extend((0..=255).map(of));
                }
            }
            Ok(counts)
        })
    })?;
    let traced = traced.read()?;
    for (vm, name) in names.iter().enumerate() {
        for cpu in 0..2 - vm {
            let path = format!("{name}/vcpu{cpu}");
            let table = irqs(&kvmate, &path)?;
            let mut expected = BTreeMap::new();
            for &(_, _, vector, count) in counts.iter().filter(|c| (c.0, c.1) == (vm, cpu)) {
                // NMIs are counted as vector 2.
                if count > 0 && vector != 2 {
                    expected.insert(vector, numbers(count, count, count));
                }
            }
            ensure_eq!(table, expected, "irqs of {path}");
            for &(_, _, vector, count) in sent.iter().filter(|s| (s.0, s.1) == (vm, cpu)) {
                ensure_eq!(
                    expected.get(&vector),
                    Some(&numbers(count, count, count)),
                    "sent"
                );
            }
        }
    }
    // KVM's own events tell no VM.
    let tables = [irqs(&kvmate, &names[0])?, irqs(&kvmate, &names[1])?];
    for vector in 0..=255 {
        let sum = |column: usize| -> Option<u64> {
            let lines = tables.iter().filter_map(|table| table.get(&vector));
            lines.map(|line| line[column]).sum()
        };
        let lines = [
            Line::Injected { vector },
            Line::Accepted { vector },
            Line::Ended { vector },
        ];
        for (column, line) in lines.into_iter().enumerate() {
            let events = traced.iter().filter(|l| **l == line).count() as u64;
            ensure!(
                sum(column).is_none_or(|sum| sum == events),
                "{events} events {line:?}, {:?} in the tables",
                sum(column)
            );
        }
    }
    drop((first, second));
    kvmate.unload()
}

/// What comes while the one before waits is accepted, and is one interrupt with it.
fn coalesced() -> Result<()> {
    const COUNT: u64 = 9;
    let kvmate = Kvmate::load("irqs=1")?;
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    let name = storm::name_of(&guest.vm);
    guest.run(|running| {
        let signal = |_| running.signal(msi(0, 0x52));
        running.held(|| (0..COUNT).try_for_each(signal))?;
        running.until(0, 0x52, 1)?;
        running.settled().map(drop)
    })?;
    let table = irqs(&kvmate, &name)?;
    ensure_eq!(table.get(&0x52), Some(&numbers(1, COUNT, 1)), "irqs");
    ensure!(table.contains_key(&FENCE), "no fence: {table:?}");
    kvmate.write(&format!("vms/{name}/reset"), "1")?;
    ensure_eq!(irqs(&kvmate, &name)?, BTreeMap::new(), "after a reset");
    // The record that is new is found as the old one was.
    guest.run(|running| {
        running.signal(msi(0, 0x53))?;
        running.until(0, 0x53, 1)?;
        running.settled().map(drop)
    })?;
    let table = irqs(&kvmate, &name)?;
    ensure_eq!(table.get(&0x53), Some(&numbers(1, 1, 1)), "irqs");
    drop(guest);
    kvmate.unload()
}

/// Nobody sends those: the LAPIC gives them to itself.
fn of_the_lapics_own_timer() -> Result<()> {
    const LVTT: usize = 0x320;
    const TMICT: usize = 0x380;
    const TMCCT: usize = 0x390;
    const TDCR: usize = 0x3e0;
    let kvmate = Kvmate::load("irqs=1")?;
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    long::start(&vcpu, 0, 0x41, 0)?;
    long::run(&mut vcpu)?;
    for number in 1..=4 {
        let mut lapic = vcpu.get_lapic()?;
        for (register, value) in [
            (LVTT, 0x41u32),
            (TDCR, 0xb),
            (TMICT, 100_000),
            (TMCCT, 100_000),
        ] {
            for (to, from) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
                *to = from as _;
            }
        }
        vcpu.set_lapic(&lapic)?;
        long::start(&vcpu, 0, 0x41, number)?;
        long::run(&mut vcpu)?;
    }
    ensure_eq!(long::seen(&vm.memory, 0x41), 4, "interrupts of the timer");
    let table = irqs(&kvmate, &name_of(&vm.fd))?;
    let expected = BTreeMap::from([(0x41, numbers(4, 4, 4))]);
    ensure_eq!(table, expected, "irqs");
    drop((vcpu, vm));
    kvmate.unload()
}

/// KVM ends an interrupt in the guest's stead, for which it fires two events.
fn ended_by_memory() -> Result<()> {
    const COUNT: u64 = 6;
    let kvmate = Kvmate::load("irqs=1")?;
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    long::start(&vcpu, 0, 0x41, 0)?;
    long::run(&mut vcpu)?;
    long::end_by_memory(&vcpu)?;
    for number in 1..=COUNT {
        vm.fd.signal_msi(kvm_msi {
            address_lo: 0xfee0_0000,
            data: 0x41,
            ..Default::default()
        })?;
        long::start(&vcpu, 0, 0x41, number)?;
        long::run(&mut vcpu)?;
    }
    ensure!(
        hidden() || long::ended_by_memory(&vm.memory) > 0,
        "KVM never let the guest do so"
    );
    let table = irqs(&kvmate, &name_of(&vm.fd))?;
    let expected = BTreeMap::from([(0x41, numbers(COUNT, COUNT, COUNT))]);
    ensure_eq!(table, expected, "irqs");
    drop((vcpu, vm));
    kvmate.unload()
}

/// What comes while the knob is 0 is not told, and what was told stands.
fn switching() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    let mut expected = 0;
    long::start(&vcpu, 0, 0x41, 0)?;
    long::run(&mut vcpu)?;
    for number in 1..=9 {
        let on = number % 3 == 0;
        kvmate.write("knobs/irqs", if on { "1" } else { "0" })?;
        vm.fd.signal_msi(kvm_msi {
            address_lo: 0xfee0_0000,
            data: 0x41,
            ..Default::default()
        })?;
        long::start(&vcpu, 0, 0x41, number)?;
        long::run(&mut vcpu)?;
        expected += u64::from(on);
        let table = irqs(&kvmate, &name_of(&vm.fd))?;
        let found = table.get(&0x41).copied();
        let all = (expected > 0).then(|| numbers(expected, expected, expected));
        ensure_eq!(found, all, "irqs after {number}");
    }
    drop((vcpu, vm));
    kvmate.unload()
}
