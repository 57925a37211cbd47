// SPDX-License-Identifier: GPL-2.0
//! A guest that touches chosen pages of memory that is laid out on purpose.
//!
//! It runs in protected mode without paging, so an address is a guest-physical one, goes through a
//! list of what to do where, and halts. [`Region`] is memory of the VMM's of a chosen kind, to be put
//! into the VM as a slot.

use super::{Memory, Vm};
use crate::gmem;
use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::{
    libc,
    sys::{
        memfd::{memfd_create, MFdFlags},
        mman::{madvise, mmap, mmap_anonymous, mprotect, munmap, MapFlags, MmapAdvise, ProtFlags},
    },
};
use std::{
    arch::global_asm,
    ffi::{c_void, CString},
    fs::{self, File, OpenOptions},
    num::NonZeroUsize,
    os::fd::AsRawFd,
    path::Path,
    ptr::NonNull,
};

/// A large page.
pub const LARGE: u64 = 2 << 20;
/// A page.
pub const PAGE: u64 = 4096;

// ESI: the list, of an address and what to do there: 0 read, 1 write, 2 call; else halt.
global_asm!(
    ".code32",
    "kvmate_pages_start:",
    "1: lodsl",
    "   movl    %eax, %ebx",
    "   lodsl",
    "   testl   %eax, %eax",
    "   jz      2f",
    "   decl    %eax",
    "   jz      3f",
    "   decl    %eax",
    "   jz      4f",
    "   hlt",
    "   jmp     1b",
    "2: movb    (%ebx), %al",
    "   jmp     1b",
    "3: lock orb $0, (%ebx)",
    "   jmp     1b",
    "4: call    *%ebx",
    "   jmp     1b",
    "kvmate_pages_end:",
    ".code64",
    options(att_syntax)
);

const CODE: usize = 0x1000;
const STACK: usize = 0x2000;
const LIST: usize = 0x4000;
/// How much memory the code, its stack and its list need, from guest-physical address 0 on.
pub const MEMORY: usize = 1 << 16;
/// How many pages can be touched at once.
const MOST: usize = (MEMORY - LIST) / 8 - 1;

/// What to do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Read a byte.
    Read = 0,
    /// Write a byte that is there already.
    Write = 1,
    /// Execute an instruction (the test has put a RET there).
    Execute = 2,
}

fn code() -> &'static [u8] {
    extern "C" {
        static kvmate_pages_start: u8;
        static kvmate_pages_end: u8;
    }
    let (start, end) = (&raw const kvmate_pages_start, &raw const kvmate_pages_end);
    // SAFETY: The labels enclose the guest's code in the text section, in this order.
    unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
}

/// The pages that the guest itself uses: its code, its stack (if it calls) and its list.
pub fn own_pages(pages: usize, calls: bool) -> Vec<u64> {
    let list = (LIST..=LIST + 8 * pages).step_by(PAGE as usize);
    let stack = calls.then_some(STACK - 4).map(|top| top & !0xfff);
    let mut all: Vec<u64> = list.chain([CODE]).chain(stack).map(|p| p as u64).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Have the guest touch pages, in order.
pub fn touch(memory: &Memory, vcpu: &mut VcpuFd, list: &[(u64, Touch)]) -> Result<()> {
    for part in list.chunks(MOST) {
        load(memory, part)?;
        run(vcpu)?;
    }
    Ok(())
}

/// Put a list into the guest's memory; no vCPU runs meanwhile.
pub fn load(memory: &Memory, list: &[(u64, Touch)]) -> Result<()> {
    ensure!(list.len() <= MOST, "a list of {}", list.len());
    memory.write(CODE, code());
    let mut words = Vec::new();
    for &(address, touch) in list {
        words.extend(u32::try_from(address)?.to_le_bytes());
        words.extend((touch as u32).to_le_bytes());
    }
    words.extend([0, 0, 0, 0, 9, 0, 0, 0]);
    memory.write(LIST, &words);
    Ok(())
}

/// Go through the list once.
pub fn run(vcpu: &mut VcpuFd) -> Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    let flat = |type_, selector| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..Default::default()
    };
    sregs.cs = flat(0xb, 8);
    let data = flat(3, 16);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE as u64,
        rsp: STACK as u64,
        rsi: LIST as u64,
        rflags: 2,
        ..Default::default()
    })?;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(()),
            // What is not there reads as zeros, and writes to it are lost.
            Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => {}
            Ok(other) => bail!("unexpected exit to user space: {other:?}"),
            Err(error) if error.errno() == libc::EINTR => continue,
            Err(error) => return Err(error).context("KVM_RUN"),
        }
    }
}

/// `KVM_PRE_FAULT_MEMORY`: have KVM map what the guest does not touch, also where it could not.
pub fn fault_in(vcpu: &VcpuFd, gpa: u64, size: u64) -> Result<()> {
    const PRE_FAULT_MEMORY: libc::Ioctl = 0xc040_aed5u32 as libc::Ioctl;
    let mut asked = [gpa, size, 0, 0, 0, 0, 0, 0];
    // SAFETY: The ioctl's argument: address, size, flags, and five words of padding.
    let done = unsafe { libc::ioctl(vcpu.as_raw_fd(), PRE_FAULT_MEMORY, &mut asked) };
    ensure!(
        done == 0 && asked[1] == 0,
        "KVM_PRE_FAULT_MEMORY at {gpa:#x}: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Memory of a VMM's, of some kind.
pub struct Region {
    /// Where it begins.
    pub start: u64,
    /// How long it is.
    pub size: u64,
    /// The file it is of.
    pub file: Option<File>,
    reserved: (u64, usize),
}

impl Region {
    /// Room for `size` bytes, `offset` bytes behind a border of 2 MiB, with nothing there.
    fn reserve(size: u64, offset: u64) -> Result<Self> {
        let length = (size + 2 * LARGE) as usize;
        // SAFETY: A fresh private mapping; nothing else is at that address.
        let base = unsafe {
            mmap_anonymous(
                None,
                NonZeroUsize::new(length).context("no size")?,
                ProtFlags::PROT_NONE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
            )
        }?;
        let start = (base.as_ptr() as u64).next_multiple_of(LARGE) + offset;
        Ok(Self {
            start,
            size,
            file: None,
            reserved: (base.as_ptr() as u64, length),
        })
    }

    fn at(&self) -> NonNull<c_void> {
        NonNull::new(self.start as *mut c_void).expect("not zero")
    }

    /// Anonymous memory, by pages of 4 KiB or, where it is aligned, of 2 MiB.
    pub fn anonymous(size: u64, offset: u64, large: bool) -> Result<Self> {
        let region = Self::reserve(size, offset)?;
        let (at, length) = (region.at(), size as usize);
        let advice = match large {
            true => MmapAdvise::MADV_HUGEPAGE,
            false => MmapAdvise::MADV_NOHUGEPAGE,
        };
        // SAFETY: Inside our own reservation.
        unsafe {
            mprotect(at, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
            madvise(at, length, advice).context("madvise")?;
        }
        Ok(region)
    }

    /// A part of a file, shared.
    pub fn of(file: File, size: u64, offset: u64, of: u64) -> Result<Self> {
        let mut region = Self::reserve(size, offset)?;
        // SAFETY: Takes the place of a part of our own reservation.
        unsafe {
            mmap(
                NonZeroUsize::new(region.start as usize),
                NonZeroUsize::new(size as usize).context("no size")?,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_FIXED,
                &file,
                of as i64,
            )
        }
        .context("mmap")?;
        region.file = Some(file);
        Ok(region)
    }

    /// A memfd, by pages of 4 KiB.
    pub fn memfd(name: &str, size: u64) -> Result<Self> {
        let file = File::from(memfd_create(name, MFdFlags::empty())?);
        file.set_len(size)?;
        Self::of(file, size, 0, 0)
    }

    /// A file of kvmate's.
    pub fn gmem(size: u64) -> Result<Self> {
        Self::of(gmem::create(size as usize, 0)?, size, 0, 0)
    }

    /// A memfd of large pages, which the machine must have free.
    pub fn hugetlb(size: u64) -> Result<Self> {
        let pages = "/proc/sys/vm/nr_hugepages";
        fs::write(pages, (size / LARGE).to_string()).context(pages)?;
        let there = fs::read_to_string(pages)?;
        ensure!(
            there.trim() == (size / LARGE).to_string(),
            "{there} of huge pages"
        );
        let flags = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        let file = File::from(memfd_create("large", flags)?);
        file.set_len(size)?;
        Self::of(file, size, 0, 0)
    }

    /// A file of a tmpfs that gives large pages, with holes.
    pub fn tmpfs(size: u64) -> Result<Self> {
        const PLACE: &str = "/tmp/kvmate-huge";
        fs::create_dir_all(PLACE)?;
        if !Path::new(PLACE).join("f").exists() {
            let place = CString::new(PLACE)?;
            // SAFETY: Strings that end with zero bytes.
            let done = unsafe {
                let tmpfs = c"tmpfs".as_ptr();
                libc::mount(
                    tmpfs,
                    place.as_ptr(),
                    tmpfs,
                    0,
                    c"huge=always".as_ptr().cast(),
                )
            };
            ensure!(done == 0, "mount: {}", std::io::Error::last_os_error());
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(Path::new(PLACE).join("f"))?;
        file.set_len(size)?;
        Self::of(file, size, 0, 0)
    }

    /// Allow only reading, from `offset` on for `size` bytes.
    pub fn read_only(&self, offset: u64, size: u64) -> Result<()> {
        let at = NonNull::new((self.start + offset) as *mut c_void).context("null")?;
        // SAFETY: A part of our own mapping, which nobody writes to.
        Ok(unsafe { mprotect(at, size as usize, ProtFlags::PROT_READ) }?)
    }

    /// Write a byte, which makes the page be there.
    pub fn write(&self, offset: u64, byte: u8) {
        assert!(offset < self.size, "outside the region");
        // SAFETY: Inside our own mapping; the guest does not run meanwhile.
        unsafe { ((self.start + offset) as *mut u8).write_volatile(byte) };
    }

    /// Make it a slot of the VM, or change its flags.
    pub fn put(&self, vm: &Vm, slot: u32, address: u64, flags: u32) -> Result<()> {
        set_slot(vm, slot, address, self.start, self.size, flags)
    }
}

/// `KVM_SET_USER_MEMORY_REGION`
pub fn set_slot(vm: &Vm, slot: u32, gpa: u64, hva: u64, size: u64, flags: u32) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: hva,
    };
    // SAFETY: The region outlives the guest's runs: the test's own order of drops.
    unsafe { vm.fd.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")
}

impl Drop for Region {
    fn drop(&mut self) {
        let (base, length) = self.reserved;
        let base = NonNull::new(base as *mut c_void).expect("not zero");
        // SAFETY: Our own reservation, not used any more.
        unsafe { munmap(base, length) }.expect("munmap of our own mapping");
    }
}
