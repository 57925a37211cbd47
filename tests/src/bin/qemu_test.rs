// SPDX-License-Identifier: GPL-2.0
//! A Linux guest under an unmodified QEMU counts in its `/proc/interrupts` what kvmate injects; and its
//! memory is told as KVM counts it and `/proc` shows QEMU's.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::{irq, qemu::Qemu},
    ktap, map,
    module::Kvmate,
    storm,
    way::{self, Target},
};
use nix::{errno::Errno, libc};
use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::{Command, ExitCode},
};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

fn main() -> ExitCode {
    ktap::main(&[
        ("chips_in_the_kernel", chips_in_the_kernel),
        ("split_irqchip", split_irqchip),
        ("memory", memory),
    ])
}

/// Lines whose drivers want nothing while the guest is idle: the mouse, disks that are not there, and
/// the ACPI's, which is level-triggered.
const MOUSE: (&str, u32) = ("12", 12);
const DISK: (&str, u32) = ("14", 14);
const ACPI: (&str, u32) = ("9", 9);
/// Linux's vector to have a processor reschedule; the guest has one only, which never asks itself.
const RESCHEDULE: (&str, u8) = ("RES", 0xfd);
const NMI: &str = "NMI";
/// What the guest does by itself: its timer, the serial port that we ask over, what it prints, and after
/// minutes a look for machine checks.
const OWN: [&str; 4] = ["LOC", "4", "IWI", "MCP"];

const MANY: u64 = 20;

/// A descriptor of QEMU's VM, taken from QEMU.
fn vm_of(process: u32, vm: &str) -> Result<OwnedFd> {
    let number: i32 = vm.split('-').nth(1).context("a VM's name")?.parse()?;
    // SAFETY: Integers only; each call gives a descriptor that nobody else owns, or an error.
    let of =
        |got: libc::c_long| Errno::result(got).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) });
    let process = of(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) });
    let process = process.context("pidfd_open")?;
    of(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
        .context("pidfd_getfd")
}

/// What the guest counts, but for what it does by itself.
fn counts(qemu: &mut Qemu) -> Result<BTreeMap<String, u64>> {
    let mut counts = qemu.interrupts()?;
    counts.retain(|line, _| !OWN.contains(&line.as_str()));
    Ok(counts)
}

/// A guest, and what it is to have counted.
struct Counted {
    qemu: Qemu,
    name: String,
    expected: BTreeMap<String, u64>,
}

impl Counted {
    fn new(irqchip: &str) -> Result<Self> {
        let mut qemu = Qemu::start(irqchip)?;
        Ok(Self {
            name: qemu.name()?,
            expected: counts(&mut qemu)?,
            qemu,
        })
    }

    /// Give so many, each when the guest has counted the one before.
    fn give(&mut self, line: &str, mut one: impl FnMut() -> Result<()>) -> Result<()> {
        let expected = self.expected.get_mut(line);
        let expected = expected.with_context(|| format!("no line {line}"))?;
        for _ in 0..MANY {
            one()?;
            *expected += 1;
            self.qemu.until(line, *expected)?;
        }
        self.is_all(&format!("after {line}"))
    }

    /// Write to the VM's file `inject`.
    fn inject(&mut self, line: &str, what: &str) -> Result<()> {
        let name = self.name.clone();
        self.give(line, || way::inject(&name, what))
    }

    /// Bind an eventfd and write to that.
    fn bind(&mut self, line: &str, target: Target) -> Result<()> {
        let signal = EventFd::new(0)?;
        let vm = vm_of(self.qemu.process(), &self.name)?;
        let binding = way::bind(&way::request(&vm, &signal, target)).context(line.to_owned())?;
        drop(vm);
        self.give(line, || Ok(signal.write(1)?))?;
        drop(binding);
        signal.write(1)?;
        self.is_all(&format!("{line} without its binding"))
    }

    /// The guest has counted that, and nothing else.
    fn is_all(&mut self, what: &str) -> Result<()> {
        ensure_eq!(counts(&mut self.qemu)?, self.expected, "{what}");
        Ok(())
    }
}

/// kvmate, with injection allowed.
fn load() -> Result<Kvmate> {
    let kvmate = Kvmate::load("")?;
    kvmate.write("knobs/inject", "1")?;
    Ok(kvmate)
}

fn chips_in_the_kernel() -> Result<()> {
    let kvmate = load()?;
    let mut guest = Counted::new("on")?;
    guest.inject(MOUSE.0, &format!("gsi {}", MOUSE.1))?;
    guest.bind(DISK.0, Target::Gsi(DISK.1))?;

    // Level: up until the guest's EOI, of which we are told once for each.
    let served = EventFd::new(EFD_NONBLOCK)?;
    guest.bind(ACPI.0, Target::Level(ACPI.1, &served))?;
    ensure_eq!(served.read().context("no EOI")?, MANY, "EOIs");

    guest.qemu.end()?;
    kvmate.unload()
}

/// The IOAPIC is QEMU's own here: its lines are routed as the MSIs that it makes of them.
fn split_irqchip() -> Result<()> {
    let kvmate = load()?;
    let mut guest = Counted::new("split")?;
    guest.inject(MOUSE.0, &format!("gsi {}", MOUSE.1))?;
    guest.bind(DISK.0, Target::Gsi(DISK.1))?;
    let (address, data) = irq::msi(0, RESCHEDULE.1);
    guest.inject(RESCHEDULE.0, &format!("msi {address:#x} {data:#x}"))?;
    guest.bind(RESCHEDULE.0, Target::Msi((address, data), 0))?;
    guest.inject(NMI, "nmi 0")?;
    guest.qemu.end()?;
    kvmate.unload()
}

fn memory() -> Result<()> {
    let kvmate = load()?;
    let qemu = Qemu::start("on")?;
    let name = qemu.name()?;
    // The guest is idle, not at rest: until KVM counts the same before and after.
    let mut ranges = Vec::new();
    storm::until("the tables are as KVM counts", || {
        let before = map::kvm_pages(&name)?;
        let rows = map::table(&name, "stage2", map::STAGE2)?;
        ranges = map::table(&name, "stage2_map", map::RANGES)?;
        let mut leaves = [0; 3];
        for row in &rows {
            if let Some(sum) = leaves.get_mut(row.number("level")? as usize - 1) {
                *sum += row.number("leaves")?;
            }
        }
        Ok(leaves == before && map::kvm_pages(&name)? == before)
    })?;
    let mut mapped = 0;
    for range in ranges.iter().filter(|range| range.get("kind") == "leaf") {
        let gpa = range.number("gpa")?;
        let size = range.number("size")?;
        mapped += size;
        // khugepaged may move it between the two.
        storm::until(&format!("{gpa:#x} is where /proc has it"), || {
            let page = map::look_up(&name, gpa + size - 4096)?;
            let expected = map::page_map_of(qemu.process(), page.number("hva")?)?;
            Ok(Some(page.number("pfn")?) == expected)
        })?;
    }
    ensure!(mapped > 16 << 20, "only {mapped} bytes are mapped");
    // QEMU's memory, but for what firmware and devices have: 128 MiB.
    let slots = map::table(&name, "memslots", map::MEMSLOTS)?;
    let sizes = slots.iter().map(|slot| slot.number("size"));
    let largest = sizes.collect::<Result<Vec<_>>>()?.into_iter().max();
    ensure_eq!(largest, Some(127 << 20), "the slot above 1 MiB");
    let tool = std::env::current_exe()?.with_file_name("kvmate");
    let told = Command::new(tool)
        .args(["map", "qemu-sys", "--why"])
        .output()?;
    let (out, err) = (
        String::from_utf8(told.stdout)?,
        String::from_utf8(told.stderr)?,
    );
    ensure!(told.status.success(), "{err}");
    ensure!(
        out.contains(": 127M at 0x100000 ") && out.contains("\nroot 0: tdp, "),
        "{out}"
    );
    qemu.end()?;
    kvmate.unload()
}
