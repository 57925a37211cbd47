// SPDX-License-Identifier: GPL-2.0
//! A guest in real mode whose code and registers a test chooses, with [`steps`]' handler for faults.

use super::{
    steps::{self, DONE},
    Vm,
};
use anyhow::{bail, ensure, Context, Result};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::{errno::Errno, libc};

/// What it begins with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// What data's addresses count from.
    pub data: u64,
    /// What code's addresses count from, with its begin there; else it begins at [`steps::code`].
    pub code: Option<u64>,
    /// RAX, RCX, RDX, RSI.
    pub general: [u64; 4],
}

/// A VM with a vCPU whose code this is, and which touches memory page by page.
pub fn vm(size: usize, code: &[u8]) -> Result<(Vm, VcpuFd)> {
    // SAFETY: Takes numbers only.
    let done = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    ensure!(done == 0, "PR_SET_THP_DISABLE: {}", Errno::last());
    let vm = Vm::new(size, false)?;
    steps::load(&vm, 0, &[]);
    vm.memory.write(steps::code(0), code);
    let vcpu = vm.vcpu(0)?;
    Ok((vm, vcpu))
}

/// Run it until it writes to [`DONE`]. Gives how often it wrote to memory that is not there.
pub fn run(vcpu: &mut VcpuFd, registers: Registers) -> Result<u64> {
    steps::start(vcpu, 0)?;
    let (mut sregs, mut regs) = (vcpu.get_sregs()?, vcpu.get_regs()?);
    sregs.ds.base = registers.data;
    if let Some(code) = registers.code {
        sregs.cs.base = code;
        regs.rip = 0;
    }
    [regs.rax, regs.rcx, regs.rdx, regs.rsi] = registers.general;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    on(vcpu)
}

/// Run it on, likewise.
pub fn on(vcpu: &mut VcpuFd) -> Result<u64> {
    let mut nowhere = 0;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, _)) if port == u16::from(DONE) => return Ok(nowhere),
            Ok(VcpuExit::MmioWrite(..)) => nowhere += 1,
            Ok(other) => bail!("unexpected exit to user space: {other:?}"),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error).context("KVM_RUN"),
        }
    }
}
