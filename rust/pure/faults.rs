// SPDX-License-Identifier: GPL-2.0
//! What is recorded of one vCPU's page faults that made it exit: what kind, in which memslot, and
//! where most.
//!
//! One writer, which stays on its CPU; readers get each counter as it is when they read it, and the
//! hottest ranges all of one moment.

use super::{keyed::Keys, reason::Vendor, sketch::Sketch};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many classes there are.
pub const CLASSES: usize = 32;
/// How many memslots a vCPU can have apart, at most.
pub const SLOTS: usize = 64;
/// The ranges that are looked for: 2 MiB.
pub const RANGE_SHIFT: u32 = 21;

/// What a fault's error code says. No bit of the first two: a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(u8);

impl Class {
    const WRITE: u8 = 1;
    const EXEC: u8 = 1 << 1;
    const PRESENT: u8 = 1 << 2;
    const USER: u8 = 1 << 3;
    const WALK: u8 = 1 << 4;

    /// That of an error code as KVM tells it: on VMX the exit qualification of an EPT violation, else
    /// (`PFERR_*`) that of a page fault.
    pub fn new(format: Format, code: u64) -> Self {
        let bit = |number: u32, is: u8| if (code >> number) & 1 == 1 { is } else { 0 };
        Self(match format {
            Format::PageFault => {
                bit(0, Self::PRESENT)
                    | bit(1, Self::WRITE)
                    | bit(2, Self::USER)
                    | bit(4, Self::EXEC)
                    | bit(33, Self::WALK)
            }
            Format::EptViolation => {
                let translated = (code >> 7) & 0b11;
                let present = bit(3, Self::PRESENT) | bit(4, Self::PRESENT) | bit(5, Self::PRESENT);
                bit(1, Self::WRITE)
                    | bit(2, Self::EXEC)
                    | present
                    // The linear address is known: 0b01 in its tables, 0b11 in what they lead to.
                    | if translated == 0b01 { Self::WALK } else { 0 }
                    | if translated == 0b11 { bit(9, Self::USER) } else { 0 }
            }
        })
    }

    /// The class with a number below [`CLASSES`].
    pub fn of_number(number: usize) -> Self {
        Self(number as u8 & (CLASSES as u8 - 1))
    }

    /// Its number.
    pub fn number(self) -> usize {
        self.0.into()
    }

    /// Its name's parts.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let is = move |bit: u8, name| (self.0 & bit != 0).then_some(name);
        let read = self.0 & (Self::WRITE | Self::EXEC) == 0;
        [
            read.then_some("read"),
            is(Self::WRITE, "write"),
            is(Self::EXEC, "exec"),
            is(Self::PRESENT, "present"),
            is(Self::USER, "user"),
            is(Self::WALK, "walk"),
        ]
        .into_iter()
        .flatten()
    }
}

/// What an error code's bits mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `PFERR_*`
    PageFault,
    /// `EPT_VIOLATION_*`
    EptViolation,
}

/// What a fault's code means, and whether its address is known to be guest-physical, by why the guest
/// exited for it: a nested page fault has such an address, an intercepted `#PF` (shadow paging) a
/// guest-virtual one. Without a known exit (its guest hides it, or the record was begun anew since) the
/// address may be either, and the code is taken for a nested fault's.
pub fn kind(vendor: Vendor, code: Option<u64>) -> (Format, bool) {
    const SVM_PF: u64 = 0x4e;
    const VMX_EXCEPTION: u64 = 0;
    match (vendor, code) {
        (Vendor::Svm, Some(SVM_PF)) | (Vendor::Vmx, Some(VMX_EXCEPTION)) => {
            (Format::PageFault, false)
        }
        (Vendor::Svm, exit) => (Format::PageFault, exit.is_some()),
        (Vendor::Vmx, exit) => (Format::EptViolation, exit.is_some()),
    }
}

/// The memslot of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// By its number, with its address space's above bit 16.
    Number(u32),
    /// There is no memory (MMIO).
    None,
    /// One of those that had no place.
    Other,
    /// The address is not a guest-physical one.
    Unknown,
}

/// What is recorded. All zero bytes is the state without any fault.
pub struct Faults {
    classes: [AtomicU64; CLASSES],
    keys: Keys<SLOTS>,
    slots: [AtomicU64; SLOTS],
    none: AtomicU64,
    other: AtomicU64,
    unknown: AtomicU64,
    ranges: Sketch,
}

fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

impl Faults {
    /// The writer: a fault of that class; at a guest-physical address, in the memslot with that
    /// number, if there is one.
    pub fn fault(&self, class: Class, gpa: Option<u64>, slot: Option<u32>) {
        if let Some(class) = self.classes.get(class.number()) {
            bump(class);
        }
        match gpa {
            Some(gpa) => self.ranges.hit(gpa >> RANGE_SHIFT),
            None => return bump(&self.unknown),
        }
        let Some(slot) = slot else {
            return bump(&self.none);
        };
        let place = self.keys.place(slot);
        bump(
            place
                .and_then(|place| self.slots.get(place))
                .unwrap_or(&self.other),
        );
    }

    /// A reader: how many there were of a class.
    pub fn class(&self, class: Class) -> u64 {
        self.classes
            .get(class.number())
            .map_or(0, |count| count.load(Relaxed))
    }

    /// A reader: how many there were in each memslot.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, u64)> + '_ {
        let known = self.keys.all().filter_map(|(slot, place)| {
            Some((Slot::Number(slot), self.slots.get(place)?.load(Relaxed)))
        });
        let rest = [
            (Slot::None, &self.none),
            (Slot::Other, &self.other),
            (Slot::Unknown, &self.unknown),
        ];
        known
            .chain(rest.map(|(slot, count)| (slot, count.load(Relaxed))))
            .filter(|&(_, count)| count > 0)
    }

    /// Where there were most, in ranges of 2 MiB.
    pub fn ranges(&self) -> &Sketch {
        &self.ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(format: Format, code: u64) -> String {
        Class::new(format, code)
            .names()
            .collect::<Vec<_>>()
            .join(",")
    }

    #[test]
    fn classes_of_page_faults() {
        let name = |code| name(Format::PageFault, code);
        assert_eq!(name(0), "read");
        assert_eq!(name(0b111), "write,present,user");
        // SVM: a nested fault of the guest's own access, and of its page tables.
        assert_eq!(name((1 << 32) | 0b10110), "write,exec,user");
        assert_eq!(name((1 << 33) | 0b110), "write,user,walk");
    }

    #[test]
    fn classes_of_ept_violations() {
        let name = |code| name(Format::EptViolation, code);
        assert_eq!(name(0x181), "read");
        assert_eq!(name(0x182), "write");
        assert_eq!(name(0x184), "exec");
        assert_eq!(name(0x182 | (1 << 3)), "write,present");
        assert_eq!(name(0x081), "read,walk");
        assert_eq!(name(0x381), "read,user");
        // Without a linear address nothing is known of it.
        assert_eq!(name(0x201), "read");
    }

    #[test]
    fn numbers_and_classes_are_inverse() {
        for number in 0..CLASSES {
            assert_eq!(Class::of_number(number).number(), number);
        }
    }

    #[test]
    fn whose_address() {
        assert_eq!(kind(Vendor::Svm, Some(0x400)), (Format::PageFault, true));
        assert_eq!(kind(Vendor::Svm, Some(0x4e)), (Format::PageFault, false));
        assert_eq!(kind(Vendor::Vmx, Some(48)), (Format::EptViolation, true));
        assert_eq!(kind(Vendor::Vmx, Some(0)), (Format::PageFault, false));
        assert_eq!(kind(Vendor::Svm, None), (Format::PageFault, false));
        assert_eq!(kind(Vendor::Vmx, None), (Format::EptViolation, false));
    }
}
