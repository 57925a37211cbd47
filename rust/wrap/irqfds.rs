// SPDX-License-Identifier: GPL-2.0
//! KVM's own irqfds of a VM, and where GSIs are routed to.
//!
//! C header: [`include/linux/kvm_irqfd.h`](srctree/include/linux/kvm_irqfd.h)

use super::{eventfd::EventFdId, gate::InTask};
use crate::{pure::inject::Msi, raw};
use kernel::{bindings, error::to_result, ffi::c_void, prelude::*};

/// An irqfd of KVM's.
#[derive(Clone, Copy)]
pub(crate) struct Irqfd {
    /// The GSI.
    pub(crate) gsi: u32,
    /// Level, with a second eventfd.
    pub(crate) resample: bool,
    /// Which eventfd.
    pub(crate) eventfd: EventFdId,
}

/// Where a GSI is routed to.
#[derive(Clone, Copy)]
pub(crate) enum Route {
    /// A pin of the master PIC, counted from the slave's on as 8 and up.
    Pic(u32),
    /// A pin of the IOAPIC.
    Ioapic(u32),
    /// An MSI.
    Msi(Msi),
    /// Something else, by KVM's number for it.
    Other(u32),
}

/// A GSI's routes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Routes([Option<Route>; raw::ROUTES]);

impl Routes {
    /// One after the other.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Route> + '_ {
        self.0.iter().flatten().copied()
    }
}

impl InTask<'_> {
    /// Call `visit` for every irqfd of KVM's. No sleep, no allocation: interrupts are off.
    pub(crate) fn each_irqfd<F: FnMut(Irqfd)>(&self, mut visit: F) {
        /// # Safety
        ///
        /// `visit` is the `F` below.
        unsafe extern "C" fn call<F: FnMut(Irqfd)>(
            visit: *mut c_void,
            gsi: u32,
            resample: bool,
            eventfd: *mut bindings::eventfd_ctx,
        ) {
            // SAFETY: The caller's promise.
            let visit = unsafe { &mut *visit.cast::<F>() };
            visit(Irqfd {
                gsi,
                resample,
                eventfd: EventFdId::of(eventfd),
            });
        }
        // SAFETY: A live VM (type invariant of `LiveVm`), interrupts are on (that of `InTask`);
        // `visit` outlives the call.
        unsafe {
            raw::kvmate_irqfd_each(
                self.as_ptr().as_ptr(),
                Some(call::<F>),
                (&raw mut visit).cast::<c_void>(),
            )
        };
    }

    /// Signal the eventfd of KVM's first irqfd of a GSI. `ENOTCONN`: none has it.
    pub(crate) fn signal_irqfd(&self, gsi: u32) -> Result {
        // SAFETY: A live VM (type invariant of `LiveVm`), and interrupts are on (that of `InTask`).
        to_result(unsafe { raw::kvmate_irqfd_signal(self.as_ptr().as_ptr(), gsi) })
    }

    /// Where a GSI is routed to.
    pub(crate) fn routes(&self, gsi: u32) -> Routes {
        let mut found = [const {
            raw::kvmate_route {
                type_: 0,
                chip: 0,
                pin: 0,
                data: 0,
                address: 0,
            }
        }; raw::ROUTES];
        // SAFETY: A live VM (type invariant of `LiveVm`), and room for as many as there can be.
        let count =
            unsafe { raw::kvmate_irq_routes(self.as_ptr().as_ptr(), gsi, found.as_mut_ptr()) };
        let mut routes = Routes::default();
        let all = found.iter().take(count as usize);
        for (to, from) in routes.0.iter_mut().zip(all) {
            *to = Some(match (from.type_, from.chip) {
                (raw::ROUTE_CHIP, raw::CHIP_IOAPIC) => Route::Ioapic(from.pin),
                (raw::ROUTE_CHIP, _) => Route::Pic(from.pin),
                (raw::ROUTE_MSI, _) => Route::Msi(Msi {
                    address: from.address,
                    data: from.data,
                }),
                (other, _) => Route::Other(other),
            });
        }
        routes
    }
}
