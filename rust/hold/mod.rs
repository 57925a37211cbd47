// SPDX-License-Identifier: GPL-2.0
//! Hold: gmem, memory files for guests, with 2 MiB folios and exact holes.
//!
//! [`Gmem`] is what all files share; [`mod@file`] one of them. [`fill`] makes its pages, [`punch`]
//! takes them, [`io`] is `read()`, `write()` and `lseek()`, [`mod@reshape`] calls [`split`] and
//! [`merge`], what those were refused is a [`refused`], [`mod@seal`] has who may write, [`failed`] where
//! memory failed, [`poison`] gets such pages out, [`query`] tells what is where, [`stats`] is what `info`
//! shows, [`traced`] what is traced.
//!
//! # Who owns what
//!
//! A file's pages belong to its inode's page cache, and are all it has: nothing is swapped, written
//! back or reclaimed. The inode owns the `File` too, and its debugfs folder
//! ([`crate::wrap::memory_file`]); descriptors, mappings and thereby VMs own the inode. When the last
//! of them goes, from whichever process and task work, the folder goes, then the pages. The inode's
//! super block holds the module, so unloading never meets a file. A `File` keeps [`Gmem`] by a
//! reference count.
//!
//! # Locks
//!
//! From the outside in; all sleep.
//! 1. the inode lock: one `write()`, `fallocate()` or `lseek()` to data or holes, one folio's split or the step
//!    that puts a merged one in its place, or one call for seals at a time;
//! 2. the caller's `mmap_lock`, when mm calls for a fault;
//! 3. the mapping's invalidate lock: shared by whoever adds pages or looks into them (fault, read, write,
//!    allocate), taken alone to punch, split and merge; alone too, without the inode lock, by a fault that
//!    gets out a page that failed, and by the file's end. Nothing faults under it: `read()` and `write()` make the caller's
//!    buffer present first and copy with faults off;
//! 4. a folio's lock. A fault gives the locked folio to mm, which maps it and unlocks it without the
//!    invalidate lock; therefore whoever removes, splits or merges takes the folio's lock too and unmaps
//!    once more under it (the kernel's truncation does, and `merge`). Only a merge takes several, all
//!    of a block in order.
//!
//! # A punch
//!
//! Alone with the mapping: unmap the whole pages of the hole everywhere (page tables, guests' by MMU
//! notifiers), at once, for splitting and removing do it too, but folio by folio; split the folios that
//! reach over its two edges; look which still do, for a folio that somebody holds a reference to cannot be
//! split; zero the bytes that stay; remove the whole folios between. Large holes go by parts of 1 GiB,
//! between which signals are looked at; where the file has nothing they are passed over.

mod failed;
mod file;
mod fill;
mod io;
mod merge;
mod poison;
mod punch;
mod query;
mod refused;
mod reshape;
mod seal;
mod split;
mod stats;
mod traced;

use crate::{
    pure::{hole::PAGE_SHIFT, range::Range},
    trace::Trace,
    wrap::{
        debugfs::Dir,
        folio::{Node, PMD_ORDER},
        memory_file::{self, Creation},
    },
};
use file::File;
use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
};

/// `gmem_order`: the largest order of new folios.
pub(crate) const ORDER: Range = Range {
    min: 0,
    max: PMD_ORDER as u64,
};

/// How a file is to be.
pub(crate) struct Wish<'a> {
    /// In bytes.
    pub(crate) size: u64,
    /// Pages of 4 KiB only.
    pub(crate) small: bool,
    /// Where its memory comes from.
    pub(crate) node: Node,
    /// For people.
    pub(crate) name: &'a CStr,
}

/// What all files share.
pub(crate) struct Gmem {
    /// The largest order for new folios.
    order: Atomic<u64>,
    /// How many files were made: their inodes' numbers.
    made: Atomic<u64>,
    dir: Dir,
    trace: Arc<Trace>,
}

impl Gmem {
    /// No files yet; theirs will be folders of `dir`.
    pub(crate) fn new(dir: Dir, trace: Arc<Trace>) -> Result<Arc<Self>> {
        let gmem = Self {
            order: Atomic::new(ORDER.max),
            made: Atomic::new(0),
            dir,
            trace,
        };
        Ok(Arc::new(gmem, GFP_KERNEL)?)
    }

    /// Make a file and give the current task a descriptor of it.
    pub(crate) fn create(self: &Arc<Self>, wish: &Wish<'_>) -> Result<isize> {
        if wish.size == 0 || wish.size > i64::MAX as u64 || wish.size % (1 << PAGE_SHIFT) != 0 {
            return Err(EINVAL);
        }
        // The super block's root has number 1.
        let number = self.made.fetch_add(1, Relaxed) + 2;
        let dir = CString::try_from_fmt(fmt!("{number}"))?;
        memory_file::create(Creation {
            object: File::new(self.clone(), wish, number)?,
            size: wish.size,
            name: &CString::try_from_fmt(fmt!("gmem:{}", wish.name))?,
            number,
            dir: Dir::new(&dir, Some(&self.dir))?,
        })
    }

    /// The largest order of new folios.
    pub(crate) fn order(&self) -> u64 {
        self.order.load(Relaxed)
    }

    /// Set it, to a value of [`ORDER`]; tells the one before.
    pub(crate) fn set_order(&self, order: u64) -> u64 {
        self.order.xchg(order, Relaxed)
    }
}
