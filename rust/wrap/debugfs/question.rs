// SPDX-License-Identifier: GPL-2.0
//! Files that are asked and answer: a number is written, and a read tells what there is of it.

use super::{Dir, File, Table, TableOperations};
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::{from_result, to_result},
    module::this_module,
    prelude::*,
    sync::Arc,
};

/// A table about a number that was written before (0644).
pub(crate) trait Question: Table {
    /// Take the number, or refuse it and keep the one before. May sleep.
    fn ask(&self, number: u64) -> Result;
}

impl File {
    /// A file to write a number to and to read a table about it from, 0644.
    pub(crate) fn question<T: Question>(name: &CStr, dir: &Dir, asked: Arc<T>) -> Result<Self> {
        Self::with_operations(name, dir, 0o644, asked, &Operations::<T>::VTABLE)
    }
}

struct Operations<T>(PhantomData<T>);

impl<T: Question> Operations<T> {
    const VTABLE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        open: Some(TableOperations::<T>::open),
        read: Some(bindings::seq_read),
        write: Some(Self::write),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `file` was opened by the operation above, in a call that removal of the file waits for; the
    /// VFS has checked the range of user memory.
    unsafe extern "C" fn write(
        file: *mut bindings::file,
        text: *const u8,
        length: usize,
        _: *mut i64,
    ) -> isize {
        let mut number = 0;
        // SAFETY: The `seq_file` of an open file, whose `private` is a `T` that its `File` keeps
        // until the file is removed.
        let asked = unsafe {
            let seq: *mut bindings::seq_file = (*file).private_data.cast();
            &*(*seq).private.cast::<T>()
        };
        from_result(|| {
            // SAFETY: Reads user memory of that length at most, and checks it.
            to_result(unsafe {
                bindings::kstrtoull_from_user(text.cast(), length, 0, &mut number)
            })?;
            asked.ask(number)?;
            Ok(length as isize)
        })
    }
}
