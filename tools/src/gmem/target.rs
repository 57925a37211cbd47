// SPDX-License-Identifier: GPL-2.0
//! Which memory file is meant, and which part of it.

use super::record::Record;
use crate::{device, process::Process, tree, units};
use anyhow::{anyhow, bail, ensure, Context, Result};
use clap::Args;
use rustix::io::Errno;
use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A file of a running process.
#[derive(Debug, Args)]
pub struct Taken {
    /// The process that has the file
    #[arg(long)]
    pid: u32,
    /// Its descriptor of the file: `kvmate gmem list` tells it
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    fd: i32,
}

/// A file by its number, or of a running process.
#[derive(Debug, Args)]
pub struct Any {
    /// The file's inode's number, as `kvmate gmem list` has it
    #[arg(required_unless_present = "pid", conflicts_with_all = ["pid", "fd"])]
    inode: Option<u64>,
    /// Or: the process that has it
    #[arg(long, requires = "fd")]
    pid: Option<u32>,
    /// And its descriptor of the file
    #[arg(long, requires = "pid", value_parser = clap::value_parser!(i32).range(0..))]
    fd: Option<i32>,
}

/// A part of a file.
#[derive(Debug, Args)]
pub struct Part {
    /// Where it begins: 2M, 1G, 0x200000
    #[arg(long, value_parser = units::pages)]
    offset: Option<u64>,
    /// How long it is; without it to the file's end
    #[arg(long, value_parser = units::pages)]
    length: Option<u64>,
}

impl Part {
    /// That one.
    pub fn new(offset: u64, length: u64) -> Self {
        Self {
            offset: Some(offset),
            length: Some(length),
        }
    }

    /// The range that it is of a file of that size, if one was asked for.
    pub fn of(&self, size: u64) -> Result<Option<Range<u64>>> {
        if self.offset.is_none() && self.length.is_none() {
            return Ok(None);
        }
        self.whole(size).map(Some)
    }

    /// The same, or all of the file.
    pub fn whole(&self, size: u64) -> Result<Range<u64>> {
        let start = self.offset.unwrap_or(0);
        let end = match self.length {
            Some(length) => start.checked_add(length),
            None => Some(size.max(start)),
        };
        let inside = end.filter(|end| *end <= size && *end > start);
        let told = || {
            let size = units::size(size);
            format!("there is nothing, or it is not all in the file, which has {size}: give another --offset or --length")
        };
        Ok(start..inside.with_context(told)?)
    }
}

/// A memory file.
pub struct Target {
    /// Its number.
    pub inode: u64,
    /// A descriptor of it, if it was taken from a process.
    file: Option<File>,
}

impl Taken {
    /// Take it.
    pub fn take(&self) -> Result<(Target, File)> {
        let file = File::from(Process::open(self.pid)?.take(self.fd)?);
        let Self { pid, fd } = self;
        ensure!(
            is_ours(&file)?,
            "descriptor {fd} of process {pid} is no memory file of kvmate's, or of another version's: kvmate gmem list tells who has which"
        );
        let inode = file.metadata()?.ino();
        let copy = file.try_clone()?;
        Ok((
            Target {
                inode,
                file: Some(copy),
            },
            file,
        ))
    }
}

/// Whether it is a memory file: it answers to a question that only those understand.
fn is_ours(file: &File) -> Result<bool> {
    match Record::query(file, 0..4096) {
        Ok(records) => Ok(!records.is_empty()),
        // So files answer to what they do not know; epoll(7) and some drivers by EINVAL.
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::NOTTY | Errno::INVAL)
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(device::failed("KVMATE_GMEM_QUERY", &error)),
    }
}

impl Any {
    /// Find it.
    pub fn find(&self) -> Result<Target> {
        match (self.inode, self.pid, self.fd) {
            (Some(inode), ..) => {
                // Says why, if there is no module.
                let all = tree::folders("gmem")?;
                let target = Target { inode, file: None };
                ensure!(
                    all.contains(&target.folder()),
                    "there is no memory file {inode}: kvmate gmem list"
                );
                Ok(target)
            }
            (None, Some(pid), Some(fd)) => Ok(Taken { pid, fd }.take()?.0),
            // clap sees to it.
            _ => bail!("no file is named"),
        }
    }
}

impl Target {
    fn folder(&self) -> PathBuf {
        let folder = Path::new(tree::DEBUGFS).join("kvmate/gmem");
        folder.join(self.inode.to_string())
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.folder().join(file);
        fs::read_to_string(&path).map_err(|error| gone(self.inode, &path, &error))
    }

    /// Its size.
    pub fn size(&self) -> Result<u64> {
        match &self.file {
            Some(file) => Ok(file.metadata()?.len()),
            None => {
                let info = self.read("info")?;
                let size = info.lines().find_map(|line| line.strip_prefix("size "));
                let size = size.and_then(|size| size.parse().ok());
                size.context("info has no size: the module is of another version")
            }
        }
    }

    /// What a part of it has where.
    pub fn records(&self, part: Range<u64>) -> Result<Vec<Record>> {
        match &self.file {
            Some(file) => {
                let records = Record::query(file, part);
                records.map_err(|error| device::failed("KVMATE_GMEM_QUERY", &error))
            }
            None => {
                let records = Record::parse_all(&self.read("map")?)?;
                Ok(records
                    .into_iter()
                    .filter_map(|record| record.within(&part))
                    .collect())
            }
        }
    }
}

/// Why a file of a memory file's folder cannot be read.
fn gone(inode: u64, path: &Path, error: &io::Error) -> anyhow::Error {
    let errno = Errno::from_io_error(error);
    let going = error.kind() == ErrorKind::NotFound || errno == Some(Errno::IO);
    if going && !path.exists() {
        return anyhow!("memory file {inode} has ended: kvmate gmem list");
    }
    anyhow!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let part = |offset, length| Part { offset, length };
        assert_eq!(part(None, None).of(8192).unwrap(), None);
        assert_eq!(part(None, None).whole(8192).unwrap(), 0..8192);
        assert_eq!(part(Some(4096), None).of(8192).unwrap(), Some(4096..8192));
        assert_eq!(part(None, Some(4096)).whole(8192).unwrap(), 0..4096);
        for (offset, length) in [
            (Some(8192), None),
            (Some(12288), None),
            (Some(4096), Some(8192)),
            (Some(u64::MAX - 4095), Some(8192)),
            (None, Some(0)),
        ] {
            assert!(
                part(offset, length).whole(8192).is_err(),
                "{offset:?} {length:?}"
            );
        }
    }

    #[test]
    fn what_is_none() {
        let pid = std::process::id();
        let null = File::open("/dev/null").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&null);
        let said = Taken { pid, fd }.take().err().unwrap().to_string();
        // Where pidfd_getfd() is not allowed this is told instead.
        assert!(
            said.contains("no memory file") || said.contains("root"),
            "{said}"
        );
    }
}
