// SPDX-License-Identifier: GPL-2.0
//! Guests whose memory is gmem: KVM maps 2 MiB, and a hole made under a running guest is there at its
//! next access.

use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvmate_tests::{
    ensure_eq,
    gmem::{self, info_of, punch, Map, HUGE, PAGE},
    ktap,
    module::{Kvmate, Stop},
    stats::Stats,
};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};

fn main() -> ExitCode {
    ktap::main(&[
        ("maps_2m", maps_2m),
        (
            "punched_under_a_running_guest",
            punched_under_a_running_guest,
        ),
    ])
}

/// Where the guest's code is, and the byte that it reads for ever and writes to a port.
const CODE: usize = 0x1000;
const BYTE: usize = 0x8000;
/// `1: mov 0x8000, %al; out %al, $0x10; jmp 1b`, in real mode.
const PROGRAM: [u8; 7] = [0xa0, 0x00, 0x80, 0xe6, 0x10, 0xeb, 0xf9];

/// A VM on gmem. The descriptors go before the memory.
struct Guest {
    vcpu: VcpuFd,
    vm: VmFd,
    map: Map,
    file: File,
}

fn guest() -> Result<Guest> {
    let file = gmem::create(2 * HUGE, 0)?;
    let map = Map::new(&file, 2 * HUGE)?;
    ensure_eq!(map.address() % HUGE, 0, "alignment of the mapping");
    file.write_all_at(&PROGRAM, CODE as u64)?;
    let vm = Kvm::new()?.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: 2 * HUGE as u64,
        userspace_addr: map.address() as u64,
    };
    // SAFETY: The mapping outlives the VM: fields are dropped in order.
    unsafe { vm.set_user_memory_region(region) }?;
    let vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE as u64,
        rflags: 2,
        ..Default::default()
    })?;
    Ok(Guest {
        vcpu,
        vm,
        map,
        file,
    })
}

/// The byte that the guest read last.
fn step(vcpu: &mut VcpuFd) -> Result<u8> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(0x10, data)) => return Ok(data[0]),
            Ok(other) => anyhow::bail!("unexpected exit to user space: {other:?}"),
            Err(error) if error.errno() == nix::libc::EINTR => continue,
            Err(error) => return Err(error).context("KVM_RUN"),
        }
    }
}

fn maps_2m() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = guest()?;
    let stats = Stats::of(&guest.vm)?;
    guest.map.write(BYTE, 77);
    ensure_eq!(step(&mut guest.vcpu)?, 77, "what the guest reads");
    ensure_eq!(stats.get("pages_2m")?, 1, "KVM's pages_2m");
    ensure_eq!(guest.map.smaps("FilePmdMapped")?, HUGE, "mapped by PMD");
    ensure_eq!(info_of(&guest.file, "fallbacks")?, 0, "fallbacks");
    // A hole anywhere in it takes the large mapping away.
    punch(&guest.file, HUGE / 2, PAGE)?;
    ensure_eq!(stats.get("pages_2m")?, 0, "KVM's pages_2m after a punch");
    ensure_eq!(step(&mut guest.vcpu)?, 77, "what the guest reads then");
    ensure_eq!(stats.get("pages_2m")?, 0, "KVM's pages_2m then");
    drop((guest, stats));
    kvmate.unload()
}

fn punched_under_a_running_guest() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let Guest {
        mut vcpu,
        vm,
        map,
        file,
    } = guest()?;
    // How often the guest has told its byte, and what it was: count << 8 | byte.
    let (told, stop) = (AtomicU64::new(0), Stop::default());
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| -> Result<()> {
            while !stop.asked() {
                let byte = u64::from(step(&mut vcpu)?);
                let count = (told.load(Ordering::Relaxed) >> 8) + 1;
                told.store((count << 8) | byte, Ordering::Release);
            }
            Ok(())
        });
        let _stop = stop.on_drop();
        // What it reads from now on: the one that is under way may have been read before.
        let next = || -> Result<u8> {
            let from = told.load(Ordering::Acquire) >> 8;
            loop {
                let now = told.load(Ordering::Acquire);
                if now >> 8 >= from + 2 {
                    return Ok(now as u8);
                }
                ensure!(!runner.is_finished(), "the guest stopped");
                std::thread::yield_now();
            }
        };
        for round in 0..300usize {
            let value = (round % 255 + 1) as u8;
            map.write(BYTE, value);
            ensure_eq!(next()?, value, "before the punch, round {round}");
            let (start, length) = match round % 3 {
                0 => (BYTE, PAGE),
                1 => (BYTE + 1 - PAGE, 2 * PAGE - 7),
                _ => (BYTE, 1),
            };
            punch(&file, start, length)?;
            ensure_eq!(next()?, 0, "after the punch, round {round}");
        }
        Ok(())
    })?;
    drop((vcpu, vm, map, file));
    kvmate.unload()
}
