// SPDX-License-Identifier: GPL-2.0
//! The ways in: the debugfs tree, its knobs, and `/dev/kvmate`.
//!
//! [`State`] is what there is to control, shared by reference counts; [`Tree`] and [`Device`] are
//! made of it and go first.

mod device;
mod knobs;
mod tree;

pub(crate) use device::Device;
pub(crate) use tree::Tree;

use crate::{
    hold::Gmem,
    poke::Poke,
    see::{Ended, Layouts, Wanted, Watch, Watching},
    trace::Trace,
    wrap::{byte::SharedByte, debugfs::Dir},
};
use kernel::{prelude::*, sync::Arc};
use knobs::{Log, RECORDINGS};

/// What the files and the device work on, and the folder that they are in. The fields' order is that
/// of the end: VMs' folders go before the one they are in.
pub(crate) struct State {
    log: Log,
    _watching: Watching,
    watch: Arc<Watch>,
    ended: Arc<Ended>,
    layouts: Arc<Layouts>,
    gmem: Arc<Gmem>,
    poke: Arc<Poke>,
    trace: Arc<Trace>,
    root: Dir,
}

impl State {
    /// The state at load, from the module's parameters: those of recordings, in their order, and verbose.
    pub(crate) fn new(recorded: [u64; RECORDINGS.len()], verbose: u8) -> Result<Self> {
        let mut wanted = Wanted::default();
        for (recording, value) in RECORDINGS.into_iter().zip(recorded) {
            recording.want(value, &mut wanted).inspect_err(|_| {
                pr_err!("parameter {}={value}: 0 or 1\n", recording.name);
            })?;
        }
        let log = Log::new(Arc::new(SharedByte::new(verbose), GFP_KERNEL)?);
        let root = Dir::new(c"kvmate", None).inspect_err(|error| {
            pr_err!("no debugfs folder kvmate: {error:?} (debugfs=off?)\n");
        })?;
        let (ended, layouts) = (Ended::new()?, Layouts::new()?);
        let trace = Trace::new()?;
        let gmem = Gmem::new(Dir::new(c"gmem", Some(&root))?, trace.clone())?;
        let vms = Dir::new(c"vms", Some(&root))?;
        let poke = Poke::new(trace.clone())?;
        let watch = Watch::new(
            vms,
            ended.clone(),
            layouts.clone(),
            poke.clone(),
            trace.clone(),
            wanted,
        )?;
        let watching = Watch::begin(&watch)?;
        Ok(Self {
            log,
            _watching: watching,
            watch,
            ended,
            layouts,
            gmem,
            poke,
            trace,
            root,
        })
    }
}
