// SPDX-License-Identifier: GPL-2.0
//! Tasks: what they are called, what they do, and where in the kernel they stand.
//!
//! A [`TaskRef`] keeps a task's structure, not the task: that may end at any time. Nothing here waits for
//! it or makes it wait. Its stack is walked without stopping it, as `/proc/<pid>/stack` does; what is
//! found is told only if it has not run meanwhile.
//!
//! C headers: [`include/linux/sched.h`](srctree/include/linux/sched.h),
//! [`include/linux/stacktrace.h`](srctree/include/linux/stacktrace.h)

use crate::raw;
use core::ptr::NonNull;
use kernel::{bindings, ffi::c_char, fmt, prelude::*};

/// How many functions of a stack are told at most.
const FRAMES: usize = 64;
/// How long a function's name is told.
const SYMBOL: usize = 160;

/// A task, and our reference to it.
///
/// # Invariants
///
/// The pointer is to a `struct task_struct` that our reference keeps.
pub(crate) struct TaskRef(NonNull<bindings::task_struct>);

// SAFETY: A reference to a task may be used and put by any thread.
unsafe impl Send for TaskRef {}
// SAFETY: What is read of it anybody may read at any time.
unsafe impl Sync for TaskRef {}

/// Let other tasks run, where some wait. Process context that may sleep.
pub(crate) fn give_way() {
    // SAFETY: As the callers are in process context; at most it schedules.
    unsafe { bindings::__cond_resched() };
}

impl Drop for TaskRef {
    fn drop(&mut self) {
        // SAFETY: Our reference (type invariant), given back once.
        unsafe { bindings::put_task_struct(self.0.as_ptr()) };
    }
}

/// What a task was doing when it was looked at.
#[derive(PartialEq, Eq)]
pub(crate) struct Doing {
    /// As `/proc/<pid>/stat` has it.
    pub(crate) state: char,
    /// A CPU is executing it.
    on_cpu: bool,
    /// How often it has left one.
    switches: usize,
}

impl Doing {
    /// Whether it waits for something, so that where it stands means something.
    fn blocked(&self) -> bool {
        self.state != 'R' && !self.on_cpu
    }
}

/// Where a task stands.
pub(crate) enum Stack {
    /// Blocked, in these functions of the kernel, the innermost first.
    Blocked(KVec<Frame>),
    /// It runs, or might.
    Running,
}

/// A place in a function of the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Frame(usize);

impl TaskRef {
    /// # Safety
    ///
    /// A task, and a reference to it that is given away.
    pub(super) unsafe fn from_raw(task: NonNull<bindings::task_struct>) -> Self {
        // INVARIANT: The caller's promise.
        Self(task)
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::task_struct {
        self.0.as_ptr()
    }

    /// Its number in the first pid name space; 0: it has ended.
    pub(crate) fn number(&self) -> i32 {
        // SAFETY: By the type invariant.
        unsafe { raw::kvmate_task_number(self.as_ptr()) }
    }

    /// Its name, zeros behind.
    pub(crate) fn comm(&self) -> [u8; 16] {
        let mut comm = [0; 16];
        // SAFETY: By the type invariant; the name has `TASK_COMM_LEN` bytes.
        unsafe { raw::kvmate_task_comm(self.as_ptr(), comm.as_mut_ptr().cast::<c_char>()) };
        comm
    }

    /// What it is doing.
    pub(crate) fn doing(&self) -> Doing {
        let mut seen = raw::kvmate_task_seen::default();
        // SAFETY: By the type invariant.
        unsafe { raw::kvmate_task_see(self.as_ptr(), &mut seen) };
        Doing {
            state: char::from(seen.state),
            on_cpu: seen.on_cpu,
            switches: seen.switches,
        }
    }

    /// Where it stands, and what it was doing then. `ENOMEM`.
    pub(crate) fn stack(&self) -> Result<(Doing, Stack)> {
        let mut addresses = KVec::from_elem(0usize, FRAMES, GFP_KERNEL)?;
        let before = self.doing();
        if !before.blocked() {
            return Ok((before, Stack::Running));
        }
        // SAFETY: By the type invariant; takes a reference to the stack itself, and writes so many
        // words at most.
        let count = unsafe {
            bindings::stack_trace_save_tsk(self.as_ptr(), addresses.as_mut_ptr(), FRAMES as u32, 0)
        };
        let after = self.doing();
        if after != before {
            return Ok((after, Stack::Running));
        }
        let mut frames = KVec::with_capacity(count as usize, GFP_KERNEL)?;
        for &address in addresses.iter().take(count as usize) {
            frames.push(Frame(address), GFP_KERNEL)?;
        }
        Ok((after, Stack::Blocked(frames)))
    }
}

/// As `/proc/<pid>/stack` has it, without the blank before a module's name.
impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; SYMBOL];
        let to = text.as_mut_ptr().cast::<c_char>();
        // SAFETY: Writes so many bytes at most, of which the last is zero.
        let length = unsafe { raw::kvmate_symbol(to, SYMBOL, self.0) };
        let text = text.get(..length).unwrap_or_default();
        text.split(|&byte| byte == b' ')
            .try_for_each(|part| f.write_str(core::str::from_utf8(part).unwrap_or("?")))
    }
}
