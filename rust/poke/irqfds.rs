// SPDX-License-Identifier: GPL-2.0
//! The table `irqfds` of a VM: KVM's own irqfds, as its VMM made them.
//!
//! Reading it collects them behind the VM's gate, and then looks for their eventfds among the files of
//! the task that made the VM; no lock is held for that.

use crate::{
    see::Vm,
    wrap::{
        debugfs::Table,
        files,
        irqfds::{Irqfd, Route, Routes},
    },
};
use kernel::{
    fmt,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    sync::Arc,
};

/// How many more there may be when they are looked at than when they were counted.
const MORE: usize = 16;

struct Row {
    irqfd: Irqfd,
    routes: Routes,
    descriptor: Option<u32>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.irqfd.gsi)?;
        let mut comma = "";
        for route in self.routes.iter() {
            f.write_str(comma)?;
            match route {
                Route::Pic(pin) => write!(f, "pic:{pin}")?,
                Route::Ioapic(pin) => write!(f, "ioapic:{pin}")?,
                Route::Msi(msi) => write!(f, "msi:{:#x}:{:#x}", msi.address, msi.data)?,
                Route::Other(number) => write!(f, "type{number}")?,
            }
            comma = ",";
        }
        f.write_str(if comma.is_empty() { "-" } else { "" })?;
        f.write_str(if self.irqfd.resample { " 1" } else { " 0" })?;
        match self.descriptor {
            Some(descriptor) => write!(f, " {descriptor}"),
            None => f.write_str(" -"),
        }
    }
}

/// `vms/*/irqfds`
pub(crate) struct Irqfds(pub(crate) Arc<Vm>);

impl Irqfds {
    fn rows(&self) -> Result<KVVec<Row>> {
        let gate = &self.0.gate;
        let mut count = 0;
        gate.enter(|vm| vm.each_irqfd(|_| count += 1));
        let mut rows = KVVec::with_capacity(count + MORE, GFP_KERNEL)?;
        gate.enter(|vm| {
            vm.each_irqfd(|irqfd| {
                let row = Row {
                    irqfd,
                    routes: Routes::default(),
                    descriptor: None,
                };
                // Those for which there is no room came just now.
                let _ = rows.push_within_capacity(row);
            });
        });
        for row in &mut rows {
            if let Some(routes) = gate.enter(|vm| vm.routes(row.irqfd.gsi)) {
                row.routes = routes;
            }
        }
        files::each_eventfd(self.0.maker(), |eventfd, descriptor| {
            for row in rows.iter_mut().filter(|row| row.irqfd.eventfd == eventfd) {
                row.descriptor.get_or_insert(descriptor);
            }
        });
        Ok(rows)
    }
}

impl Table for Irqfds {
    fn show(&self, out: &SeqFile) -> Result {
        seq_print!(out, "gsi route resample fd\n");
        for row in &self.rows()? {
            seq_print!(out, "{row}\n");
        }
        Ok(())
    }
}
