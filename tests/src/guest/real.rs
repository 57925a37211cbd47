// SPDX-License-Identifier: GPL-2.0
//! Guests in real mode: a few instructions and a count.

use super::Vm;
use anyhow::Result;
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use std::arch::global_asm;

// Each counts ECX down and halts; running it on after the halt starts it again with the ECX it is
// given. Position independent: it is copied to CODE.
global_asm!(
    ".code16",
    "kvmate_real_out_start:",
    "   outb    %al, $0x10",
    "   decl    %ecx",
    "   jnz     kvmate_real_out_start",
    "   hlt",
    "kvmate_real_out_end:",
    "kvmate_real_cpuid_start:",
    "   movl    %ecx, %esi",
    "1: xorl    %eax, %eax",
    "   cpuid",
    "   decl    %esi",
    "   jnz     1b",
    "   hlt",
    "kvmate_real_cpuid_end:",
    "kvmate_real_msr_start:",
    "   movl    %ecx, %esi",
    "   movl    $0x8b, %ecx",
    "1: rdmsr",
    "   decl    %esi",
    "   jnz     1b",
    "   hlt",
    "kvmate_real_msr_end:",
    "kvmate_real_mmio_start:",
    "   movw    $0xffff, %ax",
    "   movw    %ax, %ds",
    "1: movb    %al, 0x10",
    "   decl    %ecx",
    "   jnz     1b",
    "   hlt",
    "kvmate_real_mmio_end:",
    ".code64",
    options(att_syntax)
);

/// Where the code is in guest memory.
const CODE: usize = 0x1000;

/// What a guest does.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    /// Writes to port 0x10 so many times: each an exit to user space.
    Out,
    /// Executes CPUID so many times: each an exit that KVM handles itself.
    Cpuid,
    /// Reads an MSR so many times: likewise.
    Msr,
    /// Writes to memory that is not there, at 1 MiB, so many times: each an exit to user space, on SVM for
    /// a page fault.
    Mmio,
}

impl Program {
    fn code(self) -> &'static [u8] {
        extern "C" {
            static kvmate_real_out_start: u8;
            static kvmate_real_out_end: u8;
            static kvmate_real_cpuid_start: u8;
            static kvmate_real_cpuid_end: u8;
            static kvmate_real_msr_start: u8;
            static kvmate_real_msr_end: u8;
            static kvmate_real_mmio_start: u8;
            static kvmate_real_mmio_end: u8;
        }
        let (start, end) = match self {
            Self::Out => (
                &raw const kvmate_real_out_start,
                &raw const kvmate_real_out_end,
            ),
            Self::Cpuid => (
                &raw const kvmate_real_cpuid_start,
                &raw const kvmate_real_cpuid_end,
            ),
            Self::Msr => (
                &raw const kvmate_real_msr_start,
                &raw const kvmate_real_msr_end,
            ),
            Self::Mmio => (
                &raw const kvmate_real_mmio_start,
                &raw const kvmate_real_mmio_end,
            ),
        };
        // SAFETY: The labels enclose the code of one program in the text section, in this order.
        unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
    }
}

/// Put the program into the VM's memory.
pub fn load(vm: &Vm, program: Program) {
    vm.memory.write(CODE, program.code());
}

/// Set a vCPU to the program's start, to do its thing `count` times.
pub fn start(vcpu: &VcpuFd, count: u32) -> Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE as u64,
        rcx: count.into(),
        rflags: 2,
        ..Default::default()
    })?;
    Ok(())
}

/// A whole VM's life: made, runs a guest that writes to a port `count` times, ended.
pub fn write_ports(count: u32) -> Result<()> {
    let vm = Vm::new(1 << 16, false)?;
    load(&vm, Program::Out);
    let mut vcpu = vm.vcpu(0)?;
    start(&vcpu, count)?;
    let writes = super::run(&mut vcpu, None)?;
    anyhow::ensure!(
        writes == u64::from(count),
        "{writes} port writes of {count}"
    );
    Ok(())
}
