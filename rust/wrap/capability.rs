// SPDX-License-Identifier: GPL-2.0
//! What the current task may do.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use kernel::bindings;

/// Whether the current task has `CAP_SYS_ADMIN` in the initial user name space.
pub(crate) fn sys_admin() -> bool {
    // SAFETY: `capable()` may be called by any task in process context, as all our callers are
    // (file operations); it reads only `current`.
    unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as kernel::ffi::c_int) }
}
