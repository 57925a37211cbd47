// SPDX-License-Identifier: GPL-2.0
//! Many VMs, and what must be true of them: whole lives that are known to the instruction, guests
//! that run meanwhile, readers of everything, VMMs that can be killed.

use crate::{
    ensure_eq,
    guest::{self, real, real::Program, Vm},
    module::{self, Kvmate, Stop, DEBUGFS},
    seen::{self, Past},
    snapshot::Snapshot,
    stats::Stats,
    table,
};
use anyhow::{bail, ensure, Context, Result};
use kvm_ioctls::VcpuFd;
use nix::libc;
use std::{
    fs::{self, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::fd::AsRawFd,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Whether this machine is some ten times slower: the debug kernel, or Bochs.
pub fn slow() -> bool {
    Path::new("/sys/kernel/debug/kmemleak").exists() || module::is_loaded("kvm_intel")
}

/// How many rounds: `many`, or a part of them on a slow machine.
pub fn rounds(many: u32) -> u32 {
    if slow() {
        (many / 12).max(3)
    } else {
        many
    }
}

/// The name KVM gives to what this thread makes now.
pub fn name_of(vm: &Vm) -> String {
    // SAFETY: No condition.
    let thread = unsafe { libc::gettid() };
    format!("{thread}-{}", vm.fd.as_raw_fd())
}

/// What is known of a VM that has lived, apart from kvmate.
#[derive(Clone, Debug)]
pub struct Lived {
    /// Its name, by KVM's rule.
    pub name: String,
    /// What its guest did.
    pub program: Program,
    /// How often, all vCPUs together.
    pub count: u64,
    /// How many vCPUs it had, each of which halted once.
    pub vcpus: u64,
    /// Its exits, by KVM's statistics.
    pub exits: u64,
}

/// A VM's whole life: made, runs `count` times and one more on each further vCPU, ended.
pub fn live(program: Program, count: u32, vcpus: u32) -> Result<Lived> {
    let vm = Vm::new(1 << 16, false)?;
    real::load(&vm, program);
    let mut lived = Lived {
        name: name_of(&vm),
        program,
        count: 0,
        vcpus: vcpus.into(),
        exits: 0,
    };
    for id in 0..vcpus {
        let mut vcpu = vm.fd.create_vcpu(id.into()).context("KVM_CREATE_VCPU")?;
        let stats = Stats::of(&vcpu)?;
        real::start(&vcpu, count + id)?;
        guest::run(&mut vcpu, None)?;
        lived.count += u64::from(count + id);
        lived.exits += stats.get("exits")?;
    }
    Ok(lived)
}

impl Lived {
    /// Compare what kvmate keeps of it.
    pub fn is(&self, past: &Past) -> Result<()> {
        let names = seen::names();
        let (own, other) = names.of(self.program);
        let what = format!("{self:?}, {past:?}");
        ensure_eq!(past.name, self.name, "name: {what}");
        ensure_eq!(past.vcpus, self.vcpus, "vCPUs: {what}");
        ensure_eq!(past.counts.of(own), self.count, "{own}: {what}");
        ensure_eq!(past.counts.of(names.hlt), self.vcpus, "halts: {what}");
        ensure_eq!(past.counts.of(other), 0, "{other}: {what}");
        ensure_eq!(past.counts.sum(), self.exits, "all exits: {what}");
        Ok(())
    }

    /// Stand by until it is the last in `ended`, and compare.
    pub fn ends(&self) -> Result<()> {
        let mut last = None;
        let found = until("it is the last in ended", || {
            last = seen::ended()?.pop();
            Ok(last.as_ref().is_some_and(|past| self.is(past).is_ok()))
        });
        found.with_context(|| format!("{self:?}, not {last:?}"))
    }
}

/// Waited out only where something is wrong.
const PATIENCE: Duration = Duration::from_secs(100);

/// Stand by until something is so; it must be soon.
pub fn until(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !so()? {
        ensure!(Instant::now() < end, "not so after {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_micros(300));
    }
    Ok(())
}

/// Stand by until no VM has a folder any more, and the last of the `count` that were found since load
/// is written down. Those that ran beside it may have ended after it: it need not be the last row.
pub fn until_ended(count: u64) -> Result<()> {
    until("all VMs' folders are gone", || {
        Ok(seen::names_of_vms()?.is_empty())
    })?;
    let mut last = None;
    until("the VM found last stands in ended", || {
        last = seen::ended()?.iter().map(|past| past.number).max();
        Ok(last >= Some(count))
    })
    .with_context(|| format!("{last:?} of {count}"))?;
    ensure_eq!(last, Some(count), "the number of the VM found last");
    Ok(())
}

/// A guest to be run again and again.
pub struct Guest {
    /// KVM's statistics.
    pub stats: Stats,
    vcpu: VcpuFd,
    _vm: Vm,
    /// Its VM's name.
    pub name: String,
    /// What it does.
    pub program: Program,
}

impl Guest {
    /// One that has run once.
    pub fn new(program: Program) -> Result<Self> {
        let vm = Vm::new(1 << 16, false)?;
        real::load(&vm, program);
        let vcpu = vm.vcpu(0)?;
        let mut guest = Self {
            stats: Stats::of(&vcpu)?,
            vcpu,
            name: name_of(&vm),
            _vm: vm,
            program,
        };
        guest.run(1)?;
        Ok(guest)
    }

    /// Run it.
    pub fn run(&mut self, count: u32) -> Result<()> {
        real::start(&self.vcpu, count)?;
        guest::run(&mut self.vcpu, None).map(drop)
    }

    /// Run it until asked to stop, a little at a time, with pauses.
    fn run_until(&mut self, stop: &Stop, pause: Duration) -> Result<u64> {
        let mut runs = 0;
        while !stop.asked() {
            self.run(20)?;
            runs += 1;
            thread::sleep(pause);
        }
        Ok(runs)
    }

    /// Run once more, and compare what that adds to kvmate's table with what KVM and the guest say.
    pub fn exact(&mut self) -> Result<()> {
        let names = seen::names();
        let (own, _) = names.of(self.program);
        let (before, kvm) = (seen::exits_of(&self.name)?, self.stats.get("exits")?);
        self.run(100)?;
        let (after, kvm_after) = (seen::exits_of(&self.name)?, self.stats.get("exits")?);
        ensure_eq!(after.of(own) - before.of(own), 100, "{own}");
        ensure_eq!(after.of(names.hlt) - before.of(names.hlt), 1, "halts");
        ensure_eq!(after.sum() - before.sum(), kvm_after - kvm, "all exits");
        Ok(())
    }
}

/// Run guests on threads of their own while `work` goes on here; give them back. `pause`: between
/// their runs, so that processors are left for what waits for them.
pub fn under_load(
    mut guests: Vec<Guest>,
    pause: Duration,
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<Guest>> {
    let stop = Stop::default();
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = guests
            .iter_mut()
            .map(|guest| scope.spawn(|| guest.run_until(&stop, pause)))
            .collect();
        let done = {
            let _stop = stop.on_drop();
            work()
        };
        for thread in threads {
            ensure!(
                thread.join().expect("a guest's thread")? > 0,
                "a guest never ran"
            );
        }
        done
    })?;
    Ok(guests)
}

/// The kernel takes its short cuts for waiting while this is.
struct Expedited;

impl Expedited {
    const SWITCH: &str = "/sys/kernel/rcu_expedited";

    fn new() -> Result<Self> {
        fs::write(Self::SWITCH, "1").context(Self::SWITCH)?;
        Ok(Self)
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        let _ = fs::write(Self::SWITCH, "0");
    }
}

/// Switch `observe` so many times while guests run; then all is counted exactly.
pub fn switch_observe(times: u32) -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let _expedited = Expedited::new()?;
    let guests = vec![Guest::new(Program::Cpuid)?, Guest::new(Program::Out)?];
    let mut guests = under_load(guests, Duration::from_millis(1), || {
        let mut knob = OpenOptions::new()
            .write(true)
            .open(Path::new(DEBUGFS).join("knobs/observe"))?;
        for time in 0..times {
            knob.write_all([b"0", b"1"][time as usize % 2])?;
        }
        knob.write_all(b"1")?;
        Ok(())
    })?;
    for guest in &mut guests {
        guest.exact()?;
        let known = seen::exits_of(&guest.name)?.sum();
        let all = guest.stats.get("exits")?;
        ensure!(known < all, "{known} of {all} exits: it was never off");
    }
    drop(guests);
    kvmate.unload()
}

/// Read a file that may go at any time: `None` if it has.
pub fn read_fleeting(path: &Path) -> Result<Option<String>> {
    unless_gone(path, fs::read_to_string(path))
}

/// Begin the tables of a VM anew, which may go meanwhile: whether it was there.
pub fn reset_fleeting(name: &str) -> Result<bool> {
    let path = seen::vms().join(name).join("reset");
    // Not `fs::write()`: it would make a file that is gone, and be told EACCES.
    let file = fs::OpenOptions::new().write(true).open(&path);
    let done = file.and_then(|mut file| file.write_all(b"1"));
    Ok(unless_gone(&path, done)?.is_some())
}

fn unless_gone<T>(path: &Path, done: io::Result<T>) -> Result<Option<T>> {
    const GONE: [Option<i32>; 2] = [Some(libc::ENOENT), Some(libc::EIO)];
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) if GONE.contains(&error.raw_os_error()) => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// The lines of a table `vcpus`.
pub fn vcpu_lines(text: &str) -> Result<usize> {
    let mut lines = text.lines();
    ensure_eq!(
        lines.next(),
        Some("vcpu task state last_exit ago_ns rip requests vm"),
        "header"
    );
    for line in lines {
        let columns = line.split(' ').count();
        ensure_eq!(columns, 8, "columns of {line:?}");
    }
    Ok(text.lines().count() - 1)
}

/// Whether every line of a table has as many columns as its header, after what begins with `#`.
fn columns_agree(text: &str) -> Result<()> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let header = lines.next().context("an empty table")?;
    let count = |line: &str| line.split(' ').count();
    let other = lines.find(|line| count(line) != count(header));
    ensure!(other.is_none(), "{other:?} under {header:?}");
    Ok(())
}

/// Read every file of every VM, and `ended`, until asked to stop; tell how many were read.
pub fn read_everything(stop: &Stop) -> Result<u64> {
    let mut read = 0;
    while !stop.asked() {
        for name in seen::names_of_vms()? {
            let folder = seen::vms().join(name);
            for file in [
                "exits",
                "vcpu0/exits",
                "exits_hist",
                "vcpus",
                "times",
                "msrs",
                "faults",
                "irqs",
                "snapshot",
            ] {
                let Some(text) = read_fleeting(&folder.join(file))? else {
                    continue;
                };
                read += 1;
                match file {
                    "vcpus" => drop(vcpu_lines(&text)?),
                    "exits" | "vcpu0/exits" => drop(seen::parse_exits(&text)?),
                    "exits_hist" => drop(table::exits_hist(&text)?),
                    "snapshot" => drop(Snapshot::parse(&text)?),
                    _ => columns_agree(&text).with_context(|| file.to_owned())?,
                }
            }
        }
        let past = seen::ended()?;
        ensure!(past.len() <= 16, "{} VMs in ended", past.len());
        let total = fs::read_to_string(Path::new(DEBUGFS).join("exits"))?;
        ensure!(!total.is_empty(), "no total");
        // For what waits for the readers.
        thread::sleep(Duration::from_micros(200));
    }
    Ok(read)
}

/// A VMM in a process of its own (`vmm`, a program beside this), to be killed.
pub struct Vmm(Child);

impl Vmm {
    /// Start it. `ready`: stand by until it has VMs that run.
    pub fn start(ready: bool) -> Result<Self> {
        let own = std::env::current_exe()?;
        Self::start_program(&own.with_file_name("vmm"), &[], ready)
    }

    /// Start another program that says a line when its VMs run, and stand by until then.
    pub fn of(program: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_program(program, arguments, true)
    }

    fn start_program(program: &Path, arguments: &[&str], ready: bool) -> Result<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| program.display().to_string())?;
        let output = child.stdout.take().context("no pipe")?;
        let vmm = Self(child);
        let mut line = String::new();
        if ready && BufReader::new(output).read_line(&mut line)? == 0 {
            bail!("the VMM ended by itself");
        }
        Ok(vmm)
    }

    /// `SIGKILL`, and wait for its end, by which all its files are closed.
    pub fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
