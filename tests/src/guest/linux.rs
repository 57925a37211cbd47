// SPDX-License-Identifier: GPL-2.0
//! A Linux guest on memory that is a file: the kernel that runs here, with one program of ours in it.
//!
//! [`qemu`] and [`rust_vmm`] run it; [`Console`] is its serial port, over which the test and
//! `src/bin/linux_init.rs`, the guest's only program, speak. That program fills all free memory with
//! [`pattern`], says where in guest-physical memory the page [`PAGE_ASKED`] of it is, and then answers
//! what the test asks. The guest has a timeout: the VMM is ended when it is dropped.

pub mod qemu;
pub mod rust_vmm;

use crate::gmem::PAGE;
use anyhow::{Context, Result};
use std::{
    fmt, fs,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    sync::mpsc::{channel, Receiver},
    thread,
    time::{Duration, Instant},
};

/// The guest's memory, all of it the file.
pub const MEMORY: usize = 128 << 20;
/// What the guest's kernel is told. It ends by a triple fault, which every VMM takes as the end.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=t mitigations=off";
/// The page of its memory that the guest's program tells about.
pub const PAGE_ASKED: usize = 1234;
/// What a line of the guest's program begins with.
pub const PREFIX: &str = "linux_init: ";

/// How long the guest may take for an answer: a boot and filling memory on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the guest writes to a page of its memory: no byte is zero, and neighbours differ.
pub fn pattern(page: usize) -> &'static [u8] {
    const PERIOD: usize = 251;
    static BYTES: [u8; PERIOD + PAGE] = {
        let mut bytes = [0; PERIOD + PAGE];
        let mut at = 0;
        while at < bytes.len() {
            bytes[at] = (at % PERIOD + 1) as u8;
            at += 1;
        }
        bytes
    };
    &BYTES[page % PERIOD..][..PAGE]
}

/// The kernel that runs here, as a file.
pub fn kernel() -> Result<PathBuf> {
    Ok(std::env::var_os("KVMATE_KERNEL")
        .context("KVMATE_KERNEL is not set: run by scripts/test")?
        .into())
}

/// The initial RAM disk: the program and a console, in cpio's "newc" format.
pub fn initrd() -> Result<Vec<u8>> {
    let program = std::env::current_exe()?.with_file_name("linux_init");
    let program = fs::read(&program).with_context(|| program.display().to_string())?;
    let mut archive = Vec::new();
    let mut entry = |name: &str, mode: u32, device: (u32, u32), content: &[u8]| {
        // Magic, inode, mode, owner, group, links, time, size, device twice, name's length, checksum.
        let fields = [0, mode, 0, 0, 1, 0, content.len() as u32, 0, 0];
        let fields = fields
            .into_iter()
            .chain([device.0, device.1, name.len() as u32 + 1, 0]);
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        for part in [&[name.as_bytes(), b"\0"].concat(), content] {
            archive.extend_from_slice(part);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
    };
    entry("proc", 0o040755, (0, 0), &[]);
    entry("dev", 0o040755, (0, 0), &[]);
    entry("dev/console", 0o020600, (5, 1), &[]);
    entry("init", 0o100755, (0, 0), &program);
    entry("TRAILER!!!", 0, (0, 0), &[]);
    Ok(archive)
}

/// The error that means that the guest's program does not answer; with what else the guest said.
///
/// A guest that spins or dies says nothing about its memory if it does so on any memory. Linux in a VM
/// on emulated SVM does now and then, on a plain memfd too: whoever runs it tries more than once.
#[derive(Debug)]
pub struct Silent(Vec<String>);

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trouble = ["BUG:", "Oops", "panic", "RIP:"];
        let first = |line: &String| trouble.iter().any(|word| line.contains(word));
        let last = self.0.len().saturating_sub(8);
        let from = self.0.iter().position(first).unwrap_or(last);
        let said = self.0[from..].join(" | ");
        write!(f, "the guest does not answer; it said: {said}")
    }
}

impl std::error::Error for Silent {}

/// A guest's serial port.
pub struct Console {
    lines: Receiver<String>,
    input: Box<dyn Write>,
    /// What else the guest said.
    log: Vec<String>,
}

impl Console {
    /// The one whose two ends these are. Reads until the end of file.
    pub fn new(output: impl Read + Send + 'static, input: impl Write + 'static) -> Self {
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            lines,
            input: Box::new(input),
            log: Vec::new(),
        }
    }

    /// The next line of the guest's program; [`Silent`] if there is none in time.
    pub fn answer(&mut self) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => match line.strip_prefix(PREFIX) {
                    Some(answer) => return Ok(answer.to_owned()),
                    None => self.log.push(line),
                },
                Err(_) => return Err(Silent(self.log.clone()).into()),
            }
        }
    }

    /// Ask the guest's program.
    pub fn ask(&mut self, question: &str) -> Result<String> {
        // Who has died does not answer.
        if self.tell(question).is_err() {
            return Err(Silent(self.log.clone()).into());
        }
        self.answer()
    }

    /// Tell the guest's program to end the guest.
    pub fn end(&mut self) -> Result<()> {
        self.tell("end")
    }

    fn tell(&mut self, what: &str) -> Result<()> {
        self.input.write_all(format!("{what}\n").as_bytes())?;
        Ok(self.input.flush()?)
    }
}

/// Stand by until a guest has ended; [`Silent`] if it does not in time.
fn soon(mut ended: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !ended()? {
        if Instant::now() >= end {
            return Err(Silent(vec!["nothing at its end".into()]).into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A VMM with such a guest in it.
pub trait Vmm {
    /// The guest's console.
    fn console(&mut self) -> &mut Console;
    /// The process, as in KVM's own debugfs.
    fn process(&self) -> u32;
    /// Wait until the guest has ended, as it was told to.
    fn ended(self) -> Result<()>;
}
