// SPDX-License-Identifier: GPL-2.0
//! A guest to poke ([`crate::guest::irq`], one vCPU): the files of kvmate that inject into it. What went into
//! the chips: [`crate::traced`].

use crate::{
    ensure_eq,
    guest::{
        irq::{msi, Chips, Guest, Running, Trigger},
        Vm,
    },
    module::DEVICE,
    seen, storm,
};
use anyhow::{Context, Result};
use kvmate_uapi::{
    kvmate_irqfd, kvmate_vm_stats, KVMATE_BIND_IRQFD, KVMATE_GET_VM_STATS, KVMATE_IRQFD_MSI,
    KVMATE_IRQFD_RESAMPLE,
};
use nix::{errno::Errno, libc};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

/// The vector of GSI [`PIN`], which is that pin of the IOAPIC.
pub const VECTOR: u8 = 0x51;
/// Routed to the IOAPIC's pin and to the PIC's, which is masked.
pub const PIN: u32 = 10;
/// The vector of GSI [`MSI`], an MSI.
pub const MSI_VECTOR: u8 = 0x61;
/// Routed to an MSI.
pub const MSI: u32 = 24;

/// Such a guest while it runs.
pub struct Poked<'a> {
    /// The guest.
    pub running: &'a Running<'a>,
    /// Its VM's name in kvmate's tree.
    pub name: String,
}

/// Run a guest whose pin is triggered so.
pub fn poked<R>(trigger: Trigger, watch: impl FnOnce(&Poked<'_>) -> Result<R>) -> Result<R> {
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    guest.ioapic(PIN as usize, trigger, 0, VECTOR);
    guest.route(&[msi(0, MSI_VECTOR)])?;
    let name = storm::name_of(&guest.vm);
    guest.run(|running| {
        watch(&Poked {
            running,
            name: name.clone(),
        })
    })
}

/// One to be bound.
pub fn eventfd() -> Result<EventFd> {
    Ok(EventFd::new(EFD_NONBLOCK)?)
}

impl Poked<'_> {
    /// What the table says of the only binding, as soon as the worker has come back from the guest's chips.
    pub fn says(&self, columns: &[(&str, &str)]) -> Result<()> {
        let mut rows = Vec::new();
        let said = storm::until("the table says so", || {
            rows = bindings(&self.name)?;
            ensure_eq!(rows.len(), 1, "bindings");
            Ok(columns
                .iter()
                .all(|(column, wanted)| rows[0].get(*column).is_some_and(|found| found == wanted)))
        });
        if rows.is_empty() {
            return said;
        }
        for (column, wanted) in columns {
            let found = rows[0].get(*column).with_context(|| column.to_string())?;
            ensure_eq!(found, wanted, "{column} in {:?}", rows[0]);
        }
        Ok(())
    }

    /// How often the guest has taken a vector.
    pub fn seen(&self, vector: u8) -> u64 {
        self.running.count(0, vector)
    }

    /// Stand by until the guest has taken a vector so often.
    pub fn until(&self, vector: u8, count: u64) -> Result<()> {
        self.running.until(0, vector, count)
    }

    /// When nothing is pending any more the guest has taken just these, each so often.
    pub fn took(&self, expected: &[(u8, u64)]) -> Result<()> {
        let expected = expected.iter().filter(|(_, count)| *count > 0);
        let expected = expected.map(|(vector, count)| ((0, *vector), *count));
        ensure_eq!(self.running.settled()?, expected.collect(), "interrupts");
        Ok(())
    }

    /// A file of its folder.
    pub fn file(&self, name: &str) -> PathBuf {
        seen::vms().join(&self.name).join(name)
    }

    /// Write to `inject`, by one `write()`.
    pub fn inject(&self, text: impl AsRef<[u8]>) -> nix::Result<()> {
        write(&self.file("inject"), text.as_ref())
    }

    /// What `inject_status` says.
    pub fn status(&self) -> Result<String> {
        let text = fs::read_to_string(self.file("inject_status")).context("inject_status")?;
        Ok(text.trim_end_matches('\n').to_owned())
    }
}

/// `/dev/kvmate`, open.
pub struct Device(File);

/// A binding's descriptor; dropping it ends the binding.
pub struct Binding(
    /// The descriptor.
    pub OwnedFd,
);

/// What is asked of `KVMATE_BIND_IRQFD` for a GSI.
pub fn gsi(vm: RawFd, eventfd: RawFd, gsi: u32) -> kvmate_irqfd {
    kvmate_irqfd {
        flags: 0,
        vm_fd: vm,
        eventfd,
        resample_eventfd: -1,
        gsi,
        msi_data: 0,
        msi_address: 0,
        reserved: [0; 4],
    }
}

/// The same for a GSI with resample.
pub fn level(vm: RawFd, eventfd: RawFd, resample: RawFd, gsi: u32) -> kvmate_irqfd {
    kvmate_irqfd {
        flags: KVMATE_IRQFD_RESAMPLE,
        resample_eventfd: resample,
        ..self::gsi(vm, eventfd, gsi)
    }
}

/// The same for an MSI.
pub fn msi_at(vm: RawFd, eventfd: RawFd, (address, data): (u64, u32)) -> kvmate_irqfd {
    kvmate_irqfd {
        flags: KVMATE_IRQFD_MSI,
        msi_address: address,
        msi_data: data,
        ..self::gsi(vm, eventfd, 0)
    }
}

impl Device {
    /// Open it.
    pub fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE);
        Ok(Self(file.context(DEVICE)?))
    }

    /// `KVMATE_BIND_IRQFD`, at any address.
    pub fn bind_at(&self, argument: usize) -> nix::Result<Binding> {
        // SAFETY: The kernel checks both.
        let fd = unsafe { libc::ioctl(self.0.as_raw_fd(), KVMATE_BIND_IRQFD, argument) };
        // SAFETY: A new descriptor of ours.
        Errno::result(fd).map(|fd| Binding(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// `KVMATE_GET_VM_STATS`, at any address.
    pub fn stats_at(&self, argument: usize) -> nix::Result<File> {
        // SAFETY: The kernel checks both.
        let fd = unsafe { libc::ioctl(self.0.as_raw_fd(), KVMATE_GET_VM_STATS, argument) };
        // SAFETY: A new descriptor of ours.
        Errno::result(fd).map(|fd| unsafe { File::from_raw_fd(fd) })
    }

    /// `KVMATE_GET_VM_STATS` of the VM with that descriptor.
    pub fn stats(&self, vm: RawFd) -> nix::Result<File> {
        let asked = kvmate_vm_stats {
            flags: 0,
            vm_fd: vm,
            reserved: [0; 3],
        };
        self.stats_at((&raw const asked).addr())
    }

    /// `KVMATE_BIND_IRQFD`
    pub fn bind(&self, asked: kvmate_irqfd) -> nix::Result<Binding> {
        self.bind_at((&raw const asked).addr())
    }
}

/// `KVMATE_GET_VM_STATS` of a VM.
pub fn stats_of(vm: &Vm) -> Result<File> {
    let file = Device::open()?.stats(vm.fd.as_raw_fd());
    file.context("KVMATE_GET_VM_STATS")
}

/// A line of a VM's table `bindings`, by the columns' names.
pub fn bindings(vm: &str) -> Result<Vec<BTreeMap<String, String>>> {
    let path = seen::vms().join(vm).join("bindings");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut lines = text.lines();
    let columns: Vec<_> = lines.next().context("no header")?.split(' ').collect();
    lines
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            ensure_eq!(words.len(), columns.len(), "columns of {line:?}");
            let pairs = columns.iter().zip(words);
            Ok(pairs.map(|(c, w)| (c.to_string(), w.to_owned())).collect())
        })
        .collect()
}

/// Write to a file by one `write()`.
pub fn write(path: &Path, text: &[u8]) -> nix::Result<()> {
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let mut file = OpenOptions::new().write(true).open(path).map_err(errno)?;
    match file.write(text) {
        Ok(written) if written == text.len() => Ok(()),
        Ok(_) => Err(Errno::EMSGSIZE),
        Err(error) => Err(errno(error)),
    }
}
