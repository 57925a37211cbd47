// SPDX-License-Identifier: GPL-2.0
//! mm's calls to a [`MemoryFile`]: mapping it, and faults in the mappings.

use super::{super::memcg::ChargedTo, operations::Operations, MemoryFile};
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::from_result,
    ffi::c_int,
    mm::virt::{flags, VmaNew},
    prelude::*,
};

/// Mappings of a `T`.
pub(super) struct Areas<T>(PhantomData<T>);

impl<T: MemoryFile> Areas<T> {
    // No `map_pages`: it would map pages around a fault without the invalidate lock.
    const OPERATIONS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(Self::fault),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// C's contract of the operation, of a file with [`Operations`] of a `T`.
    pub(super) unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        area: *mut bindings::vm_area_struct,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The area is being made.
            let new = unsafe { VmaNew::from_raw(area) };
            if new.flags() & flags::MAYSHARE == 0 {
                return Err(EINVAL);
            }
            // Who seals sees to it that this is asked either after it is sealed, or before it looks who
            // has it mapped: mm counts us as one who has before it calls.
            // SAFETY: The caller's promise, for the length of the call.
            if unsafe { Operations::<T>::parts(file) }.0.is_write_sealed() {
                // Fails for a writable one.
                new.try_clear_maywrite().map_err(|_| EPERM)?;
            }
            // SAFETY: As above; the operations live as long as the module, which the area's file holds.
            unsafe { (*area).vm_ops = &Self::OPERATIONS };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// C's contract of the operation, of an area that `mmap` made.
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
