// SPDX-License-Identifier: GPL-2.0
//! The raw layer: what bindgen made of [`bindings.h`], and nothing else.
//!
//! Only the wrappers (`crate::wrap`) use it. Types that the kernel crate has already are taken from
//! there, so that a pointer from one side is a pointer on the other.
#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    rustdoc::all,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

use kernel::{
    bindings::{
        address_space, bool_, eventfd_ctx, file, file_operations, fmode_t, folio, fs_context,
        ftrace_regs, gfp_t, inode, iov_iter, mem_cgroup, mm_struct, module, page, s32,
        super_operations, task_struct, tracepoint, u16_, u32_, u64_, u8_, vm_area_desc,
        wait_queue_entry_t, wait_queue_func_t, workqueue_struct,
    },
    ffi,
};

/// KVM's VM: handled by pointer only; what is in it is read in `kvm.c`.
#[repr(C)]
pub(crate) struct kvm {
    contents: [u8; 0],
}

/// KVM's LAPIC of a vCPU: private to it.
#[repr(C)]
pub(crate) struct kvm_lapic {
    contents: [u8; 0],
}

/// KVM's vCPU: as above.
#[repr(C)]
pub(crate) struct kvm_vcpu {
    contents: [u8; 0],
}

include!(concat!(
    env!("KVMATE_OBJ"),
    "/rust/raw/bindings_generated.rs"
));
