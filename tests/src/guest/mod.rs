// SPDX-License-Identifier: GPL-2.0
//! Small guests on real KVM, known to the instruction.
//!
//! [`Vm`] is a VM with one block of memory from guest-physical 0 on; [`real`], [`steps`], [`chosen`],
//! [`long`] and [`irq`] put code and registers into it. A guest tells the test something by port I/O or through its
//! memory. [`linux`] and [`qemu`] are a whole Linux, under VMMs as people use them.

pub mod chosen;
pub mod irq;
pub mod linux;
pub mod long;
pub mod nested;
pub mod pages;
pub mod qemu;
pub mod real;
pub mod steps;
pub mod userfault;

use anyhow::{bail, Context, Result};
use kvm_bindings::{kvm_userspace_memory_region, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::mman::{mmap_anonymous, munmap, MapFlags, ProtFlags};
use std::{
    ffi::c_void,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

/// What may stand in guest memory while the guest runs.
///
/// # Safety
/// It consists of atomics: whatever bits are there, and whoever writes them at any time.
pub unsafe trait Shared: Sync {}

// SAFETY: One atomic.
unsafe impl Shared for AtomicU64 {}

/// Guest memory: anonymous, from guest-physical address 0 on.
pub struct Memory {
    start: NonNull<c_void>,
    size: usize,
}

// SAFETY: The mapping is plain memory that lives until drop; all access is through methods that copy
// or that go by atomics.
unsafe impl Send for Memory {}
// SAFETY: As above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(size: usize) -> Result<Self> {
        let length = NonZeroUsize::new(size).context("no memory asked for")?;
        // SAFETY: A fresh private mapping; nothing else is at that address.
        let start = unsafe {
            mmap_anonymous(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )
        }?;
        Ok(Self { start, size })
    }

    /// Where it begins in this process.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Copy bytes to a guest-physical address.
    pub fn write(&self, address: usize, bytes: &[u8]) {
        assert!(address + bytes.len() <= self.size, "outside guest memory");
        // SAFETY: Inside the mapping, checked just now; the source is another object.
        unsafe {
            let to = self.start.as_ptr().cast::<u8>().add(address);
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    /// What the guest and the test share at a guest-physical address.
    pub fn shared<T: Shared>(&self, address: usize) -> &T {
        assert!(
            address % align_of::<T>() == 0 && address + size_of::<T>() <= self.size,
            "outside guest memory"
        );
        // SAFETY: Inside the mapping and aligned, checked just now; the rest is the trait's promise.
        unsafe { &*self.start.as_ptr().cast::<u8>().add(address).cast::<T>() }
    }

    /// The 64-bit word at a guest-physical address, which the guest may write at any time.
    pub fn word(&self, address: usize) -> u64 {
        self.shared::<AtomicU64>(address).load(Ordering::Acquire)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: Our own mapping, not used any more.
        unsafe { munmap(self.start, self.size) }.expect("munmap of our own mapping");
    }
}

/// A VM. The descriptor goes before the memory.
pub struct Vm {
    /// KVM itself.
    pub kvm: Kvm,
    /// The VM's descriptor.
    pub fd: VmFd,
    /// Its memory.
    pub memory: Memory,
}

impl Vm {
    /// A VM with `size` bytes of memory, and the in-kernel PIC, IOAPIC and LAPICs if asked for.
    pub fn new(size: usize, irqchip: bool) -> Result<Self> {
        let kvm = Kvm::new().context("/dev/kvm")?;
        let fd = kvm.create_vm().context("KVM_CREATE_VM")?;
        let memory = Memory::new(size)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: size as u64,
            userspace_addr: memory.start.as_ptr() as u64,
        };
        // SAFETY: The memory outlives the VM's use of it: fields are dropped in order, and vCPUs do
        // not run any more when the test drops the VM.
        unsafe { fd.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        if irqchip {
            fd.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        }
        Ok(Self { kvm, fd, memory })
    }

    /// Another memslot, of a part of the same memory, with these flags.
    pub fn alias(
        &self,
        slot: u32,
        flags: u32,
        address: u64,
        offset: usize,
        size: usize,
    ) -> Result<()> {
        assert!(offset + size <= self.memory.size, "outside guest memory");
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: address,
            memory_size: size as u64,
            userspace_addr: self.memory.start.as_ptr() as u64 + offset as u64,
        };
        // SAFETY: Part of the memory that outlives the VM's use of it, as in `new`.
        unsafe { self.fd.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")
    }

    /// A vCPU with all that KVM supports.
    pub fn vcpu(&self, id: u64) -> Result<VcpuFd> {
        let vcpu = self.fd.create_vcpu(id).context("KVM_CREATE_VCPU")?;
        let cpuid = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
        Ok(vcpu)
    }
}

/// Run until the guest halts (without an irqchip) or writes to `stop`; count its other writes, to ports
/// and to memory that is not there.
pub fn run(vcpu: &mut VcpuFd, stop: Option<u16>) -> Result<u64> {
    let mut writes = 0;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, _)) if Some(port) == stop => return Ok(writes),
            Ok(VcpuExit::IoOut(_, data)) => writes += data.len() as u64,
            Ok(VcpuExit::MmioWrite(_, data)) => writes += data.len() as u64,
            Ok(VcpuExit::Hlt) => return Ok(writes),
            Ok(other) => bail!("unexpected exit to user space: {other:?}"),
            Err(error) if error.errno() == nix::libc::EINTR => continue,
            Err(error) => return Err(error).context("KVM_RUN"),
        }
    }
}
