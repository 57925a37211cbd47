// SPDX-License-Identifier: GPL-2.0
//! debugfs files of any length: one line after the other, made as they are read.
//!
//! A [`super::debugfs::Table`] is made at once and kept until it is read; a listing of a large file's
//! pages would be megabytes. `seq_file` calls under its own lock, one reader of an open file at a time.
//!
//! C header: [`include/linux/seq_file.h`](srctree/include/linux/seq_file.h)

use super::debugfs::{Dir, File};
use core::{marker::PhantomData, ptr};
use kernel::{
    bindings,
    ffi::{c_int, c_void},
    module::this_module,
    prelude::*,
    seq_file::SeqFile,
    sync::Arc,
};

/// What a read-only file (0444) lists.
pub(crate) trait Listing: Send + Sync + 'static {
    /// A line.
    type Line: Copy;
    /// The line at a position, and the position of the next, which is larger. May sleep.
    fn at(&self, position: u64) -> Option<(Self::Line, u64)>;
    /// Write it.
    fn show(&self, line: &Self::Line, out: &SeqFile);
}

/// Make the file.
pub(crate) fn file<T: Listing>(name: &CStr, dir: &Dir, listing: Arc<T>) -> Result<File> {
    File::with_operations(name, dir, 0o444, listing, &Operations::<T>::FILE)
}

/// What an open file has: where it is.
struct Walk<T: Listing> {
    listing: *const T,
    line: Option<(T::Line, u64)>,
}

/// The operations of a listing's file.
struct Operations<T>(PhantomData<T>);

impl<T: Listing> Operations<T> {
    const FILE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        open: Some(Self::open),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::seq_release_private),
        ..pin_init::zeroed()
    };

    const LINES: bindings::seq_operations = bindings::seq_operations {
        start: Some(Self::start),
        next: Some(Self::next),
        stop: Some(Self::stop),
        show: Some(Self::show),
    };

    /// # Safety
    ///
    /// `inode` and `file` are of a file whose data is a `T`, being opened.
    unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        let size = size_of::<Walk<T>>() as c_int;
        // SAFETY: `file` is being opened; the operations live as long as the module, which it holds.
        let walk = unsafe { bindings::__seq_open_private(file, &Self::LINES, size) };
        if walk.is_null() {
            return ENOMEM.to_errno();
        }
        // SAFETY: Room for one, which `seq_release_private()` frees: nothing in it wants dropping.
        // debugfs put the file's data into `i_private`.
        unsafe {
            walk.cast::<Walk<T>>().write(Walk {
                listing: (*inode).i_private.cast(),
                line: None,
            });
        }
        0
    }

    /// Where a reader of `seq` is.
    ///
    /// # Safety
    ///
    /// `seq` is a live `seq_file` that [`Self::open`] made, and nobody else's for `'a`; so below.
    unsafe fn walk<'a>(seq: *mut bindings::seq_file) -> (&'a T, &'a mut Option<(T::Line, u64)>) {
        // SAFETY: The caller's promise; `open` put it there. The data is a `T` that its `File` keeps
        // until the file is removed, and removal waits for this call.
        unsafe {
            let walk = (*seq).private.cast::<Walk<T>>();
            (&*(*walk).listing, &mut (*walk).line)
        }
    }

    /// # Safety
    ///
    /// As above; `position` is not negative.
    unsafe extern "C" fn start(seq: *mut bindings::seq_file, position: *mut i64) -> *mut c_void {
        // SAFETY: The caller's promise.
        let (listing, line) = unsafe { Self::walk(seq) };
        // SAFETY: As above.
        *line = listing.at(unsafe { *position } as u64);
        match line {
            Some(line) => ptr::from_mut(line).cast(),
            None => ptr::null_mut(),
        }
    }

    /// # Safety
    ///
    /// As above, after a `start` or `next` that gave a line.
    unsafe extern "C" fn next(
        seq: *mut bindings::seq_file,
        _: *mut c_void,
        position: *mut i64,
    ) -> *mut c_void {
        // SAFETY: The caller's promise.
        unsafe {
            if let Some((_, next)) = Self::walk(seq).1 {
                *position = *next as i64;
            }
            Self::start(seq, position)
        }
    }

    /// # Safety
    ///
    /// None: does nothing.
    unsafe extern "C" fn stop(_: *mut bindings::seq_file, _: *mut c_void) {}

    /// # Safety
    ///
    /// As for `next`.
    unsafe extern "C" fn show(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
        // SAFETY: The caller's promise.
        let (listing, line) = unsafe { Self::walk(seq) };
        // SAFETY: `seq` is ours alone for this call.
        let out = unsafe { SeqFile::from_raw(seq) };
        if let Some((line, _)) = line {
            listing.show(line, out);
        }
        0
    }
}
