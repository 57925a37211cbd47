// SPDX-License-Identifier: GPL-2.0
//! `kvmate snapshot`, as a user runs it, on guests that hang where the test knows.
//!
//! It has to tell what the module's file `snapshot` tells, which the test reads itself.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::steps::Step,
    hung::{self, named, running, vm_of, User, Vmm},
    module::{Kvmate, EVERYTHING},
    oracle::name_of,
    snapshot::Snapshot,
    table,
    tool::{self, json, Watch},
};
use serde_json::Value;
use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    hung::main(&[
        ("halted", halted),
        ("vmm_stopped", vmm_stopped),
        ("errors", errors),
    ])
}

/// The rows of a part.
fn rows<'a>(told: &'a Value, part: &str) -> Result<&'a Vec<Value>> {
    told[part].as_array().with_context(|| part.to_owned())
}

/// What lasts is told as the file tells it: of a VM that stands still.
fn is_snapshot(told: &Value, file: &Snapshot) -> Result<()> {
    ensure_eq!(told["vm"], file.vm.as_str(), "vm");
    ensure_eq!(told["snapshot"]["moved"], 0, "moved");
    let exits = file.exits()?;
    ensure_eq!(rows(told, "exits")?.len(), exits.len(), "exits");
    for (row, line) in rows(told, "exits")?.iter().zip(&exits) {
        ensure_eq!(row["reason"], line.reason.as_str(), "reason");
        let numbers = ["count", "total_ns", "max_ns"].map(|field| row[field].as_u64());
        let expected = [line.count, line.total, line.max].map(Some);
        ensure_eq!(numbers, expected, "{}", line.reason);
    }
    let histograms = table::exits_hist(file.part("exits_hist")?)?;
    let told_of = rows(told, "exits_hist")?;
    ensure_eq!(told_of.len(), histograms.len(), "histograms");
    for (row, line) in told_of.iter().zip(&histograms) {
        ensure_eq!(row["timed"], line.timed, "timed of {row}");
        let mut buckets = [0; 48];
        for bucket in rows(row, "histogram")? {
            let from = bucket["from_ns"].as_u64().context("from_ns")?;
            let at = from.checked_ilog2().map_or(0, |bits| bits as usize + 1);
            buckets[at] = bucket["count"].as_u64().context("count")?;
        }
        ensure_eq!(buckets, line.buckets, "buckets of {row}");
    }
    let times = table::times(file.part("times")?)?;
    ensure_eq!(rows(told, "times")?.len(), times.len(), "times");
    for (row, line) in rows(told, "times")?.iter().zip(&times) {
        ensure_eq!(row["halted_ns"], line.halted, "halted of {row}");
        ensure_eq!(row["kernel_ns"], line.kernel, "kernel of {row}");
    }
    let faults = table::faults(file.part("faults")?)?;
    ensure_eq!(rows(told, "faults")?.len(), faults.len(), "faults");
    for (row, line) in rows(told, "faults")?.iter().zip(&faults) {
        ensure_eq!(row["which"], line.which.as_str(), "which");
        ensure_eq!(row["count"], line.count, "count of {row}");
    }
    for (part, columns) in [
        ("msrs", "msr name reads writes faults last_written"),
        ("irqs", "vector injected accepted eoi"),
        ("irqfds", "gsi route resample fd"),
    ] {
        let lines = file.lines(part, columns)?;
        ensure_eq!(rows(told, part)?.len(), lines.len(), "{part}");
    }
    // Each vCPU, what waits to get in, and where its task is.
    let vcpus = table::vcpus(file.part("vcpus")?)?;
    for part in ["vcpus", "pending", "tasks"] {
        ensure_eq!(rows(told, part)?.len(), vcpus.len(), "{part}");
    }
    for (at, vcpu) in vcpus.iter().enumerate() {
        ensure_eq!(told["vcpus"][at]["vcpu"], vcpu.vcpu, "vcpu");
        ensure_eq!(told["vcpus"][at]["state"], vcpu.state.as_str(), "state");
        let pending = file.pending(vcpu.vcpu)?;
        let row = &told["pending"][at];
        ensure_eq!(row["mp_state"], pending[0].as_str(), "mp_state");
        ensure_eq!(row["nmis"].to_string(), pending[3], "NMIs");
        let (task, state, stack) = file.task(vcpu.vcpu)?;
        let row = &told["tasks"][at];
        let told = format!("{}:{}", row["tid"], row["task"].as_str().context("task")?);
        ensure_eq!(told, task, "task");
        ensure_eq!(row["state"], state.as_str(), "state of the task");
        ensure_eq!(row["stack"], serde_json::to_value(stack)?, "stack");
    }
    Ok(())
}

/// Stand by until its only vCPU is in that state, and its task asleep.
fn until(vm: &str, state: &str, task: &str) -> Result<Snapshot> {
    let began = Instant::now();
    loop {
        let snapshot = Snapshot::of(vm)?;
        let lines = table::vcpus(snapshot.part("vcpus")?)?;
        let (_, is, frames) = snapshot.task(0)?;
        if lines[0].state == state && is == task && frames.is_some() {
            return Ok(snapshot);
        }
        ensure!(began.elapsed() < Duration::from_secs(60), "{snapshot:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn halted() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    let steps = [Step::Cpuid(20), Step::Read(3), Step::Halt(1)];
    let (vm, mut vcpu) = vm_of(&steps, true, false)?;
    let name = name_of(&vm.fd);
    running(&mut vcpu, User::Wait, |task| {
        let file = until(&name, "halted", "S")?;
        let told = json("snapshot", &[&name])?;
        is_snapshot(&told, &file)?;
        ensure_eq!(told["interval_ns"], Value::Null, "the interval");
        ensure_eq!(told["pid"], std::process::id(), "pid");
        let row = &told["vcpus"][0];
        ensure_eq!(row["last_exit"], named("hlt", "HLT"), "the last exit");
        let cpuid = named("cpuid", "CPUID");
        let row = rows(&told, "exits")?.iter().find(|r| r["reason"] == cpuid);
        ensure_eq!(row.context("CPUIDs")?["count"], 20, "CPUIDs");
        ensure_eq!(told["msrs"][0]["reads"], 3, "MSRs read");
        // The same for people.
        let text = tool::run("snapshot", &[&name])?.well()?;
        ensure!(text.starts_with(&format!("VM {name} of ")), "{text}");
        let (tid, _) = task.split_once(':').context("a task")?;
        for part in ["[vcpus]\n", "[tasks]\n", "[exits]\n", "[msrs]\n", tid] {
            ensure!(text.contains(part), "{part:?} is not in {text}");
        }
        let mut lines = text.lines();
        let within = lines.any(|line| line.starts_with("  vCPU 0 is in kvm_vcpu_block+"));
        ensure!(within, "no stack in {text}");
        Ok(())
    })?;
    drop((vcpu, vm));
    kvmate.unload()
}

/// It answers for a VMM that is stopped.
fn vmm_stopped() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    let vmm = Vmm::new("halt")?;
    until(&vmm.name, "halted", "S")?;
    vmm.stop()?;
    let file = Snapshot::of(&vmm.name)?;
    let told = json("snapshot", &[&vmm.name])?;
    is_snapshot(&told, &file)?;
    ensure_eq!(told["tasks"][0]["state"], "T", "the task's state");
    ensure_eq!(told["pid"], vmm.id(), "pid");
    drop(vmm);
    kvmate.unload()
}

fn errors() -> Result<()> {
    tool::run("snapshot", &[])?.says(2, "Usage: kvmate snapshot")?;
    tool::run("snapshot", &["1-1"])?.says(1, "is not loaded: insmod kvmate.ko")?;
    let kvmate = Kvmate::load("")?;
    tool::run("snapshot", &["1-1"])?.says(1, "no VM is there")?;
    // It is killed while it is watched.
    let vmm = Vmm::new("spin")?;
    let mut watch = Watch::new("snapshot", &[&vmm.name, "--json"])?;
    watch.document()?;
    drop(vmm);
    let done = watch.end()?;
    ensure_eq!(done.status, Some(1), "status; it said {}", done.err);
    let gone = ["has ended", "is ending", "no VM is there"];
    ensure!(
        gone.iter().any(|said| done.err.contains(said)),
        "{}",
        done.err
    );
    for line in done.out.lines() {
        let told = tool::valid("snapshot", line)?;
        ensure!(told["interval_ns"].is_u64(), "the interval in {line}");
    }
    kvmate.unload()
}
