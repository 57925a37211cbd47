// SPDX-License-Identifier: GPL-2.0
//! A guest in long mode with an IDT and its LAPIC on, that counts interrupts by vector.
//!
//! It halts with interrupts enabled, and every interrupt adds one to its vector's counter and is
//! ended (EOI). When the counter of the chosen vector reaches the chosen count, it writes to
//! [`DONE`]. An exception makes it write its vector to [`FAULT`].

use super::{Memory, Vm};
use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, Msrs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::arch::global_asm;

/// The port written when the guest has counted what it waits for.
pub const DONE: u16 = 0x11;
/// The port written with the vector of an exception.
pub const FAULT: u16 = 0x12;

// Guest-physical addresses; memory is mapped as it is, 0 to 1 GiB and the LAPIC's gigabyte.
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD_LOW: usize = 0x3000;
const PD_LAPIC: usize = 0x4000;
const GDT: usize = 0x5000;
const IDT: usize = 0x6000;
/// What `MSR_KVM_PV_EOI_EN` is to point to, and how often the guest has found it set.
const PV_EOI: [usize; 2] = [0x7000, 0x7008];
const COUNTERS: usize = 0x8000;
const CODE: usize = 0x10000;
const STACKS: usize = 0x20000;

/// How much memory such a VM needs.
pub const MEMORY: usize = 4 << 20;

// The LAPIC's registers are at 0xfee00000. RBX: the count waited for, RSI: the counter's address,
// R8: the table of counters, R9: the LAPIC.
global_asm!(
    ".code64",
    ".balign 16",
    "kvmate_long_start:",
    "   movl    $0x1ff, 0xf0(%r9)", // spurious vector 0xff, LAPIC on
    "1: cli",
    "   cmpq    %rbx, (%rsi)",
    "   jae     2f",
    "   sti",
    "   hlt", // an interrupt between sti and hlt waits for hlt
    "   jmp     1b",
    "2: outb    %al, $0x11",
    "   jmp     1b",
    // One stub a vector, 16 bytes each; exceptions with an error code have it under the vector.
    ".balign 16",
    "kvmate_long_stubs:",
    ".set kvmate_long_vector, 0",
    ".rept 256",
    "   .balign 16",
    "   pushq   $kvmate_long_vector",
    "   jmp     kvmate_long_common",
    "   .set kvmate_long_vector, kvmate_long_vector + 1",
    ".endr",
    "kvmate_long_common:",
    "   xchgq   %rax, (%rsp)",
    "   cmpb    $2, %al",
    "   je      3f", // NMI: counted, no EOI
    "   cmpb    $32, %al",
    "   jae     4f",
    "   outb    %al, $0x12",
    "   hlt",
    "3: lock incq (%r8,%rax,8)",
    "   popq    %rax",
    "   iretq",
    "4: testb   $2, 25(%rsp)", // interrupts were disabled: QEMU's second one, see irq/inside.rs
    "   jz      5f",
    "   lock incq (%r8,%rax,8)",
    "   btrl    $0, 0x7000", // KVM does it if it has set this
    "   jc      6f",
    "   movl    $0, 0xb0(%r9)",
    "5: popq    %rax",
    "   iretq",
    "6: lock incq 0x7008",
    "   jmp     5b",
    "kvmate_long_end:",
    options(att_syntax)
);

extern "C" {
    static kvmate_long_start: u8;
    static kvmate_long_stubs: u8;
    static kvmate_long_end: u8;
}

fn code() -> &'static [u8] {
    let (start, end) = (&raw const kvmate_long_start, &raw const kvmate_long_end);
    // SAFETY: The labels enclose the guest's code in the text section, in this order.
    unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
}

fn stubs() -> usize {
    // SAFETY: Two labels of the same code.
    CODE + unsafe { (&raw const kvmate_long_stubs).offset_from(&raw const kvmate_long_start) }
        as usize
}

/// A GDT: null, 64-bit code, data.
pub(super) const SEGMENTS: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// An IDT's gate to a handler, on that stack of the TSS's (0: the one that is in use).
pub(super) fn gate(handler: u64, stack: u64) -> [u64; 2] {
    let (selector, interrupt_gate) = (8u64 << 16, 0x8e00u64 << 32);
    let low = (handler & 0xffff) | selector | interrupt_gate | (stack << 32);
    [low | ((handler & 0xffff_0000) << 32), handler >> 32]
}

/// Registers for long mode, with page tables, and a GDT of [`SEGMENTS`] and an IDT of 256 gates.
pub(super) fn set(sregs: &mut kvm_sregs, cr3: u64, gdt: u64, idt: u64) {
    let flat = |selector: u16, type_: u8| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        l: 1,
        ..flat(8, 0xb)
    };
    let data = kvm_segment {
        db: 1,
        ..flat(16, 3)
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    let table = |base: u64, limit: u16| kvm_dtable {
        base,
        limit,
        ..Default::default()
    };
    sregs.gdt = table(gdt, 23);
    sregs.idt = table(idt, 4095);
    sregs.cr3 = cr3;
    sregs.cr4 |= (1 << 5) | (1 << 9); // PAE; SSE, which compiled code uses
    sregs.cr0 |= (1 << 31) | 1; // paging, protection
    sregs.efer |= (1 << 8) | (1 << 10); // long mode, enabled and active
}

const PRESENT_WRITABLE: u64 = 0b11;

fn table(vm: &Vm, address: usize, entries: &[u64]) {
    let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_le_bytes()).collect();
    vm.memory.write(address, &bytes);
}

/// A page directory that maps a gigabyte as it is.
fn directory(base: u64, flags: u64) -> Vec<u64> {
    const HUGE: u64 = 1 << 7;
    (0..512)
        .map(|i| (base + (i << 21)) | flags | HUGE | PRESENT_WRITABLE)
        .collect()
}

/// Build tables only, with page directories at `at` (one page a gigabyte), that map all below `end` as
/// it is. For code of one's own: see [`enter`].
pub fn map(vm: &Vm, at: usize, end: u64) {
    let gigabytes = end.div_ceil(1 << 30);
    assert!(gigabytes <= 512, "more than one table of directories");
    let at = |gigabyte: u64| at + gigabyte as usize * 0x1000;
    for gigabyte in 0..gigabytes {
        table(vm, at(gigabyte), &directory(gigabyte << 30, 0));
    }
    let pdpt: Vec<_> = (0..gigabytes)
        .map(|gigabyte| at(gigabyte) as u64 | PRESENT_WRITABLE)
        .collect();
    table(vm, PML4, &[PDPT as u64 | PRESENT_WRITABLE]);
    table(vm, PDPT, &pdpt);
    table(vm, GDT, &SEGMENTS);
}

/// Build tables and code in the VM's memory.
pub fn load(vm: &Vm) {
    let table = |address: usize, entries: &[u64]| table(vm, address, entries);
    const UNCACHED: u64 = 1 << 4;
    table(PML4, &[PDPT as u64 | PRESENT_WRITABLE]);
    let pdpt = [
        PD_LOW as u64 | PRESENT_WRITABLE,
        0,
        0,
        PD_LAPIC as u64 | PRESENT_WRITABLE,
    ];
    table(PDPT, &pdpt);
    table(PD_LOW, &directory(0, 0));
    table(PD_LAPIC, &directory(3 << 30, UNCACHED));
    table(GDT, &SEGMENTS);
    let gates: Vec<u64> = (0..256)
        .flat_map(|vector| gate((stubs() + 16 * vector) as u64, 0))
        .collect();
    table(IDT, &gates);
    vm.memory.write(CODE, code());
}

/// Set a vCPU to long mode, with these tables.
pub fn enter(vcpu: &VcpuFd) -> Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    set(&mut sregs, PML4 as u64, GDT as u64, IDT as u64);
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")
}

/// Set a vCPU to the start, to count `count` interrupts of `vector`.
pub fn start(vcpu: &VcpuFd, id: usize, vector: u8, count: u64) -> Result<()> {
    enter(vcpu)?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE as u64,
        rsp: (STACKS + 0x1000 * (id + 1)) as u64,
        rflags: 2,
        rbx: count,
        rsi: (COUNTERS + 8 * usize::from(vector)) as u64,
        r8: COUNTERS as u64,
        r9: 0xfee0_0000,
        ..Default::default()
    })?;
    Ok(())
}

/// Have KVM end a vCPU's interrupts by a word in memory where it can (`MSR_KVM_PV_EOI_EN`). One vCPU
/// of a VM only: there is one word.
pub fn end_by_memory(vcpu: &VcpuFd) -> Result<()> {
    const PV_EOI_EN: u32 = 0x4b56_4d04;
    let enable = kvm_msr_entry {
        index: PV_EOI_EN,
        data: PV_EOI[0] as u64 | 1,
        ..Default::default()
    };
    let set = vcpu.set_msrs(&Msrs::from_entries(&[enable])?)?;
    ensure!(set == 1, "KVM refused MSR_KVM_PV_EOI_EN");
    Ok(())
}

/// How often the guest has ended an interrupt so.
pub fn ended_by_memory(memory: &Memory) -> u64 {
    memory.word(PV_EOI[1])
}

/// How often the guest has seen a vector.
pub fn seen(memory: &Memory, vector: u8) -> u64 {
    memory.word(COUNTERS + 8 * usize::from(vector))
}

/// Run until the guest has counted enough.
pub fn run(vcpu: &mut VcpuFd) -> Result<()> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(DONE, _)) => return Ok(()),
            Ok(VcpuExit::IoOut(FAULT, data)) => bail!("the guest took exception {data:?}"),
            Ok(other) => bail!("unexpected exit to user space: {other:?}"),
            Err(error) if error.errno() == nix::libc::EINTR => continue,
            Err(error) => return Err(error).context("KVM_RUN"),
        }
    }
}
