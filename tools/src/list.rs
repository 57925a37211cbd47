// SPDX-License-Identifier: GPL-2.0
//! `kvmate list`: which VMs there are.

use crate::{
    columns::Rows,
    json,
    records::{self, Exit},
    say::say,
    table::Table,
    tree::{self, Vm},
    units,
    watch::{self, Output, Reading, When},
};
use anyhow::{Context, Result};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::Write,
    rc::Rc,
    sync::mpsc::{self, Receiver, TryRecvError},
    thread,
    time::{Duration, Instant},
};

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
MEMORY is what the VM's memslots have together, in address space 0 and without KVM's own; `-`: its VMM
hangs with its memory locked. EXITS are all that were recorded.
Examples:
  kvmate list                    exits per second, counted over one second
  kvmate list --interval 0       at once, without them
  kvmate list --watch 5          again every five seconds
  kvmate list --json | jq -r '.vms[].vm'
tools/json.md documents --json.")]
pub struct Arguments {
    /// Count exits for so many seconds; 0: do not
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval, conflicts_with = "watch")]
    interval: Duration,
    #[command(flatten)]
    output: Output,
}

/// As `--watch` takes it, or 0.
fn interval(text: &str) -> Result<Duration, String> {
    match text {
        "0" => Ok(Duration::ZERO),
        _ => watch::seconds(text),
    }
}

/// Which VMs there are.
#[derive(Serialize, JsonSchema)]
pub struct Document {
    /// 1; grows when a field changes its meaning or goes.
    version: u32,
    /// Over how many nanoseconds `exits_per_second` was counted; null: it was not.
    interval_ns: Option<u64>,
    /// The VMs, by the threads that made them.
    vms: Vec<Line>,
}

/// A VM.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct Line {
    /// The VM's name in `/sys/kernel/debug/kvmate/vms`.
    vm: String,
    /// The process that made it, if that is still there.
    pid: Option<u32>,
    /// That process's name.
    process: Option<String>,
    /// How many vCPUs it has.
    vcpus: u64,
    /// The bytes of its memslots in address space 0, without KVM's own; null: the VMM hangs with its memory
    /// locked.
    memory: Option<u64>,
    /// How many exits were recorded, not only in the interval.
    exits: u64,
    /// How many of them were in each second of the interval; null of a VM that was not there at its begin.
    exits_per_second: Option<f64>,
}

/// What was read.
struct Vms {
    vms: Vec<(Vm, u64)>,
    /// Of all readings: what did not answer before is known there.
    sizes: Rc<RefCell<Sizes>>,
}

impl Vms {
    fn read(sizes: &Rc<RefCell<Sizes>>) -> Result<Self> {
        let vms = tree::vms()?.into_iter().map(|vm| {
            let rows: Vec<Exit> = records::read(&vm, None)?;
            Ok((vm, rows.iter().map(|row| row.count).sum()))
        });
        Ok(Self {
            vms: vms.filter_map(tree::unless_gone).collect::<Result<_>>()?,
            sizes: Rc::clone(sizes),
        })
    }

    fn exits_of(&self, vm: &Vm) -> Option<u64> {
        let found = self.vms.iter().find(|(other, _)| other.name == vm.name);
        found.map(|(_, exits)| *exits)
    }
}

impl Reading for Vms {
    type Document = Document;

    fn document(&self, since: Option<(&Self, Duration)>) -> Result<Document> {
        let vms = self.vms.iter().map(|(vm, _)| vm);
        let mut sizes = self.sizes.borrow_mut();
        let sizes = sizes.read(vms, size_of, Sizes::PATIENCE)?;
        let lines = self.vms.iter().map(|(vm, exits)| {
            let before = since.and_then(|(before, length)| Some((before.exits_of(vm)?, length)));
            let rate = before.map(|(before, length)| per_second(*exits, before, length));
            let vcpus = vm.vcpus()?.len() as u64;
            Ok(Line {
                vm: vm.name.clone(),
                pid: vm.process.as_ref().map(|process| process.pid),
                process: vm.process.as_ref().map(|process| process.name.clone()),
                vcpus,
                memory: sizes.get(&vm.name).copied(),
                exits: *exits,
                exits_per_second: rate,
            })
        });
        Ok(Document {
            version: json::VERSION,
            interval_ns: since.map(|(_, length)| units::nanoseconds(length)),
            vms: lines.filter_map(tree::unless_gone).collect::<Result<_>>()?,
        })
    }

    fn tell(document: &Document, out: &mut Vec<u8>) -> Result<()> {
        let mut rows = Rows::default();
        for line in &document.vms {
            rows.add(&[], line)?;
        }
        if document.interval_ns.is_none() {
            rows.without("exits_per_second");
        }
        rows.write(out)?;
        if document.vms.is_empty() {
            writeln!(out, "no VM is there: start one, it is seen by itself")?;
        }
        Ok(())
    }
}

/// Exits that were recorded between two readings, in each second. Less than before: they began anew.
fn per_second(exits: u64, before: u64, length: Duration) -> f64 {
    let came = exits.checked_sub(before).unwrap_or(exits);
    came as f64 / length.as_secs_f64().max(1e-9)
}

/// How much memory VMs have. A thread each reads it: the read of one whose VMM holds its memory's lock waits for that,
/// and is left waiting.
#[derive(Default)]
struct Sizes {
    /// The answers that did not come, by the VM's name: until they do, it is asked nothing more.
    waiting: BTreeMap<String, Receiver<Result<u64>>>,
}

impl Sizes {
    const PATIENCE: Duration = Duration::from_secs(5);

    /// How much each has, but for those that do not tell.
    fn read<'a>(
        &mut self,
        vms: impl Iterator<Item = &'a Vm>,
        read: fn(&Vm) -> Result<u64>,
        patience: Duration,
    ) -> Result<BTreeMap<String, u64>> {
        // Without those of VMs that have gone.
        let mut before = std::mem::take(&mut self.waiting);
        let mut asked = Vec::new();
        for vm in vms {
            let late = before.remove(&vm.name);
            // What comes late is of then: it is asked anew.
            match late.filter(|late| matches!(late.try_recv(), Err(TryRecvError::Empty))) {
                Some(late) => drop(self.waiting.insert(vm.name.clone(), late)),
                None => {
                    let (tell, told) = mpsc::channel();
                    let asks = vm.clone();
                    // Who asked may not wait any more.
                    let read = move || drop(tell.send(read(&asks)));
                    thread::Builder::new().spawn(read).context("a thread")?;
                    asked.push((&vm.name, told));
                }
            }
        }
        let (began, mut sizes) = (Instant::now(), BTreeMap::new());
        for (name, told) in asked {
            match told.recv_timeout(patience.saturating_sub(began.elapsed())) {
                Ok(size) => {
                    if let Some(size) = tree::unless_gone(size) {
                        sizes.insert(name.clone(), size?);
                    }
                }
                Err(_) => drop(self.waiting.insert(name.clone(), told)),
            }
        }
        Ok(sizes)
    }
}

fn size_of(vm: &Vm) -> Result<u64> {
    size(&vm.read("memslots")?)
}

/// The bytes of a table `memslots`.
fn size(text: &str) -> Result<u64> {
    /// From this number on they are KVM's own.
    const OWN: u64 = 32764;
    let sum = || -> Result<u64> {
        let (table, mut sum) = (Table::new(text)?, 0);
        for row in table.rows() {
            let row = row?;
            if row.number("as")? == 0 && row.number("slot")? < OWN {
                sum += row.number("size")?;
            }
        }
        Ok(sum)
    };
    sum().context("memslots")
}

/// Do it.
pub fn run(asked: &Arguments) -> Result<()> {
    let when = match asked.output.when() {
        When::Now if asked.interval > Duration::ZERO => When::After(asked.interval),
        when => when,
    };
    if let Ok(Some(why)) = tree::is_off("observe") {
        say(format_args!("note: {why}"));
    }
    let sizes = Rc::default();
    watch::run(&asked.output, when, || Vms::read(&sizes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        Mutex,
    };

    #[test]
    fn memory_is_that_of_slots() {
        let text = "as slot gpa size\n0 0 0x0 0x80000000\n0 1 0x100000000 4096\n\
                    0 32764 0xfee00000 0x1000\n1 0 0x0 0x80000000\n";
        assert_eq!(size(text).unwrap(), (2 << 30) + 4096);
        let older = format!("{:#}", size("as slot gpa\n0 0 0x0\n").unwrap_err());
        assert!(
            older.starts_with("memslots: there is no column size"),
            "{older}"
        );
    }

    /// Who does not answer is waited for once, and asked nothing more until he does.
    #[test]
    fn who_hangs() {
        static ASKED: AtomicU64 = AtomicU64::new(0);
        static HANGS: Mutex<()> = Mutex::new(());
        let read = |vm: &Vm| {
            if vm.name == "1-1" {
                ASKED.fetch_add(1, Relaxed);
                drop(HANGS.lock());
            }
            Ok(4096)
        };
        let vms = ["1-1", "2-2"].map(|name| crate::tree::tests::vm(name, None));
        let mut sizes = Sizes::default();
        let hangs = HANGS.lock().unwrap();
        let mut told = |patience| {
            let found = sizes.read(vms.iter(), read, Duration::from_secs(patience));
            let found = found.unwrap().into_keys().collect::<Vec<_>>();
            (found, sizes.waiting.len())
        };
        assert_eq!(told(1), (vec!["2-2".into()], 1));
        // Without it being waited for, nor the other for want of time.
        let began = Instant::now();
        for _ in 0..3 {
            assert_eq!(told(600), (vec!["2-2".into()], 1));
        }
        assert!(began.elapsed() < Duration::from_secs(300));
        assert_eq!(ASKED.load(Relaxed), 1);
        drop(hangs);
        while told(600).1 > 0 {}
        assert_eq!(told(600).0, ["1-1", "2-2"]);
        // A VM that has gone is forgotten.
        let _hangs = HANGS.lock().unwrap();
        assert_ne!(told(0).1, 0);
        sizes.read([].into_iter(), read, Duration::ZERO).unwrap();
        assert!(sizes.waiting.is_empty());
    }

    #[test]
    fn rates() {
        let second = Duration::from_secs(1);
        assert_eq!(per_second(150, 100, second / 2), 100.0);
        assert_eq!(per_second(30, 100, second), 30.0);
        assert_eq!(per_second(0, 0, Duration::ZERO), 0.0);
    }

    #[test]
    fn intervals() {
        assert_eq!(interval("0"), Ok(Duration::ZERO));
        assert_eq!(interval("2.5"), Ok(Duration::from_millis(2500)));
        assert!(interval("-1").is_err() && interval("").is_err());
    }

    #[test]
    fn drawn() {
        let line = |vm: &str, rate| Line {
            vm: vm.into(),
            pid: Some(101),
            process: Some("qemu".into()),
            vcpus: 4,
            memory: Some(1 << 30),
            exits: 1_234_567,
            exits_per_second: rate,
        };
        let told = |interval_ns, vms| {
            let mut out = Vec::new();
            let document = Document {
                version: 1,
                interval_ns,
                vms,
            };
            Vms::tell(&document, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let rows = told(
            Some(1_000_000_000),
            vec![line("101-4", Some(12.34)), line("101-9", None)],
        );
        let expected = "\
vm     pid  process  vcpus  memory      exits  exits/s
101-4  101  qemu         4      1G  1,234,567     12.3
101-9  101  qemu         4      1G  1,234,567        -
";
        assert_eq!(rows, expected);
        let rows = told(None, vec![line("101-4", None)]);
        assert!(
            rows.starts_with("vm     pid  process  vcpus  memory      exits\n"),
            "{rows}"
        );
        assert!(told(None, vec![]).contains("no VM is there"));
    }
}
