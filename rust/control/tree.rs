// SPDX-License-Identifier: GPL-2.0
//! `/sys/kernel/debug/kvmate/`: which file shows what.

use super::{
    knobs::{GmemOrder, Inject, Latency, Record, TraceMask, TraceRate, RECORDINGS},
    State,
};
use crate::{
    see::{Layouts, Watch},
    trace::{LostTable, VmFilter},
    wrap::{
        debugfs::{Dir, File, Table},
        uabi,
    },
};
use kernel::{
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// All files but those of VMs. Files stand before their folders: they go first.
pub(crate) struct Tree {
    _recordings: KVec<File>,
    _knobs: [File; 7],
    _knobs_dir: Dir,
    _tables: [File; 6],
}

impl Tree {
    /// Make the tree.
    pub(crate) fn new(state: &State) -> Result<Self> {
        let root = &state.root;
        let total = Arc::new(Total(state.watch.clone()), GFP_KERNEL)?;
        let lost = LostTable(state.trace.clone());
        let tables = [
            File::table(c"version", root, Arc::new(Version, GFP_KERNEL)?)?,
            File::table(c"vermagic", root, Arc::new(Vermagic, GFP_KERNEL)?)?,
            File::table(c"exits", root, total)?,
            File::table(c"ended", root, state.ended.clone())?,
            File::table(c"trace_lost", root, Arc::new(lost, GFP_KERNEL)?)?,
            File::table(c"layouts", root, state.layouts.clone())?,
        ];
        let dir = Dir::new(c"knobs", Some(root))?;
        let mut recordings = KVec::with_capacity(RECORDINGS.len(), GFP_KERNEL)?;
        for recording in RECORDINGS {
            let knob = Record {
                log: state.log.clone(),
                watch: state.watch.clone(),
                recording,
            };
            let knob = Arc::new(knob, GFP_KERNEL)?;
            recordings.push(File::number(recording.name, &dir, knob)?, GFP_KERNEL)?;
        }
        let gmem_order = GmemOrder {
            log: state.log.clone(),
            gmem: state.gmem.clone(),
        };
        let inject = Inject {
            log: state.log.clone(),
            poke: state.poke.clone(),
        };
        let latency = Latency {
            log: state.log.clone(),
            poke: state.poke.clone(),
        };
        let trace = TraceMask {
            log: state.log.clone(),
            watch: state.watch.clone(),
        };
        let trace_rate = TraceRate {
            log: state.log.clone(),
            trace: state.trace.clone(),
        };
        let trace_vm = VmFilter(state.trace.clone());
        let knobs = [
            File::number(c"gmem_order", &dir, Arc::new(gmem_order, GFP_KERNEL)?)?,
            File::number(c"inject", &dir, Arc::new(inject, GFP_KERNEL)?)?,
            File::number(c"latency", &dir, Arc::new(latency, GFP_KERNEL)?)?,
            File::number(c"trace", &dir, Arc::new(trace, GFP_KERNEL)?)?,
            File::number(c"trace_rate", &dir, Arc::new(trace_rate, GFP_KERNEL)?)?,
            File::dialogue(c"trace_vm", &dir, Arc::new(trace_vm, GFP_KERNEL)?)?,
            File::byte(c"verbose", &dir, state.log.byte())?,
        ];
        Ok(Self {
            _recordings: recordings,
            _knobs: knobs,
            _knobs_dir: dir,
            _tables: tables,
        })
    }
}

/// `version`: the module's version.
struct Version;

impl Table for Version {
    fn show(&self, out: &SeqFile) -> Result {
        let version = CStr::from_bytes_with_nul(uabi::VERSION).unwrap_or(c"");
        seq_print!(out, "{version}\n");
        Ok(())
    }
}

/// `vermagic`: what the module was built for; `scripts/vermagic` compares it.
struct Vermagic;

impl Table for Vermagic {
    fn show(&self, out: &SeqFile) -> Result {
        seq_print!(out, "{}\n", uabi::vermagic());
        Ok(())
    }
}

/// `exits`: how many VM exits were seen since load, all VMs together; `-` without kvm.
struct Total(Arc<Watch>);

impl Table for Total {
    fn show(&self, out: &SeqFile) -> Result {
        if Watch::possible() {
            seq_print!(out, "{}\n", self.0.total());
        } else {
            seq_print!(out, "-\n");
        }
        Ok(())
    }
}

/// `layouts`: whether the running KVM's structures are those that we were compiled for, a module of
/// KVM's a line.
impl Table for Layouts {
    fn show(&self, out: &SeqFile) -> Result {
        for (owner, verdict) in self.all() {
            seq_print!(out, "{} {verdict}\n", owner.name());
        }
        Ok(())
    }
}
