// SPDX-License-Identifier: GPL-2.0
//! A VMM of rust-vmm's crates: its memory (vm-memory), its kernel (linux-loader), its serial port
//! (vm-superio), and KVM's own interrupt controllers and timer.

use super::{initrd, kernel, soon, Console, Vmm, COMMAND_LINE, MEMORY};
use anyhow::{anyhow, ensure, Context, Result};
use kvm_bindings::{
    kvm_pit_config, kvm_regs, kvm_segment, kvm_userspace_memory_region, CpuId,
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use linux_loader::{
    cmdline::Cmdline,
    configurator::{linux::LinuxBootConfigurator, BootConfigurator, BootParams},
    loader::{bootparam, bzimage::BzImage, load_cmdline, KernelLoader},
};
use nix::{
    fcntl::OFlag,
    libc::c_int,
    sys::{
        pthread::pthread_kill,
        signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal},
    },
    unistd::pipe2,
};
use std::{
    fs::File,
    io::Write,
    os::unix::thread::JoinHandleExt,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, Mutex,
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vm_superio::{serial::NoEvents, Serial, Trigger};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
const COMMAND_LINE_AT: GuestAddress = GuestAddress(0x2_0000);
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;
const INITRD: u64 = 96 << 20;
/// Where KVM may put what it needs for real mode on Intel: in nobody's memory.
const TSS: usize = 0xfffb_d000;
const COM1: u16 = 0x3f8;
const COM1_IRQ: u32 = 4;

/// Raises the serial port's interrupt.
struct Irq(EventFd);

impl Trigger for Irq {
    type E = std::io::Error;

    fn trigger(&self) -> std::io::Result<()> {
        self.0.write(1)
    }
}

type Port = Arc<Mutex<Serial<Irq, NoEvents, File>>>;

/// The console's way into the guest: as much as its buffer takes at a time.
struct Input(Port);

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut port = self.0.lock().expect("the vCPU's thread panicked");
        match port.enqueue_raw_bytes(bytes) {
            Ok(0) => Err(std::io::ErrorKind::WouldBlock.into()),
            Ok(written) => Ok(written),
            Err(error) => Err(std::io::Error::other(format!("{error:?}"))),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Takes a thread out of KVM_RUN.
extern "C" fn kick(_signal: c_int) {}

/// A running VM. The descriptors go before the memory.
pub struct RustVmm {
    runner: Option<JoinHandle<Result<()>>>,
    console: Console,
    stop: Arc<AtomicBool>,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl RustVmm {
    /// Run the guest with the file as its memory.
    pub fn start(file: &File) -> Result<Self> {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            MEMORY,
            Some(FileOffset::new(file.try_clone()?, 0)),
        )])?;
        let entry = load(&memory)?;

        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        vm.set_tss_address(TSS)?;
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config {
            // The kernel measures its clock through the speaker's port.
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })?;
        for (slot, region) in memory.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: memory.get_host_address(region.start_addr())? as u64,
            };
            // SAFETY: The mapping outlives the VM: fields are dropped in order, after the runner.
            unsafe { vm.set_user_memory_region(region) }?;
        }
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&cpuid(&kvm)?)?;
        protected_mode(&vcpu, entry)?;

        let kick = SigAction::new(SigHandler::Handler(kick), SaFlags::empty(), SigSet::empty());
        // SAFETY: The handler does nothing.
        unsafe { sigaction(Signal::SIGUSR1, &kick) }?;

        let irq = EventFd::new(EFD_NONBLOCK)?;
        vm.register_irqfd(&irq, COM1_IRQ)?;
        let (output, writer) = pipe2(OFlag::O_CLOEXEC)?;
        let port: Port = Arc::new(Mutex::new(Serial::new(Irq(irq), File::from(writer))));
        let stop = Arc::new(AtomicBool::new(false));
        let runner = {
            let (port, stop) = (port.clone(), stop.clone());
            thread::spawn(move || run(vcpu, &port, &stop))
        };
        Ok(Self {
            runner: Some(runner),
            console: Console::new(File::from(output), Input(port)),
            stop,
            _vm: vm,
            _memory: memory,
        })
    }

    fn join(&mut self) -> Result<()> {
        match self.runner.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(anyhow!("the vCPU's thread panicked")),
            Some(Ok(result)) => result,
            None => Ok(()),
        }
    }
}

impl Vmm for RustVmm {
    fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    fn process(&self) -> u32 {
        std::process::id()
    }

    fn ended(mut self) -> Result<()> {
        soon(|| Ok(self.runner.as_ref().is_none_or(JoinHandle::is_finished)))?;
        self.join()
    }
}

impl Drop for RustVmm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A halted vCPU does not look: a signal takes it out of KVM, sooner or later.
        while let Some(runner) = self.runner.as_ref().filter(|r| !r.is_finished()) {
            pthread_kill(runner.as_pthread_t(), Signal::SIGUSR1)
                .expect("a thread that is not joined");
            thread::sleep(Duration::from_millis(10));
        }
        // Whoever wanted to know how it went has asked before.
        let _ = self.join();
    }
}

/// Put kernel, command line and RAM disk into the memory, by Linux' 32-bit boot protocol; tells where
/// to begin.
fn load(memory: &GuestMemoryMmap) -> Result<u64> {
    let mut image = File::open(kernel()?).context("the kernel's file")?;
    let start = Some(GuestAddress(HIGH_START));
    let loaded = BzImage::load(memory, None, &mut image, start)?;
    let mut text = Cmdline::new(COMMAND_LINE.len() + 1)?;
    text.insert_str(COMMAND_LINE)?;
    load_cmdline(memory, COMMAND_LINE_AT, &text)?;
    let disk = initrd()?;
    memory.write_slice(&disk, GuestAddress(INITRD))?;

    let mut header = loaded.setup_header.context("no setup header")?;
    header.type_of_loader = 0xff;
    header.cmd_line_ptr = COMMAND_LINE_AT.0 as u32;
    header.cmdline_size = COMMAND_LINE.len() as u32;
    header.ramdisk_image = INITRD as u32;
    header.ramdisk_size = disk.len() as u32;
    let mut parameters = bootparam::boot_params {
        hdr: header,
        ..Default::default()
    };
    for (addr, end) in [(0, LOW_END), (HIGH_START, MEMORY as u64)] {
        let entry = bootparam::boot_e820_entry {
            addr,
            size: end - addr,
            // Memory.
            type_: 1,
        };
        parameters.e820_table[usize::from(parameters.e820_entries)] = entry;
        parameters.e820_entries += 1;
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&parameters, ZERO_PAGE), memory)?;
    Ok(loaded.kernel_load.0)
}

/// What KVM supports, for a machine with one processor. KVM tells the APIC ID of the processor that it
/// is asked on; the guest's is 0.
fn cpuid(kvm: &Kvm) -> Result<CpuId> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = (entry.ebx & 0xffff) | (1 << 16),
            0xb | 0x1f => entry.edx = 0,
            0x8000_001e => entry.eax = 0,
            _ => {}
        }
    }
    Ok(cpuid)
}

/// Flat 32-bit code and data, no paging; ESI tells where the parameters are.
fn protected_mode(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = flat(0x10, 0xb);
    let data = flat(0x18, 0x3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi: ZERO_PAGE.0,
        rflags: 2,
        ..Default::default()
    })?;
    Ok(())
}

/// Run until the guest ends by a triple fault.
fn run(mut vcpu: VcpuFd, port: &Port, stop: &AtomicBool) -> Result<()> {
    let com1 = |address: u16| {
        let offset = address.wrapping_sub(COM1);
        (offset < 8).then_some(offset as u8)
    };
    while !stop.load(Ordering::Relaxed) {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(address, data)) => {
                if let Some(offset) = com1(address) {
                    let mut port = port.lock().expect("the test's thread panicked");
                    port.write(offset, data[0]).map_err(|e| anyhow!("{e:?}"))?;
                }
            }
            Ok(VcpuExit::IoIn(address, data)) => {
                data.fill(0xff);
                if let Some(offset) = com1(address) {
                    data[0] = port
                        .lock()
                        .expect("the test's thread panicked")
                        .read(offset);
                }
            }
            Ok(VcpuExit::MmioRead(_, data)) => data.fill(0xff),
            Ok(VcpuExit::MmioWrite(..)) => {}
            Ok(VcpuExit::Shutdown) => return Ok(()),
            Ok(other) => return Err(anyhow!("unexpected exit to user space: {other:?}")),
            Err(error) if error.errno() == nix::libc::EINTR => {}
            Err(error) => return Err(error).context("KVM_RUN"),
        }
    }
    ensure!(false, "stopped by the test");
    Ok(())
}
