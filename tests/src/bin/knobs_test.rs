// SPDX-License-Identifier: GPL-2.0
//! The debugfs tree: names, modes, formats, what knobs take and refuse, and that they act at once.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::real,
    ktap,
    module::{Kvmate, Log, WithoutKvm, DEBUGFS},
};
use nix::errno::Errno;
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::ExitCode};

fn main() -> ExitCode {
    ktap::main(&[
        ("tree", tree),
        ("tables_are_read_only", tables_are_read_only),
        ("version", version),
        ("vermagic_is_the_modules", vermagic_is_the_modules),
        ("recordings_refuse", recordings_refuse),
        ("recordings_take", recordings_take),
        ("observe_without_kvm", observe_without_kvm),
        ("verbose_takes_every_byte", verbose_takes_every_byte),
        ("verbose_acts_at_once", verbose_acts_at_once),
        ("parameters_set_knobs", parameters_set_knobs),
    ])
}

fn mode(name: &str) -> Result<u32> {
    let metadata = fs::metadata(Path::new(DEBUGFS).join(name)).with_context(|| name.to_owned())?;
    Ok(metadata.permissions().mode() & 0o7777)
}

fn names(folder: &str) -> Result<Vec<String>> {
    let mut names: Vec<_> = fs::read_dir(Path::new(DEBUGFS).join(folder))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn tree() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    ensure_eq!(
        names("")?,
        [
            "ended",
            "exits",
            "gmem",
            "knobs",
            "layouts",
            "trace_lost",
            "vermagic",
            "version",
            "vms"
        ],
        "files"
    );
    let knobs = [
        "faults",
        "gmem_order",
        "inject",
        "irqs",
        "latency",
        "msrs",
        "observe",
        "times",
        "trace",
        "trace_rate",
        "trace_vm",
        "verbose",
    ];
    ensure_eq!(names("knobs")?, knobs, "knobs");
    for table in [
        "ended",
        "exits",
        "layouts",
        "trace_lost",
        "vermagic",
        "version",
    ] {
        ensure_eq!(mode(table)?, 0o444, "mode of {table}");
    }
    for knob in knobs {
        ensure_eq!(mode(&format!("knobs/{knob}"))?, 0o644, "mode of {knob}");
    }
    kvmate.unload()
}

/// Write and expect an errno.
fn refused(kvmate: &Kvmate, name: &str, value: &str, expected: Errno) -> Result<()> {
    match kvmate.write(name, value) {
        Ok(()) => anyhow::bail!("{name} took {value:?}"),
        Err(error) => {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            ensure_eq!(errno, expected, "{name} given {value:?}");
            Ok(())
        }
    }
}

fn tables_are_read_only() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let before = kvmate.read("version")?;
    // Root passes over the mode; there is no write operation behind it.
    refused(&kvmate, "version", "x", Errno::EINVAL)?;
    ensure_eq!(kvmate.read("version")?, before, "version");
    kvmate.unload()
}

fn version() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let expected = kvmate_uapi::KVMATE_VERSION.to_str()?;
    ensure_eq!(kvmate.read("version")?, expected, "version");
    let sysfs = fs::read_to_string("/sys/module/kvmate/version")?;
    ensure_eq!(sysfs.trim_end(), expected, "/sys/module/kvmate/version");
    kvmate.unload()
}

fn vermagic_is_the_modules() -> Result<()> {
    let path = kvmate_tests::module::path()?;
    let modinfo = std::process::Command::new("modinfo")
        .args(["-F", "vermagic"])
        .arg(path)
        .output()
        .context("modinfo")?;
    let expected = String::from_utf8(modinfo.stdout)?;
    let kvmate = Kvmate::load("")?;
    let release = nix::sys::utsname::uname()?
        .release()
        .to_string_lossy()
        .into_owned();
    let found = kvmate.read("vermagic")?;
    ensure_eq!(found.trim_end(), expected.trim_end(), "vermagic");
    ensure!(
        found.starts_with(&format!("{release} ")),
        "{found} is not for {release}"
    );
    kvmate.unload()
}

/// What is recorded, and whether by default.
const RECORDINGS: [(&str, &str); 5] = [
    ("observe", "1"),
    ("times", "0"),
    ("msrs", "0"),
    ("faults", "0"),
    ("irqs", "0"),
];

fn recordings_refuse() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let bad = [
        ("2", Errno::EINVAL),
        ("255", Errno::EINVAL),
        ("256", Errno::EINVAL), // what debugfs_create_u8() stores as 0
        ("257", Errno::EINVAL),
        ("18446744073709551615", Errno::EINVAL),
        ("18446744073709551616", Errno::ERANGE), // kstrtoull()'s own answer
        ("-1", Errno::EINVAL),
        ("x", Errno::EINVAL),
        ("1x", Errno::EINVAL),
        ("\n", Errno::EINVAL),
    ];
    for (name, default) in RECORDINGS {
        let knob = format!("knobs/{name}");
        ensure_eq!(kvmate.read(&knob)?, default, "{name} by default");
        for before in ["0", "1"] {
            kvmate.write(&knob, before)?;
            for (value, expected) in bad {
                refused(&kvmate, &knob, value, expected)?;
                ensure_eq!(kvmate.read(&knob)?, before, "{name} after {value:?}");
            }
        }
    }
    kvmate.unload()
}

fn recordings_take() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for (name, _) in RECORDINGS {
        let knob = format!("knobs/{name}");
        for (value, expected) in [
            ("0", "0"),
            ("1\n", "1"),
            ("0x0", "0"),
            ("01", "1"),
            ("1", "1"),
        ] {
            kvmate
                .write(&knob, value)
                .with_context(|| format!("{name} {value:?}"))?;
            ensure_eq!(kvmate.read(&knob)?, expected, "{name} after {value:?}");
        }
        // Each is one of its own.
        for (other, _) in RECORDINGS.into_iter().filter(|(other, _)| *other != name) {
            kvmate.write(&format!("knobs/{other}"), "0")?;
        }
        ensure_eq!(kvmate.read(&knob)?, "1", "{name} after the others");
    }
    kvmate.unload()
}

fn observe_without_kvm() -> Result<()> {
    let kvm = WithoutKvm::new()?;
    let kvmate = Kvmate::load("")?;
    ensure_eq!(kvmate.read("knobs/observe")?, "1", "observe without kvm");
    refused(&kvmate, "knobs/observe", "2", Errno::EINVAL)?;
    for value in ["0", "1", "0"] {
        kvmate
            .write("knobs/observe", value)
            .with_context(|| format!("observe {value} without kvm"))?;
        ensure_eq!(kvmate.read("knobs/observe")?, value, "observe without kvm");
    }
    // It takes effect when kvm comes.
    drop(kvm);
    real::write_ports(10)?;
    ensure_eq!(kvmate.exits()?, 0, "exits with observe 0");
    kvmate.write("knobs/observe", "1").context("observe 1")?;
    real::write_ports(10)?;
    ensure!(kvmate.exits()? >= 10, "no exits with observe 1");
    kvmate.unload()
}

fn verbose_takes_every_byte() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for value in 0..=255 {
        kvmate.write("knobs/verbose", &value.to_string())?;
        ensure_eq!(kvmate.read("knobs/verbose")?, value.to_string(), "verbose");
    }
    // debugfs_create_u8()'s own rule, documented: the low byte is taken.
    kvmate.write("knobs/verbose", "257")?;
    ensure_eq!(kvmate.read("knobs/verbose")?, "1", "verbose after 257");
    kvmate.unload()
}

fn verbose_acts_at_once() -> Result<()> {
    let kvmate = Kvmate::load("observe=0")?;
    let mut log = Log::from_now()?;
    kvmate.write("knobs/observe", "1")?;
    ensure_eq!(log.ours()?, [""; 0], "messages while quiet");
    kvmate.write("knobs/verbose", "7")?;
    kvmate.write("knobs/observe", "0")?;
    ensure_eq!(
        log.ours()?,
        ["knobs/observe: 1 -> 0"],
        "messages while verbose"
    );
    kvmate.write("knobs/verbose", "0")?;
    kvmate.write("knobs/observe", "1")?;
    ensure_eq!(log.ours()?, [""; 0], "messages when quiet again");
    kvmate.unload()
}

fn parameters_set_knobs() -> Result<()> {
    for (set, _) in RECORDINGS {
        let others = RECORDINGS.map(|(name, _)| format!("{name}={}", u8::from(name == set)));
        let others = others.join(" ");
        let kvmate = Kvmate::load(&format!("{others} verbose=200"))?;
        for (name, _) in RECORDINGS {
            let expected = u8::from(name == set).to_string();
            ensure_eq!(
                kvmate.read(&format!("knobs/{name}"))?,
                expected,
                "{name}, {others}"
            );
        }
        ensure_eq!(kvmate.read("knobs/verbose")?, "200", "verbose");
        kvmate.unload()?;
    }
    Ok(())
}
