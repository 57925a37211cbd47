// SPDX-License-Identifier: GPL-2.0
//! What watching KVM and holding memory cost: runs in a guest, for `scripts/bench`, which says how.
//!
//! `bench count EXITS TARGET`: instructions an exit, judged; the machine counts (`scripts/vm run
//! --icount`). `bench inject COUNT TARGET`: instructions an interrupt, likewise. `bench time EXITS
//! ROUNDS`: time. `bench memory count MIB TARGET` and `bench memory time MIB ROUNDS`: the same of files
//! of so many MiB. Status 0: all is well; 1: something failed, or this is no place to measure; 3:
//! measured, but a target was missed. `bench sample EXITS FILE` is one measurement, run by the others.

use anyhow::{bail, Context, Result};
use kvmate_tests::bench::{
    inject, map,
    memory::HOLDERS,
    memory_table::{self, Figure},
    reshape,
    sample::{self, Sampler},
    table::{self, Outcome, Pass},
    watcher::{Watcher, WATCHERS},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

const FOLDER: &str = "/tmp/kvmate-bench";
const MISSED: u8 = 3;
// A host's rare work (a tick, a callback) falls into one and not into another.
const PASSES: u32 = 5;
// Over some ten thousand pages little is left to chance.
const MEMORY_PASSES: usize = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<ExitCode> {
    match *arguments {
        ["sample", exits, file] => {
            sample::take(exits.parse()?, Path::new(file))?;
            Ok(ExitCode::SUCCESS)
        }
        ["count", exits, target] => {
            let target = target.parse().context("a target")?;
            sample::ticks_are_instructions()?;
            let bench = Bench::new(exits)?;
            let how = format!("median of {PASSES} passes, what is not judged once; the machine counts");
            bench.headline("instructions an exit", &how);
            bench.options()?;
            let passes: Vec<_> = (1..=PASSES)
                .map(|n| bench.pass(&format!("counting, {n} of {PASSES}"), n == 1))
                .collect();
            let missed = table::instructions(&passes, target);
            let walked = walk();
            Ok(verdict(!walked || passes.iter().any(table::failed), missed))
        }
        ["inject", count, target] => {
            let (count, target) = (count.parse()?, target.parse().context("a target")?);
            sample::ticks_are_instructions()?;
            let release = release()?;
            println!("== Linux {release}: instructions an interrupt (median of {count}; the machine counts)");
            let (missed, failed) = inject::instructions(count, target);
            Ok(verdict(failed, missed))
        }
        ["time", exits, rounds] => {
            let bench = Bench::new(exits)?;
            let rounds: usize = rounds.parse().context("a number of rounds")?;
            let what = format!("median of {rounds} rounds; on an emulated machine mostly noise");
            bench.headline("time an exit", &what);
            let rounds: Vec<_> = (1..=rounds)
                .map(|n| bench.pass(&format!("timing, {n} of {rounds}"), true))
                .collect();
            table::time(&rounds);
            let walked = walk();
            let failed = !walked || rounds.iter().any(table::failed);
            Ok(ExitCode::from(u8::from(failed)))
        }
        ["memory", "count", mib, target] => {
            let target = target.parse().context("a target")?;
            sample::ticks_are_instructions()?;
            memory(mib, "counting", MEMORY_PASSES, Figure::Instructions, target)
        }
        ["memory", "time", mib, rounds] => {
            let rounds = rounds.parse().context("a number of rounds")?;
            memory(mib, "timing", rounds, Figure::Nanoseconds, f64::INFINITY)
        }
        _ => bail!(
            "usage: bench [memory] count NUMBER TARGET | inject COUNT TARGET | [memory] time NUMBER ROUNDS | sample EXITS FILE"
        ),
    }
}

fn verdict(failed: bool, missed: usize) -> ExitCode {
    match (failed, missed) {
        (true, _) => ExitCode::FAILURE,
        (false, 0) => ExitCode::SUCCESS,
        _ => ExitCode::from(MISSED),
    }
}

fn release() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim().to_owned())
}

/// Every holder of memory, so many times.
fn memory(mib: &str, how: &str, times: usize, figure: Figure, target: f64) -> Result<ExitCode> {
    let size = mib.parse::<usize>().context("a number of MiB")? << 20;
    let release = release()?;
    println!("== Linux {release}: memory, over {mib} MiB (median of {times} passes, {how}; 4 KiB ones once)");
    for holder in HOLDERS {
        println!("{}: {}", holder.name(), holder.options());
        // Has every path taken once.
        let _ = holder.measure(8 << 20);
    }
    let pass = |pass: usize| -> memory_table::Pass {
        let holders = HOLDERS.into_iter().filter(|h| pass == 1 || !h.is_small());
        let measured = holders.map(|holder| {
            let costs = holder.measure(size).map_err(|e| format!("{e:#}"));
            let name = holder.name();
            eprintln!("bench: {release}, {how}, {pass} of {times}: {name}");
            (holder, costs)
        });
        measured.collect()
    };
    let passes: Vec<_> = (1..=times).map(pass).collect();
    let missed = memory_table::show(&passes, figure, target);
    // A count is the same each time, but for a tick or two in some million.
    let times = match figure {
        Figure::Instructions => 1,
        Figure::Nanoseconds => times,
    };
    println!("\n== Linux {release}: splitting and merging, over {mib} MiB ({times} passes, {how})");
    reshape::print_knobs()?;
    // Has every path taken once.
    let _ = reshape::pass(8 << 20);
    let reshapes: Vec<_> = (1..=times)
        .map(|pass| {
            eprintln!("bench: {release}, {how}, {pass} of {times}: splitting and merging");
            reshape::pass(size)
        })
        .collect();
    let missed = missed + reshape::show(&reshapes, figure, target);
    let failed = passes.iter().any(memory_table::failed) || reshapes.iter().any(reshape::failed);
    Ok(verdict(failed, missed))
}

/// Tell what a walk through stage-2 tables costs; whether it could be measured.
fn walk() -> bool {
    let told = map::report();
    match &told {
        Ok(line) => println!("{line}"),
        Err(error) => println!("FAILED: stage2: {error:#}"),
    }
    told.is_ok()
}

struct Bench {
    sampler: Sampler,
    folder: PathBuf,
    release: String,
}

impl Bench {
    fn new(exits: &str) -> Result<Self> {
        let folder = PathBuf::from(FOLDER);
        fs::create_dir_all(&folder)?;
        let exits = exits.parse().context("a number of exits")?;
        Ok(Self {
            sampler: Sampler::new(exits, &folder),
            folder,
            release: release()?,
        })
    }

    fn headline(&self, what: &str, how: &str) {
        let (release, exits) = (&self.release, self.sampler.exits);
        println!("== Linux {release}: {what}, over {exits} exits ({how})");
    }

    /// What each watcher is run with.
    fn options(&self) -> Result<()> {
        for watcher in WATCHERS {
            if watcher.impossible().is_some() {
                continue;
            }
            if let Some(options) = watcher.options()? {
                println!("{}: {options}", watcher.name());
            }
        }
        Ok(())
    }

    /// Every watcher once, or all that are judged, on a machine that is warm.
    fn pass(&self, label: &str, all: bool) -> Pass {
        let mut pass = Vec::new();
        let _ = self.outcome(Watcher::Nobody);
        for watcher in WATCHERS.into_iter().filter(|w| all || !w.is_told_only()) {
            let outcome = self.outcome(watcher);
            let how = match &outcome {
                Outcome::Measured(_) => "measured".into(),
                Outcome::Skipped(why) => format!("skipped: {why}"),
                Outcome::Failed(why) => format!("FAILED: {why}"),
            };
            eprintln!(
                "bench: {}, {label}: {}: {how}",
                self.release,
                watcher.name()
            );
            pass.push((watcher, outcome));
        }
        pass
    }

    fn outcome(&self, watcher: Watcher) -> Outcome {
        if let Some(why) = watcher.impossible() {
            return Outcome::Skipped(why);
        }
        match watcher.watch(&self.sampler, &self.folder) {
            Ok(watched) => Outcome::Measured(watched),
            // One line of a table.
            Err(error) => Outcome::Failed(format!("{error:#}").replace('\n', " ")),
        }
    }
}
