// SPDX-License-Identifier: GPL-2.0
//! gmem: each page is zeroed, and once.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{self, allocated, fallocate, info_of, Map, HUGE, PAGE},
    ktap,
    module::{self, Kvmate},
};
use kvmate_uapi::KVMATE_GMEM_SMALL;
use nix::libc;
use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[("zeroed_once", zeroed_once)])
}

/// The folder of a trace buffer of our own, and the probe on what clears pages, while this is there.
struct Clearing(&'static Path);

const TRACING: &str = "/sys/kernel/tracing";

/// Adds or removes a probe.
fn probes(what: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .open(format!("{TRACING}/kprobe_events"))?;
    file.write_all(what.as_bytes())
}

impl Clearing {
    fn new() -> Result<Self> {
        let probe =
            "p:kvmate_test/clear kvmate:kvmate_folio_clear folio=%di:x64 page=%si pages=%dx:u32";
        probes(probe).context("kprobe_events")?;
        let folder = Path::new("/sys/kernel/tracing/instances/kvmate_gmem");
        fs::create_dir(folder).context("a trace buffer")?;
        let new = Self(folder);
        // SAFETY: No condition.
        let thread = unsafe { libc::gettid() };
        new.write("buffer_size_kb", "8192")?;
        new.write("set_event_pid", &thread.to_string())?;
        new.write("events/kvmate_test/clear/enable", "1")?;
        new.write("events/kmem/mm_page_alloc/enable", "1")?;
        Ok(new)
    }

    fn write(&self, name: &str, value: &str) -> Result<()> {
        fs::write(self.0.join(name), value).with_context(|| name.to_owned())
    }

    /// The events so far; then none.
    fn take(&self) -> Result<String> {
        let text = fs::read_to_string(self.0.join("trace"))?;
        let entries = text
            .lines()
            .find(|l| l.contains("entries-in-buffer/entries-written"));
        let counts = entries
            .and_then(|l| l.split_whitespace().nth(2))
            .context("entries")?;
        let (kept, written) = counts.split_once('/').context("entries")?;
        ensure_eq!(kept, written, "events that were kept and written");
        self.write("trace", "")?;
        Ok(text)
    }
}

impl Drop for Clearing {
    fn drop(&mut self) {
        for event in ["kvmate_test/clear", "kmem/mm_page_alloc"] {
            if let Err(error) = self.write(&format!("events/{event}/enable"), "0") {
                eprintln!("# {error:#}");
            }
        }
        if let Err(error) = fs::remove_dir(self.0) {
            eprintln!("# rmdir {}: {error}", self.0.display());
        }
        if let Err(error) = probes("-:kvmate_test/clear") {
            eprintln!("# kprobe_events: {error}");
        }
    }
}

/// The value of `key=` in a line of a trace.
fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let start = line.find(&format!(" {key}="))? + key.len() + 2;
    line[start..].split_whitespace().next()
}

/// Whether the allocator zeroes all it gives (`init_on_alloc`), as the kernel's log says.
fn allocator_zeroes() -> Result<bool> {
    let log = module::Log::from_beginning()?.lines()?;
    Ok(log.iter().any(|l| l.contains("heap alloc:on")))
}

/// Each page is zeroed, and once: by kvmate as a probe on its only means shows, or by the allocator,
/// whose events show whether it was asked to.
fn zeroed_once() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let by_allocator = allocator_zeroes()?;
    // So that memory that was not zeroed is seen.
    drop(vec![0xa5u8; 256 << 20]);
    let clearing = Clearing::new()?;
    for (flags, size) in [(0, 16 * HUGE), (KVMATE_GMEM_SMALL, 4 * HUGE), (0, 3 * PAGE)] {
        let file = gmem::create(size, flags)?;
        let map = Map::new(&file, size)?;
        clearing.take()?;
        // A third each by fallocate(), write() and faults.
        fallocate(&file, 0, 0, (size / 3) as i64)?;
        file.write_all_at(&[0], (size / 2) as u64)?;
        for at in (0..size).step_by(PAGE) {
            map.read(at);
        }
        let trace = clearing.take()?;
        ensure_eq!(allocated(&file)?, size, "st_blocks");
        ensure!(
            map.copy(0, size) == vec![0; size],
            "not zeroed: {size:#x} bytes, flags {flags}"
        );
        let mut cleared = HashSet::new();
        let (mut times, mut allocated_pages) = (0, 0);
        for line in trace.lines() {
            if let (Some(folio), Some(page), Some(pages)) = (
                field(line, "folio"),
                field(line, "page"),
                field(line, "pages"),
            ) {
                let page = usize::from_str_radix(page.trim_start_matches("0x"), 16)?;
                for page in page..page + pages.parse::<usize>()? {
                    cleared.insert((folio.to_owned(), page));
                    times += 1;
                }
            }
            // The allocations for files' pages are the only movable ones here that are not to be retried
            // for ever.
            if ["mm_page_alloc:", "GFP_HIGHUSER_MOVABLE", "RETRY"]
                .iter()
                .all(|word| line.contains(word))
            {
                ensure!(
                    !line.contains("__GFP_ZERO"),
                    "the allocator zeroes too: {line}"
                );
                let order = field(line, "order").context("order")?;
                allocated_pages += 1usize << order.parse::<u32>()?;
            }
        }
        ensure_eq!(
            allocated_pages,
            size / PAGE,
            "pages allocated, flags {flags}"
        );
        let expected = if by_allocator { 0 } else { size / PAGE };
        ensure_eq!(times, expected, "pages cleared, flags {flags}");
        ensure_eq!(
            cleared.len(),
            expected,
            "pages cleared, each once, flags {flags}"
        );
        ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    }
    drop(clearing);
    kvmate.unload()
}
