// SPDX-License-Identifier: GPL-2.0
//! What the reader finds, and that it survives any bytes.

use super::{
    build::{read, Builder},
    *,
};

fn structure(btf: &Btf<'_>, name: &str) -> Vec<(Id, u32)> {
    let mut all = Vec::new();
    let answer: Result<Option<()>> = btf.each_struct(name.as_bytes(), |id, size| {
        all.push((id, size));
        None
    });
    answer.unwrap();
    all
}

fn member(btf: &Btf<'_>, of: &str, path: &str) -> Option<(u64, u64)> {
    let id = structure(btf, of)[0].0;
    let found = btf.member(id, path.as_bytes()).unwrap();
    found.map(|m| (m.offset, m.size))
}

/// All kinds of types, and structures that use them.
fn whole() -> (Builder, Builder) {
    let mut b = Builder::base();
    let int = b.int("int", 4);
    let char = b.int("char", 1);
    let void_pointer = b.kind("", kind::PTR, 0, 0, &[]);
    let row = b.array(int, 3);
    let table = b.array(row, 5);
    let volatile = b.kind("", kind::VOLATILE, 0, table, &[]);
    let constant = b.kind("", kind::CONST, 0, volatile, &[]);
    let tag = b.kind("user", kind::TYPE_TAG, 0, constant, &[]);
    let table_t = b.kind("table_t", kind::TYPEDEF, 0, tag, &[]);
    let mode = b.kind("mode", kind::ENUM, 2, 4, &[0, 1, 0, 2]);
    let wide = b.kind("wide", kind::ENUM64, 1, 8, &[0, 1, 2]);
    let real = b.kind("double", kind::FLOAT, 0, 8, &[]);
    b.kind("declared", kind::FWD, 0, 0, &[]);
    let prototype = b.kind("", kind::FUNC_PROTO, 2, int, &[0, int, 0, char]);
    let function = b.kind("function", kind::FUNC, 0, prototype, &[]);
    b.kind("tag", kind::DECL_TAG, 0, function, &[0]);
    let variable = b.kind("variable", kind::VAR, 0, int, &[1]);
    b.kind(".data", kind::DATASEC, 1, 4, &[variable, 0, 4]);
    b.kind("", kind::RESTRICT, 0, void_pointer, &[]);
    let deepest = b.structure("", 8, &[("deepest", int, 0), ("beside", int, 32)]);
    let union = b.composed(kind::UNION, "", 8, &[("whole", wide, 0), ("", deepest, 0)]);
    let named = b.structure("named", 16, &[("before", int, 0), ("", union, 64)]);
    b.structure(
        "all",
        140,
        &[
            ("pointer", void_pointer, 0),
            ("table", table_t, 64),
            ("mode", mode, 64 + 480),
            ("real", real, 576),
            ("named", named, 640),
            ("", named, 768),
            ("last", char, 896),
        ],
    );
    b.composed(
        kind::STRUCT | 0x80,
        "bits",
        4,
        &[
            ("three", int, 3 << 24),
            ("five", int, (5 << 24) | 3),
            ("byte", char, 8),
        ],
    );
    let mut own = Builder::module(&b);
    own.structure("mine", 12, &[("one", int, 0), ("deepest", deepest, 32)]);
    own.structure("bits", 1, &[("one", char, 0)]);
    own.structure("bits", 2, &[("one", char, 0), ("two", char, 8)]);
    (b, own)
}

#[test]
fn members_of_all_kinds() {
    let (base, _) = whole();
    let blob = base.blob();
    let btf = read(&blob, None).unwrap();
    for (path, expected) in [
        ("pointer", Some((0, 64))),
        ("table", Some((64, 480))),
        ("mode", Some((544, 32))),
        ("real", Some((576, 64))),
        ("named", Some((640, 128))),
        ("named.before", Some((640, 32))),
        ("named.whole", Some((704, 64))),
        ("named.deepest", Some((704, 32))),
        ("named.beside", Some((736, 32))),
        // Through the unnamed member, its union, and the structure in that.
        ("before", Some((768, 32))),
        ("beside", Some((864, 32))),
        ("last", Some((896, 8))),
        ("absent", None),
        ("named.absent", None),
        ("pointer.x", None),
        ("las", None),
        ("lastly", None),
    ] {
        assert_eq!(member(&btf, "all", path), expected, "{path}");
    }
}

#[test]
fn bit_fields() {
    let (base, _) = whole();
    let blob = base.blob();
    let btf = read(&blob, None).unwrap();
    assert_eq!(member(&btf, "bits", "three"), Some((0, 3)));
    assert_eq!(member(&btf, "bits", "five"), Some((3, 5)));
    assert_eq!(member(&btf, "bits", "byte"), Some((8, 8)));
}

#[test]
fn modules_on_top_of_vmlinux() {
    let (base, own) = whole();
    let (base, own) = (base.blob(), own.blob());
    let btf = read(&base, Some(&own)).unwrap();
    assert_eq!(structure(&btf, "mine").len(), 1);
    assert_eq!(member(&btf, "mine", "deepest.beside"), Some((64, 32)));
    // Its own come alone where it has some, all of them.
    let sizes: Vec<u32> = structure(&btf, "bits").iter().map(|&(_, s)| s).collect();
    assert_eq!(sizes, [1, 2]);
    assert_eq!(member(&btf, "all", "table"), Some((64, 480)));
    assert_eq!(structure(&btf, "declared"), []);
    assert_eq!(structure(&btf, "min"), []);
}

/// Numbers far beyond the first mark, and the last ones before and after it.
#[test]
fn many_types() {
    let mut base = Builder::base();
    let count = STEP * 3 + 5;
    for number in 1..=count {
        if number % 1000 == 0 || number.abs_diff(STEP * 2) < 3 {
            let of = base.int("", number);
            base.structure(&format!("s{number}"), number, &[("m", of, 0)]);
        } else {
            base.kind("", kind::PTR, 0, 0, &[]);
        }
    }
    let blob = base.blob();
    let btf = read(&blob, None).unwrap();
    for number in (1000..=count)
        .step_by(1000)
        .chain(STEP * 2 - 2..STEP * 2 + 3)
    {
        let size = u64::from(number) * 8;
        assert_eq!(
            member(&btf, &format!("s{number}"), "m"),
            Some((0, size)),
            "{number}"
        );
    }
}

#[test]
fn endless_chains_are_refused() {
    let mut b = Builder::base();
    // Number 1 is a typedef of itself, 2 an array of itself, 3 has itself as an unnamed member.
    b.kind("t", kind::TYPEDEF, 0, 1, &[]);
    b.kind("", kind::ARRAY, 0, 0, &[2, 2, 1]);
    b.structure("loop", 4, &[("t", 1, 0), ("a", 2, 0), ("", 3, 0)]);
    b.structure("far", 4, &[("beyond", 77, 0), ("void", 0, 0)]);
    // Each of four unnamed members holds the same four again: more than anyone looks at.
    b.structure("wide", 4, &[("", 5, 0), ("", 5, 0), ("", 5, 0), ("", 5, 0)]);
    let blob = b.blob();
    let btf = read(&blob, None).unwrap();
    for (of, path) in [
        (3, "t"),
        (3, "a"),
        (3, "absent"),
        (4, "beyond"),
        (4, "void"),
        (5, "absent"),
        (0, "x"),
        (1, "x"),
        (6, "x"),
        (u32::MAX, "x"),
    ] {
        assert_eq!(
            btf.member(Id(of), path.as_bytes()),
            Err(Malformed),
            "{of} {path}"
        );
    }
}

#[test]
fn no_btf() {
    assert!(read(b"", None).is_err());
    assert!(read(b"\x7fELF", None).is_err());
    let (base, own) = whole();
    let (base, own) = (base.blob(), own.blob());
    for (at, value) in [(0, 0), (1, 0), (2, 2), (4, 23), (7, 1), (11, 1), (15, 1)] {
        let mut bad = base.clone();
        bad[at] = value;
        assert!(read(&bad, None).is_err(), "byte {at} = {value}");
        assert!(read(&bad, Some(&own)).is_err());
    }
    // A kind that is not known yet.
    let mut newer = Builder::base();
    newer.kind("", 20, 0, 0, &[]);
    assert!(read(&newer.blob(), None).is_err());
}

/// Everything that can be asked, of blobs that may be anything.
fn ask(base: &[u8], own: &[u8]) {
    for btf in [read(base, None), read(base, Some(own))]
        .into_iter()
        .flatten()
    {
        for name in [&b"all"[..], b"bits", b"mine", b"named", b""] {
            let mut found = Vec::new();
            let _: Result<Option<()>> = btf.each_struct(name, |id, _| {
                found.push(id);
                None
            });
            for id in found {
                for path in [
                    &b"named.beside"[..],
                    b"deepest",
                    b"table",
                    b"two",
                    b"",
                    b"..",
                ] {
                    let _ = btf.member(id, path);
                }
            }
        }
    }
}

#[test]
fn cut_anywhere() {
    let (base, own) = whole();
    let (base, own) = (base.blob(), own.blob());
    for end in 0..base.len() {
        assert!(read(&base[..end], None).is_err(), "cut at {end}");
        ask(&base[..end], &own);
    }
    for end in 0..own.len() {
        assert!(read(&base, Some(&own[..end])).is_err(), "cut at {end}");
    }
}

#[test]
fn any_byte_changed() {
    let (base, own) = whole();
    let (base, own) = (base.blob(), own.blob());
    for value in [0, 1, 4, 0x7f, 0x80, 0xff] {
        for at in 0..base.len() {
            let mut bad = base.clone();
            bad[at] = value;
            ask(&bad, &own);
        }
        for at in 0..own.len() {
            let mut bad = own.clone();
            bad[at] = value;
            ask(&base, &bad);
        }
    }
}

/// Many bytes changed at once, the same ones on every run.
#[test]
fn many_bytes_changed() {
    let (base, own) = whole();
    let (base, own) = (base.blob(), own.blob());
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for _ in 0..3000 {
        let (mut bad, mut bad_own) = (base.clone(), own.clone());
        for _ in 0..random(12) + 1 {
            // The header stays mostly, so that there is more to be read.
            let at = if random(8) == 0 {
                random(24)
            } else {
                random(base.len() - 24) + 24
            };
            bad[at] = random(256) as u8;
            let at = random(own.len());
            bad_own[at] = random(256) as u8;
        }
        ask(&bad, &own);
        ask(&bad, &bad_own);
    }
}
