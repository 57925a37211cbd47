// SPDX-License-Identifier: GPL-2.0
//! `kvmate top`: the full screen. [`read`] reads, [`model`] keeps state, [`rates`] takes differences, [`draw`],
//! [`list`] and [`bars`] draw, [`screen`] is the terminal. Here is the loop, and which key means what.

mod bars;
mod draw;
#[cfg(test)]
mod fixture;
mod list;
mod model;
mod rates;
mod read;
mod screen;

use crate::tree;
use anyhow::{bail, Context, Result};
use clap::Args;
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use model::{Key, Model, Then};
use screen::Screen;
use signal_hook::{consts::SIGTSTP, low_level::raise};
use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmate top                       all VMs, the first one chosen
  kvmate top qemu --interval 0.5   begin with QEMU's VM, twice a second

Keys: Tab and arrows choose, s sorts, p pauses, ? helps, q quits. The terminal is to have 80x24.
For no terminal, and for logs: kvmate exits VM --watch 1.
Exit status: 0 done, 1 failed (no terminal, no module, no such VM), 2 wrong usage.")]
pub struct Arguments {
    /// The VM to begin with: its name in /sys/kernel/debug/kvmate/vms (101-4), a process's number,
    /// or a part of a process's name that only one VM has
    pub vm: Option<String>,
    /// Read every so many seconds: 0.1 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok();
    let seconds = seconds.filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "seconds, 0.1 to 3600".into())
}

/// Do it.
pub fn run(asked: &Arguments) -> Result<()> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!("top needs a terminal, as standard input and output: without one, kvmate exits VM --watch 1");
    }
    // What is wrong at the beginning is told as by any other subcommand.
    let vm = match &asked.vm {
        Some(vm) => Some(tree::find(vm)?.name),
        None => tree::vms().map(|_| None)?,
    };
    let screen = Screen::take()?;
    watch(&screen, Model::new(vm), asked.interval)
}

fn watch(screen: &Screen, mut model: Model, interval: Duration) -> Result<()> {
    let begin = Instant::now();
    let clock = || begin.elapsed();
    let mut next = Duration::ZERO;
    loop {
        if clock() >= next {
            if !model.paused {
                let reading = read::all(model.wanted(), clock);
                model.take(reading);
            }
            next = clock() + interval;
        }
        if model.unread() && !model.paused {
            let reading = read::all(model.wanted(), clock);
            model.take_chosen(reading);
        }
        screen.draw(|frame| draw::draw(frame, &model))?;
        if !event::poll(next.saturating_sub(clock())).context("the terminal")? {
            continue;
        }
        let Event::Key(pressed) = event::read().context("the terminal")? else {
            continue;
        };
        if is_control(&pressed, 'z') {
            raise(SIGTSTP)?;
        } else if key(&pressed).is_some_and(|key| model.press(key) == Then::Quit) {
            return Ok(());
        }
    }
}

fn is_control(pressed: &KeyEvent, letter: char) -> bool {
    pressed.code == KeyCode::Char(letter) && pressed.modifiers.contains(KeyModifiers::CONTROL)
}

/// What a key means; none: nothing.
fn key(pressed: &KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    if pressed.modifiers.contains(KeyModifiers::CONTROL) {
        return is_control(pressed, 'c').then_some(Key::Quit);
    }
    Some(match pressed.code {
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        KeyCode::Tab => Key::NextPanel,
        KeyCode::BackTab => Key::PreviousPanel,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Char('p' | ' ') => Key::Pause,
        KeyCode::Char('?' | 'h') => Key::Help,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        assert_eq!(interval("1"), Ok(Duration::from_secs(1)));
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "-1", "0.01", "3601", "x", "nan", "inf", "1s"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys() {
        let plain = |code| key(&KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(plain(KeyCode::Char('q')), Some(Key::Quit));
        assert_eq!(plain(KeyCode::Char('x')), None);
        let control = |letter| key(&KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL));
        assert_eq!(control('c'), Some(Key::Quit));
        assert_eq!(control('p'), None);
        let mut released = KeyEvent::new(KeyCode::Char('p'), KeyModifiers::NONE);
        released.kind = KeyEventKind::Release;
        assert_eq!(key(&released), None);
    }
}
