// SPDX-License-Identifier: GPL-2.0
//! Descriptors that stand for something of ours: it lives until the last of them is closed.
//!
//! They can be passed on and closed; those with [`Content`] also read. Each holds the module.
//!
//! C header: [`include/linux/anon_inodes.h`](srctree/include/linux/anon_inodes.h)

use crate::raw;
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::{from_err_ptr, from_result},
    ffi::c_int,
    fs::file::{File, FileDescriptorReservation},
    iov::IovIterDest,
    module::this_module,
    prelude::*,
    sync::aref::ARef,
};

/// What can be read, from any offset below a size that never changes.
pub(crate) trait Content: Send + Sync + 'static {
    /// The size.
    fn size(&self) -> i64;
    /// Write what stands from `position` on, and move that. May sleep.
    fn read(&self, to: &mut IovIterDest<'_>, position: &mut i64) -> Result<usize>;
}

/// Give the current task a descriptor of what `make` makes. What was made is dropped when the last
/// descriptor is closed, or if there can be none. `EMFILE`, `ENFILE`, `ENOMEM`, and what `make` fails
/// with.
pub(crate) fn install<T: Send + Sync + 'static>(
    name: &'static CStr,
    make: impl FnOnce() -> Result<T>,
) -> Result<u32> {
    let access = (bindings::O_RDWR, 0);
    install_with(name, &Operations::<T>::VTABLE, access, make)
}

/// As [`install`], of something to be read.
pub(crate) fn install_content<T: Content>(
    name: &'static CStr,
    make: impl FnOnce() -> Result<T>,
) -> Result<u32> {
    let access = (bindings::O_RDONLY, raw::FMODE_READABLE);
    install_with(name, &Operations::<T>::READABLE, access, make)
}

/// `operations` are for a `T`; `access`: flags and mode.
fn install_with<T: Send + Sync + 'static>(
    name: &'static CStr,
    operations: &'static bindings::file_operations,
    (flags, mode): (u32, u32),
    make: impl FnOnce() -> Result<T>,
) -> Result<u32> {
    let reserved = FileDescriptorReservation::get_unused_fd_flags(bindings::O_CLOEXEC)?;
    let room = KBox::<T>::new_uninit(GFP_KERNEL)?;
    let value = KBox::into_raw(KBox::write(room, make()?));
    // SAFETY: The name and the operations live as long as the module, which the file holds; `value`
    // is ours to give, and `release` takes it back.
    let file = from_err_ptr(unsafe {
        raw::anon_inode_getfile_fmode(
            name.as_char_ptr(),
            operations,
            value.cast(),
            (flags | bindings::O_CLOEXEC) as c_int,
            mode,
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

/// The operations of such a file, whose private data is what `install_with` was given.
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

impl<T: Content> Operations<T> {
    const READABLE: bindings::file_operations = bindings::file_operations {
        read_iter: Some(Self::read_iter),
        llseek: Some(Self::llseek),
        ..Self::VTABLE
    };

    /// # Safety
    ///
    /// `file` is one made by [`install_with`] with a `T`, open while the result is used.
    unsafe fn content<'a>(file: *mut bindings::file) -> &'a T {
        // SAFETY: What `install_with` gave, which `release` drops after the last call.
        unsafe { &*(*file).private_data.cast::<T>() }
    }

    /// # Safety
    ///
    /// A call of the VFS' for an open file made by [`install_with`] with a `T`.
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        to: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: The VFS' own, and its file is open (caller's promise).
        let content = unsafe { Self::content((*kiocb).ki_filp) };
        // SAFETY: The VFS gives both for the length of this call.
        let (position, to) = unsafe { (&mut (*kiocb).ki_pos, IovIterDest::from_raw(to)) };
        from_result(|| content.read(to, position).map(|read| read as isize))
    }

    /// # Safety
    ///
    /// As [`Self::read_iter`].
    unsafe extern "C" fn llseek(file: *mut bindings::file, offset: i64, whence: c_int) -> i64 {
        // SAFETY: The caller's promise.
        let size = unsafe { Self::content(file) }.size();
        // SAFETY: An open file.
        unsafe { bindings::fixed_size_llseek(file, offset, whence, size) }
    }
}
