// SPDX-License-Identifier: GPL-2.0
//! debugfs folders and files that own their module.
//!
//! The kernel crate's files have no `owner` in their `file_operations`: a file held open over
//! `rmmod` has its release called in freed code. These have one, so an open file holds the module.
//! Removing a file waits for calls that run in it, and later calls on open descriptors get `EIO`
//! without reaching us; therefore a file's data may be dropped right after its removal.
//!
//! The exception is [`File::byte`], which is the kernel's own `debugfs_create_u8()`: its operations
//! are the kernel's, its open descriptors do not hold the module, and after `rmmod` they get `EIO`.
//!
//! C headers: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h),
//! [`include/linux/seq_file.h`](srctree/include/linux/seq_file.h)

mod lines;
mod question;

pub(crate) use lines::Lines;
pub(crate) use question::Question;

use super::byte::SharedByte;
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::{from_err_ptr, from_result},
    ffi::{c_int, c_void},
    module::this_module,
    prelude::*,
    seq_file::SeqFile,
    sync::Arc,
};

/// What a read-only file (0444) shows.
pub(crate) trait Table: Send + Sync + 'static {
    /// Write the whole text, or fail the read. May sleep.
    fn show(&self, out: &SeqFile) -> Result;
    /// How much room the text needs, if more than a page: what does not fit is made again.
    fn room(&self) -> Option<usize> {
        None
    }
}

/// A number in a file (0644): read as `"%llu\n"`, written in any base `kstrtoull()` knows.
pub(crate) trait Number: Send + Sync + 'static {
    /// The value now. May sleep.
    fn get(&self) -> u64;
    /// Take a new value, or refuse it and change nothing. May sleep.
    fn set(&self, value: u64) -> Result;
}

/// A dentry of ours.
///
/// # Invariants
///
/// The pointer is a dentry made by `debugfs_create_*()` and not removed yet.
struct Dentry(*mut bindings::dentry);

// SAFETY: debugfs' functions on a dentry may be called from any thread in process context.
unsafe impl Send for Dentry {}
// SAFETY: As above; `&Dentry` only gives the pointer to those functions.
unsafe impl Sync for Dentry {}

impl Drop for Dentry {
    fn drop(&mut self) {
        // SAFETY: By the invariant the dentry is there and ours; it is removed only here. This waits
        // for the calls that run in its file operations.
        unsafe { bindings::debugfs_remove(self.0) };
    }
}

/// A folder. Drop its files first: they point to it.
pub(crate) struct Dir(Dentry);

impl Dir {
    /// Make a folder in `parent`, or at debugfs' root. `EEXIST` if the name is taken.
    pub(crate) fn new(name: &CStr, parent: Option<&Dir>) -> Result<Self> {
        let parent = parent.map_or(core::ptr::null_mut(), |dir| dir.0 .0);
        // Look first: debugfs complains in the log about a name that is taken.
        // SAFETY: As below; gives a reference or null.
        let taken = unsafe { bindings::debugfs_lookup(name.as_char_ptr(), parent) };
        if !taken.is_null() {
            // SAFETY: The reference that the look-up gave.
            unsafe { bindings::dput(taken) };
            return Err(EEXIST);
        }
        // SAFETY: `name` ends with a zero byte and is copied; `parent` is null or a dentry that its
        // `Dir` keeps.
        let dentry = unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), parent) };
        let dentry = from_err_ptr(dentry)?;
        // INVARIANT: Just made, and nobody else knows it.
        Ok(Self(Dentry(dentry)))
    }
}

/// A file and what it shows or sets.
pub(crate) struct File {
    // Removed first; after that no call can reach the data.
    _dentry: Dentry,
    _data: Data,
}

/// Keeps a file's data alive whatever its type is.
struct Data {
    ptr: *const c_void,
    drop: unsafe fn(*const c_void),
}

// SAFETY: What is behind `ptr` is an `Arc<T>` with `T: Send + Sync` (`Data::new` asks for it).
unsafe impl Send for Data {}
// SAFETY: As above; and nothing reaches `T` through `&Data`.
unsafe impl Sync for Data {}

impl Data {
    fn new<T: Send + Sync + 'static>(value: Arc<T>) -> (Self, *mut c_void) {
        /// # Safety
        ///
        /// `ptr` comes from `Arc::<T>::into_raw` and is given back once.
        unsafe fn give_back<T>(ptr: *const c_void) {
            // SAFETY: The caller's promise.
            drop(unsafe { Arc::from_raw(ptr.cast::<T>()) });
        }
        let ptr: *const c_void = Arc::into_raw(value).cast();
        let data = Self {
            ptr,
            drop: give_back::<T>,
        };
        (data, ptr.cast_mut())
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        // SAFETY: `ptr` and `drop` were made for each other in `new`, and this runs once.
        unsafe { (self.drop)(self.ptr) }
    }
}

impl File {
    /// A table: read-only, 0444.
    pub(crate) fn table<T: Table>(name: &CStr, dir: &Dir, table: Arc<T>) -> Result<Self> {
        Self::with_operations(name, dir, 0o444, table, &TableOperations::<T>::VTABLE)
    }

    /// A knob with a setter of its own: 0644, in `debugfs_create_u8()`'s format.
    pub(crate) fn number<T: Number>(name: &CStr, dir: &Dir, number: Arc<T>) -> Result<Self> {
        Self::with_operations(name, dir, 0o644, number, &NumberOperations::<T>::VTABLE)
    }

    /// A number that is only written, 0200.
    pub(crate) fn trigger<T: Number>(name: &CStr, dir: &Dir, number: Arc<T>) -> Result<Self> {
        Self::with_operations(name, dir, 0o200, number, &NumberOperations::<T>::VTABLE)
    }

    /// A knob by `debugfs_create_u8()`, 0644, for a byte of which every value is legal and merely
    /// read: a larger number is cut to its low byte, and nobody is told of a change.
    pub(crate) fn byte(name: &CStr, dir: &Dir, byte: Arc<SharedByte>) -> Result<Self> {
        let value = byte.as_ptr();
        let (data, _) = Data::new(byte);
        // SAFETY: The name is copied, the folder is there, and `value` stays valid until `data` is
        // dropped, which is after the file is removed (field order of `File`).
        unsafe { bindings::debugfs_create_u8(name.as_char_ptr(), 0o644, dir.0 .0, value) };
        // `debugfs_create_u8()` tells nothing; the look-up takes a reference that `debugfs_remove()`
        // of a looked-up dentry does not want, so it is put at once: our file keeps it alive.
        // SAFETY: As above; a look-up of a name in a folder that is there.
        let dentry = unsafe { bindings::debugfs_lookup(name.as_char_ptr(), dir.0 .0) };
        if dentry.is_null() {
            return Err(ENOMEM);
        }
        // SAFETY: The reference that `debugfs_lookup()` gave us; debugfs holds another until removal.
        unsafe { bindings::dput(dentry) };
        Ok(Self {
            // INVARIANT: Made above; only we remove it.
            _dentry: Dentry(dentry),
            _data: data,
        })
    }

    pub(super) fn with_operations<T: Send + Sync + 'static>(
        name: &CStr,
        dir: &Dir,
        mode: u16,
        value: Arc<T>,
        operations: &'static bindings::file_operations,
    ) -> Result<Self> {
        let (data, ptr) = Data::new(value);
        // SAFETY: The name is copied; the folder is there; `operations` (of this file and `command`,
        // made for `T`) live as long as the module, which they own; `ptr` points to a `T` until
        // `data` is dropped, which is after the file is removed (field order of `File`).
        let dentry = from_err_ptr(unsafe {
            bindings::debugfs_create_file_full(
                name.as_char_ptr(),
                mode,
                dir.0 .0,
                ptr,
                core::ptr::null(),
                operations,
            )
        })?;
        Ok(Self {
            // INVARIANT: Just made, and nobody else knows it.
            _dentry: Dentry(dentry),
            _data: data,
        })
    }
}

/// The operations of a table's file: `seq_file`'s, around `T::show`.
pub(super) struct TableOperations<T>(PhantomData<T>);

impl<T: Table> TableOperations<T> {
    pub(super) const VTABLE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        open: Some(Self::open),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `inode` and `file` are of a file whose data is a `T`, being opened.
    pub(super) unsafe extern "C" fn open(
        inode: *mut bindings::inode,
        file: *mut bindings::file,
    ) -> c_int {
        // SAFETY: The inode is there; debugfs put the file's data into `i_private`.
        let data = unsafe { (*inode).i_private };
        // SAFETY: A `T` that its `File` keeps until the file is removed, which waits for this call.
        let room = unsafe { &*data.cast::<T>() }.room();
        match room {
            // SAFETY: `file` is being opened, and `show` gets back the data it is made for.
            None => unsafe { bindings::single_open(file, Some(Self::show), data) },
            // SAFETY: As above.
            Some(room) => unsafe { bindings::single_open_size(file, Some(Self::show), data, room) },
        }
    }

    /// # Safety
    ///
    /// `seq` is a live `seq_file` that [`Self::open`] made.
    unsafe extern "C" fn show(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
        // SAFETY: `private` is the pointer given to `single_open()`, a `T` that its `File` keeps
        // until the file is removed, and removal waits for this call.
        let table = unsafe { &*(*seq).private.cast::<T>() };
        // SAFETY: `seq` is ours alone for this call.
        let out = unsafe { SeqFile::from_raw(seq) };
        from_result(|| table.show(out).map(|()| 0))
    }
}

/// The operations of a number's file: libfs' simple attributes, around `T::get` and `T::set`.
struct NumberOperations<T>(PhantomData<T>);

impl<T: Number> NumberOperations<T> {
    const VTABLE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        open: Some(Self::open),
        read: Some(bindings::simple_attr_read),
        write: Some(bindings::simple_attr_write),
        llseek: Some(bindings::generic_file_llseek),
        release: Some(bindings::simple_attr_release),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `inode` and `file` are of a file made by [`File::number`] with a `T`, being opened.
    unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The file is being opened; `get` and `set` are for the data behind this inode; the
        // format takes one `unsigned long long`, as simple attributes print.
        unsafe {
            bindings::simple_attr_open(
                inode,
                file,
                Some(Self::get),
                Some(Self::set),
                c"%llu\n".as_char_ptr(),
            )
        }
    }

    /// # Safety
    ///
    /// `data` is the data of a file made by [`File::number`] with a `T`; `value` may be written.
    unsafe extern "C" fn get(data: *mut c_void, value: *mut u64) -> c_int {
        // SAFETY: A `T` that its `File` keeps until the file is removed, and removal waits for us.
        let number = unsafe { &*data.cast::<T>() };
        // SAFETY: The caller's promise.
        unsafe { value.write(number.get()) };
        0
    }

    /// # Safety
    ///
    /// `data` is the data of a file made by [`File::number`] with a `T`.
    unsafe extern "C" fn set(data: *mut c_void, value: u64) -> c_int {
        // SAFETY: As in `get`.
        let number = unsafe { &*data.cast::<T>() };
        from_result(|| number.set(value).map(|()| 0))
    }
}
