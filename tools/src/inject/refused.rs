// SPDX-License-Identifier: GPL-2.0
//! Why an interrupt was refused, and what to do: what errnos of `inject` and `storm` mean.

use super::What;
use crate::tree::{Vm, DEBUGFS};
use anyhow::{anyhow, Error};
use rustix::io::Errno;
use std::io;

/// What the module's answer to a write means.
pub fn told(vm: &Vm, file: &str, what: &What, error: &io::Error) -> Error {
    let name = &vm.name;
    let routes = "its VMM makes routes (KVM_SET_GSI_ROUTING)";
    match (Errno::from_io_error(error), what) {
        (Some(Errno::PERM), _) => anyhow!(
            "{what}: knobs/inject is 0: echo 1 > {DEBUGFS}/kvmate/knobs/inject"
        ),
        (Some(Errno::BUSY), _) => anyhow!(
            "{what}: a storm goes on in VM {name}: wait for its end, or echo stop > {}",
            vm.path(file).display()
        ),
        (Some(Errno::NOENT), What::Gsi { gsi, .. }) => {
            anyhow!("{what}: VM {name} has no route of GSI {gsi}: {routes}")
        }
        (Some(Errno::OPNOTSUPP), What::Gsi { level: Some(_), .. }) => anyhow!(
            "{what}: the GSI is routed to an MSI, which has no level, or to something of Hyper-V's or Xen's: \
             try it without high and low"
        ),
        (Some(Errno::OPNOTSUPP), _) => anyhow!(
            "{what}: the GSI is routed to something of Hyper-V's or Xen's, which takes no interrupts of ours: \
             send an MSI"
        ),
        (Some(Errno::NXIO), _) => anyhow!(
            "{what}: no GSI of VM {name} is routed to an MSI, so that nothing takes one: {routes}; or send a gsi"
        ),
        (Some(Errno::SRCH), What::Nmi { vcpu }) => anyhow!(
            "{what}: VM {name} has no vCPU {vcpu}: {} lists them",
            vm.path("vcpus").display()
        ),
        (Some(Errno::RANGE), What::Nmi { .. }) => anyhow!(
            "{what}: no MSI can be addressed to that vCPU's APIC id: its VMM would have to enable long ids \
             (KVM_CAP_X2APIC_API)"
        ),
        (Some(Errno::NOTCONN), What::Irqfd { gsi }) => anyhow!(
            "{what}: VM {name}'s VMM has given KVM no irqfd of GSI {gsi}: {} lists them",
            vm.path("irqfds").display()
        ),
        (Some(Errno::INVAL), What::Msi { address, .. }) => anyhow!(
            "{what}: no APIC listens at {address:#x}: addresses are 0xfee00000 to 0xfeefffff, bits 8 to 31 \
             of a long APIC id from bit 40 on"
        ),
        (Some(Errno::NOMEM), _) => anyhow!("{what}: the kernel is short of memory"),
        _ => vm.failed(file, error).context(what.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inject::{Level, Storm};

    fn gsi(level: Option<Level>) -> What {
        let storm = Storm {
            storm: None,
            rate: None,
            no_wait: false,
        };
        What::Gsi {
            gsi: 10,
            level,
            storm,
        }
    }

    /// Each errno that `uapi/debugfs.md` documents has a line of its own, with a next step.
    #[test]
    fn each_errno_is_told_apart() {
        let vm = crate::tree::tests::vm("1-1", None);
        let said = |errno: Errno, what: What| {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            format!("{:#}", told(&vm, "inject", &what, &error))
        };
        let mut all = vec![
            said(Errno::PERM, gsi(None)),
            said(Errno::BUSY, gsi(None)),
            said(Errno::NOENT, gsi(None)),
            said(Errno::OPNOTSUPP, gsi(None)),
            said(Errno::OPNOTSUPP, gsi(Some(Level::High))),
            said(Errno::NXIO, What::Nmi { vcpu: 0 }),
            said(Errno::SRCH, What::Nmi { vcpu: 0 }),
            said(Errno::RANGE, What::Nmi { vcpu: 0 }),
            said(Errno::NOTCONN, What::Irqfd { gsi: 10 }),
            said(Errno::IO, gsi(None)),
            said(Errno::NOMEM, gsi(None)),
        ];
        assert!(all[0].ends_with("echo 1 > /sys/kernel/debug/kvmate/knobs/inject"));
        assert!(all[9].contains("has ended"), "{}", all[9]);
        assert!(all.iter().all(|line| !line.contains("os error")), "{all:?}");
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 11);
    }
}
