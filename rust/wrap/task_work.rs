// SPDX-License-Identifier: GPL-2.0
//! Work that a task does when it goes back to user space.
//!
//! From a context that cannot sleep, the current task is made to run something that can, before it
//! returns from the system call it is in, or before it ends.
//!
//! C header: [`include/linux/task_work.h`](srctree/include/linux/task_work.h)

use core::{
    mem::offset_of,
    sync::atomic::{
        fence, AtomicBool, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
    },
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::Arc,
    task::Task,
    time::{delay::fsleep, Delta},
};

/// What is done.
pub(crate) trait OnReturn: Send + Sync + 'static {
    /// Runs in the task that was current, in process context.
    fn on_return(this: &Arc<Self>);
}

/// What was given to tasks and has not run yet.
pub(crate) struct InFlight {
    count: AtomicUsize,
    closed: AtomicBool,
}

#[repr(C)]
struct Work<T> {
    head: bindings::callback_head,
    target: Arc<T>,
    in_flight: Arc<InFlight>,
}

impl InFlight {
    /// Nothing.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                count: AtomicUsize::new(0),
                closed: AtomicBool::new(false),
            },
            GFP_KERNEL,
        )?)
    }

    /// Make the current task call `on_return()` when it goes back to user space. Any process
    /// context, also with preemption off. Fails without memory, in a task that is ending, and when
    /// closed.
    pub(crate) fn add<T: OnReturn>(self: &Arc<Self>, target: Arc<T>) -> Result {
        let work = Work {
            head: pin_init::zeroed(),
            target,
            in_flight: self.clone(),
        };
        let work = KBox::into_raw(KBox::new(work, GFP_ATOMIC | __GFP_NOWARN)?);
        self.count.fetch_add(1, Relaxed);
        fence(SeqCst);
        let head: *mut bindings::callback_head = work.cast();
        let result = if self.closed.load(Relaxed) {
            Err(ESHUTDOWN)
        } else {
            // SAFETY: `head` is the first field of the box, which `run` takes back.
            unsafe { bindings::init_task_work(head, Some(run::<T>)) };
            // SAFETY: The current task, and a work that was just made ready.
            to_result(unsafe {
                bindings::task_work_add(
                    Task::current_raw(),
                    head,
                    bindings::task_work_notify_mode_TWA_RESUME,
                )
            })
        };
        if result.is_err() {
            // SAFETY: Nobody took it: ours still.
            drop(unsafe { KBox::from_raw(work) });
            self.count.fetch_sub(1, Release);
        }
        result
    }

    /// Take no more, and wait until all that was taken has run (a task runs it when it leaves the
    /// kernel, however long the system call that it is in takes), but for the last instructions,
    /// which [`super::life::LifeHooks`]'s end waits for. Sleeps.
    pub(crate) fn close(&self) {
        self.closed.store(true, Relaxed);
        // Either `add` sees that it is closed, or we see what it has counted.
        fence(SeqCst);
        while self.count.load(Acquire) != 0 {
            fsleep(Delta::from_millis(1));
        }
    }

    /// Take again.
    pub(crate) fn open(&self) {
        self.closed.store(false, Relaxed);
    }
}

/// # Safety
///
/// `head` is that of a `Work<T>` which [`InFlight::add`] gave away.
unsafe extern "C" fn run<T: OnReturn>(head: *mut bindings::callback_head) {
    const { assert!(offset_of!(Work<T>, head) == 0) };
    // SAFETY: The caller's promise; `head` is the first field.
    let work = unsafe { KBox::from_raw(head.cast::<Work<T>>()) };
    T::on_return(&work.target);
    let in_flight = work.in_flight.clone();
    drop(work);
    // Not the last reference: whoever waits has one.
    in_flight.count.fetch_sub(1, Release);
}
