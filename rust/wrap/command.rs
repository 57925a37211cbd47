// SPDX-License-Identifier: GPL-2.0
//! debugfs files that take text: each `write()` is one command.
//!
//! They own their module, as those of [`super::debugfs`].

use super::debugfs::{Dir, File, Table, TableOperations};
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::from_result,
    ffi::c_char,
    module::this_module,
    prelude::*,
    sync::Arc,
    uaccess::{UserPtr, UserSlice},
};

/// The longest command.
const LIMIT: usize = 128;

/// What takes commands.
pub(crate) trait Command: Send + Sync + 'static {
    /// Do it, or fail and do nothing. May sleep. `None`: it is longer than any.
    fn run(&self, text: Option<&[u8]>) -> Result;
}

impl File {
    /// A file that is only written, 0200.
    pub(crate) fn command<T: Command>(name: &CStr, dir: &Dir, command: Arc<T>) -> Result<Self> {
        Self::with_operations(name, dir, 0o200, command, &CommandOperations::<T>::VTABLE)
    }

    /// A table that takes commands too, 0644.
    pub(crate) fn table_and_command<T: Table + Command>(
        name: &CStr,
        dir: &Dir,
        both: Arc<T>,
    ) -> Result<Self> {
        Self::with_operations(name, dir, 0o644, both, &BothOperations::<T>::VTABLE)
    }
}

/// The operations of a command's file.
struct CommandOperations<T>(PhantomData<T>);

impl<T: Command> CommandOperations<T> {
    const VTABLE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        open: Some(bindings::simple_open),
        write: Some(Self::write),
        llseek: Some(bindings::noop_llseek),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `file` is one made by [`File::command`] with a `T`, opened by `simple_open()`.
    unsafe extern "C" fn write(
        file: *mut bindings::file,
        buffer: *const c_char,
        length: usize,
        _: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: The file is open; `simple_open()` put the inode's data there.
        let data = unsafe { (*file).private_data };
        // SAFETY: A `T` that its `File` keeps until the file is removed, and removal waits for us.
        run(unsafe { &*data.cast::<T>() }, buffer, length)
    }
}

/// The operations of a file that is a table and takes commands.
struct BothOperations<T>(PhantomData<T>);

impl<T: Table + Command> BothOperations<T> {
    const VTABLE: bindings::file_operations = bindings::file_operations {
        write: Some(Self::write),
        ..TableOperations::<T>::VTABLE
    };

    /// # Safety
    ///
    /// `file` is one made by [`File::table_and_command`] with a `T`.
    unsafe extern "C" fn write(
        file: *mut bindings::file,
        buffer: *const c_char,
        length: usize,
        _: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: The file is open; its inode has the data that it was made with.
        let data = unsafe { (*(*file).f_inode).i_private };
        // SAFETY: As in `CommandOperations::write`.
        run(unsafe { &*data.cast::<T>() }, buffer, length)
    }
}

/// Take a `write()` as a whole.
fn run<T: Command>(target: &T, buffer: *const c_char, length: usize) -> isize {
    from_result(|| {
        let mut text = [0; LIMIT];
        let text = match text.get_mut(..length) {
            Some(text) => {
                let from = UserPtr::from_addr(buffer.addr());
                UserSlice::new(from, length).reader().read_slice(text)?;
                Some(&*text)
            }
            None => None,
        };
        target.run(text)?;
        Ok(length as isize)
    })
}
