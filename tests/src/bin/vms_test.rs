// SPDX-License-Identifier: GPL-2.0
//! `vms/`: every VM is there, whatever its VMM did before and after kvmate came, under KVM's own name
//! for it, and goes when it goes.

use anyhow::{ensure, Context, Result};
use kvm_ioctls::{VcpuFd, VmFd};
use kvmate_tests::{
    ensure_eq,
    guest::{self, real, Vm},
    ktap,
    module::Kvmate,
    seen,
    stats::Stats,
    storm::until,
};
use nix::{
    errno::Errno,
    sys::socket::{
        recvmsg, sendmsg, socketpair, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags,
        SockFlag, SockType,
    },
    unistd::gettid,
};
use std::{
    collections::BTreeSet,
    fs,
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    process::ExitCode,
    thread,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("named_as_kvm_names_them", named_as_kvm_names_them),
        ("made_and_never_run", made_and_never_run),
        ("older_than_the_module", older_than_the_module),
        ("older_with_vcpu_fd_only", older_with_vcpu_fd_only),
        ("older_in_flight", older_in_flight),
        ("other_threads_files", other_threads_files),
        ("same_name_twice", same_name_twice),
        ("lives_on_without_vm_fd", lives_on_without_vm_fd),
        ("listed_while_not_observed", listed_while_not_observed),
        ("files_and_modes", files_and_modes),
        ("reset_takes_one_only", reset_takes_one_only),
    ])
}

/// The names below a folder.
fn names(folder: &Path) -> Result<BTreeSet<String>> {
    fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// The VMs that kvmate shows.
fn shown() -> Result<BTreeSet<String>> {
    Ok(seen::names_of_vms()?.into_iter().collect())
}

/// The VMs that KVM's own debugfs shows.
fn of_kvm() -> Result<BTreeSet<String>> {
    let all = names(Path::new("/sys/kernel/debug/kvm"))?;
    Ok(all.into_iter().filter(|name| name.contains('-')).collect())
}

/// A VM's folders of vCPUs.
fn vcpus(vm: &str) -> Result<Vec<String>> {
    let all = names(&seen::vms().join(vm))?;
    Ok(all
        .into_iter()
        .filter(|n| n.starts_with("vcpu") && n != "vcpus")
        .collect())
}

fn none_left() -> Result<()> {
    until("no VM is shown", || Ok(shown()?.is_empty()))
}

/// The exits in the table of a VM (or of its vCPU, as "vm/vcpu0"), and those without a record.
fn counts(table: &str) -> Result<(u64, u64)> {
    let counts = seen::exits_of(table)?;
    Ok((counts.sum(), counts.of("unrecorded")))
}

/// A VM with a loaded program; the name it should have.
fn vm(program: real::Program) -> Result<(Vm, String)> {
    let vm = Vm::new(1 << 16, false)?;
    real::load(&vm, program);
    let name = name_of(&vm.fd);
    Ok((vm, name))
}

fn name_of(vm: &VmFd) -> String {
    format!("{}-{}", gettid(), vm.as_raw_fd())
}

fn run(vcpu: &mut VcpuFd, count: u32) -> Result<u64> {
    real::start(vcpu, count)?;
    guest::run(vcpu, None)
}

fn named_as_kvm_names_them() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (first, first_name) = vm(real::Program::Out)?;
    let (second, second_name) = vm(real::Program::Cpuid)?;
    let mut one = [first.vcpu(0)?, first.vcpu(7)?];
    let mut other = [second.vcpu(3)?];
    for vcpu in one.iter_mut().chain(&mut other) {
        run(vcpu, 20)?;
    }
    ensure_eq!(shown()?, of_kvm()?, "names, against KVM's");
    let expected: BTreeSet<_> = [&first_name, &second_name].into_iter().cloned().collect();
    ensure_eq!(shown()?, expected, "names");
    ensure_eq!(
        vcpus(&first_name)?,
        ["vcpu0", "vcpu7"],
        "vCPUs of the first"
    );
    ensure_eq!(vcpus(&second_name)?, ["vcpu3"], "vCPUs of the second");
    drop((one, other, first));
    until("the first is gone", || Ok(!shown()?.contains(&first_name)))?;
    ensure_eq!(shown()?.len(), 1, "VMs left");
    drop(second);
    none_left()?;
    kvmate.unload()
}

fn made_and_never_run() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, name) = vm(real::Program::Out)?;
    let vcpu = vm.vcpu(0)?;
    // At once: the task that makes a vCPU does it on its way back.
    ensure!(shown()?.contains(&name), "{name} is not in {:?}", shown()?);
    ensure_eq!(vcpus(&name)?, ["vcpu0"], "vCPUs");
    ensure_eq!(counts(&name)?, (0, 0), "exits");
    drop((vcpu, vm));
    none_left()?;
    kvmate.unload()
}

fn older_than_the_module() -> Result<()> {
    let (vm, name) = vm(real::Program::Out)?;
    let (idle, idle_name) = self::vm(real::Program::Out)?;
    let mut vcpu = vm.vcpu(0)?;
    let halted = vm.vcpu(1)?;
    let stats = Stats::of(&vcpu)?;
    run(&mut vcpu, 10)?;
    let before = stats.get("exits")?;
    let kvmate = Kvmate::load("")?;
    ensure_eq!(vcpus(&name)?, ["vcpu0", "vcpu1"], "vCPUs, before any runs");
    ensure_eq!(vcpus(&idle_name)?, [""; 0], "vCPUs of a VM that has none");
    run(&mut vcpu, 200)?;
    let expected = stats.get("exits")? - before;
    let found = counts(&format!("{name}/vcpu0"))?;
    ensure_eq!(
        found,
        (expected, 0),
        "exits since load, and without a record"
    );
    // The second vCPU never exits, and does not know whose names they are.
    let all = seen::exits_of(&name)?;
    ensure_eq!(
        all.of(seen::names().out),
        200,
        "port writes of the VM in {all:?}"
    );
    ensure_eq!(
        all,
        seen::exits_of(&format!("{name}/vcpu0"))?,
        "of the VM and its vCPU"
    );
    kvmate.write(&format!("vms/{name}/reset"), "1")?;
    run(&mut vcpu, 30)?;
    let all = seen::exits_of(&name)?;
    ensure_eq!(
        all.of(seen::names().out),
        30,
        "port writes since a reset in {all:?}"
    );
    drop((stats, vcpu, halted, vm, idle));
    none_left()?;
    kvmate.unload()
}

fn older_with_vcpu_fd_only() -> Result<()> {
    let (vm, name) = vm(real::Program::Cpuid)?;
    let mut vcpu = vm.vcpu(0)?;
    let Vm { fd, memory, .. } = vm;
    drop(fd);
    let kvmate = Kvmate::load("")?;
    ensure_eq!(vcpus(&name)?, ["vcpu0"], "vCPUs");
    run(&mut vcpu, 50)?;
    let (all, unrecorded) = counts(&name)?;
    ensure!(
        all >= 51 && unrecorded == 0,
        "{all} exits, {unrecorded} of them unrecorded"
    );
    drop((vcpu, memory));
    none_left()?;
    kvmate.unload()
}

/// No task has the VM's files when kvmate comes: they are in a socket. It is found when it runs, and
/// what ran before there was a record is counted.
fn older_in_flight() -> Result<()> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Datagram,
        None,
        SockFlag::empty(),
    )?;
    let (vm, name) = vm(real::Program::Out)?;
    let mut vcpu = vm.vcpu(0)?;
    let stats = Stats::of(&vcpu)?;
    real::start(&vcpu, 300)?;
    let before = stats.get("exits")?;
    let numbers = [vm.fd.as_raw_fd(), vcpu.as_raw_fd()];
    sendmsg::<()>(
        ours.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&numbers)],
        MsgFlags::empty(),
        None,
    )?;
    let nothing = fs::File::open("/dev/null")?;
    for number in numbers {
        put(&nothing, number)?;
    }
    let kvmate = Kvmate::load("");
    let early = shown();
    for (file, number) in receive(&theirs)?.iter().zip(numbers) {
        put(file, number)?;
    }
    let kvmate = kvmate?;
    ensure_eq!(early?, BTreeSet::new(), "VMs that no task has");
    ensure_eq!(guest::run(&mut vcpu, None)?, 300, "port writes");
    until("it is shown", || {
        // Its folder is there a moment before it is in the VM's table.
        let has_exits = || counts(&name).is_ok_and(|(all, _)| all > 0);
        Ok(vcpus(&name).is_ok_and(|v| v == ["vcpu0"]) && has_exits())
    })?;
    run(&mut vcpu, 40)?;
    let expected = stats.get("exits")? - before;
    let (all, unrecorded) = counts(&name)?;
    ensure_eq!(all, expected, "exits");
    ensure!(
        (1..=expected - 41).contains(&unrecorded),
        "{unrecorded} of {all} without a record"
    );
    drop((vcpu, stats, vm));
    none_left()?;
    kvmate.unload()
}

/// Put another file behind a descriptor's number; whoever owns the number keeps it.
fn put(file: &impl AsRawFd, number: RawFd) -> Result<()> {
    // SAFETY: Two open descriptors.
    let status = unsafe { nix::libc::dup2(file.as_raw_fd(), number) };
    Errno::result(status)?;
    Ok(())
}

fn receive(socket: &OwnedFd) -> Result<Vec<OwnedFd>> {
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut data,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: Descriptors that were just received, and nobody else owns.
            files.extend(fds.iter().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    ensure_eq!(files.len(), 2, "descriptors received");
    Ok(files)
}

/// A thread with a table of files of its own.
fn other_threads_files() -> Result<()> {
    let (to_main, from_thread) = std::sync::mpsc::channel();
    let (to_thread, from_main) = std::sync::mpsc::channel::<()>();
    thread::scope(|scope| {
        let other = scope.spawn(move || -> Result<()> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES)?;
            let (vm, name) = vm(real::Program::Out)?;
            let vcpu = vm.vcpu(0)?;
            to_main.send(name)?;
            // Until the other end is dropped.
            let _ = from_main.recv();
            drop((vcpu, vm));
            Ok(())
        });
        let name = from_thread.recv()?;
        let kvmate = Kvmate::load("")?;
        let found = vcpus(&name);
        drop(to_thread);
        other.join().expect("the thread")?;
        ensure_eq!(found?, ["vcpu0"], "vCPUs of the thread's VM");
        none_left()?;
        kvmate.unload()
    })
}

/// KVM names a VM by the descriptor's number, which is free again while vCPUs keep the VM.
fn same_name_twice() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, name) = vm(real::Program::Out)?;
    let mut vcpu = vm.vcpu(0)?;
    let Vm { fd, memory, kvm } = vm;
    let number = fd.as_raw_fd();
    drop(fd);
    let same = kvm.create_vm()?;
    ensure_eq!(
        same.as_raw_fd(),
        number,
        "the descriptor that is free again"
    );
    let others = same.create_vcpu(5)?;
    let all = shown()?;
    ensure!(all.contains(&name), "{name} is not in {all:?}");
    let prefix = format!("{}-x", gettid());
    let renamed: Vec<_> = all.iter().filter(|n| n.starts_with(&prefix)).collect();
    ensure_eq!(renamed.len(), 1, "VMs named {prefix}... in {all:?}");
    ensure_eq!(vcpus(renamed[0])?, ["vcpu5"], "vCPUs of the second");
    ensure_eq!(vcpus(&name)?, ["vcpu0"], "vCPUs of the first");
    run(&mut vcpu, 30)?;
    ensure!(counts(&name)?.0 >= 31, "exits of the first");
    let found = counts(renamed[0])?;
    ensure_eq!(found, (0, 0), "exits of the second");
    drop((others, same, vcpu, memory));
    none_left()?;
    kvmate.unload()
}

fn lives_on_without_vm_fd() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, name) = vm(real::Program::Cpuid)?;
    let mut vcpu = vm.vcpu(0)?;
    let stats = Stats::of(&vcpu)?;
    run(&mut vcpu, 20)?;
    let Vm { fd, memory, .. } = vm;
    drop(fd);
    run(&mut vcpu, 20)?;
    let found = counts(&name)?;
    ensure_eq!(found, (stats.get("exits")?, 0), "exits");
    // KVM's statistics are a file of the VM's too.
    drop(stats);
    drop(vcpu);
    drop(memory);
    none_left()?;
    let ended = kvmate.read("ended")?;
    ensure!(
        ended.contains(&format!(" {name} 1 ")),
        "{name} is not in {ended:?}"
    );
    kvmate.unload()
}

fn listed_while_not_observed() -> Result<()> {
    let kvmate = Kvmate::load("observe=0")?;
    let (vm, name) = vm(real::Program::Out)?;
    let mut vcpu = vm.vcpu(0)?;
    run(&mut vcpu, 20)?;
    ensure_eq!(vcpus(&name)?, ["vcpu0"], "vCPUs");
    ensure_eq!(counts(&name)?, (0, 0), "exits");
    let stats = Stats::of(&vcpu)?;
    let before = stats.get("exits")?;
    kvmate.write("knobs/observe", "1")?;
    run(&mut vcpu, 20)?;
    let expected = stats.get("exits")? - before;
    let found = counts(&name)?;
    ensure_eq!(found, (expected, 0), "exits since observe 1");
    kvmate.write("knobs/observe", "0")?;
    drop((stats, vcpu, vm));
    none_left()?;
    kvmate.unload()
}

fn files_and_modes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, name) = vm(real::Program::Out)?;
    let vcpu = vm.vcpu(0)?;
    let folder = seen::vms().join(&name);
    let expected = [
        ("exits", 0o444),
        ("exits_hist", 0o444),
        ("vcpus", 0o444),
        ("times", 0o444),
        ("msrs", 0o444),
        ("faults", 0o444),
        ("irqs", 0o444),
        ("reset", 0o200),
        ("vcpu0/exits", 0o444),
        ("vcpu0/exits_hist", 0o444),
        ("inject", 0o200),
        ("inject_status", 0o444),
        ("irqfds", 0o444),
        ("bindings", 0o444),
        ("latency", 0o444),
        ("storm", 0o644),
        ("storm_status", 0o444),
        ("snapshot", 0o444),
        ("memslots", 0o444),
        ("stage2", 0o444),
        ("stage2_map", 0o444),
        ("lookup", 0o644),
        ("vcpu0/times", 0o444),
        ("vcpu0/msrs", 0o444),
        ("vcpu0/faults", 0o444),
        ("vcpu0/irqs", 0o444),
    ];
    for (file, mode) in expected {
        let found = fs::metadata(folder.join(file))
            .context(file)?
            .permissions()
            .mode()
            & 0o777;
        ensure_eq!(found, mode, "mode of {file}");
    }
    let files: BTreeSet<_> = expected
        .map(|(file, _)| file.split('/').next().unwrap_or(file).to_owned())
        .into();
    ensure_eq!(names(&folder)?, files, "files");
    drop((vcpu, vm));
    none_left()?;
    kvmate.unload()
}

fn reset_takes_one_only() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, name) = vm(real::Program::Out)?;
    let mut vcpu = vm.vcpu(0)?;
    run(&mut vcpu, 20)?;
    let table = format!("vms/{name}/exits");
    let before = kvmate.read(&table)?;
    let reset = format!("vms/{name}/reset");
    for bad in ["0", "2", "257", "-1", "x", ""] {
        let found = kvmate.write(&reset, bad);
        if bad.is_empty() {
            continue;
        }
        let errno = found.err().and_then(|e| e.raw_os_error());
        ensure_eq!(errno, Some(Errno::EINVAL as i32), "reset {bad:?}");
    }
    ensure_eq!(kvmate.read(&table)?, before, "after refused resets");
    kvmate.write(&reset, "1")?;
    ensure_eq!(counts(&name)?, (0, 0), "after a reset");
    let stats = Stats::of(&vcpu)?;
    let since = stats.get("exits")?;
    run(&mut vcpu, 20)?;
    let expected = stats.get("exits")? - since;
    ensure_eq!(counts(&name)?, (expected, 0), "exits since");
    drop((stats, vcpu, vm));
    none_left()?;
    kvmate.unload()
}
