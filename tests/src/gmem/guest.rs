// SPDX-License-Identifier: GPL-2.0
//! A guest on a memory file that reads and writes words of it at the test's word.

use super::{Map, PAGE};
use anyhow::{bail, Context, Result};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::libc;

/// Where the memory file is for the guest; its code is at 0.
const BASE: usize = 32 << 20;

/// `mov eax,[ebx]; mov [ebx],ecx; out 0x10,al`
const EXCHANGE: [u8; 6] = [0x8b, 0x03, 0x89, 0x0b, 0xe6, 0x10];
/// `mov eax,[ebx]; out 0x10,al`
const READ: [u8; 4] = [0x8b, 0x03, 0xe6, 0x10];
/// Where the second begins.
const READ_AT: u64 = 16;

/// The guest, in protected mode without paging.
pub struct Guest {
    vcpu: VcpuFd,
    vm: VmFd,
    _code: Map,
}

impl Guest {
    /// On a mapping that outlives it.
    pub fn new(map: &Map, size: usize) -> Result<Self> {
        let code = Map::new(&super::memfd(PAGE)?, PAGE)?;
        for (at, byte) in EXCHANGE.iter().enumerate() {
            code.write(at, *byte);
        }
        for (at, byte) in READ.iter().enumerate() {
            code.write(READ_AT as usize + at, *byte);
        }
        let vm = Kvm::new()?.create_vm()?;
        for (slot, at, map, size) in [(0, 0, &code, PAGE), (1, BASE, map, size)] {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: at as u64,
                memory_size: size as u64,
                userspace_addr: map.address() as u64,
            };
            // SAFETY: The mappings outlive the VM: ours by the order of fields, the other by promise.
            unsafe { vm.set_user_memory_region(region) }?;
        }
        let vcpu = vm.create_vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        let flat = |type_: u8| kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: 8,
            type_,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        sregs.cs = flat(11);
        (sregs.ds, sregs.es, sregs.ss) = (flat(3), flat(3), flat(3));
        sregs.cr0 |= 1;
        vcpu.set_sregs(&sregs)?;
        Ok(Self {
            vcpu,
            vm,
            _code: code,
        })
    }

    /// The VM, for its statistics.
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    fn run(&mut self, rip: u64, at: usize, value: u32) -> Result<u32> {
        self.vcpu.set_regs(&kvm_regs {
            rip,
            rbx: (BASE + at) as u64,
            rcx: value.into(),
            rflags: 2,
            ..Default::default()
        })?;
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(0x10, _)) => return Ok(self.vcpu.get_regs()?.rax as u32),
                Ok(other) => bail!("unexpected exit to user space: {other:?}"),
                Err(error) if error.errno() == libc::EINTR => continue,
                Err(error) => return Err(error).context("KVM_RUN"),
            }
        }
    }

    /// What the guest reads at a byte of the file, four bytes.
    pub fn read(&mut self, at: usize) -> Result<u32> {
        self.run(READ_AT, at, 0)
    }

    /// The same, and it writes four bytes there then.
    pub fn exchange(&mut self, at: usize, value: u32) -> Result<u32> {
        self.run(0, at, value)
    }
}
