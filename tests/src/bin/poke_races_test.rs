// SPDX-License-Identifier: GPL-2.0
//! Races of bindings, made to happen: `kvmate_delay` waits in a wake-up, in a delivery, at an EOI or in
//! an unbinding, and what races with it is done meanwhile. Then all of it at once.

use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_irq_routing_entry, KvmIrqRouting, KVM_IRQ_ROUTING_MSI};
use kvmate_tests::{
    delay::Delay,
    ensure_eq,
    guest::{irq::Trigger, Vm},
    ktap,
    module::{Kvmate, Stop},
    poke::{self, poked, Binding, Device, MSI, MSI_VECTOR, PIN, VECTOR},
    seen,
    storm::{self, Vmm},
    traced::Traced,
};
use nix::errno::Errno;
use std::{
    fs,
    os::fd::AsRawFd,
    process::ExitCode,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

fn main() -> ExitCode {
    ktap::main(&[
        ("closed_in_a_wake_up", closed_in_a_wake_up),
        ("closed_in_a_delivery", closed_in_a_delivery),
        ("written_in_an_unbinding", written_in_an_unbinding),
        ("vm_ends_in_a_wake_up", vm_ends_in_a_wake_up),
        ("vm_ends_in_a_delivery", vm_ends_in_a_delivery),
        ("closed_at_an_eoi", closed_at_an_eoi),
        ("vmm_is_killed", vmm_is_killed),
        ("everything", everything),
    ])
}

const MS: Duration = Duration::from_millis(1);

fn eventfd() -> Result<EventFd> {
    Ok(EventFd::new(EFD_NONBLOCK)?)
}

/// A VM with all chips and a vCPU that does not run, KVM's routes of the pins and one to an MSI.
fn vm() -> Result<Vm> {
    let vm = Vm::new(1 << 16, true)?;
    drop(vm.vcpu(0)?);
    let mut msi = kvm_irq_routing_entry {
        gsi: MSI,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    msi.u.msi.address_lo = 0xfee0_0000;
    msi.u.msi.data = MSI_VECTOR.into();
    let mut entries = vec![msi];
    for chip in [1, 2] {
        let mut pin = kvm_irq_routing_entry {
            gsi: PIN,
            type_: 1,
            ..Default::default()
        };
        pin.u.irqchip.irqchip = chip;
        pin.u.irqchip.pin = if chip == 1 { PIN - 8 } else { PIN };
        entries.push(pin);
    }
    vm.fd
        .set_gsi_routing(&KvmIrqRouting::from_entries(&entries)?)?;
    Ok(vm)
}

/// Bind to that GSI, of either kind.
fn bind(device: &Device, vm: &Vm, eventfd: &EventFd, gsi: u32) -> Result<Binding> {
    Ok(device.bind(poke::gsi(vm.fd.as_raw_fd(), eventfd.as_raw_fd(), gsi))?)
}

/// Somebody waits at that point after a write; meanwhile the binding is closed. When that has returned
/// nothing goes into the chips.
fn closed_at(point: &str) -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (device, delay, vm) = (Device::open()?, Delay::load()?, vm()?);
    for gsi in [PIN, MSI] {
        for _ in 0..storm::rounds(24) {
            let eventfd = eventfd()?;
            let binding = bind(&device, &vm, &eventfd, gsi)?;
            delay.at(point, 10 * MS)?;
            let before = delay.hits(point)?;
            thread::scope(|scope| -> Result<()> {
                let writer = scope.spawn(|| eventfd.write(1));
                delay.until_hit(point, before)?;
                drop(binding);
                let events = Traced::begin()?;
                writer.join().expect("the writer")?;
                thread::sleep(2 * MS);
                events.none("the close")
            })?;
            delay.set(point, 0)?;
        }
    }
    delay.unload()?;
    drop(device);
    kvmate.unload()
}

fn closed_in_a_wake_up() -> Result<()> {
    closed_at("woken")
}

fn closed_in_a_delivery() -> Result<()> {
    closed_at("delivered")
}

/// Written while the binding is about to leave the queue: what is written in time may be delivered,
/// but not after the close.
fn written_in_an_unbinding() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (device, delay, vm) = (Device::open()?, Delay::load()?, vm()?);
    for gsi in [PIN, MSI] {
        for _ in 0..storm::rounds(24) {
            let eventfd = eventfd()?;
            let binding = bind(&device, &vm, &eventfd, gsi)?;
            delay.at("unbound", 10 * MS)?;
            let before = delay.hits("unbound")?;
            thread::scope(|scope| -> Result<()> {
                let closer = scope.spawn(move || drop(binding));
                delay.until_hit("unbound", before)?;
                while !closer.is_finished() {
                    eventfd.write(1)?;
                }
                closer.join().expect("the closer");
                let events = Traced::begin()?;
                eventfd.write(1)?;
                thread::sleep(2 * MS);
                events.none("the close")
            })?;
            delay.set("unbound", 0)?;
        }
    }
    delay.unload()?;
    drop(device);
    kvmate.unload()
}

/// The VM's last file is closed while somebody waits at that point; its end waits for who is in it.
fn vm_ends_at(point: &str) -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (device, delay) = (Device::open()?, Delay::load()?);
    for gsi in [PIN, MSI] {
        for _ in 0..storm::rounds(24) {
            let (vm, eventfd) = (vm()?, eventfd()?);
            let binding = bind(&device, &vm, &eventfd, gsi)?;
            for point in [point, "ended", "destroy"] {
                delay.at(point, 10 * MS)?;
            }
            let before = delay.hits(point)?;
            thread::scope(|scope| -> Result<()> {
                let writer = scope.spawn(|| eventfd.write(1));
                delay.until_hit(point, before)?;
                drop(vm);
                eventfd.write(1)?;
                writer.join().expect("the writer")?;
                Ok(())
            })?;
            for point in [point, "ended", "destroy"] {
                delay.set(point, 0)?;
            }
            eventfd.write(1)?;
            storm::until("it has gone", || Ok(seen::names_of_vms()?.is_empty()))?;
            drop(binding);
        }
    }
    delay.unload()?;
    drop(device);
    kvmate.unload()
}

fn vm_ends_in_a_wake_up() -> Result<()> {
    vm_ends_at("woken")
}

fn vm_ends_in_a_delivery() -> Result<()> {
    vm_ends_at("delivered")
}

/// Closed while the guest's EOI is on its way: told before the close has returned, or never, and the
/// line is down.
fn closed_at_an_eoi() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (device, delay) = (Device::open()?, Delay::load()?);
    for point in ["ack_before", "ack_after"] {
        poked(Trigger::Level, |guest| {
            for round in 1..=u64::from(storm::rounds(24)) {
                let (eventfd, resample) = (eventfd()?, eventfd()?);
                let vm = guest.running.vm.fd.as_raw_fd();
                let asked = poke::level(vm, eventfd.as_raw_fd(), resample.as_raw_fd(), PIN);
                let binding = device.bind(asked)?;
                delay.at(point, 10 * MS)?;
                let before = delay.hits(point)?;
                eventfd.write(1)?;
                delay.until_hit(point, before)?;
                drop(binding);
                let told = resample.read().is_ok();
                ensure!(
                    told || point == "ack_before",
                    "the EOI was over, and it was not told"
                );
                delay.set(point, 0)?;
                guest.took(&[(VECTOR, round)])?;
                ensure!(resample.read().is_err(), "told after the close");
            }
            Ok(())
        })?;
    }
    delay.unload()?;
    drop(device);
    kvmate.unload()
}

/// A VMM of which a tool took the VMs is killed while they are signalled.
fn vmm_is_killed() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let mut bound = 0;
    for _ in 0..storm::rounds(12) {
        let vmm = Vmm::start(true)?;
        let mut bindings = Vec::new();
        for name in seen::names_of_vms()? {
            // VMs of this VMM come and go.
            let Ok(vm) = seen::taken_from(&name) else {
                continue;
            };
            for gsi in [PIN, MSI] {
                let eventfd = eventfd()?;
                let asked = poke::gsi(vm.as_raw_fd(), eventfd.as_raw_fd(), gsi);
                match device.bind(asked) {
                    Ok(binding) => bindings.push((binding, eventfd)),
                    Err(Errno::EBADFD) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        bound += bindings.len();
        let stop = Stop::default();
        thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| -> Result<()> {
                while !stop.asked() {
                    for (_, eventfd) in &bindings {
                        eventfd.write(1)?;
                    }
                }
                Ok(())
            });
            thread::sleep(3 * MS);
            let killed = vmm.kill();
            // Nothing keeps its VMs.
            let gone = storm::until("they have gone", || Ok(seen::names_of_vms()?.is_empty()));
            drop(stop.on_drop());
            writer.join().expect("the writer")?;
            killed.and(gone)
        })?;
    }
    ensure!(bound > 0, "no VM was ever taken");
    drop(device);
    kvmate.unload()
}

/// A generator of numbers that need not be good.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

/// VMs come and go, bindings are made, signalled and closed in any order, the shell injects, all tables are
/// read, everything now and then late; a guest with a level that goes on meanwhile misses nothing.
fn everything() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    kvmate.write("knobs/inject", "1")?;
    let (device, delay) = (Device::open()?, Delay::load()?);
    delay.set("one_in", 16)?;
    for point in ["woken", "delivered", "unbound", "ack_before", "ack_after"] {
        delay.at(point, Duration::from_micros(400))?;
    }
    for point in ["ended", "destroy"] {
        delay.at(point, MS)?;
    }
    let end = Instant::now() + Duration::from_secs(if storm::slow() { 60 } else { 10 });
    let current: [Mutex<Option<Arc<Vm>>>; 2] = [Mutex::new(None), Mutex::new(None)];
    let shared = [eventfd()?, eventfd()?, eventfd()?];
    let over = || Instant::now() >= end;
    let makers = |number: usize| -> Result<u64> {
        let (mut dice, mut made) = (Dice(number as u64 + 1), 0);
        while !over() {
            let next = Arc::new(vm()?);
            *current[number].lock().expect("the lock") = Some(next);
            made += 1;
            thread::sleep(Duration::from_micros(dice.below(8000)));
        }
        *current[number].lock().expect("the lock") = None;
        Ok(made)
    };
    let binders = |number: u64| -> Result<u64> {
        let (mut dice, mut bound) = (Dice(number + 77), 0);
        while !over() {
            let vm = current[dice.below(2) as usize]
                .lock()
                .expect("the lock")
                .clone();
            let Some(vm) = vm else { continue };
            let (own, resample) = (eventfd()?, eventfd()?);
            let eventfd = match dice.below(3) {
                0 => shared[dice.below(3) as usize].as_raw_fd(),
                _ => own.as_raw_fd(),
            };
            let fd = vm.fd.as_raw_fd();
            let asked = match dice.below(4) {
                0 => poke::gsi(fd, eventfd, PIN),
                1 => poke::gsi(fd, eventfd, MSI),
                2 => poke::msi_at(fd, eventfd, (0xfee0_0000, 0x71)),
                _ => poke::level(fd, eventfd, resample.as_raw_fd(), PIN),
            };
            let binding = match device.bind(asked) {
                Ok(binding) => binding,
                Err(Errno::EBUSY) if eventfd != own.as_raw_fd() => continue,
                Err(error) => return Err(error.into()),
            };
            bound += 1;
            let (mut vm, mut own, mut binding) = (Some(vm), Some(own), Some(binding));
            for _ in 0..dice.below(12) {
                if let Some(own) = &own {
                    own.write(1)?;
                }
                match dice.below(8) {
                    0 => vm = None,
                    1 => own = None,
                    2 => binding = None,
                    _ => thread::sleep(Duration::from_micros(dice.below(300))),
                }
            }
            drop((vm, own, binding));
        }
        Ok(bound)
    };
    let signaller = || -> Result<u64> {
        let mut written = 0;
        while !over() {
            for eventfd in &shared {
                eventfd.write(1)?;
                // Where nobody takes it out.
                let _ = eventfd.read();
            }
            written += 1;
            thread::sleep(Duration::from_micros(100));
        }
        Ok(written)
    };
    let shell = || -> Result<u64> {
        let (mut dice, mut injected) = (Dice(5), 0);
        while !over() {
            for name in seen::names_of_vms()? {
                let folder = seen::vms().join(name);
                for file in ["bindings", "irqfds", "latency", "storm", "inject_status"] {
                    storm::read_fleeting(&folder.join(file))?;
                }
                if dice.below(16) == 0 {
                    let value = ["0", "1"][dice.below(2) as usize];
                    kvmate.write("knobs/latency", value)?;
                }
                let (file, text) = match dice.below(7) {
                    0 => ("inject", "gsi 10"),
                    1 => ("inject", "gsi 11 high"),
                    2 => ("inject", "msi 0xfee00000 0x71"),
                    3 => ("inject", "nmi 0"),
                    4 => ("storm", "msi 0xfee00000 0x71 count 1000 rate 20000"),
                    5 => ("storm", "gsi 12 count 1000 rate 20000"),
                    _ => ("storm", "stop"),
                };
                match poke::write(&folder.join(file), text.as_bytes()) {
                    Ok(()) => injected += 1,
                    // It has ended; a storm is there; no vCPU yet; no route yet; a vCPU without APIC.
                    Err(
                        Errno::EIO | Errno::ENOENT | Errno::EBUSY | Errno::ESRCH | Errno::ENXIO,
                    ) => {}
                    Err(error) => return Err(error).context(text),
                }
            }
            thread::sleep(MS);
        }
        Ok(injected)
    };
    thread::scope(|scope| -> Result<()> {
        let mut threads = vec![];
        for number in 0..2 {
            threads.push(("VMs", scope.spawn(move || makers(number))));
        }
        for number in 0..3 {
            threads.push(("bindings", scope.spawn(move || binders(number))));
        }
        threads.push(("signals", scope.spawn(signaller)));
        threads.push(("injections", scope.spawn(shell)));
        let steady = poked(Trigger::Level, |guest| {
            let (eventfd, resample) = (eventfd()?, eventfd()?);
            let vm = guest.running.vm.fd.as_raw_fd();
            let asked = poke::level(vm, eventfd.as_raw_fd(), resample.as_raw_fd(), PIN);
            let _binding = device.bind(asked)?;
            let mut rounds = 0;
            while !over() {
                eventfd.write(1)?;
                storm::until("it is told of the EOI", || Ok(resample.read().is_ok()))?;
                rounds += 1;
            }
            Ok(rounds)
        });
        for (what, thread) in threads {
            let count = thread.join().expect("a thread")?;
            println!("# {what}: {count}");
            ensure!(count > 0, "no {what}");
        }
        let rounds = steady?;
        println!("# rounds of the steady guest: {rounds}");
        Ok(())
    })?;
    for point in ["woken", "delivered", "unbound", "ack_before", "ack_after"] {
        println!("# late at {point}: {}", delay.hits(point)?);
    }
    storm::until("all VMs have gone", || Ok(seen::names_of_vms()?.is_empty()))?;
    ensure_eq!(
        fs::read_to_string(seen::vms().join("../knobs/inject"))?,
        "1\n",
        "the knob"
    );
    delay.unload()?;
    drop(device);
    kvmate.unload()
}
