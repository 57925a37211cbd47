// SPDX-License-Identifier: GPL-2.0
//! Under lockdown, booted with `lockdown=integrity` or `lockdown=confidentiality`: an unsigned module
//! is refused, a signed one loads; tables can be read, knobs cannot even be opened (debugfs' own
//! rule for files that can be written); seeing goes on, and the device works.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::real,
    ktap,
    module::{self, Kvmate, Log, DEBUGFS, DEVICE},
};
use nix::errno::Errno;
use std::{
    fs::{self, File, OpenOptions},
    path::Path,
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("is_on", is_on),
        ("unsigned_is_refused", unsigned_is_refused),
        ("signed_loads", signed_loads),
        ("tables_can_be_read", tables_can_be_read),
        ("knobs_are_eperm", knobs_are_eperm),
        ("parameters_still_set", parameters_still_set),
        ("exits_are_counted", exits_are_counted),
        ("device_opens", device_opens),
    ])
}

/// The mode asked for on the kernel's command line is the mode in force.
fn is_on() -> Result<()> {
    let arguments = fs::read_to_string("/proc/cmdline")?;
    let asked = arguments
        .split_whitespace()
        .find_map(|a| a.strip_prefix("lockdown="));
    let asked = asked.context("not booted with lockdown=")?;
    let modes = fs::read_to_string("/sys/kernel/security/lockdown")?;
    ensure!(
        modes.contains(&format!("[{asked}]")),
        "lockdown is {modes}, not {asked}"
    );
    Ok(())
}

fn load() -> Result<Kvmate> {
    Kvmate::load_from(&module::signed_path()?, "")
}

fn unsigned_is_refused() -> Result<()> {
    let mut log = Log::from_now()?;
    let found = module::load_file(&module::path()?, "");
    ensure_eq!(found, Err(Errno::EPERM), "loading an unsigned module");
    let lines = log.lines()?;
    let told = lines
        .iter()
        .any(|l| l.starts_with("Lockdown:") && l.contains("unsigned module loading is restricted"));
    ensure!(told, "the log does not say why: {lines:?}");
    Ok(())
}

fn signed_loads() -> Result<()> {
    load()?.unload()
}

fn tables_can_be_read() -> Result<()> {
    let kvmate = load()?;
    ensure_eq!(
        kvmate.read("version")?,
        kvmate_uapi::KVMATE_VERSION.to_str()?,
        "version"
    );
    ensure!(!kvmate.read("vermagic")?.is_empty(), "vermagic is empty");
    kvmate.exits()?;
    kvmate.unload()
}

fn knobs_are_eperm() -> Result<()> {
    let kvmate = load()?;
    for knob in ["knobs/observe", "knobs/verbose", "knobs/inject"] {
        let path = Path::new(DEBUGFS).join(knob);
        for (how, result) in [
            ("reading", File::open(&path)),
            ("writing", OpenOptions::new().write(true).open(&path)),
        ] {
            let errno = result.err().and_then(|e| e.raw_os_error());
            ensure_eq!(errno, Some(Errno::EPERM as i32), "opening {knob} for {how}");
        }
    }
    kvmate.unload()
}

fn parameters_still_set() -> Result<()> {
    let kvmate = Kvmate::load_from(&module::signed_path()?, "observe=0")?;
    real::write_ports(10)?;
    ensure_eq!(kvmate.exits()?, 0, "exits with observe=0");
    kvmate.unload()
}

fn exits_are_counted() -> Result<()> {
    let kvmate = load()?;
    real::write_ports(100)?;
    let exits = kvmate.exits()?;
    ensure!(exits >= 101, "{exits} exits counted of at least 101");
    kvmate.unload()
}

fn device_opens() -> Result<()> {
    let kvmate = load()?;
    drop(OpenOptions::new().read(true).write(true).open(DEVICE)?);
    kvmate.unload()
}
