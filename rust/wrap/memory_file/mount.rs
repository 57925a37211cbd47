// SPDX-License-Identifier: GPL-2.0
//! The file system of memory files: a super block for each, its mount and its inode, until their end.
//!
//! C header: [`include/linux/pseudo_fs.h`](srctree/include/linux/pseudo_fs.h)

use super::Head;
use crate::raw;
use core::{cell::UnsafeCell, ptr::NonNull};
use kernel::{
    bindings, error::from_err_ptr, ffi::c_int, module::this_module, prelude::*,
    str::as_char_ptr_in_const_context,
};

/// The type of the super blocks, which the VFS writes to.
#[repr(transparent)]
struct FileSystem(UnsafeCell<bindings::file_system_type>);

// SAFETY: After its initialisation it is written by the VFS only, under `sb_lock`.
unsafe impl Sync for FileSystem {}

static FILE_SYSTEM: FileSystem = FileSystem(UnsafeCell::new(bindings::file_system_type {
    name: as_char_ptr_in_const_context(c"kvmate_gmem"),
    init_fs_context: Some(init_fs_context),
    kill_sb: Some(bindings::kill_anon_super),
    owner: this_module::<crate::LocalModule>().as_ptr(),
    ..pin_init::zeroed()
}));

static SUPER_OPERATIONS: bindings::super_operations = bindings::super_operations {
    statfs: Some(bindings::simple_statfs),
    evict_inode: Some(evict_inode),
    ..pin_init::zeroed()
};

/// # Safety
///
/// `context` is being made for a mount of [`FILE_SYSTEM`].
unsafe extern "C" fn init_fs_context(context: *mut bindings::fs_context) -> c_int {
    // SAFETY: The caller's promise; the operations live as long as the module, which the super block
    // holds.
    unsafe { raw::kvmate_init_pseudo(context, &raw const SUPER_OPERATIONS) }
}

/// A mount, and our reference to it.
pub(super) struct Mount(NonNull<bindings::vfsmount>);

impl Mount {
    /// A mount of a new super block, in no name space.
    pub(super) fn new() -> Result<Self> {
        let of = FILE_SYSTEM.0.get();
        // SAFETY: The type lives as long as the module; it takes no data. SB_KERNMOUNT makes it
        // internal: what ends it ends it at once.
        let mount = unsafe {
            bindings::vfs_kern_mount(
                of,
                raw::SB_KERNMOUNT as c_int,
                (*of).name,
                core::ptr::null_mut(),
            )
        };
        Ok(Self(NonNull::new(from_err_ptr(mount)?).ok_or(ENOMEM)?))
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::vfsmount {
        self.0.as_ptr()
    }

    /// A new inode of its super block.
    pub(super) fn inode(&self) -> Result<Inode> {
        // SAFETY: The mount has its super block.
        let inode = unsafe { bindings::new_inode((*self.0.as_ptr()).mnt_sb) };
        Ok(Inode(NonNull::new(inode).ok_or(ENOMEM)?))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // SAFETY: Our reference.
        unsafe { bindings::mntput(self.0.as_ptr()) };
    }
}

/// An inode, and our reference to it.
pub(super) struct Inode(pub(super) NonNull<bindings::inode>);

impl Drop for Inode {
    fn drop(&mut self) {
        // SAFETY: Our reference.
        unsafe { bindings::iput(self.0.as_ptr()) };
    }
}

/// # Safety
///
/// `inode` is of a super block of ours, and is being evicted.
unsafe extern "C" fn evict_inode(inode: *mut bindings::inode) {
    // SAFETY: The caller's promise. The root's has none.
    let head = unsafe { (*inode).i_private }.cast::<Head>();
    match (NonNull::new(inode), head.is_null()) {
        // SAFETY: Set in `create` together with the function made for it; eviction happens once.
        (Some(inode), false) => unsafe { ((*head).evict)(inode) },
        // SAFETY: What eviction is to do for any inode.
        _ => unsafe { end_pages(inode) },
    }
}

/// # Safety
///
/// `inode` is being evicted.
pub(super) unsafe fn end_pages(inode: *mut bindings::inode) {
    // SAFETY: The caller's promise.
    unsafe {
        bindings::truncate_inode_pages_final((*inode).i_mapping);
        bindings::clear_inode(inode);
    }
}
