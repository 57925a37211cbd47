// SPDX-License-Identifier: GPL-2.0
//! VMs for the unit tests of this folder.

use super::read::{Exit, Exits, Seen, Told, Vcpu};
use crate::{
    records::{Bucket, Histogram},
    tree::Process,
};
use std::time::Duration;

/// A VM with so many vCPUs, as read at that second: two reasons, of which `io` goes on.
pub fn vm(name: &str, at: u64, vcpus: u64) -> Seen {
    let exit = |reason: &str, count, total_ns, times: [u64; 4]| Exit {
        reason: reason.into(),
        count,
        total_ns,
        p50_ns: times[0],
        p99_ns: times[1],
        p999_ns: times[2],
        max_ns: times[3],
    };
    let vcpu = |number| Vcpu {
        number,
        task: format!("10{number}:small_guest"),
        state: "halted".into(),
        last_exit: "hlt".into(),
    };
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
                    exit(
                        "io",
                        1000 * at,
                        2_000_000 * at,
                        [19_721, 48_909, 183_017, 875_873],
                    ),
                    exit("hlt", 1, 0, [0; 4]),
                ],
            },
            vcpus: (0..vcpus).map(vcpu).collect(),
            one: None,
            histograms: Some((None, vec![io, hlt])),
        }),
    }
}

/// And with the exits of one vCPU.
pub fn vm_with(name: &str, at: u64, vcpus: u64, one: u64) -> Seen {
    let mut seen = vm(name, at, vcpus);
    if let Ok(told) = &mut seen.told {
        told.one = Some((one, told.exits.clone()));
        told.histograms.as_mut().expect("them").0 = Some(one);
    }
    seen
}
