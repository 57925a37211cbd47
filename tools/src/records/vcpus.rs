// SPDX-License-Identifier: GPL-2.0
//! `vcpus`: what each vCPU is doing now. Nothing of it counts.

use super::Record;
use crate::table::Row;
use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::Serialize;

/// A vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Vcpu {
    /// The number that the VMM gave it.
    pub vcpu: u64,
    /// The thread that ran it last.
    pub tid: Option<u64>,
    /// That thread's name.
    pub task: Option<String>,
    /// `guest`, `halted`, `kernel` or `user`.
    pub state: Option<String>,
    /// Why it exited last.
    pub last_exit: Option<String>,
    /// How long ago, in nanoseconds.
    pub ago_ns: Option<u64>,
    /// The guest's instruction pointer then.
    pub rip: Option<u64>,
    /// What KVM wants of it: `KVM_REQ_*`.
    pub requests: Vec<String>,
    /// What is wrong with its VM: `bugged`, `dead`.
    pub vm_state: Vec<String>,
}

impl Record for Vcpu {
    const FILE: &'static str = "vcpus";
    const KNOBS: &'static [&'static str] = &[];

    fn new(row: &Row<'_>) -> Result<Self> {
        let text = |column| Ok::<_, anyhow::Error>(row.some(column)?.map(str::to_owned));
        let (tid, task) = task(row)?;
        Ok(Self {
            vcpu: row.number("vcpu")?,
            tid,
            task,
            state: text("state")?,
            last_exit: text("last_exit")?,
            ago_ns: row.some_number("ago_ns")?,
            rip: row.some_number("rip")?,
            requests: row.names("requests")?,
            vm_state: row.names("vm")?,
        })
    }

    fn since(now: &[Self], _before: &[Self]) -> Vec<Self> {
        now.to_vec()
    }
}

/// The column `task`: a thread's number and name.
pub fn task(row: &Row<'_>) -> Result<(Option<u64>, Option<String>)> {
    let task = row.some("task")?.map(|task| {
        let told = task
            .split_once(':')
            .and_then(|(tid, name)| Some((tid.parse().ok()?, name.to_owned())));
        told.with_context(|| format!("a task {task:?}"))
    });
    Ok(task.transpose()?.unzip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::parse;

    #[test]
    fn all_columns() {
        let rows: Vec<Vcpu> = parse(
            "vcpu task state last_exit ago_ns rip requests vm\n\
             0 105:CPU_0/KVM halted hlt 322600 0x1000 KVM_REQ_EVENT,KVM_REQ_UNHALT bugged,dead\n\
             1 - user - - - - -\n",
        )
        .unwrap();
        assert_eq!(
            (rows[0].tid, rows[0].task.as_deref()),
            (Some(105), Some("CPU_0/KVM"))
        );
        assert_eq!((rows[0].ago_ns, rows[0].rip), (Some(322_600), Some(0x1000)));
        assert_eq!(rows[0].requests, ["KVM_REQ_EVENT", "KVM_REQ_UNHALT"]);
        assert_eq!(rows[0].vm_state, ["bugged", "dead"]);
        let second = &rows[1];
        assert_eq!(
            (second.tid, &second.task, &second.last_exit),
            (None, &None, &None)
        );
        assert!(second.requests.is_empty() && second.vm_state.is_empty());
    }
}
