// SPDX-License-Identifier: GPL-2.0
//! `KVMATE_BIND_IRQFD`: what is asked, checked.

use super::{
    binding::{Bound, What},
    Poke,
};
use crate::{
    pure::inject::{Msi, GSIS},
    see::Watch,
    wrap::{anon_file, eventfd::EventFd, files, uabi},
};
use kernel::{prelude::*, sync::Arc};

/// What a write is to be. `EINVAL`, `ERANGE`.
fn what(asked: &uabi::Irqfd) -> Result<What> {
    let (msi, level) = (
        asked.flags & uabi::IRQFD_MSI != 0,
        asked.flags & uabi::IRQFD_RESAMPLE != 0,
    );
    if asked.flags & !(uabi::IRQFD_MSI | uabi::IRQFD_RESAMPLE) != 0
        || (msi && level)
        || asked.reserved != [0; 4]
        || (!level && asked.resample_eventfd != -1)
    {
        return Err(EINVAL);
    }
    if msi {
        return match Msi::new(asked.msi_address, asked.msi_data) {
            Some(msi) if asked.gsi == 0 => Ok(What::Msi(msi)),
            _ => Err(EINVAL),
        };
    }
    if asked.msi_address != 0 || asked.msi_data != 0 {
        return Err(EINVAL);
    }
    match asked.gsi {
        GSIS.. => Err(ERANGE),
        gsi if level => Ok(What::Level(gsi)),
        gsi => Ok(What::Gsi(gsi)),
    }
}

/// Bind, and give the binding's descriptor. The errors are those that `uapi/kvmate.h` lists.
pub(crate) fn bind(watch: &Watch, poke: &Arc<Poke>, asked: &uabi::Irqfd) -> Result<u32> {
    let what = what(asked)?;
    if !watch.shows_vms() {
        return Err(EOPNOTSUPP);
    }
    let (vm, eventfd) = (
        files::of_descriptor(asked.vm_fd)?,
        files::of_descriptor(asked.eventfd)?,
    );
    let resample = match what {
        What::Level(_) => Some(files::of_descriptor(asked.resample_eventfd)?),
        What::Gsi(_) | What::Msi(_) => None,
    };
    let live = files::vm_of(&vm).ok_or(EBADFD)?;
    EventFd::of(&eventfd)?;
    let resample = resample.map(|file| EventFd::of(&file)).transpose()?;
    if live.dead() || live.bugged() {
        return Err(ENODEV);
    }
    if resample.is_some() && !live.has_pins() {
        return Err(ENXIO);
    }
    let (known, mm) = (watch.vm_of(live)?, live.mm());
    anon_file::install(c"[kvmate-irqfd]", || {
        Bound::new(poke, &known, mm, what, &eventfd, resample)
    })
}
