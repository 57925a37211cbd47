// SPDX-License-Identifier: GPL-2.0
//! Whether structures are laid out as the code that uses them was compiled for.

use super::btf::{Btf, Id, Malformed, Member};
use core::{fmt, str};

/// What the compiler said of a structure, or of a member of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected<'a> {
    /// The structure's name.
    pub of: &'a [u8],
    /// The member's path (`arch.vm_type`), or nothing: the structure as a whole.
    pub path: &'a [u8],
    /// Where the member begins, in bytes.
    pub offset: u32,
    /// How many bytes it has.
    pub size: u32,
}

/// Something that is not as expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference<'a> {
    /// What was expected.
    pub expected: Expected<'a>,
    /// What is there instead.
    pub found: Found,
}

/// What there is instead of what was expected. In bytes, bits beyond them are not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No structure or member of that name.
    Nothing,
    /// It begins elsewhere.
    Offset(u64),
    /// It has another size.
    Size(u64),
}

/// Compare all of `table` with `btf` and tell the first difference.
///
/// If several structures have the name, each of them must be as expected.
pub fn compare<'e>(
    btf: Btf<'_>,
    table: impl Iterator<Item = Expected<'e>> + Clone,
) -> Result<Option<Difference<'e>>, Malformed> {
    let mut before: &[u8] = b"";
    for first in table.clone() {
        if first.of == before {
            continue;
        }
        before = first.of;
        // One pass over the types for all that is expected of this structure.
        let mut there = false;
        let different = btf.each_struct(first.of, |id, size| {
            there = true;
            let of_this = table.clone().filter(|expected| expected.of == first.of);
            compare_one(btf, id, size, of_this).transpose()
        })?;
        if let Some(different) = different {
            return different.map(Some);
        }
        if !there {
            let found = Found::Nothing;
            let expected = Expected { path: b"", ..first };
            return Ok(Some(Difference { expected, found }));
        }
    }
    Ok(None)
}

fn compare_one<'e>(
    btf: Btf<'_>,
    id: Id,
    size: u32,
    table: impl Iterator<Item = Expected<'e>>,
) -> Result<Option<Difference<'e>>, Malformed> {
    for expected in table {
        let found = match expected.path {
            b"" => Some(Member {
                offset: 0,
                size: u64::from(size) * 8,
            }),
            path => btf.member(id, path)?,
        };
        let found = match found {
            None => Found::Nothing,
            Some(m) if m.offset != u64::from(expected.offset) * 8 => Found::Offset(m.offset / 8),
            Some(m) if m.size != u64::from(expected.size) * 8 => Found::Size(m.size.div_ceil(8)),
            Some(_) => continue,
        };
        return Ok(Some(Difference { expected, found }));
    }
    Ok(None)
}

/// As in "struct kvm differs from the one built against (mm at 0xa0 instead of 0x98)".
impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Expected { of, path, .. } = self.expected;
        let name = |bytes| str::from_utf8(bytes).unwrap_or("?");
        write!(
            f,
            "struct {} differs from the one built against (",
            name(of)
        )?;
        match (path, self.found) {
            (b"", Found::Nothing) => write!(f, "not there"),
            (_, Found::Nothing) => write!(f, "{} not there", name(path)),
            (b"", Found::Size(size)) => write!(f, "{size} bytes instead of {}", self.expected.size),
            (_, Found::Size(size)) => {
                let expected = self.expected.size;
                write!(f, "{} of {size} bytes instead of {expected}", name(path))
            }
            (_, Found::Offset(offset)) => {
                let expected = self.expected.offset;
                write!(f, "{} at {offset:#x} instead of {expected:#x}", name(path))
            }
        }?;
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::super::btf::build::{read, Builder};
    use super::*;

    fn expect(of: &str, path: &str, offset: u32, size: u32) -> Expected<'static> {
        Expected {
            of: of.as_bytes().to_vec().leak(),
            path: path.as_bytes().to_vec().leak(),
            offset,
            size,
        }
    }

    /// `struct vm { int a; struct { char b[6]; int c; } in; }` and, in a module, one more member in
    /// front of them.
    fn blobs() -> (Vec<u8>, Vec<u8>) {
        let mut base = Builder::base();
        let int = base.int("int", 4);
        let char = base.int("char", 1);
        let six = base.array(char, 6);
        let inner = base.structure("", 12, &[("b", six, 0), ("c", int, 64)]);
        base.structure("vm", 16, &[("a", int, 0), ("in", inner, 32)]);
        let mut own = Builder::module(&base);
        own.structure(
            "vm",
            20,
            &[("new", int, 0), ("a", int, 32), ("in", inner, 64)],
        );
        (base.blob(), own.blob())
    }

    fn table() -> Vec<Expected<'static>> {
        vec![
            expect("vm", "a", 0, 4),
            expect("vm", "in.b", 4, 6),
            expect("vm", "in.c", 12, 4),
            expect("vm", "", 0, 16),
        ]
    }

    fn told(btf: Btf<'_>, table: &[Expected<'static>]) -> String {
        match compare(btf, table.iter().copied()) {
            Ok(None) => "same".into(),
            Ok(Some(difference)) => difference
                .to_string()
                .replace(" differs from the one built against", ""),
            Err(Malformed) => "malformed".into(),
        }
    }

    #[test]
    fn same() {
        let (base, _) = blobs();
        assert_eq!(told(read(&base, None).unwrap(), &table()), "same");
        // A module without one of its own has vmlinux's.
        let (base, own) = {
            let mut base = Builder::base();
            let int = base.int("int", 4);
            base.structure("vm", 4, &[("a", int, 0)]);
            let mut own = Builder::module(&base);
            own.structure("other", 4, &[("a", int, 0)]);
            (base.blob(), own.blob())
        };
        let btf = read(&base, Some(&own)).unwrap();
        assert_eq!(told(btf, &[expect("vm", "a", 0, 4)]), "same");
    }

    /// What vmlinux has proves nothing about a module that has its own.
    #[test]
    fn modules_own_counts() {
        let (base, own) = blobs();
        let btf = read(&base, Some(&own)).unwrap();
        assert_eq!(told(btf, &table()), "struct vm (a at 0x4 instead of 0x0)");
    }

    #[test]
    fn each_kind_of_difference_is_told() {
        let (base, _) = blobs();
        let btf = read(&base, None).unwrap();
        for (expected, what) in [
            (
                expect("vm", "in.c", 8, 4),
                "struct vm (in.c at 0xc instead of 0x8)",
            ),
            (
                expect("vm", "in.b", 4, 5),
                "struct vm (in.b of 6 bytes instead of 5)",
            ),
            (expect("vm", "in.d", 4, 5), "struct vm (in.d not there)"),
            (expect("vm", "a.b", 0, 4), "struct vm (a.b not there)"),
            (
                expect("vm", "", 0, 20),
                "struct vm (16 bytes instead of 20)",
            ),
            (expect("vn", "a", 0, 4), "struct vn (not there)"),
            (expect("v", "", 0, 4), "struct v (not there)"),
        ] {
            assert_eq!(told(btf, &[expected]), what);
            // And after others that are as they should be.
            let mut longer = table();
            longer.push(expected);
            assert_eq!(told(btf, &longer), what);
        }
    }

    /// The tool that writes BTF may write a structure more than once.
    #[test]
    fn every_one_of_the_name_must_be_right() {
        let mut base = Builder::base();
        let int = base.int("int", 4);
        base.structure("vm", 4, &[("a", int, 0)]);
        base.structure("vm", 8, &[("b", int, 0), ("a", int, 32)]);
        let blob = base.blob();
        assert_eq!(
            told(read(&blob, None).unwrap(), &[expect("vm", "a", 0, 4)]),
            "struct vm (a at 0x4 instead of 0x0)"
        );
    }
}
