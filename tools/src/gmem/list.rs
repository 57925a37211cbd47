// SPDX-License-Identifier: GPL-2.0
//! Which memory files there are, what they have, and who has them.

use crate::{columns::printable, json, process, tree, units::size};
use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::Serialize;
use std::{collections::BTreeMap, fs, io::Write, os::unix::fs::MetadataExt, path::Path};

/// All of them; the fields' names are those of `--json`.
#[derive(Serialize, JsonSchema)]
pub struct Files {
    /// By their inodes.
    files: Vec<File>,
}

#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct File {
    /// By which `gmem map` and `gmem query` take it.
    inode: u64,
    /// Unknown, if nobody has a descriptor of it that can be seen.
    name: Option<String>,
    size: u64,
    /// How much memory it has.
    allocated: u64,
    /// How much of that by 2 MiB.
    huge: u64,
    /// Who has descriptors of it.
    users: Vec<User>,
}

/// A descriptor of one.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct User {
    pid: u32,
    process: String,
    fd: i32,
}

impl File {
    fn new(inode: u64, info: &str, found: Option<(String, Vec<User>)>) -> Result<Self> {
        let told = |name: &str| -> Result<u64> {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|text| text.strip_prefix(' ')?.parse().ok());
            number.with_context(|| {
                format!("gmem/{inode}/info has no {name}: the loaded module is of another version; install the one that came with this tool")
            })
        };
        let (name, users) = found.unzip();
        Ok(Self {
            inode,
            name,
            size: told("size")?,
            allocated: told("allocated")?,
            huge: told("folios_order9")? << 21,
            users: users.unwrap_or_default(),
        })
    }
}

/// The name in what `/proc` says that a descriptor is of.
fn name(link: &Path) -> Option<String> {
    let link = link.to_string_lossy();
    // Not `/memfd:gmem:x`, which is somebody else's.
    let name = link.strip_prefix('/').unwrap_or(&link);
    let name = name.strip_prefix("gmem:")?;
    Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}

/// All descriptors of memory files, by the file's number.
fn users() -> BTreeMap<u64, (String, Vec<User>)> {
    let mut all: BTreeMap<u64, (String, Vec<User>)> = BTreeMap::new();
    for pid in process::all() {
        for (fd, link) in process::descriptors(pid) {
            let Some(name) = name(&link) else {
                continue;
            };
            // Both may be gone by now.
            let file = fs::metadata(format!("/proc/{pid}/fd/{fd}"));
            let (Ok(file), Some(process)) = (file, process::name(pid)) else {
                continue;
            };
            let entry = all.entry(file.ino());
            let entry = entry.or_insert_with(|| (name, Vec::new()));
            entry.1.push(User { pid, process, fd });
        }
    }
    all
}

/// Do it.
pub fn run(out: &mut impl Write, as_json: bool) -> Result<()> {
    let inodes = tree::memory_files()?;
    let mut users = users();
    let mut files = Vec::new();
    for inode in inodes {
        // One that has gone is none any more.
        if let Some(info) = tree::read_fleeting(&format!("gmem/{inode}/info"))? {
            files.push(File::new(inode, &info, users.remove(&inode))?);
        }
    }
    match as_json {
        true => json::plain(out, &Files { files }),
        false => table(out, &files),
    }
}

fn table(out: &mut impl Write, files: &[File]) -> Result<()> {
    if files.is_empty() {
        writeln!(out, "there is no memory file: kvmate gmem create makes one")?;
        return Ok(());
    }
    writeln!(
        out,
        "{:>6} {:>8} {:>9} {:>8} {:<12} who has it",
        "inode", "size", "allocated", "huge", "name"
    )?;
    for file in files {
        let users: Vec<_> = file
            .users
            .iter()
            .map(|User { pid, process, fd }| format!("{} ({pid}) fd {fd}", printable(process)))
            .collect();
        let users = if users.is_empty() {
            "-".into()
        } else {
            users.join(", ")
        };
        writeln!(
            out,
            "{:>6} {:>8} {:>9} {:>8} {:<12} {users}",
            file.inode,
            size(file.size),
            size(file.allocated),
            size(file.huge),
            printable(file.name.as_deref().unwrap_or("-")),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    const INFO: &str = "size 16777216\nallocated 4198400\nfolios_order0 1\nfolios_order9 2\n";

    fn files() -> Vec<File> {
        let user = User {
            pid: 96,
            process: "qemu-system-x86".into(),
            fd: 3,
        };
        vec![
            File::new(2, INFO, Some(("ram".into(), vec![user]))).unwrap(),
            File::new(3, "size 4096\nallocated 0\nfolios_order9 0\n", None).unwrap(),
        ]
    }

    #[test]
    fn a_table() {
        assert!(File::new(3, "size 4096\nallocated 0\n", None).is_err());
        let mut out = Vec::new();
        table(&mut out, &files()).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[1],
            "     2      16M     4100K       4M ram          qemu-system-x86 (96) fd 3"
        );
        assert_eq!(
            lines[2],
            "     3       4K         0        0 -            -"
        );
    }

    /// Who names files and processes may do so by anything.
    #[test]
    fn nothing_for_a_terminal_to_obey() {
        let mut files = files();
        files[0].name = Some("\x1b[31m".into());
        files[0].users[0].process = "\x1b]0;x\x07".into();
        let mut out = Vec::new();
        table(&mut out, &files).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("?[31m ") && text.contains("?]0;x? (96)"),
            "{text}"
        );
    }

    #[test]
    fn names() {
        for (link, expected) in [
            (&b"/gmem:x y (deleted)"[..], Some("x y")),
            (b"gmem:x", Some("x")),
            (b"/gmem:\xff", Some("\u{fffd}")),
            (b"/memfd:x (deleted)", None),
            (b"/memfd:gmem:x (deleted)", None),
            (b"/tmp/gmem:x", None),
        ] {
            let found = name(Path::new(OsStr::from_bytes(link)));
            assert_eq!(found.as_deref(), expected, "{link:?}");
        }
    }

    #[test]
    fn json_is_as_documented() {
        let json = serde_json::to_value(Files { files: files() }).unwrap();
        let documented = include_str!("../../json.md");
        let file = json["files"][0].as_object().unwrap();
        let user = file["users"][0].as_object().unwrap();
        for field in file.keys().chain(user.keys()) {
            assert!(documented.contains(&format!("`{field}`")), "{field}");
        }
    }
}
