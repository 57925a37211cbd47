// SPDX-License-Identifier: GPL-2.0
//! kvmate.ko, loaded for the length of a test, and its files.

use anyhow::{anyhow, Context, Result};
use nix::{
    errno::Errno,
    kmod::{delete_module, finit_module, DeleteModuleFlags, ModuleInitFlags},
};
use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The parameters by which everything is recorded from load on.
pub const EVERYTHING: &str = "times=1 msrs=1 faults=1 irqs=1";

/// Where kvmate's files are.
pub const DEBUGFS: &str = "/sys/kernel/debug/kvmate";

/// The control device.
pub const DEVICE: &str = "/dev/kvmate";

/// kvmate.ko for the running kernel, as the runner says.
pub fn path() -> Result<PathBuf> {
    Ok(std::env::var_os("KVMATE_KO")
        .context("KVMATE_KO is not set: run by scripts/test")?
        .into())
}

/// A signed copy of it.
pub fn signed_path() -> Result<PathBuf> {
    let plain = path()?;
    let folder = plain.parent().context("KVMATE_KO is no path of a file")?;
    Ok(folder.join("signed/kvmate.ko"))
}

/// Whether a module of that name is loaded.
pub fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module")
        .join(name)
        .join("initstate")
        .exists()
}

/// `finit_module()` of any file.
pub fn load_file(file: &Path, parameters: &str) -> nix::Result<()> {
    let file = File::open(file).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
    let parameters = CString::new(parameters).map_err(|_| Errno::EINVAL)?;
    finit_module(&file, &parameters, ModuleInitFlags::empty())
}

/// `delete_module()`, not waiting.
pub fn unload(name: &str) -> nix::Result<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
}

/// For how long others may hold a module: khugepaged has a memory file of kvmate's for a moment while
/// it looks at a mapping.
const HELD: Duration = Duration::from_secs(60);

/// `rmmod`, when nobody holds it.
pub fn unload_when_free(name: &str) -> nix::Result<()> {
    let begin = Instant::now();
    loop {
        match unload(name) {
            Err(Errno::EWOULDBLOCK) if begin.elapsed() < HELD => {
                println!("# {name} is held for a moment");
                thread::sleep(Duration::from_millis(100));
            }
            done => return done,
        }
    }
}

/// A loaded kvmate; dropping it unloads.
pub struct Kvmate(());

impl Kvmate {
    /// Load with parameters, as `insmod kvmate.ko PARAMETERS` does.
    pub fn load(parameters: &str) -> Result<Self> {
        Self::load_from(&path()?, parameters)
    }

    /// Load another file of the module.
    pub fn load_from(file: &Path, parameters: &str) -> Result<Self> {
        load_file(file, parameters).with_context(|| format!("insmod kvmate.ko {parameters}"))?;
        Ok(Self(()))
    }

    /// Let a command load it.
    pub fn load_by(command: &mut Command) -> Result<Self> {
        let output = command.output().with_context(|| format!("{command:?}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{command:?}: {said}");
        Ok(Self(()))
    }

    /// Unload, and see that nothing of it is left.
    pub fn unload(self) -> Result<()> {
        std::mem::forget(self);
        unload_when_free("kvmate").context("rmmod kvmate")?;
        for left in [DEBUGFS, DEVICE, "/sys/module/kvmate"] {
            anyhow::ensure!(
                !Path::new(left).exists(),
                "{left} is still there after rmmod"
            );
        }
        Ok(())
    }

    /// Read a file below the debugfs folder, without its last newline.
    pub fn read(&self, name: &str) -> Result<String> {
        let text = fs::read_to_string(Path::new(DEBUGFS).join(name))
            .with_context(|| format!("read {name}"))?;
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }

    /// Write a file below the debugfs folder, by one `write()`.
    pub fn write(&self, name: &str, value: &str) -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .open(Path::new(DEBUGFS).join(name))?;
        file.write_all(value.as_bytes())
    }

    /// The number of exits counted so far.
    pub fn exits(&self) -> Result<u64> {
        self.read("exits")?.parse().context("exits is a number")
    }
}

impl Drop for Kvmate {
    fn drop(&mut self) {
        if let Err(error) = unload_when_free("kvmate") {
            eprintln!("# rmmod kvmate: {error}");
        }
    }
}

/// The loaded vendor module of KVM's. Skips the test where there is none.
pub fn vendor() -> Result<&'static str> {
    let loaded = ["kvm_amd", "kvm_intel"]
        .into_iter()
        .find(|name| is_loaded(name));
    loaded.map_or_else(
        || crate::ktap::skip("kvm is not loaded as a module here"),
        Ok,
    )
}

/// KVM taken away for a test: kvm and its vendor module unloaded, and loaded again on drop.
pub struct WithoutKvm {
    vendor: &'static str,
}

impl WithoutKvm {
    /// Unload kvm. Skips the test where kvm is built in or was never loaded.
    pub fn new() -> Result<Self> {
        let vendor = vendor()?;
        for name in [vendor, "kvm"] {
            unload_when_free(name).with_context(|| format!("rmmod {name}"))?;
        }
        Ok(Self { vendor })
    }

    /// The vendor module that was there.
    pub fn vendor(&self) -> &'static str {
        self.vendor
    }
}

impl Drop for WithoutKvm {
    fn drop(&mut self) {
        if let Err(error) = modprobe(self.vendor) {
            eprintln!("# {error:#}");
        }
    }
}

/// `modprobe NAME`.
pub fn modprobe(name: &str) -> Result<()> {
    let status = Command::new("modprobe")
        .arg(name)
        .status()
        .context("modprobe")?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| anyhow!("modprobe {name}: {status}"))
}

/// The kernel's log from a moment on.
pub struct Log(File);

impl Log {
    /// From now on.
    pub fn from_now() -> Result<Self> {
        use nix::fcntl::OFlag;
        use std::os::unix::fs::OpenOptionsExt;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open("/dev/kmsg")
            .context("/dev/kmsg")?;
        nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekEnd)?;
        Ok(Self(file))
    }

    /// From the oldest message that is kept.
    pub fn from_beginning() -> Result<Self> {
        let log = Self::from_now()?;
        nix::unistd::lseek(&log.0, 0, nix::unistd::Whence::SeekSet)?;
        Ok(log)
    }

    /// The messages since then, or since the last call.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]).into_owned();
                    let message = text.split_once(';').map_or("", |(_, message)| message);
                    lines.push(message.lines().next().unwrap_or("").to_owned());
                }
                // A record was overwritten before it was read: go on with the next.
                Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => continue,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("/dev/kmsg"),
            }
        }
        Ok(lines)
    }

    /// kvmate's own messages since then, without their prefix.
    pub fn ours(&mut self) -> Result<Vec<String>> {
        let lines = self.lines()?;
        Ok(lines
            .iter()
            .filter_map(|l| l.strip_prefix("kvmate: "))
            .map(str::to_owned)
            .collect())
    }
}

/// A flag that stops threads of a test, also when the test fails in between.
#[derive(Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Whether to stop.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ask for the stop.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Asks for the stop when dropped.
    pub fn on_drop(&self) -> impl Drop + '_ {
        struct Guard<'a>(&'a AtomicBool);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Guard(&self.0)
    }
}
