// SPDX-License-Identifier: GPL-2.0
//! What a record says, against plain lists and beside a running writer.

use super::*;
use proptest::prelude::*;
use std::{collections::BTreeMap, sync::atomic::AtomicBool, thread};

/// What zeroed memory is.
#[allow(clippy::declare_interior_mutable_const)]
fn record() -> Box<Record> {
    const ZERO: AtomicU64 = AtomicU64::new(0);
    const SLOT: Slot = Slot {
        sequence: ZERO,
        count: ZERO,
        index: AtomicU32::new(0),
        total: ZERO,
        max: ZERO,
        split: ZERO,
        parts: [ZERO; 4],
        buckets: [ZERO; BUCKETS],
    };
    Box::new(Record {
        last: AtomicU32::new(0),
        since: ZERO,
        rip: ZERO,
        open: Open::zeroed(),
        taken: AtomicU32::new(0),
        slot_of: [const { AtomicU8::new(0) }; INDICES],
        others: [ZERO; OTHERS.end - OTHERS.start],
        slots: [SLOT; SLOTS],
    })
}

fn lines(record: &Record) -> Vec<Line> {
    let mut lines = Vec::new();
    for slot in 0..SLOTS {
        let mut line = Line::EMPTY;
        if record.read(Vendor::Svm, slot, &mut line, || ()).unwrap() {
            lines.push(line);
        }
    }
    lines
}

fn exit(record: &Record, code: u64, now: u64) {
    match reason::index(Vendor::Svm, code) {
        Some(index) => record.exit(index, now, code),
        None => record.exit_other(code, now, code),
    }
}

#[test]
fn nothing_yet() {
    let record = record();
    record.entry(5, || ());
    assert!(lines(&record).is_empty());
    assert_eq!(record.last(Vendor::Svm), None);
}

#[test]
fn exit_without_entry_has_no_time() {
    let record = record();
    record.exit(0x7b, 100, 7);
    record.exit(0x7b, 200, 8);
    record.entry(250, || ());
    // An entry without an exit (a failed one) tells nothing more.
    record.entry(900, || ());
    let [line] = &lines(&record)[..] else {
        panic!()
    };
    assert_eq!(
        (line.count, line.timed(), line.total, line.max),
        (2, 1, 50, 50)
    );
    let last = Last {
        reason: Reason::Code(0x7b),
        since: 200,
        rip: 8,
    };
    assert_eq!(record.last(Vendor::Svm), Some(last));
}

#[test]
fn time_below_nothing_is_nothing() {
    let record = record();
    record.exit(1, 100, 0);
    record.entry(99, || ());
    assert_eq!(lines(&record)[0].total, 0);
}

#[test]
fn a_lost_entry_gives_no_time() {
    let record = record();
    exit(&record, 1, 100);
    record.lose_entry();
    record.entry(900, || ());
    let line = lines(&record).remove(0);
    assert_eq!((line.count, line.timed(), line.total), (1, 0, 0));
    assert_eq!(record.last(Vendor::Svm).unwrap().since, 100);
}

/// An exit that is split beside one that is not: both are in the totals, one has parts.
#[test]
fn a_split_exit_has_parts() {
    let record = record();
    let at = |delay| Moment {
        task: 3,
        made: 1,
        delay,
    };
    exit(&record, 1, 100);
    record.entry(150, || panic!("an open exit"));
    exit(&record, 1, 200);
    record.split(at(0), 1);
    record.halted(10, at(4));
    assert!(record.to_user(240, at(4)));
    let mut split = false;
    record.entry(300, || split = true);
    assert!(split);
    assert_eq!(record.last(Vendor::Svm).unwrap().since, 200);
    record.entry_split(300, at(9), 1, 1_000_000);
    // It is over.
    record.entry_split(900, at(9), 1, 1_000_000);
    assert!(!record.to_user(950, at(9)));
    record.halted(10, at(9));
    let line = lines(&record).remove(0);
    assert_eq!((line.count, line.timed(), line.total), (2, 2, 150));
    let parts = Parts {
        total: 100,
        user: 55,
        halted: 6,
        preempted: 9,
    };
    assert_eq!((line.split, line.parts), (1, parts));
}

#[test]
fn a_lost_entry_ends_a_split_exit() {
    let record = record();
    exit(&record, 1, 100);
    record.split(
        Moment {
            task: 3,
            made: 1,
            delay: 0,
        },
        7,
    );
    record.lose_entry();
    record.entry_split(
        300,
        Moment {
            task: 3,
            made: 1,
            delay: 0,
        },
        7,
        1,
    );
    assert_eq!(lines(&record)[0].timed(), 0);
    exit(&record, 1, 400);
    record.entry(450, || panic!("an open exit"));
    let line = lines(&record).remove(0);
    assert_eq!((line.timed(), line.split, line.total), (1, 0, 50));
}

#[test]
fn too_many_reasons_are_unknown_but_counted() {
    let record = record();
    for code in 0..0x100 {
        exit(&record, code, 0);
    }
    for code in 0..20 {
        exit(&record, 0x1_0000 + code, 0);
    }
    record.exit_unknown(0);
    let lines = lines(&record);
    assert_eq!(lines.len(), SLOTS);
    assert_eq!(lines.iter().map(|l| l.count).sum::<u64>(), 0x100 + 20 + 1);
    assert_eq!(
        lines.iter().filter(|l| l.reason == Reason::Unknown).count(),
        1
    );
}

#[test]
fn codes_without_index_keep_their_code() {
    let record = record();
    for code in [0x8000_0001, 0xf000_0000, 0x8000_0001] {
        exit(&record, code, 0);
    }
    let found: Vec<_> = lines(&record).iter().map(|l| (l.reason, l.count)).collect();
    assert_eq!(
        found,
        [
            (Reason::Code(0x8000_0001), 2),
            (Reason::Code(0xf000_0000), 1)
        ]
    );
}

proptest! {
    #[test]
    fn agrees_with_a_plain_list(events in prop::collection::vec(
        (prop_oneof![0..0xa0u64, 0x400..0x404u64], 0..1u64 << 40, any::<bool>()), 0..300)
    ) {
        let record = record();
        let mut now = 0;
        // For each reason: exits, times.
        let mut plain: BTreeMap<u64, (u64, Vec<u64>)> = BTreeMap::new();
        let mut distinct = Vec::new();
        for &(code, time, entered) in &events {
            if !distinct.contains(&code) {
                if distinct.len() == SLOTS - 1 { continue; }
                distinct.push(code);
            }
            exit(&record, code, now);
            plain.entry(code).or_default().0 += 1;
            now += time;
            if entered {
                record.entry(now, || ());
                plain.entry(code).or_default().1.push(time);
            }
        }
        let found = lines(&record);
        prop_assert_eq!(found.len(), plain.len());
        for line in found {
            let Reason::Code(code) = line.reason else { panic!("unknown") };
            let (count, times) = &plain[&code];
            prop_assert_eq!(line.count, *count);
            prop_assert_eq!(line.timed(), times.len() as u64);
            prop_assert_eq!(line.total, times.iter().sum::<u64>());
            prop_assert_eq!(line.max, times.iter().copied().max().unwrap_or(0));
        }
    }
}

/// A reader beside a running writer: every line it gets is one that there was.
#[test]
fn lines_are_of_one_moment() {
    let (record, stop) = (record(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut now = 0;
            while !stop.load(Relaxed) {
                // Each takes 3, so that total, timed and max depend on each other.
                record.exit(0x72, now, 0);
                record.entry(now + 3, || ());
                now += 10;
                // A guest runs in between.
                (0..500).for_each(|_| std::hint::spin_loop());
            }
        });
        let mut line = Line::EMPTY;
        let mut last = 0;
        for _ in 0..20_000 {
            record.read(Vendor::Svm, 0, &mut line, || ()).unwrap();
            assert_eq!(line.total, line.timed() * 3);
            assert!(line.count >= line.timed() && line.count - line.timed() <= 1);
            assert!(line.count >= last);
            last = line.count;
        }
        stop.store(true, Relaxed);
    });
}

#[test]
fn lines_add_up() {
    let records = [record(), record()];
    for (number, record) in records.iter().enumerate() {
        record.exit(0x7b, 0, 0);
        record.entry(10 + number as u64, || ());
    }
    let mut sum = lines(&records[0]).remove(0);
    sum.add(&lines(&records[1])[0]);
    assert_eq!((sum.count, sum.timed(), sum.total, sum.max), (2, 2, 21, 11));
    assert_eq!(sum.average(), 10);
    assert_eq!(Line::EMPTY.average(), 0);
    // More than there is room for.
    sum.total = u64::MAX - 1;
    sum.parts.halted = u64::MAX;
    let mut more = sum.clone();
    more.add(&sum);
    assert_eq!((more.total, more.parts.halted), (u64::MAX, u64::MAX));
}
