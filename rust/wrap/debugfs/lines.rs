// SPDX-License-Identifier: GPL-2.0
//! Tables of any length: put together a line at a time, as they are read.
//!
//! What is kept of a reader is a cursor and the number of the line it stands at: a line that did not
//! fit into the reader's buffer is asked for again, and a reader that seeks begins anew. Between two
//! reads nothing is held.

use super::{Dir, File};
use core::{marker::PhantomData, ptr};
use kernel::{
    bindings,
    error::{from_result, to_result},
    ffi::{c_int, c_void},
    module::this_module,
    prelude::*,
    seq_file::SeqFile,
    sync::Arc,
};

/// What a read-only file (0444) shows, a line at a time. All of it may sleep.
pub(crate) trait Lines: Send + Sync + 'static {
    /// Where a reader is.
    type Cursor: Send + 'static;

    /// A reader comes. No lock is held.
    fn open(&self) -> Result<Self::Cursor>;
    /// It is to stand before the first line again.
    fn rewind(&self, cursor: &mut Self::Cursor) -> Result;
    /// Go to the next line; whether there is one. After an error it is tried again.
    fn next(&self, cursor: &mut Self::Cursor) -> Result<bool>;
    /// Write the line, with its end.
    fn show(&self, cursor: &Self::Cursor, out: &SeqFile) -> Result;
}

/// Where a reader stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the line of that number.
    Before(i64),
    /// At it.
    Line(i64),
    /// After the last, at the end.
    End(i64),
}

/// An open file.
struct Reader<T: Lines> {
    lines: *const T,
    at: At,
    cursor: T::Cursor,
}

impl File {
    /// A table of any length: read-only, 0444.
    pub(crate) fn lines<T: Lines>(name: &CStr, dir: &Dir, lines: Arc<T>) -> Result<Self> {
        Self::with_operations(name, dir, 0o444, lines, &Operations::<T>::VTABLE)
    }
}

struct Operations<T>(PhantomData<T>);

impl<T: Lines> Operations<T> {
    const VTABLE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        open: Some(Self::open),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(Self::release),
        ..pin_init::zeroed()
    };
    const SEQUENCE: &'static bindings::seq_operations = &bindings::seq_operations {
        start: Some(Self::start),
        stop: Some(Self::stop),
        next: Some(Self::next),
        show: Some(Self::show),
    };

    /// # Safety
    ///
    /// `inode` and `file` are of a file made by [`File::lines`] with a `T`, being opened.
    unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        from_result(|| {
            // SAFETY: The inode is there; debugfs put the file's data, a `T`, into `i_private`, and
            // does not remove the file while it is being opened.
            let lines: *const T = unsafe { (*inode).i_private }.cast_const().cast();
            // SAFETY: As above.
            let cursor = unsafe { &*lines }.open()?;
            let reader = Reader {
                lines,
                at: At::Before(0),
                cursor,
            };
            let reader = KBox::new(reader, GFP_KERNEL)?;
            // SAFETY: `file` is being opened; the operations are for what is put in below.
            to_result(unsafe { bindings::seq_open(file, Self::SEQUENCE) })?;
            // SAFETY: `seq_open()` has made the `seq_file`, and nobody uses it yet.
            unsafe {
                (*(*file).private_data.cast::<bindings::seq_file>()).private =
                    KBox::into_raw(reader).cast();
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `file` was opened by [`Self::open`], and nobody uses it any more.
    unsafe extern "C" fn release(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The `seq_file` that `open` made, and the reader it put in. The file may have been
        // removed: what the reader's cursor is of is not looked at.
        drop(unsafe {
            KBox::from_raw(
                (*(*file).private_data.cast::<bindings::seq_file>())
                    .private
                    .cast::<Reader<T>>(),
            )
        });
        // SAFETY: As above.
        unsafe { bindings::seq_release(inode, file) }
    }

    /// # Safety
    ///
    /// `seq` is a `seq_file` that [`Self::open`] made, in a call that removal of the file waits for,
    /// and its lock is held.
    unsafe fn reader<'a>(seq: *mut bindings::seq_file) -> (&'a T, &'a mut Reader<T>) {
        // SAFETY: The caller's promise: the reader is there, and ours alone; the `T` is kept by its
        // `File` until removal.
        unsafe {
            let reader = &mut *(*seq).private.cast::<Reader<T>>();
            (&*reader.lines, reader)
        }
    }

    /// Go to the line of that number, where the reader stands or before the first.
    fn go_to(lines: &T, reader: &mut Reader<T>, number: i64) -> Result<bool> {
        if reader.at == At::Line(number) || reader.at == At::End(number) {
            return Ok(reader.at == At::Line(number));
        }
        if reader.at != At::Before(number) {
            reader.at = At::Before(0);
            lines.rewind(&mut reader.cursor)?;
            while let At::Before(at) = reader.at {
                if at == number {
                    break;
                }
                if !lines.next(&mut reader.cursor)? {
                    reader.at = At::End(number);
                    return Ok(false);
                }
                reader.at = At::Before(at + 1);
            }
        }
        let there = lines.next(&mut reader.cursor)?;
        reader.at = match there {
            true => At::Line(number),
            false => At::End(number),
        };
        Ok(there)
    }

    /// What `start` and `next` give: anything but null for a line.
    fn token(seq: *mut bindings::seq_file, there: Result<bool>) -> *mut c_void {
        match there {
            Ok(true) => seq.cast(),
            Ok(false) => ptr::null_mut(),
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// As [`Self::reader`]; `position` may be read.
    unsafe extern "C" fn start(seq: *mut bindings::seq_file, position: *mut i64) -> *mut c_void {
        // SAFETY: The caller's promises.
        let ((lines, reader), number) = unsafe { (Self::reader(seq), *position) };
        // From the beginning means anew.
        if number == 0 {
            reader.at = At::End(-1);
        }
        Self::token(seq, Self::go_to(lines, reader, number))
    }

    /// # Safety
    ///
    /// As [`Self::reader`]; `position` may be read and written.
    unsafe extern "C" fn next(
        seq: *mut bindings::seq_file,
        _: *mut c_void,
        position: *mut i64,
    ) -> *mut c_void {
        // SAFETY: The caller's promises.
        let (lines, reader) = unsafe { Self::reader(seq) };
        // SAFETY: As above.
        let number = unsafe {
            *position += 1;
            *position
        };
        reader.at = At::Before(number);
        Self::token(seq, Self::go_to(lines, reader, number))
    }

    /// # Safety
    ///
    /// Nothing is asked of it.
    unsafe extern "C" fn stop(_: *mut bindings::seq_file, _: *mut c_void) {}

    /// # Safety
    ///
    /// As [`Self::reader`].
    unsafe extern "C" fn show(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
        // SAFETY: The caller's promise.
        let (lines, reader) = unsafe { Self::reader(seq) };
        // SAFETY: `seq` is ours alone for this call.
        let out = unsafe { SeqFile::from_raw(seq) };
        from_result(|| lines.show(&reader.cursor, out).map(|()| 0))
    }
}
