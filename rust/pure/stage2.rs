// SPDX-License-Identifier: GPL-2.0
//! Entries of stage-2 page tables (NPT and EPT), decoded.
//!
//! An entry has bits of hardware's and, where hardware ignores them, bits of KVM's own; the tables
//! here name both (`arch/x86/kvm/mmu/spte.h` and the manuals say what they mean). What has no name is
//! told in hexadecimal, never left out. [`walk`] goes through tables of such entries.

use core::fmt;

#[cfg(test)]
mod tests;
pub mod walk;

/// Whose entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// AMD's nested page tables.
    Npt,
    /// Intel's extended page tables.
    Ept,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing is mapped.
    Absent,
    /// It leads to a table of the next level.
    Table,
    /// It maps memory.
    Leaf,
    /// Nothing is mapped, and KVM remembers that nothing can be: accesses are MMIO.
    Mmio,
    /// KVM is about to change it.
    Frozen,
    /// Not present, and none of the above.
    Other,
}

impl Class {
    /// Its name in a table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Table => "table",
            Self::Leaf => "leaf",
            Self::Mmio => "mmio",
            Self::Frozen => "frozen",
            Self::Other => "other",
        }
    }
}

/// Why a leaf is not writable, if it is not, by the bits that KVM keeps for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It is writable.
    Writable,
    /// Writes are intercepted for dirty logging, or to see whether the page is used.
    DirtyLog,
    /// Writes are intercepted because something tracks them (KVM itself: nested or shadow paging).
    Tracked,
    /// The memslot or the host's mapping is read-only.
    ReadOnly,
}

impl Write {
    /// Its name in a table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Writable => "writable",
            Self::DirtyLog => "dirty-log",
            Self::Tracked => "write-tracked",
            Self::ReadOnly => "read-only",
        }
    }
}

/// KVM's mark of an entry that is present for it, whatever hardware sees.
const MMU_PRESENT: u64 = 1 << 11;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const TOP: u64 = 1 << 63;
const FROZEN: u64 = 0x1a0;
/// How KVM follows which pages are used: `SPTE_TDP_AD_MASK`.
const TRACKING: u64 = 3 << 60;
/// EPT's memory type.
const MEMORY_TYPE: u64 = 7 << 3;
/// For which memslots KVM made an MMIO entry: `MMIO_SPTE_GEN_LOW_MASK` and `_HIGH_MASK`.
const GENERATION: u64 = (0x7f << 3) | (0x7ff << 52);

/// How many bytes a leaf of a level maps.
pub const fn bytes(level: u8) -> u64 {
    pages(level) << 12
}

/// How many pages of 4 KiB a leaf of a level maps.
pub const fn pages(level: u8) -> u64 {
    1 << (9 * (level as u32 - 1))
}

/// An entry, with where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The entry itself.
    pub raw: u64,
    /// The level of the table that it stands in: 1 for pages of 4 KiB.
    pub level: u8,
    /// Whose it is.
    pub format: Format,
}

impl Entry {
    /// What it is.
    #[inline(always)]
    pub const fn class(self) -> Class {
        let Self { raw, level, format } = self;
        if raw & MMU_PRESENT != 0 {
            return match level > 1 && raw & LARGE == 0 {
                true => Class::Table,
                false => Class::Leaf,
            };
        }
        match (raw & !TOP, format) {
            (0, _) => Class::Absent,
            (FROZEN, _) => Class::Frozen,
            (low, Format::Npt) if low & 1 != 0 => Class::Mmio,
            // Write and execute without read: hardware reports a misconfiguration.
            (low, Format::Ept) if low & 7 == 6 => Class::Mmio,
            _ => Class::Other,
        }
    }

    /// The lowest bit of the address that it leads to or maps.
    #[inline(always)]
    const fn address_shift(self) -> u32 {
        match self.class() {
            Class::Leaf => 12 + 9 * (self.level as u32 - 1),
            _ => 12,
        }
    }

    /// The physical address that it leads to or maps, where those have `width` bits.
    pub const fn address(self, width: u8) -> u64 {
        self.raw & ((1 << width) - 1) & !((1 << self.address_shift()) - 1)
    }

    /// All but the address: what consecutive leaves of a range have in common.
    #[inline(always)]
    pub const fn attributes(self) -> u64 {
        self.raw & (!((1 << 52) - 1) | ((1 << self.address_shift()) - 1))
    }

    /// The bits between the width of physical addresses and bit 52: memory encryption's (AMD's C-bit,
    /// Intel's key), shifted down.
    pub const fn encryption(self, width: u8) -> u64 {
        (self.raw & ((1 << 52) - 1)) >> width
    }

    /// What the guest may do: `rwxu`, a letter that is missing is `-`. `x` is execution, on EPT in
    /// supervisor mode; `u` is access in user mode (NPT), or execution in it (EPT).
    pub fn permissions(self) -> [u8; 4] {
        let bit = |bit: u32, letter| match (self.raw >> bit) & 1 {
            1 => letter,
            _ => b'-',
        };
        match self.format {
            Format::Npt => {
                let execute = if self.raw & TOP == 0 { b'x' } else { b'-' };
                [bit(0, b'r'), bit(1, b'w'), execute, bit(2, b'u')]
            }
            Format::Ept => [bit(0, b'r'), bit(1, b'w'), bit(2, b'x'), bit(10, b'u')],
        }
    }

    /// A leaf's memory type.
    pub const fn memory_type(self) -> MemoryType {
        match self.format {
            Format::Npt => {
                let high = if self.level == 1 { 7 } else { 12 };
                MemoryType::Pat((((self.raw >> 3) & 3) | (((self.raw >> high) & 1) << 2)) as u8)
            }
            Format::Ept => MemoryType::Type {
                number: ((self.raw & MEMORY_TYPE) >> 3) as u8,
                ignore_pat: self.raw & (1 << 6) != 0,
            },
        }
    }

    /// Whether a leaf is writable, and if not, why.
    pub const fn write(self) -> Write {
        let (host, mmu) = match self.format {
            Format::Npt => (1 << 9, 1 << 10),
            Format::Ept => (1 << 53, 1 << 55),
        };
        match (
            self.raw & WRITABLE != 0,
            self.raw & host != 0,
            self.raw & mmu != 0,
        ) {
            (true, ..) => Write::Writable,
            (false, _, true) => Write::DirtyLog,
            (false, true, false) => Write::Tracked,
            (false, false, false) => Write::ReadOnly,
        }
    }

    /// The names of all bits that are set and are not part of the address, with commas. A frozen
    /// entry has none: all of it is the mark.
    pub const fn flags(self) -> Flags {
        let bits = match self.class() {
            Class::Frozen => 0,
            _ => self.attributes(),
        };
        Flags { entry: self, bits }
    }

    /// The same without what [`Self::class`], [`Self::permissions`], [`Self::memory_type`] and
    /// [`Self::write`] tell of a leaf.
    pub const fn other_flags(self) -> Flags {
        let large = if self.level > 1 { LARGE } else { 0 };
        let told = match (self.class(), self.format) {
            (Class::Leaf, Format::Npt) => {
                let pat = if self.level > 1 { 1 << 12 } else { 1 << 7 };
                0x1f | (3 << 9) | MMU_PRESENT | TOP | pat | large
            }
            (Class::Leaf, Format::Ept) => 0x7f | (1 << 10) | (5 << 53) | MMU_PRESENT | large,
            (Class::Frozen, _) => u64::MAX,
            _ => 0,
        };
        Flags {
            entry: self,
            bits: self.attributes() & !told,
        }
    }

    /// The generation of the memslots for which an MMIO entry was made (18 bits).
    pub const fn mmio_generation(self) -> u32 {
        (((self.raw >> 3) & 0x7f) | (((self.raw >> 52) & 0x7ff) << 7)) as u32
    }

    /// Fields of more than one bit, told as a number.
    const fn fields(self) -> &'static [(u64, &'static str)] {
        match (self.class(), self.format) {
            (Class::Leaf, Format::Ept) => &[(MEMORY_TYPE, "type="), (TRACKING, "tracking=")],
            (Class::Leaf | Class::Table, _) => &[(TRACKING, "tracking=")],
            (Class::Mmio, _) => &[(GENERATION, "generation=")],
            _ => &[],
        }
    }

    /// The name of a bit, if it has one.
    const fn name(self, bit: u32) -> Option<&'static str> {
        use Class::{Leaf, Table};
        use Format::{Ept, Npt};
        let large = self.level > 1;
        Some(match (self.format, self.class(), bit) {
            (_, Class::Mmio, 3..=9 | 52..=62) => return None,
            (Npt, _, 0) => "present",
            (Ept, _, 0) => "read",
            (_, _, 1) => "write",
            (Npt, _, 2) => "user",
            (Ept, _, 2) => "execute",
            (Npt, Leaf | Table, 3) => "pwt",
            (Npt, Leaf | Table, 4) => "pcd",
            (Npt, Leaf | Table, 5) => "accessed",
            (Npt, Leaf, 6) => "dirty",
            (Ept, Leaf, 6) => "ignore-pat",
            (_, Leaf, 7) if large => "large",
            (Npt, Leaf, 7) => "pat",
            (Npt, Leaf, 8) => "global",
            (Ept, Leaf | Table, 8) => "accessed",
            (Npt, Leaf, 9) => "host-writable",
            (Ept, Leaf, 9) => "dirty",
            (Npt, Leaf, 10) => "mmu-writable",
            (Ept, Leaf | Table, 10) => "user-execute",
            (_, Leaf | Table, 11) => "mmu-present",
            (Npt, Leaf, 12) if large => "pat",
            (Ept, Leaf, 52) => "saved-read",
            (Ept, Leaf, 53) => "host-writable",
            (Ept, Leaf, 54) => "saved-execute",
            (Ept, Leaf, 55) => "mmu-writable",
            (Ept, Leaf, 57) => "verify-guest-paging",
            (Ept, Leaf, 58) => "paging-write",
            (Ept, Leaf, 62) => "saved-user-execute",
            (Npt, _, 63) => "no-execute",
            (Ept, _, 63) => "suppress-ve",
            _ => return None,
        })
    }
}

/// A memory type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// NPT: the entry of the host's PAT that it is looked up in.
    Pat(u8),
    /// EPT: the type itself.
    Type {
        /// Its number.
        number: u8,
        /// Whether the guest's own choice is ignored.
        ignore_pat: bool,
    },
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, ignore_pat) = match *self {
            Self::Pat(index) => return write!(f, "pat{index}"),
            Self::Type { number, ignore_pat } => (number, ignore_pat),
        };
        match number {
            0 => f.write_str("uc"),
            1 => f.write_str("wc"),
            4 => f.write_str("wt"),
            5 => f.write_str("wp"),
            6 => f.write_str("wb"),
            _ => write!(f, "mt{number}"),
        }?;
        f.write_str(if ignore_pat { "+ipat" } else { "" })
    }
}

/// Names of bits of an entry: all are told, those without a name as a number.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    entry: Entry,
    bits: u64,
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, bits } = *self;
        let mut comma = "";
        let mut rest = bits;
        for bit in (0..64).filter(|bit| (bits >> bit) & 1 == 1) {
            if let Some(name) = entry.name(bit) {
                write!(f, "{comma}{name}")?;
                rest &= !(1 << bit);
                comma = ",";
            }
        }
        for (mask, name) in entry.fields() {
            if rest & mask != 0 {
                write!(f, "{comma}{name}")?;
                match *mask {
                    GENERATION => write!(f, "{}", entry.mmio_generation())?,
                    mask => write!(f, "{}", (rest & mask) >> mask.trailing_zeros())?,
                }
                rest &= !mask;
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
