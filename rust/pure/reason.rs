// SPDX-License-Identifier: GPL-2.0
//! Exit reasons as small numbers: an array has an element for each that KVM knows, so that the hot
//! path looks none up.
//!
//! A reason is known by the code that hardware gives (`EXITCODE` on SVM, the exit reason field on
//! VMX). Its [`index`] is what arrays are indexed by. Codes without an index of their own are few
//! and rare; [`super::exits::Record`] keeps them aside.

/// How many indices there are.
pub const INDICES: usize = 0x118;

/// Where the nested-paging codes (0x400 and up) of SVM begin.
const SVM_NESTED: u64 = 0x400;
/// `SVM_EXIT_ERR`: the guest state was refused.
const SVM_ERR: u64 = u64::MAX;
/// `VMX_EXIT_REASONS_FAILED_VMENTRY`
const VMX_FAILED_ENTRY: u64 = 1 << 31;

/// Whose codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AMD
    Svm,
    /// Intel
    Vmx,
}

/// The index of a code, if it has one.
#[inline(always)]
pub const fn index(vendor: Vendor, code: u64) -> Option<usize> {
    match vendor {
        Vendor::Svm => {
            if code < 0x100 {
                Some(code as usize)
            } else if code >= SVM_NESTED && code < SVM_NESTED + 0x10 {
                Some((code - SVM_NESTED) as usize + 0x100)
            } else if code == SVM_ERR {
                Some(0x110)
            } else {
                None
            }
        }
        Vendor::Vmx => {
            // Bits 16 to 30 tell circumstances (SMM, enclave, bus lock), not the reason.
            let basic = code & 0xffff;
            if basic >= 0x80 {
                None
            } else if code & VMX_FAILED_ENTRY != 0 {
                Some(basic as usize + 0x80)
            } else {
                Some(basic as usize)
            }
        }
    }
}

/// The code of an index that [`index`] gave.
pub const fn code(vendor: Vendor, index: usize) -> u64 {
    let index = index as u64;
    match vendor {
        Vendor::Svm if index < 0x100 => index,
        Vendor::Svm if index < 0x110 => index - 0x100 + SVM_NESTED,
        Vendor::Svm => SVM_ERR,
        Vendor::Vmx if index < 0x80 => index,
        Vendor::Vmx => (index - 0x80) | VMX_FAILED_ENTRY,
    }
}

/// The code without what tells circumstances only: what two exits of one reason have in common.
pub const fn canonical(vendor: Vendor, code: u64) -> u64 {
    match vendor {
        Vendor::Svm => code,
        Vendor::Vmx => code & (0xffff | VMX_FAILED_ENTRY),
    }
}

/// The name's code, and whether the entry failed (VMX only), for looking up in a table of names.
pub const fn named(vendor: Vendor, code: u64) -> (u64, bool) {
    match vendor {
        Vendor::Svm => (code, false),
        Vendor::Vmx => (code & 0xffff, code & VMX_FAILED_ENTRY != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VENDORS: [Vendor; 2] = [Vendor::Svm, Vendor::Vmx];

    #[test]
    fn known_codes() {
        assert_eq!(index(Vendor::Svm, 0x7b), Some(0x7b));
        assert_eq!(index(Vendor::Svm, 0x400), Some(0x100));
        assert_eq!(index(Vendor::Svm, 0x403), Some(0x103));
        assert_eq!(index(Vendor::Svm, u64::MAX), Some(0x110));
        assert_eq!(index(Vendor::Svm, 0x8000_0001), None);
        assert_eq!(index(Vendor::Svm, 0x100), None);
        assert_eq!(index(Vendor::Vmx, 30), Some(30));
        // The bus-lock bit beside a reason is no reason.
        assert_eq!(index(Vendor::Vmx, 30 | (1 << 26)), Some(30));
        assert_eq!(index(Vendor::Vmx, 33 | (1 << 31)), Some(33 + 0x80));
        assert_eq!(index(Vendor::Vmx, 0x80), None);
        assert_eq!(named(Vendor::Vmx, 33 | (1 << 31)), (33, true));
    }

    proptest! {
        #[test]
        fn index_and_code_are_inverse(code in prop_oneof![0..0x500u64, any::<u64>(), Just(u64::MAX)]) {
            for vendor in VENDORS {
                if let Some(i) = index(vendor, code) {
                    prop_assert!(i < INDICES);
                    prop_assert_eq!(super::code(vendor, i), canonical(vendor, code));
                }
            }
        }
    }
}
