// SPDX-License-Identifier: GPL-2.0
//! What it costs to take huge folios apart and to put them together again: gmem beside shmem with huge
//! pages, which splits where it is punched and merges by `MADV_COLLAPSE`.
//!
//! A sample is of a new file that is mapped by PMD. That each step did all that it is to do, with
//! nothing fallen back to small pages, is read off `smaps`, `st_blocks` and gmem's `info`; each ends with
//! memory that is mapped by PMD again where it says so, whatever that takes.

use super::{
    memory::{Holder, Setting, SHMEM_ENABLED},
    memory_table::{Figure, EXACT},
    sample::Cost,
    table::{print, row, spread},
};
use crate::{
    gmem::{self, allocated, folios, info_of, punch, shape, Map, HUGE, PAGE},
    module::Kvmate,
};
use anyhow::{ensure, Context, Result};
use nix::{errno::Errno, libc};
use std::{fs, fs::File};

/// Who is measured.
pub const HOLDERS: [Holder; 2] = [Holder::Shmem, Holder::Gmem];

/// What is done with each 2 MiB, and how shmem does it.
const STEPS: [[&str; 3]; 5] = [
    [
        "punch 4 KiB",
        "fallocate(FALLOC_FL_PUNCH_HOLE)",
        "fallocate(FALLOC_FL_PUNCH_HOLE)",
    ],
    [
        "merge what that left, until mapped by PMD",
        "MADV_COLLAPSE",
        "KVMATE_GMEM_MERGE with KVMATE_GMEM_FILL, one touch",
    ],
    [
        "split a page of 4 KiB off",
        "a punch, which loses the page",
        "KVMATE_GMEM_SPLIT, which loses nothing",
    ],
    ["split into pages of 4 KiB", "cannot", "KVMATE_GMEM_SPLIT"],
    [
        "merge mapped pages of 4 KiB, until mapped by PMD",
        "MADV_COLLAPSE",
        "KVMATE_GMEM_MERGE, MADV_COLLAPSE",
    ],
];

/// What each of the steps cost; none: that holder cannot do it.
type Costs = [Option<Cost>; STEPS.len()];

/// What was measured of the holders in turn.
pub type Pass = Vec<(Holder, Result<Costs, String>)>;

/// What decides which pages are huge; the last one is set out of the way.
const KNOBS: [&str; 5] = [
    "/sys/kernel/mm/transparent_hugepage/enabled",
    SHMEM_ENABLED,
    "/sys/kernel/mm/transparent_hugepage/defrag",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag",
    KHUGEPAGED,
];
const KHUGEPAGED: &str = "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs";

/// Where in each 2 MiB.
const AT: usize = 77 * PAGE;

/// Nobody else makes huge pages while this is there.
fn khugepaged_sleeps() -> Result<Setting> {
    Setting::new(KHUGEPAGED, "4000000000")
}

/// Print what is set while this is measured.
pub fn print_knobs() -> Result<()> {
    let _sleeps = khugepaged_sleeps()?;
    let _always = Setting::new(SHMEM_ENABLED, "always")?;
    for knob in KNOBS {
        let value = fs::read_to_string(knob).context(knob)?;
        println!("{knob}: {}", value.trim());
    }
    Ok(())
}

/// Measure each holder once, over files of so many bytes.
pub fn pass(size: usize) -> Pass {
    let measured = HOLDERS.map(|holder| {
        let costs = match holder {
            Holder::Gmem => of_gmem(size),
            _ => of_shmem(size),
        };
        (holder, costs.map_err(|error| format!("{error:#}")))
    });
    measured.into_iter().collect()
}

/// Whether something could not be measured.
pub fn failed(pass: &Pass) -> bool {
    pass.iter().any(|(_, result)| result.is_err())
}

fn cost(size: usize, work: impl FnOnce() -> Result<()>) -> Result<Option<Cost>> {
    let before = Cost::start();
    work()?;
    Ok(Some(before() * (HUGE as f64 / size as f64)))
}

fn each_huge(size: usize, work: impl FnMut(usize) -> Result<()>) -> Result<()> {
    (0..size).step_by(HUGE).try_for_each(work)
}

fn punch_each(file: &File, size: usize) -> Result<()> {
    each_huge(size, |at| Ok(punch(file, at + AT, PAGE)?))
}

fn touch(map: &Map, size: usize, step: usize) {
    for at in (0..size).step_by(step) {
        map.read(at);
    }
}

fn collapse(map: &Map, size: usize) -> Result<()> {
    let start = map.address() as *mut libc::c_void;
    // SAFETY: Our own mapping, whose content stays.
    Errno::result(unsafe { libc::madvise(start, size, libc::MADV_COLLAPSE) })
        .context("MADV_COLLAPSE")?;
    Ok(())
}

/// All of a file is there but for so much, and so much of it is mapped by PMD.
fn has(holder: Holder, file: &File, map: &Map, holes: usize, by_pmd: usize) -> Result<()> {
    let size = file.metadata()?.len() as usize;
    let there = allocated(file)?;
    ensure!(there == size - holes, "{there} of {size} allocated");
    let (kind, mapped) = (holder.mapped_as(), map.smaps(holder.mapped_as())?);
    ensure!(mapped == by_pmd, "{kind} is {mapped}, not {by_pmd}");
    Ok(())
}

/// All of its bytes are one, but those of the holes are zero.
fn is_whole(file: &File, size: usize, punched: bool) -> Result<()> {
    let mut expected = vec![1; HUGE];
    if punched {
        expected[AT..AT + PAGE].fill(0);
    }
    let mut bytes = vec![0; HUGE];
    each_huge(size, |at| {
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, at as u64)?;
        ensure!(bytes == expected, "not what was written, at {at:#x}");
        Ok(())
    })
}

fn of_shmem(size: usize) -> Result<Costs> {
    let _sleeps = khugepaged_sleeps()?;
    let shmem = Holder::Shmem;
    let holes = size / HUGE * PAGE;
    let held = shmem.hold(size)?;
    let (file, map) = (&held.file, Map::new(&held.file, size)?);
    map.fill(0, size, 1);
    has(shmem, file, &map, 0, size)?;
    let punched = cost(size, || punch_each(file, size))?;
    has(shmem, file, &map, holes, 0)?;
    let merged = cost(size, || collapse(&map, size))?;
    has(shmem, file, &map, 0, size)?;
    is_whole(file, size, true)?;
    drop((map, held));
    // Small pages, but mapped where huge ones can be: each is only so as this is set.
    let _always = Setting::new(SHMEM_ENABLED, "always")?;
    let file = gmem::memfd(size)?;
    let map = Map::new(&file, size)?;
    let never = Setting::new(SHMEM_ENABLED, "never")?;
    map.fill(0, size, 1);
    has(shmem, &file, &map, 0, 0)?;
    drop(never);
    let merged_small = cost(size, || collapse(&map, size))?;
    has(shmem, &file, &map, 0, size)?;
    is_whole(&file, size, false)?;
    Ok([punched, merged, punched, None, merged_small])
}

fn of_gmem(size: usize) -> Result<Costs> {
    let _sleeps = khugepaged_sleeps()?;
    let gmem = Holder::Gmem;
    let (holes, number) = (size / HUGE * PAGE, (size / HUGE) as u64);
    let _kvmate = Kvmate::load("")?;
    let file = &gmem::create(size, 0)?;
    let map = Map::new(file, size)?;
    map.fill(0, size, 1);
    let all = |order: usize, count: u64| -> Result<()> {
        let folios = folios(file)?[order];
        ensure!(
            folios == count,
            "{folios} folios of order {order}, not {count}"
        );
        Ok(())
    };
    let is_huge = || {
        all(9, number)?;
        has(gmem, file, &map, 0, size)
    };
    is_huge()?;
    let punched = cost(size, || punch_each(file, size))?;
    has(gmem, file, &map, holes, 0)?;
    let merged = cost(size, || {
        shape::merge_and_fill(file, 0, size, 9)?;
        touch(&map, size, HUGE);
        Ok(())
    })?;
    is_huge()?;
    is_whole(file, size, true)?;
    each_huge(size, |at| {
        map.fill(at + AT, PAGE, 1);
        Ok(())
    })?;
    let split = cost(size, || {
        each_huge(size, |at| shape::split(file, at + AT, PAGE, 0).map(drop))
    })?;
    // The page itself, its neighbour, and a ladder.
    all(0, 2 * number)?;
    has(gmem, file, &map, 0, 0)?;
    shape::merge(file, 0, size, 9)?;
    touch(&map, size, HUGE);
    is_huge()?;
    let all_split = cost(size, || shape::split(file, 0, size, 0).map(drop))?;
    all(0, 512 * number)?;
    touch(&map, size, PAGE);
    has(gmem, file, &map, 0, 0)?;
    let merged_small = cost(size, || {
        shape::merge(file, 0, size, 9)?;
        collapse(&map, size)
    })?;
    is_huge()?;
    is_whole(file, size, false)?;
    for name in ["fallbacks", "punch_kept_unsplit", "punch_refused"] {
        let found = info_of(file, name)?;
        ensure!(found == 0, "{name}: {found}");
    }
    Ok([punched, merged, split, all_split, merged_small])
}

/// Medians of the passes, and gmem's ratio to shmem. Tells in how many steps that is more than
/// `target`.
pub fn show(passes: &[Pass], figure: Figure, target: f64) -> usize {
    let unit = match figure {
        Figure::Instructions => "instructions/2 MiB",
        Figure::Nanoseconds => "ns/2 MiB",
    };
    let mut missed = 0;
    for (step, [what, shmem, gmem]) in STEPS.into_iter().enumerate() {
        println!("\neach 2 MiB: {what}");
        println!("{}: {shmem}", Holder::Shmem.name());
        println!("{}: {gmem}", Holder::Gmem.name());
        let figures = |holder: Holder| {
            let mine = passes.iter().flatten().filter(|(h, _)| *h == holder);
            let costs = mine.filter_map(|(_, result)| result.as_ref().ok()?[step]);
            spread(costs.map(|cost| figure.of(&cost)).collect())
        };
        let beside = figures(Holder::Shmem).map(|(_, median, _)| median);
        let mut rows = vec![row(&[
            "holder", unit, "lowest", "highest", "to shmem", "target", "",
        ])];
        for holder in HOLDERS {
            let mut cells = row(&[holder.name(), "-", "-", "-", "-", "-"]);
            let mut remark = String::new();
            if let Some((lowest, median, highest)) = figures(holder) {
                cells[1] = format!("{median:.0}");
                cells[2] = format!("{lowest:.0}");
                cells[3] = format!("{highest:.0}");
                if let Some(ratio) = beside.map(|beside| median / beside) {
                    cells[4] = format!("{ratio:.4}");
                    if holder == Holder::Gmem && target.is_finite() {
                        let over = ratio - target - EXACT;
                        missed += usize::from(over > 0.0);
                        cells[5] = format!("{target} +{EXACT}");
                        remark = match over > 0.0 {
                            true => format!("MISSED by {over:.4}"),
                            false => "ok".into(),
                        };
                    }
                }
            }
            let mut mine = passes.iter().flatten().filter(|(h, _)| *h == holder);
            if let Some(why) = mine.find_map(|(_, result)| result.as_ref().err()) {
                remark = format!("FAILED: {why}");
            }
            cells.push(remark);
            rows.push(cells);
        }
        print(&rows);
    }
    missed
}
