// SPDX-License-Identifier: GPL-2.0
//! What is traced of a vCPU: its exits, as lines and as the event `exit`, and as lines what happens in
//! them.
//!
//! Exits are traced on the long way of [`super::hot`], onto which they are put while anybody wants that
//! (`Registry::trace_exits`): nobody else pays. The event comes at the entry, when it is known how
//! long the exit took. The rest has probes of its own ([`Tracer`]), which stand while it is wanted.

use super::{faults::ClassName, hot, msrs, registry::Registry, vm::Hot};
use crate::{
    pure::{
        cycles,
        events::Events,
        exits::Reason,
        line::Line,
        msrs::Access,
        reason::{self, Vendor},
        who::NAME,
    },
    see::exits,
    trace::Class,
    wrap::{
        events::{FaultingVcpu, Happenings},
        exit_source::Exit,
        in_task::InTask,
        probes::RunningVcpu,
        trace_event::{self, FollowsExits},
        tsc,
    },
};
use core::{fmt::Write, sync::atomic::Ordering::Relaxed};
use kernel::{
    fmt,
    prelude::*,
    sync::{Arc, ArcBorrow},
};

/// The longest name of a reason.
const REASON: usize = 64;

/// `knobs/trace` wants lines of exits.
pub(super) const LINES: u8 = 1;
/// Somebody wants the event `exit`.
pub(super) const EVENTS: u8 = 2;

/// A code's reason, as all tables know it.
fn reason(vendor: Vendor, code: u64) -> Reason {
    Reason::Code(reason::canonical(vendor, code))
}

impl Registry {
    /// An exit of a vCPU that has a record, on the long way.
    pub(super) fn trace_exit(&self, hot: &Hot, vcpu: RunningVcpu<'_>, exit: Option<Exit>) {
        let (source, record, events) = hot;
        let wants = self.trace_wants();
        let info = source.info(vcpu);
        if wants & LINES != 0 {
            let vendor = source.vendor();
            let known = exit.map_or(Reason::Unknown, |exit| reason(vendor, exit.code));
            let reason = exits::name(vendor, known);
            let rip = exit.map_or(0, |exit| exit.rip);
            self.trace_line(events, fmt!("exit {reason} rip {rip:#x} info {info:#x}"));
        }
        if wants & EVENTS != 0 {
            let [code, beside] = &events.traced;
            code.store(exit.map_or(u64::MAX, |exit| exit.code), Relaxed);
            beside.store(info, Relaxed);
            record.trace();
        }
    }

    fn trace_line(&self, events: &Events, text: fmt::Arguments<'_>) {
        let (vm, vcpu) = (events.who.name(), events.who.vcpu());
        let name = Line::<NAME>::of(&vm);
        let name = name.as_c_str();
        self.trace
            .line(Some(&vm), fmt!("vm {name} vcpu {vcpu}: {text}"));
    }
}

/// The guest goes on after an exit that is traced.
pub(super) fn entry((source, record, events): &Hot, time: u64, rip: u64) {
    let (vendor, [code, info]) = (source.vendor(), &events.traced);
    let code = code.load(Relaxed);
    let known = match code {
        // Not known; or SVM's own code of a guest state that it refuses.
        u64::MAX => record.last_reason(vendor).unwrap_or(Reason::Unknown),
        code => reason(vendor, code),
    };
    let mut name = Line::<REASON>::new();
    // Cannot fail: what is too long is cut.
    let _ = name.write_fmt(fmt!("{}", exits::name(vendor, known)));
    trace_event::exit(&trace_event::Exit {
        vm: Line::<NAME>::of(&events.who.name()).as_c_str(),
        vcpu: events.who.vcpu(),
        name: name.as_c_str(),
        reason: code,
        rip,
        info: info.load(Relaxed),
        ns: cycles::to_ns(time, tsc::khz()),
    });
}

impl FollowsExits for Registry {
    fn follow(&self, on: bool) {
        self.trace_exits(EVENTS, on);
    }
}

/// Who writes lines of what happens in exits.
pub(super) struct Tracer(pub(super) Arc<Registry>);

impl Tracer {
    fn line(&self, hot: Option<&Hot>, class: Class, text: fmt::Arguments<'_>) {
        // One without a record has come to nobody's notice yet.
        let Some((.., events)) = hot else { return };
        if self.0.trace.wants(class) {
            self.0.trace_line(events, text);
        }
    }
}

impl Happenings for Tracer {
    fn on_msr(this: ArcBorrow<'_, Self>, task: InTask<'_>, access: Access) {
        let Access {
            write,
            index,
            value,
            fault,
        } = access;
        let what = if write { "wrmsr" } else { "rdmsr" };
        let name = msrs::Name(index);
        let hot = this.0.hot.of_loaded(task);
        if fault {
            this.line(hot, Class::Msrs, fmt!("{what} {name} #GP"));
        } else {
            this.line(hot, Class::Msrs, fmt!("{what} {name} {value:#x}"));
        }
    }

    fn on_page_fault(
        this: ArcBorrow<'_, Self>,
        task: InTask<'_>,
        vcpu: FaultingVcpu<'_>,
        address: u64,
        code: u64,
    ) {
        if let Some(hot) = this.0.hot.of(vcpu, task) {
            let (class, _) = hot::fault_class(hot, code);
            let class = ClassName(class);
            this.line(
                Some(hot),
                Class::Faults,
                fmt!("page_fault {address:#x} {class}"),
            );
        }
    }

    fn on_injection(this: ArcBorrow<'_, Self>, task: InTask<'_>, vector: u32) {
        let hot = this.0.hot.of_loaded(task);
        this.line(hot, Class::Interrupts, fmt!("injected {vector:#x}"));
    }

    fn on_eoi(this: ArcBorrow<'_, Self>, task: InTask<'_>, vector: u32) {
        let hot = this.0.hot.of_loaded(task);
        this.line(hot, Class::Interrupts, fmt!("eoi {vector:#x}"));
    }
}
