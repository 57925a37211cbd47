// SPDX-License-Identifier: GPL-2.0
//! What is read for a scrape: the module's tables. Nothing asks the VMM, and nothing stays open between
//! scrapes: the module can go.

use super::{
    bounds::Bound,
    metrics::Scrape,
    model::{MemoryFile, Module, Vm},
};
use crate::{
    records::{self, Exit, Histogram, Record},
    say::say,
    tree,
};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// How many of what are told of.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// VMs.
    pub vms: usize,
    /// vCPUs of each.
    pub vcpus: usize,
    /// Reasons, of all together.
    pub reasons: usize,
    /// Memory files.
    pub files: usize,
}

/// What reads, and what it remembers from scrape to scrape.
#[derive(Debug)]
pub struct Collector {
    limits: Limits,
    vms: Bound,
    reasons: Bound,
    files: Bound,
    failures: Failures,
}

/// Reads that failed though what they read was there.
#[derive(Debug, Default)]
struct Failures {
    count: u64,
    said: String,
}

impl Failures {
    /// Count it, and say so if it is another than the last.
    fn add(&mut self, error: &anyhow::Error) {
        self.count += 1;
        let said = format!("{error:#}");
        if said != self.said {
            say(format_args!("error: {said}"));
            self.said = said;
        }
    }
}

impl Collector {
    /// With these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            vms: Bound::new(limits.vms),
            reasons: Bound::new(limits.reasons),
            files: Bound::new(limits.files),
            failures: Failures::default(),
        }
    }

    /// Read all.
    pub fn scrape(&mut self) -> Scrape {
        let module = self.module();
        Scrape {
            module,
            failures: self.failures.count,
        }
    }

    /// None if the module is not there, or goes meanwhile: what was read then is of VMs that seem to end.
    fn module(&mut self) -> Option<Module> {
        let read = |file: &str| tree::read(file).map(|text| text.trim_end().to_owned());
        let mut module = Module {
            version: read("version").ok()?,
            release: read("vermagic").ok()?.split(' ').next()?.to_owned(),
            exits: read("exits").ok()?.parse().ok(),
            ..Module::default()
        };
        let vms = tree::vms().ok()?;
        self.vms_of(&mut module, vms);
        self.files_of(&mut module);
        tree::read("version").ok()?;
        Some(module)
    }

    fn vms_of(&mut self, module: &mut Module, vms: Vec<tree::Vm>) {
        module.vm_count = vms.len();
        module.left_out.vms = self.vms.are_there(vms.iter().map(|vm| &*vm.name));
        for vm in vms.iter().filter(|vm| self.vms.tells(&vm.name)) {
            match self.limits.vm(vm) {
                Ok(Some(told)) => module.vms.push(told),
                Ok(None) => module.left_out.ended += 1,
                Err(error) => self.failures.add(&error),
            }
        }
        let mut times: BTreeMap<&str, u64> = BTreeMap::new();
        let lines = module.vms.iter().flat_map(|vm| &vm.reasons);
        lines.for_each(|line| *times.entry(&line.reason).or_default() += line.total_ns);
        let mut reasons: Vec<_> = times.into_iter().collect();
        reasons.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        module.left_out.reasons = self
            .reasons
            .are_there(reasons.into_iter().map(|(name, _)| name));
        for vm in &mut module.vms {
            let tells = |line: &Exit| self.reasons.tells(&line.reason);
            vm.reasons.retain(tells);
            vm.histograms
                .retain(|histogram| self.reasons.tells(&histogram.reason));
            vm.vcpus
                .iter_mut()
                .for_each(|(_, lines)| lines.retain(tells));
            module.left_out.vcpus += vm.vcpu_count - vm.vcpus.len();
        }
    }

    fn files_of(&mut self, module: &mut Module) {
        // An older module has no such folder.
        let files = tree::memory_files().unwrap_or_default();
        module.file_count = files.len();
        let names: Vec<_> = files.iter().map(u64::to_string).collect();
        module.left_out.files = self.files.are_there(names.iter().map(|name| &**name));
        for (inode, _) in files
            .iter()
            .zip(&names)
            .filter(|(_, name)| self.files.tells(name))
        {
            match tree::read_fleeting(&format!("gmem/{inode}/info")) {
                Ok(Some(info)) => match MemoryFile::new(*inode, &info) {
                    Ok(file) => module.files.push(file),
                    Err(error) => self
                        .failures
                        .add(&error.context(format!("gmem/{inode}/info"))),
                },
                Ok(None) => module.left_out.ended += 1,
                Err(error) => self.failures.add(&error),
            }
        }
    }
}

impl Limits {
    /// A VM's tables; none if it ends meanwhile.
    fn vm(&self, vm: &tree::Vm) -> Result<Option<Vm>> {
        let (Some(ids), Some(reasons), Some(histograms)) = (
            vm.vcpus_fleeting()?,
            table::<Exit>(vm, "")?,
            table::<Histogram>(vm, "")?,
        ) else {
            return Ok(None);
        };
        let mut vcpus = Vec::new();
        for &id in ids.iter().take(self.vcpus) {
            let Some(lines) = table(vm, &format!("vcpu{id}/"))? else {
                return Ok(None);
            };
            vcpus.push((id, lines));
        }
        Ok(Some(Vm {
            name: vm.name.clone(),
            process: vm.process.clone(),
            vcpu_count: ids.len(),
            exits: reasons.iter().map(|line| line.count).sum(),
            reasons,
            vcpus,
            histograms,
        }))
    }
}

/// A table in that folder of a VM's; none if it ends meanwhile.
fn table<R: Record>(vm: &tree::Vm, folder: &str) -> Result<Option<Vec<R>>> {
    let text = vm.read_fleeting(&format!("{folder}{}", R::FILE))?;
    let rows = text.map(|text| records::parse(&text)).transpose();
    rows.with_context(|| format!("VM {}", vm.name))
}
