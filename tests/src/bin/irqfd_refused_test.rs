// SPDX-License-Identifier: GPL-2.0
//! `KVMATE_BIND_IRQFD`: what it refuses.

use anyhow::{ensure, Result};
use kvm_bindings::{kvm_enable_cap, KVM_CAP_SPLIT_IRQCHIP};
use kvmate_tests::{
    ensure_eq,
    guest::{real, Vm},
    ktap,
    module::{Kvmate, WithoutKvm},
    poke::{self, eventfd, Device, MSI_VECTOR, PIN},
    storm,
};
use kvmate_uapi::{kvmate_irqfd, KVMATE_IRQFD_MSI};
use nix::errno::Errno;
use std::{
    fs,
    os::fd::{AsRawFd, RawFd},
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("bad_fields", bad_fields),
        ("bad_descriptors", bad_descriptors),
        ("bad_pointers", bad_pointers),
        ("no_chips", no_chips),
        ("dead_vm", dead_vm),
        ("too_many_files", too_many_files),
        ("without_kvm", without_kvm),
        ("held_by_kvm", held_by_kvm),
        ("held_by_kvmate", held_by_kvmate),
    ])
}

/// A VM with all chips, not running.
fn vm() -> Result<Vm> {
    Vm::new(1 << 16, true)
}

/// Refused, and the eventfd is as free as before.
fn refused(device: &Device, asked: kvmate_irqfd, errno: Errno, what: &str) -> Result<()> {
    match device.bind(asked) {
        Err(found) => ensure_eq!(found, errno, "{what}"),
        Ok(_) => anyhow::bail!("{what} was taken"),
    }
    Ok(())
}

fn bad_fields() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, eventfd, resample) = (vm()?, eventfd()?, eventfd()?);
    let (v, e, r) = (vm.fd.as_raw_fd(), eventfd.as_raw_fd(), resample.as_raw_fd());
    for bit in 2..32 {
        let mut asked = poke::gsi(v, e, PIN);
        asked.flags |= 1 << bit;
        refused(&device, asked, Errno::EINVAL, &format!("flag {bit}"))?;
    }
    for word in 0..4 {
        for bit in 0..64 {
            let mut asked = poke::gsi(v, e, PIN);
            asked.reserved[word] = 1 << bit;
            refused(
                &device,
                asked,
                Errno::EINVAL,
                &format!("reserved {word}, {bit}"),
            )?;
        }
    }
    let msi = (0xfee0_0000, u32::from(MSI_VECTOR));
    type Change = fn(&mut kvmate_irqfd);
    let changes: [(&str, kvmate_irqfd, Change); 9] = [
        ("both flags", poke::level(v, e, r, PIN), |a| {
            a.flags |= KVMATE_IRQFD_MSI
        }),
        ("an MSI with a GSI", poke::msi_at(v, e, msi), |a| a.gsi = 1),
        ("an MSI elsewhere", poke::msi_at(v, e, msi), |a| {
            a.msi_address = 0xfed0_0000
        }),
        ("an MSI at 0", poke::msi_at(v, e, msi), |a| {
            a.msi_address = 0
        }),
        ("a GSI with an address", poke::gsi(v, e, PIN), |a| {
            a.msi_address = 0xfee0_0000
        }),
        ("a GSI with data", poke::gsi(v, e, PIN), |a| a.msi_data = 1),
        ("a level with data", poke::level(v, e, r, PIN), |a| {
            a.msi_data = 1
        }),
        ("no resample eventfd asked for", poke::gsi(v, e, PIN), |a| {
            a.resample_eventfd = 0
        }),
        ("one of an MSI", poke::msi_at(v, e, msi), |a| {
            a.resample_eventfd = a.eventfd
        }),
    ];
    for (what, mut asked, change) in changes {
        change(&mut asked);
        refused(&device, asked, Errno::EINVAL, what)?;
    }
    for gsi in [4096, 0xffff_ffff] {
        refused(&device, poke::gsi(v, e, gsi), Errno::ERANGE, "GSI")?;
        refused(&device, poke::level(v, e, r, gsi), Errno::ERANGE, "GSI")?;
    }
    let last = device.bind(poke::gsi(v, e, 4095))?;
    drop((last, device));
    kvmate.unload()
}

fn bad_descriptors() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, eventfd, resample) = (vm()?, eventfd()?, eventfd()?);
    let (v, e, r) = (vm.fd.as_raw_fd(), eventfd.as_raw_fd(), resample.as_raw_fd());
    let vcpu = vm.vcpu(0)?;
    let (pipe, _other_end) = nix::unistd::pipe()?;
    let null = fs::File::open("/dev/null")?;
    let p = pipe.as_raw_fd();
    let bind = |v: RawFd, e: RawFd, r: RawFd, errno: Errno, what: &str| {
        refused(&device, poke::level(v, e, r, PIN), errno, what)?;
        if r == resample.as_raw_fd() {
            refused(&device, poke::gsi(v, e, PIN), errno, what)?;
            let msi = (0xfee0_0000, u32::from(MSI_VECTOR));
            refused(&device, poke::msi_at(v, e, msi), errno, what)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    for none in [-1, i32::MIN, 9999] {
        bind(none, e, r, Errno::EBADF, "VM")?;
        bind(v, none, r, Errno::EBADF, "eventfd")?;
        bind(v, e, none, Errno::EBADF, "resample eventfd")?;
    }
    for other in [p, e, null.as_raw_fd(), vcpu.as_raw_fd(), vm.kvm.as_raw_fd()] {
        bind(other, e, r, Errno::EBADFD, "VM")?;
    }
    for other in [p, v, null.as_raw_fd(), vcpu.as_raw_fd()] {
        bind(v, other, r, Errno::EPROTOTYPE, "eventfd")?;
        bind(v, e, other, Errno::EPROTOTYPE, "resample eventfd")?;
    }
    let good = device.bind(poke::level(v, e, r, PIN))?;
    drop((good, device));
    kvmate.unload()
}

fn bad_pointers() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    for address in [0usize, 1, 0x7fff_ffff_f000, usize::MAX - 4095] {
        let found = device.bind_at(address).map(drop);
        ensure_eq!(found, Err(Errno::EFAULT), "argument at {address:#x}");
    }
    drop(device);
    kvmate.unload()
}

/// Resample takes the PIC and the IOAPIC in the kernel; KVM's own is refused then too.
fn no_chips() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let split = Vm::new(1 << 16, false)?;
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    cap.args[0] = 24;
    split.fd.enable_cap(&cap)?;
    let none = Vm::new(1 << 16, false)?;
    for vm in [&split, &none] {
        let (eventfd, resample) = (eventfd()?, eventfd()?);
        let (e, r) = (eventfd.as_raw_fd(), resample.as_raw_fd());
        let by_kvm = vm.fd.register_irqfd_with_resample(&eventfd, &resample, PIN);
        ensure!(by_kvm.is_err(), "KVM took it");
        let asked = poke::level(vm.fd.as_raw_fd(), e, r, PIN);
        refused(&device, asked, Errno::ENXIO, "resample")?;
        drop(device.bind(poke::gsi(vm.fd.as_raw_fd(), e, PIN))?);
    }
    drop(device);
    kvmate.unload()
}

/// A VM that KVM has given up.
fn dead_vm() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, eventfd) = (vm()?, eventfd()?);
    let asked = poke::gsi(vm.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    drop(device.bind(asked)?);
    // An SMI, and no memory for KVM to save the state in.
    if !vm.kvm.check_extension(kvm_ioctls::Cap::X86Smm) {
        return ktap::skip("KVM has no SMM");
    }
    real::load(&vm, real::Program::Out);
    let mut vcpu = vm.vcpu(0)?;
    real::start(&vcpu, 1)?;
    vcpu.run()?;
    vcpu.smi()?;
    let error = vcpu.run().map(|_| ()).err().map(|error| error.errno());
    ensure_eq!(error, Some(Errno::EIO as i32), "KVM_RUN of a dead VM");
    refused(&device, asked, Errno::ENODEV, "a dead VM")?;
    drop(device);
    kvmate.unload()
}

fn too_many_files() -> Result<()> {
    use nix::sys::resource::{getrlimit, setrlimit, Resource};
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, eventfd) = (vm()?, eventfd()?);
    let asked = poke::gsi(vm.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // The lowest that is free.
    let free = fs::File::open("/dev/null")?.as_raw_fd() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, free, hard)?;
    let found = device.bind(asked).map(drop);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    ensure_eq!(found, Err(Errno::EMFILE), "with no descriptor free");
    drop(device.bind(asked)?);
    drop(device);
    kvmate.unload()
}

fn without_kvm() -> Result<()> {
    let without = WithoutKvm::new()?;
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let eventfd = eventfd()?;
    let asked = poke::gsi(eventfd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    refused(&device, asked, Errno::EOPNOTSUPP, "without kvm")?;
    drop(without);
    refused(&device, asked, Errno::EBADFD, "with kvm")?;
    drop(device);
    kvmate.unload()
}

/// An eventfd has one owner: KVM's irqfd, or a binding, whichever comes first.
fn held_by_kvm() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, eventfd) = (vm()?, eventfd()?);
    let asked = poke::gsi(vm.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    for _ in 0..3 {
        vm.fd.register_irqfd(&eventfd, PIN)?;
        refused(&device, asked, Errno::EBUSY, "KVM's")?;
        vm.fd.unregister_irqfd(&eventfd, PIN)?;
        let binding = device.bind(asked)?;
        let by_kvm = vm.fd.register_irqfd(&eventfd, PIN);
        let by_kvm = by_kvm.map_err(|error| error.errno());
        ensure_eq!(by_kvm, Err(Errno::EBUSY as i32), "kvmate's, for KVM");
        drop(binding);
    }
    drop(device);
    kvmate.unload()
}

fn held_by_kvmate() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let (vm, other, eventfd) = (vm()?, vm()?, eventfd()?);
    let asked = poke::gsi(vm.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    let binding = device.bind(asked)?;
    refused(&device, asked, Errno::EBUSY, "the same again")?;
    let elsewhere = poke::gsi(other.fd.as_raw_fd(), eventfd.as_raw_fd(), PIN);
    refused(&device, elsewhere, Errno::EBUSY, "for another VM")?;
    let name = storm::name_of(&vm);
    ensure_eq!(poke::bindings(&name)?.len(), 1, "bindings");
    drop(binding);
    ensure_eq!(poke::bindings(&name)?.len(), 0, "bindings");
    drop(device.bind(elsewhere)?);
    drop(device);
    kvmate.unload()
}
