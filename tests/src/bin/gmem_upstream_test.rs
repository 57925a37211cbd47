// SPDX-License-Identifier: GPL-2.0
//! The cases of upstream's `tools/testing/selftests/kvm/guest_memfd_test.c` (Linux 7.3), as far as they
//! are about a file, on gmem. What is meant to be otherwise:
//! - `test_file_read_write`: gmem reads and writes, as memfd (`gmem_io_test`);
//! - `test_invalid_punch_hole`, and the unaligned holes of `test_fallocate`: gmem punches bytes
//!   (`gmem_punch_test`);
//! - `test_collapse`: gmem's folios are huge, so collapsing them to what they are may succeed
//!   (`gmem_map_test` has the rest);
//! - `test_mbind`, `test_numa_allocation`: a file's node is chosen when it is made, or by the task's
//!   policy (`gmem_node_test`); `mbind()` changes the mapping's policy only.
//!
//! Not applicable: `test_mmap_not_supported`, `test_fault_private`, `test_guest_memfd_flags` beyond
//! unknown flags, `test_invalid_binding` (memory of KVM's own guest_memfd).

use anyhow::{ensure, Result};
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use kvmate_tests::{
    ensure_eq,
    gmem::{self, child::signal_of, fallocate, info_of, mmap, punch, Map, HUGE, PAGE},
    ktap,
    module::Kvmate,
};
use kvmate_uapi::KVMATE_GMEM_SMALL;
use nix::{errno::Errno, libc, sys::signal::Signal};
use std::{fs::File, os::unix::fs::MetadataExt, process::ExitCode};

/// Upstream's size of a file.
const SIZE: usize = 4 * PAGE;

fn main() -> ExitCode {
    ktap::main(&[
        ("create_multiple", create_multiple),
        ("create_invalid_sizes", create_invalid_sizes),
        ("flags", flags),
        ("mmap_supported", mmap_supported),
        ("mmap_cow", mmap_cow),
        ("fault_overflow", fault_overflow),
        ("file_size", file_size),
        ("test_fallocate", test_fallocate),
        ("guest", guest),
    ])
}

/// A file of each kind and size that upstream's cases are run with.
fn each(test: impl Fn(&File, usize) -> Result<()>) -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for (size, flags) in [
        (SIZE, 0),
        (SIZE, KVMATE_GMEM_SMALL),
        (2 * HUGE, 0),
        (2 * HUGE + SIZE, 0),
    ] {
        let file = gmem::create(size, flags)?;
        test(&file, size)?;
        ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    }
    kvmate.unload()
}

fn create_multiple() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let one = gmem::create(PAGE, 0)?;
    ensure_eq!(one.metadata()?.len(), PAGE as u64, "the first's size");
    let two = gmem::create(2 * PAGE, 0)?;
    ensure_eq!(two.metadata()?.len(), 2 * PAGE as u64, "the second's size");
    ensure_eq!(one.metadata()?.len(), PAGE as u64, "the first's size then");
    ensure!(
        one.metadata()?.ino() != two.metadata()?.ino(),
        "inode numbers are equal"
    );
    drop((one, two));
    kvmate.unload()
}

fn create_invalid_sizes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for size in 1..PAGE {
        let refused = gmem::create_as(&gmem::wish(size, 0)).err();
        ensure_eq!(refused, Some(Errno::EINVAL), "size {size}");
    }
    kvmate.unload()
}

fn flags() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for flag in (0..32).map(|bit| 1u32 << bit) {
        let made = gmem::create_as(&gmem::wish(PAGE, flag));
        match flag {
            // 4 KiB only; a node, which is 0.
            1 | 2 => drop(made?),
            _ => ensure_eq!(made.err(), Some(Errno::EINVAL), "flag {flag:#x}"),
        }
    }
    kvmate.unload()
}

fn mmap_supported() -> Result<()> {
    each(|file, size| {
        let map = Map::new(file, size)?;
        map.fill(0, size, 0xaa);
        ensure!(map.copy(0, size) == vec![0xaa; size], "filled");
        punch(file, 0, PAGE)?;
        ensure!(map.copy(0, PAGE) == vec![0; PAGE], "punched");
        ensure!(
            map.copy(PAGE, size - PAGE) == vec![0xaa; size - PAGE],
            "beside it"
        );
        map.fill(0, PAGE, 0xaa);
        ensure!(map.copy(0, size) == vec![0xaa; size], "filled again");
        Ok(())
    })
}

fn mmap_cow() -> Result<()> {
    each(|file, size| {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let refused = mmap(file, size, both, libc::MAP_PRIVATE).err();
        ensure_eq!(refused, Some(Errno::EINVAL), "a private mapping");
        Ok(())
    })
}

fn fault_overflow() -> Result<()> {
    each(|file, size| {
        let map = Map::new(file, 4 * size)?;
        let filled = signal_of(|| map.fill(0, 4 * size, 0xaa))?;
        ensure_eq!(filled, Some(Signal::SIGBUS), "filling over the end");
        let read = signal_of(|| _ = map.read(size))?;
        ensure_eq!(read, Some(Signal::SIGBUS), "reading behind the end");
        ensure!(
            map.copy(0, size) == vec![0xaa; size],
            "what was filled before the end"
        );
        Ok(())
    })
}

fn file_size() -> Result<()> {
    each(|file, size| {
        let about = file.metadata()?;
        ensure_eq!(
            (about.size(), about.blksize()),
            (size as u64, PAGE as u64),
            "fstat"
        );
        Ok(())
    })
}

fn test_fallocate() -> Result<()> {
    each(|file, size| {
        let (size, page) = (size as i64, PAGE as i64);
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        fallocate(file, keep, 0, size)?;
        for (offset, length) in [(size, page), (size + page, page)] {
            let refused = fallocate(file, keep, offset, length);
            ensure_eq!(refused, Err(Errno::EPERM), "allocating at {offset:#x}");
            punch(file, offset as usize, length as usize)?;
        }
        punch(file, PAGE, PAGE)?;
        ensure_eq!(gmem::allocated(file)? as i64, size - page, "with a hole");
        fallocate(file, keep, page, page)?;
        ensure_eq!(gmem::allocated(file)? as i64, size, "with the hole filled");
        Ok(())
    })
}

/// A guest reads what the host wrote, and the host what the guest wrote.
fn guest() -> Result<()> {
    // In real mode, 64 KiB from DS on: `mov al,[bx]; mov byte [bx],0xff; out 0x10,al`.
    const PROGRAM: [u8; 7] = [0x8a, 0x07, 0xc6, 0x07, 0xff, 0xe6, 0x10];
    each(|file, size| {
        let map = Map::new(file, size)?;
        map.fill(0, size, 0xaa);
        let code = gmem::memfd(PAGE)?;
        let code = Map::new(&code, PAGE)?;
        for (at, byte) in PROGRAM.into_iter().enumerate() {
            code.write(at, byte);
        }
        let vm = Kvm::new()?.create_vm()?;
        for (slot, at, map, size) in [(0, 0, &code, PAGE), (1, HUGE, &map, size)] {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: at as u64,
                memory_size: size as u64,
                userspace_addr: map.address() as u64,
            };
            // SAFETY: The mappings outlive the VM: it is dropped first.
            unsafe { vm.set_user_memory_region(region) }?;
        }
        let mut vcpu = vm.create_vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        for at in [0, PAGE + 77, size - 1] {
            sregs.ds.base = (HUGE + at / PAGE * PAGE) as u64;
            vcpu.set_sregs(&sregs)?;
            vcpu.set_regs(&kvm_regs {
                rip: 0,
                rbx: (at % PAGE) as u64,
                rflags: 2,
                ..Default::default()
            })?;
            match vcpu.run()? {
                VcpuExit::IoOut(0x10, data) => ensure_eq!(data, [0xaa], "what the guest read"),
                other => anyhow::bail!("unexpected exit to user space: {other:?}"),
            }
            ensure_eq!(map.read(at), 0xff, "what the guest wrote");
        }
        drop((vcpu, vm));
        Ok(())
    })
}
