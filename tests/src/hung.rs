// SPDX-License-Identifier: GPL-2.0
//! Guests and VMMs that hang, each where the test knows: on a thread of the test's ([`running`]), or in a
//! process of its own ([`Vmm`]) that can be stopped.

use crate::{
    guest::{
        steps::{self, Step},
        Vm,
    },
    ktap,
    module::{is_loaded, Stop},
    oracle::name_of,
    storm,
};
use anyhow::{bail, ensure, Context, Result};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::{
    libc,
    sys::{
        pthread::{pthread_kill, pthread_self},
        signal::{kill, sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal},
    },
    unistd::{gettid, Pid},
};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::channel,
    thread,
    time::Duration,
};

/// A test program that is its own VMM as well ([`Vmm`]).
pub fn main(tests: &[ktap::Test]) -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [option, what] if option == VMM => vmm(what),
        _ => ktap::main(tests),
    }
}

/// What is called so on SVM, and so on VMX.
pub fn named(svm: &'static str, vmx: &'static str) -> &'static str {
    if is_loaded("kvm_intel") {
        vmx
    } else {
        svm
    }
}

/// An address as tables have it.
pub fn hex(address: usize) -> String {
    format!("{address:#x}")
}

/// A VM with a vCPU that does these steps.
pub fn vm_of(what: &[Step], irqchip: bool, interrupts: bool) -> Result<(Vm, VcpuFd)> {
    let vm = Vm::new(steps::MEMORY, irqchip)?;
    steps::load(&vm, 0, what);
    let vcpu = vm.vcpu(0)?;
    steps::start_with(&vcpu, 0, interrupts)?;
    Ok((vm, vcpu))
}

/// What a vCPU's thread does when the guest wants something of user space.
#[derive(Clone, Copy, PartialEq)]
pub enum User {
    /// It sleeps.
    Wait,
    /// It runs on.
    GoOn,
}

/// The name of that thread.
pub const NAME: &str = "kvm vcpu";

/// Run the vCPU on a thread of its own while `watch`, which is told its task, looks.
pub fn running<R>(
    vcpu: &mut VcpuFd,
    user: User,
    watch: impl FnOnce(&str) -> Result<R>,
) -> Result<R> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: The handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }?;
    let stop = Stop::default();
    let mut run = || -> Result<()> {
        while !stop.asked() {
            match vcpu.run() {
                Ok(VcpuExit::IoOut(..) | VcpuExit::Hlt) => {
                    while user == User::Wait && !stop.asked() {
                        thread::sleep(Duration::from_millis(2));
                    }
                }
                Ok(other) => bail!("unexpected exit to user space: {other:?}"),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(error).context("KVM_RUN"),
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let (tell, told) = channel();
        let builder = thread::Builder::new().name(NAME.into());
        let runner = builder.spawn_scoped(scope, move || {
            tell.send((gettid(), pthread_self()))?;
            run()
        })?;
        let (thread, handle) = told.recv()?;
        let seen = watch(&format!("{thread}:{}", NAME.replace(' ', "_")));
        stop.ask();
        while !runner.is_finished() {
            pthread_kill(handle, Signal::SIGUSR1)?;
            thread::sleep(Duration::from_millis(2));
        }
        runner.join().expect("the vCPU's thread")?;
        seen
    })
}

/// The option by which a test program is such a VMM: what follows it is for [`vmm`].
pub const VMM: &str = "--vmm";

/// Be a VMM: make a VM, tell its name, run it.
pub fn vmm(what: &str) -> ExitCode {
    let error = run_vmm(what).expect_err("a VMM never ends by itself");
    eprintln!("# VMM: {error:#}");
    ExitCode::FAILURE
}

fn run_vmm(what: &str) -> Result<()> {
    let (what, irqchip, interrupts): (&[Step], _, _) = match what {
        "spin" => (&[Step::Spin], false, true),
        "halt" => (&[Step::Halt(1)], true, false),
        "out" => (&[Step::Out(1)], false, false),
        _ => bail!("no such VMM: {what}"),
    };
    let (vm, mut vcpu) = vm_of(what, irqchip, interrupts)?;
    println!("{}", name_of(&vm.fd));
    std::io::stdout().flush()?;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => thread::sleep(Duration::from_secs(600)),
            Ok(other) => bail!("unexpected exit to user space: {other:?}"),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error).context("KVM_RUN"),
        }
    }
}

/// Such a VMM's process; dropping it kills.
pub struct Vmm {
    child: Child,
    /// Its VM's folder.
    pub name: String,
}

impl Vmm {
    /// Start it.
    pub fn new(what: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.args([VMM, what]).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("no pipe")?;
        let mut vmm = Self {
            child,
            name: String::new(),
        };
        BufReader::new(output).read_line(&mut vmm.name)?;
        vmm.name.truncate(vmm.name.trim_end().len());
        ensure!(!vmm.name.is_empty(), "the VMM tells no name");
        Ok(vmm)
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stop it, and wait until it stands: a task has its state a moment before it has left its processor.
    pub fn stop(&self) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGSTOP)?;
        self.until('T')?;
        storm::until("it has left its processor", || {
            let call = fs::read_to_string(format!("/proc/{}/syscall", self.child.id()))?;
            Ok(call.trim_end() != "running")
        })
    }

    /// Stand by until its state is that.
    pub fn until(&self, state: char) -> Result<()> {
        storm::until(&format!("its state is {state}"), || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
            let rest = stat.rsplit_once(") ").map(|(_, rest)| rest);
            Ok(rest.is_some_and(|rest| rest.starts_with(state)))
        })
    }

    /// Its task, as tables have it.
    pub fn task(&self) -> String {
        let program = std::env::current_exe().expect("this program");
        let name = program.file_name().expect("its name").to_string_lossy();
        // As much as the kernel keeps.
        format!("{}:{:.15}", self.child.id(), name)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.expect("our own child can be killed");
    }
}
