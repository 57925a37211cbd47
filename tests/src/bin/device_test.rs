// SPDX-License-Identifier: GPL-2.0
//! `/dev/kvmate`: who may open it, what its ioctl tells, and how it refuses.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq, ktap,
    module::{Kvmate, WithoutKvm, DEVICE},
};
use kvmate_uapi::{
    kvmate_info, KVMATE_FEATURE_EXITS, KVMATE_FEATURE_KVM, KVMATE_FEATURE_POKE, KVMATE_GET_INFO,
};
use nix::{errno::Errno, libc};
use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    process::{Command, ExitCode},
};

fn main() -> ExitCode {
    // The part of `needs_cap_sys_admin` that runs as somebody else.
    if std::env::args().nth(1).as_deref() == Some("--open") {
        return match open() {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => ExitCode::from(error.raw_os_error().unwrap_or(255) as u8),
        };
    }
    ktap::main(&[
        ("node", node),
        ("info", info),
        ("info_without_kvm", info_without_kvm),
        ("unknown_ioctls", unknown_ioctls),
        ("reserved_fields", reserved_fields),
        ("bad_pointers", bad_pointers),
        ("needs_cap_sys_admin", needs_cap_sys_admin),
    ])
}

fn open() -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE)
}

/// The raw call: any number, any argument.
fn ioctl(file: &File, number: u64, argument: *mut kvmate_info) -> nix::Result<i32> {
    // SAFETY: The kernel checks both; the tests that pass bad ones want just that.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), number, argument) })
}

fn zero() -> kvmate_info {
    // SAFETY: Integers and byte arrays only.
    unsafe { std::mem::zeroed() }
}

fn text(bytes: &[libc::c_char]) -> Result<String> {
    let end = bytes
        .iter()
        .position(|&b| b == 0)
        .context("no zero byte at the end")?;
    Ok(bytes[..end].iter().map(|&b| char::from(b as u8)).collect())
}

fn node() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mode = fs::metadata(DEVICE)?.permissions().mode();
    ensure_eq!(mode & 0o7777, 0o600, "mode of {DEVICE}");
    kvmate.unload()
}

fn info() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = open()?;
    let mut info = zero();
    // What is not said to be input must not matter.
    info.features = u64::MAX;
    info.version = [0x7f; 32];
    info.release = [0x7f; 80];
    ensure_eq!(
        ioctl(&file, KVMATE_GET_INFO, &mut info)?,
        0,
        "KVMATE_GET_INFO"
    );
    ensure_eq!(
        text(&info.version)?,
        kvmate_uapi::KVMATE_VERSION.to_str()?,
        "version"
    );
    let release = nix::sys::utsname::uname()?
        .release()
        .to_string_lossy()
        .into_owned();
    ensure_eq!(text(&info.release)?, release, "release");
    let mut all = KVMATE_FEATURE_KVM | KVMATE_FEATURE_EXITS;
    if kvmate.read("layouts")?.contains("kvm proven") {
        all |= KVMATE_FEATURE_POKE;
    }
    ensure_eq!(info.features, u64::from(all), "features with kvm");
    ensure_eq!((info.flags, info.reserved), (0, 0), "reserved fields");
    drop(file);
    kvmate.unload()
}

fn info_without_kvm() -> Result<()> {
    let _kvm = WithoutKvm::new()?;
    let kvmate = Kvmate::load("")?;
    let file = open()?;
    let mut info = zero();
    ioctl(&file, KVMATE_GET_INFO, &mut info)?;
    ensure_eq!(info.features, 0, "features without kvm");
    drop(file);
    kvmate.unload()
}

fn unknown_ioctls() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = open()?;
    let mut info = zero();
    let other_number = KVMATE_GET_INFO + 1;
    let other_size = KVMATE_GET_INFO ^ (8 << 16);
    let other_direction = KVMATE_GET_INFO ^ (1 << 30);
    for number in [
        0,
        1,
        other_number,
        other_size,
        other_direction,
        u64::from(u32::MAX),
    ] {
        let found = ioctl(&file, number, &mut info);
        ensure_eq!(found, Err(Errno::ENOTTY), "ioctl {number:#x}");
    }
    drop(file);
    kvmate.unload()
}

fn reserved_fields() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = open()?;
    for bit in 0..32 {
        let mut info = zero();
        info.flags = 1 << bit;
        let found = ioctl(&file, KVMATE_GET_INFO, &mut info);
        ensure_eq!(found, Err(Errno::EINVAL), "flags bit {bit}");
        ensure_eq!(info.version[0], 0, "nothing is written on refusal");
        let mut info = zero();
        info.reserved = 1 << bit;
        let found = ioctl(&file, KVMATE_GET_INFO, &mut info);
        ensure_eq!(found, Err(Errno::EINVAL), "reserved bit {bit}");
    }
    drop(file);
    kvmate.unload()
}

fn bad_pointers() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = open()?;
    for address in [0usize, 1, 0x7fff_ffff_f000, usize::MAX - 4095] {
        let found = ioctl(&file, KVMATE_GET_INFO, address as *mut kvmate_info);
        ensure_eq!(found, Err(Errno::EFAULT), "argument at {address:#x}");
    }
    drop(file);
    kvmate.unload()
}

fn needs_cap_sys_admin() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    // Let the file's mode pass, so that only the capability can refuse.
    fs::set_permissions(DEVICE, fs::Permissions::from_mode(0o666))?;
    // A copy where nobody may execute it.
    let program = "/tmp/device_test_open";
    fs::copy(std::env::current_exe()?, program)?;
    let status = Command::new(program)
        .arg("--open")
        .uid(65534)
        .gid(65534)
        .status()?;
    ensure_eq!(status.code(), Some(libc::EPERM), "open() as nobody");
    let status = Command::new(program).arg("--open").status()?;
    fs::remove_file(program)?;
    ensure!(status.success(), "open() as root: {status}");
    kvmate.unload()
}
