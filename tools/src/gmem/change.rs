// SPDX-License-Identifier: GPL-2.0
//! Changing a memory file of a running process: its folios split and merged, holes made in it.

use super::{
    record::Record,
    target::{Part, Taken, Target},
};
use crate::{device, units::size};
use anyhow::{anyhow, bail, Result};
use clap::Args;
use kvmate_uapi::{
    call::{reshape, Shape},
    kvmate_gmem_range, KVMATE_GMEM_FILL,
};
use rustix::{
    fs::{fallocate, FallocateFlags},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Write},
    ops::Range,
    os::unix::fs::MetadataExt,
    thread,
    time::{Duration, Instant},
};

/// What split takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: kvmate gmem split --pid $(pidof qemu-system-x86_64) --fd 3 --offset 1G --length 2M
No byte changes, and nobody notices but by its speed. What somebody holds is not split: that is told, and fails.
Exit status: 0 done, 1 failed, 2 wrong usage.")]
pub struct Split {
    #[command(flatten)]
    which: Taken,
    #[command(flatten)]
    part: Part,
    /// To folios of at most 4 KiB << ORDER
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=8))]
    order: u32,
}

/// What merge takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: kvmate gmem merge --pid $(pidof qemu-system-x86_64) --fd 3 --fill
No byte changes. What somebody holds is not merged: that is told, and fails.
Exit status: 0 done, 1 failed, 2 wrong usage.")]
pub struct Merge {
    #[command(flatten)]
    which: Taken,
    #[command(flatten)]
    part: Part,
    /// To folios of at least 4 KiB << ORDER; 9 is 2 MiB
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=9))]
    order: u32,
    /// Fill holes with zeros, instead of failing at them
    #[arg(long)]
    fill: bool,
}

/// What punch takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: kvmate gmem punch --pid $(pidof qemu-system-x86_64) --fd 3 --offset 1G --length 256M
THE MEMORY IN IT IS LOST: it reads zeros from then on, for every process and guest.
Exit status: 0 done, 1 failed, 2 wrong usage.")]
pub struct Punch {
    #[command(flatten)]
    which: Taken,
    /// Where the hole begins: 2M, 1G, 0x200000
    #[arg(long, value_parser = crate::units::pages)]
    offset: u64,
    /// How long it is
    #[arg(long, value_parser = crate::units::pages)]
    length: u64,
}

impl Split {
    /// Do it.
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let (target, file) = self.which.take()?;
        change(out, &target, &file, &self.part, Shape::Split, self.order, 0)
    }
}

impl Merge {
    /// Do it.
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let (target, file) = self.which.take()?;
        let flags = if self.fill { KVMATE_GMEM_FILL } else { 0 };
        change(
            out,
            &target,
            &file,
            &self.part,
            Shape::Merge,
            self.order,
            flags,
        )
    }
}

fn change(
    out: &mut impl Write,
    target: &Target,
    file: &File,
    part: &Part,
    shape: Shape,
    order: u32,
    flags: u32,
) -> Result<()> {
    let part = part.whole(target.size()?)?;
    let block = 4096u64 << order;
    if part.start % block != 0 || part.end % block != 0 {
        bail!(
            "offset and length must be multiples of {} for order {order}: the range is {:#x} to {:#x}",
            size(block),
            part.start,
            part.end
        );
    }
    let mut rest = part.clone();
    // Since when somebody was in the way who had gone when he was looked for.
    let mut fleeting: Option<Instant> = None;
    while !rest.is_empty() {
        let mut range = kvmate_gmem_range {
            offset: rest.start,
            length: rest.end - rest.start,
            order,
            flags,
            ..Default::default()
        };
        let said = reshape(file, shape, &mut range);
        rest.start += range.done;
        if range.done > 0 {
            fleeting = None;
        }
        match said {
            Ok(()) if range.done > 0 => {}
            Ok(()) => bail!("nothing was done, and nothing said why"),
            // A signal that was for somebody else, as SIGCONT after SIGSTOP.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error)
                if is_fleeting(&range, shape, &error)
                    && fleeting.get_or_insert_with(Instant::now).elapsed() < PATIENCE =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(refused(&range, &part, rest.start, shape, &error)),
        }
    }
    let what = match shape {
        Shape::Split => "split to at most",
        Shape::Merge => "merged to at least",
    };
    let (length, start) = (size(part.end - part.start), part.start);
    writeln!(out, "{length} at {start:#x}: {what} {}", size(block))?;
    Ok(())
}

/// For so long is tried again what somebody is in the way of who goes again.
const PATIENCE: Duration = Duration::from_millis(100);

/// Whether a folio was refused that nobody held any more when it was looked at why. To split one that is told as want
/// of memory, which it may be, too.
fn is_fleeting(range: &kvmate_gmem_range, shape: Shape, error: &io::Error) -> bool {
    let way = Record::from(&range.refused);
    let errno = Errno::from_io_error(error);
    let refused =
        errno == Some(Errno::AGAIN) || (errno, shape) == (Some(Errno::NOMEM), Shape::Split);
    refused && !way.hole && way.references <= way.expected
}

/// Why it did not go on, how far it came, and what to do.
fn refused(
    range: &kvmate_gmem_range,
    part: &Range<u64>,
    reached: u64,
    shape: Shape,
    error: &io::Error,
) -> anyhow::Error {
    let done = format!(
        "{} of {} were done",
        size(reached - part.start),
        size(part.end - part.start)
    );
    let way = Record::from(&range.refused);
    let at = way.offset;
    match (Errno::from_io_error(error), shape) {
        (Some(errno), _) if is_fleeting(range, shape, error) => {
            let memory = if errno == Errno::NOMEM {
                ", or there is no memory (of the machine, or below the cgroup's limit)"
            } else {
                ""
            };
            anyhow!(
                "somebody holds the folio of {} at {at:#x} for moments, again and again{memory}; {done}: try again",
                size(way.length)
            )
        }
        (Some(Errno::AGAIN), _) => {
            let (found, expected, mappings) = (way.references, way.expected, way.mappings);
            let pinned = if way.is("pinned") {
                ", and looks pinned"
            } else {
                ""
            };
            anyhow!(
                "somebody holds the folio of {} at {at:#x}: it has {found} references, {expected} are explained, it is \
                 mapped {mappings} times{pinned}; {done}: try again when it is let go",
                size(way.length)
            )
        }
        (Some(Errno::NOMEM), _) => {
            anyhow!("no memory at {at:#x} (of the machine, or below the cgroup's limit); {done}")
        }
        (Some(Errno::HWPOISON), _) => {
            anyhow!("a page at {at:#x} has failed; {done}: punch it, and go on behind it")
        }
        (Some(Errno::INVAL), Shape::Merge) if way.hole => {
            anyhow!(
                "a hole of {} at {at:#x}; {done}: --fill fills holes with zeros",
                size(way.length)
            )
        }
        (Some(Errno::OPNOTSUPP), _) => {
            anyhow!("the file is one of 4 KiB pages only (--small), which are not merged")
        }
        (Some(Errno::BADF), _) => {
            anyhow!("that descriptor is not open for writing: take another one of the file")
        }
        (Some(Errno::NOTTY), _) => device::failed(&format!("{shape:?}"), error),
        _ => anyhow!("{shape:?}: {error}; {done}"),
    }
}

impl Punch {
    /// Do it.
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let (target, file) = self.which.take()?;
        let part = Part::new(self.offset, self.length).whole(target.size()?)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match fallocate(&file, flags, self.offset, self.length) {
                // What a prefix is done of is done again, which is little work.
                Err(Errno::INTR) => {}
                Err(Errno::PERM) => bail!("the file is sealed against writing (KVMATE_GMEM_SEALS)"),
                Err(Errno::BADF) => {
                    bail!("that descriptor is not open for writing: take another one of the file")
                }
                Err(error) => bail!("fallocate: {error}"),
                Ok(()) => break,
            }
        }
        let has = size(file.metadata()?.blocks() * 512);
        let (length, start) = (size(part.end - part.start), part.start);
        writeln!(
            out,
            "{length} at {start:#x}: punched; the file has {has} now"
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmate_uapi::{kvmate_gmem_record, KVMATE_GMEM_HOLE, KVMATE_GMEM_PINNED};

    #[test]
    fn each_errno_is_told_apart() {
        let said = |errno: Errno, flags: u32| {
            let range = kvmate_gmem_range {
                refused: kvmate_gmem_record {
                    offset: 0x60_0000,
                    length: 2 << 20,
                    flags,
                    references: 1536,
                    expected: 512,
                    ..Default::default()
                },
                ..Default::default()
            };
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            let part = 0x20_0000..0x80_0000;
            refused(&range, &part, 0x60_0000, Shape::Merge, &error).to_string()
        };
        let held = said(Errno::AGAIN, KVMATE_GMEM_PINNED);
        assert!(
            held.contains("2M at 0x600000: it has 1536 references, 512 are explained, it is mapped 0 times, and looks pinned")
                && held.contains("4M of 6M were done"),
            "{held}"
        );
        assert!(!said(Errno::AGAIN, 0).contains("pinned"));
        let mut all = vec![held, said(Errno::INVAL, KVMATE_GMEM_HOLE)];
        for errno in [Errno::NOMEM, Errno::HWPOISON, Errno::OPNOTSUPP, Errno::BADF] {
            all.push(said(errno, 0));
        }
        assert!(all.iter().all(|line| !line.contains("os error")), "{all:?}");
        assert!(all[1].contains("--fill"), "{}", all[1]);
    }

    #[test]
    fn for_a_moment() {
        let is = |shape, errno: Errno, references, flags| {
            let range = kvmate_gmem_range {
                refused: kvmate_gmem_record {
                    length: 2 << 20,
                    flags,
                    references,
                    expected: 512,
                    ..Default::default()
                },
                ..Default::default()
            };
            let error = errno.into();
            let said = refused(&range, &(0..2 << 20), 0, shape, &error).to_string();
            let fleeting = is_fleeting(&range, shape, &error);
            assert_eq!(said.contains("for moments"), fleeting, "{said}");
            assert!(!fleeting || said.ends_with("try again"), "{said}");
            fleeting
        };
        assert!(is(Shape::Split, Errno::NOMEM, 512, 0));
        assert!(is(Shape::Split, Errno::AGAIN, 511, 0));
        assert!(is(Shape::Merge, Errno::AGAIN, 512, 0));
        assert!(!is(Shape::Split, Errno::AGAIN, 513, 0));
        assert!(!is(Shape::Merge, Errno::NOMEM, 512, 0));
        assert!(!is(Shape::Merge, Errno::INVAL, 0, KVMATE_GMEM_HOLE));
    }
}
