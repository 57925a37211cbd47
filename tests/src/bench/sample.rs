// SPDX-License-Identifier: GPL-2.0
//! One measurement: what an exit of each small guest costs, in ticks of the TSC and by the clock.
//!
//! It is taken in a process of its own, so that a watcher that runs a command (perf, bpftrace) can
//! have attached before that command's first instruction. Each guest runs twice, a short and a long
//! time; what an exit costs is the difference, so that starting and stopping cancel out.

use crate::{
    guest::{self, real, Vm},
    stats::Stats,
};
use anyhow::{ensure, Context, Result};
use std::{
    fs,
    ops::{Add, Mul},
    path::{Path, PathBuf},
    time::Instant,
};

/// The guests, with what one of their exits is.
pub const GUESTS: [(real::Program, &str); 4] = [
    (
        real::Program::Out,
        "port write: exit, KVM, user space, KVM_RUN again, entry",
    ),
    (real::Program::Cpuid, "CPUID: exit, KVM, entry"),
    (real::Program::Msr, "RDMSR: exit, KVM, entry"),
    (
        real::Program::Mmio,
        "MMIO write: exit for a page fault, KVM, user space, KVM_RUN again, entry",
    ),
];

/// What an exit cost, or whatever else is measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Ticks of the TSC: instructions, where the machine counts.
    pub ticks: f64,
    /// Nanoseconds.
    pub ns: f64,
}

impl Cost {
    /// Begin to measure; what is returned tells the cost until it is called.
    pub fn start() -> impl FnOnce() -> Self {
        let (ticks, clock) = (ticks(), Instant::now());
        move || Self {
            ticks: (self::ticks() - ticks) as f64,
            ns: clock.elapsed().as_nanos() as f64,
        }
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            ticks: self.ticks + other.ticks,
            ns: self.ns + other.ns,
        }
    }
}

impl Mul<f64> for Cost {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self {
            ticks: self.ticks * factor,
            ns: self.ns * factor,
        }
    }
}

/// A measurement of all guests.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What an exit cost, by guest, as in [`GUESTS`].
    pub costs: [Cost; GUESTS.len()],
    /// The exits of all of them, by KVM's own count.
    pub exits: u64,
}

/// How to take measurements: the process's command.
#[derive(Clone, Debug)]
pub struct Sampler {
    /// Exits between the two ends of a measurement.
    pub exits: u32,
    file: PathBuf,
}

impl Sampler {
    /// Measure over so many exits, with files in `folder`.
    pub fn new(exits: u32, folder: &Path) -> Self {
        Self {
            exits,
            file: folder.join("sample"),
        }
    }

    /// The command that takes a measurement.
    pub fn command(&self) -> Result<Vec<String>> {
        let program = std::env::current_exe()?;
        Ok(vec![
            program.display().to_string(),
            "sample".into(),
            self.exits.to_string(),
            self.file.display().to_string(),
        ])
    }

    /// What the command that has just ended measured.
    pub fn taken(&self) -> Result<Sample> {
        let text = fs::read_to_string(&self.file).context("nothing was measured")?;
        fs::remove_file(&self.file)?;
        let words = text
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<Vec<f64>, _>>()?;
        let figures = words.chunks_exact(2);
        let rest = figures.remainder();
        let costs: Vec<_> = figures
            .map(|pair| Cost {
                ticks: pair[0],
                ns: pair[1],
            })
            .collect();
        let (Ok(costs), &[exits]) = (costs.try_into(), rest) else {
            anyhow::bail!("not a measurement: {text}");
        };
        Ok(Sample {
            costs,
            exits: exits as u64,
        })
    }
}

/// The command itself: measure, and leave the figures in `file`.
pub fn take(exits: u32, file: &Path) -> Result<()> {
    let mut line = String::new();
    let mut total = 0;
    for (program, _) in GUESTS {
        let (cost, counted) = measure(program, exits)?;
        total += counted;
        line += &format!("{} {} ", cost.ticks, cost.ns);
    }
    fs::write(file, line + &total.to_string()).context("the measurement's file")
}

fn measure(program: real::Program, exits: u32) -> Result<(Cost, u64)> {
    let vm = Vm::new(1 << 16, false)?;
    real::load(&vm, program);
    let mut vcpu = vm.vcpu(0)?;
    let stats = Stats::of(&vcpu)?;
    let mut run = |count: u32| -> Result<(u64, u64)> {
        real::start(&vcpu, count)?;
        let (ticks, clock) = (ticks(), Instant::now());
        guest::run(&mut vcpu, None)?;
        Ok((self::ticks() - ticks, clock.elapsed().as_nanos() as u64))
    };
    let short = exits / 10 + 1;
    // Maps the guest's pages, and has every path taken once.
    run(short)?;
    let (few, many) = (run(short)?, run(short + exits)?);
    let an_exit = |few: u64, many: u64| (many as f64 - few as f64) / f64::from(exits);
    let cost = Cost {
        ticks: an_exit(few.0, many.0),
        ns: an_exit(few.1, many.1),
    };
    let counted = stats.get("exits")?;
    let own = u64::from(exits) + 3 * u64::from(short) + 3;
    ensure!(
        counted >= own,
        "{program:?}: KVM counted {counted} exits of {own}"
    );
    Ok((cost, counted))
}

/// The time-stamp counter.
pub(super) fn ticks() -> u64 {
    // SAFETY: Reads a register that every x86-64 processor has.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Whether the TSC counts instructions, seen on a loop of known length.
pub fn ticks_are_instructions() -> Result<()> {
    const ROUNDS: u64 = 500_000;
    let before = ticks();
    // SAFETY: Only registers change. One of two instructions jumps.
    unsafe {
        std::arch::asm!("2: dec {0}", "jnz 2b", inout(reg) ROUNDS => _, options(nomem, nostack));
    }
    let ratio = (ticks() - before) as f64 / (2 * ROUNDS) as f64;
    // A timer's interrupt or two may come in between.
    ensure!(
        (0.999..1.05).contains(&ratio),
        "the TSC does not count instructions here ({ratio:.3} ticks an instruction): \
         boot with scripts/vm run --icount"
    );
    Ok(())
}
