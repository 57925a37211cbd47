// SPDX-License-Identifier: GPL-2.0
//! VMs' files: one that somebody gives us, and a walk over all tasks' for VMs that nobody ran since we
//! came.
//!
//! C header: [`include/linux/fdtable.h`](srctree/include/linux/fdtable.h)

use super::{
    eventfd::{EventFd, EventFdId},
    kvm::LiveVm,
    task::{give_way, TaskRef},
};
use crate::raw;
use core::ptr::NonNull;
use kernel::{bindings, fs::LocalFile, prelude::*, sync::aref::ARef};

impl TaskRef {
    /// The task with the number `from` or the next one; `from` becomes its number.
    fn at_or_after(from: &mut i32) -> Option<Self> {
        // SAFETY: No condition; gives a reference.
        let task = NonNull::new(unsafe { raw::kvmate_next_task(from) })?;
        // SAFETY: That task, and the reference.
        Some(unsafe { Self::from_raw(task) })
    }

    /// Whether its files are those of its group's leader.
    fn shares_files(&self) -> bool {
        // SAFETY: A task that our reference keeps.
        unsafe { raw::kvmate_task_shares_files(self.as_ptr()) }
    }

    /// The open file with the number `fd` or the next one; `fd` becomes its number.
    fn file_at_or_after(&self, fd: &mut u32) -> Option<FileRef> {
        // SAFETY: A task that our reference keeps; gives a reference to a file.
        NonNull::new(unsafe { bindings::fget_task_next(self.as_ptr(), fd) }).map(FileRef)
    }
}

/// An open file, and our reference to it.
struct FileRef(NonNull<bindings::file>);

impl Drop for FileRef {
    fn drop(&mut self) {
        // SAFETY: Our reference.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}

/// The open file of a descriptor of the current task. `EBADF`.
pub(crate) fn of_descriptor(descriptor: i32) -> Result<ARef<LocalFile>> {
    let descriptor = u32::try_from(descriptor).map_err(|_| EBADF)?;
    LocalFile::fget(descriptor).map_err(|_| EBADF)
}

/// The VM whose own file that is (not a vCPU's), which keeps it.
pub(crate) fn vm_of(file: &LocalFile) -> Option<LiveVm<'_>> {
    // SAFETY: A file that the caller keeps.
    let vm = NonNull::new(unsafe { raw::kvmate_vm_file_vm(file.as_ptr()) })?;
    // SAFETY: The VM's file keeps the VM, and the caller keeps the file.
    Some(unsafe { LiveVm::new(vm) })
}

/// Call `visit` for each eventfd that the task with that number has open, and its descriptor. Sleeps.
pub(crate) fn each_eventfd(task: u32, mut visit: impl FnMut(EventFdId, u32)) {
    let Ok(wanted) = i32::try_from(task) else {
        return;
    };
    let mut number = wanted;
    let Some(task) = TaskRef::at_or_after(&mut number).filter(|_| number == wanted) else {
        return;
    };
    let mut fd = 0;
    while let Some(file) = task.file_at_or_after(&mut fd) {
        // SAFETY: A file that our reference keeps; only used to look what it is.
        let local = unsafe { LocalFile::from_raw_file(file.0.as_ptr()) };
        if let Ok(eventfd) = EventFd::of(local) {
            visit(eventfd.id(), fd);
        }
        fd += 1;
        give_way();
    }
}

/// Call `visit` for the VM behind each VM and vCPU file that some task has open. A VM is visited as
/// often as it has such files. Sleeps, and so may `visit`: the file is held meanwhile.
pub(crate) fn each_vm(mut visit: impl FnMut(LiveVm<'_>)) {
    let mut number = 1;
    while let Some(task) = TaskRef::at_or_after(&mut number) {
        number += 1;
        if task.shares_files() {
            continue;
        }
        let mut fd = 0;
        while let Some(file) = task.file_at_or_after(&mut fd) {
            fd += 1;
            // SAFETY: A file that our reference keeps.
            let vm = unsafe { raw::kvmate_file_vm(file.0.as_ptr()) };
            if let Some(vm) = NonNull::new(vm) {
                // SAFETY: The VM's file keeps the VM, and we keep the file while `visit` runs.
                visit(unsafe { LiveVm::new(vm) });
            }
        }
        give_way();
    }
}
