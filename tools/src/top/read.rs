// SPDX-License-Identifier: GPL-2.0
//! What is read of the VMs each time. No state: [`super::model`] keeps it.

use crate::{
    records::{self, Histogram},
    table::Table,
    tree::{self, Process, Vm},
};
use anyhow::{Context, Result};
use std::time::Duration;

/// A line of a table `exits`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub reason: String,
    pub count: u64,
    pub total_ns: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
}

/// A table `exits`, and when it was read.
#[derive(Clone, Debug, Default)]
pub struct Exits {
    pub at: Duration,
    pub lines: Vec<Exit>,
}

/// A line of the table `vcpus`; the texts are as it has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vcpu {
    pub number: u64,
    pub task: String,
    pub state: String,
    pub last_exit: String,
}

/// What a VM's files say.
#[derive(Clone, Debug)]
pub struct Told {
    pub exits: Exits,
    pub vcpus: Vec<Vcpu>,
    /// Of one of them, if that was asked for.
    pub one: Option<(u64, Exits)>,
    /// How long exits took, if that was asked for: of which vCPU (none: of all together).
    pub histograms: Option<(Option<u64>, Vec<Histogram>)>,
}

/// A VM that is there.
#[derive(Clone, Debug)]
pub struct Seen {
    pub name: String,
    pub process: Option<Process>,
    /// Or why its files could not be read.
    pub told: Result<Told, String>,
}

/// All VMs, or why there is nothing to be read.
pub type Reading = Result<Vec<Seen>, String>;

/// The VM of which histograms are wanted too, and if of one of its vCPUs only, that and its exits.
pub type Wanted<'a> = Option<(&'a str, Option<u64>)>;

/// Read everything. `clock` tells the time since any beginning.
pub fn all(wanted: Wanted, clock: impl Fn() -> Duration) -> Reading {
    let vms = tree::vms().map_err(|error| format!("{error:#}"))?;
    let seen = |vm: Vm| {
        // Not one that has ended since it was listed.
        let told = tree::unless_gone(told(&vm, wanted, &clock))?;
        Some(Seen {
            told: told.map_err(|error| format!("{error:#}")),
            name: vm.name,
            process: vm.process,
        })
    };
    Ok(vms.into_iter().filter_map(seen).collect())
}

fn told(vm: &Vm, wanted: Wanted, clock: impl Fn() -> Duration) -> Result<Told> {
    let exits = |file: &str| -> Result<Exits> {
        let text = vm.read(file)?;
        let at = clock();
        let lines = parse_exits(&text).with_context(|| told_by(vm, file))?;
        Ok(Exits { at, lines })
    };
    let vcpus = parse_vcpus(&vm.read("vcpus")?).with_context(|| told_by(vm, "vcpus"))?;
    let (mut one, mut histograms) = (None, None);
    let there = |number| vcpus.iter().any(|vcpu| vcpu.number == number);
    match wanted.filter(|(name, _)| *name == vm.name) {
        Some((_, None)) => histograms = Some((None, records::parse(&vm.read("exits_hist")?)?)),
        Some((_, Some(number))) if there(number) => {
            one = Some((number, exits(&format!("vcpu{number}/exits"))?));
            let text = vm.read(&format!("vcpu{number}/exits_hist"))?;
            histograms = Some((Some(number), records::parse(&text)?));
        }
        _ => {}
    }
    Ok(Told {
        exits: exits("exits")?,
        vcpus,
        one,
        histograms,
    })
}

fn told_by(vm: &Vm, file: &str) -> String {
    format!("{file} of VM {}", vm.name)
}

fn parse_exits(text: &str) -> Result<Vec<Exit>> {
    let table = Table::new(text)?;
    let lines = table.rows().map(|row| {
        let row = row?;
        Ok(Exit {
            reason: row.get("reason")?.to_owned(),
            count: row.number("count")?,
            total_ns: row.number("total_ns")?,
            p50_ns: row.number("p50_ns")?,
            p99_ns: row.number("p99_ns")?,
            p999_ns: row.number("p999_ns")?,
            max_ns: row.number("max_ns")?,
        })
    });
    lines.collect()
}

fn parse_vcpus(text: &str) -> Result<Vec<Vcpu>> {
    let table = Table::new(text)?;
    let lines = table.rows().map(|row| {
        let row = row?;
        Ok(Vcpu {
            number: row.number("vcpu")?,
            task: row.get("task")?.to_owned(),
            state: row.get("state")?.to_owned(),
            last_exit: row.get("last_exit")?.to_owned(),
        })
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() -> Result<()> {
        let exits = parse_exits(
            "reason count total_ns avg_ns p50_ns p99_ns p999_ns max_ns\n\
             io 1000 21792957 21792 19721 48909 183017 875873\nhlt 1 0 0 0 0 0 0\n",
        )?;
        assert_eq!(exits.len(), 2);
        assert_eq!(
            exits[0],
            Exit {
                reason: "io".into(),
                count: 1000,
                total_ns: 21_792_957,
                p50_ns: 19_721,
                p99_ns: 48_909,
                p999_ns: 183_017,
                max_ns: 875_873,
            }
        );
        let vcpus = parse_vcpus(
            "vcpu task state last_exit ago_ns rip requests vm\n\
             0 105:small_guest kernel io 322600 0x1000 KVM_REQ_STEAL_UPDATE -\n3 - - - - - - -\n",
        )?;
        assert_eq!(vcpus.len(), 2);
        assert_eq!((vcpus[0].number, &*vcpus[0].last_exit), (0, "io"));
        assert_eq!((vcpus[1].number, &*vcpus[1].state), (3, "-"));
        Ok(())
    }

    #[test]
    fn what_is_no_table_is_an_error() {
        for text in [
            "",
            "reason count\nio 1\n",
            "reason count total_ns p50_ns p99_ns p999_ns max_ns\nio x 0 0 0 0 0\n",
            "reason count total_ns p50_ns p99_ns p999_ns max_ns\nio 1 0 0\n",
        ] {
            assert!(parse_exits(text).is_err(), "{text:?}");
        }
        assert!(parse_vcpus("vcpu task\n0 -\n").is_err());
    }
}
