// SPDX-License-Identifier: GPL-2.0
//! Files whose only storage is their page cache: file system, inode and descriptor of each.
//!
//! Each file has a super block of its own, which is made with it and goes with it. The super block
//! holds the module (`file_system_type.owner`) until the very end, when none of our code and data is
//! used any more; open files hold it besides, by their operations' owner, as the VFS wants. Were there
//! one mount for all, the module could go between an open file's end (`fops_put()` in `__fput()`) and
//! its inode's.
//!
//! What a file is stands in its inode's `i_private`: a [`MemoryFile`], and the debugfs files that
//! show it. [`mount`] is the file system, [`mod@operations`] and [`area`] are what the VFS and mm call.
//! `evict_inode` ends them in this order: debugfs (waits for readers), pages, the rest.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/pseudo_fs.h`](srctree/include/linux/pseudo_fs.h)

mod area;
mod mount;
mod operations;

use super::{
    debugfs::{Dir, File as Shown, Table},
    folio::LockedFolio,
    iov::{Destination, Source},
    listing::{self, Listing},
    mapping::Mapping,
};
use crate::raw;
use core::{ffi::CStr, marker::PhantomData, ptr::NonNull};
use kernel::{
    bindings,
    error::{from_err_ptr, from_result, to_result},
    ffi::{c_int, c_uint},
    prelude::*,
    seq_file::SeqFile,
    sync::Arc,
};
use mount::{Inode, Mount};
use operations::Operations;

/// What a file does. All may sleep.
pub(crate) trait MemoryFile: Send + Sync + 'static {
    /// The folio that has the page `index`, made if there is none. An error is the task's `SIGBUS`;
    /// `EHWPOISON` tells it of a memory failure.
    fn fault(&self, mapping: &Mapping, index: usize) -> Result<LockedFolio>;
    /// A page has failed, and goes from the cache when this returns. `ENOMEM`: it stays there, marked.
    /// Its folio is locked.
    fn failed(&self, page: usize) -> Result;
    /// Whether nobody may map it writable from now on.
    fn is_write_sealed(&self) -> bool;
    /// Its pages are about to go, and nobody knows it any more.
    fn end(&self, mapping: &Mapping);
    /// Read from the byte `position` on, advance it.
    fn read(
        &self,
        mapping: &Mapping,
        position: &mut u64,
        to: &mut Destination<'_>,
    ) -> Result<usize>;
    /// Write likewise. The inode lock is held.
    fn write(&self, mapping: &Mapping, position: &mut u64, from: &mut Source<'_>) -> Result<usize>;
    /// Allocate, or punch. The VFS has checked the range. The inode lock is held.
    fn fallocate(&self, mapping: &Mapping, mode: Mode, offset: u64, length: u64) -> Result;
    /// Where data, or a hole, begins at or behind `offset`.
    fn seek(&self, mapping: &Mapping, offset: u64, what: Seek) -> Result<u64>;
    /// `ioctl()`: what the VFS has no call for.
    fn ioctl(&self, mapping: &Mapping, call: &Call) -> Result<isize>;
    /// Write what `info` says.
    fn info(&self, mapping: &Mapping, out: &SeqFile) -> Result;
    /// A line of `map`.
    type Line: Copy;
    /// The line at a page, and the page of the next.
    fn line(&self, mapping: &Mapping, page: u64) -> Option<(Self::Line, u64)>;
    /// Write it.
    fn show_line(&self, line: &Self::Line, out: &SeqFile);
}

/// A call of `ioctl()`.
pub(crate) struct Call {
    /// Its number.
    pub(crate) command: u32,
    /// Its argument.
    pub(crate) argument: usize,
    /// Whether the descriptor is open for writing.
    pub(crate) writable: bool,
}

/// What `fallocate()` is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Fill holes; the size stays.
    Allocate,
    /// Make a hole; the size stays.
    Punch,
}

/// What `lseek()` looks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seek {
    /// `SEEK_DATA`
    Data,
    /// `SEEK_HOLE`
    Hole,
}

/// The head of what is in `i_private`, whatever the file's type.
#[repr(C)]
struct Head {
    /// # Safety
    ///
    /// Called once, with the inode whose `i_private` this is, in its eviction.
    evict: unsafe fn(NonNull<bindings::inode>),
    /// # Safety
    ///
    /// Called with the inode whose `i_private` this is, which is live.
    failed: unsafe fn(NonNull<bindings::inode>, usize) -> Result,
}

/// What is in `i_private`.
#[repr(C)]
struct Private<T: MemoryFile> {
    head: Head,
    shown: Option<([Shown; 2], Dir)>,
    object: T,
}

/// What makes `gmem/<number>/info` and `map` of a file.
struct Info<T>(NonNull<bindings::inode>, PhantomData<fn() -> T>);

// SAFETY: The pointer is used as `parts` says, on whatever thread.
unsafe impl<T> Send for Info<T> {}
// SAFETY: As above.
unsafe impl<T> Sync for Info<T> {}

impl<T: MemoryFile> Info<T> {
    /// The file, and its mapping; for who is in a call of debugfs'.
    fn parts(&self) -> (&T, &Mapping) {
        // SAFETY: The inode's eviction removes the debugfs files first, which waits for calls of
        // theirs: the inode, its mapping and its private data are there.
        unsafe { (Operations::<T>::of(self.0.as_ptr()), Mapping::of(self.0)) }
    }
}

impl<T: MemoryFile> Table for Info<T> {
    fn show(&self, out: &SeqFile) -> Result {
        let (file, mapping) = self.parts();
        file.info(mapping, out)
    }
}

impl<T: MemoryFile> Listing for Info<T> {
    type Line = T::Line;

    fn at(&self, position: u64) -> Option<(T::Line, u64)> {
        let (file, mapping) = self.parts();
        file.line(mapping, position)
    }

    fn show(&self, line: &T::Line, out: &SeqFile) {
        self.parts().0.show_line(line, out);
    }
}

/// How a new file is to be.
pub(crate) struct Creation<'a, T> {
    /// What it does.
    pub(crate) object: T,
    /// Its size in bytes, at most `i64::MAX`.
    pub(crate) size: u64,
    /// What `/proc` shows.
    pub(crate) name: &'a CStr,
    /// Its inode's number.
    pub(crate) number: u64,
    /// Its folder in debugfs.
    pub(crate) dir: Dir,
}

/// Make a file and give the current task a descriptor of it, close-on-exec.
pub(crate) fn create<T: MemoryFile>(new: Creation<'_, T>) -> Result<isize> {
    let private = KBox::<Private<T>>::new_uninit(GFP_KERNEL)?;
    let mount = Mount::new()?;
    let inode = mount.inode()?;
    let raw_inode = inode.0.as_ptr();
    let private = private.write(Private {
        head: Head {
            evict: Operations::<T>::evict,
            failed: Operations::<T>::failed,
        },
        shown: None,
        object: new.object,
    });
    let private = KBox::into_raw(private);
    // SAFETY: The inode is new, and nobody else knows it.
    unsafe {
        (*raw_inode).i_private = private.cast();
        (*raw_inode).i_ino = new.number;
        (*raw_inode).i_size = new.size as i64;
        (*raw_inode).i_op = &Operations::<T>::INODE;
        (*raw_inode).__bindgen_anon_3.i_fop = &Operations::<T>::FILE;
        prepare_cache(inode.0);
        bindings::inode_init_owner(
            &raw mut bindings::nop_mnt_idmap,
            raw_inode,
            core::ptr::null(),
            (bindings::S_IFREG | 0o600) as u16,
        );
        bindings::simple_inode_init_ts(raw_inode);
    }
    let info = Arc::new(Info::<T>(inode.0, PhantomData), GFP_KERNEL)?;
    let shown = [
        Shown::table(c"info", &new.dir, info.clone())?,
        listing::file(c"map", &new.dir, info)?,
    ];
    // SAFETY: Only this function has the inode yet, and `show` does not look at `shown`.
    unsafe { (&raw mut (*private).shown).write(Some((shown, new.dir))) };
    install::<T>(inode, &mount, new.name)
}

/// An inode beside a file's that nobody knows, whose cache is as the file's is. Its only reference.
pub(super) fn spare_inode(mapping: &Mapping) -> Result<NonNull<bindings::inode>> {
    // SAFETY: The mapping's inode is live (its type invariant), and so is its super block.
    let inode = unsafe { bindings::new_inode((*(*mapping.as_ptr()).host).i_sb) };
    let inode = NonNull::new(inode).ok_or(ENOMEM)?;
    // SAFETY: New, and nobody else knows it.
    unsafe { prepare_cache(inode) };
    Ok(inode)
}

/// # Safety
///
/// A new inode that nobody else knows.
unsafe fn prepare_cache(inode: NonNull<bindings::inode>) {
    // SAFETY: The caller's promise; an inode has its mapping.
    unsafe {
        let mapping = (*inode.as_ptr()).i_mapping;
        (*mapping).a_ops = &ADDRESS_SPACE;
        raw::kvmate_mapping_init(mapping);
    }
}

/// A descriptor of a new inode.
fn install<T: MemoryFile>(inode: Inode, mount: &Mount, name: &CStr) -> Result<isize> {
    // SAFETY: `O_CLOEXEC` is a flag that it takes.
    let fd = unsafe { bindings::get_unused_fd_flags(bindings::O_CLOEXEC) };
    to_result(fd)?;
    // SAFETY: The operations live as long as the module. The reference is for the file, whose end puts
    // it; our super block holds the module besides, so it is not refused.
    unsafe { raw::kvmate_fops_get(&Operations::<T>::FILE) };
    // SAFETY: A new inode and a mount of its super block; the name is copied.
    let file = from_err_ptr(unsafe {
        bindings::alloc_file_pseudo(
            inode.0.as_ptr(),
            mount.as_ptr(),
            name.as_char_ptr(),
            (bindings::O_RDWR | bindings::O_LARGEFILE) as c_int,
            &Operations::<T>::FILE,
        )
    });
    match file {
        Ok(file) => {
            // The file has taken over the inode's reference, and one of its own to the mount.
            core::mem::forget(inode);
            // SAFETY: A new file of ours; `fd_install()` takes over our reference to it, and the number.
            unsafe {
                (*file).f_mode |= raw::FMODE_SEEKABLE;
                bindings::fd_install(fd as c_uint, file);
            }
            Ok(fd as isize)
        }
        Err(error) => {
            // SAFETY: The reference taken above, and the number that is unused still.
            unsafe {
                bindings::module_put(Operations::<T>::FILE.owner);
                bindings::put_unused_fd(fd as c_uint);
            }
            Err(error)
        }
    }
}

/// Pages stay where they are until somebody punches them, or they fail: nothing is written back, all may
/// migrate.
static ADDRESS_SPACE: bindings::address_space_operations = bindings::address_space_operations {
    dirty_folio: Some(bindings::noop_dirty_folio),
    migrate_folio: Some(bindings::filemap_migrate_folio),
    error_remove_folio: Some(error_remove_folio),
    ..pin_init::zeroed()
};

/// A page has failed: the file is told, then it goes. What the file cannot take a note of stays, marked
/// as failed; so does a page of a folio that cannot be split, for which this is not called.
///
/// # Safety
///
/// C's contract of the operation, of an inode of ours: the folio is in its mapping and locked.
unsafe extern "C" fn error_remove_folio(
    mapping: *mut bindings::address_space,
    folio: *mut bindings::folio,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller's promise.
        let (inode, index) = unsafe { ((*mapping).host, raw::kvmate_folio_index(folio)) };
        // SAFETY: As above; a spare inode has none.
        let head = unsafe { (*inode).i_private }.cast::<Head>();
        if let (Some(inode), false) = (NonNull::new(inode), head.is_null()) {
            // SAFETY: Set in `create` together with the function made for it; the folio's lock keeps
            // its mapping's inode.
            unsafe { ((*head).failed)(inode, index) }?;
        }
        // SAFETY: The caller's promise.
        Ok(unsafe { bindings::generic_error_remove_folio(mapping, folio) })
    })
}
