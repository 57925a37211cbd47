// SPDX-License-Identifier: GPL-2.0
//! Runs test programs in a guest, one after the other, and reports them as nested KTAP.
//!
//! `run_tests [--timeout SECONDS] PROGRAM[.TEST]...`
//!
//! A program's verdict is its own and the kernel's: a warning, oops, or report of KASAN, lockdep or
//! kmemleak in the log while it ran is a failed test of that program, called `kernel_log` or
//! `kmemleak`; one that did not come to its end has failed too.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{channel, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use kvmate_tests::module::Log;
use nix::{
    sys::signal::{killpg, Signal},
    unistd::Pid,
};

/// What the kernel says when something is wrong. The last is in all that come with a back trace.
const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "KASAN",
    "UBSAN",
    "general protection fault",
    "Unable to handle",
    "INFO: task",
    "rcu: INFO",
    "soft lockup",
    "possible circular locking",
    "inconsistent lock state",
    "suspicious RCU usage",
    "sleeping function called",
    "ODEBUG",
    "Call Trace:",
];

const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

fn main() -> ExitCode {
    let mut timeout = Duration::from_secs(120);
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|a| a == "--timeout").is_some() {
        match arguments.next().and_then(|a| a.parse().ok()) {
            Some(seconds) => timeout = Duration::from_secs(seconds),
            None => return usage(),
        }
    }
    let programs: Vec<String> = arguments.collect();
    if programs.is_empty() {
        return usage();
    }
    println!("KTAP version 1\n1..{}", programs.len());
    let mut failed = false;
    for (number, program) in programs.iter().enumerate() {
        let began = Instant::now();
        let (name, filter) = program.split_once('.').unwrap_or((program, ""));
        println!("    KTAP version 1\n    # Subtest: {name}");
        let good = run(name, filter, timeout).unwrap_or_else(|error| {
            println!("    # {error:#}\n    not ok 1 could_not_run");
            false
        });
        failed |= !good;
        let verdict = if good { "ok" } else { "not ok" };
        println!(
            "{verdict} {} {name} # {:.1} s",
            number + 1,
            began.elapsed().as_secs_f32()
        );
    }
    ExitCode::from(u8::from(failed))
}

fn usage() -> ExitCode {
    eprintln!("usage: run_tests [--timeout SECONDS] PROGRAM[.TEST]...");
    ExitCode::from(2)
}

/// Counts the result lines as they pass by.
#[derive(Default)]
struct Results {
    planned: usize,
    seen: usize,
    failed: usize,
}

impl Results {
    fn line(&mut self, line: &str) {
        println!("    {line}");
        if let Some(plan) = line.strip_prefix("1..") {
            self.planned = plan.parse().unwrap_or(0);
        } else if line.starts_with("ok ") {
            self.seen += 1;
        } else if line.starts_with("not ok ") {
            self.seen += 1;
            self.failed += 1;
        }
    }

    /// A test that the program does not know of.
    fn fail(&mut self, name: &str, why: &[String]) {
        for line in why {
            println!("    # {line}");
        }
        self.failed += 1;
        println!("    not ok {} {name}", self.planned.max(self.seen) + 1);
    }
}

fn run(name: &str, filter: &str, timeout: Duration) -> Result<bool> {
    let mut log = Log::from_now()?;
    let mut child = Command::new(sibling(name)?)
        .args((!filter.is_empty()).then_some(filter))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("{name} cannot be started"))?;
    let mut results = Results::default();
    let in_time = follow(&mut child, timeout, &mut results)?;
    let status = child.wait()?;
    if !in_time {
        results.fail(
            "timeout",
            &[format!("killed after {} s", timeout.as_secs())],
        );
    } else if results.seen < results.planned || !matches!(status.code(), Some(0 | 1 | 4)) {
        results.fail(
            "unfinished",
            &[format!("{status}, {} of {}", results.seen, results.planned)],
        );
    }
    let complaints = complaints(&log.lines()?);
    if !complaints.is_empty() {
        results.fail("kernel_log", &complaints);
    }
    let leaks = leaks()?;
    if !leaks.is_empty() {
        results.fail("kmemleak", &leaks);
    }
    Ok(results.failed == 0)
}

/// A program beside this one.
fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new("/")).join(name))
}

/// Pass the child's lines on as they come; false if it had to be killed.
fn follow(child: &mut Child, timeout: Duration, results: &mut Results) -> Result<bool> {
    let output = child.stdout.take().context("no pipe")?;
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let end = Instant::now() + timeout;
    loop {
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => results.line(&line),
            Err(RecvTimeoutError::Disconnected) => return Ok(true),
            Err(RecvTimeoutError::Timeout) => {
                killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL)?;
                return Ok(false);
            }
        }
    }
}

/// From the first complaint on, if there is one, as much as helps.
fn complaints(lines: &[String]) -> Vec<String> {
    let first = lines
        .iter()
        .position(|l| COMPLAINTS.iter().any(|c| l.contains(c)));
    first.map_or_else(Vec::new, |first| {
        lines[first..].iter().take(60).cloned().collect()
    })
}

/// What kmemleak suspects, where there is one. It looks at objects of five seconds and older only,
/// and asks that a second scan agree.
fn leaks() -> Result<Vec<String>> {
    if !Path::new(KMEMLEAK).exists() {
        return Ok(Vec::new());
    }
    thread::sleep(Duration::from_millis(5500));
    for _ in 0..2 {
        fs::write(KMEMLEAK, "scan").context(KMEMLEAK)?;
    }
    let report = fs::read_to_string(KMEMLEAK)?;
    fs::write(KMEMLEAK, "clear")?;
    Ok(report.lines().take(60).map(str::to_owned).collect())
}
