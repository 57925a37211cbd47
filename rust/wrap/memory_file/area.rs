// SPDX-License-Identifier: GPL-2.0
//! mm's calls to a [`MemoryFile`]: mapping it, and faults in the mappings.

use super::{super::memcg::ChargedTo, operations::Operations, MemoryFile};
use crate::raw;
use core::marker::PhantomData;
use kernel::{bindings, error::from_result, ffi::c_int, prelude::*};

/// Mappings of a `T`.
pub(super) struct Areas<T>(PhantomData<T>);

impl<T: MemoryFile> Areas<T> {
    // No `map_pages`: it would map pages around a fault without the invalidate lock.
    const OPERATIONS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(Self::fault),
        ..pin_init::zeroed()
    };

    /// Before mm looks whether the area can be one with a neighbour: an old one must not lend a new one
    /// the right to write.
    ///
    /// # Safety
    ///
    /// C's contract of the operation, of a file with [`Operations`] of a `T`.
    pub(super) unsafe extern "C" fn mmap_prepare(area: *mut bindings::vm_area_desc) -> c_int {
        from_result(|| {
            // SAFETY: The caller's promise.
            if !unsafe { raw::kvmate_area_may_share(area) } {
                return Err(EINVAL);
            }
            // SAFETY: The caller's promise; the file is open for the length of the call.
            let (object, _) = unsafe { Operations::<T>::parts((*area).vm_file) };
            // SAFETY: The caller's promise.
            if object.is_write_sealed() && !unsafe { raw::kvmate_area_read_only(area) } {
                return Err(EPERM);
            }
            // SAFETY: As above; the operations live as long as the module, which the area's file holds.
            unsafe { (*area).vm_ops = &Self::OPERATIONS };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// C's contract of the operation, of an area that `mmap_prepare` allowed.
    unsafe extern "C" fn fault(fault: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The caller's promise; an area has its file.
        let (index, area) = unsafe {
            let place = &(*fault).__bindgen_anon_1;
            (place.pgoff, place.vma)
        };
        // SAFETY: The area keeps its file, and is there for the length of the call.
        let (object, mapping) = unsafe { Operations::<T>::parts((*area).vm_file) };
        // SAFETY: The caller's promise; an area has its address space.
        let _charged = unsafe { ChargedTo::owner_of((*area).vm_mm) };
        match object.fault(mapping, index) {
            Ok(folio) => {
                // SAFETY: The caller's promise. The page is locked and has a reference, both of which
                // this answer hands over.
                unsafe { (*fault).page = folio.into_page(index) };
                bindings::vm_fault_reason_VM_FAULT_LOCKED
            }
            Err(error) if error == EHWPOISON => bindings::vm_fault_reason_VM_FAULT_HWPOISON,
            Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }
}
