// SPDX-License-Identifier: GPL-2.0
//! The module's files in debugfs: which VMs there are, and what is told of one.

use crate::columns::printable;
use anyhow::{anyhow, bail, Context, Result};
use std::{
    fmt, fs,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

/// Where debugfs is.
pub const DEBUGFS: &str = "/sys/kernel/debug";
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
/// And so while the module goes.
const ENXIO: i32 = 6;

/// For how long a VM or the module may be coming or going.
const SETTLED: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// A VM's folder.
#[derive(Clone, Debug)]
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

    /// Where a file of its is.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Its folder, open.
    pub fn open(&self) -> io::Result<fs::File> {
        fs::File::open(&self.folder)
    }

    fn told(&self) -> String {
        match &self.process {
            Some(process) => format!(
                "{} ({}, {})",
                self.name,
                printable(&process.name),
                process.pid
            ),
            None => self.name.clone(),
        }
    }

    /// What stands above what is told of it.
    pub fn title(&self) -> String {
        let process = self.process.as_ref();
        let name = process.map(|process| process.name.as_str());
        title(&self.name, process.map(|process| process.pid), name)
    }

    /// The numbers of its vCPUs.
    pub fn vcpus(&self) -> Result<Vec<u32>> {
        // There is a file `vcpus`, too.
        numbers_in(&self.folder, "vcpu").map_err(|error| self.failed(".", &error))
    }

    /// See that it has that vCPU.
    pub fn has(&self, vcpu: u32) -> Result<()> {
        let vcpus = self.vcpus()?;
        let all: Vec<_> = vcpus.iter().map(u32::to_string).collect();
        match vcpus.binary_search(&vcpu) {
            Ok(_) => Ok(()),
            Err(_) if vcpus.is_empty() => bail!("VM {} has no vCPU yet", self.name),
            Err(_) => bail!(
                "VM {} has no vCPU {vcpu}; it has: {}",
                self.name,
                all.join(", ")
            ),
        }
    }

    /// The same; none if the VM has ended, or ends.
    pub fn vcpus_fleeting(&self) -> Result<Option<Vec<u32>>> {
        there(numbers_in(&self.folder, "vcpu")).map_err(|error| self.failed(".", &error))
    }

    /// Do something with one of its files, once the folder is whole: its files come after it, and go before it.
    fn once_there<T>(&self, file: &str, act: impl Fn(&Path) -> io::Result<T>) -> Result<T> {
        let path = self.folder.join(file);
        let begin = Instant::now();
        loop {
            match act(&path) {
                Err(error)
                    if error.kind() == ErrorKind::NotFound
                        && self.folder.exists()
                        && begin.elapsed() < SETTLED =>
                {
                    thread::sleep(PAUSE);
                }
                done => return done.map_err(|error| self.failed(file, &error)),
            }
        }
    }

    /// Read one of its files.
    pub fn read(&self, file: &str) -> Result<String> {
        self.once_there(file, |path| fs::read_to_string(path))
    }

    /// Read one of its files; none if the VM has ended, or ends.
    pub fn read_fleeting(&self, file: &str) -> Result<Option<String>> {
        there(fs::read_to_string(self.folder.join(file))).map_err(|error| self.failed(file, &error))
    }

    /// Write to one of its files, by one `write()`. The inner result is what the module answers to that.
    pub fn command(&self, file: &str, text: &str) -> Result<io::Result<()>> {
        let mut opened = self.once_there(file, open_to_write)?;
        Ok(opened.write_all(text.as_bytes()))
    }

    /// Ask its file `lookup` for an address.
    pub fn look_up(&self, gpa: u64) -> Result<String> {
        const FILE: &str = "lookup";
        // Somebody else may ask in between: the file is one for all.
        for _ in 0..100 {
            self.once_there(FILE, |path| write(path, &format!("{gpa:#x}")))?;
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
    pub fn failed(&self, file: &str, error: &io::Error) -> anyhow::Error {
        self.meant(file, error, Path::new(MODULE).exists())
    }

    /// The same, whether the module is loaded or not.
    fn meant(&self, file: &str, error: &io::Error, loaded: bool) -> anyhow::Error {
        let name = &self.name;
        match (error.kind(), error.raw_os_error()) {
            (_, Some(ENXIO)) => not_loaded(),
            (ErrorKind::NotFound, _) if !loaded => not_loaded(),
            (ErrorKind::NotFound, _) | (_, Some(EIO)) if !self.folder.exists() => Gone(format!(
                "VM {name} has ended: {DEBUGFS}/kvmate/ended has its totals, {DEBUGFS}/kvmate/vms those that run"
            ))
            .into(),
            (_, Some(EIO)) => Gone(format!("VM {name} is ending")).into(),
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

/// The VM has gone, or is going.
#[derive(Debug)]
struct Gone(String);

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Gone {}

/// What was read of a VM; `None` if that has gone.
pub fn unless_gone<T>(read: Result<T>) -> Option<Result<T>> {
    match read {
        Err(error) if error.is::<Gone>() => None,
        read => Some(read),
    }
}

/// What stands above what is told of a VM.
pub fn title(vm: &str, pid: Option<u32>, process: Option<&str>) -> String {
    match (pid, process) {
        (Some(pid), Some(process)) => format!("VM {vm} of {} ({pid})", printable(process)),
        _ => format!("VM {vm}"),
    }
}

/// What to do if nothing is recorded because a knob is 0.
pub fn recorded_with(knob: &str) -> Option<String> {
    is_off(knob).unwrap_or_else(|error| {
        Some(format!(
            "{}: {error}: if it is 0, nothing is recorded; insmod kvmate.ko {knob}=1 sets it, too",
            self::knob(knob).display()
        ))
    })
}

/// The same, or why the knob cannot be read.
pub fn is_off(knob: &str) -> io::Result<Option<String>> {
    let path = self::knob(knob);
    let is_off = fs::read_to_string(&path)?.trim_end() == "0";
    Ok(is_off.then(|| {
        format!(
            "knobs/{knob} is 0, so nothing is recorded: echo 1 > {}",
            path.display()
        )
    }))
}

/// Open a file that is there: `fs::write()` would make one that is gone, and be told EACCES.
fn open_to_write(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().write(true).open(path)
}

/// Write to a file by one `write()`.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    open_to_write(path)?.write_all(text.as_bytes())
}

/// Where a knob is.
pub fn knob(name: &str) -> PathBuf {
    Path::new(DEBUGFS).join("kvmate/knobs").join(name)
}

/// None of what has gone, or goes.
fn there<T>(done: io::Result<T>) -> io::Result<Option<T>> {
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
    there(fs::read_to_string(&path)).with_context(|| path.display().to_string())
}

/// Read one of the module's own files.
pub fn read(file: &str) -> Result<String> {
    in_tree(file, |path| fs::read_to_string(path))
}

/// The inodes of all memory files.
pub fn memory_files() -> Result<Vec<u64>> {
    in_tree("gmem", |folder| numbers_in(folder, ""))
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
    let mut vms: Vec<_> = folders("vms")?.into_iter().filter_map(Vm::new).collect();
    // By number, as descriptors are: 101-4 before 101-10.
    let order = |vm: &Vm| (vm.maker(), vm.name.len(), vm.name.clone());
    vms.sort_by_key(order);
    Ok(vms)
}

/// What is in a folder of the module's.
pub fn folders(name: &str) -> Result<Vec<PathBuf>> {
    in_tree(name, |folder| {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    })
}

/// The VM that is asked for.
pub fn find(asked: &str) -> Result<Vm> {
    let mut vms = vms()?;
    let at = choose(asked, &vms)?;
    Ok(vms.swap_remove(at))
}

fn not_loaded() -> anyhow::Error {
    anyhow!("the module kvmate is not loaded: insmod kvmate.ko, or modprobe kvmate")
}

/// What it means that something of the tree is not there, and what to do.
fn missing() -> anyhow::Error {
    if !Path::new(MODULE).exists() {
        not_loaded()
    } else if is_empty(DEBUGFS) {
        anyhow!("debugfs is not there: mount -t debugfs none {DEBUGFS}")
    } else {
        anyhow!(
            "a part of {DEBUGFS}/kvmate is not there: the loaded module is of another version; install the one \
             that came with this tool"
        )
    }
}

fn is_empty(folder: &str) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Do something with a part of the tree, once that is whole: while the module comes or goes it is there in part.
fn in_tree<T>(part: &str, act: impl Fn(&Path) -> io::Result<T>) -> Result<T> {
    let path = Path::new(DEBUGFS).join("kvmate").join(part);
    let begin = Instant::now();
    loop {
        match act(&path) {
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && Path::new(MODULE).exists()
                    && !is_empty(DEBUGFS)
                    && begin.elapsed() < SETTLED =>
            {
                thread::sleep(PAUSE);
            }
            done => return done.map_err(|error| no_tree(&error)),
        }
    }
}

/// Why there is no tree, and what to do.
pub fn no_tree(error: &io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            anyhow!("{DEBUGFS} cannot be read: this needs root (sudo kvmate ...)")
        }
        ErrorKind::NotFound => missing(),
        _ if error.raw_os_error() == Some(ENXIO) => not_loaded(),
        _ => anyhow!("{DEBUGFS}/kvmate: {error}"),
    }
}

/// Whether a process with that name is meant. The kernel keeps 15 bytes of a program's name.
fn is_called(name: &str, asked: &str) -> bool {
    name.contains(asked) || (name.len() == 15 && asked.starts_with(name))
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
        (None, Some(process)) => !asked.is_empty() && is_called(&process.name, asked),
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
pub mod tests {
    use super::*;

    pub fn vm(name: &str, process: Option<(u32, &str)>) -> Vm {
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
        assert_eq!(choose("qemu-system-x86_64", &vms[1..]).ok(), Some(0));
        assert!(chosen("firecracker-1").is_err(), "a longer name");
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
        for (errno, loaded, part) in [
            (2, true, "has ended"),
            (2, false, "is not loaded"),
            (5, true, "has ended"),
            (6, true, "is not loaded"),
            (13, true, "root"),
            (12, true, "memory"),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            let said = vm.meant("stage2", &error, loaded);
            // Of those that have gone a list says nothing.
            let skipped = part == "has ended";
            let said = said.context("VMs");
            assert!(format!("{said:#}").contains(part), "{said:#}");
            assert_eq!(unless_gone::<()>(Err(said)).is_none(), skipped);
        }
        let said = no_tree(&io::Error::from_raw_os_error(13)).to_string();
        assert!(said.contains("root"), "{said}");
    }

    #[test]
    fn folders_are_waited_for_until_they_are_whole() {
        let folder = std::env::temp_dir().join(format!("kvmate-tree-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let vm = Vm {
            folder: folder.clone(),
            ..vm("1-1", None)
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                // Whole at once, as the module's are.
                fs::write(folder.join(".exits"), "text").unwrap();
                fs::rename(folder.join(".exits"), folder.join("exits")).unwrap();
            });
            assert_eq!(vm.read("exits").unwrap(), "text");
        });
        fs::remove_dir_all(&folder).unwrap();
        let begin = Instant::now();
        assert!(vm.read("exits").is_err());
        assert!(begin.elapsed() < SETTLED, "waited for what has gone");
    }

    #[test]
    fn folders_that_are_none_are_left_out() {
        assert!(Vm::new("/nowhere/x".into()).is_none());
        assert!(Vm::new("/nowhere/4294967295-1".into()).is_some_and(|vm| vm.process.is_none()));
    }
}
