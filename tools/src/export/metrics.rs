// SPDX-License-Identifier: GPL-2.0
//! A scrape as OpenMetrics text: what is of the module here, of VMs in [`vms`], of memory files in [`files`].
//! `tools/metrics.md` documents each family; a test holds the two together.

mod files;
mod vms;

use super::model::{LeftOut, Module};
use prometheus_client::{
    collector::Collector,
    encoding::{text, DescriptorEncoder, MetricEncoder},
    metrics::MetricType::{self, Counter, Gauge},
    registry::{Registry, Unit},
};
use std::{borrow::Cow, fmt};

/// What is told in one scrape.
#[derive(Debug, Default)]
pub struct Scrape {
    /// What the module tells; none if it is not loaded, or was unloaded meanwhile.
    pub module: Option<Module>,
    /// Reads that failed since the start, though what they read was there.
    pub failures: u64,
}

impl Scrape {
    /// As OpenMetrics text.
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("kvmate");
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }
}

impl Collector for Scrape {
    fn encode(&self, mut to: DescriptorEncoder) -> fmt::Result {
        let to = &mut to;
        let up = u64::from(self.module.is_some());
        let help = "Whether the module kvmate is loaded and its tables can be read";
        family(to, "up", help, None, Gauge, [(vec![], up.into())])?;
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        info(to, "build", "This exporter", &labels)?;
        let failures = [(vec![], self.failures.into())];
        let help = "Reads that failed though what they read was there, since the exporter began";
        family(to, "read_failures", help, None, Counter, failures)?;
        match &self.module {
            Some(module) => module.encode(to),
            None => Ok(()),
        }
    }
}

/// A value: whole, or not.
#[derive(Clone, Copy)]
enum Value {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Whole(number as u64)
    }
}

/// Nanoseconds, in seconds.
fn seconds(nanoseconds: u64) -> Value {
    Value::Real(in_seconds(nanoseconds))
}

fn in_seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

type Labels<'a> = Vec<(&'static str, Cow<'a, str>)>;
/// The labels of an exemplar, of which there is none.
type NoLabels = [(&'static str, &'static str); 0];

/// Write a family, if it has any sample.
fn family<'a>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    kind: MetricType,
    samples: impl IntoIterator<Item = (Labels<'a>, Value)>,
) -> fmt::Result {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_none() {
        return Ok(());
    }
    let mut metric = to.encode_descriptor(name, help, unit.as_ref(), kind)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            write(&mut metric, kind, value)?;
        } else {
            write(&mut metric.encode_family(&labels)?, kind, value)?;
        }
    }
    Ok(())
}

fn write(to: &mut MetricEncoder, kind: MetricType, value: Value) -> fmt::Result {
    match (kind, value) {
        (Counter, Value::Whole(number)) => to.encode_counter::<NoLabels, _, f64>(&number, None),
        (Counter, Value::Real(number)) => to.encode_counter::<NoLabels, _, f64>(&number, None),
        (_, Value::Whole(number)) => to.encode_gauge(&number),
        (_, Value::Real(number)) => to.encode_gauge(&number),
    }
}

fn info(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    labels: &[(&str, &str)],
) -> fmt::Result {
    let mut metric = to.encode_descriptor(name, help, None, MetricType::Info)?;
    metric.encode_info(&labels)
}

fn label<'a>(name: &'static str, value: &'a str) -> (&'static str, Cow<'a, str>) {
    (name, Cow::Borrowed(value))
}

fn owned(name: &'static str, value: impl ToString) -> (&'static str, Cow<'static, str>) {
    (name, Cow::Owned(value.to_string()))
}

impl Module {
    fn encode(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let labels = [("version", &*self.version), ("release", &*self.release)];
        info(
            to,
            "module",
            "The loaded module, and the kernel it was built for",
            &labels,
        )?;
        let exits = self.exits.map(|exits| (vec![], exits.into()));
        let help = "VM exits seen while observed, of all VMs, since the module was loaded";
        family(to, "exits", help, None, Counter, exits)?;
        self.left_out.encode(to)?;
        let vms = [(vec![], self.vm_count.into())];
        family(to, "vms", "VMs that there are", None, Gauge, vms)?;
        vms::encode(to, &self.vms)?;
        let files = [(vec![], self.file_count.into())];
        family(
            to,
            "gmem_files",
            "Memory files that there are",
            None,
            Gauge,
            files,
        )?;
        files::encode(to, &self.files)
    }
}

impl LeftOut {
    fn encode(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let all = [
            ("vms", self.vms),
            ("vcpus", self.vcpus),
            ("reasons", self.reasons),
            ("gmem_files", self.files),
            ("ended", self.ended),
        ];
        let samples = all.map(|(what, count)| (vec![label("what", what)], count.into()));
        let help = "What there is and this scrape does not tell of";
        family(to, "left_out", help, None, Gauge, samples)
    }
}

#[cfg(test)]
pub mod tests;
