// SPDX-License-Identifier: GPL-2.0
//! Who watches KVM while the guests run: nobody, kvmate, or a peer with the options it is known by.
//!
//! Every watcher is set up anew for a measurement, has attached before it starts, and is asked
//! afterwards what it recorded: one that saw less than the guests did is no measurement.

use super::sample::{Sample, Sampler};
use crate::module::{Kvmate, DEBUGFS};
use anyhow::{bail, ensure, Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What is measured, in this order.
pub const WATCHERS: [Watcher; 12] = [
    Watcher::Nobody,
    Watcher::On,
    Watcher::With("kvmate, msrs=1"),
    Watcher::With("kvmate, faults=1"),
    Watcher::With("kvmate, irqs=1"),
    Watcher::With("kvmate, times=1"),
    Watcher::With("kvmate, times=1 msrs=1 faults=1 irqs=1"),
    Watcher::Off,
    Watcher::NobodyAgain,
    Watcher::Ftrace,
    Watcher::Perf,
    Watcher::Bpftrace,
];

const TRACING: &str = "/sys/kernel/tracing";

// The time from an exit to the next entry, a histogram a reason: what kvmate itself is to show.
const BPFTRACE: &str = "tracepoint:kvm:kvm_exit \
     { @start[tid] = nsecs; @reason[tid] = args.exit_reason; } \
     tracepoint:kvm:kvm_entry /@start[tid]/ \
     { @ns[@reason[tid]] = hist(nsecs - @start[tid]); delete(@start[tid]); delete(@reason[tid]); }";

/// A watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watcher {
    /// Nobody: kvmate is not loaded. What all others are compared with.
    Nobody,
    /// kvmate, loaded without parameters: everything that is on by default.
    On,
    /// The same with some knobs, by its name.
    With(&'static str),
    /// kvmate, loaded, and switched off by its knob.
    Off,
    /// Nobody once more: has something stayed behind, or drifted?
    NobodyAgain,
    /// The events `kvm_exit` and `kvm_entry`, into ftrace's ring buffer.
    Ftrace,
    /// `perf kvm stat record`.
    Perf,
    /// bpftrace, with histograms by reason of the time between exit and entry.
    Bpftrace,
}

/// A measurement and what the watcher saw of it.
#[derive(Clone, Debug)]
pub struct Watched {
    /// What was measured.
    pub sample: Sample,
    /// Which part of KVM's own count of exits the watcher recorded; unknown, or nobody watched.
    pub recorded: Option<f64>,
}

impl Watcher {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nobody => "bare",
            Self::On => "kvmate, observe=1",
            Self::With(name) => name,
            Self::Off => "kvmate, observe=0",
            Self::NobodyAgain => "bare again",
            Self::Ftrace => "ftrace event pair",
            Self::Perf => "perf kvm stat record",
            Self::Bpftrace => "bpftrace histograms",
        }
    }

    /// The module's parameters; of kvmate's.
    fn parameters(self) -> &'static str {
        match self {
            Self::With(name) => name.trim_start_matches("kvmate, "),
            _ => "",
        }
    }

    /// Whether it is measured to compare, not judged: somebody else's, and knobs that are off by default.
    pub fn is_told_only(self) -> bool {
        !matches!(
            self,
            Self::Nobody | Self::On | Self::Off | Self::NobodyAgain
        )
    }

    /// Why it cannot be had here.
    pub fn impossible(self) -> Option<String> {
        let (program, needs, why) = match self {
            Self::Ftrace => return lacks(&format!("{TRACING}/events/kvm/kvm_exit"), "no events"),
            Self::Perf => ("perf", TRACING, "no tracefs"),
            Self::Bpftrace => (
                "bpftrace",
                "/sys/kernel/btf/vmlinux",
                "this kernel has no BTF",
            ),
            _ => return None,
        };
        let found = std::env::var("PATH")
            .is_ok_and(|path| path.split(':').any(|p| Path::new(p).join(program).exists()));
        if found {
            lacks(needs, why)
        } else {
            Some(format!("there is no {program}"))
        }
    }

    /// What it is run with: knobs, options, versions.
    pub fn options(self) -> Result<Option<String>> {
        Ok(Some(match self {
            Self::On => {
                let kvmate = Kvmate::load("")?;
                let options = format!("{}; {}", kvmate.read("version")?, knobs()?);
                kvmate.unload()?;
                options
            }
            Self::With(_) => format!("the same, {}", self.parameters()),
            Self::Off => "the same, then observe=0".into(),
            Self::Ftrace => {
                let _events = Events::on()?;
                let setting = |name| fs::read_to_string(Path::new(TRACING).join(name));
                let clocks = setting("trace_clock")?;
                let clock = clocks.split(['[', ']']).nth(1).unwrap_or_default();
                let size = setting("buffer_size_kb")?;
                format!(
                    "kvm:kvm_exit, kvm:kvm_entry; buffer_size_kb {}, trace_clock {clock}",
                    size.trim()
                )
            }
            Self::Perf => format!(
                "{}; {}",
                version("perf")?,
                perf("FILE", &["COMMAND".into()]).join(" ")
            ),
            Self::Bpftrace => format!("{}; bpftrace -e '{BPFTRACE}'", version("bpftrace")?),
            Self::Nobody | Self::NobodyAgain => return Ok(None),
        }))
    }

    /// Measure while it watches.
    pub fn watch(self, sampler: &Sampler, folder: &Path) -> Result<Watched> {
        let command = sampler.command()?;
        match self {
            Self::Nobody | Self::NobodyAgain => {
                output(&command)?;
                watched(sampler.taken()?, None)
            }
            Self::On | Self::With(_) => {
                let kvmate = Kvmate::load(self.parameters())?;
                let observe = kvmate.read("knobs/observe")?;
                ensure!(observe == "1", "observe is {observe} by default");
                let before = kvmate.exits().ok();
                output(&command)?;
                let seen = before
                    .map(|n| anyhow::Ok(kvmate.exits()? - n))
                    .transpose()?;
                kvmate.unload()?;
                watched(sampler.taken()?, seen)
            }
            Self::Off => {
                let kvmate = Kvmate::load("")?;
                kvmate.write("knobs/observe", "0")?;
                output(&command)?;
                kvmate.unload()?;
                watched(sampler.taken()?, None)
            }
            Self::Ftrace => {
                let events = Events::on()?;
                output(&command)?;
                let seen = events.count()?;
                watched(sampler.taken()?, Some(seen / 2))
            }
            Self::Perf => {
                let data = folder.join("perf.data").display().to_string();
                output(&perf(&data, &command))?;
                let report = ["perf", "kvm", "-i", &data, "stat", "report", "--stdio"];
                let seen = samples(&output(&report.map(str::to_owned))?)?;
                fs::remove_file(&data)?;
                watched(sampler.taken()?, Some(seen))
            }
            Self::Bpftrace => {
                let program = ["bpftrace", "-e", BPFTRACE, "-c", &command.join(" ")];
                let seen = histogram(&output(&program.map(str::to_owned))?)?;
                watched(sampler.taken()?, Some(seen))
            }
        }
    }
}

fn lacks(file: &str, why: &str) -> Option<String> {
    (!Path::new(file).exists()).then(|| why.to_owned())
}

fn watched(sample: Sample, seen: Option<u64>) -> Result<Watched> {
    let recorded = seen.map(|seen| seen as f64 / sample.exits as f64);
    if let (Some(part), Some(seen)) = (recorded, seen) {
        ensure!(
            (0.99..1.01).contains(&part),
            "{seen} of {} exits were recorded",
            sample.exits
        );
    }
    Ok(Watched { sample, recorded })
}

/// Run a program to its end; what it said.
fn output(command: &[String]) -> Result<String> {
    let ran = Command::new(&command[0])
        .args(&command[1..])
        .output()
        .with_context(|| command[0].clone())?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(
        ran.status.success(),
        "{}: {}: {}",
        command.join(" "),
        ran.status,
        said.trim()
    );
    // perf's reports are on standard error.
    Ok(format!("{}{said}", String::from_utf8_lossy(&ran.stdout)))
}

fn version(program: &str) -> Result<String> {
    let said = output(&[program.to_owned(), "--version".into()])?;
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

/// All knobs, by name.
fn knobs() -> Result<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(Path::new(DEBUGFS).join("knobs"))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let mut knobs = Vec::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        knobs.push(format!("{name}={}", fs::read_to_string(&file)?.trim()));
    }
    Ok(format!("knobs: {}", knobs.join(" ")))
}

/// All processors, as perf does when it is told nothing; the command says when to end.
fn perf(file: &str, command: &[String]) -> Vec<String> {
    let record = ["perf", "kvm", "stat", "record", "-a", "-o", file, "--"];
    let words = record.into_iter().map(str::to_owned);
    words.chain(command.iter().cloned()).collect()
}

/// The exits that `perf kvm stat report` could make out.
fn samples(report: &str) -> Result<u64> {
    let (_, rest) = report
        .split_once("Total Samples:")
        .with_context(|| format!("perf's report has no total: {report}"))?;
    let number = rest.split(|c: char| !c.is_ascii_digit()).next();
    number.unwrap_or_default().parse().context("perf's total")
}

/// The sum of bpftrace's histogram: lines as `[16K, 32K)   1789 |@@@@  |`.
fn histogram(text: &str) -> Result<u64> {
    let mut sum = 0;
    for line in text.lines().filter(|line| line.ends_with('|')) {
        let number = line
            .split('|')
            .next()
            .and_then(|l| l.split_whitespace().last());
        sum += number
            .unwrap_or_default()
            .parse::<u64>()
            .context("bpftrace's histogram")?;
    }
    if sum == 0 {
        bail!("bpftrace printed no histogram: {text}");
    }
    Ok(sum)
}

/// The two events, on while it lives.
struct Events(());

impl Events {
    fn on() -> Result<Self> {
        fs::write(Path::new(TRACING).join("trace"), "").context("ftrace's buffer")?;
        let events = Self(());
        events.switch("1")?;
        Ok(events)
    }

    fn switch(&self, to: &str) -> Result<()> {
        for event in ["kvm_exit", "kvm_entry"] {
            let file = Path::new(TRACING)
                .join("events/kvm")
                .join(event)
                .join("enable");
            fs::write(&file, to).with_context(|| file.display().to_string())?;
        }
        Ok(())
    }

    /// The events written since, those that were overwritten by later ones too.
    fn count(&self) -> Result<u64> {
        let mut sum = 0;
        for cpu in fs::read_dir(Path::new(TRACING).join("per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            for line in stats.lines() {
                if let Some(("entries" | "overrun", number)) = line.split_once(": ") {
                    sum += number.trim().parse::<u64>()?;
                }
            }
        }
        Ok(sum)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Err(error) = self.switch("0") {
            eprintln!("# {error:#}");
        }
    }
}
