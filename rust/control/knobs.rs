// SPDX-License-Identifier: GPL-2.0
//! What stands under `knobs/`: each file a value that can be read, set and takes effect at once.
//!
//! A knob for which every byte is legal, and which is merely read where it matters, is made with
//! `debugfs_create_u8()`; one with a range or an effect has a setter here, in the same format:
//! outside its range it answers `EINVAL` and changes nothing.

use crate::{
    hold::{self, Gmem},
    poke::Poke,
    pure::range::Range,
    see::{Wanted, Watch},
    trace::{self, Trace},
    wrap::{byte::SharedByte, debugfs::Number},
};
use kernel::{prelude::*, sync::Arc};

/// Whether something is recorded.
const RECORD: Range = Range::SWITCH;

/// `inject`: whether interrupts are injected from debugfs.
const INJECT: Range = Range::SWITCH;

/// `latency`: whether bindings' interrupts are timed.
const LATENCY: Range = Range::SWITCH;

/// `verbose`, and who asks it: whether changes are told in the log.
#[derive(Clone)]
pub(super) struct Log {
    verbose: Arc<SharedByte>,
}

impl Log {
    pub(super) fn new(verbose: Arc<SharedByte>) -> Self {
        Self { verbose }
    }

    pub(super) fn byte(&self) -> Arc<SharedByte> {
        self.verbose.clone()
    }

    fn change(&self, knob: &str, from: u64, to: u64) {
        if from != to && self.verbose.load() != 0 {
            pr_info!("knobs/{knob}: {from} -> {to}\n");
        }
    }
}

/// What is recorded is chosen by knobs of one kind, and by module parameters of their names.
#[derive(Clone, Copy)]
pub(super) struct Recording {
    pub(super) name: &'static CStr,
    which: fn(&mut Wanted) -> &mut bool,
}

/// All of them.
pub(super) const RECORDINGS: [Recording; 5] = [
    recording(c"observe", |wanted| &mut wanted.observe),
    recording(c"times", |wanted| &mut wanted.times),
    recording(c"msrs", |wanted| &mut wanted.msrs),
    recording(c"faults", |wanted| &mut wanted.faults),
    recording(c"irqs", |wanted| &mut wanted.irqs),
];

const fn recording(name: &'static CStr, which: fn(&mut Wanted) -> &mut bool) -> Recording {
    Recording { name, which }
}

impl Recording {
    /// Want it or do not, from the parameter's value. `EINVAL`: neither 0 nor 1.
    pub(super) fn want(self, value: u64, wanted: &mut Wanted) -> Result {
        if !RECORD.contains(value) {
            return Err(EINVAL);
        }
        *(self.which)(wanted) = value == 1;
        Ok(())
    }

    fn is_wanted(self, mut wanted: Wanted) -> bool {
        *(self.which)(&mut wanted)
    }
}

/// The knob of a recording.
pub(super) struct Record {
    pub(super) log: Log,
    pub(super) watch: Arc<Watch>,
    pub(super) recording: Recording,
}

impl Number for Record {
    fn get(&self) -> u64 {
        self.recording.is_wanted(self.watch.wanted()).into()
    }

    /// `EINVAL`: neither 0 nor 1. `ENOENT`: this KVM has no such tracepoint. Without kvm it takes effect
    /// when kvm comes.
    fn set(&self, value: u64) -> Result {
        let recording = self.recording;
        let before = self.watch.want(|wanted| recording.want(value, wanted))?;
        let name = recording.name.to_str().unwrap_or_default();
        self.log
            .change(name, recording.is_wanted(before).into(), value);
        Ok(())
    }
}

/// The knob `gmem_order`.
pub(super) struct GmemOrder {
    pub(super) log: Log,
    pub(super) gmem: Arc<Gmem>,
}

impl Number for GmemOrder {
    fn get(&self) -> u64 {
        self.gmem.order()
    }

    /// `EINVAL`: not 0 to 9. For folios made from now on, of all files.
    fn set(&self, value: u64) -> Result {
        if !hold::ORDER.contains(value) {
            return Err(EINVAL);
        }
        let before = self.gmem.set_order(value);
        self.log.change("gmem_order", before, value);
        Ok(())
    }
}

/// The knob `inject`.
pub(super) struct Inject {
    pub(super) log: Log,
    pub(super) poke: Arc<Poke>,
}

impl Number for Inject {
    fn get(&self) -> u64 {
        self.poke.allowed().into()
    }

    /// `EINVAL`: neither 0 nor 1.
    fn set(&self, value: u64) -> Result {
        if !INJECT.contains(value) {
            return Err(EINVAL);
        }
        let before = self.poke.allow(value == 1);
        self.log.change("inject", before.into(), value);
        Ok(())
    }
}

/// The knob `latency`.
pub(super) struct Latency {
    pub(super) log: Log,
    pub(super) poke: Arc<Poke>,
}

impl Number for Latency {
    fn get(&self) -> u64 {
        self.poke.times().into()
    }

    /// `EINVAL`: neither 0 nor 1. `ENOENT`: this KVM has no such tracepoints. Without kvm it takes effect
    /// when kvm comes.
    fn set(&self, value: u64) -> Result {
        if !LATENCY.contains(value) {
            return Err(EINVAL);
        }
        let before = self.poke.time(value == 1)?;
        self.log.change("latency", before.into(), value);
        Ok(())
    }
}

/// The knob `trace`.
pub(super) struct TraceMask {
    pub(super) log: Log,
    pub(super) watch: Arc<Watch>,
}

impl Number for TraceMask {
    fn get(&self) -> u64 {
        self.watch.wanted().trace.into()
    }

    /// `EINVAL`: more than the bits there are.
    fn set(&self, value: u64) -> Result {
        if !trace::MASK.contains(value) {
            return Err(EINVAL);
        }
        let before = self.watch.want(|wanted| {
            wanted.trace = value as u8;
            Ok(())
        })?;
        self.log.change("trace", before.trace.into(), value);
        Ok(())
    }
}

/// The knob `trace_rate`.
pub(super) struct TraceRate {
    pub(super) log: Log,
    pub(super) trace: Arc<Trace>,
}

impl Number for TraceRate {
    fn get(&self) -> u64 {
        self.trace.rate()
    }

    /// `EINVAL`: more than a million.
    fn set(&self, value: u64) -> Result {
        if !trace::RATE.contains(value) {
            return Err(EINVAL);
        }
        let before = self.trace.set_rate(value);
        self.log.change("trace_rate", before, value);
        Ok(())
    }
}
