// SPDX-License-Identifier: GPL-2.0
//! `kvmate irqfd`: an eventfd bound to an interrupt of a VM, for a command that inherits it.

use crate::{
    become_command, device,
    process::Process,
    tree::{self, Vm},
    units,
};
use anyhow::{anyhow, bail, Context, Result};
use clap::Args;
use kvmate_uapi::{call::Device, kvmate_irqfd, KVMATE_IRQFD_MSI, KVMATE_IRQFD_RESAMPLE};
use rustix::{
    event::{eventfd, EventfdFlags},
    io::Errno,
};
use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
};

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
CMD inherits the eventfd: its number is in KVMATE_EVENTFD and stands for each {} in CMD's arguments. Each write of 8 bytes
to it (a number that is not 0) is one interrupt. It also inherits the binding, which ends with the last process that
has it: of a GSI that is routed to pins, which a worker of the kernel raises, what is written just before that may be lost.
With --resample, KVMATE_RESAMPLE_EVENTFD is the number of a second eventfd, to which 1 is added at the guest's EOI.
Examples:
  kvmate irqfd qemu --gsi 10 -- ./my-device --irq-fd {}
  kvmate irqfd 101-4 --msi 0xfee00000:0x4041 -- bash -c 'printf \"\\1\\0\\0\\0\\0\\0\\0\\0\" >&$KVMATE_EVENTFD'
knobs/inject is not asked: the VM's own descriptor is taken from its VMM, for which this needs root.
Exit status: CMD's, which this process becomes; before that 1 failed, 2 wrong usage, 126 CMD cannot be run, 127 there is
no CMD. Errors of this tool's begin with \"kvmate: error:\".")]
pub struct Arguments {
    /// The VM: its name in /sys/kernel/debug/kvmate/vms (101-4), a process's number, or a part of
    /// a process's name that only one VM has
    pub vm: String,
    /// A GSI, what it is routed to when the interrupt comes
    #[arg(long, value_name = "N", value_parser = units::number::<u32>,
          required_unless_present = "msi", conflicts_with = "msi")]
    pub gsi: Option<u32>,
    /// Level: the GSI stays up until the guest's EOI
    #[arg(long, requires = "gsi", conflicts_with = "msi")]
    pub resample: bool,
    /// An MSI
    #[arg(long, value_name = "ADDR:DATA", value_parser = msi)]
    pub msi: Option<(u64, u32)>,
    /// What to run, and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

fn msi(text: &str) -> Result<(u64, u32), String> {
    let parts = text.split_once(':');
    let (address, data) = parts.ok_or("an MSI is like 0xfee00000:0x4041")?;
    Ok((units::number(address)?, units::number(data)?))
}

/// Do it.
pub fn run(asked: &Arguments) -> Result<()> {
    // First of all, so that their numbers are small: some shells know no others.
    let signal = eventfd(0, EventfdFlags::empty()).context("eventfd")?;
    let resample = asked.resample.then(|| eventfd(0, EventfdFlags::empty()));
    let resample = resample.transpose().context("eventfd")?;
    let vm = tree::find(&asked.vm)?;
    let device = device::open()?;
    let descriptor = descriptor_of(&vm, &device)?;
    let request = kvmate_irqfd {
        flags: flags(asked),
        vm_fd: descriptor.as_raw_fd(),
        eventfd: signal.as_raw_fd(),
        resample_eventfd: resample.as_ref().map_or(-1, AsRawFd::as_raw_fd),
        gsi: asked.gsi.unwrap_or(0),
        msi_address: asked.msi.map_or(0, |(address, _)| address),
        msi_data: asked.msi.map_or(0, |(_, data)| data),
        ..Default::default()
    };
    let bound = device.bind(&request);
    let binding = bound.map_err(|error| refused(&vm, asked, &error))?;
    // The VM may end from here on.
    drop((descriptor, device));
    become_command::inherit(&binding)?;
    let number = signal.as_raw_fd().to_string();
    let mut variables = vec![("KVMATE_EVENTFD", number.clone())];
    if let Some(resample) = &resample {
        variables.push(("KVMATE_RESAMPLE_EVENTFD", resample.as_raw_fd().to_string()));
    }
    match become_command::run(&asked.command, &number, &variables)? {}
}

fn flags(asked: &Arguments) -> u32 {
    let msi = asked.msi.map_or(0, |_| KVMATE_IRQFD_MSI);
    let resample = if asked.resample {
        KVMATE_IRQFD_RESAMPLE
    } else {
        0
    };
    msi | resample
}

/// The VM's own descriptor, taken from its VMM. A number may have been used again since the VM was named by
/// it, so each that is a VM's is asked which one it is of.
fn descriptor_of(vm: &Vm, device: &Device) -> Result<OwnedFd> {
    let name = &vm.name;
    let owner = vm.process.as_ref();
    let owner = owner.with_context(|| {
        format!("the process that made VM {name} has ended: who has its descriptor can bind to it (uapi/kvmate.h)")
    })?;
    let process = Process::open(owner.pid)?;
    let is_vm = |link: &Path| link.as_os_str() == "anon_inode:kvm-vm";
    let mut failed = None;
    for (number, _) in process.descriptors().iter().filter(|(_, link)| is_vm(link)) {
        let taken = process.take(*number).and_then(|fd| {
            let found = name_of(device, &fd)?;
            Ok((found == *name).then_some(fd))
        });
        match taken {
            Ok(Some(fd)) => return Ok(fd),
            Ok(None) => {}
            // It may just have been closed.
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| {
        anyhow!(
            "process {} has no descriptor of VM {name}: another one has, or the VM is ending",
            owner.pid
        )
    }))
}

/// The name of the VM that a descriptor is of: the id of its statistics, as `KVM_GET_STATS_FD` lays them out.
fn name_of(device: &Device, vm: impl AsFd) -> Result<String> {
    let stats = device.stats(vm);
    let stats = stats.map_err(|error| device::failed("KVMATE_GET_VM_STATS", &error))?;
    let number = |at: u64| -> io::Result<u32> {
        let mut bytes = [0; 4];
        stats.read_exact_at(&mut bytes, at)?;
        Ok(u32::from_ne_bytes(bytes))
    };
    // flags, name_size, num_desc, id_offset
    let (size, at) = (number(4)?, number(12)?);
    id(&stats, at.into(), size as usize)
}

fn id(stats: &File, at: u64, size: usize) -> Result<String> {
    if size > 4096 {
        bail!("statistics with an id of {size} bytes: the module is of another version");
    }
    let mut bytes = vec![0; size];
    stats.read_exact_at(&mut bytes, at)?;
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(text)?;
    Ok(text.strip_prefix("kvmate-").unwrap_or(text).to_owned())
}

/// What an errno of `KVMATE_BIND_IRQFD` means, and what to do.
fn refused(vm: &Vm, asked: &Arguments, error: &io::Error) -> anyhow::Error {
    let name = &vm.name;
    let gsi = asked.gsi.unwrap_or(0);
    match Errno::from_io_error(error) {
        Some(Errno::RANGE) => anyhow!("GSI {gsi} is 4096 or more, and no VM has such a one"),
        Some(Errno::INVAL) => anyhow!(
            "no APIC listens at that address: it is 0xfee00000 to 0xfeefffff, bits 8 to 31 of a long APIC id \
             from bit 40 on"
        ),
        Some(Errno::NXIO) => anyhow!(
            "VM {name} has no PIC and IOAPIC in the kernel, which --resample needs: leave it out, or run the VMM with \
             its whole irqchip in the kernel"
        ),
        Some(Errno::OPNOTSUPP) => anyhow!(
            "VMs cannot be looked into here: cat {}/kvmate/layouts tells why",
            tree::DEBUGFS
        ),
        Some(Errno::NODEV) => anyhow!("VM {name} is dead: KVM has given it up"),
        _ => device::failed(&format!("KVMATE_BIND_IRQFD of VM {name}"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;
    use clap::Parser;

    fn parse(text: &str) -> Result<Arguments, String> {
        let parsed = crate::cli::Arguments::try_parse_from(text.split(' '));
        match parsed.map_err(|error| error.to_string())?.command {
            Command::Irqfd(asked) => Ok(asked),
            _ => Err("another command".into()),
        }
    }

    #[test]
    fn arguments() {
        let asked = parse("kvmate irqfd 1-1 --gsi 10 --resample -- cat {} --json").unwrap();
        assert_eq!(
            (asked.gsi, flags(&asked)),
            (Some(10), KVMATE_IRQFD_RESAMPLE)
        );
        assert_eq!(asked.command, ["cat", "{}", "--json"]);
        let asked = parse("kvmate irqfd 1-1 --msi 0xfee00000:65 -- cat").unwrap();
        assert_eq!(
            (asked.msi, flags(&asked)),
            (Some((0xfee0_0000, 65)), KVMATE_IRQFD_MSI)
        );
        for text in [
            "1-1",
            "1-1 --gsi 10",
            "1-1 --gsi 10 --",
            "1-1 -- cat",
            "1-1 --gsi 10 --msi 0xfee00000:65 -- cat",
            "1-1 --msi 0xfee00000:65 --resample -- cat",
            "1-1 --msi 0xfee00000 -- cat",
            "1-1 --msi 0xfee00000:0x100000000 -- cat",
            "1-1 --gsi x -- cat",
            "--gsi 10 -- cat",
        ] {
            assert!(parse(&format!("kvmate irqfd {text}")).is_err(), "{text}");
        }
    }

    #[test]
    fn each_errno_is_told_apart() {
        let vm = crate::tree::tests::vm("1-1", None);
        let asked = parse("kvmate irqfd 1-1 --gsi 10 -- cat").unwrap();
        let errnos = [
            Errno::RANGE,
            Errno::INVAL,
            Errno::NXIO,
            Errno::OPNOTSUPP,
            Errno::NODEV,
        ];
        let said = errnos.map(|errno| {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            refused(&vm, &asked, &error).to_string()
        });
        assert!(
            said.iter().all(|line| !line.contains("os error")),
            "{said:?}"
        );
    }
}
