// SPDX-License-Identifier: GPL-2.0
//! `kvmate top` and what comes to an end: the tool, by keys and signals, and the terminal it gives back; VMMs; the
//! module. And where it does not begin.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::real::Program,
    hung, ktap,
    module::Kvmate,
    storm::Guest,
    terminal::Terminal,
    tool::{top, Done},
};
use nix::sys::signal::Signal;
use std::{
    os::unix::process::ExitStatusExt,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(hung::VMM) {
        return hung::vmm(&arguments.next().unwrap_or_default());
    }
    ktap::main(&[
        ("given_back", given_back),
        ("given_back_while_blocked", given_back_while_blocked),
        ("stopped_and_continued", stopped_and_continued),
        ("vmm_is_killed", vmm_is_killed),
        ("module_goes_and_comes", module_goes_and_comes),
        ("refused", refused),
    ])
}

fn given_back() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new(Program::Out)?;
    for key in ["q", "\x1b", "\x03"] {
        let mut top = top::start(&[])?;
        ensure!(
            !top.modes_are_back()?,
            "top has not changed the terminal's modes"
        );
        top.press(key)?;
        top.ends_well().with_context(|| format!("{key:?}"))?;
    }
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        let top = top::start(&[])?;
        top.signal(signal)?;
        top.ends_by(signal)?;
    }
    drop(guest);
    top::unload(kvmate)
}

/// It waits for a terminal that takes nothing: the signal ends it, and the modes are back.
fn given_back_while_blocked() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new(Program::Out)?;
    let mut top = top::start(&[])?;
    let end = Instant::now() + Duration::from_secs(60);
    let mut sizes = [(40, 100), (45, 120)].into_iter().cycle();
    while !top.is_blocked()? {
        ensure!(Instant::now() < end, "the terminal takes it all");
        let (rows, columns) = sizes.next().context("no size")?;
        top.resize(rows, columns)?;
        thread::sleep(Duration::from_millis(20));
    }
    top.signal(Signal::SIGTERM)?;
    let signal = top.ends(false)?.signal();
    ensure_eq!(signal, Some(Signal::SIGTERM as i32), "what ended it");
    ensure!(top.modes_are_back()?, "other modes");
    drop(guest);
    top::unload(kvmate)
}

fn stopped_and_continued() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new(Program::Out)?;
    let mut top = top::start(&[])?;
    for by_key in [true, false, true] {
        if by_key {
            top.press("\x1a")?;
        } else {
            top.signal(Signal::SIGTSTP)?;
        }
        top.stand_by("it is stopped", || top.is_stopped())?;
        top.is_given_back()?;
        ensure!(
            !top.screen().contains("kvmate top"),
            "still there:\n{}",
            top.screen()
        );
        top.signal(Signal::SIGCONT)?;
        top.shows("kvmate top")?;
        top.stand_by("raw again", || Ok(!top.modes_are_back()?))?;
    }
    // SIGSTOP cannot be caught; a shell sets the modes then.
    top.signal(Signal::SIGSTOP)?;
    top.stand_by("it is stopped", || top.is_stopped())?;
    top.set_modes_back()?;
    top.signal(Signal::SIGCONT)?;
    top.stand_by("raw again", || Ok(!top.modes_are_back()?))?;
    top.press("?")?;
    top.shows("Help:")?;
    top.press("\x03")?;
    top.ends_well()?;
    drop(guest);
    kvmate.unload()
}

fn vmm_is_killed() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let [first, second] = [hung::Vmm::new("out")?, hung::Vmm::new("out")?];
    let mut top = top::start(&[&first.name])?;
    top.shows(&format!("> {}", first.name))?;
    top.shows("VMS 2")?;
    let name = first.name.clone();
    drop(first);
    let told = format!("VM {name} has ended");
    let chosen = format!("> {}", second.name);
    top.until("the other one is chosen", |screen| {
        [&*told, &*chosen, "VMS 1"]
            .iter()
            .all(|part| screen.contains(part))
    })?;
    top.press("s")?;
    top.until("it was told", |screen| !screen.contains("has ended"))?;
    drop(second);
    top.shows("no VM is there")?;
    // One that comes is there by itself.
    let third = hung::Vmm::new("halt")?;
    top.shows(&format!("> {}", third.name))?;
    drop(third);
    top.press("q")?;
    top.ends_well()?;
    kvmate.unload()
}

fn module_goes_and_comes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new(Program::Out)?;
    let mut top = top::start(&[])?;
    top.shows(&guest.name)?;
    top::unload(kvmate)?;
    let screen = top.shows("the module kvmate is not loaded: insmod kvmate.ko")?;
    ensure!(!screen.contains("REASONS"), "{screen}");
    top.press("\tjks")?;
    let kvmate = Kvmate::load("")?;
    top.until("it is back", |screen| {
        screen.contains(&guest.name) && !screen.contains("not loaded")
    })?;
    top.press("q")?;
    top.ends_well()?;
    drop(guest);
    kvmate.unload()
}

fn refused() -> Result<()> {
    // What is asked for is looked at first, and the terminal not touched.
    let on_terminal = |arguments: &[&str], part: &str| -> Result<()> {
        let mut top = Terminal::start(top::command(arguments)?)?;
        let status = top.ends(true)?;
        let said = top.said()?;
        ensure_eq!(
            (status.code(), said.lines().count()),
            (Some(1), 1),
            "status and lines: {said}"
        );
        ensure!(said.contains(part), "{said}");
        top.is_untouched()?;
        top.is_given_back()
    };
    on_terminal(&[], "is not loaded: insmod kvmate.ko")?;
    let kvmate = Kvmate::load("")?;
    on_terminal(&["1-1"], "no VM is there")?;
    Done::of(top::command(&[])?)?.says(1, "without one, kvmate exits VM --watch 1")?;
    for wrong in ["0", "x", "3601"] {
        Done::of(top::command(&["--interval", wrong])?)?.says(2, "seconds, 0.1 to 3600")?;
    }
    kvmate.unload()
}
