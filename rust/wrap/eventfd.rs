// SPDX-License-Identifier: GPL-2.0
//! eventfds: signalling one, and being told when one is signalled.
//!
//! [`Waiting`] does what KVM's irqfd does: it is the eventfd's only priority waiter, takes out what is
//! written, and nobody else is woken.
//!
//! C headers: [`include/linux/eventfd.h`](srctree/include/linux/eventfd.h),
//! [`include/linux/wait.h`](srctree/include/linux/wait.h)

use crate::raw;
use core::{mem::offset_of, ptr::NonNull};
use kernel::{
    bindings,
    error::{from_err_ptr, to_result},
    ffi::{c_int, c_uint, c_void},
    fs::LocalFile,
    prelude::*,
    sync::{Arc, ArcBorrow},
};

/// An eventfd, and our reference to it; its files may all be closed.
///
/// # Invariants
///
/// We own a reference to the context.
pub(crate) struct EventFd(NonNull<bindings::eventfd_ctx>);

/// Which eventfd; another one may have the same once all references to this one are gone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventFdId(usize);

impl EventFdId {
    pub(super) fn of(context: *const bindings::eventfd_ctx) -> Self {
        Self(context.addr())
    }
}

// SAFETY: Contexts are used from any thread, under their own locks.
unsafe impl Send for EventFd {}
// SAFETY: As above.
unsafe impl Sync for EventFd {}

impl EventFd {
    /// The one behind an open file. `EPROTOTYPE`: that is no eventfd.
    pub(crate) fn of(file: &LocalFile) -> Result<Self> {
        // SAFETY: A file that the caller has; gives a reference, or an error for other files.
        let context = from_err_ptr(unsafe { bindings::eventfd_ctx_fileget(file.as_ptr()) });
        let context = context.map_err(|_| EPROTOTYPE)?;
        // INVARIANT: The reference just given.
        NonNull::new(context).map(Self).ok_or(EPROTOTYPE)
    }

    /// Which it is.
    pub(crate) fn id(&self) -> EventFdId {
        EventFdId::of(self.0.as_ptr())
    }

    /// Add 1 to it and wake who waits. Any context but a call of [`Signalled`].
    pub(crate) fn signal(&self) {
        // SAFETY: A context that our reference keeps.
        unsafe { bindings::eventfd_signal_mask(self.0.as_ptr(), 0) };
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: Our reference (type invariant).
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) };
    }
}

/// What wants to know. Both may be called with interrupts off and the eventfd's lock held: no sleep,
/// and no eventfd is signalled.
pub(crate) trait Signalled: Send + Sync + 'static {
    /// It was written to or signalled, and what was in it has been taken out.
    fn signalled(this: ArcBorrow<'_, Self>);
    /// Its last descriptor was closed.
    fn hung_up(this: ArcBorrow<'_, Self>);
}

/// Being told of an eventfd. Drop it to be told no more: after that no call runs any more.
///
/// # Invariants
///
/// The entry is in the wait queue of the eventfd, which its reference keeps.
pub(crate) struct Waiting<T: Signalled>(KBox<Entry<T>>);

#[repr(C)]
struct Entry<T> {
    entry: bindings::wait_queue_entry,
    eventfd: EventFd,
    target: Arc<T>,
}

// SAFETY: The entry belongs to the queue, under its lock; the rest may be sent.
unsafe impl<T: Signalled> Send for Waiting<T> {}
// SAFETY: As above; a reference to it gives nothing.
unsafe impl<T: Signalled> Sync for Waiting<T> {}

impl<T: Signalled> Waiting<T> {
    /// Let `target` know from now on, and at once if something is in it already. `EBUSY`: somebody
    /// else is told.
    pub(crate) fn begin(file: &LocalFile, target: Arc<T>) -> Result<Self> {
        const { assert!(offset_of!(Entry<T>, entry) == 0) };
        let eventfd = EventFd::of(file)?;
        let context = eventfd.0.as_ptr();
        let mut entry = KBox::new(
            Entry {
                entry: pin_init::zeroed(),
                eventfd,
                target,
            },
            GFP_KERNEL,
        )?;
        let mut ready = false;
        // SAFETY: `file` is an eventfd's, `context` is its, and both are kept; the entry is the first
        // field of a box that stays where it is until `drop` has taken it out of the queue.
        to_result(unsafe {
            raw::kvmate_eventfd_wait(
                file.as_ptr(),
                context,
                (&raw mut *entry).cast(),
                Some(wake::<T>),
                &mut ready,
            )
        })?;
        if ready {
            T::signalled(entry.target.as_arc_borrow());
        }
        // INVARIANT: Just put there.
        Ok(Self(entry))
    }
}

impl<T: Signalled> Drop for Waiting<T> {
    fn drop(&mut self) {
        let mut left = 0;
        let context = self.0.eventfd.0.as_ptr();
        // SAFETY: In its queue (type invariant). Takes the queue's lock, under which calls run.
        unsafe {
            bindings::eventfd_ctx_remove_wait_queue(context, &mut self.0.entry, &mut left);
        }
    }
}

/// # Safety
///
/// An eventfd calls it, for an entry that [`Waiting::begin`] put into its queue.
unsafe extern "C" fn wake<T: Signalled>(
    entry: *mut bindings::wait_queue_entry,
    _mode: c_uint,
    _flags: c_int,
    key: *mut c_void,
) -> c_int {
    // SAFETY: The entry is the first field of an `Entry`, which stays until it is out of the queue.
    let this = unsafe { &*entry.cast::<Entry<T>>() };
    let events = key.addr() as u32;
    let mut woken = 0;
    if events & bindings::POLLIN != 0 {
        let mut count = 0;
        // SAFETY: Called under the eventfd's lock.
        unsafe { bindings::eventfd_ctx_do_read(this.eventfd.0.as_ptr(), &mut count) };
        T::signalled(this.target.as_arc_borrow());
        woken = 1;
    }
    if events & bindings::POLLHUP != 0 {
        T::hung_up(this.target.as_arc_borrow());
    }
    woken
}
