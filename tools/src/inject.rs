// SPDX-License-Identifier: GPL-2.0
//! `kvmate inject`: an interrupt into a VM; [`storm`] many of them. [`refused`] tells why not.

mod refused;
pub mod storm;

use crate::{
    json::{self, OfVm},
    tree::{self, Vm},
    units,
};
use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use rustix::fs::FlockOperation;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    fmt,
    fs::File,
    io::{self, Write},
    thread,
    time::Duration,
};

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmate inject qemu gsi 10                           an edge, or the MSI that the GSI is routed to
  kvmate inject 101-4 gsi 10 high                     a line, up until \"low\" or rmmod
  kvmate inject 101-4 msi 0xfee00000 0x4041
  kvmate inject 101-4 gsi 10 --storm 1000 --rate 500  a thousand, 500 a second
It needs knobs/inject to be 1: echo 1 > /sys/kernel/debug/kvmate/knobs/inject
It says what became of the interrupt: delivered, coalesced (the one before was not taken yet), ignored (masked,
switched off or addressed to nobody), signalled (of an irqfd: only KVM knows), or unknown, if somebody else than kvmate
injected into the VM at the same moment.
Exit status: 0 done, 1 refused or stopped, 2 wrong usage. tools/json.md documents --json.")]
pub struct Arguments {
    /// The VM: its name in /sys/kernel/debug/kvmate/vms (101-4), a process's number, or a part of
    /// a process's name that only one VM has
    pub vm: String,
    /// For programs: what became of it, as one JSON object
    #[arg(long, global = true)]
    pub json: bool,
    /// What to inject
    #[command(subcommand)]
    pub what: What,
}

/// What can be injected.
#[derive(Debug, Subcommand)]
pub enum What {
    /// A GSI: an edge, or its line up or down
    #[command(after_help = "\
Examples:
  kvmate inject qemu gsi 10                           an edge, or the MSI that the GSI is routed to
  kvmate inject qemu gsi 10 high                      a line, up until \"low\" or rmmod
  kvmate inject qemu gsi 10 --storm 1000 --rate 500   a thousand, 500 a second")]
    Gsi {
        /// Which
        #[arg(value_parser = units::number::<u32>)]
        gsi: u32,
        /// Not an edge: the line goes up, or down, and stays
        #[arg(conflicts_with = "storm")]
        level: Option<Level>,
        #[command(flatten)]
        storm: Storm,
    },
    /// An MSI that a device could write
    #[command(after_help = "\
Examples:
  kvmate inject qemu msi 0xfee00000 0x4041   vector 0x41 to the APIC with id 0
  kvmate inject qemu msi 0xfee01000 0x51 --storm 1000 --rate 500 --no-wait")]
    Msi {
        /// Where: 0xfee00000 to 0xfeefffff, bits 8 to 31 of a long APIC id from bit 40 on
        #[arg(value_parser = units::number::<u64>)]
        address: u64,
        /// What: the vector and how it is delivered
        #[arg(value_parser = units::number::<u32>)]
        data: u32,
        #[command(flatten)]
        storm: Storm,
    },
    /// An NMI
    #[command(after_help = "\
Example:
  kvmate inject qemu nmi 0                   to vCPU 0: kvmate vcpus qemu lists them")]
    Nmi {
        /// To the vCPU with this number
        #[arg(value_parser = units::number::<u32>)]
        vcpu: u32,
    },
    /// What a write by the VMM to its irqfd would be
    #[command(after_help = "\
Example:
  kvmate inject qemu irqfd 24                the VM's file irqfds lists those that there are")]
    Irqfd {
        /// Of this GSI
        #[arg(value_parser = units::number::<u32>)]
        gsi: u32,
    },
}

/// A line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Level {
    /// Up
    High,
    /// Down
    Low,
}

/// Not one, but many.
#[derive(Debug, Args)]
pub struct Storm {
    /// So many, by a timer in the kernel; Ctrl-C stops it
    #[arg(long, value_name = "COUNT", requires = "rate",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub storm: Option<u32>,
    /// So many a second, 1 to 1000000
    #[arg(long, requires = "storm", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// Do not wait for the storm's end
    #[arg(long, requires = "storm")]
    pub no_wait: bool,
}

impl What {
    fn storm(&self) -> Option<(storm::Plan, bool)> {
        let (Self::Gsi { storm, .. } | Self::Msi { storm, .. }) = self else {
            return None;
        };
        let plan = storm::Plan {
            count: storm.storm?,
            rate: storm.rate?,
        };
        Some((plan, storm.no_wait))
    }
}

/// As the module's file takes it, and shows it again.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gsi { gsi, level, .. } => match level {
                None => write!(f, "gsi {gsi}"),
                Some(Level::High) => write!(f, "gsi {gsi} high"),
                Some(Level::Low) => write!(f, "gsi {gsi} low"),
            },
            Self::Msi { address, data, .. } => write!(f, "msi {address:#x} {data:#x}"),
            Self::Nmi { vcpu } => write!(f, "nmi {vcpu}"),
            Self::Irqfd { gsi } => write!(f, "irqfd {gsi}"),
        }
    }
}

/// Do it.
pub fn run(asked: &Arguments) -> Result<()> {
    let vm = tree::find(&asked.vm)?;
    match asked.what.storm() {
        Some((plan, no_wait)) => storm::run(&vm, &asked.what, plan, no_wait, asked.json),
        None => one(&vm, asked),
    }
}

/// What became of one; its fields' names are those of `--json`.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Injected<'a> {
    /// What was injected, as the VM's file `inject` takes it.
    request: &'a str,
    /// `delivered`, `coalesced`, `ignored`, `signalled`, or `unknown`.
    outcome: &'a str,
}

fn one(vm: &Vm, asked: &Arguments) -> Result<()> {
    let request = asked.what.to_string();
    let status = {
        let _alone = alone(vm)?;
        vm.command("inject", &request)?
            .map_err(|error| refused::told(vm, "inject", &asked.what, &error))?;
        vm.read("inject_status")
    };
    // It was injected, whatever can be read now.
    let status = status.unwrap_or_default();
    let injected = Injected {
        outcome: outcome(&request, &status),
        request: &request,
    };
    let mut out = io::stdout().lock();
    if asked.json {
        json::pretty(&mut out, &OfVm::new(vm, &injected))?;
    } else {
        writeln!(out, "{}: {}", injected.request, injected.outcome)?;
    }
    out.flush()?;
    Ok(())
}

/// What the file `inject_status` says of a request that was not refused.
fn outcome<'a>(request: &str, status: &'a str) -> &'a str {
    let ours = status
        .trim_end_matches('\n')
        .strip_prefix(request)
        .and_then(|rest| rest.strip_prefix(": "));
    // A refusal is somebody else's: ours was none.
    let known = ["delivered", "coalesced", "ignored", "signalled"];
    ours.filter(|outcome| known.contains(outcome))
        .unwrap_or("unknown")
}

/// Keep other runs of this tool from a VM's files meanwhile, so that what is read is our answer. Nobody
/// else is kept from them, and who stands still with it is not waited for.
fn alone(vm: &Vm) -> Result<Option<File>> {
    let Ok(folder) = vm.open() else {
        return Ok(None);
    };
    for _ in 0..100 {
        if rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(Some(folder));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;
    use clap::Parser;

    fn parse(text: &str) -> Result<Arguments, String> {
        let parsed = crate::cli::Arguments::try_parse_from(text.split(' '));
        match parsed.map_err(|error| error.to_string())?.command {
            Command::Inject(asked) => Ok(asked),
            _ => Err("another command".into()),
        }
    }

    #[test]
    fn requests() {
        for (text, expected) in [
            ("gsi 10", "gsi 10"),
            ("gsi 0xa high", "gsi 10 high"),
            ("gsi 10 low", "gsi 10 low"),
            ("msi 0xfee00000 16449", "msi 0xfee00000 0x4041"),
            ("msi 0x100fee00000 65", "msi 0x100fee00000 0x41"),
            ("nmi 0", "nmi 0"),
            ("irqfd 24 --json", "irqfd 24"),
        ] {
            let asked = parse(&format!("kvmate inject 1-1 {text}")).unwrap();
            assert_eq!(asked.what.to_string(), expected);
            assert!(asked.what.storm().is_none());
        }
        let asked = parse("kvmate inject 1-1 gsi 10 --storm 5 --rate 7 --no-wait").unwrap();
        assert_eq!(
            asked.what.storm(),
            Some((storm::Plan { count: 5, rate: 7 }, true))
        );
        for text in [
            "",
            " gsi",
            " gsi -1",
            " gsi 4294967296",
            " gsi 10 up",
            " msi 0xfee00000",
            " msi 0xfee00000 0x100000000",
            " nmi",
            " nmi 0 --storm 5 --rate 5",
            " gsi 10 --storm 5",
            " gsi 10 --rate 5",
            " gsi 10 --no-wait",
            " gsi 10 --storm 0 --rate 5",
            " gsi 10 --storm 4294967296 --rate 5",
            " gsi 10 --storm 5 --rate 1000001",
            " gsi 10 high --storm 5 --rate 5",
        ] {
            assert!(
                parse(&format!("kvmate inject 1-1{text}")).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn only_our_own_answer() {
        for (status, expected) in [
            ("gsi 10: delivered\n", "delivered"),
            ("gsi 10: coalesced\n", "coalesced"),
            ("gsi 10: ignored\n", "ignored"),
            ("gsi 1: delivered\n", "unknown"),
            ("gsi 100: delivered\n", "unknown"),
            ("gsi 10 high: delivered\n", "unknown"),
            ("gsi 10: EIO: the VM has ended\n", "unknown"),
            ("-: EINVAL: not one of\n", "unknown"),
            ("", "unknown"),
        ] {
            assert_eq!(outcome("gsi 10", status), expected, "{status}");
        }
    }
}
