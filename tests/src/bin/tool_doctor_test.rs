// SPDX-License-Identifier: GPL-2.0
//! `kvmate doctor`: each state that it tells of, made for real, and told against what is known here.
//!
//! Files that say what cannot be had here (another version, lockdown) are mounted over the real ones, for the tool alone.

use anyhow::{ensure, Context, Result};
use kvm_ioctls::Kvm;
use kvmate_tests::{
    ensure_eq,
    hung::{self, Vmm},
    ktap,
    module::{self, Kvmate, WithoutKvm},
    storm,
    tool::{self, mounted, Done},
};
use nix::errno::Errno;
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Child, Command, ExitCode, Stdio},
    thread,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(hung::VMM) => hung::vmm(&arguments.next().unwrap_or_default()),
        Some(how @ ("--closed" | "--mapped")) => leave(how),
        _ => ktap::main(&[
            ("all_is_well", all_is_well),
            ("no_module", no_module),
            ("other_version", other_version),
            ("no_debugfs", no_debugfs),
            ("locked_down", locked_down),
            ("no_kvm", no_kvm),
            ("no_vendor", no_vendor),
            ("other_layouts", other_layouts),
            ("vm_is_held", vm_is_held),
            ("vcpu_is_left", vcpu_is_left),
            ("mapping_is_left", mapping_is_left),
            ("without_root", without_root),
            ("wrong_usage", wrong_usage),
            ("closed_pipe", closed_pipe),
        ]),
    }
}

fn doctor(arguments: &[&str]) -> Result<Done> {
    let mut command = tool::command("doctor")?;
    command.args(arguments);
    Done::of(command)
}

/// What it says, while mounts that a script makes are there for it alone.
fn where_(script: &str) -> Result<Done> {
    tool::behind(script, "doctor", &[])
}

fn json() -> Result<Value> {
    tool::valid("doctor", &doctor(&["--json"])?.out)
}

/// That one check is missing and no other, with what was found and how it is mended.
fn only_missing(done: &Done, name: &str, found: &str, fix: &str) -> Result<()> {
    ensure_eq!(done.status, Some(1), "status: {}{}", done.out, done.err);
    let expected = format!("kvmate: error: missing: {name}; what mends it is told with each\n");
    ensure_eq!(done.err, expected, "error");
    let mut lines = done.out.lines();
    let line = format!("missing  {name:<9} {found}");
    let told = lines.find(|told| told.starts_with(&line));
    ensure!(told.is_some(), "{line:?} is not in {}", done.out);
    let cost = lines.next().context("no cost")?;
    ensure!(cost.starts_with("                   without: "), "{cost}");
    let told = lines.next().context("no fix")?;
    ensure!(told.contains(&format!("fix: {fix}")), "{told}");
    Ok(())
}

fn all_is_well() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let out = doctor(&[])?.well()?;
    for line in [
        format!(
            "ok       module    kvmate {}, as this tool",
            kvmate.read("version")?
        ),
        format!("ok       vermagic  {}", kvmate.read("vermagic")?.trim()),
        "ok       debugfs   at /sys/kernel/debug".into(),
        format!("ok       kvm       {}, a module", module::vendor()?),
        format!(
            "ok       layouts   {}",
            kvmate.read("layouts")?.replace('\n', "; ")
        ),
        "ok       lockdown  ".into(),
        format!("{} is not in use", module::vendor()?),
    ] {
        ensure!(
            out.lines().any(|told| told.starts_with(&line)),
            "{line:?} is not in {out}"
        );
    }
    let told = json()?;
    ensure_eq!(
        (&told["version"], &told["well"]),
        (&1.into(), &true.into()),
        "version, well"
    );
    ensure_eq!(told["checks"].as_array().map(Vec::len), Some(6), "checks");
    ensure_eq!(told["checks"][0]["state"], "ok", "state");
    ensure_eq!(told["checks"][0]["fix"], Value::Null, "fix");
    ensure_eq!(told["processes"], Value::Array(Vec::new()), "processes");
    kvmate.unload()
}

fn no_module() -> Result<()> {
    let done = doctor(&[])?;
    ensure_eq!(done.status, Some(1), "status");
    ensure_eq!(
        done.err,
        "kvmate: error: missing: module; what mends it is told with each\n",
        "error"
    );
    for part in [
        "missing  module    kvmate is not loaded\n",
        "fix: insmod kvmate.ko, or modprobe kvmate\n",
        "unknown  layouts   not known while the module is not loaded\n",
        "fix: scripts/vermagic kvmate.ko tells",
        "ok       kvm ",
    ] {
        ensure!(done.out.contains(part), "{part:?} is not in {}", done.out);
    }
    ensure_eq!(json()?["checks"][0]["state"], "missing", "state");
    Ok(())
}

fn other_version() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let done = where_(&mounted("9.9.9", "/sys/kernel/debug/kvmate/version"))?;
    let version = kvmate.read("version")?;
    let found = format!("kvmate 9.9.9 is loaded, this tool is of {version}");
    only_missing(&done, "module", &found, "rmmod kvmate, and load")?;
    kvmate.unload()
}

fn no_debugfs() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let done = where_("umount -l /sys/kernel/debug")?;
    only_missing(
        &done,
        "debugfs",
        "not mounted",
        "mount -t debugfs none /sys/kernel/debug",
    )?;
    ensure!(done.out.contains("unknown  module "), "{}", done.out);
    kvmate.unload()
}

fn locked_down() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let over = "/sys/kernel/security/lockdown";
    let done = where_(&mounted("none [integrity] confidentiality", over))?;
    only_missing(&done, "lockdown", "integrity", "sign kvmate.ko")?;
    kvmate.unload()
}

/// How the vendor's module is loaded.
fn by(vendor: &str) -> String {
    format!("modprobe {vendor}")
}

fn no_kvm() -> Result<()> {
    let kvm = WithoutKvm::new()?;
    let kvmate = Kvmate::load("")?;
    only_missing(&doctor(&[])?, "kvm", "no kvm", &by(kvm.vendor()))?;
    let told = json()?;
    ensure_eq!(
        told["checks"][4]["found"],
        "kvm absent; kvm_amd absent",
        "layouts"
    );
    ensure_eq!(told["modules"], Value::Array(Vec::new()), "modules");
    drop(kvm);
    doctor(&[])?.well()?;
    kvmate.unload()
}

fn no_vendor() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let vendor = module::vendor()?;
    module::unload(vendor)?;
    let done = doctor(&[]);
    module::modprobe(vendor)?;
    only_missing(
        &done?,
        "kvm",
        "kvm, without kvm_amd or kvm_intel",
        &by(vendor),
    )?;
    kvmate.unload()
}

/// Loaded where there is no /sys to prove KVM's structures with, which nothing proves later by itself.
fn other_layouts() -> Result<()> {
    let mut insmod = Command::new("unshare");
    insmod.args([
        "-m",
        "sh",
        "-ec",
        "umount -l /sys\nexec insmod \"$1\"",
        "sh",
    ]);
    let kvmate = Kvmate::load_by(insmod.arg(module::path()?))?;
    let found = kvmate.read("layouts")?.replace('\n', "; ");
    ensure!(found.starts_with("kvm unproven: "), "{found}");
    only_missing(
        &doctor(&[])?,
        "layouts",
        &found,
        "build kvmate against the tree",
    )?;
    kvmate.unload()
}

/// The process's part of what is told, and all lines for people.
fn user(pid: u32) -> Result<(Value, String)> {
    let told = json()?;
    let processes = told["processes"].as_array().context("processes")?;
    let [process] = &processes[..] else {
        anyhow::bail!("not one process: {told}");
    };
    ensure_eq!(process["pid"], pid, "pid");
    ensure_eq!(process["process"], Value::Null, "no such field");
    ensure_eq!(process["name"], "tool_doctor_tes", "its name");
    let vendor = &told["modules"][0];
    let references = fs::read_to_string(format!("/sys/module/{}/refcnt", module::vendor()?))?;
    ensure_eq!(
        vendor["references"],
        references.trim().parse::<u64>()?,
        "references"
    );
    ensure_eq!(
        vendor["others"],
        0,
        "references that nothing accounts for: {told}"
    );
    ensure_eq!(
        module::unload(module::vendor()?),
        Err(Errno::EAGAIN),
        "rmmod while it is held"
    );
    Ok((process.clone(), doctor(&[])?.out))
}

/// After it is gone nobody is told of, and it is true.
fn is_free() -> Result<()> {
    storm::until("nobody holds it", || {
        let told = json()?;
        Ok(told["processes"] == Value::Array(Vec::new()) && told["modules"][0]["references"] == 0)
    })?;
    drop(WithoutKvm::new()?);
    Ok(())
}

/// A VMM whose VM's descriptor is known by its name.
fn vm_is_held() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let vmm = Vmm::new("halt")?;
    let fd: u32 = vmm.name.split_once('-').context("its name")?.1.parse()?;
    // It has run, or is about to.
    let mut thread = None;
    storm::until("the kernel's thread", || {
        let told = json()?;
        thread = told["threads"][0]["tid"].as_u64();
        Ok(thread.is_some() && told["threads"][0]["pid"] == vmm.id())
    })?;
    let (process, text) = user(vmm.id())?;
    let files = process["files"].as_array().context("files")?;
    let of = |what: &str| {
        files
            .iter()
            .filter(|file| file["what"] == what)
            .collect::<Vec<_>>()
    };
    ensure_eq!(of("kvm-vm").len(), 1, "VMs");
    ensure_eq!(of("kvm-vm")[0]["fd"], fd, "its descriptor");
    ensure_eq!(
        (of("kvm-vcpu:0").len(), of("/dev/kvm").len()),
        (1, 1),
        "the others"
    );
    let tid = thread.context("no thread")?;
    let comm = fs::read_to_string(format!("/proc/{}/task/{tid}/comm", vmm.id()))?;
    for part in [
        format!("process {} (tool_doctor_tes): ", vmm.id()),
        format!("fd {fd} is kvm-vm"),
        format!("; free by: kill {}\n", vmm.id()),
        format!(
            "thread {tid} ({}) in process {}: ends with its VM",
            comm.trim(),
            vmm.id()
        ),
        format!("{} is in use, 3 times\n", module::vendor()?),
        format!("kvm is in use, 1 times: {}\n", module::vendor()?),
    ] {
        ensure!(text.contains(&part), "{part:?} is not in {text}");
    }
    drop(vmm);
    is_free()?;
    kvmate.unload()
}

/// The process that closes its VM and keeps a vCPU, or its mapping only; tells the descriptor.
fn leave(how: &str) -> ExitCode {
    let leave = || -> Result<()> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        let vcpu = vm.create_vcpu(0)?;
        drop((vm, kvm));
        let fd = vcpu.as_raw_fd();
        if how == "--mapped" {
            nix::unistd::close(fd)?;
        }
        println!("{fd}");
        std::io::stdout().flush()?;
        loop {
            thread::park();
        }
    };
    if let Err(error) = leave() {
        eprintln!("# {error:#}");
    }
    ExitCode::FAILURE
}

/// Such a process, and the descriptor of its vCPU; killed on drop.
struct Left(Child, u32);

impl Left {
    fn start(how: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg(how).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("no pipe")?;
        let mut left = Self(child, 0);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        left.1 = line.trim().parse().context("its descriptor")?;
        Ok(left)
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn vcpu_is_left() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let left = Left::start("--closed")?;
    let (process, text) = user(left.0.id())?;
    let expected = serde_json::json!([{ "fd": left.1, "what": "kvm-vcpu:0" }]);
    ensure_eq!(process["files"], expected, "files");
    ensure!(
        text.contains(&format!(
            "fd {} is kvm-vcpu:0, kvm-vcpu:0 is mapped",
            left.1
        )),
        "{text}"
    );
    drop(left);
    is_free()?;
    kvmate.unload()
}

fn mapping_is_left() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let left = Left::start("--mapped")?;
    let (process, text) = user(left.0.id())?;
    ensure_eq!(process["files"], Value::Array(Vec::new()), "files");
    let expected = serde_json::json!([{ "what": "kvm-vcpu:0", "count": 1 }]);
    ensure_eq!(process["mappings"], expected, "mappings");
    ensure!(
        text.contains("(tool_doctor_tes): kvm-vcpu:0 is mapped; free by: kill"),
        "{text}"
    );
    drop(left);
    is_free()?;
    kvmate.unload()
}

fn without_root() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let vmm = Vmm::new("halt")?;
    // Where the tool is, others cannot look.
    let copy = std::env::temp_dir().join("kvmate-doctor");
    fs::copy(std::env::current_exe()?.with_file_name("kvmate"), &copy)?;
    let mut nobody = Command::new(&copy);
    nobody.arg("doctor").uid(65534);
    let done = Done::of(nobody);
    fs::remove_file(copy)?;
    let done = done?;
    ensure_eq!(done.status, Some(1), "status");
    ensure_eq!(
        done.err,
        "kvmate: error: not seen: module, vermagic, layouts; try as root\n",
        "error"
    );
    for part in [
        "unknown  module    /sys/kernel/debug/kvmate/version is for root\n",
        "fix: sudo kvmate doctor\n",
        "ok       debugfs ",
        "ok       kvm ",
        &format!("{} is in use, 3 times: 3 not seen\n", module::vendor()?),
        "processes could not be seen: sudo kvmate doctor\n",
    ] {
        ensure!(done.out.contains(part), "{part:?} is not in {}", done.out);
    }
    drop(vmm);
    kvmate.unload()
}

fn wrong_usage() -> Result<()> {
    doctor(&["x"])?.says(2, "Usage: kvmate doctor")
}

/// Nobody reads: what is missing decides about the status all the same.
fn closed_pipe() -> Result<()> {
    let (from, to) = nix::unistd::pipe()?;
    drop(from);
    let mut command = tool::command("doctor")?;
    command.stdout(to);
    Done::of(command)?.says(1, "missing: module")
}
