// SPDX-License-Identifier: GPL-2.0
//! The build id that the linker wrote into a kernel or module, out of a section of ELF notes.

/// `NT_GNU_BUILD_ID`
const BUILD_ID: u32 = 3;

/// The GNU build id among these notes, if there is one.
///
/// Notes are as in `struct elf64_note`: lengths of name and contents, a type, and both padded to
/// four bytes. What makes no sense ends the search.
pub fn find(mut notes: &[u8]) -> Option<&[u8]> {
    loop {
        let name_length = word(notes, 0)?;
        let length = word(notes, 4)?;
        let kind = word(notes, 8)?;
        let rest = notes.get(12..)?;
        let name = rest.get(..name_length)?;
        let rest = rest.get(padded(name_length)?..)?;
        let contents = rest.get(..length)?;
        if kind == BUILD_ID as usize && name == b"GNU\0" && length > 0 {
            return Some(contents);
        }
        notes = rest.get(padded(length)?..)?;
    }
}

fn padded(length: usize) -> Option<usize> {
    length.checked_next_multiple_of(4)
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, contents: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [name.len() as u32, contents.len() as u32, kind] {
            out.extend(word.to_le_bytes());
        }
        for part in [name, contents] {
            out.extend(part);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    #[test]
    fn alone_and_among_others() {
        let id: Vec<u8> = (1..=20).collect();
        let ours = note(b"GNU\0", 3, &id);
        assert_eq!(find(&ours), Some(&id[..]));
        let among = [
            note(b"Xen\0", 3, b"not this"),
            note(b"GNU\0", 5, b"nor this"),
            note(b"Linux\0", 257, b"\0"),
            ours,
            note(b"GNU\0", 3, b"the first counts"),
        ];
        assert_eq!(find(&among.concat()), Some(&id[..]));
    }

    #[test]
    fn none() {
        assert_eq!(find(b""), None);
        assert_eq!(find(&note(b"GNU\0", 5, b"property")), None);
        assert_eq!(find(&note(b"GNU", 3, b"no zero byte")), None);
        assert_eq!(find(&note(b"GNU\0", 3, b"")), None);
    }

    /// As readelf read it from a module.
    #[test]
    fn a_real_one() {
        let section = [
            4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0, b'G', b'N', b'U', 0, 0x2f, 0x50, 0x56, 0x24, 0x27,
            0x02, 0x2b, 0x04, 0x8f, 0xdc, 0x6b, 0xc3, 0xc4, 0x8f, 0x75, 0xd5, 0x3e, 0x29, 0xd1,
            0x8a,
        ];
        assert_eq!(find(&section).map(|id| (id.len(), id[0])), Some((20, 0x2f)));
    }

    /// Cut anywhere, and with any byte changed to any of a few: no panic, and never more than there is.
    #[test]
    fn any_bytes_will_do() {
        let whole = [note(b"Linux\0", 257, b"abc"), note(b"GNU\0", 3, &[7; 20])].concat();
        for end in 0..whole.len() {
            assert_eq!(find(&whole[..end]), None, "cut at {end}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 4, 0x7f, 0x80, 0xff] {
                let mut bad = whole.clone();
                bad[at] = value;
                assert!(find(&bad).is_none_or(|id| id.len() < whole.len()));
            }
        }
    }
}
