// SPDX-License-Identifier: GPL-2.0
//! Why a guest's memory is mapped by pages of 4 KiB where one of 2 MiB could be.

/// How many pages of 4 KiB one of 2 MiB has.
const LARGE: u64 = 512;
/// In KVM's count of what is against a large page: the block is private and shared
/// (`KVM_LPAGE_MIXED_FLAG`).
const MIXED: u32 = 1 << 31;

/// A reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Guest and host addresses of the slot are not aligned to each other.
    SlotAlignment,
    /// The block of 2 MiB is not all in one slot.
    Edge,
    /// The slot's dirty pages are logged.
    DirtyLog,
    /// Writes to a page of the block are tracked.
    WriteTracked,
    /// The block has several mappings on the host, or is partly private.
    MixedPermissions,
    /// The host maps it by 4 KiB.
    Host4k,
    /// It was executed, and KVM gives guests no executable large pages.
    NxRecovery,
    /// None of these.
    Unknown,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::SlotAlignment,
        Self::Edge,
        Self::DirtyLog,
        Self::WriteTracked,
        Self::MixedPermissions,
        Self::Host4k,
        Self::NxRecovery,
        Self::Unknown,
    ];

    /// Its name in a table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SlotAlignment => "slot-alignment",
            Self::Edge => "edge",
            Self::DirtyLog => "dirty-log",
            Self::WriteTracked => "write-tracked",
            Self::MixedPermissions => "mixed-permissions",
            Self::Host4k => "host-4k",
            Self::NxRecovery => "nx-recovery",
            Self::Unknown => "unknown",
        }
    }
}

/// A memslot, as far as it matters; numbers are of pages.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The first frame.
    pub gfn: u64,
    /// How many.
    pub pages: u64,
    /// The host's address.
    pub hva: u64,
    /// Whether dirty pages are logged.
    pub dirty_log: bool,
    /// What KVM counts against a large page in this block.
    pub disallow: u32,
}

/// The host's mapping of the block, as far as it matters.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// From this address,
    pub start: u64,
    /// to before this one.
    pub end: u64,
    /// The level that the page is mapped at, 0 if it is not.
    pub level: u8,
}

impl Slot {
    /// Whether the slot itself rules out a large page for the block with this frame.
    pub fn rules_out(&self, gfn: u64) -> Option<Reason> {
        let block = gfn - gfn % LARGE;
        if (self.gfn ^ (self.hva >> 12)) % LARGE != 0 {
            Some(Reason::SlotAlignment)
        } else if block < self.gfn || block + LARGE > self.gfn + self.pages {
            Some(Reason::Edge)
        } else if self.dirty_log {
            Some(Reason::DirtyLog)
        } else if self.disallow & MIXED != 0 {
            Some(Reason::MixedPermissions)
        } else if self.disallow != 0 {
            Some(Reason::WriteTracked)
        } else {
            None
        }
    }

    /// The host's address of the block with this frame, which is all in the slot.
    pub fn block(&self, gfn: u64) -> u64 {
        self.hva + ((gfn - gfn % LARGE - self.gfn) << 12)
    }
}

/// The reason for a leaf of 4 KiB at `gfn`. `nx`: KVM gives this VM no executable large pages, and
/// the leaf is executable.
pub fn why(gfn: u64, slot: &Slot, host: Option<Host>, nx: bool) -> Reason {
    if let Some(reason) = slot.rules_out(gfn) {
        return reason;
    }
    let block = slot.block(gfn);
    match host {
        Some(host) if block < host.start || block + (LARGE << 12) > host.end => {
            Reason::MixedPermissions
        }
        Some(host) if host.level > 1 && nx => Reason::NxRecovery,
        Some(host) if host.level > 1 => Reason::Unknown,
        _ => Reason::Host4k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = Slot {
        gfn: 0x300,
        pages: 0x800,
        hva: 0x7f00_0030_0000,
        dirty_log: false,
        disallow: 0,
    };
    const HOST: Host = Host {
        start: 0x7f00_0030_0000,
        end: 0x7f00_00b0_0000,
        level: 1,
    };

    #[test]
    fn each_reason() {
        let at = |gfn, slot: Slot, host| why(gfn, &slot, host, false);
        assert_eq!(at(0x4ff, SLOT, Some(HOST)), Reason::Host4k);
        assert_eq!(at(0x4ff, SLOT, None), Reason::Host4k);
        let large = Host { level: 2, ..HOST };
        assert_eq!(at(0x4ff, SLOT, Some(large)), Reason::Unknown);
        assert_eq!(why(0x4ff, &SLOT, Some(large), true), Reason::NxRecovery);
        assert_eq!(why(0x4ff, &SLOT, Some(HOST), true), Reason::Host4k);
        // 0x300 to 0x3ff are of the block from 0x200 on, 0xa00 to 0xaff of one that goes on.
        for (gfn, edge) in [
            (0x300, true),
            (0x3ff, true),
            (0x400, false),
            (0x9ff, false),
            (0xa00, true),
            (0xaff, true),
        ] {
            let found = at(gfn, SLOT, Some(HOST));
            assert_eq!(found == Reason::Edge, edge, "{gfn:#x}: {found:?}");
        }
        for unaligned in [0x1000, 0x10_0000] {
            let hva = SLOT.hva + unaligned;
            let found = at(0x4ff, Slot { hva, ..SLOT }, Some(HOST));
            assert_eq!(found, Reason::SlotAlignment);
        }
        let logged = Slot {
            dirty_log: true,
            ..SLOT
        };
        assert_eq!(at(0x4ff, logged, Some(large)), Reason::DirtyLog);
        assert_eq!(at(0x3ff, logged, Some(large)), Reason::Edge);
        for (disallow, reason) in [
            (1, Reason::WriteTracked),
            (1 << 31, Reason::MixedPermissions),
            ((1 << 31) | 1, Reason::MixedPermissions),
        ] {
            let slot = Slot { disallow, ..SLOT };
            assert_eq!(at(0x4ff, slot, Some(large)), reason);
        }
        // The block from 0x400 on is at 0x7f00_0040_0000.
        for (start, end, mixed) in [
            (0x7f00_0040_0000, 0x7f00_0060_0000, false),
            (0x7f00_0040_1000, 0x7f00_0060_0000, true),
            (0x7f00_0040_0000, 0x7f00_005f_f000, true),
        ] {
            let host = Host {
                start,
                end,
                level: 1,
            };
            let found = at(0x4ff, SLOT, Some(host));
            assert_eq!(found == Reason::MixedPermissions, mixed, "{found:?}");
        }
    }

    #[test]
    fn names_are_words() {
        for reason in Reason::ALL {
            assert!(!reason.name().contains(' '));
        }
        assert_eq!(
            Reason::ALL.map(|reason| reason as usize),
            [0, 1, 2, 3, 4, 5, 6, 7]
        );
    }
}
