// SPDX-License-Identifier: GPL-2.0
//! The table `bindings` of a VM.

use super::binding::{Binding, What};
use crate::{pure::inject::Msi, see::Vm, wrap::debugfs::Table};
use core::sync::atomic::Ordering::Relaxed;
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Gsi(gsi) => write!(f, "gsi:{gsi}"),
            Self::Level(gsi) => write!(f, "level:{gsi}"),
            Self::Msi(Msi { address, data }) => write!(f, "msi:{address:#x}:{data:#x}"),
        }
    }
}

/// A binding's line.
struct Row<'a>(&'a Binding);

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(binding) = self;
        let counts = &binding.counts;
        let number = |counter: &core::sync::atomic::AtomicU64| counter.load(Relaxed);
        fmt::Display::fmt(&binding.what, f)?;
        write!(
            f,
            " {} {}",
            number(&counts.signalled),
            number(&counts.delivered)
        )?;
        match binding.what {
            // An MSI that coalesces is answered as delivered, also that of a GSI.
            What::Msi(_) => f.write_str(" -")?,
            What::Gsi(_) if !binding.deferred.load(Relaxed) => f.write_str(" -")?,
            _ => write!(f, " {}", number(&counts.coalesced))?,
        }
        let failed = number(&counts.failed);
        write!(f, " {failed}")?;
        match binding.what {
            What::Level(_) => write!(f, " {}", number(&counts.resampled))?,
            _ => f.write_str(" -")?,
        }
        // Why is written before it is counted.
        f.write_str(if failed == 0 {
            " -"
        } else {
            match Error::from_errno(counts.why.load(Relaxed)) {
                ENOENT => " no_route",
                ENXIO => " no_msi_route",
                ENODEV => " vm_ended",
                EAGAIN => " ignored",
                _ => " other_route",
            }
        })?;
        f.write_str(if binding.hung_up.load(Relaxed) {
            " closed"
        } else {
            " open"
        })
    }
}

/// `vms/*/bindings`
pub(crate) struct Bindings(pub(crate) Arc<Vm>);

impl Table for Bindings {
    fn show(&self, out: &SeqFile) -> Result {
        seq_print!(
            out,
            "target signalled delivered coalesced failed resampled why eventfd\n"
        );
        for binding in self.0.poke.bindings.lock().iter() {
            seq_print!(out, "{}\n", Row(&binding));
        }
        Ok(())
    }
}
