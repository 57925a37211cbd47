// SPDX-License-Identifier: GPL-2.0
//! The text, to the letter.

use super::*;
use crate::{
    export::{
        format::Format,
        model::{MemoryFile, Vm},
    },
    records::{Bucket, Exit, Histogram},
    tree::Process,
};
use std::collections::BTreeSet;

fn line(reason: &str, count: u64, total_ns: u64) -> Exit {
    Exit {
        reason: reason.into(),
        count,
        total_ns,
        avg_ns: None,
        p50_ns: Some(1_000),
        p99_ns: Some(2_000_000),
        p999_ns: Some(3_000_000_000),
        max_ns: Some(4_000_000_001),
    }
}

/// All there can be.
fn scrape() -> Scrape {
    let buckets = [(8, 1), (20, 2), (47, 4)].map(|(bits, count)| Bucket {
        from_ns: Bucket::from_bits(bits),
        count,
    });
    let vm = Vm {
        name: "101-4".into(),
        process: Some(Process {
            pid: 100,
            name: "a \"b\\\n\u{fffd}".into(),
        }),
        vcpu_count: 2,
        exits: 12,
        reasons: vec![line("io", 7, 1_500_000_000)],
        vcpus: vec![
            (0, vec![line("io", 3, 1_000_000_000)]),
            (1, vec![line("io", 4, 5)]),
        ],
        histograms: vec![Histogram {
            reason: "io".into(),
            timed: 7,
            total_ns: 2_000_000_000,
            histogram: buckets.into(),
        }],
    };
    let info = "size 4096\nallocated 8192\nfolios_order0 1\nfolios_order9 2\nfaults_order0 3\nfallbacks 4\n\
                punch_asked 5\npunch_freed 6\npunch_kept_unsplit 7\npunch_kept_referenced 8\nnew 9\n\
                punch_refused 10\nfailed 11\nsplit_tried 12\nsplit_done 13\nsplit_failed_memory 14\nmerge_done 15\n";
    let ended = Vm {
        name: "7-x1".into(),
        ..Vm::default()
    };
    Scrape {
        module: Some(Module {
            version: "0.1.0".into(),
            release: "7.3.4".into(),
            exits: Some(13),
            vm_count: 5,
            vms: vec![vm, ended],
            file_count: 1,
            files: vec![MemoryFile::new(42, info).unwrap()],
            left_out: LeftOut {
                vms: 3,
                vcpus: 1,
                reasons: 2,
                files: 0,
                ended: 4,
            },
        }),
        failures: 6,
    }
}

const EXPECTED: &str = include_str!("expected.txt");

#[test]
fn to_the_letter() {
    let text = scrape().text().unwrap();
    for (ours, theirs) in text.lines().zip(EXPECTED.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(text, EXPECTED);
}

#[test]
fn without_the_module() {
    let text = Scrape::default().text().unwrap();
    let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let build = concat!(
        "kvmate_build_info{version=\"",
        env!("CARGO_PKG_VERSION"),
        "\"} 1"
    );
    assert_eq!(
        samples,
        ["kvmate_up 0", build, "kvmate_read_failures_total 0"]
    );
    assert!(text.ends_with("\n# EOF\n"));
}

/// Without VMs, kvm and memory files no family is empty.
#[test]
fn nothing_there() {
    let scrape = Scrape {
        module: Some(Module::default()),
        failures: 0,
    };
    let text = Format::Plain.of(scrape.text().unwrap());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("# TYPE") {
            let next = lines.peek().expect("a sample");
            assert!(!next.starts_with('#'), "{line} has no sample");
        }
    }
    assert!(text.contains("\nkvmate_vms 0\n"), "{text}");
    assert!(!text.contains("kvmate_exits_total"), "{text}");
}

/// The names that samples have in the plain text, but for what a histogram puts behind them.
fn families(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names = types.filter_map(|line| line.split(' ').next());
    names.map(str::to_owned).collect()
}

#[test]
fn documented() {
    let there = families(&Format::Plain.of(scrape().text().unwrap()));
    let documentation = include_str!("../../../metrics.md");
    let rows = documentation
        .lines()
        .filter_map(|line| line.strip_prefix("| `kvmate_"));
    let documented: BTreeSet<_> = rows
        .filter_map(|row| row.split('`').next())
        .map(|name| format!("kvmate_{name}"))
        .collect();
    assert_eq!(there, documented);
}

/// Whatever a process is called, its name is one label's value.
#[test]
fn names_are_escaped() {
    let text = scrape().text().unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("kvmate_vm_info{vm=\"101-4\""));
    let expected = "kvmate_vm_info{vm=\"101-4\",pid=\"100\",process=\"a \\\"b\\\\\\n\u{fffd}\"} 1";
    assert_eq!(line, Some(expected));
}
