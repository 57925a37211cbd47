// SPDX-License-Identifier: GPL-2.0
//! What is traced of kvmate's own interrupts: a line each, and the events `inject` (from debugfs) and
//! `deliver` (by bindings). Any context; nothing is put into words while nobody wants it.

use super::{
    inject::{self, Shown},
    Poke,
};
use crate::{
    pure::{inject::Request, line::Line},
    see::{self, Vm},
    trace::Class,
    wrap::{irq::Taken, trace_event::Interrupt},
};
use core::fmt::Write;
use kernel::{fmt, prelude::*};

/// The longest name of an interrupt, and of what became of it.
const LENGTH: usize = 48;

/// What KVM has answered.
struct Answer(Result<Option<Taken>>);

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(taken) => f.write_str(inject::name_of(taken)),
            Err(error) => match error.name() {
                Some(name) => fmt::Display::fmt(name, f),
                None => write!(f, "{}", error.to_errno()),
            },
        }
    }
}

impl Poke {
    /// An interrupt of a VM, and what became of it; `None`: only KVM knows.
    pub(super) fn traces(
        &self,
        by: Interrupt,
        vm: &Vm,
        what: Request,
        answer: Result<Option<Taken>>,
    ) {
        let lines = self.trace.wants(Class::Interrupts);
        if !lines && !by.is_on() {
            return;
        }
        let (what, answer) = (Shown(Some(what)), Answer(answer));
        let name = see::name_of(vm);
        if lines {
            let verb = match by {
                Interrupt::Inject => "inject",
                Interrupt::Deliver => "deliver",
            };
            let vm = name.as_c_str();
            self.trace
                .line(Some(name.bytes()), fmt!("vm {vm}: {verb} {what}: {answer}"));
        }
        let (mut shown, mut told) = (Line::<LENGTH>::new(), Line::<LENGTH>::new());
        // Cannot fail: what is too long is cut.
        let _ = shown.write_fmt(fmt!("{what}"));
        let _ = told.write_fmt(fmt!("{answer}"));
        by.happens(name.as_c_str(), shown.as_c_str(), told.as_c_str());
    }
}
