// SPDX-License-Identifier: GPL-2.0
//! Files of sysfs, read from inside, where the kernel has no other door to what they show.
//!
//! They are looked up in the current task's name space, so sysfs must be mounted there, at `/sys`;
//! a file of any other file system is refused.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h)

use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_err_ptr,
    ffi::{c_int, c_ulong},
    prelude::*,
};

/// An open file.
///
/// # Invariants
///
/// A file of sysfs that `filp_open()` gave, and whose reference is ours.
struct File(NonNull<bindings::file>);

impl File {
    fn open(path: &CStr) -> Result<Self> {
        let flags = bindings::O_RDONLY as c_int;
        // SAFETY: The path ends with a zero byte. Process context, in which all our callers are.
        let file = from_err_ptr(unsafe { bindings::filp_open(path.as_char_ptr(), flags, 0) })?;
        // INVARIANT: `filp_open()` gave us the reference; what it is a file of is asked next, before
        // anyone has it.
        let file = Self(NonNull::new(file).ok_or(ENOENT)?);
        // SAFETY: An open file has an inode, which has a superblock, and keeps both.
        let magic = unsafe { (*(*file.inode()).i_sb).s_magic };
        if magic != bindings::SYSFS_MAGIC as c_ulong {
            return Err(EXDEV);
        }
        Ok(file)
    }

    fn inode(&self) -> *mut bindings::inode {
        // SAFETY: The file is open (type invariant); its inode does not change.
        unsafe { (*self.0.as_ptr()).f_inode }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: The reference is ours (type invariant), and given back once.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}

/// Whether sysfs stands at `/sys`.
pub(crate) fn is_mounted() -> bool {
    File::open(c"/sys/module").is_ok()
}

/// The whole of a file. `EFBIG` if it has more than `limit` bytes, `EXDEV` if it is none of sysfs.
/// Sleeps.
pub(crate) fn read(path: &CStr, limit: usize) -> Result<KVVec<u8>> {
    let file = File::open(path)?;
    // SAFETY: The inode is there as long as its open file; sysfs sets a file's size once.
    let size = usize::try_from(unsafe { (*file.inode()).i_size })?;
    if size > limit {
        return Err(EFBIG);
    }
    let mut bytes = KVVec::with_capacity(size, GFP_KERNEL)?;
    let mut position = 0;
    while bytes.len() < size {
        let space = bytes.spare_capacity_mut();
        // SAFETY: `space` is writable for its length, and `position` is ours. sysfs reads at most a
        // page at a time.
        let count = unsafe {
            bindings::kernel_read(
                file.0.as_ptr(),
                space.as_mut_ptr().cast(),
                space.len(),
                &mut position,
            )
        };
        match kernel::error::to_result(count as c_int).map(|()| count as usize)? {
            0 => break,
            // SAFETY: `kernel_read()` has written that many bytes to the start of the spare
            // capacity, which is at least as long.
            count => unsafe { bytes.inc_len(count) },
        }
    }
    Ok(bytes)
}
