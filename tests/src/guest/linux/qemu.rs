// SPDX-License-Identifier: GPL-2.0
//! QEMU as it is installed, with the options that a user gives.

use super::{initrd, kernel, soon, Console, Vmm, COMMAND_LINE, MEMORY};
use crate::ktap;
use anyhow::{ensure, Context, Result};
use nix::libc;
use std::{
    fs::{self, File},
    io::Read,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";

/// A running QEMU.
pub struct Qemu {
    child: Child,
    console: Console,
    initrd: PathBuf,
}

impl Qemu {
    /// Run the guest with the file as its memory.
    pub fn start(file: &File) -> Result<Self> {
        if !Path::new(PROGRAM).exists() {
            return ktap::skip("there is no QEMU here");
        }
        // A copy without close-on-exec.
        // SAFETY: Integers only; the new descriptor is nobody else's.
        let inherited = unsafe { OwnedFd::from_raw_fd(libc::dup(file.as_raw_fd())) };
        let memory = format!(
            "memory-backend-file,id=ram,size={MEMORY},share=on,align=2M,mem-path=/proc/self/fd/{}",
            inherited.as_raw_fd()
        );
        let image = std::env::temp_dir().join(format!("initrd-{}", std::process::id()));
        fs::write(&image, initrd()?)?;
        let mut child = Command::new(PROGRAM)
            .args(["-machine", "pc,accel=kvm,memory-backend=ram"])
            .args(["-cpu", "host", "-m", &format!("{}", MEMORY >> 20)])
            .args(["-object", &memory])
            .args(["-nodefaults", "-no-reboot", "-display", "none"])
            .args(["-serial", "stdio", "-append", COMMAND_LINE])
            .args(["-kernel".as_ref(), kernel()?.as_os_str()])
            .args(["-initrd".as_ref(), image.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (output, input) = (child.stdout.take(), child.stdin.take());
        let console = Console::new(
            output.context("its standard output")?,
            input.context("its standard input")?,
        );
        Ok(Self {
            child,
            console,
            initrd: image,
        })
    }
}

impl Vmm for Qemu {
    fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    fn process(&self) -> u32 {
        self.child.id()
    }

    fn ended(mut self) -> Result<()> {
        let mut status = None;
        soon(|| {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        let status = status.context("a status")?;
        let mut said = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            errors.read_to_string(&mut said)?;
        }
        ensure!(status.success(), "QEMU: {status}: {}", said.trim());
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.initrd);
    }
}
