// SPDX-License-Identifier: GPL-2.0
//! Flags of a page, in the numbers of `/proc/kpageflags`.
//!
//! C header: `include/uapi/linux/kernel-page-flags.h`, and the kernel's own among them
//! (`include/linux/kernel-page-flags.h`).

use core::fmt;

/// By their numbers; nothing where there is none.
const NAMES: [&str; 43] = [
    "locked",
    "error",
    "referenced",
    "uptodate",
    "dirty",
    "lru",
    "active",
    "slab",
    "writeback",
    "reclaim",
    "buddy",
    "mmap",
    "anon",
    "swapcache",
    "swapbacked",
    "compound_head",
    "compound_tail",
    "huge",
    "unevictable",
    "hwpoison",
    "nopage",
    "ksm",
    "thp",
    "offline",
    "zero_page",
    "idle",
    "pgtable",
    "",
    "",
    "",
    "",
    "",
    "reserved",
    "mlocked",
    "owner_2",
    "private",
    "private_2",
    "owner_private",
    "arch",
    "",
    "softdirty",
    "arch_2",
    "arch_3",
];

/// The names of flags that are set, with commas; those without a name as one number.
#[derive(Clone, Copy, Debug)]
pub struct PageFlags(pub u64);

impl fmt::Display for PageFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let mut comma = "";
        for (bit, name) in NAMES.iter().enumerate() {
            if (rest >> bit) & 1 == 1 && !name.is_empty() {
                write!(f, "{comma}{name}")?;
                rest &= !(1 << bit);
                comma = ",";
            }
        }
        match (rest, comma) {
            (0, "") => f.write_str("-"),
            (0, _) => Ok(()),
            (rest, comma) => write!(f, "{comma}{rest:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_header() {
        for (bit, name) in [
            (0, "locked"),
            (5, "lru"),
            (12, "anon"),
            (15, "compound_head"),
            (17, "huge"),
            (22, "thp"),
            (26, "pgtable"),
            (27, "0x8000000"),
            (32, "reserved"),
            (33, "mlocked"),
            (40, "softdirty"),
            (42, "arch_3"),
            (63, "0x8000000000000000"),
        ] {
            assert_eq!(PageFlags(1 << bit).to_string(), name);
        }
        assert_eq!(PageFlags(0).to_string(), "-");
        assert_eq!(PageFlags(0x1800_0021).to_string(), "locked,lru,0x18000000");
    }
}
