// SPDX-License-Identifier: GPL-2.0
//! VMMs as people use them run Linux on gmem: an unmodified QEMU, and one of rust-vmm's crates.
//!
//! The guest fills its memory, and a page is punched out of it while it runs. Three sides must agree
//! on every byte: the guest's program, the file by `read()`, and what was asked.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{self, allocated, info_of, punch, HUGE, PAGE},
    guest::linux::{pattern, qemu::Qemu, rust_vmm::RustVmm, Silent, Vmm, MEMORY, PAGE_ASKED},
    ktap,
    module::{Kvmate, DEBUGFS},
    storm,
};
use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[("qemu", qemu), ("rust_vmm", rust_vmm)])
}

fn qemu() -> Result<()> {
    linux_on_gmem(Qemu::start)
}

fn rust_vmm() -> Result<()> {
    linux_on_gmem(RustVmm::start)
}

/// How often a guest is tried that does not answer. A wrong answer counts at once.
const ATTEMPTS: usize = 4;

/// `FileHugePages` in `/proc/meminfo`: bytes in 2 MiB folios of files, all of them.
fn file_huge_pages() -> Result<usize> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("FileHugePages:"));
    let number = line.and_then(|l| l.split_whitespace().next());
    Ok(number.context("FileHugePages")?.parse::<usize>()? * 1024)
}

/// How many 2 MiB mappings KVM has for the only VM of that process.
fn pages_2m(process: u32) -> Result<u64> {
    let prefix = format!("{process}-");
    for entry in fs::read_dir("/sys/kernel/debug/kvm")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let number = fs::read_to_string(entry.path().join("pages_2m"))?;
            return Ok(number.trim().parse()?);
        }
    }
    anyhow::bail!("process {process} has no VM in KVM's debugfs")
}

fn page_at(file: &File, offset: u64) -> Result<Vec<u8>> {
    let mut page = vec![0; PAGE];
    file.read_exact_at(&mut page, offset)?;
    Ok(page)
}

fn linux_on_gmem<V: Vmm>(start: fn(&File) -> Result<V>) -> Result<()> {
    for _ in 1..ATTEMPTS {
        match attempt(start) {
            Err(error) if error.is::<Silent>() => println!("# once more: {error}"),
            result => return result,
        }
    }
    attempt(start)
}

fn attempt<V: Vmm>(start: fn(&File) -> Result<V>) -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let before = file_huge_pages()?;
    let file = gmem::create(MEMORY, 0)?;
    let mut vmm = start(&file)?;
    let filled = vmm.console().answer()?;
    let pages = filled
        .strip_prefix("filled ")
        .and_then(|rest| rest.strip_suffix(" pages"))
        .with_context(|| format!("the guest: {filled}"))?
        .parse::<usize>()?;
    ensure!(pages * PAGE >= MEMORY / 2, "only {pages} pages were filled");

    // It runs on gmem and nothing else, 2 MiB at a time on both sides.
    let huge = info_of(&file, "folios_order9")?;
    ensure_eq!(
        allocated(&file)?,
        huge as usize * HUGE,
        "not in 2 MiB folios"
    );
    ensure!(
        allocated(&file)? >= pages * PAGE,
        "{huge} folios hold {pages} pages"
    );
    ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    ensure_eq!(
        file_huge_pages()? - before,
        allocated(&file)?,
        "FileHugePages"
    );
    let mapped = pages_2m(vmm.process())?;
    ensure!(
        mapped as usize * HUGE >= pages * PAGE * 9 / 10,
        "KVM maps {mapped} of {huge} folios as a whole"
    );

    for (from, to) in [(0, PAGE), (101, 300), (0, PAGE)] {
        let place = vmm.console().ask("where")?;
        let at = place.strip_prefix("at ").and_then(|at| at.parse().ok());
        let at: u64 = at.with_context(|| format!("the guest: {place}"))?;
        ensure_eq!(
            page_at(&file, at)?,
            pattern(PAGE_ASKED),
            "the guest's page in the file"
        );
        let had = allocated(&file)?;
        punch(&file, at as usize + from, to - from)?;
        let freed = if to - from == PAGE { PAGE } else { 0 };
        ensure_eq!(
            had - allocated(&file)?,
            freed,
            "what the hole {from}..{to} freed"
        );
        ensure_eq!(
            vmm.console().ask("look")?,
            format!("zeros {from} to {to}, the page's rest kept, 0 other pages wrong"),
            "the guest after the hole {from}..{to}"
        );
        ensure_eq!(vmm.console().ask("write")?, "written", "the guest");
        ensure_eq!(
            page_at(&file, at)?,
            pattern(PAGE_ASKED),
            "the page written again"
        );
        ensure_eq!(allocated(&file)?, had, "what it has then");
    }
    ensure_eq!(info_of(&file, "punch_kept_unsplit")?, 0, "pages kept");

    vmm.console().end()?;
    vmm.ended()?;
    let folder = format!("{DEBUGFS}/gmem/{}", file.metadata()?.ino());
    ensure!(Path::new(&folder).exists(), "{folder} is gone");
    drop(file);
    // khugepaged may have it for a moment.
    storm::until("the file is gone", || {
        Ok(!Path::new(&folder).exists() && file_huge_pages()? == before)
    })?;
    kvmate.unload()
}
