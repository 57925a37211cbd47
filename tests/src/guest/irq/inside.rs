// SPDX-License-Identifier: GPL-2.0
//! The guest itself: what its vCPUs do, and its interrupt handler. Runs in the guest.
//!
//! Nothing here may panic, allocate or use thread-local storage: there is no library in the guest.
//! Interrupts are enabled inside the `asm!` blocks only, which say that all registers a function may
//! change do change; an NMI may come anywhere, and its stub touches nothing.

use super::{
    chips,
    load::{DIRECT, SHARED},
    shared::{Cpu, Machine, FAULT, FENCE, HALT, HELD, HOLD, SPIN},
};
use std::{
    arch::{asm, global_asm},
    sync::atomic::Ordering::{Acquire, Relaxed, Release},
};

// One stub a vector, 16 bytes each. An exception's error code, if it has one, is above its vector;
// nobody returns from those. GS:0 is the vCPU's part of the shared memory, see `Cpu`.
//
// No processor delivers an interrupt while interrupts are disabled, but QEMU's TCG does: it leaves
// `exception_index` set after VMRUN has injected one, and injects it again if something calls QEMU's
// loop before the guest exits next. Such a second one is dropped, and the first makes the guest exit
// (CPUID) before it runs code that may use memory below its stack.
global_asm!(
    ".code64",
    ".balign 16",
    "kvmate_irq_stubs:",
    ".set kvmate_irq_vector, 0",
    ".rept 256",
    "   .balign 16",
    "   .if kvmate_irq_vector == 2",
    "   lock incq %gs:32", // counts[2]
    "   iretq",
    "   .else",
    "   pushq   $kvmate_irq_vector",
    "   jmp     kvmate_irq_common",
    "   .endif",
    "   .set kvmate_irq_vector, kvmate_irq_vector + 1",
    ".endr",
    "kvmate_irq_common:",
    "   cmpq    $32, (%rsp)",
    "   jb      2f",
    "   testb   $2, 25(%rsp)", // IF in the flags where it came
    "   jnz     2f",
    "   addq    $8, %rsp",
    "   iretq",
    "2: pushq   %rax",
    "   pushq   %rdx",
    "   rdtsc",
    "   shlq    $32, %rdx",
    "   orq     %rdx, %rax",
    "   movq    %rax, %gs:8", // entered
    "   pushq   %rbx",
    "   pushq   %rcx",
    "   pushq   %rsi",
    "   pushq   %rdi",
    "   pushq   %r8",
    "   pushq   %r9",
    "   pushq   %r10",
    "   pushq   %r11", // 16 words since the processor aligned the stack
    "   xorl    %eax, %eax",
    "   cpuid",
    "   movq    80(%rsp), %rdi", // the vector
    "   movq    %gs:0, %rsi",
    "   cld",
    "   call    {interrupt}",
    "   popq    %r11",
    "   popq    %r10",
    "   popq    %r9",
    "   popq    %r8",
    "   popq    %rdi",
    "   popq    %rsi",
    "   popq    %rcx",
    "   popq    %rbx",
    "   popq    %rdx",
    "   popq    %rax",
    "   addq    $8, %rsp",
    "   iretq",
    interrupt = sym interrupt,
    options(att_syntax)
);

extern "C" {
    static kvmate_irq_stubs: u8;
}

/// Where a vector's stub is.
pub fn stub(vector: usize) -> u64 {
    (&raw const kvmate_irq_stubs).addr() as u64 + 16 * vector as u64
}

/// Where a vCPU begins.
pub extern "C" fn main(machine: &Machine, cpu: &Cpu) -> ! {
    let first = cpu.number.load(Relaxed) == 0;
    if first && machine.chips.load(Relaxed) != 0 {
        chips::pic_on(machine);
        chips::ioapic_on(machine);
    }
    chips::lapic_on(first);
    cpu.ready.store(1, Release);
    loop {
        match machine.mode.load(Acquire) {
            HALT => halt(),
            SPIN => spin(cpu),
            _ => hold(machine, cpu),
        }
    }
}

fn halt() {
    // SAFETY: The handlers keep to what is said above. An interrupt between sti and hlt waits for hlt.
    unsafe { asm!("sti", "hlt", "cli", clobber_abi("C")) };
}

fn spin(cpu: &Cpu) {
    // SAFETY: As above.
    unsafe { asm!("sti", "2: dec ecx", "jnz 2b", "cli", inout("ecx") 2000 => _, clobber_abi("C")) };
    cpu.turns.fetch_add(1, Relaxed);
}

fn hold(machine: &Machine, cpu: &Cpu) {
    cpu.held.store(1, Release);
    while machine.mode.load(Acquire) == HOLD {
        chips::outb(HELD, 0);
    }
    cpu.held.store(0, Release);
}

/// The test ends the guest.
fn fault(vector: u8) -> ! {
    loop {
        chips::outb(FAULT, vector);
    }
}

/// An interrupt, or an exception.
extern "C" fn interrupt(vector: u8, cpu: &Cpu) {
    // SAFETY: The page tables have it there, and it is of atomics.
    let machine = unsafe { &*((DIRECT + SHARED as u64) as *const Machine) };
    if vector < 32 {
        fault(vector);
    }
    let count = || cpu.counts[usize::from(vector)].fetch_add(1, Release);
    if vector == FENCE {
        // Whoever waits for it finds nothing under way, not itself either.
        chips::end(vector);
        count();
        return;
    }
    count();
    while machine.lingers.load(Acquire) == u64::from(vector) {
        chips::outb(HELD, 0);
    }
    // The device first, then the chip: a line that is up still at the end comes again.
    let device = &machine.devices[usize::from(vector)];
    if device.load(Relaxed) > 0 {
        device.fetch_sub(1, Relaxed);
    }
    chips::end(vector);
}
