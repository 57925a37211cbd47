// SPDX-License-Identifier: GPL-2.0
//! The test program itself as a guest's program, as KVM's selftests do it: its segments are copied
//! into guest memory and stand there at the very addresses they have here.

use super::{
    inside,
    shared::{Cpu, Machine, CPUS, NMI},
};
use crate::guest::{long, Memory, Vm};
use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_mp_state, kvm_regs, kvm_segment, KVM_MP_STATE_RUNNABLE};
use kvm_ioctls::VcpuFd;
use std::{fs, mem::offset_of, sync::atomic::Ordering::Relaxed};

/// All of the guest-physical memory, and the chips, as the guest sees them: this much higher.
pub const DIRECT: u64 = 1 << 40;
/// How much memory such a VM needs: a program that checks JSON schemas is nearly 8 MiB.
pub const MEMORY: usize = 16 << 20;

// Guest-physical addresses.
/// What guest and test share.
pub const SHARED: usize = 0x1000;
const GDT: usize = 0x8000;
const IDT: usize = 0x9000;
/// A page a vCPU.
const TSS: usize = 0xa000;
/// Four pages a vCPU: three to run on, one for NMIs.
const STACKS: usize = 0x10000;
/// The first is the top of the page tables.
const TABLES: usize = 0x20000;
const PROGRAM: usize = 0x10_0000;

const _: () = assert!(SHARED + size_of::<Machine>() <= GDT && CPUS <= 4);

const PAGE: usize = 0x1000;
const UNCACHED: u64 = 1 << 4;

/// Page tables in the making.
struct Tables<'a> {
    memory: &'a Memory,
    next: usize,
}

impl Tables<'_> {
    fn map(&mut self, address: u64, physical: u64, flags: u64) {
        const PRESENT_WRITABLE: u64 = 0b11;
        let mut table = TABLES;
        for level in (0..4).rev() {
            let entry = table + 8 * ((address >> (12 + 9 * level)) & 0x1ff) as usize;
            if level == 0 {
                let value = physical | flags | PRESENT_WRITABLE;
                self.memory.write(entry, &value.to_le_bytes());
            } else if self.memory.word(entry) == 0 {
                self.next += PAGE;
                assert!(self.next < PROGRAM, "no room for page tables");
                let value = self.next as u64 | PRESENT_WRITABLE;
                self.memory.write(entry, &value.to_le_bytes());
            }
            table = self.memory.word(entry) as usize & !(PAGE - 1);
        }
    }
}

/// Where this program's file is mapped: what it runs, and the constants and addresses that needs.
fn segments() -> Result<Vec<&'static [u8]>> {
    let own = fs::read_link("/proc/self/exe")?;
    let own = own.to_str().context("this program's name")?;
    let mut segments = Vec::new();
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let (range, rest) = line.split_once(' ').context("a mapping")?;
        if !(rest.starts_with('r') && rest.ends_with(own)) {
            continue;
        }
        let (start, end) = range.split_once('-').context("a mapping's range")?;
        let (start, end) = (
            usize::from_str_radix(start, 16)?,
            usize::from_str_radix(end, 16)?,
        );
        // SAFETY: Readable, as the kernel says, and never unmapped. What is writable there may change
        // while it is copied; the guest uses nothing of that.
        segments.push(unsafe { std::slice::from_raw_parts(start as *const u8, end - start) });
    }
    ensure!(!segments.is_empty(), "this program is not mapped");
    Ok(segments)
}

/// Build tables and program in the VM's memory.
pub fn load(vm: &Vm) -> Result<()> {
    let mut tables = Tables {
        memory: &vm.memory,
        next: TABLES,
    };
    for page in (0..MEMORY as u64).step_by(PAGE) {
        tables.map(DIRECT + page, page, 0);
    }
    for chip in [0xfec0_0000, 0xfee0_0000] {
        tables.map(DIRECT + chip, chip, UNCACHED);
    }
    let mut at = PROGRAM;
    for segment in segments()? {
        ensure!(at + segment.len() <= MEMORY, "this program is too large");
        vm.memory.write(at, segment);
        for offset in (0..segment.len()).step_by(PAGE) {
            let address = segment.as_ptr().addr() + offset;
            tables.map(address as u64, (at + offset) as u64, 0);
        }
        at += segment.len();
    }
    let table = |address: usize, entries: &[u64]| {
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_le_bytes()).collect();
        vm.memory.write(address, &bytes);
    };
    table(GDT, &long::SEGMENTS);
    // An NMI comes anywhere, and a function may use memory below its stack: it has one of its own.
    let gates: Vec<u64> = (0..256)
        .flat_map(|vector| long::gate(inside::stub(vector), u64::from(vector == usize::from(NMI))))
        .collect();
    table(IDT, &gates);
    Ok(())
}

/// Set a vCPU to the start.
pub fn start(vm: &Vm, vcpu: &VcpuFd, id: usize) -> Result<()> {
    let direct = |physical: usize| DIRECT + physical as u64;
    let (stack, tss) = (STACKS + 4 * PAGE * id, TSS + PAGE * id);
    // The TSS's first interrupt stack.
    let top = direct(stack + 4 * PAGE);
    vm.memory.write(tss + 0x24, &top.to_le_bytes());
    let cpu = direct(SHARED + offset_of!(Machine, cpus) + id * size_of::<Cpu>());
    let mut sregs = vcpu.get_sregs()?;
    long::set(&mut sregs, TABLES as u64, direct(GDT), direct(IDT));
    sregs.gs.base = cpu;
    sregs.tr = kvm_segment {
        base: direct(tss),
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment {
        unusable: 1,
        ..Default::default()
    };
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    vcpu.set_regs(&kvm_regs {
        rip: (inside::main as extern "C" fn(_, _) -> !) as usize as u64,
        // As if it had been called.
        rsp: direct(stack + 3 * PAGE) - 8,
        rdi: direct(SHARED),
        rsi: cpu,
        rflags: 2,
        ..Default::default()
    })?;
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })
    .context("KVM_SET_MP_STATE")?;
    let shared = &super::machine(vm).cpus[id];
    shared.own.store(cpu, Relaxed);
    shared.number.store(id as u64, Relaxed);
    Ok(())
}
