// SPDX-License-Identifier: GPL-2.0
//! The VFS' calls to a [`MemoryFile`]: from C's arguments to its methods and back.

use super::{
    super::{
        iov::{Destination, Source},
        mapping::Mapping,
    },
    area::Areas,
    mount::end_pages,
    Call, MemoryFile, Mode, Private, Seek,
};
use crate::raw;
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{
    bindings,
    error::{from_result, to_result},
    ffi::{c_int, c_long, c_uint, c_ulong},
    module::this_module,
    prelude::*,
};

/// The operations of a `T`.
pub(super) struct Operations<T>(PhantomData<T>);

impl<T: MemoryFile> Operations<T> {
    pub(super) const FILE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        open: Some(bindings::generic_file_open),
        llseek: Some(Self::llseek),
        read_iter: Some(Self::read_iter),
        write_iter: Some(Self::write_iter),
        splice_read: Some(bindings::copy_splice_read),
        splice_write: Some(bindings::iter_file_splice_write),
        fsync: Some(bindings::noop_fsync),
        fallocate: Some(Self::fallocate),
        unlocked_ioctl: Some(Self::ioctl),
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: bindings::compat_ptr_ioctl,
        mmap_prepare: Some(Areas::<T>::mmap_prepare),
        get_unmapped_area: Some(bindings::thp_get_unmapped_area),
        ..pin_init::zeroed()
    };

    pub(super) const INODE: bindings::inode_operations = bindings::inode_operations {
        getattr: Some(Self::getattr),
        setattr: Some(Self::setattr),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// The inode was made by [`super::create`] with a `T` and lives for `'a`.
    pub(super) unsafe fn of<'a>(inode: *mut bindings::inode) -> &'a T {
        // SAFETY: The caller's promise; `create` put it there.
        unsafe { &(*(*inode).i_private.cast::<Private<T>>()).object }
    }

    /// What a file is, and its mapping.
    ///
    /// # Safety
    ///
    /// An open file with these operations, which stays open for `'a`.
    pub(super) unsafe fn parts<'a>(file: *mut bindings::file) -> (&'a T, &'a Mapping) {
        // SAFETY: The caller's promise; a file has its inode, and keeps it.
        unsafe {
            let inode = (*file).f_inode;
            (Self::of(inode), Mapping::of(NonNull::new_unchecked(inode)))
        }
    }

    /// # Safety
    ///
    /// As for `Head::evict`.
    pub(super) unsafe fn evict(inode: NonNull<bindings::inode>) {
        // SAFETY: `create` put it there.
        let private = unsafe { (*inode.as_ptr()).i_private }.cast::<Private<T>>();
        // The folder goes, and waits for who reads in it; then nobody has a way in.
        // SAFETY: Nobody else touches this member.
        drop(unsafe { (&raw mut (*private).shown).replace(None) });
        // SAFETY: The inode is being evicted, and is there until `end_pages()`.
        unsafe { Self::of(inode.as_ptr()).end(Mapping::of(inode)) };
        // SAFETY: The inode is being evicted.
        unsafe { end_pages(inode.as_ptr()) };
        // SAFETY: It came from `KBox::into_raw()` in `create`, and eviction happens once.
        drop(unsafe { KBox::from_raw(private) });
    }

    /// # Safety
    ///
    /// As for `Head::failed`.
    pub(super) unsafe fn failed(inode: NonNull<bindings::inode>, page: usize) -> Result {
        // SAFETY: The caller's promise.
        unsafe { Self::of(inode.as_ptr()) }.failed(page)
    }

    /// # Safety
    ///
    /// C's contract of the operation, of a file with these operations; so below.
    unsafe extern "C" fn llseek(file: *mut bindings::file, offset: i64, whence: c_int) -> i64 {
        let what = match whence as u32 {
            bindings::SEEK_DATA => Seek::Data,
            bindings::SEEK_HOLE => Seek::Hole,
            // SAFETY: The caller's promise.
            _ => return unsafe { bindings::generic_file_llseek(file, offset, whence) },
        };
        from_result(|| {
            let start = u64::try_from(offset).map_err(|_| ENXIO)?;
            // SAFETY: The caller's promise.
            let (object, mapping) = unsafe { Self::parts(file) };
            let _lock = mapping.lock_inode();
            let found = object.seek(mapping, start, what)?;
            // SAFETY: The caller's promise.
            Ok(unsafe { bindings::vfs_setpos(file, found as i64, i64::MAX) })
        })
    }

    /// # Safety
    ///
    /// As above.
    unsafe extern "C" fn read_iter(
        iocb: *mut bindings::kiocb,
        to: *mut bindings::iov_iter,
    ) -> isize {
        from_result(|| {
            // SAFETY: The caller's promise, for the length of the call.
            let (object, mapping) = unsafe { Self::parts((*iocb).ki_filp) };
            // SAFETY: As above.
            let mut to = unsafe { Destination::new(NonNull::new(to).ok_or(EINVAL)?) };
            // SAFETY: As above; the position is checked by the VFS not to be negative.
            let mut position = unsafe { (*iocb).ki_pos } as u64;
            let read = object.read(mapping, &mut position, &mut to)?;
            // SAFETY: As above.
            unsafe { (*iocb).ki_pos = position as i64 };
            Ok(read as isize)
        })
    }

    /// # Safety
    ///
    /// As above.
    unsafe extern "C" fn write_iter(
        iocb: *mut bindings::kiocb,
        from: *mut bindings::iov_iter,
    ) -> isize {
        from_result(|| {
            // SAFETY: The caller's promise, for the length of the call.
            let file = unsafe { (*iocb).ki_filp };
            // SAFETY: As above.
            let (object, mapping) = unsafe { Self::parts(file) };
            let _lock = mapping.lock_inode();
            // SAFETY: The caller's promise; the inode is locked.
            let allowed = unsafe { bindings::generic_write_checks(iocb, from) };
            if allowed <= 0 {
                to_result(allowed as c_int)?;
                return Ok(0);
            }
            // SAFETY: As above.
            to_result(unsafe { bindings::file_modified(file) })?;
            // SAFETY: The caller's promise, for the length of the call.
            let mut from = unsafe { Source::new(NonNull::new(from).ok_or(EINVAL)?) };
            // SAFETY: As above; not negative by `generic_write_checks()`.
            let mut position = unsafe { (*iocb).ki_pos } as u64;
            let written = object.write(mapping, &mut position, &mut from)?;
            // SAFETY: As above.
            unsafe { (*iocb).ki_pos = position as i64 };
            Ok(written as isize)
        })
    }

    /// # Safety
    ///
    /// As above.
    unsafe extern "C" fn fallocate(
        file: *mut bindings::file,
        mode: c_int,
        offset: i64,
        length: i64,
    ) -> c_long {
        const KEEP: u32 = raw::FALLOCATE_KEEP;
        const PUNCH: u32 = raw::FALLOCATE_PUNCH;
        from_result(|| {
            let mode = match mode as u32 {
                0 | KEEP => Mode::Allocate,
                PUNCH => Mode::Punch,
                _ => return Err(EOPNOTSUPP),
            };
            // SAFETY: The caller's promise, for the length of the call.
            let (object, mapping) = unsafe { Self::parts(file) };
            let _lock = mapping.lock_inode();
            // Before, for a prefix may be done where it fails.
            // SAFETY: The caller's promise; the inode is locked.
            to_result(unsafe { bindings::file_modified(file) })?;
            object.fallocate(mapping, mode, offset as u64, length as u64)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As above.
    unsafe extern "C" fn ioctl(
        file: *mut bindings::file,
        command: c_uint,
        argument: c_ulong,
    ) -> c_long {
        from_result(|| {
            // SAFETY: The caller's promise, for the length of the call.
            let (object, mapping) = unsafe { Self::parts(file) };
            // SAFETY: As above.
            let writable = unsafe { (*file).f_mode } & raw::FMODE_WRITE != 0;
            let call = Call {
                command,
                argument,
                writable,
            };
            Ok(object.ioctl(mapping, &call)? as c_long)
        })
    }

    /// # Safety
    ///
    /// C's contract of the operation, of an inode of ours; so below.
    unsafe extern "C" fn getattr(
        idmap: *mut bindings::mnt_idmap,
        path: *const bindings::path,
        stat: *mut bindings::kstat,
        mask: u32,
        _flags: c_uint,
    ) -> c_int {
        // SAFETY: The caller's promise: a path to an inode of ours.
        unsafe {
            let inode = (*(*path).dentry).d_inode;
            bindings::generic_fillattr(idmap, mask, inode, stat);
            let mapping = Mapping::of(NonNull::new_unchecked(inode));
            (*stat).blocks = mapping.pages() as u64 * 8;
        }
        0
    }

    /// # Safety
    ///
    /// As above.
    unsafe extern "C" fn setattr(
        idmap: *mut bindings::mnt_idmap,
        dentry: *mut bindings::dentry,
        attributes: *mut bindings::iattr,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The caller's promise: an inode of ours, which is locked.
            unsafe {
                to_result(bindings::setattr_prepare(idmap, dentry, attributes))?;
                let inode = (*dentry).d_inode;
                if (*attributes).ia_valid & bindings::ATTR_SIZE != 0
                    && (*attributes).ia_size != (*inode).i_size
                {
                    return Err(EPERM);
                }
                bindings::setattr_copy(idmap, inode, attributes);
            }
            Ok(0)
        })
    }
}
