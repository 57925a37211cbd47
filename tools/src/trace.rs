// SPDX-License-Identifier: GPL-2.0
//! `kvmate trace`: the module's lines in the kernel's trace, as they come. [`buffer`] is where they come,
//! [`knobs`] what has the module write them, [`reader`] who gets them.
//!
//! Both are set back by destructors: after an error, a broken pipe, or a signal that is noted by [`Signals`]. After
//! SIGKILL they stay; the next one then takes the buffer over, and ends with the knobs off.

mod buffer;
mod knobs;
mod reader;

use crate::{say::say, signals::Signals, tree};
use anyhow::{bail, Result};
use buffer::Buffer;
use clap::{Args, ValueEnum};
use knobs::{Knobs, Wanted};
use reader::{Reader, PAUSE};
use rustix::{
    event::{poll, PollFd, PollFlags, Timespec},
    io::Errno,
};
use std::{
    io::{self, ErrorKind},
    time::{Duration, Instant},
};

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmate trace                                  everything, of all VMs
  kvmate trace --classes exits,msrs --vm qemu
  kvmate trace --classes irqs --rate 1000 | head
A line is as trace_pipe of tracefs has it; uapi/debugfs.md tells what it says. Ctrl-C ends it. The lines come by
trace_printk(), and for so long all that is written by that goes into a buffer of this tool's own
(instances/kvmate in tracefs). So nothing is taken from who reads trace_pipe, but trace_printk() lines do not come there
meanwhile; those that are not kvmate's are dropped. Afterwards knobs/trace, trace_rate and trace_vm are what they were, unless
somebody else has set them meanwhile. It ends also if nobody reads its lines; then the last ones are lost.
Exit status: 0 ended by a signal, a closed pipe or the VM's end; 1 failed, or the module went; 2 wrong usage.")]
pub struct Arguments {
    /// Of what
    #[arg(long, value_delimiter = ',', default_value = "all")]
    pub classes: Vec<Class>,
    /// Of this VM only: its name in /sys/kernel/debug/kvmate/vms (101-4), a process's number, or a
    /// part of a process's name that only one VM has
    #[arg(long)]
    pub vm: Option<String>,
    /// At most so many lines a second on each CPU, 1 to 1000000; how many more there were is told
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
}

/// What can be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Class {
    /// VM exits
    Exits,
    /// Accesses to MSRs
    Msrs,
    /// Page faults
    Faults,
    /// Interrupts, and kvmate's own injections
    Irqs,
    /// Memory files
    Gmem,
    /// All of these
    All,
}

impl Class {
    /// Its bits in `knobs/trace`.
    fn bits(self) -> u64 {
        match self {
            Self::Exits => 1,
            Self::Msrs => 2,
            Self::Faults => 4,
            Self::Irqs => 8,
            Self::Gmem => 16,
            Self::All => 31,
        }
    }
}

/// For so long is told, at the end, what has been written: others may go on writing.
const LAST: Duration = Duration::from_secs(5);

/// Do it.
pub fn run(asked: &Arguments) -> Result<()> {
    let vm = asked.vm.as_deref().map(tree::find).transpose()?;
    // Says why, if there is no module.
    tree::folders("knobs")?;
    let signals = Signals::catch()?;
    let wanted = Wanted {
        mask: asked
            .classes
            .iter()
            .fold(0, |mask, class| mask | class.bits()),
        rate: asked.rate.unwrap_or(0).into(),
        vm: vm.as_ref().map_or(String::new(), |vm| vm.name.clone()),
    };
    let (mut buffer, left) = Buffer::begin()?;
    if left {
        say("a kvmate trace was killed before: what it left is taken over, and the knobs will be off afterwards");
    }
    let knobs = Knobs::set(&wanted, left)?;
    // Not by its buffer, from which the rest of a line would be written when the process ends.
    let stdout = io::stdout().lock();
    let mut out = Reader::new(&stdout, || signals.caught().is_some());
    let mut copy = || match buffer.copy(&mut out) {
        Err(error) if is_given_up(&error) => Ok(None),
        copied => copied.map(Some),
    };
    let mut lost = false;
    let ended = loop {
        let Some(more) = copy()? else {
            lost = true;
            break Ok(());
        };
        if signals.caught().is_some() {
            break Ok(());
        }
        if !knobs.there() {
            break Err(());
        }
        if let Some(vm) = vm.as_ref().filter(|vm| !vm.path("").exists()) {
            say(format_args!("VM {} has ended", vm.name));
            break Ok(());
        }
        // For who reads and goes, also while no line comes.
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        let pause = if more { Timespec::default() } else { PAUSE };
        match poll(&mut fds, Some(&pause)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => break Ok(()),
            Err(error) => return Err(error.into()),
        }
    };
    // No more lines; what has been written is still told.
    drop(knobs);
    let begun = Instant::now();
    while !lost {
        match copy()? {
            Some(false) => break,
            Some(true) if begun.elapsed() < LAST => {}
            _ => lost = true,
        }
    }
    if lost {
        say("the last lines are lost: nobody has read them in time");
    }
    if ended.is_err() {
        bail!(
            "the module kvmate was unloaded: insmod kvmate.ko, or modprobe kvmate, and begin again"
        );
    }
    Ok(())
}

/// Whether [`Reader`] gave it up to write.
fn is_given_up(error: &anyhow::Error) -> bool {
    let plain = error.downcast_ref::<io::Error>();
    plain.is_some_and(|error| error.kind() == ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use crate::cli::Command;
    use clap::Parser;

    #[test]
    fn arguments() {
        let parse = |text: &str| {
            let parsed = crate::cli::Arguments::try_parse_from(text.split(' '));
            match parsed.map_err(|error| error.to_string())?.command {
                Command::Trace(asked) => Ok(asked),
                _ => Err("another command".to_owned()),
            }
        };
        let bits = |text: &str| {
            let asked = parse(text)?;
            Ok::<_, String>(
                asked
                    .classes
                    .iter()
                    .fold(0, |mask, class| mask | class.bits()),
            )
        };
        assert_eq!(bits("kvmate trace"), Ok(31));
        assert_eq!(bits("kvmate trace --classes exits,irqs"), Ok(9));
        assert_eq!(
            bits("kvmate trace --classes msrs --classes gmem,faults"),
            Ok(22)
        );
        for text in [
            "--classes",
            "--classes x",
            "--classes exits,",
            "--rate 0",
            "--rate 1000001",
            "1-1",
        ] {
            assert!(parse(&format!("kvmate trace {text}")).is_err(), "{text}");
        }
    }
}
