// SPDX-License-Identifier: GPL-2.0
//! The two ways of an interrupt into a VM, to be compared: KVM's own interfaces, which only the VMM can
//! use, and kvmate's.

use crate::{
    guest::irq::{self, Running},
    seen,
};
use anyhow::{Context, Result};
use kvmate_uapi::{call::Device, kvmate_irqfd, KVMATE_IRQFD_MSI, KVMATE_IRQFD_RESAMPLE};
use nix::errno::Errno;
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::fd::{AsRawFd, OwnedFd},
};
use vmm_sys_util::eventfd::EventFd;

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `KVM_IRQ_LINE`, `KVM_SIGNAL_MSI`, `KVM_IRQFD`.
    Kvm,
    /// The VM's file `inject`, `KVMATE_BIND_IRQFD`.
    Kvmate,
}

/// Both.
pub const BOTH: [Way; 2] = [Way::Kvm, Way::Kvmate];

/// What an eventfd is to give.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A GSI: what it is routed to; lines up and down.
    Gsi(u32),
    /// A GSI, up until the guest's EOI, of which this eventfd tells.
    Level(u32, &'a EventFd),
    /// An MSI that has no GSI. KVM takes this one, which must be routed to it.
    Msi((u64, u32), u32),
}

/// An eventfd that gives an interrupt, until this is dropped.
pub struct Irqfd<'a> {
    running: &'a Running<'a>,
    signal: EventFd,
    kind: Kind,
}

enum Kind {
    Kvm(u32),
    Kvmate(OwnedFd),
}

impl Irqfd<'_> {
    /// Give one.
    pub fn signal(&self) -> Result<()> {
        Ok(self.signal.write(1)?)
    }

    /// The eventfd.
    pub fn eventfd(&self) -> &EventFd {
        &self.signal
    }
}

impl Drop for Irqfd<'_> {
    fn drop(&mut self) {
        match &self.kind {
            Kind::Kvm(gsi) => {
                let undone = self.running.vm.fd.unregister_irqfd(&self.signal, *gsi);
                undone.expect("KVM_IRQFD's de-assignment");
            }
            Kind::Kvmate(_binding) => {}
        }
    }
}

/// `KVMATE_BIND_IRQFD`: the binding.
pub fn bind(request: &kvmate_irqfd) -> nix::Result<OwnedFd> {
    let bound = Device::open().and_then(|device| device.bind(request));
    bound.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// What [`bind`] is to be asked.
pub fn request(vm: &impl AsRawFd, signal: &EventFd, target: Target) -> kvmate_irqfd {
    let mut request = kvmate_irqfd {
        flags: 0,
        vm_fd: vm.as_raw_fd(),
        eventfd: signal.as_raw_fd(),
        resample_eventfd: -1,
        gsi: 0,
        msi_data: 0,
        msi_address: 0,
        reserved: [0; 4],
    };
    match target {
        Target::Gsi(gsi) => request.gsi = gsi,
        Target::Level(gsi, served) => {
            request.flags = KVMATE_IRQFD_RESAMPLE;
            request.gsi = gsi;
            request.resample_eventfd = served.as_raw_fd();
        }
        Target::Msi((address, data), _) => {
            request.flags = KVMATE_IRQFD_MSI;
            request.msi_address = address;
            request.msi_data = data;
        }
    }
    request
}

/// Write to the file `inject` of a VM, by one `write()`.
pub fn inject(vm: &str, what: &str) -> Result<()> {
    let path = seen::vms().join(vm).join("inject");
    let mut file = OpenOptions::new().write(true).open(&path)?;
    file.write_all(what.as_bytes()).with_context(|| {
        let status = fs::read_to_string(path.with_file_name("inject_status"));
        format!("inject {what:?}: {}", status.unwrap_or_default().trim())
    })
}

impl Way {
    /// Raise a GSI's line, or lower it.
    pub fn line(self, running: &Running, gsi: u32, up: bool) -> Result<()> {
        match self {
            Self::Kvm => Ok(running.vm.fd.set_irq_line(gsi, up)?),
            Self::Kvmate => {
                let level = if up { "high" } else { "low" };
                inject(running.name, &format!("gsi {gsi} {level}"))
            }
        }
    }

    /// An edge: a GSI's line goes up and down.
    pub fn edge(self, running: &Running, gsi: u32) -> Result<()> {
        match self {
            Self::Kvm => [true, false]
                .into_iter()
                .try_for_each(|up| self.line(running, gsi, up)),
            Self::Kvmate => inject(running.name, &format!("gsi {gsi}")),
        }
    }

    /// An MSI.
    pub fn msi(self, running: &Running, (address, data): (u64, u32)) -> Result<()> {
        match self {
            Self::Kvm => running.signal((address, data)),
            Self::Kvmate => inject(running.name, &format!("msi {address:#x} {data:#x}")),
        }
    }

    /// An NMI.
    pub fn nmi(self, running: &Running, cpu: usize) -> Result<()> {
        match self {
            Self::Kvm => running.signal(irq::nmi(cpu)),
            Self::Kvmate => inject(running.name, &format!("nmi {cpu}")),
        }
    }

    /// Let a new eventfd give an interrupt.
    pub fn irqfd<'a>(self, running: &'a Running<'a>, target: Target) -> Result<Irqfd<'a>> {
        let signal = EventFd::new(0)?;
        let vm = &running.vm.fd;
        let kind = match (self, target) {
            (Self::Kvm, Target::Gsi(gsi) | Target::Msi(_, gsi)) => {
                vm.register_irqfd(&signal, gsi).context("KVM_IRQFD")?;
                Kind::Kvm(gsi)
            }
            (Self::Kvm, Target::Level(gsi, served)) => {
                let bound = vm.register_irqfd_with_resample(&signal, served, gsi);
                bound.context("KVM_IRQFD with resample")?;
                Kind::Kvm(gsi)
            }
            (Self::Kvmate, _) => {
                let binding = bind(&request(vm, &signal, target));
                Kind::Kvmate(binding.context("KVMATE_BIND_IRQFD")?)
            }
        };
        Ok(Irqfd {
            running,
            signal,
            kind,
        })
    }
}
