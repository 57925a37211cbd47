// SPDX-License-Identifier: GPL-2.0
//! The hot path: what the probes on `kvm_exit` and `kvm_entry` do.
//!
//! For a vCPU that runs again where it ran before that is: this CPU's counter, this CPU's pointer to
//! the vCPU's record, a comparison, and the record ([`crate::pure::exits`]). No lock, no allocation,
//! no division, and no cache line that another CPU writes. What is rare is called last and gives
//! nothing back, so that nothing need be saved for it.

use super::{
    registry::{Found, Registry},
    vm::Hot,
};
use crate::{
    pure::reason::{self, Vendor},
    wrap::{
        exit_source::Exit,
        probes::{RunningVcpu, Watcher},
        tsc,
    },
};
use core::sync::atomic::Ordering::Relaxed;
use kernel::sync::ArcBorrow;

/// Write an exit down.
#[inline(always)]
fn exit(hot: &Hot, vcpu: RunningVcpu<'_>, isa: u32, now: u64) {
    let (source, record) = hot;
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
        exit_slowly(hot, vcpu, isa, now);
    }
}

impl Watcher for Registry {
    #[inline(always)]
    fn on_exit(this: ArcBorrow<'_, Self>, vcpu: RunningVcpu<'_>, isa: u32) {
        let now = tsc::now();
        this.total.increment();
        match this.hot.remembered(vcpu) {
            Some(hot) => exit(hot, vcpu, isa, now),
            None => Self::first_exit(this, vcpu, isa, now),
        }
    }

    #[inline(always)]
    fn on_entry(this: ArcBorrow<'_, Self>, vcpu: RunningVcpu<'_>) {
        match this.hot.remembered(vcpu) {
            Some((_, record)) => record.entry(tsc::now()),
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
        if let Some((_, record)) = this.hot.find(vcpu) {
            record.entry(tsc::now());
        }
    }

    /// An exit of a vCPU that this CPU does not remember.
    #[cold]
    #[inline(never)]
    fn first_exit(this: ArcBorrow<'_, Self>, vcpu: RunningVcpu<'_>, isa: u32, now: u64) {
        if let Some(hot) = this.hot.find(vcpu) {
            return exit_slowly(hot, vcpu, isa, now);
        }
        if !this.shown.load(Relaxed) {
            return;
        }
        match this.found(*vcpu, true) {
            Ok(Found::NotShown | Found::Waiting) => {}
            Ok(Found::New) => Self::look_after_soon(this),
            Ok(Found::Recorded) => {
                if let Some(hot) = this.hot.find(vcpu) {
                    exit_slowly(hot, vcpu, isa, now);
                }
            }
            // The next exit tries again.
            Err(_) => {}
        }
    }
}

/// Write an exit down, also before it is decided where it is read.
#[cold]
#[inline(never)]
fn exit_slowly((source, record): &Hot, vcpu: RunningVcpu<'_>, isa: u32, now: u64) {
    let Some(Exit { code, rip }) = source.read(vcpu, isa) else {
        return record.exit_unknown(now);
    };
    let vendor = source.vendor();
    match reason::index(vendor, code) {
        Some(index) => record.exit(index, now, rip),
        None => record.exit_other(reason::canonical(vendor, code), now, rip),
    }
}
