// SPDX-License-Identifier: GPL-2.0
//! A Linux guest under an unmodified QEMU: the kernel that runs here, with busybox's shell in it, which
//! tells `/proc/interrupts` over the serial port.

use crate::{ktap, storm};
use anyhow::{bail, ensure, Context, Result};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{channel, Receiver},
    thread,
    time::{Duration, Instant},
};

const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";
/// It ends by a triple fault, which every VMM takes as the end. Its own timer's calibration aside it
/// needs no interrupts but its own.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=t mitigations=off";
/// How long the guest may take for an answer: a boot on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(150);

/// The guest's first program. A line at a time; a dot ends an answer.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox stty -echo
echo .
while read -r question; do
	case $question in
	interrupts) /bin/busybox cat /proc/interrupts; echo . ;;
	end) /bin/busybox reboot -f ;;
	esac
done
";

/// A running QEMU.
pub struct Qemu {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    folder: PathBuf,
}

impl Qemu {
    /// Boot the guest with QEMU's `kernel-irqchip=` as said; it answers when this returns.
    pub fn start(irqchip: &str) -> Result<Self> {
        if !Path::new(PROGRAM).exists() {
            return ktap::skip("there is no QEMU here");
        }
        let folder = std::env::temp_dir().join(format!("qemu-{}", std::process::id()));
        let initrd = initrd(&folder)?;
        let kernel = std::env::var_os("KVMATE_KERNEL");
        let kernel = kernel.context("KVMATE_KERNEL is not set: run by scripts/test")?;
        let mut child = Command::new(PROGRAM)
            .args([
                "-machine",
                &format!("pc,accel=kvm,kernel-irqchip={irqchip}"),
            ])
            .args(["-cpu", "host", "-m", "128", "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .args(["-append", COMMAND_LINE])
            .args(["-kernel".as_ref(), kernel.as_os_str()])
            .args(["-initrd".as_ref(), initrd.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (output, input) = (child.stdout.take(), child.stdin.take());
        let output = output.context("its standard output")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut qemu = Self {
            child,
            input: input.context("its standard input")?,
            lines,
            folder,
        };
        qemu.answer()?;
        Ok(qemu)
    }

    /// The lines up to a dot.
    fn answer(&mut self) -> Result<Vec<String>> {
        let end = Instant::now() + PATIENCE;
        let mut answer = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line == "." => return Ok(answer),
                Ok(line) => answer.push(line),
                Err(error) => {
                    let from = answer.len().saturating_sub(8);
                    bail!("{error}; the guest said: {}", answer[from..].join(" | "));
                }
            }
        }
    }

    fn tell(&mut self, what: &str) -> Result<()> {
        writeln!(self.input, "{what}")?;
        Ok(self.input.flush()?)
    }

    /// The guest's own counts: by the name of the line, as `9` or `NMI`.
    pub fn interrupts(&mut self) -> Result<BTreeMap<String, u64>> {
        self.tell("interrupts")?;
        let mut counts = BTreeMap::new();
        for line in self.answer()? {
            // One processor: `  9:          0   IO-APIC   9-fasteoi   acpi`.
            let mut words = line.split_whitespace();
            let name = words.next().and_then(|word| word.strip_suffix(':'));
            let count = words.next().and_then(|word| word.parse().ok());
            if let (Some(name), Some(count)) = (name, count) {
                counts.insert(name.to_owned(), count);
            }
        }
        Ok(counts)
    }

    /// The guest's count of a line.
    pub fn count(&mut self, line: &str) -> Result<u64> {
        let counts = self.interrupts()?;
        let count = counts.get(line);
        count
            .copied()
            .with_context(|| format!("no line {line} in {counts:?}"))
    }

    /// Stand by until the guest has counted so many on a line.
    pub fn until(&mut self, line: &str, count: u64) -> Result<()> {
        let mut last = 0;
        storm::until(&format!("the guest has {count} of {line}"), || {
            last = self.count(line)?;
            Ok(last >= count)
        })
        .with_context(|| format!("it has {last}"))
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// What KVM calls its VM.
    pub fn name(&self) -> Result<String> {
        let prefix = format!("{}-", self.child.id());
        for entry in fs::read_dir("/sys/kernel/debug/kvm")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) {
                return Ok(name);
            }
        }
        bail!("KVM has no VM of process {}", self.child.id());
    }

    /// Have the guest end, and QEMU with it.
    pub fn end(mut self) -> Result<()> {
        self.tell("end")?;
        let mut status = None;
        storm::until("QEMU has ended", || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        let status = status.context("a status")?;
        ensure!(status.success(), "QEMU: {status}");
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The guest's initial RAM disk: a shell and what it runs.
fn initrd(folder: &Path) -> Result<PathBuf> {
    let made = Command::new("sh")
        .args([
            "-ec",
            "mkdir -p \"$1/root/bin\" \"$1/root/proc\" \"$1/root/dev\"; cd \"$1/root\"; \
            cp /bin/busybox bin/; printf %s \"$2\" >init; chmod 755 init; \
            mknod dev/console c 5 1; find . | cpio -o -H newc --quiet >../initrd",
            "initrd",
        ])
        .arg(folder)
        .arg(INIT)
        .output()?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "the RAM disk: {said}");
    Ok(folder.join("initrd"))
}
