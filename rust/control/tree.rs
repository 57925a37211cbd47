// SPDX-License-Identifier: GPL-2.0
//! `/sys/kernel/debug/kvmate/`: which file shows what.

use super::{knobs::Observe, State};
use crate::{
    see::Exits,
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

/// The whole tree. Files stand before their folders: they go first.
pub(crate) struct Tree {
    _knobs: [File; 2],
    _knobs_dir: Dir,
    _tables: [File; 3],
    _root: Dir,
}

impl Tree {
    /// Make the tree.
    pub(crate) fn new(state: &State) -> Result<Self> {
        let root = Dir::new(c"kvmate", None).inspect_err(|error| {
            pr_err!("no debugfs folder kvmate: {error:?} (debugfs=off?)\n");
        })?;
        let tables = [
            File::table(c"version", &root, Arc::new(Version, GFP_KERNEL)?)?,
            File::table(c"vermagic", &root, Arc::new(Vermagic, GFP_KERNEL)?)?,
            File::table(c"exits", &root, state.exits.clone())?,
        ];
        let dir = Dir::new(c"knobs", Some(&root))?;
        let observe = Observe {
            log: state.log.clone(),
            exits: state.exits.clone(),
        };
        let knobs = [
            File::number(c"observe", &dir, Arc::new(observe, GFP_KERNEL)?)?,
            File::byte(c"verbose", &dir, state.log.byte())?,
        ];
        Ok(Self {
            _knobs: knobs,
            _knobs_dir: dir,
            _tables: tables,
            _root: root,
        })
    }
}

/// `version`: the module's version.
struct Version;

impl Table for Version {
    fn show(&self, out: &SeqFile) {
        let version = CStr::from_bytes_with_nul(uabi::VERSION).unwrap_or(c"");
        seq_print!(out, "{version}\n");
    }
}

/// `vermagic`: what the module was built for; `scripts/vermagic` compares it.
struct Vermagic;

impl Table for Vermagic {
    fn show(&self, out: &SeqFile) {
        seq_print!(out, "{}\n", uabi::vermagic());
    }
}

/// `exits`: how many VM exits were counted since load, all VMs together; `-` without kvm.
impl Table for Exits {
    fn show(&self, out: &SeqFile) {
        if Exits::possible() {
            seq_print!(out, "{}\n", self.total());
        } else {
            seq_print!(out, "-\n");
        }
    }
}
