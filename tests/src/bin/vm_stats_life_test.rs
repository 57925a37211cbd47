// SPDX-License-Identifier: GPL-2.0
//! `KVMATE_GET_VM_STATS`: errors, who may read, and whose end a descriptor outlives.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    binary_stats, ensure_eq,
    guest::{
        steps::{self, at_rest, Step},
        Vm,
    },
    ktap,
    module::{self, Kvmate, WithoutKvm},
    poke::{stats_of, Device},
    seen,
    stats::Stats,
    storm::{self, name_of, Vmm},
    table,
};
use kvmate_uapi::kvmate_vm_stats;
use nix::{
    errno::Errno,
    libc,
    sys::resource::{getrlimit, setrlimit, Resource},
};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{fs::FileExt, process::CommandExt},
    },
    process::{Command, ExitCode},
};

/// The status of who read of a VM that has ended.
const ENDED: u8 = 3;

fn is_over(error: &anyhow::Error) -> bool {
    let error = error.root_cause().downcast_ref::<io::Error>();
    error.and_then(io::Error::raw_os_error) == Some(libc::ENODEV)
}

fn main() -> ExitCode {
    // The part of `passed_on` that runs as somebody else.
    if std::env::args().nth(1).as_deref() == Some("--read") {
        return match read_stdin() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if is_over(&error) => ExitCode::from(ENDED),
            Err(error) => {
                eprintln!("# {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    ktap::main(&[
        ("refused", refused),
        ("refused_without_kvm", refused_without_kvm),
        ("passed_on", passed_on),
        ("vmm_is_killed", vmm_is_killed),
        ("holds_the_module_only", holds_the_module_only),
    ])
}

const STEPS: [Step; 2] = [Step::Out(3), Step::Cpuid(4)];

fn asked(vm_fd: i32) -> kvmate_vm_stats {
    kvmate_vm_stats {
        flags: 0,
        vm_fd,
        reserved: [0; 3],
    }
}

fn refused() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let vm = Vm::new(steps::MEMORY, false)?;
    let vcpu = vm.vcpu(0)?;
    let fd = vm.fd.as_raw_fd();
    let ask = |asked: kvmate_vm_stats| device.stats_at((&raw const asked).addr()).map(drop);
    for bit in 0..32 {
        let wrong = kvmate_vm_stats {
            flags: 1 << bit,
            ..asked(fd)
        };
        ensure_eq!(ask(wrong), Err(Errno::EINVAL), "flag {bit}");
    }
    for place in 0..3 {
        let mut wrong = asked(fd);
        wrong.reserved[place] = 1 << (20 * place);
        ensure_eq!(ask(wrong), Err(Errno::EINVAL), "reserved {place}");
    }
    for wrong in [-1, i32::MIN, i32::MAX, 9999] {
        ensure_eq!(ask(asked(wrong)), Err(Errno::EBADF), "descriptor {wrong}");
    }
    let other = File::open("/dev/null")?;
    let (kvm, ours) = (Stats::of(&vm.fd)?, stats_of(&vm)?);
    let others = [
        other.as_raw_fd(),
        vcpu.as_raw_fd(),
        kvm.file.as_raw_fd(),
        ours.as_raw_fd(),
        vm.kvm.as_raw_fd(),
    ];
    for wrong in others {
        ensure_eq!(ask(asked(wrong)), Err(Errno::EBADFD), "no VM's file");
    }
    for address in [0, 1, 0x7fff_ffff_f000, usize::MAX - 4095] {
        let found = device.stats_at(address).map(drop);
        ensure_eq!(found, Err(Errno::EFAULT), "argument at {address:#x}");
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 1, hard)?;
    let found = ask(asked(fd));
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    ensure_eq!(found, Err(Errno::EMFILE), "no room for a descriptor");
    ensure_eq!(ask(asked(fd)), Ok(()), "what is right");
    drop((device, ours, vcpu, vm, kvm));
    kvmate.unload()
}

fn refused_without_kvm() -> Result<()> {
    let _kvm = WithoutKvm::new()?;
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    for fd in [-1, 0] {
        let found = device.stats(fd).map(drop);
        ensure_eq!(found, Err(Errno::EOPNOTSUPP), "descriptor {fd}");
    }
    let wrong = kvmate_vm_stats {
        flags: 1,
        ..asked(-1)
    };
    let found = device.stats_at((&raw const wrong).addr()).map(drop);
    ensure_eq!(found, Err(Errno::EINVAL), "a flag");
    drop(device);
    kvmate.unload()
}

fn read_stdin() -> Result<()> {
    let file = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let layout = binary_stats::check(&file)?;
    ensure!(layout.id.starts_with("kvmate-"), "id {}", layout.id);
    Stats::from_file(file)?.read()?.add_up()
}

/// Whom it is given to may read it, whoever that is.
fn passed_on() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, vcpus) = at_rest(1, &STEPS)?;
    // A copy where nobody may execute it.
    let program = "/tmp/vm_stats_test_read";
    fs::copy(std::env::current_exe()?, program)?;
    let read = |file: File| {
        let mut command = Command::new(program);
        command.arg("--read").stdin(file).uid(65534).gid(65534);
        command.status()
    };
    let file = stats_of(&vm)?;
    let status = read(file.try_clone()?)?;
    ensure!(status.success(), "reading as nobody: {status}");
    drop((vcpus, vm));
    let status = read(file)?;
    ensure_eq!(
        status.code(),
        Some(ENDED.into()),
        "after the VM's end: {status}"
    );
    fs::remove_file(program)?;
    kvmate.unload()
}

/// A tool has a VM's statistics by the VM's descriptor, which it takes from the VMM and closes.
fn vmm_is_killed() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = Device::open()?;
    let vmm = Vmm::start(true)?;
    // Some of its VMs come and go: the one with two vCPUs and the one that exits all the time stay.
    let mut stay = Vec::new();
    storm::until("a VM that exits all the time, and one that halts", || {
        stay.clear();
        for name in seen::names_of_vms()? {
            let Ok(vm) = seen::taken_from(&name) else {
                continue;
            };
            let Ok(file) = device.stats(vm.as_raw_fd()) else {
                continue;
            };
            let Ok(stats) = Stats::from_file(file) else {
                continue;
            };
            let Ok(values) = stats.read() else { continue };
            values.add_up().context(name)?;
            // Those that come and go never run.
            let (vcpus, exits) = (values.get("vcpus")?, values.get("exits")?);
            let busy = vcpus == 1 && exits > 100;
            if busy || vcpus == 2 {
                stay.push((stats, exits, busy));
            }
        }
        let busy = stay.iter().filter(|(.., busy)| *busy).count();
        Ok(busy > 0 && busy < stay.len())
    })?;
    for (stats, before, busy) in &stay {
        if *busy {
            storm::until("it goes on", || Ok(stats.get("exits")? > *before))?;
        }
    }
    vmm.kill()?;
    for (stats, ..) in &stay {
        storm::until("reading is refused", || {
            let read = stats.file.read_at(&mut [0; 24], 0);
            Ok(read.map_err(|e| e.raw_os_error()) == Err(Some(libc::ENODEV)))
        })?;
        let read = stats.read().map(drop).map_err(|e| e.raw_os_error());
        ensure_eq!(read, Err(Some(libc::ENODEV)), "the numbers");
    }
    storm::until("all its VMs are gone", || {
        Ok(seen::names_of_vms()?.is_empty())
    })?;
    drop((device, stay));
    kvmate.unload()
}

/// A descriptor holds kvmate, and neither the VM nor kvm.
fn holds_the_module_only() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, vcpus) = at_rest(1, &STEPS)?;
    let name = name_of(&vm);
    let file = stats_of(&vm)?;
    ensure_eq!(
        module::unload("kvmate"),
        Err(Errno::EWOULDBLOCK),
        "rmmod kvmate"
    );
    drop((vcpus, vm));
    storm::until("it has ended", || {
        Ok(seen::names_of_vms()?.is_empty() && table::ended(&kvmate.read("ended")?, &name).is_ok())
    })?;
    let refused = |what: &str| -> Result<()> {
        for at in [0, 24, 72, 1 << 14, 1 << 40] {
            let read = file.read_at(&mut [0; 24], at);
            let read = read.map_err(|e| e.raw_os_error());
            ensure_eq!(read, Err(Some(libc::ENODEV)), "at {at}, {what}");
        }
        Ok(())
    };
    refused("when the VM has ended")?;
    {
        let _kvm = WithoutKvm::new()?;
        refused("without kvm")?;
    }
    // Another VM, perhaps at the same address, is another one.
    let (vm, vcpus) = at_rest(1, &STEPS)?;
    refused("with another VM")?;
    ensure_eq!(
        module::unload("kvmate"),
        Err(Errno::EWOULDBLOCK),
        "rmmod kvmate"
    );
    drop((vcpus, vm, file));
    kvmate.unload()
}
