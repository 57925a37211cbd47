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
                model.is_off(tree::is_off("observe").ok().flatten());
            }
            next = clock() + interval;
        }
        if model.unread() && !model.paused {
            if let Some((vm, vcpu)) = model.wanted() {
                let reading = read::chosen(vm, vcpu, clock);
                model.take_chosen(reading);
            }
        }
        screen.draw(|frame| draw::draw(frame, &model))?;
        if !event::poll(next.saturating_sub(clock())).context("the terminal")? {
            continue;
        }
        let Event::Key(pressed) = event::read().context("the terminal")? else {
            continue;
        };
        let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
        if control && pressed.code == KeyCode::Char('z') {
            raise(SIGTSTP)?;
        } else if key(&pressed).is_some_and(|key| model.press(key) == Then::Quit) {
            return Ok(());
        }
    }
}

/// What a key means; none: it was not pressed.
fn key(pressed: &KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
    Some(match pressed.code {
        KeyCode::Char('c') if control => Key::Quit,
        _ if control => Key::Other,
        KeyCode::Up | KeyCode::Char('k') => Key::Line(-1),
        KeyCode::Down | KeyCode::Char('j') => Key::Line(1),
        KeyCode::PageUp => Key::Line(-10),
        KeyCode::PageDown => Key::Line(10),
        KeyCode::Home => Key::Line(isize::MIN),
        KeyCode::End => Key::Line(isize::MAX),
        KeyCode::Tab | KeyCode::Right => Key::NextPanel,
        KeyCode::BackTab | KeyCode::Left => Key::PreviousPanel,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Char('p' | ' ') => Key::Pause,
        KeyCode::Char('?' | 'h') => Key::Help,
        KeyCode::Char('q') | KeyCode::Esc => Key::Leave,
        _ => Key::Other,
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
        assert_eq!(plain(KeyCode::Char('q')), Some(Key::Leave));
        assert_eq!(plain(KeyCode::Char('x')), Some(Key::Other));
        let control = |letter| key(&KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL));
        assert_eq!(control('c'), Some(Key::Quit));
        assert_eq!(control('p'), Some(Key::Other));
        let mut released = KeyEvent::new(KeyCode::Char('p'), KeyModifiers::NONE);
        released.kind = KeyEventKind::Release;
        assert_eq!(key(&released), None);
    }
}
