// SPDX-License-Identifier: GPL-2.0
//! Descriptors that stand for something of ours: it lives until the last of them is closed.
//!
//! They can be passed on and closed, no more. Each holds the module.
//!
//! C header: [`include/linux/anon_inodes.h`](srctree/include/linux/anon_inodes.h)

use crate::raw;
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::from_err_ptr,
    ffi::c_int,
    fs::file::{File, FileDescriptorReservation},
    module::this_module,
    prelude::*,
    sync::aref::ARef,
};

/// Give the current task a descriptor of what `make` makes. What was made is dropped when the last
/// descriptor is closed, or if there can be none. `EMFILE`, `ENFILE`, `ENOMEM`, and what `make` fails
/// with.
pub(crate) fn install<T: Send + Sync + 'static>(
    name: &'static CStr,
    make: impl FnOnce() -> Result<T>,
) -> Result<u32> {
    let reserved = FileDescriptorReservation::get_unused_fd_flags(bindings::O_CLOEXEC)?;
    let room = KBox::<T>::new_uninit(GFP_KERNEL)?;
    let value = KBox::into_raw(KBox::write(room, make()?));
    // SAFETY: The name and the operations live as long as the module, which the file holds; `value`
    // is ours to give, and `release` takes it back.
    let file = from_err_ptr(unsafe {
        raw::anon_inode_getfile(
            name.as_char_ptr(),
            &Operations::<T>::VTABLE,
            value.cast(),
            (bindings::O_RDWR | bindings::O_CLOEXEC) as c_int,
        )
    })
    .inspect_err(|_| {
        // SAFETY: Nobody took it: ours still.
        drop(unsafe { KBox::from_raw(value) });
    })?;
    // SAFETY: A new file, in no table, and the reference to it that we were given.
    let file = unsafe { ARef::from_raw(core::ptr::NonNull::new_unchecked(file.cast::<File>())) };
    let number = reserved.reserved_fd();
    reserved.fd_install(file);
    Ok(number)
}

/// The operations of such a file.
struct Operations<T>(PhantomData<T>);

impl<T: Send + Sync + 'static> Operations<T> {
    const VTABLE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        release: Some(Self::release),
        llseek: Some(bindings::noop_llseek),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `file` is one made by [`install`] with a `T`, at its end.
    unsafe extern "C" fn release(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: What `install` gave, and this is called once.
        drop(unsafe { KBox::from_raw((*file).private_data.cast::<T>()) });
        0
    }
}
