// SPDX-License-Identifier: GPL-2.0
//! `kvmate export`, as a user runs it and a scraper asks it: what it tells, of VMs that are known.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    export::{Exporter, Metrics},
    gmem,
    guest::{
        real::Program,
        steps::{self, at_rest, Step},
    },
    ktap,
    module::{Kvmate, EVERYTHING},
    poke::stats_of,
    seen,
    stats::Stats,
    storm::{self, live},
    table,
};
use std::{fs, os::unix::fs::MetadataExt, process::ExitCode};

fn main() -> ExitCode {
    ktap::main(&[
        ("exits", exits),
        ("histograms", histograms),
        ("processes", processes),
        ("memory_files", memory_files),
        ("bounds", bounds),
        ("resets_and_ends", resets_and_ends),
    ])
}

const STEPS: [Step; 5] = [
    Step::Out(30),
    Step::Cpuid(40),
    Step::Read(7),
    Step::Touch(1),
    Step::Halt(3),
];

/// What a VM's tables say, and no more.
fn as_tables(kvmate: &Kvmate, metrics: &Metrics, name: &str, vcpus: usize) -> Result<()> {
    let rows = table::exits(&kvmate.read(&format!("vms/{name}/exits"))?)?;
    let all: u64 = rows.iter().map(|row| row.count).sum();
    ensure_eq!(
        metrics.whole(&format!("kvmate_vm_exits_total{{vm=\"{name}\"}}"))?,
        all,
        "all exits"
    );
    ensure_eq!(
        metrics.whole(&format!("kvmate_vm_vcpus{{vm=\"{name}\"}}"))?,
        vcpus as u64,
        "vCPUs"
    );
    for row in &rows {
        let of = format!("vm=\"{name}\",reason=\"{}\"", row.reason);
        for (percentile, ns) in ["50", "99", "99.9"].into_iter().zip(row.percentiles) {
            let sample =
                format!("kvmate_vm_exit_percentile_seconds{{{of},percentile=\"{percentile}\"}}");
            ensure_eq!(metrics.nanoseconds(&sample)?, ns, "{sample}");
        }
        let sample = format!("kvmate_vm_exit_longest_seconds{{{of}}}");
        ensure_eq!(metrics.nanoseconds(&sample)?, row.max, "{sample}");
    }
    let mut series = 0;
    for vcpu in 0..vcpus {
        for row in table::exits(&kvmate.read(&format!("vms/{name}/vcpu{vcpu}/exits"))?)? {
            let of = format!(
                "{{vm=\"{name}\",vcpu=\"{vcpu}\",reason=\"{}\"}}",
                row.reason
            );
            let sample = format!("kvmate_vcpu_exits_total{of}");
            ensure_eq!(metrics.whole(&sample)?, row.count, "{sample}");
            let sample = format!("kvmate_vcpu_exit_seconds_total{of}");
            ensure_eq!(metrics.nanoseconds(&sample)?, row.total, "{sample}");
            series += 1;
        }
    }
    let prefix = format!("kvmate_vcpu_exits_total{{vm=\"{name}\",");
    ensure_eq!(metrics.count(&prefix), series, "series of exits");
    Ok(())
}

/// The guest's own counts, KVM's, and the module's tables.
fn exits() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let exporter = Exporter::start(&[])?;
    let (vm, vcpus) = at_rest(2, &STEPS)?;
    let name = storm::name_of(&vm);
    let metrics = exporter.metrics()?;
    ensure_eq!(metrics.whole("kvmate_up")?, 1, "up");
    ensure_eq!(metrics.whole("kvmate_vms")?, 1, "VMs");
    ensure_eq!(
        metrics.whole("kvmate_exits_total")?,
        kvmate.exits()?,
        "exits since load"
    );
    let (known, names) = (steps::known(&STEPS), seen::names());
    for (reason, count) in [
        (names.out, known.ports),
        (names.cpuid, known.cpuids),
        (names.msr, known.reads),
        (names.hlt, known.halts),
    ] {
        for vcpu in 0..2 {
            let sample = format!(
                "kvmate_vcpu_exits_total{{vm=\"{name}\",vcpu=\"{vcpu}\",reason=\"{reason}\"}}"
            );
            ensure_eq!(metrics.whole(&sample)?, count, "{sample}");
        }
    }
    let kvm = vcpus.iter().map(|vcpu| Stats::of(vcpu)?.get("exits"));
    let sample = format!("kvmate_vm_exits_total{{vm=\"{name}\"}}");
    ensure_eq!(
        metrics.whole(&sample)?,
        kvm.sum::<Result<u64>>()?,
        "exits, and KVM's"
    );
    as_tables(&kvmate, &metrics, &name, 2)?;
    for what in ["vms", "vcpus", "reasons", "gmem_files", "ended"] {
        ensure_eq!(metrics.left_out(what)?, 0, "{what} left out");
    }
    ensure_eq!(metrics.whole("kvmate_read_failures_total")?, 0, "failures");
    let version = kvmate.read("version")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let module = format!(
        "kvmate_module_info{{version=\"{version}\",release=\"{}\"}}",
        release.trim_end()
    );
    ensure_eq!(metrics.whole(&module)?, 1, "the module");
    let build = format!("kvmate_build_info{{version=\"{version}\"}}");
    ensure_eq!(metrics.whole(&build)?, 1, "the exporter");
    drop((vm, vcpus));
    exporter.end()?;
    kvmate.unload()
}

/// Histograms are those of the table, which other tests hold against KVM's events, and together that of the
/// VM's statistics.
fn histograms() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    let exporter = Exporter::start(&[])?;
    let (vm, vcpus) = at_rest(1, &STEPS)?;
    let name = storm::name_of(&vm);
    let metrics = exporter.metrics()?;
    let stats = Stats::from_file(stats_of(&vm)?)?.read()?;
    let family = "kvmate_vm_exit_duration_seconds";
    let lines = table::exits_hist(&kvmate.read(&format!("vms/{name}/exits_hist"))?)?;
    ensure!(lines.len() > 3, "{lines:?}");
    let mut together = vec![0; 48];
    let mut all = [0; 2];
    for line in &lines {
        let of = format!("vm=\"{name}\",reason=\"{}\"", line.reason);
        let count = metrics.whole(&format!("{family}_count{{{of}}}"))?;
        let sum = metrics.nanoseconds(&format!("{family}_sum{{{of}}}"))?;
        ensure_eq!((count, sum), (line.timed, line.total), "{of}");
        all = [all[0] + count, all[1] + sum];
        let buckets = metrics.buckets(family, &of)?;
        ensure_eq!(buckets.len(), 30, "buckets of {metrics:?}");
        let mut last = 0;
        for (bound, below) in buckets {
            let bits = match bound {
                Some(bound) => bound.ilog2() as usize,
                None => 47,
            };
            ensure!(bound.is_none_or(|b| b.is_power_of_two()), "{bound:?}");
            ensure_eq!(below, line.below(bits), "at most {bound:?} ns: {of}");
            together[bits] += below - last;
            last = below;
        }
    }
    ensure_eq!(
        metrics.count(&format!("{family}_count{{")),
        lines.len(),
        "histograms"
    );
    ensure_eq!(all[0], stats.get("exit_timed")?, "timed exits");
    ensure!(all[0] > 70, "{} exits were timed", all[0]);
    ensure_eq!(all[1], stats.get("exit_ns")?, "their time");
    // Beyond the outer bounds they are put together.
    let mut expected = stats.all("exit_hist")?.to_vec();
    expected[8] = expected[..=8].iter().sum();
    expected[47] = expected[37..].iter().sum();
    expected[..8].fill(0);
    expected[37..47].fill(0);
    ensure_eq!(together, expected, "the histogram of the VM");
    drop((vm, vcpus));
    exporter.end()?;
    kvmate.unload()
}

/// Names are the processes', whatever bytes they have.
fn processes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let exporter = Exporter::start(&[])?;
    let (vm, vcpus) = at_rest(1, &STEPS)?;
    let (name, pid) = (storm::name_of(&vm), std::process::id());
    let old = fs::read("/proc/self/comm")?;
    for (comm, told) in [
        (&b"a \"b\\\nc{}=,"[..], "a \\\"b\\\\\\nc{}=,"),
        (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        ("ä€".as_bytes(), "ä€"),
        (b"\0", ""),
    ] {
        fs::write("/proc/self/comm", comm)?;
        let metrics = exporter.metrics()?;
        let sample = format!("kvmate_vm_info{{vm=\"{name}\",pid=\"{pid}\",process=\"{told}\"}}");
        ensure_eq!(metrics.whole(&sample)?, 1, "{sample}");
    }
    fs::write("/proc/self/comm", old)?;
    drop((vm, vcpus));
    exporter.end()?;
    kvmate.unload()
}

fn memory_files() -> Result<()> {
    const LARGE: usize = 2 << 20;
    let kvmate = Kvmate::load("")?;
    let exporter = Exporter::start(&["--max-gmem-files", "1"])?;
    ensure_eq!(exporter.metrics()?.whole("kvmate_gmem_files")?, 0, "files");
    let file = gmem::create(4 * LARGE, 0)?;
    let map = gmem::Map::new(&file, 4 * LARGE)?;
    (0..3).for_each(|at| map.write(at * LARGE, 1));
    gmem::punch(&file, LARGE, LARGE + 4096)?;
    let metrics = exporter.metrics()?;
    let info = gmem::info(&file)?;
    let of = format!("file=\"{}\"", file.metadata()?.ino());
    ensure!(
        info["punch_freed"] > 0 && info["faults_order9"] == 3,
        "{info:?}"
    );
    for (name, number) in info {
        let reshaped = |of_what: &str, result: &str| {
            format!("kvmate_gmem_{of_what}s_total{{{of},result=\"{result}\"}}")
        };
        let sample = match name.rsplit_once("_order") {
            Some(("folios", order)) => format!("kvmate_gmem_folios{{{of},order=\"{order}\"}}"),
            Some(("faults", order)) => {
                format!("kvmate_gmem_faults_total{{{of},order=\"{order}\"}}")
            }
            _ => match name.as_str() {
                "size" | "allocated" => format!("kvmate_gmem_{name}_bytes{{{of}}}"),
                "punch_kept_unsplit" => format!("kvmate_gmem_punch_kept_bytes_total{{{of}}}"),
                "fallbacks" => format!("kvmate_gmem_fallbacks_total{{{of}}}"),
                "punch_asked" | "punch_freed" | "punch_kept_referenced" => {
                    format!("kvmate_gmem_{name}_bytes_total{{{of}}}")
                }
                "failed" => format!("kvmate_gmem_failed_pages{{{of}}}"),
                "punch_refused" => format!("kvmate_gmem_punch_refused_total{{{of}}}"),
                "split_done" | "merge_done" => reshaped(&name[..5], "done"),
                _ => match name.split_once("_failed_") {
                    Some((of_what, why)) => reshaped(of_what, why),
                    None => continue,
                },
            },
        };
        ensure_eq!(metrics.whole(&sample)?, number, "{sample}");
    }
    // Who was first stays.
    let second = gmem::create(LARGE, 0)?;
    let metrics = exporter.metrics()?;
    ensure_eq!(metrics.whole("kvmate_gmem_files")?, 2, "files");
    ensure_eq!(metrics.left_out("gmem_files")?, 1, "files left out");
    ensure_eq!(
        metrics.whole(&format!("kvmate_gmem_size_bytes{{{of}}}"))?,
        4 * LARGE as u64,
        "the first"
    );
    drop((map, file, second));
    exporter.end()?;
    kvmate.unload()
}

/// More VMs, vCPUs and reasons than it may tell of; what it told of it goes on telling of.
fn bounds() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let exporter = Exporter::start(&["--max-vms", "2", "--max-vcpus", "1", "--max-reasons", "1"])?;
    let (first, vcpus) = at_rest(3, &STEPS)?;
    let name = storm::name_of(&first);
    let metrics = exporter.metrics()?;
    let prefix = format!("kvmate_vcpu_exits_total{{vm=\"{name}\",vcpu=\"0\",");
    ensure_eq!(metrics.count(&prefix), 1, "series of the first vCPU");
    ensure_eq!(metrics.count("kvmate_vcpu_exits_total{"), 1, "series");
    let histograms = "kvmate_vm_exit_duration_seconds_count{";
    ensure_eq!(metrics.count(histograms), 1, "histograms");
    ensure_eq!(metrics.left_out("vcpus")?, 2, "vCPUs left out");
    let reasons = seen::exits_of(&name)?;
    ensure_eq!(
        metrics.left_out("reasons")?,
        reasons.0.len() as u64 - 1,
        "reasons left out"
    );
    // All are in the sum.
    let sum = format!("kvmate_vm_exits_total{{vm=\"{name}\"}}");
    ensure_eq!(metrics.whole(&sum)?, reasons.sum(), "exits");
    let told = metrics.starting_with(&prefix).context("no series")?;
    let more = (0..5)
        .map(|_| at_rest(1, &STEPS))
        .collect::<Result<Vec<_>>>()?;
    for _ in 0..2 {
        let metrics = exporter.metrics()?;
        ensure_eq!(metrics.whole("kvmate_vms")?, 6, "VMs");
        ensure_eq!(metrics.left_out("vms")?, 4, "VMs left out");
        ensure_eq!(metrics.count("kvmate_vm_exits_total{"), 2, "VMs told of");
        ensure_eq!(metrics.whole(&sum)?, reasons.sum(), "exits of the first VM");
        ensure_eq!(
            metrics.starting_with(&prefix),
            Some(told.clone()),
            "its series"
        );
    }
    // Its place is taken by one of the others.
    drop((first, vcpus));
    storm::until("the first VM is gone", || {
        Ok(seen::names_of_vms()?.len() == 5)
    })?;
    let metrics = exporter.metrics()?;
    ensure_eq!(metrics.left_out("vms")?, 3, "VMs left out");
    ensure_eq!(metrics.count("kvmate_vm_exits_total{"), 2, "VMs told of");
    ensure!(metrics.whole(&sum).is_err(), "{sum} is still there");
    drop(more);
    exporter.end()?;
    kvmate.unload()
}

/// Counters go up, and begin at 0 when the tables do; of a VM that ended nothing is left but the total.
fn resets_and_ends() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let exporter = Exporter::start(&[])?;
    let mut guest = steps::Guest::new(&STEPS)?;
    let sum = format!("kvmate_vm_exits_total{{vm=\"{}\"}}", guest.name);
    let mut last = 0;
    for _ in 0..3 {
        guest.run()?;
        let now = exporter.metrics()?.whole(&sum)?;
        ensure!(now > last + 70, "{now} after {last}");
        last = now;
    }
    kvmate.write(&format!("vms/{}/reset", guest.name), "1")?;
    let metrics = exporter.metrics()?;
    ensure_eq!(metrics.whole(&sum)?, 0, "after the reset");
    ensure_eq!(metrics.count("kvmate_vcpu_exits_total{"), 0, "series");
    let total = metrics.whole("kvmate_exits_total")?;
    ensure_eq!(total, last, "exits since load");
    drop(guest);
    let lived = live(Program::Cpuid, 50, 1)?;
    storm::until("the VM is gone", || Ok(seen::names_of_vms()?.is_empty()))?;
    let metrics = exporter.metrics()?;
    ensure_eq!(metrics.count("kvmate_vm_"), 0, "series of VMs");
    ensure_eq!(metrics.whole("kvmate_vms")?, 0, "VMs");
    ensure_eq!(
        metrics.whole("kvmate_exits_total")?,
        total + lived.exits,
        "exits since load"
    );
    exporter.end()?;
    kvmate.unload()
}
