// SPDX-License-Identifier: GPL-2.0
//! Who keeps KVM's modules in use: files of KVM's that processes have open or mapped, modules that use them, and the
//! kernel's threads that work for VMs.
//!
//! Of a process the files of its first thread are looked at that has any. What is in flight between processes, registered
//! with io_uring, or held by the kernel itself has no name anywhere: it shows as a module's other references.

use super::{patient::Patient, Root};
use crate::columns::printable;
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Write},
    path::Path,
};

/// All of it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Users {
    /// Of KVM's modules those that are loaded, and not built in.
    modules: Vec<Module>,
    /// Processes with files of KVM's.
    processes: Vec<Process>,
    /// The kernel's threads that work for VMs.
    threads: Vec<Thread>,
    /// Processes whose files we may not see.
    not_seen: u64,
    /// Processes whose mappings cannot be seen: they hang with their memory locked.
    #[serde(skip)]
    hanging: Vec<u32>,
}

/// One of KVM's modules.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct Module {
    name: &'static str,
    /// Its use count; 0: it can be unloaded.
    references: u64,
    /// Modules that use it.
    holders: Vec<String>,
    /// References, at least, that nothing that was seen accounts for.
    others: u64,
}

/// A process with files of KVM's.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct Process {
    pid: u32,
    name: String,
    /// Its descriptors.
    files: Vec<File>,
    /// What it has mapped, which holds a file that is closed too.
    mappings: Vec<Mapping>,
}

#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct File {
    fd: u32,
    /// `kvm-vm`, `kvm-vcpu:0`, `/dev/kvm` and so on.
    what: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct Mapping {
    /// As of a descriptor.
    what: String,
    /// How many mappings of it.
    count: u64,
}

/// A thread of the kernel's that works for a VM.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct Thread {
    tid: u32,
    name: String,
    /// The process it is in; null: none.
    pid: Option<u32>,
}

impl Users {
    /// Look.
    pub fn look(root: &Root) -> Self {
        let mut users = Self {
            modules: Vec::new(),
            processes: Vec::new(),
            threads: Vec::new(),
            not_seen: 0,
            hanging: Vec::new(),
        };
        let mut patient = Patient::default();
        for pid in numbers(root, "/proc") {
            users.look_at(root, pid, &mut patient);
        }
        let modules = ["kvm_amd", "kvm_intel", "kvm"].into_iter();
        users.modules = modules
            .filter_map(|name| users.module(root, name))
            .collect();
        users
    }

    fn look_at(&mut self, root: &Root, pid: u32, patient: &mut Patient) {
        let tasks = numbers(root, &format!("/proc/{pid}/task"));
        let mut of_kernel = false;
        for &tid in &tasks {
            let Some(kind) = kind(root, pid, tid) else {
                continue;
            };
            of_kernel |= tid == pid && kind != Kind::User;
            let name = name(root, &format!("/proc/{pid}/task/{tid}/comm"));
            if kind != Kind::User && ["kvm-", "vhost-"].iter().any(|of| name.starts_with(of)) {
                let pid = (kind == Kind::Worker).then_some(pid);
                self.threads.push(Thread { tid, name, pid });
            }
        }
        if of_kernel {
            return;
        }
        let mut files = Vec::new();
        for tid in tasks {
            match files_of(root, &format!("/proc/{pid}/task/{tid}/fd")) {
                // A first thread that has ended has none, the others do.
                Some((0, _)) => {}
                Some((_, found)) => {
                    files = found;
                    break;
                }
                None => {
                    self.not_seen += 1;
                    break;
                }
            }
        }
        let mappings = match patient.read(&root.path(&format!("/proc/{pid}/maps"))) {
            Some(maps) => mappings_in(&maps),
            None => {
                self.hanging.push(pid);
                Vec::new()
            }
        };
        if !files.is_empty() || !mappings.is_empty() {
            self.processes.push(Process {
                pid,
                name: name(root, &format!("/proc/{pid}/comm")),
                files,
                mappings,
            });
        }
    }

    /// None: it is not there, or built in.
    fn module(&self, root: &Root, name: &'static str) -> Option<Module> {
        let folder = format!("/sys/module/{name}");
        let references = root.read(&format!("{folder}/refcnt")).ok()?.parse().ok()?;
        let holders = fs::read_dir(root.path(&format!("{folder}/holders")))
            .into_iter()
            .flatten();
        let holders = holders
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
        let mut holders: Vec<_> = holders.collect();
        holders.sort();
        // Statistics' files are kvm's own, the others are the vendor's.
        let of_it = |what: &str| what.contains("-stats") == (name == "kvm");
        let seen = self.processes.iter().map(|process| {
            let files = process
                .files
                .iter()
                .filter(|file| of_it(&file.what))
                .count() as u64;
            let closed = process.mappings.iter().filter(|mapping| {
                of_it(&mapping.what) && process.files.iter().all(|file| file.what != mapping.what)
            });
            files + closed.count() as u64
        });
        let known = seen.sum::<u64>() + holders.len() as u64;
        Some(Module {
            name,
            references,
            others: references.saturating_sub(known),
            holders,
        })
    }

    /// For people.
    pub fn tell(&self, out: &mut impl Write) -> Result<()> {
        for module in &self.modules {
            let Module {
                name, references, ..
            } = module;
            if *references == 0 {
                writeln!(out, "{name} is not in use")?;
                continue;
            }
            let mut by = module.holders.clone();
            if module.others > 0 {
                by.push(format!("{} not seen", module.others));
            }
            let by = if by.is_empty() {
                String::new()
            } else {
                format!(": {}", by.join(", "))
            };
            writeln!(out, "{name} is in use, {references} times{by}")?;
        }
        for process in &self.processes {
            let files = process
                .files
                .iter()
                .map(|file| format!("fd {} is {}", file.fd, file.what));
            let mapped = process.mappings.iter().map(|mapping| match mapping.count {
                1 => format!("{} is mapped", mapping.what),
                count => format!("{} is mapped {count} times", mapping.what),
            });
            let all: Vec<_> = files.chain(mapped).collect();
            let (pid, name) = (process.pid, printable(&process.name));
            writeln!(
                out,
                "process {pid} ({name}): {}; free by: kill {pid}",
                printable(&all.join(", "))
            )?;
        }
        for Thread { tid, name, pid } in &self.threads {
            let name = printable(name);
            match pid {
                Some(pid) => writeln!(
                    out,
                    "kernel's thread {tid} ({name}) in process {pid}: ends with its VM"
                )?,
                None => writeln!(out, "kernel's thread {tid} ({name}): ends with its VM")?,
            }
        }
        if self.modules.iter().any(|module| module.others > 0) {
            writeln!(
                out,
                "not seen: files on their way between processes, in io_uring or VFIO{}",
                if self.not_seen > 0 {
                    ", and those of others"
                } else {
                    ""
                }
            )?;
        }
        for pid in &self.hanging {
            writeln!(
                out,
                "what process {pid} has mapped could not be seen: it hangs with its memory locked"
            )?;
        }
        if self.not_seen > 0 {
            writeln!(
                out,
                "files of {} processes could not be seen: sudo kvmate doctor",
                self.not_seen
            )?;
        }
        Ok(())
    }
}

/// The entries of a folder that are numbers, in their order.
fn numbers(root: &Root, folder: &str) -> Vec<u32> {
    let entries = fs::read_dir(root.path(folder)).into_iter().flatten();
    let found = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut found: Vec<_> = found.collect();
    found.sort_unstable();
    found
}

fn name(root: &Root, file: &str) -> String {
    root.read(file).unwrap_or_else(|_| "-".into())
}

/// What a task is.
#[derive(PartialEq, Eq)]
enum Kind {
    User,
    /// The kernel's, in a process (`PF_USER_WORKER`).
    Worker,
    /// The kernel's, by itself (`PF_KTHREAD`).
    Kernel,
}

fn kind(root: &Root, pid: u32, tid: u32) -> Option<Kind> {
    let stat = root.read(&format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    // Its name, in parentheses, may have anything in it.
    let (_, behind) = stat.rsplit_once(") ")?;
    let flags: u32 = behind.split(' ').nth(6)?.parse().ok()?;
    Some(match flags {
        flags if flags & 0x0020_0000 != 0 => Kind::Kernel,
        flags if flags & 0x0000_4000 != 0 => Kind::Worker,
        _ => Kind::User,
    })
}

/// How many files there are, and which are KVM's. None: we may not see them.
fn files_of(root: &Root, folder: &str) -> Option<(usize, Vec<File>)> {
    let entries = match fs::read_dir(root.path(folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return None,
        // It has ended meanwhile.
        Err(_) => return Some((0, Vec::new())),
    };
    let (mut all, mut files) = (0, Vec::new());
    for entry in entries.flatten() {
        all += 1;
        let what = fs::read_link(entry.path())
            .ok()
            .and_then(|link| what(&link));
        let fd = entry.file_name().to_str().and_then(|fd| fd.parse().ok());
        files.extend(what.zip(fd).map(|(what, fd)| File { fd, what }));
    }
    files.sort_by_key(|file| file.fd);
    Some((all, files))
}

fn mappings_in(maps: &str) -> Vec<Mapping> {
    let mut found = BTreeMap::new();
    for line in maps.lines() {
        if let Some(what) = line
            .split_whitespace()
            .nth(5)
            .and_then(|path| what(Path::new(path)))
        {
            *found.entry(what).or_insert(0) += 1;
        }
    }
    found
        .into_iter()
        .map(|(what, count)| Mapping { what, count })
        .collect()
}

/// What of KVM's a file is, by its name.
fn what(path: &Path) -> Option<String> {
    let path = path.to_str()?;
    let name = path
        .strip_prefix("anon_inode:")
        .or(path.strip_prefix('/').filter(|name| name.starts_with('[')));
    let name = name.map(|name| {
        name.split(' ')
            .next()
            .unwrap_or(name)
            .trim_matches(['[', ']'])
    });
    match name {
        Some(name) if name.starts_with("kvm-") => Some(name.to_owned()),
        // In a jail it stands elsewhere.
        _ if path.trim_end_matches(" (deleted)").ends_with("/dev/kvm") => Some("/dev/kvm".into()),
        _ => None,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::{
        os::unix::fs::symlink,
        path::PathBuf,
        sync::atomic::{AtomicU32, Ordering},
    };

    /// A folder with files in the place of `/proc` and `/sys`.
    pub struct Tree(Root);

    impl Tree {
        pub fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("kvmate-doctor-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(Root(path))
        }

        pub fn root(&self) -> &Root {
            &self.0
        }

        fn place(&self, path: &str) -> PathBuf {
            let path = self.0.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        }

        pub fn file(&self, path: &str, text: &str) {
            fs::write(self.place(path), text).unwrap();
        }

        fn link(&self, path: &str, to: &str) {
            symlink(to, self.place(path)).unwrap();
        }

        pub fn gone(&self, path: &str) {
            let path = self.0.path(path);
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }

        fn task(&self, pid: u32, tid: u32, name: &str, flags: u32) {
            let task = format!("proc/{pid}/task/{tid}");
            self.file(
                &format!("{task}/stat"),
                &format!("{tid} ({name}) S 1 1 1 0 -1 {flags} 0 0\n"),
            );
            self.file(&format!("{task}/comm"), &format!("{name}\n"));
            if tid == pid {
                self.file(&format!("proc/{pid}/comm"), &format!("{name}\n"));
            }
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0 .0);
        }
    }

    #[test]
    fn names_of_files() {
        for (path, expected) in [
            ("anon_inode:kvm-vm", Some("kvm-vm")),
            ("anon_inode:kvm-vcpu:12", Some("kvm-vcpu:12")),
            ("anon_inode:[kvm-gmem]", Some("kvm-gmem")),
            ("/[kvm-gmem] (deleted)", Some("kvm-gmem")),
            ("/dev/kvm", Some("/dev/kvm")),
            ("/srv/jail/1/dev/kvm", Some("/dev/kvm")),
            ("/dev/kvm (deleted)", Some("/dev/kvm")),
            ("/dev/kvmate", None),
            ("anon_inode:[eventfd]", None),
            ("/tmp/kvm-vm", None),
            ("socket:[12]", None),
        ] {
            assert_eq!(what(Path::new(path)).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn who_is_found() {
        let tree = Tree::new();
        // A VMM: its first thread has ended, the name is hostile, one vCPU is mapped only.
        tree.task(100, 100, "a) S 1\x1b[31m", 0);
        fs::create_dir_all(tree.root().path("proc/100/task/100/fd")).unwrap();
        tree.task(100, 101, "vcpu", 0);
        tree.task(100, 102, "kvm-nx-lpage-re", 0x4000);
        for (fd, to) in [
            ("10", "anon_inode:kvm-vcpu:0"),
            ("9", "anon_inode:kvm-vm"),
            ("1", "/dev/null"),
            ("11", "anon_inode:kvm-vcpu-stats:0"),
        ] {
            tree.link(&format!("proc/100/task/101/fd/{fd}"), to);
        }
        tree.file(
            "proc/100/maps",
            "7f-80 rw-s 00000000 00:10 1 anon_inode:kvm-vcpu:1\n80-81 rw-s 00 00:10 1   anon_inode:kvm-vcpu:0\n\
             81-82 rw-s 00 00:10 1 anon_inode:kvm-vcpu:0\n83-84 rw-p 0 00:00 0\n",
        );
        // One that is nothing to us, a thread of the kernel's, and one that only has such a name.
        tree.task(7, 7, "cat", 0);
        tree.link("proc/7/task/7/fd/0", "/dev/null");
        tree.task(8, 8, "kvm-pit/100", 0x0020_8040);
        tree.task(9, 9, "kvm-fake", 0);
        tree.file("proc/version", "no process");
        tree.file("sys/module/kvm_amd/refcnt", "5\n");
        tree.file("sys/module/kvm/refcnt", "2\n");
        tree.file("sys/module/kvm/holders/kvm_amd", "");
        let users = Users::look(tree.root());
        assert_eq!(users.processes.len(), 1, "{users:?}");
        let process = &users.processes[0];
        let files: Vec<_> = process
            .files
            .iter()
            .map(|file| (file.fd, &*file.what))
            .collect();
        assert_eq!(
            files,
            [(9, "kvm-vm"), (10, "kvm-vcpu:0"), (11, "kvm-vcpu-stats:0")]
        );
        let mapped: Vec<_> = process
            .mappings
            .iter()
            .map(|m| (&*m.what, m.count))
            .collect();
        assert_eq!(mapped, [("kvm-vcpu:0", 2), ("kvm-vcpu:1", 1)]);
        let threads: Vec<_> = users
            .threads
            .iter()
            .map(|thread| (thread.tid, thread.pid))
            .collect();
        assert_eq!(threads, [(8, None), (102, Some(100))]);
        // Of five: two files and one that is mapped only.
        let others: Vec<_> = users
            .modules
            .iter()
            .map(|m| (m.name, m.references, m.others))
            .collect();
        assert_eq!(others, [("kvm_amd", 5, 2), ("kvm", 2, 0)]);
        let mut text = Vec::new();
        users.tell(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for part in [
            "kvm_amd is in use, 5 times: 2 not seen\n",
            "kvm is in use, 2 times: kvm_amd\n",
            "process 100 (a) S 1?[31m): fd 9 is kvm-vm, fd 10 is kvm-vcpu:0, ",
            "kvm-vcpu:0 is mapped 2 times, kvm-vcpu:1 is mapped; free by: kill 100\n",
            "thread 102 (kvm-nx-lpage-re) in process 100: ends with its VM\n",
            "not seen: files on their way",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }

    /// What a process has mapped cannot be read while its memory is locked; the others' is told all the same.
    #[test]
    fn who_hangs() {
        let tree = Tree::new();
        let maps = "7f-80 rw-s 00000000 00:10 1 anon_inode:kvm-vcpu:1\n";
        for pid in [100, 101] {
            tree.task(pid, pid, "vmm", 0);
            tree.link(&format!("proc/{pid}/task/{pid}/fd/9"), "anon_inode:kvm-vm");
        }
        tree.file("proc/101/maps", maps);
        let mode = rustix::fs::Mode::RUSR;
        // Opening it waits for who would write.
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, tree.place("proc/100/maps"), kind, mode, 0).unwrap();
        let users = Users::look(tree.root());
        let found: Vec<_> = users
            .processes
            .iter()
            .map(|process| (process.pid, process.files.len(), process.mappings.len()))
            .collect();
        assert_eq!(found, [(100, 1, 0), (101, 1, 1)]);
        let mut text = Vec::new();
        users.tell(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("what process 100 has mapped could not be seen: it hangs"),
            "{text}"
        );
    }

    #[test]
    fn nobody() {
        let tree = Tree::new();
        tree.file("sys/module/kvm_intel/refcnt", "0\n");
        let users = Users::look(tree.root());
        let mut text = Vec::new();
        users.tell(&mut text).unwrap();
        assert_eq!(text, b"kvm_intel is not in use\n");
    }
}
