// SPDX-License-Identifier: GPL-2.0
//! Guests in real mode that make exits of several kinds, each so many times.
//!
//! A guest does its steps in turn, writes to [`DONE`], and begins again when it is run on. MSRs that
//! do not exist fault with #GP, whose handler counts and skips the instruction.

use super::Vm;
use crate::oracle::name_of;
use anyhow::{bail, Context, Result};
use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};

/// The port written when all steps are done.
pub const DONE: u8 = 0x11;

/// What a guest does, and how often.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Writes to port 0x10.
    Out(u32),
    /// Reads port 0x10.
    In(u32),
    /// Executes CPUID.
    Cpuid(u32),
    /// Halts; without an in-kernel irqchip that goes to user space.
    Halt(u32),
    /// Reads an MSR that exists.
    Read(u32),
    /// Writes an MSR that exists.
    Write(u32),
    /// Reads an MSR that does not exist.
    ReadNone(u32),
    /// Writes an MSR that does not exist.
    WriteNone(u32),
    /// Writes to the last page of the VM's memory.
    Touch(u32),
    /// Jumps to itself, with interrupts enabled if the vCPU was started so. Nothing follows.
    Spin,
}

/// How often the guest did what, or how often it is to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Ports written and read, [`DONE`] among them.
    pub ports: u64,
    /// CPUIDs.
    pub cpuids: u64,
    /// HLTs.
    pub halts: u64,
    /// MSRs read, those that do not exist among them.
    pub reads: u64,
    /// MSRs written, likewise.
    pub writes: u64,
    /// Faults.
    pub faults: u64,
}

/// What a guest does that goes through these steps once.
pub fn known(steps: &[Step]) -> Done {
    let mut done = Done {
        ports: 1,
        ..Done::default()
    };
    for step in steps {
        match *step {
            Step::Touch(_) | Step::Spin => {}
            Step::Out(n) | Step::In(n) => done.ports += u64::from(n),
            Step::Cpuid(n) => done.cpuids += u64::from(n),
            Step::Halt(n) => done.halts += u64::from(n),
            Step::Read(n) => done.reads += u64::from(n),
            Step::Write(n) => done.writes += u64::from(n),
            Step::ReadNone(n) => {
                done.reads += u64::from(n);
                done.faults += u64::from(n);
            }
            Step::WriteNone(n) => {
                done.writes += u64::from(n);
                done.faults += u64::from(n);
            }
        }
    }
    done
}

/// How much memory such a VM needs.
pub const MEMORY: usize = 1 << 16;

const FAULTS: usize = 0x600;
const HANDLER: usize = 0x700;

/// Where the code of a vCPU is: its first instruction.
pub fn code(id: usize) -> usize {
    0x1000 * (id + 1)
}

/// Where the instruction of a vCPU's first step is, unless that is one on MSRs.
pub fn first(id: usize) -> usize {
    code(id) + 6
}

/// The page that [`Step::Touch`] writes to.
pub const TOUCHED: usize = MEMORY - 0x1000;

/// `push bp; mov bp, sp; add word [bp+2], 2; lock inc dword [FAULTS]; pop bp; iret`
const GP: &[u8] = &[
    0x55, 0x89, 0xe5, 0x83, 0x46, 0x02, 0x02, 0xf0, 0x66, 0xff, 0x06, 0x00, 0x06, 0x5d, 0xcf,
];

/// `mov ecx, MSR`
const fn select(msr: u32) -> [u8; 6] {
    let [a, b, c, d] = msr.to_le_bytes();
    [0x66, 0xb9, a, b, c, d]
}

/// `IA32_BIOS_UPDT_TRIG`: KVM ignores what is written. `IA32_BIOS_SIGN_ID`: reads always.
const WRITABLE: u32 = 0x79;
const READABLE: u32 = 0x8b;
/// No MSR has this number.
const NONE: u32 = 0x0bad_0000;

impl Step {
    /// How often, what to execute before, and what to execute so often.
    fn code(self) -> (u32, Vec<u8>, &'static [u8]) {
        const RDMSR: &[u8] = &[0x0f, 0x32];
        const WRMSR: &[u8] = &[0x0f, 0x30];
        match self {
            Self::Out(n) => (n, vec![], &[0xe6, 0x10]),
            Self::In(n) => (n, vec![], &[0xe4, 0x10]),
            Self::Touch(n) => (n, vec![], &[0xa2, 0x00, 0xf0]),
            Self::Spin => (1, vec![], &[0xeb, 0xfe]),
            Self::Cpuid(n) => (n, vec![], &[0x66, 0x31, 0xc0, 0x0f, 0xa2]),
            Self::Halt(n) => (n, vec![], &[0xf4]),
            Self::Read(n) => (n, select(READABLE).into(), RDMSR),
            Self::ReadNone(n) => (n, select(NONE).into(), RDMSR),
            Self::Write(n) => (n, select(WRITABLE).into(), WRMSR),
            Self::WriteNone(n) => (n, select(NONE).into(), WRMSR),
        }
    }
}

/// Put the steps of a vCPU into the VM's memory.
pub fn load(vm: &Vm, id: usize, steps: &[Step]) {
    let mut bytes = Vec::new();
    for step in steps {
        let (count, before, body) = step.code();
        bytes.extend(before);
        // mov esi, count; the body; dec esi; jnz back to the body
        bytes.extend([0x66, 0xbe]);
        bytes.extend(count.to_le_bytes());
        bytes.extend(body);
        bytes.extend([0x66, 0x4e, 0x75, (-4 - body.len() as i8) as u8]);
    }
    // out DONE, al; jmp to the start
    bytes.extend([0xe6, DONE]);
    let back = -(bytes.len() as i16 + 3);
    bytes.push(0xe9);
    bytes.extend(back.to_le_bytes());
    vm.memory.write(code(id), &bytes);
    vm.memory.write(HANDLER, GP);
    // The interrupt vector table: offset, segment. An NMI does nothing but return.
    vm.memory.write(4 * 13, &(HANDLER as u32).to_le_bytes());
    vm.memory
        .write(4 * 2, &((HANDLER + GP.len() - 1) as u32).to_le_bytes());
}

/// Set a vCPU to the start of its code, with interrupts disabled.
pub fn start(vcpu: &VcpuFd, id: usize) -> Result<()> {
    start_with(vcpu, id, false)
}

/// Set a vCPU to the start of its code, with interrupts enabled or disabled.
pub fn start_with(vcpu: &VcpuFd, id: usize, interrupts: bool) -> Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    vcpu.set_regs(&kvm_regs {
        rip: code(id) as u64,
        rsp: (0x8000 + 0x400 * id) as u64,
        rflags: 2 | (u64::from(interrupts) << 9),
        ..Default::default()
    })?;
    Ok(())
}

/// Go through all steps once; `user` is called at each exit to user space.
pub fn run(vcpu: &mut VcpuFd, mut user: impl FnMut()) -> Result<()> {
    loop {
        let done = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, _)) => port == u16::from(DONE),
            Ok(VcpuExit::IoIn(_, _) | VcpuExit::Hlt) => false,
            Ok(other) => bail!("unexpected exit to user space: {other:?}"),
            Err(error) if error.errno() == nix::libc::EINTR => continue,
            Err(error) => return Err(error).context("KVM_RUN"),
        };
        user();
        if done {
            return Ok(());
        }
    }
}

/// A VM at rest, whose vCPUs have all gone through these steps once.
pub fn at_rest(count: usize, steps: &[Step]) -> Result<(Vm, Vec<VcpuFd>)> {
    let vm = Vm::new(MEMORY, false)?;
    let mut vcpus = Vec::new();
    for id in 0..count {
        load(&vm, id, steps);
        let mut vcpu = vm.vcpu(id as u64)?;
        start(&vcpu, id)?;
        run(&mut vcpu, || ())?;
        vcpus.push(vcpu);
    }
    Ok((vm, vcpus))
}

/// How many faults all vCPUs of the VM have taken.
pub fn faults(vm: &Vm) -> u64 {
    vm.memory.word(FAULTS)
}

/// A VM of one vCPU that does steps.
pub struct Guest {
    /// The VM.
    pub vm: Vm,
    /// Its vCPU.
    pub vcpu: VcpuFd,
    /// The VM's name.
    pub name: String,
}

impl Guest {
    /// One that has not run.
    pub fn new(steps: &[Step]) -> Result<Self> {
        let vm = Vm::new(MEMORY, false)?;
        load(&vm, 0, steps);
        let vcpu = vm.vcpu(0)?;
        start(&vcpu, 0)?;
        let name = name_of(&vm.fd);
        Ok(Self { vm, vcpu, name })
    }

    /// Have it do them once.
    pub fn run(&mut self) -> Result<()> {
        run(&mut self.vcpu, || ())
    }
}
