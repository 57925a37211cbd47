// SPDX-License-Identifier: GPL-2.0
//! What this build takes KVM's structures to look like, and the build ids of the KVM whose headers
//! it was built with: the tables of `rust/raw/layout.c`.

use crate::{pure::layout::Expected, raw};
use core::slice;
use kernel::str::{CStr, CStrExt as _};

/// A module of KVM's of whose structures we use some.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// kvm.ko: `struct kvm`, `struct kvm_vcpu`.
    Kvm,
    /// kvm-amd.ko: `struct vcpu_svm`.
    KvmAmd,
}

impl Owner {
    fn table(self) -> &'static raw::kvmate_layouts {
        // SAFETY: Constants of the C part, which stay as long as the module.
        unsafe {
            match self {
                Self::Kvm => &raw::kvmate_layouts_kvm,
                Self::KvmAmd => &raw::kvmate_layouts_kvm_amd,
            }
        }
    }

    /// The module's name, as in `/sys/module`.
    pub(crate) fn name(self) -> &'static CStr {
        // SAFETY: A literal of the C part's.
        unsafe { CStr::from_char_ptr(self.table().module) }
    }

    /// Whether it is part of vmlinux in the kernel built for.
    pub(crate) fn is_built_in(self) -> bool {
        match self {
            Self::Kvm => cfg!(CONFIG_KVM = "y"),
            Self::KvmAmd => cfg!(CONFIG_KVM_AMD = "y"),
        }
    }

    /// Its structures, as compiled against: those of one structure stand together.
    pub(crate) fn expected(self) -> impl Iterator<Item = Expected<'static>> + Clone {
        let table = self.table();
        // SAFETY: The C part counts its own array.
        let layouts = unsafe { slice::from_raw_parts(table.layout, table.count) };
        layouts.iter().map(|layout| Expected {
            // SAFETY: A literal of the C part's.
            of: unsafe { CStr::from_char_ptr(layout.of) }.to_bytes(),
            // SAFETY: As above.
            path: unsafe { CStr::from_char_ptr(layout.member) }.to_bytes(),
            offset: layout.offset,
            size: layout.size,
        })
    }

    /// Its build id in the tree built against; empty if that was not known.
    pub(crate) fn build_id(self) -> &'static [u8] {
        let table = self.table();
        // SAFETY: The C part measures its own array, whose address is never null.
        unsafe { slice::from_raw_parts(table.build_id, table.build_id_length) }
    }
}
