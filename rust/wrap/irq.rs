// SPDX-License-Identifier: GPL-2.0
//! Interrupts of a VM: its GSIs' lines, its MSIs.
//!
//! They go through the VM's routing table and the functions that it names, which are what KVM calls
//! itself. What is routed to an MSI may be delivered with interrupts off; what is routed to pins may
//! not, for the PIC's and the IOAPIC's locks are plain spinlocks: that is asked of an [`InTask`].
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use super::{acks::Pin, gate::InTask, kvm::LiveVm};
use crate::{pure::inject::Msi, raw};
use kernel::{error::to_result, prelude::*};

/// Who holds a line up. A line is up while anybody does. KVM has 0 to 2 for itself, of 64.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Source {
    /// An edge, while it is one.
    Edge = 61,
    /// `inject`'s `gsi N high`.
    Held = 62,
    /// Bindings with resample.
    Resample = 63,
}

/// What became of an interrupt, by what KVM's chips answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Somebody took it.
    Delivered,
    /// The one before has not been taken yet.
    Coalesced,
    /// Masked, switched off, or addressed to nobody.
    Ignored,
}

impl Taken {
    fn by_pins(answer: i32) -> Self {
        match answer {
            1.. => Self::Delivered,
            0 => Self::Coalesced,
            _ => Self::Ignored,
        }
    }

    /// An MSI that coalesces is answered as delivered; 0 is an APIC that is switched off.
    fn by_apics(answer: i32) -> Self {
        match answer {
            1.. => Self::Delivered,
            _ => Self::Ignored,
        }
    }
}

/// What a GSI is routed to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Pins of the chips.
    Pins,
    /// An MSI.
    Msi,
}

impl LiveVm<'_> {
    /// What a GSI is routed to. `ENOENT`: nothing; `EOPNOTSUPP`: what we do not know. Any context.
    pub(crate) fn route(self, gsi: u32) -> Result<Route> {
        // SAFETY: A live VM (type invariant of `LiveVm`).
        let routed = unsafe { raw::kvmate_irq_type(self.as_ptr().as_ptr(), gsi) };
        match u32::try_from(routed) {
            Ok(raw::ROUTE_CHIP) => Ok(Route::Pins),
            Ok(raw::ROUTE_MSI) => Ok(Route::Msi),
            Ok(_) => Err(EOPNOTSUPP),
            Err(_) => Err(ENOENT),
        }
    }

    /// Whether any GSI is routed to an MSI, so that [`Self::send_msi`] can. Any context.
    pub(crate) fn takes_msis(self) -> bool {
        // SAFETY: A live VM (type invariant of `LiveVm`).
        unsafe { raw::kvmate_irq_takes_msis(self.as_ptr().as_ptr()) }
    }

    /// Deliver an MSI. `ENXIO`: no GSI is routed to one. Any context.
    pub(crate) fn send_msi(self, msi: Msi) -> Result<Taken> {
        let mut answer = 0;
        // SAFETY: A live VM (type invariant of `LiveVm`).
        to_result(unsafe {
            raw::kvmate_irq_set_msi(self.as_ptr().as_ptr(), msi.address, msi.data, &mut answer)
        })?;
        Ok(Taken::by_apics(answer))
    }

    /// Deliver a GSI that is routed to an MSI. `EAGAIN`: it is routed to pins; `ENOENT`: no route;
    /// `EOPNOTSUPP`: it is routed to what we do not know. Any context.
    pub(crate) fn send_gsi(self, gsi: u32) -> Result<Taken> {
        let mut answer = 0;
        // SAFETY: A live VM (type invariant of `LiveVm`); no pins.
        to_result(unsafe {
            raw::kvmate_irq_set(
                self.as_ptr().as_ptr(),
                gsi,
                Source::Edge as i32,
                1,
                false,
                &mut answer,
            )
        })?;
        Ok(Taken::by_apics(answer))
    }

    /// Whether PIC and IOAPIC are in the kernel.
    pub(crate) fn has_pins(self) -> bool {
        // SAFETY: A live VM (type invariant of `LiveVm`).
        unsafe { raw::kvmate_irq_full_chips(self.as_ptr().as_ptr()) }
    }

    /// The GSI that is routed to a pin.
    pub(crate) fn gsi_of(self, Pin { chip, pin }: Pin) -> Option<u32> {
        // SAFETY: A live VM (type invariant of `LiveVm`).
        let gsi = unsafe { raw::kvmate_irq_gsi_of(self.as_ptr().as_ptr(), chip, pin) };
        u32::try_from(gsi).ok()
    }

    /// Whether MSIs may be addressed to APIC ids of more than eight bits.
    pub(crate) fn has_long_apic_ids(self) -> bool {
        // SAFETY: A live VM (type invariant of `LiveVm`).
        unsafe { raw::kvmate_irq_long_ids(self.as_ptr().as_ptr()) }
    }
}

impl InTask<'_> {
    /// Set a GSI's level, for one source. `ENOENT`: no route; `EOPNOTSUPP`: not to pins.
    pub(crate) fn set_gsi(&self, gsi: u32, source: Source, level: bool) -> Result<Taken> {
        let mut answer = 0;
        // SAFETY: A live VM (type invariant of `LiveVm`), and interrupts are on (that of `InTask`).
        to_result(unsafe {
            raw::kvmate_irq_set(
                self.as_ptr().as_ptr(),
                gsi,
                source as i32,
                level.into(),
                true,
                &mut answer,
            )
        })?;
        Ok(Taken::by_pins(answer))
    }

    /// Deliver a GSI that is routed to pins as an edge: up, and down again.
    fn pulse_gsi(&self, gsi: u32) -> Result<Taken> {
        let taken = self.set_gsi(gsi, Source::Edge, true)?;
        // Fails if the route has gone meanwhile; then nobody reaches the pin any more, as in KVM.
        let _ = self.set_gsi(gsi, Source::Edge, false);
        Ok(taken)
    }

    /// Deliver a GSI, wherever it is routed to: an MSI, or an edge.
    pub(crate) fn edge_gsi(&self, gsi: u32) -> Result<Taken> {
        match self.send_gsi(gsi) {
            Err(EAGAIN) => self.pulse_gsi(gsi),
            sent => sent,
        }
    }
}
