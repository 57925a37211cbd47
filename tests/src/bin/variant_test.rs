// SPDX-License-Identifier: GPL-2.0
//! On a kernel built again with another LOCALVERSION and KVM built in: a module built for the other
//! kernel is refused and `scripts/vermagic` explains it; one built for this kernel sees this KVM.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq, ktap,
    module::{self, Kvmate, Log},
};
use nix::errno::Errno;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

fn main() -> ExitCode {
    ktap::main(&[
        (
            "other_kernels_module_is_refused",
            other_kernels_module_is_refused,
        ),
        ("vermagic_explains", vermagic_explains),
        ("vermagic_agrees_with_its_own", vermagic_agrees_with_its_own),
        ("built_in_kvm_is_seen", built_in_kvm_is_seen),
    ])
}

fn other() -> Result<PathBuf> {
    let path: PathBuf = std::env::var_os("KVMATE_OTHER_KO")
        .context("KVMATE_OTHER_KO")?
        .into();
    ensure!(path.exists(), "{} is not there", path.display());
    Ok(path)
}

fn other_kernels_module_is_refused() -> Result<()> {
    let mut log = Log::from_now()?;
    let found = module::load_file(&other()?, "");
    ensure_eq!(
        found,
        Err(Errno::ENOEXEC),
        "loading another kernel's module"
    );
    let lines = log.lines()?;
    let told = lines
        .iter()
        .any(|l| l.starts_with("kvmate: version magic '"));
    ensure!(told, "the log does not say why: {lines:?}");
    Ok(())
}

/// `scripts/vermagic MODULE`: its status and what it said.
fn vermagic(file: &Path) -> Result<(Option<i32>, String)> {
    let top = std::env::var("KVMATE_TOP").context("KVMATE_TOP")?;
    let output = Command::new(format!("{top}/scripts/vermagic"))
        .arg(file)
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

fn vermagic_explains() -> Result<()> {
    let (status, said) = vermagic(&other()?)?;
    ensure_eq!(status, Some(1), "status ({said})");
    let line = said.lines().next().unwrap_or_default();
    ensure!(line.contains("differ in the release"), "{line}");
    ensure!(
        line.contains("-kvmate'") && line.contains("-kvmate-variant'"),
        "{line}"
    );
    ensure!(said.contains("fix: make module KDIR="), "no fix in: {said}");
    Ok(())
}

fn vermagic_agrees_with_its_own() -> Result<()> {
    let (status, said) = vermagic(&module::path()?)?;
    ensure_eq!(status, Some(0), "status ({said})");
    Kvmate::load("")?.unload()
}

fn built_in_kvm_is_seen() -> Result<()> {
    let modules = fs::read_to_string("/proc/modules")?;
    ensure!(!modules.contains("kvm "), "kvm is a module here: {modules}");
    let mut log = Log::from_now()?;
    let kvmate = Kvmate::load("")?;
    let said = log.ours()?;
    ensure!(
        !said.iter().any(|l| l.contains("not loaded")),
        "said {said:?}"
    );
    ensure_eq!(kvmate.read("exits")?, "0", "exits");
    ensure_eq!(kvmate.read("knobs/observe")?, "1", "observe");
    kvmate.unload()
}
