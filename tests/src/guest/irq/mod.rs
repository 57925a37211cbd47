// SPDX-License-Identifier: GPL-2.0
//! A guest in Rust with an IDT and its LAPIC, PIC and IOAPIC in use, that counts its interrupts.
//!
//! It is this very program (`load`), begun at a function of its own (`inside`). It counts each
//! interrupt by vCPU and vector in memory that the test reads ([`shared`]), and ends it (EOI) where it
//! came from (`chips`). It halts, spins or holds (takes no interrupt) as the test says. An exception
//! ends the test.
//!
//! The vCPUs run on threads of their own while the test goes on ([`Guest::run`]).

mod chips;
mod inside;
mod load;
pub mod shared;

use super::Vm;
use crate::{module::Stop, storm};
use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{
    kvm_device_attr, kvm_enable_cap, kvm_irq_routing_entry, kvm_msi, KvmIrqRouting,
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::{
    errno::Errno,
    libc,
    sys::{
        pthread::{pthread_kill, pthread_self},
        signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal},
    },
};
use shared::{Machine, FAULT, FENCE, HALT, HELD, HOLD, SPIN};
use std::{
    collections::BTreeMap,
    sync::{
        atomic::Ordering::{Acquire, Relaxed, Release},
        mpsc::channel,
    },
    thread,
    time::Duration,
};
use vmm_sys_util::ioctl::ioctl_with_ref;

mod numbers {
    #![allow(missing_docs)] // the macro's function takes no comment
    use kvm_bindings::{kvm_device_attr, KVMIO};
    vmm_sys_util::ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
}
use numbers::KVM_SET_DEVICE_ATTR;

/// Interrupts by vCPU and vector, without those that are 0 and without [`FENCE`].
pub type Counts = BTreeMap<(usize, u8), u64>;

/// Which interrupt controllers are in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chips {
    /// All.
    Kernel,
    /// The LAPICs only: `KVM_CAP_SPLIT_IRQCHIP`.
    Split,
}

/// How a GSI's line is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// By its rise.
    Edge,
    /// While it is up.
    Level,
}

fn machine(vm: &Vm) -> &Machine {
    vm.memory.shared(load::SHARED)
}

/// The MSI that gives a vCPU an interrupt: address and data.
pub fn msi(cpu: usize, vector: u8) -> (u64, u32) {
    (0xfee0_0000 | ((cpu as u64) << 12), vector.into())
}

/// The MSI that gives a vCPU an NMI.
pub fn nmi(cpu: usize) -> (u64, u32) {
    (msi(cpu, 0).0, 0x400)
}

/// Such a guest.
pub struct Guest {
    // The vCPUs go before the VM's memory.
    vcpus: Vec<VcpuFd>,
    /// Its VM.
    pub vm: Vm,
    name: String,
}

impl Guest {
    /// One with so many vCPUs, all of whose lines are masked.
    pub fn new(chips: Chips, vcpus: usize) -> Result<Self> {
        let vm = Vm::new(load::MEMORY, chips == Chips::Kernel)?;
        if chips == Chips::Split {
            let mut split = kvm_enable_cap {
                cap: KVM_CAP_SPLIT_IRQCHIP,
                ..Default::default()
            };
            split.args[0] = 24;
            vm.fd.enable_cap(&split).context("KVM_CAP_SPLIT_IRQCHIP")?;
        }
        load::load(&vm)?;
        let kernel = u64::from(chips == Chips::Kernel);
        machine(&vm).chips.store(kernel, Relaxed);
        let vcpus = (0..vcpus)
            .map(|id| {
                let vcpu = vm.vcpu(id as u64)?;
                load::start(&vm, &vcpu, id)?;
                Ok(vcpu)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            vcpus,
            name: storm::name_of(&vm),
            vm,
        })
    }

    /// What it shares with the test.
    pub fn machine(&self) -> &Machine {
        machine(&self.vm)
    }

    /// A vCPU, while it does not run.
    pub fn vcpu(&self, cpu: usize) -> &VcpuFd {
        &self.vcpus[cpu]
    }

    /// Let the vCPUs' time-stamp counters be the host's.
    pub fn share_clock(&self) -> Result<()> {
        let offset = 0u64;
        let attribute = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: KVM_VCPU_TSC_OFFSET.into(),
            addr: (&raw const offset).addr() as u64,
            ..Default::default()
        };
        self.vcpus.iter().try_for_each(|vcpu| {
            // SAFETY: The argument is what the number wants, and what it points to is there.
            let set = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) };
            ensure!(set == 0, "KVM_VCPU_TSC_OFFSET: {}", Errno::last());
            Ok(())
        })
    }

    /// Before it runs: let the IOAPIC give this pin's interrupts to a vCPU.
    pub fn ioapic(&self, pin: usize, trigger: Trigger, cpu: usize, vector: u8) {
        let level = u64::from(trigger == Trigger::Level) << 15;
        let entry = ((cpu as u64) << 56) | level | u64::from(vector);
        self.machine().pins[pin].store(entry, Relaxed);
    }

    /// Before it runs: let the PICs give this line's interrupts to the first vCPU. Their vector.
    pub fn pic(&self, line: u8, trigger: Trigger) -> u8 {
        let machine = self.machine();
        machine.pic.fetch_or(1 << line, Relaxed);
        let level = u64::from(trigger == Trigger::Level);
        machine.pic_level.fetch_or(level << line, Relaxed);
        shared::PIC + line
    }

    /// KVM's own routes of the chips' lines, and these MSIs from GSI 24 on.
    pub fn route(&self, msis: &[(u64, u32)]) -> Result<()> {
        let chip = |gsi: u32, irqchip: u32, pin: u32| {
            let mut entry = kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip.irqchip = irqchip;
            entry.u.irqchip.pin = pin;
            entry
        };
        let mut entries = Vec::new();
        if self.machine().chips.load(Relaxed) != 0 {
            for line in 0..8 {
                entries.push(chip(line, KVM_IRQCHIP_PIC_MASTER, line));
                entries.push(chip(line + 8, KVM_IRQCHIP_PIC_SLAVE, line));
            }
            entries.extend((0..24).map(|pin| chip(pin, KVM_IRQCHIP_IOAPIC, pin)));
        }
        for (gsi, (address, data)) in (24..).zip(msis) {
            let mut entry = kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi.address_lo = *address as u32;
            entry.u.msi.address_hi = (address >> 32) as u32;
            entry.u.msi.data = *data;
            entries.push(entry);
        }
        let routing = KvmIrqRouting::from_entries(&entries)?;
        self.vm
            .fd
            .set_gsi_routing(&routing)
            .context("KVM_SET_GSI_ROUTING")
    }

    /// Run all vCPUs while `watch` looks; it begins when they can take interrupts.
    pub fn run<R>(&mut self, watch: impl FnOnce(&Running) -> Result<R>) -> Result<R> {
        extern "C" fn nothing(_: libc::c_int) {}
        let handler = SigHandler::Handler(nothing);
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: The handler does nothing.
        unsafe { sigaction(Signal::SIGUSR1, &action) }?;
        let running = Running {
            vm: &self.vm,
            name: &self.name,
            cpus: self.vcpus.len(),
        };
        let stop = Stop::default();
        let stop = &stop;
        thread::scope(|scope| {
            let mut runners = Vec::new();
            for (id, vcpu) in self.vcpus.iter_mut().enumerate() {
                let (tell, told) = channel();
                let builder = thread::Builder::new().name(format!("vcpu {id}"));
                let runner = builder.spawn_scoped(scope, move || {
                    let _ = tell.send(pthread_self());
                    run(vcpu, stop)
                })?;
                runners.push((told.recv()?, runner));
            }
            let ready = storm::until("the guest is ready", || {
                ensure!(
                    runners.iter().all(|(_, r)| !r.is_finished()),
                    "a vCPU ended"
                );
                let cpus = &running.machine().cpus[..running.cpus];
                Ok(cpus.iter().all(|cpu| cpu.ready.load(Acquire) == 1))
            });
            let seen = ready.and_then(|()| watch(&running));
            stop.ask();
            let mut ended = Ok(());
            for (handle, runner) in runners {
                while !runner.is_finished() {
                    pthread_kill(handle, Signal::SIGUSR1)?;
                    thread::sleep(Duration::from_millis(1));
                }
                ended = ended.and(runner.join().expect("a vCPU's thread"));
            }
            // What ended a vCPU explains what was seen.
            ended.and(seen)
        })
    }
}

fn run(vcpu: &mut VcpuFd, stop: &Stop) -> Result<()> {
    while !stop.asked() {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(HELD, _)) => thread::sleep(Duration::from_micros(200)),
            Ok(VcpuExit::IoOut(FAULT, data)) => {
                let vector = data[0];
                let (at, sregs) = (vcpu.get_regs()?, vcpu.get_sregs()?);
                bail!(
                    "the guest took exception {vector}: {at:x?}, cr2 {:#x}",
                    sregs.cr2
                );
            }
            Ok(other) => bail!("unexpected exit to user space: {other:?}"),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error).context("KVM_RUN"),
        }
    }
    Ok(())
}

/// A guest while it runs.
pub struct Running<'a> {
    /// Its VM.
    pub vm: &'a Vm,
    /// What KVM calls that.
    pub name: &'a str,
    cpus: usize,
}

impl Running<'_> {
    /// What it shares with the test.
    pub fn machine(&self) -> &Machine {
        machine(self.vm)
    }

    /// How many interrupts of a vector a vCPU has taken.
    pub fn count(&self, cpu: usize, vector: u8) -> u64 {
        self.machine().cpus[cpu].counts[usize::from(vector)].load(Acquire)
    }

    /// Stand by until a vCPU has taken so many.
    pub fn until(&self, cpu: usize, vector: u8, count: u64) -> Result<()> {
        let what = format!("vCPU {cpu} has taken {count} of vector {vector:#x}");
        storm::until(&what, || Ok(self.count(cpu, vector) >= count))
            .with_context(|| format!("it has taken {:x?}", self.counts()))
    }

    /// All that were taken so far.
    pub fn counts(&self) -> Counts {
        (0..self.cpus)
            .flat_map(|cpu| (0..=255).map(move |vector| (cpu, vector)))
            .map(|of| (of, self.count(of.0, of.1)))
            .filter(|((_, vector), count)| *vector != FENCE && *count > 0)
            .collect()
    }

    /// All that were taken when nothing that was sent is pending any more, nor waits for its EOI.
    pub fn settled(&self) -> Result<Counts> {
        // What kvmate and KVM hand to workers, on a machine that does little else.
        thread::sleep(Duration::from_millis(20));
        self.wake()?;
        Ok(self.counts())
    }

    /// Give each vCPU an interrupt, which it takes after all others. How many it has taken then.
    fn nudge(&self) -> Result<Vec<u64>> {
        (0..self.cpus)
            .map(|cpu| {
                let before = self.count(cpu, FENCE);
                self.signal(msi(cpu, FENCE))?;
                Ok(before + 1)
            })
            .collect()
    }

    fn nudged(&self, fences: &[u64]) -> Result<()> {
        (0..)
            .zip(fences)
            .try_for_each(|(cpu, count)| self.until(cpu, FENCE, *count))
    }

    fn wake(&self) -> Result<()> {
        self.nudged(&self.nudge()?)
    }

    /// `KVM_SIGNAL_MSI`; KVM says whether it was delivered.
    pub fn signal(&self, (address, data): (u64, u32)) -> Result<()> {
        let delivered = self.vm.fd.signal_msi(kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        })?;
        ensure!(delivered > 0, "KVM_SIGNAL_MSI: {delivered}");
        Ok(())
    }

    fn turn(&self, mode: u64) {
        self.machine().mode.store(mode, Release);
    }

    /// Let it halt between interrupts, as it does at first.
    pub fn halt(&self) {
        self.turn(HALT);
    }

    /// Let it compute between interrupts.
    pub fn spin(&self) -> Result<()> {
        self.turn(SPIN);
        self.wake()?;
        for cpu in &self.machine().cpus[..self.cpus] {
            let before = cpu.turns.load(Relaxed);
            storm::until("it spins", || Ok(cpu.turns.load(Relaxed) > before))?;
        }
        Ok(())
    }

    /// Do something while the guest takes no interrupts, NMIs excepted; then it halts between them.
    pub fn held<R>(&self, meanwhile: impl FnOnce() -> Result<R>) -> Result<R> {
        self.turn(HOLD);
        let cpus = &self.machine().cpus[..self.cpus];
        let fences = self.nudge()?;
        storm::until("it holds", || {
            Ok(cpus.iter().all(|cpu| cpu.held.load(Acquire) == 1))
        })?;
        let done = meanwhile();
        self.halt();
        self.nudged(&fences)?;
        done
    }
}
