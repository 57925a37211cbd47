// SPDX-License-Identifier: GPL-2.0
//! Why the shell was refused: each reason has an errno of its own, and a line.

use kernel::{fmt, prelude::*};

/// Why nothing was injected.
#[derive(Clone, Copy)]
pub(super) enum Refusal {
    /// `knobs/inject` is 0.
    NotAllowed,
    /// That is no request; these are.
    NotUnderstood(&'static str),
    /// A number of a storm that is none.
    OutOfRange,
    /// A storm goes on.
    Busy,
    /// The GSI has no route.
    NoRoute,
    /// No GSI of the VM is routed to an MSI.
    NoMsiRoute,
    /// Routed to what has no such thing.
    OtherRoute,
    /// No such vCPU.
    NoVcpu,
    /// A vCPU whose number is no APIC id that an MSI can be addressed to.
    NoAddress,
    /// KVM has no irqfd of that GSI.
    NoIrqfd,
    /// The VM has ended, or we go.
    Ended,
    /// No memory.
    NoMemory,
}

impl Refusal {
    /// Its errno, that one's name, and why.
    fn parts(self) -> (Error, &'static str, &'static str) {
        match self {
            Self::NotAllowed => (EPERM, "EPERM", "knobs/inject is 0"),
            Self::NotUnderstood(requests) => (EINVAL, "EINVAL", requests),
            Self::OutOfRange => (
                ERANGE,
                "ERANGE",
                "a count is 1 to 4294967295, a rate 1 to 1000000 a second",
            ),
            Self::Busy => (EBUSY, "EBUSY", "a storm goes on; stop ends it"),
            Self::NoRoute => (ENOENT, "ENOENT", "the GSI has no route"),
            Self::NoMsiRoute => (
                ENXIO,
                "ENXIO",
                "the VM has no GSI that is routed to an MSI, and so nothing that takes one",
            ),
            Self::OtherRoute => (
                EOPNOTSUPP,
                "EOPNOTSUPP",
                "the GSI is routed to an MSI, which has no level, or to something of Hyper-V's or Xen's",
            ),
            Self::NoVcpu => (ESRCH, "ESRCH", "no such vCPU"),
            Self::NoAddress => (
                ERANGE,
                "ERANGE",
                "an MSI cannot be addressed to that vCPU's APIC id",
            ),
            Self::NoIrqfd => (
                ENOTCONN,
                "ENOTCONN",
                "the VMM has given KVM no irqfd of that GSI",
            ),
            Self::Ended => (EIO, "EIO", "the VM has ended, or kvmate goes"),
            Self::NoMemory => (ENOMEM, "ENOMEM", "no memory for a storm"),
        }
    }

    /// Its errno.
    pub(super) fn errno(self) -> Error {
        self.parts().0
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name, why) = self.parts();
        write!(f, "{name}: {why}")
    }
}

impl From<Error> for Refusal {
    /// What [`crate::wrap::irq`] and [`crate::wrap::irqfds`] answer.
    fn from(error: Error) -> Self {
        match error {
            ENOENT => Self::NoRoute,
            ENXIO => Self::NoMsiRoute,
            ENOTCONN => Self::NoIrqfd,
            _ => Self::OtherRoute,
        }
    }
}
