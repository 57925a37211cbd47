// SPDX-License-Identifier: GPL-2.0
//! The only program of the Linux guests that `tests/src/guest/linux.rs` makes: fills all memory that
//! is free, and looks at it when the test asks over the console.

use anyhow::{bail, ensure, Context, Result};
use kvmate_tests::{
    gmem::PAGE,
    guest::linux::{pattern, PAGE_ASKED, PREFIX},
};
use nix::{
    libc,
    sys::mman::{mlockall, mmap_anonymous, MapFlags, MlockAllFlags, ProtFlags},
};
use std::{
    fs::{self, File},
    io::{stdin, BufRead},
    num::NonZeroUsize,
    os::unix::fs::FileExt,
};

/// What is left to the guest's kernel.
const LEFT: usize = 16 << 20;

fn main() {
    if let Err(error) = run() {
        say(&format!("error: {error:#}"));
    }
    // SAFETY: Integers only. The guest ends here.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
}

fn say(text: &str) {
    println!("{PREFIX}{text}");
}

fn run() -> Result<()> {
    // SAFETY: Strings that end with a zero byte, and no data.
    let mounted = unsafe {
        libc::mount(
            c"proc".as_ptr(),
            c"/proc".as_ptr(),
            c"proc".as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    ensure!(mounted == 0, "no /proc");
    let free = fs::read_to_string("/proc/meminfo")?;
    let free = free.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let free = free.and_then(|l| l.split_whitespace().next());
    let free = free.context("MemAvailable")?.parse::<usize>()? * 1024;
    let mut memory = Memory::new(free.saturating_sub(LEFT) / PAGE)?;
    for page in 0..memory.pages {
        memory.write(page);
    }
    ensure!(
        memory.wrong(None) == 0,
        "memory does not keep what it is given"
    );
    say(&format!("filled {} pages", memory.pages));

    for question in stdin().lock().lines() {
        match question?.trim() {
            "where" => say(&format!("at {}", memory.physical(PAGE_ASKED)?)),
            "look" => say(&memory.look()),
            "write" => {
                memory.write(PAGE_ASKED);
                say("written");
            }
            "end" => return Ok(()),
            other => bail!("not a question: {other}"),
        }
    }
    bail!("nobody asks any more");
}

struct Memory {
    bytes: &'static mut [u8],
    pages: usize,
}

impl Memory {
    fn new(pages: usize) -> Result<Self> {
        ensure!(pages > PAGE_ASKED, "only {pages} pages are free");
        let size = NonZeroUsize::new(pages * PAGE).context("no memory")?;
        // Pages stay where they are.
        mlockall(MlockAllFlags::MCL_FUTURE)?;
        // SAFETY: A fresh private mapping that is never unmapped.
        let bytes = unsafe {
            let start = mmap_anonymous(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )?;
            std::slice::from_raw_parts_mut(start.as_ptr().cast(), size.get())
        };
        Ok(Self { bytes, pages })
    }

    fn page(&self, page: usize) -> &[u8] {
        &self.bytes[page * PAGE..][..PAGE]
    }

    fn write(&mut self, page: usize) {
        self.bytes[page * PAGE..][..PAGE].copy_from_slice(pattern(page));
    }

    /// How many pages are not as they were written, beside one.
    fn wrong(&self, beside: Option<usize>) -> usize {
        (0..self.pages)
            .filter(|page| Some(*page) != beside && self.page(*page) != pattern(*page))
            .count()
    }

    /// Its guest-physical address.
    fn physical(&self, page: usize) -> Result<u64> {
        let mut entry = [0; 8];
        let number = self.page(page).as_ptr() as usize / PAGE;
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, number as u64 * 8)?;
        let entry = u64::from_ne_bytes(entry);
        ensure!(entry >> 63 == 1, "not present: {entry:#x}");
        Ok((entry & ((1 << 55) - 1)) * PAGE as u64)
    }

    /// Which part of the page is zero, whether the rest of it is as it was, and all other pages.
    fn look(&self) -> String {
        let (found, written) = (self.page(PAGE_ASKED), pattern(PAGE_ASKED));
        let first = found.iter().position(|b| *b == 0).unwrap_or(0);
        let zeros = found[first..].iter().take_while(|b| **b == 0).count();
        let end = first + zeros;
        let kept = found[..first] == written[..first] && found[end..] == written[end..];
        format!(
            "zeros {first} to {end}, the page's rest {}, {} other pages wrong",
            if kept { "kept" } else { "wrong" },
            self.wrong(Some(PAGE_ASKED))
        )
    }
}
