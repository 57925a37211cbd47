// SPDX-License-Identifier: GPL-2.0
//! `kvmate trace`, as a user runs it: the lines of guests known in advance, and that all is set back however it
//! ends.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    ftrace::{Buffer, TRACEFS},
    guest::irq::Trigger,
    guest::real::Program,
    guest::steps::{self, Guest, Step},
    ktap,
    module::Kvmate,
    poke::{poked, PIN, VECTOR},
    storm::{until, Guest as Other},
    tool::{self, Done},
};
use nix::{
    fcntl::{fcntl, FcntlArg},
    poll::{poll, PollFd, PollFlags},
    sys::signal::{kill, Signal},
    unistd::Pid,
};
use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, ExitCode},
};

fn main() -> ExitCode {
    ktap::main(&[
        ("bad_input", bad_input),
        ("lines", lines),
        ("faults", faults),
        ("irqs", irqs),
        ("nothing_is_stolen", nothing_is_stolen),
        ("signals", signals),
        ("killed", killed),
        ("pipe_closed", pipe_closed),
        ("reader_stands_still", reader_stands_still),
        ("no_standard_error", no_standard_error),
        ("module_goes", module_goes),
        ("vm_ends", vm_ends),
        ("one_at_a_time", one_at_a_time),
        ("set_by_another", set_by_another),
    ])
}

fn buffer() -> PathBuf {
    Path::new(TRACEFS).join("instances/kvmate")
}

/// Whether the top buffer gets what `trace_printk()` writes.
fn top_has_lines() -> Result<bool> {
    let path = Path::new(TRACEFS).join("options/trace_printk_dest");
    Ok(fs::read_to_string(path)?.trim() == "1")
}

/// What somebody has set before.
const BEFORE: [(&str, &str); 3] = [
    ("knobs/trace_vm", "12-3"),
    ("knobs/trace_rate", "77"),
    ("knobs/trace", "16"),
];

fn load() -> Result<Kvmate> {
    let kvmate = Kvmate::load("")?;
    for (knob, value) in BEFORE {
        kvmate.write(knob, value)?;
    }
    Ok(kvmate)
}

/// All is as it was.
fn set_back(kvmate: &Kvmate) -> Result<()> {
    for (knob, value) in BEFORE {
        ensure_eq!(kvmate.read(knob)?, value, "{knob}");
    }
    no_buffer()
}

fn no_buffer() -> Result<()> {
    ensure!(!buffer().exists(), "the buffer stays");
    ensure!(
        top_has_lines()?,
        "the top buffer has no lines of trace_printk()"
    );
    Ok(())
}

/// Have it run; what it set is set.
fn start(kvmate: &Kvmate, arguments: &[&str], mask: &str) -> Result<Child> {
    let mut tool = tool::start("trace", arguments)?;
    let set = until("the knobs are set", || {
        ensure!(tool.try_wait()?.is_none(), "it has ended");
        Ok(kvmate.read("knobs/trace")? == mask)
    });
    if set.is_err() {
        let _ = tool.kill();
        let done = Done::awaited(tool)?;
        return Err(set.unwrap_err().context(done.err));
    }
    Ok(tool)
}

fn signal(tool: &Child, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(tool.id().try_into()?), signal)?)
}

fn bad_input() -> Result<()> {
    for wrong in [
        &["--classes", "x"][..],
        &["--classes", ""],
        &["--rate", "0"],
        &["--rate", "1000001"],
        &["x"],
    ] {
        let done = tool::run("trace", wrong)?;
        done.says(2, "Usage: ")
            .or_else(|_| done.says(2, "--help"))?;
    }
    tool::run("trace", &[])?.says(1, "is not loaded: insmod kvmate.ko")?;
    let kvmate = load()?;
    tool::run("trace", &["--vm", "1-1"])?.says(1, "no VM is there")?;
    tool::run_as_nobody(&["trace"])?.says(1, "needs root")?;
    set_back(&kvmate)?;
    kvmate.unload()
}

/// Each exit of the VM is a line, and nothing else is told; another VM's are not.
fn lines() -> Result<()> {
    let kvmate = load()?;
    let mut guest = Guest::new(&[Step::Out(20), Step::Read(3)])?;
    let mut other = Other::new(Program::Out)?;
    guest.run()?;
    // Two runs, each of which ends by a port's write, too.
    for (classes, mask, outs, msrs) in [
        ("exits", "1", 42, 0),
        ("msrs", "2", 0, 6),
        ("exits,msrs", "3", 42, 6),
    ] {
        let arguments = [
            "--vm",
            &guest.name,
            "--classes",
            classes,
            "--rate",
            "1000000",
        ];
        let tool = start(&kvmate, &arguments, mask)?;
        ensure_eq!(kvmate.read("knobs/trace_vm")?, guest.name, "trace_vm");
        ensure_eq!(kvmate.read("knobs/trace_rate")?, "1000000", "trace_rate");
        guest.run()?;
        other.run(10)?;
        guest.run()?;
        signal(&tool, Signal::SIGINT)?;
        let text = Done::awaited(tool)?.well()?;
        set_back(&kvmate)?;
        let vm = format!(": kvmate_trace_line: vm {} vcpu 0: ", guest.name);
        let foreign = text.lines().find(|line| !line.contains(&vm));
        ensure_eq!(foreign, None, "of no such VM");
        let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        ensure_eq!(
            (count(": exit io "), count(": rdmsr ")),
            (outs, msrs),
            "{classes}: {text}"
        );
    }
    // Of all VMs, if none is named.
    let tool = start(&kvmate, &["--classes", "exits"], "1")?;
    ensure_eq!(kvmate.read("knobs/trace_vm")?, "", "trace_vm");
    ensure_eq!(kvmate.read("knobs/trace_rate")?, "0", "trace_rate");
    other.run(10)?;
    signal(&tool, Signal::SIGINT)?;
    let text = Done::awaited(tool)?.well()?;
    ensure!(
        text.contains(&format!("vm {} vcpu 0: exit io ", other.name)),
        "{text}"
    );
    set_back(&kvmate)?;
    drop((guest, other));
    kvmate.unload()
}

/// The lines of one class, of a VM that does something meanwhile. There are no others.
fn class(
    kvmate: &Kvmate,
    vm: &str,
    (class, mask): (&str, &str),
    happens: impl FnOnce() -> Result<()>,
) -> Result<Vec<String>> {
    let tool = start(kvmate, &["--vm", vm, "--classes", class], mask)?;
    let happened = happens();
    signal(&tool, Signal::SIGINT)?;
    let text = Done::awaited(tool)?.well()?;
    happened?;
    set_back(kvmate)?;
    let what = text.lines().map(|line| {
        let told = format!(": kvmate_trace_line: vm {vm} vcpu 0: ");
        let (_, what) = line.split_once(&told).with_context(|| line.to_owned())?;
        Ok(what.to_owned())
    });
    what.collect()
}

/// A VM that has not run yet faults where it touches memory.
fn faults() -> Result<()> {
    let kvmate = load()?;
    let mut guest = Guest::new(&[Step::Touch(3), Step::Out(5)])?;
    let name = guest.name.clone();
    let found = class(&kvmate, &name, ("faults", "4"), || guest.run())?;
    let foreign = found.iter().find(|line| !line.starts_with("page_fault 0x"));
    ensure_eq!(foreign, None, "of another class");
    let touched = format!("page_fault {:#x} ", steps::MEMORY - 0x1000);
    let wrote = |line: &String| line.starts_with(&touched) && line.contains("write");
    ensure!(found.iter().any(wrote), "{touched:?} is not in {found:?}");
    drop(guest);
    kvmate.unload()
}

/// What is put into the guest, and what it ends, each once.
fn irqs() -> Result<()> {
    const COUNT: usize = 20;
    let kvmate = load()?;
    poked(Trigger::Edge, |guest| {
        let found = class(&kvmate, &guest.name, ("irqs", "8"), || {
            for count in 1..=COUNT as u64 {
                guest.running.vm.fd.set_irq_line(PIN, true)?;
                guest.running.vm.fd.set_irq_line(PIN, false)?;
                guest.until(VECTOR, count)?;
            }
            Ok(())
        })?;
        let count = |what: &str| {
            let line = format!("{what} {VECTOR:#x}");
            found.iter().filter(|found| **found == line).count()
        };
        let (injected, ended) = (count("injected"), count("eoi"));
        ensure_eq!(injected, COUNT, "injected: {found:?}");
        // The last one's EOI may come after the guest has told of it.
        ensure!((COUNT - 1..=COUNT).contains(&ended), "{ended}: {found:?}");
        ensure_eq!(found.len(), injected + ended, "lines: {found:?}");
        Ok(())
    })?;
    kvmate.unload()
}

/// Who reads the top buffer gets all of its own, and the lines again when this has ended.
fn nothing_is_stolen() -> Result<()> {
    let kvmate = load()?;
    let mut guest = Guest::new(&[Step::Out(20)])?;
    guest.run()?;
    let top = Buffer::top(4096)?;
    let tool = start(&kvmate, &["--vm", &guest.name, "--classes", "exits"], "1")?;
    let marker = Path::new(TRACEFS).join("trace_marker");
    for number in 0..20 {
        fs::write(&marker, format!("mark {number}"))?;
        guest.run()?;
    }
    signal(&tool, Signal::SIGTERM)?;
    let text = Done::awaited(tool)?.well()?;
    ensure!(!text.contains("mark"), "a line of another's: {text}");
    let marks = || -> Result<(usize, usize)> {
        let entries = top.read()?;
        let ours = entries
            .iter()
            .filter(|entry| entry.event == "kvmate_trace_line");
        let marks = entries
            .iter()
            .filter(|entry| entry.text.starts_with("mark "));
        Ok((marks.count(), ours.count()))
    };
    ensure_eq!(marks()?, (20, 0), "marks and lines in the top buffer");
    kvmate.write("knobs/trace_vm", &guest.name)?;
    kvmate.write("knobs/trace_rate", "0")?;
    kvmate.write("knobs/trace", "1")?;
    guest.run()?;
    kvmate.write("knobs/trace", "0")?;
    ensure!(marks()?.1 >= 20, "lines in the top buffer afterwards");
    drop(guest);
    kvmate.unload()
}

fn signals() -> Result<()> {
    let kvmate = load()?;
    for name in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGALRM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        let tool = start(&kvmate, &[], "31")?;
        signal(&tool, name)?;
        Done::awaited(tool)?.well()?;
        set_back(&kvmate)?;
    }
    kvmate.unload()
}

/// Nothing can be set back by who is killed; the next one puts it in order.
fn killed() -> Result<()> {
    let kvmate = load()?;
    let mut tool = start(&kvmate, &[], "31")?;
    tool.kill()?;
    tool.wait()?;
    ensure_eq!(kvmate.read("knobs/trace")?, "31", "what is left");
    ensure!(buffer().exists() && !top_has_lines()?, "what is left");
    let tool = start(&kvmate, &["--classes", "exits"], "1")?;
    signal(&tool, Signal::SIGINT)?;
    let done = Done::awaited(tool)?;
    ensure_eq!(done.status, Some(0), "{}", done.err);
    ensure!(done.err.contains("was killed before"), "{}", done.err);
    for (knob, off) in [("trace", "0"), ("trace_rate", "0"), ("trace_vm", "")] {
        ensure_eq!(kvmate.read(&format!("knobs/{knob}"))?, off, "{knob}");
    }
    no_buffer()?;
    kvmate.unload()
}

/// Who reads goes, and no line comes: it ends all the same.
fn pipe_closed() -> Result<()> {
    let kvmate = load()?;
    let mut tool = start(&kvmate, &["--classes", "gmem,exits"], "17")?;
    drop(tool.stdout.take());
    Done::awaited(tool)?.well()?;
    set_back(&kvmate)?;
    kvmate.unload()
}

/// Who reads stands still, and there is more than a pipe holds: a signal ends it all the same.
fn reader_stands_still() -> Result<()> {
    let kvmate = load()?;
    let mut guest = Guest::new(&[Step::Out(20)])?;
    guest.run()?;
    let mut tool = start(&kvmate, &["--vm", &guest.name, "--classes", "exits"], "1")?;
    let unread = tool.stdout.take().context("its pipe")?;
    let size = fcntl(&unread, FcntlArg::F_SETPIPE_SZ(4096))?;
    // A line is 64 bytes at least.
    for _ in 0..4 * size / (20 * 64) {
        guest.run()?;
    }
    let mut pipe = [PollFd::new(unread.as_fd(), PollFlags::POLLIN)];
    ensure_eq!(poll(&mut pipe, 20_000u16)?, 1, "lines in the pipe");
    signal(&tool, Signal::SIGTERM)?;
    let ended = until("it has ended", || Ok(tool.try_wait()?.is_some()));
    if ended.is_err() {
        tool.kill()?;
    }
    let done = Done::awaited(tool)?;
    ended.context("nobody reads")?;
    ensure_eq!(done.status, Some(0), "{}", done.err);
    ensure!(done.err.contains("lines are lost"), "{:?}", done.err);
    set_back(&kvmate)?;
    // What has been told is whole lines.
    let text = std::io::read_to_string(unread)?;
    ensure!(text.ends_with('\n'), "{text}");
    let line = text.lines().find(|line| !line.contains(" info "));
    ensure_eq!(line, None, "not whole");
    drop(guest);
    kvmate.unload()
}

/// Nobody can be told of an error: it is one all the same, and no panic.
fn no_standard_error() -> Result<()> {
    let mut tool = tool::of("trace", &[])?;
    let full = fs::OpenOptions::new().write(true).open("/dev/full")?;
    let status = tool.stderr(full).status()?;
    ensure_eq!(status.code(), Some(1), "status");
    Ok(())
}

/// The module is not held, and that it goes is told.
fn module_goes() -> Result<()> {
    let kvmate = load()?;
    let tool = start(&kvmate, &[], "31")?;
    kvmate.unload()?;
    Done::awaited(tool)?.says(1, "was unloaded")?;
    no_buffer()?;
    // Also if it has come again, with what somebody else wants of it.
    let kvmate = load()?;
    let tool = start(&kvmate, &[], "31")?;
    kvmate.unload()?;
    let kvmate = load()?;
    Done::awaited(tool)?.says(1, "was unloaded")?;
    set_back(&kvmate)?;
    kvmate.unload()
}

fn vm_ends() -> Result<()> {
    let kvmate = load()?;
    let guest = Guest::new(&[Step::Out(20)])?;
    let tool = start(&kvmate, &["--vm", &guest.name], "31")?;
    let name = guest.name.clone();
    drop(guest);
    let done = Done::awaited(tool)?;
    ensure_eq!(done.status, Some(0), "{}", done.err);
    ensure_eq!(
        done.err,
        format!("kvmate: VM {name} has ended\n"),
        "what it says"
    );
    set_back(&kvmate)?;
    kvmate.unload()
}

fn one_at_a_time() -> Result<()> {
    let kvmate = load()?;
    let tool = start(&kvmate, &["--classes", "exits"], "1")?;
    tool::run("trace", &[])?.says(1, "another kvmate trace is running")?;
    ensure_eq!(kvmate.read("knobs/trace")?, "1", "the first one's knob");
    ensure!(
        buffer().exists() && !top_has_lines()?,
        "the first one's buffer"
    );
    signal(&tool, Signal::SIGINT)?;
    Done::awaited(tool)?.well()?;
    set_back(&kvmate)?;
    kvmate.unload()
}

/// What somebody else has set meanwhile stays.
fn set_by_another() -> Result<()> {
    let kvmate = load()?;
    let tool = start(&kvmate, &["--classes", "exits"], "1")?;
    kvmate.write("knobs/trace", "2")?;
    signal(&tool, Signal::SIGINT)?;
    Done::awaited(tool)?.well()?;
    ensure_eq!(kvmate.read("knobs/trace")?, "2", "another's");
    ensure_eq!(kvmate.read("knobs/trace_rate")?, "77", "ours");
    ensure_eq!(kvmate.read("knobs/trace_vm")?, "12-3", "ours");
    no_buffer().context("the buffer")?;
    kvmate.unload()
}
