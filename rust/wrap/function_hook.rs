// SPDX-License-Identifier: GPL-2.0
//! Hooks on functions of the kernel's, by name (ftrace): called when such a function is.
//!
//! Kernel probes would do too, but can be switched off behind our back (`kprobes/enabled` in debugfs);
//! ftrace no longer can. [`super::life`] and [`super::accepts`] are made of these.
//!
//! C header: [`include/linux/ftrace.h`](srctree/include/linux/ftrace.h)

use crate::raw;
use kernel::{
    bindings,
    error::to_result,
    ffi::{c_ulong, c_void},
    prelude::*,
};

/// Where a function begins, or a few bytes behind.
#[derive(Clone, Copy)]
pub(super) struct Place(usize);

impl Place {
    /// That of a function, by its name. `ENOENT`: there is none. `ENOMEM`, and what kernel probes say of
    /// functions that may not be probed.
    ///
    /// ftrace could find it too, but looks up the names of all that can be traced for it, which
    /// takes a third of a second on an emulated machine.
    pub(super) fn of(function: &CStr) -> Result<Self> {
        let mut address = 0;
        // SAFETY: Process context; name and place are used in the call only.
        to_result(unsafe { raw::kvmate_probe_address(function.as_char_ptr(), &mut address) })?;
        Ok(Self(address))
    }

    /// Whether an address where ftrace hooks is this function's: functions begin sixteen bytes
    /// apart at least, and a hook is at most that far in.
    pub(super) fn is(self, ip: usize) -> bool {
        self.0 & !15 == ip & !15
    }
}

/// What a hook calls; `ops` is the hook's, whose private data is what was registered with it.
pub(super) type Call = unsafe extern "C" fn(
    ip: c_ulong,
    parent: c_ulong,
    ops: *mut bindings::ftrace_ops,
    fregs: *mut bindings::ftrace_regs,
);

/// Hooks, registered. Drop it to unregister: after that no call runs any more, and no task is in code
/// of ours that a call gave it to run and that has returned since.
///
/// # Invariants
///
/// `ops` is registered, stays where it is, and its private data is `_data`.
pub(super) struct FunctionHooks<D> {
    ops: KBox<bindings::ftrace_ops>,
    // Where the private data of `ops` points.
    _data: KBox<D>,
}

// SAFETY: Hooks may be unregistered from any thread, and what they work on may be sent.
unsafe impl<D: Send> Send for FunctionHooks<D> {}

impl<D: Send + Sync> FunctionHooks<D> {
    /// Call `call` from now on where one of the functions begins.
    ///
    /// # Safety
    ///
    /// `call` takes the private data for a `D`, and knows those functions.
    pub(super) unsafe fn register<const N: usize>(
        places: [Place; N],
        data: D,
        call: Call,
    ) -> Result<Self> {
        let mut places = places.map(|place| place.0);
        let data = KBox::new(data, GFP_KERNEL)?;
        let private: *const D = &*data;
        let mut ops = KBox::new(
            bindings::ftrace_ops {
                func: Some(call),
                private: private.cast_mut().cast::<c_void>(),
                ..pin_init::zeroed()
            },
            GFP_KERNEL,
        )?;
        // SAFETY: `ops` is zeroed but for what its user sets; so many places.
        let chosen = to_result(unsafe {
            bindings::ftrace_set_filter_ips(&mut *ops, places.as_mut_ptr(), N as u32, 0, 1)
        });
        let registered: Result = chosen.and_then(|()| {
            // SAFETY: As above; only functions that `call` knows are hooked (the caller's promise); the
            // boxes keep `ops` and its private data in place until `drop` has unregistered.
            to_result(unsafe { bindings::register_ftrace_function(&mut *ops) })
        });
        if let Err(error) = registered {
            // SAFETY: Not registered.
            unsafe { bindings::ftrace_free_filter(&mut *ops) };
            return Err(error);
        }
        // INVARIANT: Registered just now.
        Ok(Self { ops, _data: data })
    }
}

impl<D> Drop for FunctionHooks<D> {
    fn drop(&mut self) {
        // SAFETY: Registered (type invariant). This waits until no task is in the hook, nor in other
        // code of ours that it was preempted in (RCU tasks).
        let unregistered = unsafe { bindings::unregister_ftrace_function(&mut *self.ops) };
        debug_assert_eq!(unregistered, 0);
        // SAFETY: No more registered.
        unsafe { bindings::ftrace_free_filter(&mut *self.ops) };
    }
}
