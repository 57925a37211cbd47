// SPDX-License-Identifier: GPL-2.0
//! A trace buffer of our own, into which `trace_printk()` writes while it is there: an instance in tracefs. What is in
//! it, nobody else's reader misses, and the other way round.
//!
//! Who holds the lock of its folder has it. One that is there without a lock was left by somebody who was killed.

use crate::{columns::printable, say::say};
use anyhow::{anyhow, bail, Context, Result};
use rustix::{
    fs::{flock, FlockOperation, OFlags},
    io::Errno,
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, IsTerminal, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The option by which an instance is where `trace_printk()` writes.
const DESTINATION: &str = "options/trace_printk_dest";
/// How the kernel marks the module's lines: by the function that wrote them.
const OURS: &str = ": kvmate_trace_line: ";
/// And that some were overwritten before they were read.
const LOST: &str = " EVENTS]";

/// The buffer; it goes when this is dropped.
pub struct Buffer {
    folder: PathBuf,
    _lock: File,
    pipe: Option<File>,
    /// Who had the lines before: an instance, if it was not the top.
    before: Option<PathBuf>,
    /// What was read of a line that had no end yet.
    part: Vec<u8>,
    /// Whether a terminal gets the lines, which would obey what is in processes' names.
    terminal: bool,
}

/// Where instances are: tracefs has a place of its own, and is mounted in debugfs, too, when that is looked into.
fn instances() -> PathBuf {
    let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let all = places.map(|place| Path::new(place).join("instances"));
    let found = all.iter().find(|place| place.exists());
    found.unwrap_or(&all[0]).clone()
}

fn is_destination(instance: &Path) -> bool {
    fs::read_to_string(instance.join(DESTINATION)).is_ok_and(|text| text.trim() == "1")
}

impl Buffer {
    /// Begin; and whether what is taken over was left by somebody who was killed.
    pub fn begin() -> Result<(Self, bool)> {
        let folder = instances().join("kvmate");
        let left = match fs::create_dir(&folder) {
            Ok(()) => false,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => true,
            Err(error) => return Err(refused(&folder, &error)),
        };
        let lock = File::open(&folder).with_context(|| folder.display().to_string())?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                bail!(
                    "another kvmate trace is running: there is one buffer for it, {}",
                    folder.display()
                )
            }
            Err(error) => return Err(error).context(folder.display().to_string()),
        }
        let others = fs::read_dir(instances()).into_iter().flatten().flatten();
        let others = others
            .map(|entry| entry.path())
            .filter(|path| *path != folder);
        let mut buffer = Self {
            before: others.into_iter().find(|path| is_destination(path)),
            _lock: lock,
            pipe: None,
            part: Vec::new(),
            terminal: io::stdout().is_terminal(),
            folder,
        };
        // From here on it goes by itself, whatever fails.
        let pipe = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(buffer.folder.join("trace_pipe"));
        buffer.pipe = Some(pipe.map_err(|error| refused(&buffer.folder, &error))?);
        if left {
            buffer.set("trace", "").context("trace")?;
        }
        let taken = buffer.set(DESTINATION, "1");
        taken.with_context(|| {
            format!("{DESTINATION}: this kernel lets no instance have trace_printk()'s lines")
        })?;
        Ok((buffer, left))
    }

    fn set(&self, file: &str, text: &str) -> io::Result<()> {
        // Making what is there empty is what is asked of `trace`.
        let mut file = OpenOptions::new()
            .write(true)
            .truncate(text.is_empty())
            .open(self.folder.join(file))?;
        file.write_all(text.as_bytes())
    }

    /// Tell some of the lines of ours that have come; and whether there may be more.
    pub fn copy(&mut self, out: &mut impl Write) -> Result<bool> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(false);
        };
        let mut room = [0; 16384];
        let more = match pipe.read(&mut room) {
            Ok(0) => false,
            Ok(length) => {
                let lines = whole_lines(&mut self.part, &room[..length], self.terminal);
                out.write_all(&lines)?;
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(error) => return Err(error).context("trace_pipe"),
        };
        Ok(more)
    }
}

/// Those of our lines that are whole; the rest is kept.
fn whole_lines(part: &mut Vec<u8>, read: &[u8], terminal: bool) -> Vec<u8> {
    part.extend_from_slice(read);
    let mut out = Vec::new();
    let Some(end) = part.iter().rposition(|byte| *byte == b'\n') else {
        return out;
    };
    let rest = part.split_off(end + 1);
    let lines = std::mem::replace(part, rest);
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let text = String::from_utf8_lossy(line);
        if !text.contains(OURS) && !text.trim_end().ends_with(LOST) {
            continue;
        }
        if terminal {
            out.extend(printable(text.trim_end_matches('\n')).into_bytes());
            out.push(b'\n');
        } else {
            out.extend(line);
        }
    }
    out
}

fn refused(folder: &Path, error: &io::Error) -> anyhow::Error {
    let path = folder.display();
    match error.kind() {
        ErrorKind::NotFound => {
            anyhow!(
                "{path} cannot be made: this kernel has no tracing, or tracefs is not mounted: \
                 mount -t tracefs none /sys/kernel/tracing"
            )
        }
        ErrorKind::PermissionDenied => {
            anyhow!("{path}: {error}: this needs root, and a kernel that is not locked down")
        }
        _ => anyhow!("{path}: {error}"),
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // An open file of its would keep it.
        self.pipe = None;
        // What somebody else has taken since is theirs; without us it is the top's by itself.
        let back = self
            .before
            .as_ref()
            .filter(|_| is_destination(&self.folder));
        if let Some(before) = back {
            let file = OpenOptions::new()
                .write(true)
                .open(before.join(DESTINATION));
            // It may have gone.
            let _ = file.and_then(|mut file| file.write_all(b"1"));
        }
        if let Err(error) = fs::remove_dir(&self.folder) {
            say(format_args!(
                "{} stays: {error}: rmdir it when nobody reads it any more",
                self.folder.display()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ours_and_only_whole() {
        let text = "\
 a-1  [000] d..1.  1.0: kvmate_trace_line: vm 1-1 vcpu 0: exit io rip 0x1 info 0x2
 a-1  [000] d..1.  1.1: other_function: text
CPU:1 [LOST 12 EVENTS]
 a-1  [000] d..1.  1.2: kvmate_trace_line: gmem 2: fault 0x0 order 9
 a-1  [000] d..1.  1.3: kvmate_trace_line: un";
        for size in [1, 7, 1000] {
            let (mut part, mut out) = (Vec::new(), Vec::new());
            for chunk in text.as_bytes().chunks(size) {
                out.extend(whole_lines(&mut part, chunk, false));
            }
            let lines: Vec<_> = std::str::from_utf8(&out).unwrap().lines().collect();
            assert_eq!(lines.len(), 3, "{lines:?}");
            assert!(lines[0].ends_with("info 0x2") && lines[2].ends_with("order 9"));
            assert_eq!(lines[1], "CPU:1 [LOST 12 EVENTS]");
            assert!(part.ends_with(b"un"));
        }
    }

    /// A process may call itself anything.
    #[test]
    fn nothing_for_a_terminal_to_obey() {
        let line = b" \x1b[31m\x9b-1  [000] 1.0: kvmate_trace_line: vm 1-1 a\rb\tc\n";
        let shown = whole_lines(&mut Vec::new(), line, true);
        let expected = " ?[31m\u{fffd}-1  [000] 1.0: kvmate_trace_line: vm 1-1 a?b?c\n";
        assert_eq!(String::from_utf8(shown).unwrap(), expected);
        assert_eq!(whole_lines(&mut Vec::new(), line, false), line);
    }
}
