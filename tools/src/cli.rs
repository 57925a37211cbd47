// SPDX-License-Identifier: GPL-2.0
//! The command line: what subcommands there are. What each takes stands with it.

use crate::{
    doctor, export, gmem, inject, irqfd, list, map, pages, schema, snapshot, tables, top, trace,
};
use clap::{Parser, Subcommand};

/// Shows what the kernel module kvmate tells of running VMs.
#[derive(Debug, Parser)]
#[command(
    name = "kvmate",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  kvmate doctor                 is all there that it needs?
  kvmate list                   which VMs there are
  kvmate exits qemu --watch 1   why one exits, each second
  kvmate map qemu --why         its memory, and why pages are small
  kvmate help gmem create
It needs root, the module kvmate, and debugfs at /sys/kernel/debug. A VM is its name there (101-4), a process's number, or a
part of a process's name that only one VM has. Each subcommand's --help has examples.
Exit status: 0 done, 1 failed, 2 wrong usage."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List VMs: whose they are, vCPUs, memory, exits per second
    List(list::Arguments),
    /// Watch VMs, vCPUs and exit reasons on the full screen
    Top(top::Arguments),
    /// Why guests exited, how often, and how long until they went on
    #[command(after_help = tables::EXITS)]
    Exits(tables::Arguments),
    /// Where the time of exits went: user space, halted, waiting for a CPU, the kernel
    #[command(after_help = tables::TIMES)]
    Times(tables::Arguments),
    /// Which MSRs guests accessed
    #[command(after_help = tables::MSR)]
    Msr(tables::Arguments),
    /// Page faults that made guests exit: of what kind, in which memslots, where most
    #[command(after_help = tables::FAULTS)]
    Faults(tables::Arguments),
    /// Interrupts by vector: injected, accepted, ended
    #[command(after_help = tables::IRQ)]
    Irq(tables::Arguments),
    /// What each vCPU is doing now
    #[command(after_help = tables::VCPUS)]
    Vcpus(tables::Vcpus),
    /// All that is known of a VM at one moment, for one that hangs
    Snapshot(snapshot::Arguments),
    /// Draw a VM's guest-physical memory: what is mapped by which size, slots, and why a page is small
    Map(map::Arguments),
    /// Inject an interrupt into a VM, or a storm of them
    Inject(inject::Arguments),
    /// Bind an eventfd to an interrupt of a VM, and run a command with it
    Irqfd(irqfd::Arguments),
    /// Memory files for guests: make, list, draw, split, merge and punch them
    Gmem(gmem::Arguments),
    /// Print what happens to VMs, a line an event, as it happens
    Trace(trace::Arguments),
    /// Export what the module tells, for Prometheus: OpenMetrics over HTTP
    Export(export::Arguments),
    /// Tell what is missing and what mends it, and who keeps KVM's modules in use
    Doctor(doctor::Arguments),
    /// Print the JSON schema of what a subcommand's --json gives
    Schema(schema::Arguments),
    /// Print completions for a shell
    Completions(pages::Completions),
    /// Print the manual page of this tool, or of a subcommand
    Man(pages::Man),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_excludes_what() {
        let parse = |text: &str| Arguments::try_parse_from(text.split(' '));
        assert!(parse("kvmate map 101-4").is_ok());
        assert!(parse("kvmate list --interval 0 --json").is_ok());
        assert!(parse("kvmate exits").is_ok());
        assert!(parse("kvmate irq a --vcpu 0 --watch 0.5 --json").is_ok());
        assert!(parse("kvmate map 101-4 --json --why").is_ok());
        assert!(parse("kvmate map 101-4 --page 2M --json").is_ok());
        assert!(parse("kvmate top").is_ok());
        assert!(parse("kvmate doctor --json").is_ok());
        assert!(parse("kvmate top 101-4 --interval 0.5").is_ok());
        for text in [
            "kvmate",
            "kvmate map",
            "kvmate map a b",
            "kvmate map a --page",
            "kvmate map a --page x",
            "kvmate map a --page 0 --why",
            "kvmate map a --what",
            "kvmate export x",
            "kvmate export --listen localhost",
            "kvmate export --listen 127.0.0.1:65536",
            "kvmate export --max-vms -1",
            "kvmate list x",
            "kvmate list --interval x",
            "kvmate list --interval 1 --watch 1",
            "kvmate snapshot",
            "kvmate exits --vcpu 0",
            "kvmate exits a --vcpu x",
            "kvmate exits a --watch",
            "kvmate exits a --watch 0",
            "kvmate vcpus a --vcpu 0",
            "kvmate top a b",
            "kvmate doctor a",
            "kvmate top --interval 0",
            "kvmate top --interval x",
        ] {
            assert_eq!(parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
        assert_eq!(parse("kvmate --version").unwrap_err().exit_code(), 0);
    }
}
