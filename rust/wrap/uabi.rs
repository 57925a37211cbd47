// SPDX-License-Identifier: GPL-2.0
//! The types and numbers of `uapi/kvmate.h`, and that they may cross to user space byte for byte.

use crate::raw;
use kernel::{
    str::{CStr, CStrExt as _},
    transmute::{AsBytes, FromBytes},
};

pub(crate) use crate::raw::{
    kvmate_gmem as Gmem, KVMATE_GMEM_CREATE as GMEM_CREATE, KVMATE_GMEM_NODE as GMEM_NODE,
    KVMATE_GMEM_SMALL as GMEM_SMALL,
};
pub(crate) use crate::raw::{
    kvmate_gmem_query as GmemQuery, kvmate_gmem_range as GmemRange,
    kvmate_gmem_record as GmemRecord, KVMATE_GMEM_DIRTY as GMEM_DIRTY,
    KVMATE_GMEM_FILL as GMEM_FILL, KVMATE_GMEM_HOLE as GMEM_HOLE,
    KVMATE_GMEM_LOCKED as GMEM_LOCKED, KVMATE_GMEM_MAPPED as GMEM_MAPPED,
    KVMATE_GMEM_MERGE as GMEM_MERGE, KVMATE_GMEM_PINNED as GMEM_PINNED,
    KVMATE_GMEM_POISONED as GMEM_POISONED, KVMATE_GMEM_QUERY as GMEM_QUERY,
    KVMATE_GMEM_SPLIT as GMEM_SPLIT,
};
pub(crate) use crate::raw::{
    kvmate_gmem_seals as GmemSeals, KVMATE_GMEM_SEALS as GMEM_SEALS,
    KVMATE_GMEM_SEAL_FUTURE_WRITE as GMEM_SEAL_FUTURE_WRITE,
    KVMATE_GMEM_SEAL_SEAL as GMEM_SEAL_SEAL, KVMATE_GMEM_SEAL_WRITE as GMEM_SEAL_WRITE,
};
pub(crate) use crate::raw::{
    kvmate_info as Info, kvmate_irqfd as Irqfd, kvmate_vm_stats as VmStats,
    KVMATE_BIND_IRQFD as BIND_IRQFD, KVMATE_FEATURE_EXITS as FEATURE_EXITS,
    KVMATE_FEATURE_KVM as FEATURE_KVM, KVMATE_FEATURE_POKE as FEATURE_POKE,
    KVMATE_GET_INFO as GET_INFO, KVMATE_GET_VM_STATS as GET_VM_STATS,
    KVMATE_IRQFD_MSI as IRQFD_MSI, KVMATE_IRQFD_RESAMPLE as IRQFD_RESAMPLE,
    KVMATE_VERSION as VERSION,
};

// SAFETY: Integers and byte arrays only, every bit pattern is one, and there is no padding: the sizes
// of the fields (4, 4, 8, 32, 80) add up to the size of the whole.
unsafe impl FromBytes for Info {}
// SAFETY: As above.
unsafe impl AsBytes for Info {}
const _: () = assert!(size_of::<Info>() == 4 + 4 + 8 + 32 + 80);

// SAFETY: Integers and byte arrays only, every bit pattern is one, and there is no padding: the sizes
// of the fields add up to the size of the whole.
unsafe impl FromBytes for Gmem {}
const _: () = assert!(size_of::<Gmem>() == 8 + 4 + 4 + 32 + 16);
// SAFETY: Integers only, of which every bit pattern is one.
unsafe impl FromBytes for Irqfd {}
// SAFETY: As above.
unsafe impl FromBytes for VmStats {}

pub(crate) use crate::raw::{
    kvmate_lookup as LookUp, KVMATE_FOUND_FOLIO as FOUND_FOLIO, KVMATE_FOUND_HOST as FOUND_HOST,
    KVMATE_FOUND_SLOT as FOUND_SLOT, KVMATE_FOUND_STAGE2 as FOUND_STAGE2,
    KVMATE_HOST_ACCESSED as HOST_ACCESSED, KVMATE_HOST_DIRTY as HOST_DIRTY,
    KVMATE_HOST_WRITE as HOST_WRITE, KVMATE_LOOKUP as LOOKUP,
    KVMATE_WHY_SLOT_ALIGNMENT as WHY_FIRST,
};

// SAFETY: Integers only, every bit pattern is one, and there is no padding: the sizes of the fields
// (4, 4, 8, 4, 4, seven of 8, eleven of 4, nine of 4) add up to the size of the whole.
unsafe impl FromBytes for LookUp {}
// SAFETY: As above.
unsafe impl AsBytes for LookUp {}
const _: () = assert!(size_of::<LookUp>() == 4 + 4 + 8 + 4 + 4 + 7 * 8 + 11 * 4 + 9 * 4);

// SAFETY: Integers only, of which every bit pattern is one.
unsafe impl FromBytes for GmemQuery {}
// SAFETY: As above, and there is no padding: the sizes of the fields add up to the size of the whole.
unsafe impl AsBytes for GmemQuery {}
const _: () = assert!(size_of::<GmemQuery>() == 3 * 8 + 2 * 4);
// SAFETY: Integers only, of which every bit pattern is one.
unsafe impl FromBytes for GmemSeals {}
// SAFETY: As above, and two of the same size, so there is no padding.
unsafe impl AsBytes for GmemSeals {}
// SAFETY: Integers only, of which every bit pattern is one.
unsafe impl FromBytes for GmemRange {}
// SAFETY: As above, and there is no padding: the sizes of the fields add up to the size of the whole.
unsafe impl AsBytes for GmemRange {}
const _: () = assert!(size_of::<GmemRange>() == 3 * 8 + 2 * 4 + size_of::<GmemRecord>() + 2 * 8);
// SAFETY: Integers only, and no padding, as above.
unsafe impl AsBytes for GmemRecord {}
const _: () = assert!(size_of::<GmemRecord>() == 2 * 8 + 6 * 4);

/// The vermagic text that this module was built with.
pub(crate) fn vermagic() -> &'static CStr {
    // SAFETY: A constant of the shim's that ends with a zero byte and lives as long as the module.
    unsafe { CStr::from_char_ptr(raw::kvmate_vermagic.as_ptr()) }
}

/// The kernel release that this module was built for.
pub(crate) fn release() -> &'static CStr {
    // SAFETY: As for `vermagic`.
    unsafe { CStr::from_char_ptr(raw::kvmate_release.as_ptr()) }
}
