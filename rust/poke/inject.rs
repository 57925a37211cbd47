// SPDX-License-Identifier: GPL-2.0
//! Injection from the shell: the files `inject` and `inject_status` of a VM.
//!
//! A write is one interrupt, done when it returns. What became of it, or why it was refused, stands in
//! `inject_status` until the next. Process context; see [`super`] for locks.

use super::{refusal::Refusal, Permit, Poke};
use crate::{
    pure::inject::{self as text, Line, Msi, Request},
    see::Vm,
    wrap::{
        command::Command,
        debugfs::Table,
        gate::InTask,
        irq::{Source, Taken},
        trace_event::Interrupt,
    },
};
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// What may be written.
const REQUESTS: &str =
    "not one of: gsi N, gsi N high, gsi N low, msi ADDRESS DATA, nmi VCPU, irqfd GSI";

/// What a write came to.
#[derive(Clone, Copy)]
pub(super) struct Told {
    request: Option<Request>,
    /// What became of it; `None`: that is known to KVM only.
    outcome: Result<Option<Taken>, Refusal>,
}

/// A request as it is shown again.
pub(super) struct Shown(pub(super) Option<Request>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("-"),
            Some(Request::Gsi(gsi, Line::Edge)) => write!(f, "gsi {gsi}"),
            Some(Request::Gsi(gsi, Line::High)) => write!(f, "gsi {gsi} high"),
            Some(Request::Gsi(gsi, Line::Low)) => write!(f, "gsi {gsi} low"),
            Some(Request::Msi(Msi { address, data })) => write!(f, "msi {address:#x} {data:#x}"),
            Some(Request::Nmi(vcpu)) => write!(f, "nmi {vcpu}"),
            Some(Request::Irqfd(gsi)) => write!(f, "irqfd {gsi}"),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Shown(self.request), f)?;
        f.write_str(": ")?;
        match self.outcome {
            Ok(taken) => f.write_str(name_of(taken)),
            Err(refusal) => fmt::Display::fmt(&refusal, f),
        }
    }
}

/// What KVM's answer is called; `None`: it gives none.
pub(super) fn name_of(taken: Option<Taken>) -> &'static str {
    match taken {
        Some(Taken::Delivered) => "delivered",
        Some(Taken::Coalesced) => "coalesced",
        Some(Taken::Ignored) => "ignored",
        None => "signalled",
    }
}

/// `vms/*/inject`
pub(crate) struct Inject {
    vm: Arc<Vm>,
    poke: Arc<Poke>,
}

impl Command for Inject {
    fn run(&self, text: Option<&[u8]>) -> Result {
        let (request, outcome) = match self.poke.permit() {
            None => (None, Err(Refusal::NotAllowed)),
            Some(permit) => match text.and_then(text::parse) {
                Some(request) => {
                    let outcome = self.inject(permit, request);
                    if let Ok(answer) = outcome {
                        self.poke
                            .traces(Interrupt::Inject, &self.vm, request, Ok(answer));
                    }
                    (Some(request), outcome)
                }
                None => (None, Err(Refusal::NotUnderstood(REQUESTS))),
            },
        };
        self.vm.poke.tell(Told { request, outcome });
        outcome.map(drop).map_err(|refusal| refusal.errno())
    }
}

impl Inject {
    /// For that VM.
    pub(crate) fn new(vm: Arc<Vm>, poke: Arc<Poke>) -> Self {
        Self { vm, poke }
    }

    fn inject(&self, permit: Permit, request: Request) -> Result<Option<Taken>, Refusal> {
        let done = self.vm.gate.enter(|vm| {
            if !self.poke.permits(permit) {
                return Err(Refusal::NotAllowed);
            }
            let taken = match request {
                Request::Gsi(gsi, Line::Edge) => vm.edge_gsi(gsi)?,
                Request::Gsi(gsi, Line::High) => self.level(&vm, gsi, true)?,
                Request::Gsi(gsi, Line::Low) => self.level(&vm, gsi, false)?,
                Request::Msi(msi) => vm.send_msi(msi)?,
                Request::Nmi(vcpu) => Self::nmi(&vm, vcpu)?,
                Request::Irqfd(gsi) => {
                    vm.signal_irqfd(gsi)?;
                    return Ok(None);
                }
            };
            Ok(Some(taken))
        });
        done.unwrap_or(Err(Refusal::Ended))
    }

    fn level(&self, vm: &InTask<'_>, gsi: u32, up: bool) -> Result<Taken, Refusal> {
        let target = &self.vm.poke;
        if up && !target.may_rise() {
            return Err(Refusal::Ended);
        }
        let taken = vm.set_gsi(gsi, Source::Held, up)?;
        target.hold(gsi, up);
        Ok(taken)
    }

    fn nmi(vm: &InTask<'_>, vcpu: u32) -> Result<Taken, Refusal> {
        let number = i32::try_from(vcpu).map_err(|_| Refusal::NoVcpu)?;
        vm.vcpu(number).ok_or(Refusal::NoVcpu)?;
        let nmi = Msi::nmi(vcpu, vm.has_long_apic_ids()).ok_or(Refusal::NoAddress)?;
        Ok(vm.send_msi(nmi)?)
    }
}

/// `vms/*/inject_status`
pub(crate) struct InjectStatus(pub(crate) Arc<Vm>);

impl Table for InjectStatus {
    fn show(&self, out: &SeqFile) -> Result {
        match self.0.poke.told() {
            Some(told) => seq_print!(out, "{told}\n"),
            None => seq_print!(out, "-\n"),
        }
        Ok(())
    }
}
