// SPDX-License-Identifier: GPL-2.0
use super::{super::log_linear, *};
use std::collections::BTreeMap;

const REASONS: [&[u8]; 3] = [b"io", b"two words", &[b'x'; 60]];

fn head_bytes() -> Vec<u8> {
    let mut bytes = Vec::new();
    head(b"kvmate-12-7", REASONS.into_iter(), |byte| {
        bytes.push(byte);
        Ok::<_, ()>(())
    })
    .unwrap();
    bytes
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|&b| b == 0).expect("a zero byte");
    assert!(bytes[end..].iter().all(|&b| b == 0));
    std::str::from_utf8(&bytes[..end]).unwrap()
}

/// Name, flags, exponent and size by offset, as a reader finds them.
fn descriptors(bytes: &[u8]) -> BTreeMap<usize, (String, u32, i16, usize)> {
    let (count, first) = (word(bytes, 8), word(bytes, 16));
    let mut found = BTreeMap::new();
    for number in 0..count {
        let one = &bytes[first + number * DESCRIPTOR..][..DESCRIPTOR];
        assert_eq!(word(one, 12), 0, "the size of buckets");
        let exponent = i16::from_ne_bytes(one[4..6].try_into().unwrap());
        let size = u16::from_ne_bytes(one[6..8].try_into().unwrap()).into();
        let what = (text(&one[16..]).into(), word(one, 0) as u32, exponent, size);
        assert!(found.insert(word(one, 8), what).is_none(), "two at a place");
    }
    found
}

#[test]
fn parts_follow_each_other() {
    let bytes = head_bytes();
    let words: Vec<_> = (0..6).map(|number| word(&bytes, 4 * number)).collect();
    assert_eq!(words, [0, 48, NAMED.len() + 4, 24, 72, bytes.len()]);
    assert_eq!(text(&bytes[24..72]), "kvmate-12-7");
    assert_eq!((bytes.len(), bytes.len() % 8), (head_size(3), 0));
    let mut next = 0;
    for (offset, (name, _, _, size)) in descriptors(&bytes) {
        assert_eq!(offset, next, "{name}");
        next += size * 8;
    }
    assert_eq!(next, data_size(3));
}

/// As `virt/kvm/kvm_main.c` and `arch/x86/kvm/x86.c` describe theirs of the same kinds.
#[test]
fn kinds_are_those_of_kvm() {
    let bytes = head_bytes();
    let all = descriptors(&bytes);
    let of = |name: &str| {
        let (_, flags, exponent, size) = all.values().find(|d| d.0 == name).expect(name);
        (*flags, *exponent, *size)
    };
    assert_eq!(of("exits"), (0, 0, 1));
    assert_eq!(of("times_user_ns"), (0x20, -9, 1));
    assert_eq!(of("exit_max_ns"), (0x22, -9, 1));
    assert_eq!(of("vcpus"), (0x01, 0, 1));
    assert_eq!(of("irqs_hidden"), (0x41, 0, 1));
    assert_eq!(of("exit_hist"), (0x24, -9, 48));
    assert_eq!(of("exits_io"), (0, 0, 1));
    assert_eq!(of("exits_two_words"), (0, 0, 1));
    let longest = format!("exits_{}", "x".repeat(41));
    assert_eq!(longest.len(), 47);
    assert_eq!(of(&longest), (0, 0, 1));
}

#[test]
fn numbers_stand_where_descriptors_say() {
    let values = Values {
        vcpus: 1,
        exits: 2,
        irqs_hidden: 3,
        ..Values::default()
    };
    let mut counts = [0; log_linear::BUCKETS];
    counts[log_linear::BUCKETS - 1] = 4;
    let mut histogram = Histogram::EMPTY;
    // So slow a counter that its last bucket is beyond the histogram's.
    histogram.add(&counts, 1);
    let mut numbers = Vec::new();
    data(&values, &histogram, [5, 6, 7].into_iter(), |number| {
        numbers.push(number);
        Ok::<_, ()>(())
    })
    .unwrap();
    assert_eq!(numbers.len() * 8, data_size(3));
    let bytes = head_bytes();
    let all = descriptors(&bytes);
    for (name, at, expected) in [
        ("vcpus", 0, 1),
        ("exits", 0, 2),
        ("exits_other", 0, 0),
        ("irqs_hidden", 0, 3),
        ("exit_hist", 47, 4),
        ("exit_hist", 0, 0),
        ("exits_io", 0, 5),
        ("exits_two_words", 0, 6),
    ] {
        let (offset, _) = all.iter().find(|(_, d)| d.0 == name).expect(name);
        assert_eq!(numbers[offset / 8 + at], expected, "{name}");
    }
}

#[test]
fn a_failure_to_put_ends_it() {
    let mut room = 100;
    let full = head(b"", [].into_iter(), |_| {
        room -= 1;
        (room > 0).then_some(()).ok_or("full")
    });
    assert_eq!((full, room), (Err("full"), 0));
}
