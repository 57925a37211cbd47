// SPDX-License-Identifier: GPL-2.0
//! Trace: one line an event in the kernel's trace, by `trace_printk()`.
//!
//! What is traced is told by who sees it happen ([`crate::see`], [`crate::poke`], [`crate::hold`]),
//! which asks [`Trace::wants`] first and so formats nothing while it is off; the trace events of the
//! same things (`events/kvmate/`) are the kernel's and stand beside this.
//!
//! # Contexts and locks
//!
//! A line is written in any context but NMIs, from a buffer on the stack. A CPU's rate and the filter have a
//! spinlock each (interrupts off), never one in another, and nothing is written under them.

mod knobs;

pub(crate) use knobs::{LostTable, VmFilter, MASK, RATE};

use crate::{
    pure::{
        line::Line,
        rate::{Rate, Verdict},
        who::NAME,
    },
    wrap::{percpu, trace_printk},
};
use core::{
    fmt::Write,
    sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering::Relaxed},
};
use kernel::{
    fmt, new_spinlock_irq,
    prelude::*,
    sync::{Arc, SpinLockIrq},
    time::{Instant, Monotonic},
};

/// The longest line.
const LENGTH: usize = 200;

/// What can be traced: a bit of `knobs/trace` each.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Class {
    /// Exits.
    Exits = 1,
    /// MSRs.
    Msrs = 2,
    /// Page faults.
    Faults = 4,
    /// Interrupts, and kvmate's own injections.
    Interrupts = 8,
    /// gmem files.
    Gmem = 16,
}

/// What is traced, and how.
#[pin_data]
pub(crate) struct Trace {
    /// `knobs/trace`; changed under `Watch::state`.
    mask: AtomicU8,
    /// `knobs/trace_rate`
    rate: AtomicU64,
    /// Whether `vm` is the only one that is wanted.
    filtered: AtomicBool,
    /// `knobs/trace_vm`; all zero bytes: none.
    #[pin]
    vm: SpinLockIrq<[u8; NAME]>,
    /// The beginning of its first second.
    began: Instant<Monotonic>,
    /// One a possible CPU.
    cpus: KVVec<Pin<KBox<SpinLockIrq<Rate>>>>,
}

impl Trace {
    /// Nothing is traced.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let mut cpus = KVVec::new();
        for _ in 0..percpu::possible_cpus() {
            let rate = KBox::pin_init(new_spinlock_irq!(Rate::new()), GFP_KERNEL)?;
            cpus.push(rate, GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                mask: AtomicU8::new(0),
                rate: AtomicU64::new(0),
                filtered: AtomicBool::new(false),
                vm <- new_spinlock_irq!([0; NAME]),
                began: Instant::now(),
                cpus,
            }),
            GFP_KERNEL,
        )
    }

    /// Whether lines of that class are wanted.
    pub(crate) fn wants(&self, class: Class) -> bool {
        self.mask.load(Relaxed) & class as u8 != 0
    }

    /// Before lines of these classes may be written: the kernel's buffers for them, which it keeps. One at
    /// a time; sleeps.
    pub(crate) fn prepare(mask: u8) {
        if mask != 0 {
            trace_printk::begin();
        }
    }

    /// Lines of these classes are wanted from now on, which are prepared. One at a time.
    pub(crate) fn want(&self, mask: u8) {
        self.mask.store(mask, Relaxed);
    }

    /// Whether the filter lets pass what happens in that VM; `None`: in none.
    fn passes(&self, vm: Option<&[u8; NAME]>) -> bool {
        !self.filtered.load(Relaxed) || vm == Some(&*self.vm.lock())
    }

    /// Write a line about a VM, or about none, unless the filter or the rate forbid it. Any context.
    pub(crate) fn line(&self, vm: Option<&[u8; NAME]>, text: fmt::Arguments<'_>) {
        if !self.passes(vm) {
            return;
        }
        let limit = self.rate.load(Relaxed);
        let second = self.began.elapsed().as_nanos().unsigned_abs() / 1_000_000_000;
        let Some(cpu) = self.cpus.get(percpu::this_cpu()) else {
            return;
        };
        let verdict = cpu.lock().admit(second, limit);
        let Verdict::Write { lost } = verdict else {
            return;
        };
        if lost > 0 {
            let mut line = Line::<LENGTH>::new();
            // Cannot fail: what is too long is cut.
            let _ = line.write_fmt(fmt!(
                "kvmate: {lost} lines lost on this CPU (knobs/trace_rate)"
            ));
            trace_printk::line(line.as_c_str());
        }
        let mut line = Line::<LENGTH>::new();
        let _ = line.write_fmt(text);
        trace_printk::line(line.as_c_str());
    }
}
