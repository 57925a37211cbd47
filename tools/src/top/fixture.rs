// SPDX-License-Identifier: GPL-2.0
//! VMs for the unit tests of this folder.

use super::read::{Chosen, Exits, Seen, Told};
use crate::{
    records::{Bucket, Exit, Histogram, Vcpu},
    tree::Process,
};
use std::time::Duration;

/// A line of `exits`, with these percentiles and the longest time.
pub fn exit(reason: &str, count: u64, total_ns: u64, times: [u64; 4]) -> Exit {
    let [p50_ns, p99_ns, p999_ns, max_ns] = times.map(Some);
    Exit {
        reason: reason.into(),
        count,
        total_ns,
        avg_ns: total_ns.checked_div(count),
        p50_ns,
        p99_ns,
        p999_ns,
        max_ns,
    }
}

/// A VM with so many vCPUs, as read at that second: two reasons, of which `io` goes on.
pub fn vm(name: &str, at: u64, vcpus: u64) -> Seen {
    let vcpu = |number| Vcpu {
        vcpu: number,
        tid: Some(100 + number),
        task: Some("small_guest".into()),
        state: Some("halted".into()),
        last_exit: Some("hlt".into()),
        ago_ns: None,
        rip: None,
        requests: Vec::new(),
        vm_state: Vec::new(),
    };
    let io = [19_721, 48_909, 183_017, 875_873];
    Seen {
        name: name.into(),
        process: Some(Process {
            pid: 100,
            name: "small_guest".into(),
        }),
        told: Ok(Told {
            exits: Exits {
                at: Duration::from_secs(at),
                lines: vec![
                    exit("io", 1000 * at, 2_000_000 * at, io),
                    exit("hlt", 1, 0, [0; 4]),
                ],
            },
            vcpus: (0..vcpus).map(vcpu).collect(),
            chosen: None,
        }),
    }
}

/// What is read of that VM, or of one of its vCPUs, if it is chosen.
pub fn chosen(of: &Seen, vcpu: Option<u64>) -> Chosen {
    let exits = &of.told.as_ref().expect("a VM's").exits;
    let at = exits.lines[0].count / 1000;
    let bucket = |bits, count| Bucket {
        from_ns: Bucket::from_bits(bits),
        count,
    };
    let io = Histogram {
        reason: "io".into(),
        timed: 1000 * at - 1,
        total_ns: 2_000_000 * at,
        histogram: vec![
            bucket(15, 700 * at),
            bucket(16, 290 * at),
            bucket(18, 10 * at - 2),
            bucket(20, 1),
        ],
    };
    let hlt = Histogram {
        reason: "hlt".into(),
        ..Histogram::default()
    };
    Chosen {
        vcpu,
        exits: vcpu.map(|_| exits.clone()),
        histograms: vec![io, hlt],
    }
}

/// The VM, chosen so when it was read.
pub fn vm_chosen(name: &str, at: u64, vcpus: u64, vcpu: Option<u64>) -> Seen {
    let mut seen = vm(name, at, vcpus);
    let more = chosen(&seen, vcpu);
    if let Ok(told) = &mut seen.told {
        told.chosen = Some(more);
    }
    seen
}
