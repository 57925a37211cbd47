// SPDX-License-Identifier: GPL-2.0
//! The families of VMs and their vCPUs.

use super::{
    super::model::{buckets, Vm},
    family, in_seconds, label, owned, seconds, NoLabels, Value,
};
use crate::records::Exit;
use prometheus_client::{
    encoding::DescriptorEncoder,
    metrics::MetricType::{self, Counter, Gauge},
    registry::Unit,
};
use std::fmt;

/// Write all of them.
pub fn encode(to: &mut DescriptorEncoder, vms: &[Vm]) -> fmt::Result {
    whose(to, vms)?;
    numbers(to, vms)?;
    reasons(to, vms)?;
    vcpus(to, vms)?;
    histograms(to, vms)
}

fn whose(to: &mut DescriptorEncoder, vms: &[Vm]) -> fmt::Result {
    if vms.is_empty() {
        return Ok(());
    }
    let help = "Whose VM it is; without pid and process if the maker has ended";
    let mut metric = to.encode_descriptor("vm", help, None, MetricType::Info)?;
    for vm in vms {
        let mut labels = vec![label("vm", &vm.name)];
        if let Some(process) = &vm.process {
            labels.push(owned("pid", process.pid));
            labels.push(label("process", &process.name));
        }
        metric.encode_info(&labels)?;
    }
    Ok(())
}

fn numbers(to: &mut DescriptorEncoder, vms: &[Vm]) -> fmt::Result {
    let of = |vm: &'_ Vm, value: Value| (vec![owned("vm", &vm.name)], value);
    let samples = vms.iter().map(|vm| of(vm, vm.vcpu_count.into()));
    family(to, "vm_vcpus", "vCPUs that a VM has", None, Gauge, samples)?;
    let samples = vms.iter().map(|vm| of(vm, vm.exits.into()));
    let help = "A VM's exits: of all its vCPUs, for all reasons";
    family(to, "vm_exits", help, None, Counter, samples)
}

fn reasons(to: &mut DescriptorEncoder, vms: &[Vm]) -> fmt::Result {
    // Not as a summary, which the library does not write.
    let reasons = || {
        vms.iter()
            .flat_map(|vm| vm.reasons.iter().map(move |line| (vm, line)))
    };
    let labels =
        |vm: &'_ Vm, line: &'_ Exit| vec![owned("vm", &vm.name), owned("reason", &line.reason)];
    let samples = reasons().flat_map(|(vm, line)| {
        let times = [line.p50_ns, line.p99_ns, line.p999_ns];
        let named = ["50", "99", "99.9"].into_iter().zip(times);
        named.filter_map(move |(percentile, time)| {
            let mut labels = labels(vm, line);
            labels.push(label("percentile", percentile));
            Some((labels, seconds(time?)))
        })
    });
    let help = "From exit to entry, since the VM's tables began: so many of 100 took no longer, within a sixteenth";
    family(
        to,
        "vm_exit_percentile",
        help,
        Some(Unit::Seconds),
        Gauge,
        samples,
    )?;
    let samples =
        reasons().filter_map(|(vm, line)| Some((labels(vm, line), seconds(line.max_ns?))));
    let help = "The longest time from exit to entry since the VM's tables began";
    family(
        to,
        "vm_exit_longest",
        help,
        Some(Unit::Seconds),
        Gauge,
        samples,
    )
}

fn vcpus(to: &mut DescriptorEncoder, vms: &[Vm]) -> fmt::Result {
    let lines = || {
        vms.iter().flat_map(|vm| {
            let vcpus = vm.vcpus.iter();
            vcpus.flat_map(move |(id, lines)| lines.iter().map(move |line| (vm, *id, line)))
        })
    };
    let labels = |vm: &'_ Vm, id: u32, line: &'_ Exit| {
        vec![
            owned("vm", &vm.name),
            owned("vcpu", id),
            owned("reason", &line.reason),
        ]
    };
    let samples = lines().map(|(vm, id, line)| (labels(vm, id, line), line.count.into()));
    let help = "A vCPU's exits by reason";
    family(to, "vcpu_exits", help, None, Counter, samples)?;
    let samples = lines().map(|(vm, id, line)| (labels(vm, id, line), seconds(line.total_ns)));
    let help = "From a vCPU's exits to its entries, user space and waiting included, by reason";
    family(to, "vcpu_exit", help, Some(Unit::Seconds), Counter, samples)
}

fn histograms(to: &mut DescriptorEncoder, vms: &[Vm]) -> fmt::Result {
    let all = vms
        .iter()
        .flat_map(|vm| vm.histograms.iter().map(move |one| (vm, one)));
    let mut all = all.peekable();
    if all.peek().is_none() {
        return Ok(());
    }
    let help =
        "From a VM's exits to its entries, by reason, of exits that were followed by an entry";
    let unit = Unit::Seconds;
    let kind = MetricType::Histogram;
    let mut metric = to.encode_descriptor("vm_exit_duration", help, Some(&unit), kind)?;
    for (vm, histogram) in all {
        let buckets: Vec<_> = buckets(histogram)
            .into_iter()
            .map(|(bound, count)| (bound.map_or(f64::INFINITY, in_seconds), count))
            .collect();
        let labels = [label("vm", &vm.name), label("reason", &histogram.reason)];
        metric
            .encode_family(&labels)?
            .encode_histogram::<NoLabels>(
                in_seconds(histogram.total_ns),
                histogram.timed,
                &buckets,
                None,
            )?;
    }
    Ok(())
}
