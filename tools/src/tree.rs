// SPDX-License-Identifier: GPL-2.0
//! The module's files in debugfs: which VMs there are, and what is told of one.

use anyhow::{anyhow, bail, Context, Result};
use std::{
    fs,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

const DEBUGFS: &str = "/sys/kernel/debug";
const MODULE: &str = "/sys/module/kvmate";

/// The process that a VM is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// debugfs answers so for a file that is going; the module, for a VM that is.
const EIO: i32 = 5;

/// A VM's folder.
#[derive(Debug)]
pub struct Vm {
    folder: PathBuf,
    /// The folder's name: KVM's name for the VM.
    pub name: String,
    /// Whose it is, if that is still there.
    pub process: Option<Process>,
}

impl Vm {
    fn new(folder: PathBuf) -> Option<Self> {
        let name = folder.file_name()?.to_str()?.to_owned();
        let thread = name.split_once('-')?.0.parse().ok()?;
        Some(Self {
            process: process_of(thread),
            folder,
            name,
        })
    }

    /// The thread that made it, as its name says.
    fn maker(&self) -> Option<u32> {
        self.name.split_once('-')?.0.parse().ok()
    }

    fn told(&self) -> String {
        match &self.process {
            Some(process) => format!("{} ({}, {})", self.name, process.name, process.pid),
            None => self.name.clone(),
        }
    }

    /// Read one of its files.
    pub fn read(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.folder.join(file)).map_err(|error| self.failed(file, &error))
    }

    /// Read one of its files; none if the VM has ended, or ends.
    pub fn read_fleeting(&self, file: &str) -> Result<Option<String>> {
        unless_gone(fs::read_to_string(self.folder.join(file)))
            .map_err(|error| self.failed(file, &error))
    }

    /// The numbers of its vCPUs; none if the VM has ended.
    pub fn vcpus(&self) -> Result<Option<Vec<u32>>> {
        let numbers = numbers_in(&self.folder, "vcpu");
        unless_gone(numbers).map_err(|error| self.failed("", &error))
    }

    /// Ask its file `lookup` for an address.
    pub fn look_up(&self, gpa: u64) -> Result<String> {
        const FILE: &str = "lookup";
        // Somebody else may ask in between: the file is one for all.
        for _ in 0..100 {
            write(&self.folder.join(FILE), &format!("{gpa:#x}"))
                .map_err(|error| self.failed(FILE, &error))?;
            let answer = self.read(FILE)?;
            if answer.lines().next() == Some(&format!("gpa {gpa:#x}")) {
                return Ok(answer);
            }
        }
        bail!(
            "somebody else asks {FILE} of VM {} all the time: try again",
            self.name
        )
    }

    /// What an error in reading or writing a file means, and what to do.
    fn failed(&self, file: &str, error: &io::Error) -> anyhow::Error {
        let name = &self.name;
        match (error.kind(), error.raw_os_error()) {
            (ErrorKind::NotFound, _) | (_, Some(EIO)) if !self.folder.exists() => anyhow!(
                "VM {name} has ended: {DEBUGFS}/kvmate/ended has its totals, {DEBUGFS}/kvmate/vms those that run"
            ),
            (_, Some(EIO)) => anyhow!("VM {name} is ending"),
            (ErrorKind::NotFound, _) => anyhow!(
                "there is no {}: the loaded module is of another version; install the one that came with this tool",
                self.folder.join(file).display()
            ),
            (ErrorKind::PermissionDenied, _) => anyhow!(
                "{}: {error}: this needs root, and {file} a kernel that is not locked down",
                self.folder.join(file).display()
            ),
            _ => anyhow!("{}: {error}", self.folder.join(file).display()),
        }
    }
}

/// Write to a file by one `write()`. `fs::write()` would make one that is gone, and be told EACCES.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// None of what has gone, or goes.
fn unless_gone<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    // debugfs answers so for a file whose module is going.
    const ENXIO: i32 = 6;
    let gone = |error: &io::Error| {
        error.kind() == ErrorKind::NotFound || matches!(error.raw_os_error(), Some(EIO | ENXIO))
    };
    match done {
        Err(error) if gone(&error) => Ok(None),
        done => done.map(Some),
    }
}

/// The numbers behind `prefix` that make the names of folders in a folder, in order.
fn numbers_in<T: FromStr + Ord>(folder: &Path, prefix: &str) -> io::Result<Vec<T>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
        numbers.extend(number.and_then(|number| number.parse().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Read one of the module's own files; none if what it is of has gone.
pub fn read_fleeting(file: &str) -> Result<Option<String>> {
    let path = Path::new(DEBUGFS).join("kvmate").join(file);
    unless_gone(fs::read_to_string(&path)).with_context(|| path.display().to_string())
}

/// Read one of the module's own files.
pub fn read(file: &str) -> Result<String> {
    let path = Path::new(DEBUGFS).join("kvmate").join(file);
    fs::read_to_string(path).map_err(|error| no_tree(&error))
}

/// The inodes of all memory files.
pub fn memory_files() -> Result<Vec<u64>> {
    numbers_in(&Path::new(DEBUGFS).join("kvmate/gmem"), "").map_err(|error| no_tree(&error))
}

/// Whether the tree could be read if it is there: an error where it is for others only.
pub fn may_be_read() -> Result<()> {
    match fs::read_dir(Path::new(DEBUGFS)) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(no_tree(&error)),
        _ => Ok(()),
    }
}

/// The process of a thread, by `/proc`.
fn process_of(thread: u32) -> Option<Process> {
    // Names of tasks are any bytes.
    let text = |path: String| Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned());
    let status = text(format!("/proc/{thread}/status"))?;
    let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    let pid = pid.trim().parse().ok()?;
    let name = text(format!("/proc/{pid}/comm"))?;
    let name = name.strip_suffix('\n').unwrap_or(&name).to_owned();
    Some(Process { pid, name })
}

/// All VMs, by their makers.
pub fn vms() -> Result<Vec<Vm>> {
    let folder = Path::new(DEBUGFS).join("kvmate/vms");
    let entries = fs::read_dir(&folder).map_err(|error| no_tree(&error))?;
    let mut vms = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| folder.display().to_string())?;
        vms.extend(Vm::new(entry.path()));
    }
    vms.sort_by(|a, b| (a.maker(), &a.name).cmp(&(b.maker(), &b.name)));
    Ok(vms)
}

/// The VM that is asked for.
pub fn find(asked: &str) -> Result<Vm> {
    let mut vms = vms()?;
    let at = choose(asked, &vms)?;
    Ok(vms.swap_remove(at))
}

/// Why there is no tree, and what to do.
fn no_tree(error: &io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            anyhow!("{DEBUGFS} cannot be read: this needs root (sudo kvmate ...)")
        }
        ErrorKind::NotFound if !Path::new(MODULE).exists() => {
            anyhow!("the module kvmate is not loaded: insmod kvmate.ko, or modprobe kvmate")
        }
        ErrorKind::NotFound => {
            anyhow!("debugfs is not there: mount -t debugfs none {DEBUGFS}")
        }
        _ => anyhow!("{DEBUGFS}/kvmate/vms: {error}"),
    }
}

/// Which of the VMs is asked for: by name, by a process or thread, or by a part of a process's name.
fn choose(asked: &str, vms: &[Vm]) -> Result<usize> {
    if let Some(at) = vms.iter().position(|vm| vm.name == asked) {
        return Ok(at);
    }
    let number: Option<u32> = asked.parse().ok();
    let matches = |vm: &Vm| match (number, &vm.process) {
        (Some(number), process) => {
            vm.maker() == Some(number) || process.as_ref().is_some_and(|p| p.pid == number)
        }
        (None, Some(process)) => !asked.is_empty() && process.name.contains(asked),
        (None, None) => false,
    };
    let found: Vec<usize> = (0..vms.len()).filter(|&at| matches(&vms[at])).collect();
    let told = |which: &[usize]| {
        let all: Vec<_> = which.iter().map(|&at| vms[at].told()).collect();
        all.join(", ")
    };
    match found[..] {
        [only] => Ok(only),
        [] if vms.is_empty() => bail!("no VM is there: start one, it is seen by itself"),
        [] => {
            let all: Vec<usize> = (0..vms.len()).collect();
            bail!("no VM is {asked:?}; there are: {}", told(&all))
        }
        _ => bail!(
            "{asked:?} is {} VMs: {}; say which by its name",
            found.len(),
            told(&found)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, process: Option<(u32, &str)>) -> Vm {
        Vm {
            folder: PathBuf::from("/nowhere").join(name),
            name: name.into(),
            process: process.map(|(pid, name)| Process {
                pid,
                name: name.into(),
            }),
        }
    }

    #[test]
    fn one_is_chosen() {
        let vms = [
            vm("101-4", Some((100, "qemu-system-x86"))),
            vm("101-9", Some((100, "qemu-system-x86"))),
            vm("7-3", Some((7, "firecracker"))),
            vm("8-x1", None),
        ];
        let chosen = |asked: &str| choose(asked, &vms).map_err(|e| e.to_string());
        assert_eq!(chosen("101-4"), Ok(0));
        assert_eq!(chosen("101-9"), Ok(1));
        assert_eq!(chosen("7"), Ok(2));
        assert_eq!(chosen("fire"), Ok(2));
        assert_eq!(chosen("8"), Ok(3));
        assert_eq!(chosen("8-x1"), Ok(3));
        for several in ["100", "101", "qemu"] {
            let said = chosen(several).unwrap_err();
            assert!(
                said.contains("2 VMs: 101-4 (qemu-system-x86, 100), 101-9"),
                "{said}"
            );
        }
        for none in ["", "10", "101-", "xen", "-1"] {
            let said = chosen(none).unwrap_err();
            assert!(
                said.contains("there are: 101-4") && said.contains("8-x1"),
                "{said}"
            );
        }
        let said = choose("7", &[]).unwrap_err().to_string();
        assert!(said.contains("no VM is there"), "{said}");
    }

    #[test]
    fn causes_and_next_steps() {
        let vm = vm("1-1", None);
        for (errno, part) in [
            (2, "has ended"),
            (5, "has ended"),
            (13, "root"),
            (12, "memory"),
        ] {
            let said = vm
                .failed("stage2", &io::Error::from_raw_os_error(errno))
                .to_string();
            assert!(said.contains(part), "{said}");
        }
        let said = no_tree(&io::Error::from_raw_os_error(13)).to_string();
        assert!(said.contains("root"), "{said}");
    }

    #[test]
    fn folders_that_are_none_are_left_out() {
        assert!(Vm::new("/nowhere/x".into()).is_none());
        assert!(Vm::new("/nowhere/4294967295-1".into()).is_some_and(|vm| vm.process.is_none()));
    }
}
