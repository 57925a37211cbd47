// SPDX-License-Identifier: GPL-2.0
//! kvmate's own trace events: `events/kvmate/` of tracefs.
//!
//! An event that nobody wants costs a call and a jump that is patched out; `exit` costs nothing at
//! all, for [`FollowedExits`] tells when somebody wants it. They may be switched at any time, also while
//! the module comes or goes.
//!
//! C headers: `rust/raw/kvmate_events.h`,
//! [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

use super::uabi::{GmemRecord, GMEM_PINNED};
use crate::raw;
use kernel::{ffi::c_void, prelude::*, sync::Arc};

/// Who wants to know whether anybody wants the event `exit`.
pub(crate) trait FollowsExits: Send + Sync + 'static {
    /// From now on somebody does, or nobody. Called with tracing's locks: it registers no probe.
    fn follow(&self, on: bool);
}

/// Has a target told. Drop it to end that: after that no call runs any more.
///
/// # Invariants
///
/// While it is there, the shim's follower is `follow::<T>` with the pointer of `target`.
pub(crate) struct FollowedExits<T: FollowsExits> {
    _target: Arc<T>,
}

impl<T: FollowsExits> FollowedExits<T> {
    /// Tell `target`, from now on. One at a time.
    pub(crate) fn begin(target: Arc<T>) -> Self {
        let data: *mut c_void = Arc::as_ptr(&target).cast_mut().cast();
        // SAFETY: `follow` takes what `data` is; `drop` ends the calls before the target goes.
        unsafe { raw::kvmate_follow_exits(Some(follow::<T>), data) };
        // INVARIANT: Set just now.
        Self { _target: target }
    }
}

impl<T: FollowsExits> Drop for FollowedExits<T> {
    fn drop(&mut self) {
        // SAFETY: Nobody is to be told; this waits for a call that runs.
        unsafe { raw::kvmate_follow_exits(None, core::ptr::null_mut()) };
    }
}

/// # Safety
///
/// `data` is the pointer of an `Arc<T>` that outlives the call.
unsafe extern "C" fn follow<T: FollowsExits>(data: *mut c_void, on: bool) {
    // SAFETY: The caller's promise.
    unsafe { &*data.cast::<T>() }.follow(on);
}

/// An exit, and how long until the next entry.
pub(crate) struct Exit<'a> {
    pub(crate) vm: &'a CStr,
    pub(crate) vcpu: u32,
    pub(crate) name: &'a CStr,
    pub(crate) reason: u64,
    pub(crate) rip: u64,
    pub(crate) info: u64,
    pub(crate) ns: u64,
}

/// The event `exit`. Any context.
pub(crate) fn exit(exit: &Exit<'_>) {
    let event = raw::kvmate_exit_event {
        vm: exit.vm.as_char_ptr(),
        name: exit.name.as_char_ptr(),
        reason: exit.reason,
        rip: exit.rip,
        info: exit.info,
        ns: exit.ns,
        vcpu: exit.vcpu,
    };
    // SAFETY: Strings that outlive the call, which copies them.
    unsafe { raw::kvmate_event_exit(&event) };
}

/// An event about an interrupt of kvmate's.
#[derive(Clone, Copy)]
pub(crate) enum Interrupt {
    /// From debugfs.
    Inject,
    /// By a binding.
    Deliver,
}

impl Interrupt {
    /// Whether anybody wants it. Any context.
    pub(crate) fn is_on(self) -> bool {
        match self {
            // SAFETY: No condition.
            Self::Inject => unsafe { raw::kvmate_event_inject_on() },
            // SAFETY: No condition.
            Self::Deliver => unsafe { raw::kvmate_event_deliver_on() },
        }
    }

    /// The event. Any context.
    pub(crate) fn happens(self, vm: &CStr, what: &CStr, answer: &CStr) {
        let event = raw::kvmate_irq_event {
            vm: vm.as_char_ptr(),
            what: what.as_char_ptr(),
            answer: answer.as_char_ptr(),
        };
        match self {
            // SAFETY: Strings that outlive the call, which copies them.
            Self::Inject => unsafe { raw::kvmate_event_inject(&event) },
            // SAFETY: As above.
            Self::Deliver => unsafe { raw::kvmate_event_deliver(&event) },
        }
    }
}

/// The event `gmem_fault`: a page at that offset was given to a fault, in a folio of that order.
pub(crate) fn gmem_fault(file: u64, offset: u64, order: u32) {
    // SAFETY: No condition.
    unsafe { raw::kvmate_event_gmem_fault(file, offset, order) };
}

/// The event `gmem_punch`: of these bytes so many pages were freed, and so many kept.
pub(crate) fn gmem_punch(file: u64, offset: u64, length: u64, freed: u64, kept: u64) {
    // SAFETY: No condition.
    unsafe { raw::kvmate_event_gmem_punch(file, offset, length, freed, kept) };
}

/// The event `gmem_split`: the folio at that offset was split, so that one of order `to` is there.
pub(crate) fn gmem_split(file: u64, offset: u64, from: u32, to: u32) {
    // SAFETY: No condition.
    unsafe { raw::kvmate_event_gmem_split(file, offset, from, to) };
}

/// The event `gmem_merge`: so many folios at that offset became one of that order.
pub(crate) fn gmem_merge(file: u64, offset: u64, folios: u32, order: u32) {
    // SAFETY: No condition.
    unsafe { raw::kvmate_event_gmem_merge(file, offset, folios, order) };
}

/// A split or a merge that was refused.
pub(crate) struct GmemRefused<'a> {
    pub(crate) file: u64,
    pub(crate) what: &'a CStr,
    pub(crate) why: &'a CStr,
    /// The folio or hole that stood in the way.
    pub(crate) at: GmemRecord,
}

/// The event `gmem_refused`.
pub(crate) fn gmem_refused(refused: &GmemRefused<'_>) {
    let at = &refused.at;
    let event = raw::kvmate_gmem_refused_event {
        file: refused.file,
        offset: at.offset,
        what: refused.what.as_char_ptr(),
        why: refused.why.as_char_ptr(),
        order: at.order,
        references: at.references,
        expected: at.expected,
        mappings: at.mappings,
        pinned: u32::from(at.flags & GMEM_PINNED != 0),
    };
    // SAFETY: Strings that outlive the call, which copies them.
    unsafe { raw::kvmate_event_gmem_refused(&event) };
}
