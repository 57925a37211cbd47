// SPDX-License-Identifier: GPL-2.0
//! A guest on SVM that runs a guest of its own, on nested page tables of its own.
//!
//! It is in long mode. The nested guest has one page and halts at once; KVM keeps shadows of the tables
//! that lead there, and so tracks writes to the pages that those are in.

use super::Vm;
use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{kvm_msr_entry, kvm_regs, kvm_segment, Msrs};
use kvm_ioctls::{VcpuExit, VcpuFd};

/// How much memory it needs, from guest-physical address 0 on.
pub const MEMORY: usize = 1 << 16;

// Guest-physical addresses. The first 2 GiB are mapped as they are.
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PDS: [usize; 2] = [0x3000, 0x4000];
const CODE: usize = 0x8000;
const VMCB: usize = 0x9000;
const SAVED: usize = 0xa000;
const NESTED_CODE: usize = 0xb000;

/// `vmrun`
const RUN: &[u8] = &[0x0f, 0x01, 0xd8];
/// `lock orb $0,(%rbx); hlt`
const WRITE: &[u8] = &[0xf0, 0x80, 0x0b, 0x00, 0xf4];

const PRESENT: u64 = 7;
const LARGE: u64 = 1 << 7;
const SVME: u64 = 1 << 12;
const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;

/// Where its nested page tables are, in memory of the test's: the root and the others.
pub struct Tables {
    /// The topmost table's guest-physical address.
    pub root: u64,
    /// That of the three below it, one page each.
    pub others: u64,
}

impl Tables {
    /// What stands at which guest-physical address.
    pub fn words(&self) -> [(u64, u64); 4] {
        let table = |index: u64| self.others + index * 4096;
        [
            (self.root, table(0) | PRESENT),
            (table(0), table(1) | PRESENT),
            (table(1), table(2) | PRESENT),
            (
                table(2) + (NESTED_CODE as u64 >> 12) * 8,
                NESTED_CODE as u64 | PRESENT,
            ),
        ]
    }
}

/// Make the vCPU ready.
pub fn start(vm: &Vm, vcpu: &VcpuFd, tables: &Tables) -> Result<()> {
    let memory = &vm.memory;
    let word = |at: usize, word: u64| memory.write(at, &word.to_le_bytes());
    word(PML4, PDPT as u64 | PRESENT);
    for (gigabyte, pd) in PDS.into_iter().enumerate() {
        word(PDPT + gigabyte * 8, pd as u64 | PRESENT);
        for block in 0..512 {
            let at = ((gigabyte as u64) << 30) | (block << 21);
            word(pd + block as usize * 8, at | LARGE | PRESENT);
        }
    }
    memory.write(CODE, &[RUN, WRITE].concat());
    memory.write(NESTED_CODE, &[0xf4]);
    vmcb(vm, tables.root);
    let mut sregs = vcpu.get_sregs()?;
    let segment = |type_, l, db| kvm_segment {
        limit: 0xffff_ffff,
        selector: 8,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l,
        db,
        ..Default::default()
    };
    sregs.cs = segment(0xb, 1, 0);
    let data = segment(3, 0, 1);
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr3 = PML4 as u64;
    sregs.cr4 |= 1 << 5;
    sregs.cr0 |= (1 << 31) | 1;
    sregs.efer |= (1 << 8) | (1 << 10) | SVME;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let saved = kvm_msr_entry {
        index: MSR_VM_HSAVE_PA,
        data: SAVED as u64,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[saved]).context("one MSR")?;
    ensure!(vcpu.set_msrs(&msrs)? == 1, "MSR_VM_HSAVE_PA");
    Ok(())
}

/// The control block: a real-mode guest that is stopped by HLT.
fn vmcb(vm: &Vm, root: u64) {
    let put = |at: usize, bytes: &[u8]| vm.memory.write(VMCB + at, bytes);
    put(0x00c, &(1u32 << 24).to_le_bytes()); // HLT
    put(0x010, &1u32.to_le_bytes()); // VMRUN, which must be
    put(0x058, &1u32.to_le_bytes()); // ASID
    put(0x090, &1u64.to_le_bytes()); // nested paging
    put(0x0b0, &root.to_le_bytes());
    for (segment, attributes) in [
        (0, 0x93u16),
        (1, 0x9b),
        (2, 0x93),
        (3, 0x93),
        (4, 0x93),
        (5, 0x93),
    ] {
        put(0x402 + segment * 16, &attributes.to_le_bytes());
        put(0x404 + segment * 16, &0xffffu32.to_le_bytes());
    }
    for (at, value) in [
        (0x4d0, SVME),
        (0x558, 0x10),                  // CR0
        (0x560, 0x400),                 // DR7
        (0x568, 0xffff_0ff0),           // DR6
        (0x570, 2),                     // RFLAGS
        (0x578, NESTED_CODE as u64),    // RIP
        (0x668, 0x0007_0406_0007_0406), // PAT
    ] {
        put(at, &value.to_le_bytes());
    }
}

/// Have the guest run its own and then write to a page, or write only.
pub fn write(vcpu: &mut VcpuFd, nested: bool, address: u64) -> Result<()> {
    let skipped = if nested { 0 } else { RUN.len() };
    vcpu.set_regs(&kvm_regs {
        rip: (CODE + skipped) as u64,
        rax: VMCB as u64,
        rbx: address,
        rflags: 2,
        ..Default::default()
    })?;
    match vcpu.run().context("KVM_RUN")? {
        VcpuExit::Hlt => {}
        other => bail!("unexpected exit to user space: {other:?}"),
    }
    let at = vcpu.get_regs()?.rip;
    let end = (CODE + RUN.len() + WRITE.len()) as u64;
    ensure!(at == end, "the guest halted at {at:#x}");
    Ok(())
}
