// SPDX-License-Identifier: GPL-2.0
//! How a subcommand tells what it read: once, or again and again what came (`--watch`), for people or for
//! programs (`--json`).

use crate::{json, signals::Ignored};
use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use signal_hook::{
    consts::SIGINT,
    flag,
    low_level::{self, pipe},
    SigId,
};
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    sync::{atomic::AtomicBool, Arc},
    time::{Duration, Instant},
};

/// What each subcommand takes that can be watched.
#[derive(Debug, Args)]
pub struct Output {
    /// For programs: one JSON object; with --watch one a line
    #[arg(long)]
    pub json: bool,
    /// Every so many seconds tell what came since the last time, until Ctrl-C
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub watch: Option<Duration>,
}

/// When it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At once: all that there is.
    Now,
    /// After so long: what came meanwhile.
    After(Duration),
    /// Every so often: what came since the last time.
    Every(Duration),
}

impl Output {
    /// When it is told, if not asked for otherwise.
    pub fn when(&self) -> When {
        self.watch.map_or(When::Now, When::Every)
    }
}

/// What was read at a moment.
pub trait Reading {
    /// What `--json` gives.
    type Document: Serialize;
    /// All of it, or what came since another one, so long before.
    fn document(&self, since: Option<(&Self, Duration)>) -> Result<Self::Document>;
    /// The same for people.
    fn tell(document: &Self::Document, out: &mut Vec<u8>) -> Result<()>;
}

/// A length of time in seconds, of 0.01 to a day.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match text.parse::<f64>() {
        Ok(seconds) if digits && (0.01..=86400.0).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err("seconds are a number like 1 or 0.5, of 0.01 to 86400".into()),
    }
}

/// Read and tell.
pub fn run<R: Reading>(
    output: &Output,
    when: When,
    mut read: impl FnMut() -> Result<R>,
) -> Result<()> {
    let now = |since: Option<(&R, Duration)>, reading: &R| -> Result<()> {
        let document = reading.document(since)?;
        let mut text = Vec::new();
        match (output.json, when) {
            (true, When::Every(_)) => json::line(&mut text, &document)?,
            (true, _) => json::pretty(&mut text, &document)?,
            (false, _) => R::tell(&document, &mut text)?,
        }
        // By one write: what is there is whole.
        let mut out = anstream::stdout().lock();
        out.write_all(&text)?;
        Ok(out.flush()?)
    };
    let period = match when {
        When::Now => return now(None, &read()?),
        When::After(length) => {
            let (began, before) = (Instant::now(), read()?);
            std::thread::sleep(length);
            let taken = Instant::now();
            return now(Some((&before, taken - began)), &read()?);
        }
        When::Every(period) => period,
    };
    let mut interrupt = Interrupt::new().context("Ctrl-C")?;
    let (mut last, mut before) = (Instant::now(), read()?);
    let mut due = last;
    loop {
        // Those that were missed are not made up for.
        while due <= Instant::now() {
            due += period;
        }
        if interrupt.comes_before(due)? {
            return Ok(());
        }
        let (taken, reading) = (Instant::now(), read()?);
        now(Some((&before, taken - last)), &reading)?;
        (last, before) = (taken, reading);
    }
}

/// Ctrl-C, which ends a wait. Where there is no wait to end, a second one ends the process.
struct Interrupt {
    pipe: UnixStream,
    handlers: Vec<SigId>,
    /// The pipe's other end, which a handler has otherwise: without one a wait would fail.
    _ignored: Option<UnixStream>,
}

impl Interrupt {
    /// What is ignored stays so.
    fn new() -> Result<Self> {
        Self::unless(Ignored::now()?.has(SIGINT))
    }

    fn unless(ignored: bool) -> Result<Self> {
        let (pipe, write) = UnixStream::pair()?;
        if ignored {
            return Ok(Self {
                pipe,
                handlers: Vec::new(),
                _ignored: Some(write),
            });
        }
        let came = Arc::new(AtomicBool::new(false));
        let handlers = vec![
            // In this order: the first one sees what those before it left.
            flag::register_conditional_shutdown(SIGINT, 1, Arc::clone(&came))?,
            flag::register(SIGINT, came)?,
            pipe::register(SIGINT, write)?,
        ];
        Ok(Self {
            pipe,
            handlers,
            _ignored: None,
        })
    }

    /// Wait until then, or for it.
    fn comes_before(&mut self, due: Instant) -> Result<bool> {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.pipe.set_read_timeout(Some(left))?;
            match self.pipe.read_exact(&mut [0]) {
                Ok(()) => return Ok(true),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                    _ => return Err(error.into()),
                },
            }
        }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            low_level::unregister(handler);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, millis) in [
            ("1", 1000),
            ("0.5", 500),
            ("86400", 86_400_000),
            ("0.01", 10),
        ] {
            assert_eq!(seconds(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "", "0", "0.009", "86401", "-1", "+1", "1s", "1e3", "inf", "nan", ".",
        ] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn interrupted() {
        let mut interrupt = Interrupt::unless(false).unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(!interrupt.comes_before(soon).unwrap());
        assert!(Instant::now() >= soon);
        low_level::raise(SIGINT).unwrap();
        let late = Instant::now() + Duration::from_secs(600);
        assert!(interrupt.comes_before(late).unwrap());
    }

    #[test]
    fn ignored() {
        let mut interrupt = Interrupt::unless(true).unwrap();
        assert!(interrupt.handlers.is_empty());
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(!interrupt.comes_before(soon).unwrap());
    }
}
