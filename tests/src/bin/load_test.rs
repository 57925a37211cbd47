// SPDX-License-Identifier: GPL-2.0
//! Loading and unloading: with and without kvm, twice, with bad parameters, while VMs run, and with
//! files held open.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::{self, real, Vm},
    ktap,
    module::{self, Kvmate, Log, WithoutKvm, DEBUGFS, DEVICE},
    storm,
};
use nix::errno::Errno;
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    path::Path,
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("load_and_unload", load_and_unload),
        ("load_is_quiet", load_is_quiet),
        ("twice", twice),
        ("bad_parameters", bad_parameters),
        ("without_kvm", without_kvm),
        ("pins_no_module", pins_no_module),
        ("vm_does_not_hold_it", vm_does_not_hold_it),
        ("open_device_holds_it", open_device_holds_it),
        ("open_table_holds_it", open_table_holds_it),
        ("open_knob_holds_it", open_knob_holds_it),
        ("open_byte_knob_is_cut_off", open_byte_knob_is_cut_off),
        ("a_hundred_times", a_hundred_times),
    ])
}

fn load_and_unload() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    ensure!(module::is_loaded("kvmate"), "not in /sys/module");
    ensure!(
        Path::new(DEBUGFS).exists() && Path::new(DEVICE).exists(),
        "no files"
    );
    kvmate.unload()
}

/// Nothing to say is said when all is well; the kernel may tell of a missing signature.
fn load_is_quiet() -> Result<()> {
    let mut log = Log::from_now()?;
    Kvmate::load("")?.unload()?;
    let said = log.ours()?;
    let unexpected: Vec<_> = said
        .iter()
        .filter(|l| !l.contains("taint"))
        .filter(|l| !l.contains("signature"))
        .collect();
    ensure!(unexpected.is_empty(), "said {unexpected:?}");
    Ok(())
}

fn twice() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let again = module::load_file(&module::path()?, "");
    ensure_eq!(again, Err(Errno::EEXIST), "loading it again");
    ensure_eq!(
        kvmate.read("version")?,
        kvmate_uapi::KVMATE_VERSION.to_str()?,
        "version after"
    );
    kvmate.unload()
}

fn bad_parameters() -> Result<()> {
    for (parameters, said) in [
        ("observe=2", Some("parameter observe=2: 0 or 1")),
        ("times=2", Some("parameter times=2: 0 or 1")),
        ("msrs=2", Some("parameter msrs=2: 0 or 1")),
        ("faults=2", Some("parameter faults=2: 0 or 1")),
        ("irqs=2", Some("parameter irqs=2: 0 or 1")),
        ("observe=x", None),
        ("observe", None),
        ("verbose=256", None),
        ("verbose=-1", None),
    ] {
        let mut log = Log::from_now()?;
        let found = module::load_file(&module::path()?, parameters);
        if found.is_ok() {
            module::unload("kvmate")?;
        }
        let lines = log.lines()?;
        ensure_eq!(found, Err(Errno::EINVAL), "{parameters}");
        let name = parameters.split('=').next().unwrap_or_default();
        let told = match said {
            Some(said) => lines.iter().any(|l| l == &format!("kvmate: {said}")),
            None => lines
                .iter()
                .any(|l| l.contains("kvmate") && l.contains(name)),
        };
        ensure!(told, "{parameters}: the log does not say why: {lines:?}");
        for left in [DEBUGFS, DEVICE, "/sys/module/kvmate"] {
            ensure!(
                !Path::new(left).exists(),
                "{left} is left after {parameters}"
            );
        }
    }
    Ok(())
}

fn without_kvm() -> Result<()> {
    let _kvm = WithoutKvm::new()?;
    let mut log = Log::from_now()?;
    let kvmate = Kvmate::load("")?;
    let said = log.ours()?;
    let line = "kvm is not there yet: VMs are seen when it comes";
    ensure_eq!(
        said.iter().filter(|l| *l == line).count(),
        1,
        "times it says so ({said:?})"
    );
    ensure_eq!(kvmate.read("exits")?, "-", "exits");
    ensure_eq!(
        kvmate.read("version")?,
        kvmate_uapi::KVMATE_VERSION.to_str()?,
        "version"
    );
    kvmate
        .write("knobs/verbose", "1")
        .context("a knob that needs no kvm")?;
    kvmate.unload()
}

/// Who uses a module, as `lsmod` tells.
fn users(name: &str) -> Result<Vec<String>> {
    let modules = fs::read_to_string("/proc/modules")?;
    let line = modules.lines().find(|l| l.split(' ').next() == Some(name));
    let users = line
        .and_then(|l| l.split(' ').nth(3))
        .context("not in /proc/modules")?;
    Ok(users
        .split(',')
        .filter(|u| !u.is_empty() && *u != "-")
        .map(str::to_owned)
        .collect())
}

fn pins_no_module() -> Result<()> {
    let vendor = module::vendor()?;
    let kvmate = Kvmate::load("")?;
    real::write_ports(10)?;
    let before = kvmate.exits()?;
    for round in 0..3 {
        ensure_eq!(users("kvm")?, [vendor], "users of kvm, round {round}");
        ensure_eq!(users(vendor)?, [""; 0], "users of {vendor}, round {round}");
        for name in [vendor, "kvm"] {
            module::unload(name)
                .with_context(|| format!("rmmod {name} while kvmate is loaded, round {round}"))?;
        }
        ensure_eq!(kvmate.read("exits")?, "-", "exits without kvm");
        module::modprobe(vendor)?;
    }
    // And what it saw before, it sees after.
    real::write_ports(10)?;
    ensure!(
        kvmate.exits()? >= before + 10,
        "no exits counted after kvm came again"
    );
    kvmate.unload()
}

fn vm_does_not_hold_it() -> Result<()> {
    let vm = Vm::new(1 << 16, false)?;
    real::load(&vm, real::Program::Out);
    let mut vcpu = vm.vcpu(0)?;
    let kvmate = Kvmate::load("")?;
    real::start(&vcpu, 10)?;
    guest::run(&mut vcpu, None)?;
    kvmate.unload()?;
    real::start(&vcpu, 10)?;
    ensure_eq!(guest::run(&mut vcpu, None)?, 10, "port writes after rmmod");
    Ok(())
}

/// While `file` is open `rmmod` is refused; once it is closed it is not.
fn holds(kvmate: Kvmate, mut file: File) -> Result<()> {
    for _ in 0..3 {
        ensure_eq!(
            module::unload("kvmate"),
            Err(Errno::EWOULDBLOCK),
            "rmmod with a file open"
        );
    }
    // A refused rmmod has changed nothing.
    ensure_eq!(
        kvmate.read("version")?,
        kvmate_uapi::KVMATE_VERSION.to_str()?,
        "version"
    );
    let mut text = String::new();
    if file.seek(std::io::SeekFrom::Start(0)).is_ok() {
        let _ = file.read_to_string(&mut text);
    }
    drop(file);
    kvmate.unload()
}

fn open_device_holds_it() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    holds(kvmate, file)
}

fn open_table_holds_it() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = File::open(Path::new(DEBUGFS).join("exits"))?;
    holds(kvmate, file)
}

fn open_knob_holds_it() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(DEBUGFS).join("knobs/observe"))?;
    holds(kvmate, file)
}

/// `debugfs_create_u8()`'s files are the kernel's own: they do not hold the module, and after it has
/// gone they answer EIO instead of touching its memory.
fn open_byte_knob_is_cut_off() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(DEBUGFS).join("knobs/verbose"))?;
    kvmate.unload()?;
    let mut byte = [0; 8];
    for result in [file.read(&mut byte).map(drop), file.write(b"1").map(drop)] {
        let errno = result.err().and_then(|e| e.raw_os_error());
        ensure_eq!(errno, Some(Errno::EIO as i32), "access after rmmod");
    }
    Ok(())
}

/// A part of the hundred on Bochs, where one takes three seconds of a stock kernel.
fn a_hundred_times() -> Result<()> {
    for round in 0..storm::rounds(100) {
        let kvmate = Kvmate::load(if round % 2 == 0 { "" } else { "observe=0" })?;
        kvmate.read("exits")?;
        kvmate.unload().with_context(|| format!("round {round}"))?;
    }
    Ok(())
}
