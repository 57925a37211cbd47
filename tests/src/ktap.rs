// SPDX-License-Identifier: GPL-2.0
//! A test program: a list of named functions, reported as KTAP, as kselftests do.
//!
//! Exit status 0: all passed (or some did and the rest were skipped); 1: some failed; 4: all were
//! skipped. An argument that is no option picks the tests whose name contains it.

use std::{
    fmt,
    panic::{catch_unwind, AssertUnwindSafe},
    process::ExitCode,
};

/// A test: its name and what it does.
pub type Test = (&'static str, fn() -> anyhow::Result<()>);

/// The error that means "not applicable here", with the reason.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// End the test as skipped.
pub fn skip<T>(reason: impl Into<String>) -> anyhow::Result<T> {
    Err(Skip(reason.into()).into())
}

/// `ensure_eq!(found, expected, "what")`: fail and show both unless they are equal.
#[macro_export]
macro_rules! ensure_eq {
    ($found:expr, $expected:expr, $($what:tt)+) => {{
        match (&$found, &$expected) {
            (found, expected) if found != expected => {
                anyhow::bail!("{}: found {found:?}, expected {expected:?}", format_args!($($what)+));
            }
            _ => {}
        }
    }};
}

enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
}

fn run(test: fn() -> anyhow::Result<()>) -> Verdict {
    match catch_unwind(AssertUnwindSafe(test)) {
        Ok(Ok(())) => Verdict::Passed,
        Ok(Err(error)) => match error.downcast_ref::<Skip>() {
            Some(Skip(reason)) => Verdict::Skipped(reason.clone()),
            None => Verdict::Failed(format!("{error:#}")),
        },
        Err(panic) => Verdict::Failed(
            panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
                .unwrap_or_else(|| "panicked".into()),
        ),
    }
}

/// Run the tests and report them.
pub fn main(tests: &[Test]) -> ExitCode {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let tests: Vec<_> = tests
        .iter()
        .filter(|(name, _)| name.contains(&wanted))
        .collect();
    println!("KTAP version 1\n1..{}", tests.len());
    let (mut passed, mut failed) = (0, 0);
    for (number, (name, test)) in tests.iter().enumerate().map(|(i, t)| (i + 1, t)) {
        match run(*test) {
            Verdict::Passed => {
                passed += 1;
                println!("ok {number} {name}");
            }
            Verdict::Skipped(reason) => println!("ok {number} {name} # SKIP {reason}"),
            Verdict::Failed(why) => {
                failed += 1;
                for line in why.lines() {
                    println!("# {line}");
                }
                println!("not ok {number} {name}");
            }
        }
    }
    match (passed, failed) {
        (_, 1..) => ExitCode::from(1),
        (0, 0) => ExitCode::from(4),
        _ => ExitCode::SUCCESS,
    }
}
