// SPDX-License-Identifier: GPL-2.0
//! The module's file `snapshot` as values: parts with a name, a table each. The fields are those of `--json`,
//! of which `tools/json.md` tells.

use crate::{
    records::{self, Exit, Fault, Histogram, Irq, Msr, Record, Time, Vcpu},
    table::{Row, Table},
};
use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::Serialize;

/// All that is known of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Snapshot {
    /// Over how many nanoseconds `exits`, `exits_hist`, `times`, `msrs`, `faults` and `irqs` came; null: all of them.
    pub interval_ns: Option<u64>,
    /// How it was taken.
    pub snapshot: Taken,
    /// What each vCPU is doing.
    pub vcpus: Vec<Vcpu>,
    /// What waits to get into each.
    pub pending: Vec<Pending>,
    /// Where each one's task is blocked.
    pub tasks: Vec<Task>,
    /// Why it exited.
    pub exits: Vec<Exit>,
    /// How long exits took.
    pub exits_hist: Vec<Histogram>,
    /// Where the time of exits went.
    pub times: Vec<Time>,
    /// MSRs that it accessed.
    pub msrs: Vec<Msr>,
    /// Its page faults.
    pub faults: Vec<Fault>,
    /// Its interrupts.
    pub irqs: Vec<Irq>,
    /// KVM's irqfds.
    pub irqfds: Vec<Irqfd>,
    /// kvmate's bindings.
    pub bindings: Vec<Binding>,
    /// How long the interrupts of bindings took.
    pub latency: Vec<Latency>,
}

/// How it was taken.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Taken {
    /// The module's version.
    pub kvmate: String,
    /// When, by `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
    /// How long it took.
    pub took_ns: u64,
    /// How often it was taken up.
    pub tries: u64,
    /// How many vCPUs moved the last time.
    pub moved: u64,
}

/// What waits to get into a vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Pending {
    /// Its number.
    pub vcpu: u64,
    /// As `KVM_GET_MP_STATE` has it.
    pub mp_state: String,
    /// The vector of what KVM is putting in.
    pub interrupt: Option<u64>,
    /// The vector of an exception that KVM is putting in.
    pub exception: Option<u64>,
    /// How many NMIs wait.
    pub nmis: u64,
    /// 1: an SMI waits.
    pub smi: u64,
    /// 1: another vCPU has woken it.
    pub unhalted: u64,
}

/// Where a vCPU's task is blocked.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Task {
    /// The vCPU's number.
    pub vcpu: u64,
    /// The thread that ran it last.
    pub tid: Option<u64>,
    /// That thread's name.
    pub task: Option<String>,
    /// As in `/proc/<pid>/stat`.
    pub state: Option<String>,
    /// The functions of the kernel that it is in, the innermost first; null: it runs.
    pub stack: Option<Vec<String>>,
}

/// An irqfd of KVM's.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Irqfd {
    /// Its GSI.
    pub gsi: u64,
    /// Where that goes.
    pub route: Vec<String>,
    /// 1: it has a second eventfd.
    pub resample: u64,
    /// The eventfd in the task that made the VM.
    pub fd: Option<u64>,
}

/// A binding of kvmate's.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Binding {
    /// `gsi:N`, `level:N` or `msi:ADDRESS:DATA`.
    pub target: String,
    /// How often its eventfd was signalled.
    pub signalled: u64,
    /// How many of these were delivered.
    pub delivered: u64,
    /// How many coalesced; null: of an MSI.
    pub coalesced: Option<u64>,
    /// How many failed.
    pub failed: u64,
    /// How often the second eventfd was signalled.
    pub resampled: Option<u64>,
    /// Why the last one failed.
    pub why: Option<String>,
    /// `closed`: once its last descriptor is.
    pub eventfd: Option<String>,
}

/// A stage of a binding's interrupts: until they were injected, or ended. Null: nothing was told.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Latency {
    /// The binding's.
    pub target: String,
    /// `injected`, `ended`.
    pub stage: String,
    /// How many were timed.
    pub count: Option<u64>,
    /// All together.
    pub total_ns: Option<u64>,
    /// On average.
    pub avg_ns: Option<u64>,
    /// The median.
    pub p50_ns: Option<u64>,
    /// Of 100 interrupts 99 took no longer.
    pub p99_ns: Option<u64>,
    /// Of 1000 interrupts 999 took no longer.
    pub p999_ns: Option<u64>,
    /// The longest.
    pub max_ns: Option<u64>,
}

fn taken(row: &Row<'_>) -> Result<Taken> {
    Ok(Taken {
        kvmate: row.get("kvmate")?.to_owned(),
        monotonic_ns: row.number("monotonic_ns")?,
        took_ns: row.number("took_ns")?,
        tries: row.number("tries")?,
        moved: row.number("moved")?,
    })
}

fn pending(row: &Row<'_>) -> Result<Pending> {
    Ok(Pending {
        vcpu: row.number("vcpu")?,
        mp_state: row.get("mp_state")?.to_owned(),
        interrupt: row.some_number("interrupt")?,
        exception: row.some_number("exception")?,
        nmis: row.number("nmis")?,
        smi: row.number("smi")?,
        unhalted: row.number("unhalted")?,
    })
}

fn task(row: &Row<'_>) -> Result<Task> {
    let (tid, task) = records::task(row)?;
    Ok(Task {
        vcpu: row.number("vcpu")?,
        tid,
        task,
        state: row.some("state")?.map(str::to_owned),
        // Its functions are in a part of their own.
        stack: row.some("frames")?.map(|_| Vec::new()),
    })
}

fn irqfd(row: &Row<'_>) -> Result<Irqfd> {
    Ok(Irqfd {
        gsi: row.number("gsi")?,
        route: row.names("route")?,
        resample: row.number("resample")?,
        fd: row.some_number("fd")?,
    })
}

fn binding(row: &Row<'_>) -> Result<Binding> {
    Ok(Binding {
        target: row.get("target")?.to_owned(),
        signalled: row.number("signalled")?,
        delivered: row.number("delivered")?,
        coalesced: row.some_number("coalesced")?,
        failed: row.number("failed")?,
        resampled: row.some_number("resampled")?,
        why: row.some("why")?.map(str::to_owned),
        eventfd: row.some("eventfd")?.map(str::to_owned),
    })
}

fn latency(row: &Row<'_>) -> Result<Latency> {
    Ok(Latency {
        target: row.get("target")?.to_owned(),
        stage: row.get("stage")?.to_owned(),
        count: row.some_number("count")?,
        total_ns: row.some_number("total_ns")?,
        avg_ns: row.some_number("avg_ns")?,
        p50_ns: row.some_number("p50_ns")?,
        p99_ns: row.some_number("p99_ns")?,
        p999_ns: row.some_number("p999_ns")?,
        max_ns: row.some_number("max_ns")?,
    })
}

/// The text of a part: what is between its name and an empty line.
fn part<'a>(text: &'a str, name: &str) -> Result<&'a str> {
    let head = format!("[{name}]\n");
    let parts = text.split("\n\n");
    let found = parts
        .filter_map(|part| part.strip_prefix(head.as_str()))
        .next();
    found.with_context(|| {
        format!("there is no part [{name}]: the loaded module is of another version; install the one that came with this tool")
    })
}

fn rows<T>(text: &str, name: &str, new: impl Fn(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
    let rows = || -> Result<_> {
        let table = Table::new(part(text, name)?)?;
        let rows = table.rows().map(|row| new(&row?));
        rows.collect()
    };
    rows().with_context(|| format!("snapshot, [{name}]"))
}

fn record<R: Record>(text: &str) -> Result<Vec<R>> {
    rows(text, R::FILE, R::new)
}

impl Snapshot {
    /// From the file's text.
    pub fn new(text: &str) -> Result<Self> {
        let mut tasks = rows(text, "tasks", task)?;
        for (vcpu, function) in rows(text, "stacks", |row| {
            Ok((row.number("vcpu")?, row.get("function")?.to_owned()))
        })? {
            let own = tasks.iter_mut().find(|task: &&mut Task| task.vcpu == vcpu);
            let stack = own.and_then(|task| task.stack.as_mut());
            let stack = stack.with_context(|| format!("snapshot: a stack of vCPU {vcpu}"))?;
            stack.push(function);
        }
        let taken = rows(text, "snapshot", taken)?.into_iter().next();
        Ok(Self {
            interval_ns: None,
            snapshot: taken.context("snapshot: nothing is in [snapshot]")?,
            vcpus: record(text)?,
            pending: rows(text, "pending", pending)?,
            tasks,
            exits: record(text)?,
            exits_hist: record(text)?,
            times: record(text)?,
            msrs: record(text)?,
            faults: record(text)?,
            irqs: record(text)?,
            irqfds: rows(text, "irqfds", irqfd)?,
            bindings: rows(text, "bindings", binding)?,
            latency: rows(text, "latency", latency)?,
        })
    }

    /// What came of what counts, and the rest as it is.
    pub fn since(&self, before: &Self, interval_ns: u64) -> Self {
        Self {
            interval_ns: Some(interval_ns),
            exits: Record::since(&self.exits, &before.exits),
            exits_hist: Record::since(&self.exits_hist, &before.exits_hist),
            times: Record::since(&self.times, &before.times),
            msrs: Record::since(&self.msrs, &before.msrs),
            faults: Record::since(&self.faults, &before.faults),
            irqs: Record::since(&self.irqs, &before.irqs),
            ..self.clone()
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const TEXT: &str = "\
[snapshot]
vm kvmate monotonic_ns took_ns tries moved
101-4 0.1.0 123456789 4321 1 0

[vcpus]
vcpu task state last_exit ago_ns rip requests vm
0 105:kvm_vcpu halted hlt 322600 0x1000 - -
1 - user - - - - -

[pending]
vcpu mp_state interrupt exception nmis smi unhalted
0 halted 0x40 - 1 0 0
1 runnable - - 0 0 0

[tasks]
vcpu task state frames
0 105:kvm_vcpu S 2
1 - - -

[stacks]
vcpu frame function
0 0 kvm_vcpu_block+0x6e/0x100[kvm]
0 1 kvm_vcpu_halt+0x1/0x2[kvm]

[exits]
reason count total_ns avg_ns p50_ns p99_ns p999_ns max_ns
io 4 100 25 24 40 41 42

[exits_hist]
reason timed total_ns histogram
io 4 100 16:3,32:1

[times]
reason count total_ns user_ns halted_ns preempted_ns kernel_ns

[msrs]
# accesses that made the guest exit
msr name reads writes faults last_written
0x8b MSR_IA32_UCODE_REV 3 0 0 -

[faults]
kind which count error

[irqs]
vector injected accepted eoi

[irqfds]
gsi route resample fd
24 msi:0xfee00000:0x4041 0 17
5 ioapic:5,pic:5 1 -

[bindings]
target signalled delivered coalesced failed resampled why eventfd
msi:0xfee00000:0x4041 3 2 - 1 0 no_route closed

[latency]
target stage count total_ns avg_ns p50_ns p99_ns p999_ns max_ns
msi:0xfee00000:0x4041 injected 2 30 15 10 20 20 20
msi:0xfee00000:0x4041 ended - - - - - - -
";

    #[test]
    fn all_parts() -> Result<()> {
        let snapshot = Snapshot::new(TEXT)?;
        assert_eq!(
            (snapshot.snapshot.took_ns, snapshot.snapshot.moved),
            (4321, 0)
        );
        assert_eq!(snapshot.vcpus.len(), 2);
        assert_eq!(
            (snapshot.pending[0].interrupt, snapshot.pending[0].nmis),
            (Some(0x40), 1)
        );
        let [first, second] = &snapshot.tasks[..] else {
            panic!("{:?}", snapshot.tasks)
        };
        let stack = [
            "kvm_vcpu_block+0x6e/0x100[kvm]",
            "kvm_vcpu_halt+0x1/0x2[kvm]",
        ];
        assert_eq!(first.stack.as_deref(), Some(&stack.map(str::to_owned)[..]));
        assert_eq!((first.tid, first.state.as_deref()), (Some(105), Some("S")));
        assert_eq!((second.tid, &second.stack), (None, &None));
        assert_eq!((snapshot.exits[0].count, snapshot.msrs[0].reads), (4, 3));
        assert_eq!(snapshot.irqfds[1].route, ["ioapic:5", "pic:5"]);
        assert_eq!(
            (snapshot.irqfds[0].fd, snapshot.irqfds[1].fd),
            (Some(17), None)
        );
        assert_eq!(snapshot.bindings[0].coalesced, None);
        assert_eq!(
            (snapshot.latency[0].count, snapshot.latency[1].count),
            (Some(2), None)
        );
        Ok(())
    }

    #[test]
    fn what_came() -> Result<()> {
        let before = Snapshot::new(TEXT)?;
        let now = TEXT.replace("\nio 4 100", "\nio 9 350");
        let now = Snapshot::new(&now.replace("32:1", "32:6"))?;
        let came = now.since(&before, 77);
        assert_eq!((came.exits[0].count, came.exits[0].total_ns), (5, 250));
        let bucket = came.exits_hist[0].histogram[0];
        assert_eq!((bucket.from_ns, bucket.count), (32, 5));
        assert_eq!((came.msrs.len(), came.interval_ns), (0, Some(77)));
        assert_eq!(came.bindings, before.bindings);
        Ok(())
    }

    #[test]
    fn other_versions_are_told() {
        let said = |text: &str| format!("{:#}", Snapshot::new(text).unwrap_err());
        let without = said(&TEXT.replace("[irqs]", "[other]"));
        assert!(
            without.starts_with("snapshot, [irqs]: there is no part [irqs]"),
            "{without}"
        );
        let older = said(&TEXT.replace("mp_state", "state"));
        assert!(
            older.starts_with("snapshot, [pending]: there is no column mp_state"),
            "{older}"
        );
        assert!(said("").contains("no part"));
    }
}
