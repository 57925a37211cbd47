// SPDX-License-Identifier: GPL-2.0
//! The hot path: what the probes on `kvm_exit` and `kvm_entry` do.
//!
//! For a vCPU that runs again where it ran before that is: this CPU's counter, this CPU's pointer to
//! the vCPU's record, a comparison, and the record ([`crate::pure::exits`]). No lock, no allocation,
//! no division, and no cache line that another CPU writes. What is rare is called last and gives
//! nothing back, so that nothing need be saved for it.

use super::{
    registry::{Found, Registry},
    traced,
    vm::Hot,
};
use crate::{
    pure::{
        exits::Reason,
        faults::{self, Class},
        msrs::Access,
        reason::{self, Vendor},
    },
    wrap::{
        accepts::{Accepted, Accepting},
        events::{FaultingVcpu, Happenings, Pauses},
        exit_source::Exit,
        in_task::InTask,
        probes::{RunningVcpu, Watcher},
        tsc,
    },
};
use core::sync::atomic::Ordering::Relaxed;
use kernel::sync::ArcBorrow;

/// Write an exit down.
#[inline(always)]
fn exit(this: &Registry, hot: &Hot, vcpu: RunningVcpu<'_>, isa: u32, now: u64) {
    let (source, record, _) = hot;
    if let Some(Exit { code, rip }) = source.read_svm(vcpu) {
        match reason::index(Vendor::Svm, code) {
            Some(index) => record.exit(index, now, rip),
            None => record.exit_other(code, now, rip),
        }
    } else if let Some(Exit { code, rip }) = source.read_vmx(vcpu) {
        match reason::index(Vendor::Vmx, code) {
            Some(index) => record.exit(index, now, rip),
            None => record.exit_other(reason::canonical(Vendor::Vmx, code), now, rip),
        }
    } else {
        exit_slowly(hot, vcpu, isa, now, this);
    }
}

/// The guest goes on.
#[inline(always)]
fn entry(hot: &Hot, vcpu: RunningVcpu<'_>) {
    let (_, record, _) = hot;
    let now = tsc::now();
    record.entry(now, || entry_slowly(hot, vcpu, now));
}

impl Watcher for Registry {
    #[inline(always)]
    fn on_exit(this: ArcBorrow<'_, Self>, vcpu: RunningVcpu<'_>, isa: u32) {
        let now = tsc::now();
        this.total.increment();
        match this.hot.remembered(vcpu) {
            Some(hot) => exit(&this, hot, vcpu, isa, now),
            None => Self::first_exit(this, vcpu, isa, now),
        }
    }

    #[inline(always)]
    fn on_entry(this: ArcBorrow<'_, Self>, vcpu: RunningVcpu<'_>) {
        match this.hot.remembered(vcpu) {
            Some(hot) => entry(hot, vcpu),
            None => Self::first_entry(this, vcpu),
        }
    }
}

// What is rare.

impl Registry {
    /// An entry of a vCPU that this CPU does not remember: it comes from another CPU.
    #[cold]
    #[inline(never)]
    fn first_entry(this: ArcBorrow<'_, Self>, vcpu: RunningVcpu<'_>) {
        if let Some(hot) = this.hot.find(vcpu) {
            entry(hot, vcpu);
        }
    }

    /// An exit of a vCPU that this CPU does not remember.
    #[cold]
    #[inline(never)]
    fn first_exit(this: ArcBorrow<'_, Self>, vcpu: RunningVcpu<'_>, isa: u32, now: u64) {
        if let Some(hot) = this.hot.find(vcpu) {
            return exit_slowly(hot, vcpu, isa, now, &this);
        }
        if !this.shown.load(Relaxed) {
            return;
        }
        match this.found(*vcpu, true) {
            Ok(Found::NotShown | Found::Waiting) => {}
            Ok(Found::New) => Self::look_after_soon(this),
            Ok(Found::Recorded) => {
                if let Some(hot) = this.hot.find(vcpu) {
                    exit_slowly(hot, vcpu, isa, now, &this);
                }
            }
            // The next exit tries again.
            Err(_) => {}
        }
    }
}

/// Write an exit down, also before it is decided where it is read, and where its time is split or it is
/// traced. `this` comes last: the others stand in the registers that the hot path has them in.
#[cold]
#[inline(never)]
fn exit_slowly(hot: &Hot, vcpu: RunningVcpu<'_>, isa: u32, now: u64, this: &Registry) {
    let (source, record, _) = hot;
    let exit = source.read(vcpu, isa);
    let vendor = source.vendor();
    match exit {
        None => record.exit_unknown(now),
        Some(Exit { code, rip }) => match reason::index(vendor, code) {
            Some(index) => record.exit(index, now, rip),
            None => record.exit_other(reason::canonical(vendor, code), now, rip),
        },
    }
    let turn = source.turn();
    if turn % 2 == 1 {
        record.split(vcpu.in_task().moment(), turn);
    }
    if source.is_traced() {
        this.trace_exit(hot, vcpu, exit);
    }
}

/// The guest goes on after an exit whose time is split or that is traced, or after none.
#[cold]
#[inline(never)]
fn entry_slowly(hot: &Hot, vcpu: RunningVcpu<'_>, now: u64) {
    let (source, record, _) = hot;
    if let Some((time, rip)) = record.traced(now) {
        traced::entry(hot, time, rip);
    }
    record.entry(now, || {
        record.entry_split(now, vcpu.in_task().moment(), source.turn(), tsc::khz());
    });
}

impl Pauses for Registry {
    fn on_user_exit(this: ArcBorrow<'_, Self>, task: InTask<'_>) {
        let (now, at) = (tsc::now(), task.moment());
        // KVM has put the vCPU down. It is the one that this task was in the kernel for.
        this.hot
            .choose(task, |(_, record, _)| record.to_user(now, at));
    }

    fn on_wakeup(this: ArcBorrow<'_, Self>, task: InTask<'_>, ns: u64) {
        if let Some((_, record, _)) = this.hot.of_loaded(task) {
            record.halted(ns, task.moment());
        }
    }
}

impl Accepting for Registry {
    fn on_accept(this: ArcBorrow<'_, Self>, accepted: Accepted<'_>) {
        if let Some((vm, (.., events))) = this.hot.of_lapic(&accepted) {
            if vm.apicv() {
                events.vectors.hide();
            }
            events.vectors.accept(accepted.vector);
        }
    }
}

/// What kind of fault the last exit was, and whether its address is a guest-physical one.
pub(super) fn fault_class((source, record, _): &Hot, code: u64) -> (Class, bool) {
    let vendor = source.vendor();
    let exit = record.last_reason(vendor).and_then(|reason| match reason {
        Reason::Code(code) => Some(code),
        Reason::Unknown => None,
    });
    let (format, physical) = faults::kind(vendor, exit);
    (Class::new(format, code), physical)
}

impl Happenings for Registry {
    fn on_msr(this: ArcBorrow<'_, Self>, task: InTask<'_>, access: Access) {
        if let Some((.., events)) = this.hot.of_loaded(task) {
            events.msrs.access(access, tsc::now());
        }
    }

    fn on_page_fault(
        this: ArcBorrow<'_, Self>,
        task: InTask<'_>,
        vcpu: FaultingVcpu<'_>,
        address: u64,
        code: u64,
    ) {
        // One that is found is shown.
        let Some(hot) = this.hot.of(vcpu, task) else {
            return;
        };
        let (class, physical) = fault_class(hot, code);
        let gpa = physical.then_some(address);
        let slot = gpa.and_then(|gpa| vcpu.memslot(gpa));
        let (.., events) = hot;
        events.faults.fault(class, gpa, slot);
    }

    fn on_injection(this: ArcBorrow<'_, Self>, task: InTask<'_>, vector: u32) {
        if let Some((.., events)) = this.hot.of_loaded(task) {
            events.vectors.inject(vector);
        }
    }

    fn on_eoi(this: ArcBorrow<'_, Self>, task: InTask<'_>, vector: u32) {
        if let Some((.., events)) = this.hot.of_loaded(task) {
            events.vectors.end(vector);
        }
    }
}
