// SPDX-License-Identifier: GPL-2.0
//! gmem while memory is short: each allocation on each path is made to fail in turn, by the debug
//! kernel's fault injection. The outcome is right, or a clean error or `SIGBUS`; never a wrong byte, and
//! nothing is left behind.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{
        self, allocated,
        child::{self, Ended},
        errno, fallocate, info_of,
        inject::{self, each_site, Injection, Nth},
        memory::{meminfo, Before},
        punch,
        shape::{self, Shape},
        Map, HUGE, PAGE,
    },
    ktap,
    module::{Kvmate, DEBUGFS},
};
use kvmate_uapi::KVMATE_GMEM_SMALL;
use nix::{errno::Errno, libc, sys::signal::Signal};
use std::{
    fs::{self, File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::FileExt},
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("create", create),
        ("open_and_map", open_and_map),
        ("allocate", allocate),
        ("faults", faults),
        ("writes_and_reads", writes_and_reads),
        ("punches", punches),
        ("nothing_to_split_with", nothing_to_split_with),
        ("no_page_at_all", no_page_at_all),
        ("splits_and_merges", splits_and_merges),
        ("nothing_to_reshape_with", nothing_to_reshape_with),
    ])
}

/// With kvmate and fault injection, and as much memory in use after as before.
fn with(test: impl Fn(&Injection) -> Result<()>) -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let injection = Injection::new()?;
    let (before, huge) = (Before::now()?, meminfo("FileHugePages")?);
    test(&injection)?;
    before.is_now()?;
    // Others have few, if any.
    let more = meminfo("FileHugePages")? - huge;
    ensure!(more < 2 * HUGE as i64, "{more} bytes more of huge pages");
    drop(injection);
    kvmate.unload()
}

/// How many sites failed, and that there were at least so many.
fn told(what: &str, sites: u32, least: u32) -> Result<()> {
    println!("# {what}: {sites} sites");
    ensure!(sites >= least, "{what}: only {sites} sites that can fail");
    Ok(())
}

fn no_memory(error: Option<Errno>) -> bool {
    matches!(error, None | Some(Errno::ENOMEM))
}

fn create() -> Result<()> {
    with(|_| {
        let sites = each_site(
            || Ok(()),
            |()| gmem::create_as(&gmem::wish(HUGE, 0)),
            |(), made| {
                ensure!(no_memory(made.as_ref().err().copied()), "{made:?}");
                if let Ok(file) = made {
                    file.write_all_at(b"x", 5)?;
                    ensure_eq!(gmem::bytes(&file)?[5], b'x', "what was written");
                    return Ok(());
                }
                let left = fs::read_dir(format!("{DEBUGFS}/gmem"))?.count();
                ensure_eq!(left, 0, "folders that are left");
                Ok(())
            },
        )?;
        told("create", sites, 10)
    })
}

fn open_and_map() -> Result<()> {
    with(|_| {
        let file = gmem::create(HUGE, 0)?;
        file.write_all_at(b"x", 0)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let sites = each_site(
            || Ok(()),
            |()| OpenOptions::new().read(true).write(true).open(&path),
            |(), opened| {
                let refused = opened.as_ref().err().and_then(|e| e.raw_os_error());
                ensure!(no_memory(refused.map(Errno::from_raw)), "{opened:?}");
                Ok(())
            },
        )?;
        told("open", sites, 1)?;
        let sites = each_site(
            || Ok(()),
            |()| gmem::mmap(&file, HUGE, libc::PROT_READ, libc::MAP_SHARED),
            |(), mapped| {
                ensure!(no_memory(mapped.err()), "{mapped:?}");
                if let Ok(start) = mapped {
                    // SAFETY: Just mapped, and readable.
                    ensure_eq!(unsafe { start.read_volatile() }, b'x', "what is mapped");
                    // SAFETY: Not used any more.
                    Errno::result(unsafe { libc::munmap(start.cast(), HUGE) })?;
                }
                Ok(())
            },
        )?;
        told("mmap", sites, 1)
    })
}

fn allocate() -> Result<()> {
    with(|_| {
        for (flags, size) in [
            (0, HUGE),
            (0, HUGE + 3 * PAGE),
            (KVMATE_GMEM_SMALL, 20 * PAGE),
        ] {
            let (mut refused, mut smaller) = (0, 0);
            let sites = each_site(
                || {
                    let file = gmem::create(size, flags)?;
                    // One page of data, and all else is to be had.
                    fallocate(&file, 0, (size - PAGE) as i64, PAGE as i64)?;
                    file.write_all_at(b"data", size as u64 - 4)?;
                    Ok(file)
                },
                |file| fallocate(file, 0, 0, size as i64),
                |file, done| {
                    ensure!(no_memory(done.err()), "{done:?}");
                    refused += u32::from(done.is_err());
                    smaller += info_of(&file, "fallbacks")?;
                    fallocate(&file, 0, 0, size as i64).context("once more")?;
                    ensure_eq!(allocated(&file)?, size, "st_blocks then");
                    let mut expected = vec![0; size];
                    expected[size - 4..].copy_from_slice(b"data");
                    ensure!(gmem::bytes(&file)? == expected, "bytes then");
                    Ok(())
                },
            )?;
            told(&format!("fallocate {size:#x}, flags {flags}"), sites, 1)?;
            // A large folio is not to be had: smaller ones are. A page is not: ENOMEM.
            ensure!(
                if flags == 0 { smaller > 0 } else { refused > 0 },
                "{smaller}, {refused}"
            );
        }
        Ok(())
    })
}

/// Touches a page in a child, the `n`th site failing; it ends with 0 if there was none such.
fn touch(map: &Map, at: usize, n: u32) -> Result<Ended> {
    child::run(|| {
        let Ok(nth) = Nth::new() else {
            return 2;
        };
        i32::from(nth.fail(n, || map.write(at, 7)).1)
    })
}

fn faults() -> Result<()> {
    with(|_| {
        for flags in [0, KVMATE_GMEM_SMALL] {
            let (mut sites, mut signals) = (0, 0);
            for n in 1..500 {
                let file = gmem::create(2 * HUGE, flags)?;
                let map = Map::new(&file, 2 * HUGE)?;
                let ended = touch(&map, HUGE + 5, n)?;
                let mut expected = vec![0; 2 * HUGE];
                match ended {
                    Ended::By(0 | 1) => expected[HUGE + 5] = 7,
                    Ended::Killed(Signal::SIGBUS) => signals += 1,
                    other => anyhow::bail!("site {n}: {other:?}"),
                }
                ensure!(gmem::bytes(&file)? == expected, "site {n}: bytes by read()");
                ensure!(map.copy(0, 2 * HUGE) == expected, "site {n}: bytes mapped");
                if ended == Ended::By(0) {
                    break;
                }
                sites = n;
            }
            told(&format!("fault, flags {flags}"), sites, 2)?;
            ensure!(
                signals > 0 || flags == 0,
                "no SIGBUS when a page was not to be had"
            );
        }
        Ok(())
    })
}

fn writes_and_reads() -> Result<()> {
    with(|_| {
        let data: Vec<u8> = (0..5 * PAGE).map(|i| (i % 251) as u8 + 1).collect();
        for flags in [0, KVMATE_GMEM_SMALL] {
            let sites = each_site(
                || gmem::create(HUGE, flags),
                |file| file.write_at(&data, 100),
                |file, written| {
                    let length = match written {
                        Ok(length) => length,
                        Err(_) => {
                            ensure!(no_memory(errno(written)), "another error");
                            0
                        }
                    };
                    let mut expected = vec![0; HUGE];
                    expected[100..100 + length].copy_from_slice(&data[..length]);
                    ensure!(gmem::bytes(&file)? == expected, "bytes, {length} written");
                    Ok(())
                },
            )?;
            told(&format!("write, flags {flags}"), sites, 1)?;
            let mut back = vec![1; 5 * PAGE];
            let sites = each_site(
                || {
                    let file = gmem::create(HUGE, flags)?;
                    file.write_all_at(&data[..PAGE], 2 * PAGE as u64)?;
                    Ok(file)
                },
                |file| file.read_at(&mut back, 0),
                |_, read| {
                    ensure_eq!(read?, 5 * PAGE, "bytes read");
                    Ok(())
                },
            )?;
            println!("# read, flags {flags}: {sites} sites");
        }
        Ok(())
    })
}

fn punches() -> Result<()> {
    with(|_| {
        let pattern: Vec<u8> = (0..2 * HUGE).map(|i| (i % 251) as u8 + 1).collect();
        for (offset, length) in [(HUGE / 2 + 7, HUGE), (3 * PAGE, PAGE), (0, HUGE), (5, 1)] {
            let mut kept = 0;
            let sites = each_site(
                || {
                    let file = gmem::create(2 * HUGE, 0)?;
                    file.write_all_at(&pattern, 0)?;
                    let map = Map::new(&file, 2 * HUGE)?;
                    map.read(0);
                    Ok((file, map))
                },
                |(file, _)| punch(file, offset, length),
                |(file, map), punched| {
                    punched.context("a punch needs no memory")?;
                    let mut expected = pattern.clone();
                    expected[offset..offset + length].fill(0);
                    ensure!(gmem::bytes(&file)? == expected, "bytes");
                    let whole = (offset + length) / PAGE * PAGE;
                    let whole = whole.saturating_sub(offset.div_ceil(PAGE) * PAGE);
                    let stays = info_of(&file, "punch_kept_unsplit")? as usize;
                    ensure_eq!(allocated(&file)?, 2 * HUGE - whole + stays, "st_blocks");
                    ensure_eq!(
                        info_of(&file, "punch_kept_referenced")?,
                        0,
                        "for a reference"
                    );
                    ensure!(map.copy(0, 2 * HUGE) == expected, "bytes mapped");
                    kept += stays;
                    Ok(())
                },
            )?;
            println!("# punch of {length:#x} at {offset:#x}: {sites} sites, {kept} bytes kept");
        }
        Ok(())
    })
}

/// A folio cannot be split for want of memory, however often it is tried: its part of the hole is
/// zeroed, and kept.
fn nothing_to_split_with() -> Result<()> {
    with(|injection| {
        let pattern: Vec<u8> = (0..2 * HUGE).map(|i| (i % 251) as u8 + 1).collect();
        for (offset, length) in [(HUGE / 2 + 7, HUGE), (3 * PAGE, PAGE), (5, 2 * HUGE - 10)] {
            let file = gmem::create(2 * HUGE, 0)?;
            file.write_all_at(&pattern, 0)?;
            let all = injection.all_objects()?;
            let ended = child::run(|| match inject::willing() {
                Ok(willing) if inject::fail_from_now(&willing) => punch(&file, offset, length)
                    .err()
                    .map_or(0, |error| error as i32),
                _ => 99,
            })?;
            drop(all);
            ensure_eq!(ended, Ended::By(0), "the punch");
            let mut expected = pattern.clone();
            expected[offset..offset + length].fill(0);
            ensure!(gmem::bytes(&file)? == expected, "bytes, {offset:#x}");
            let whole = (offset + length) / PAGE * PAGE - offset.div_ceil(PAGE) * PAGE;
            let kept = info_of(&file, "punch_kept_unsplit")? as usize;
            ensure_eq!(
                allocated(&file)?,
                2 * HUGE - whole + kept,
                "st_blocks, {offset:#x}"
            );
            ensure!(kept > 0, "all was split without memory, {offset:#x}");
            ensure_eq!(
                info_of(&file, "punch_kept_referenced")?,
                0,
                "for a reference"
            );
            punch(&file, offset, length)?;
            ensure_eq!(allocated(&file)?, 2 * HUGE - whole, "st_blocks with memory");
            ensure!(gmem::bytes(&file)? == expected, "bytes then, {offset:#x}");
        }
        Ok(())
    })
}

/// Not a single page is to be had.
fn no_page_at_all() -> Result<()> {
    with(|injection| {
        let size = 2 * HUGE;
        let file = gmem::create(size, 0)?;
        let map = Map::new(&file, size)?;
        fallocate(&file, 0, 0, PAGE as i64)?;
        file.write_all_at(&[9; PAGE], 0)?;
        fallocate(&file, 0, HUGE as i64, PAGE as i64)?;
        let before = allocated(&file)?;
        let outcome = |what: &dyn Fn(&File) -> i32| -> Result<Ended> {
            child::run(|| {
                let Ok(willing) = inject::willing() else {
                    return 97;
                };
                // What the child needs itself it has before: its stack, and page tables.
                map.read(0);
                map.read(HUGE);
                if !inject::fail_from_now(&willing) {
                    return 99;
                }
                what(&file)
            })
        };
        let all = injection.all_pages()?;
        let code = |result: nix::Result<()>| result.err().map_or(0, |error| error as i32);
        let full = outcome(&|file| code(fallocate(file, 0, 0, size as i64)))?;
        ensure_eq!(full, Ended::By(Errno::ENOMEM as i32), "fallocate");
        let full = outcome(
            &|file| match file.write_at(b"x", HUGE as u64 + 9 * PAGE as u64) {
                Ok(_) => 0,
                Err(error) => error.raw_os_error().unwrap_or(98),
            },
        )?;
        ensure_eq!(full, Ended::By(Errno::ENOMEM as i32), "write");
        let full = outcome(&|_| {
            map.write(HUGE + 9 * PAGE, 1);
            0
        })?;
        ensure_eq!(full, Ended::Killed(Signal::SIGBUS), "a fault");
        drop(all);
        ensure_eq!(allocated(&file)?, before, "st_blocks");
        fallocate(&file, 0, 0, size as i64)?;
        let mut expected = vec![0; size];
        expected[..PAGE].fill(9);
        ensure!(gmem::bytes(&file)? == expected, "bytes in the end");
        Ok(())
    })
}

fn splits_and_merges() -> Result<()> {
    with(|_| {
        // The cache's tree needs memory for folios of order 5 and less in the place of larger ones.
        for (shape, size, order) in [(Shape::Split, HUGE, 5), (Shape::Merge, 16 * PAGE, 4)] {
            let pattern: Vec<u8> = (0..size)
                .map(|i| (i / PAGE * 16 + i % 15 + 1) as u8)
                .collect();
            let sites = each_site(
                || {
                    let file = gmem::create(size, 0)?;
                    file.write_all_at(&pattern, 0)?;
                    if shape == Shape::Merge {
                        shape::split(&file, 0, size, 0)?;
                    }
                    Ok(file)
                },
                |file| shape::call(file, shape, &mut shape::range(0, size, order)),
                |file, done| {
                    ensure!(no_memory(done.err()), "{shape:?}: {done:?}");
                    ensure!(gmem::bytes(&file)? == pattern, "{shape:?}: bytes");
                    ensure_eq!(allocated(&file)?, size, "{shape:?}: st_blocks");
                    let mut again = shape::range(0, size, order);
                    shape::call(&file, shape, &mut again).context("once more")?;
                    ensure!(gmem::bytes(&file)? == pattern, "{shape:?}: bytes then");
                    let all = (size / PAGE) as u64 >> order;
                    ensure_eq!(gmem::folios(&file)?[order as usize], all, "{shape:?}");
                    Ok(())
                },
            )?;
            told(&format!("{shape:?}"), sites, 1)?;
        }
        Ok(())
    })
}

/// Neither nodes of the cache's tree nor pages are to be had: `ENOMEM`, told and counted as that, and
/// nothing is lost.
fn nothing_to_reshape_with() -> Result<()> {
    with(|injection| {
        let pattern: Vec<u8> = (0..HUGE).map(|i| (i % 251) as u8 + 1).collect();
        let file = gmem::create(HUGE, 0)?;
        file.write_all_at(&pattern, 0)?;
        let refused = |shape, order: u32, counted: &str| -> Result<()> {
            let ended = child::run(|| match inject::willing() {
                Ok(willing) if inject::fail_from_now(&willing) => {
                    let range = &mut shape::range(0, HUGE, order);
                    let error = shape::call(&file, shape, range).err();
                    // What it was refused for is told, too.
                    let told = error.is_none() || range.refused.length > 0;
                    error.map_or(0, |error| if told { error as i32 } else { 98 })
                }
                _ => 99,
            })?;
            ensure_eq!(ended, Ended::By(Errno::ENOMEM as i32), "{shape:?}");
            ensure!(gmem::bytes(&file)? == pattern, "bytes, {shape:?}");
            ensure_eq!(allocated(&file)?, HUGE, "st_blocks, {shape:?}");
            ensure_eq!(info_of(&file, counted)?, 1, "{counted}");
            Ok(())
        };
        let nodes = injection.all_objects()?;
        refused(Shape::Split, 0, "split_failed_memory")?;
        drop(nodes);
        ensure_eq!(
            info_of(&file, "split_failed_referenced")?,
            0,
            "for a reference"
        );
        shape::split(&file, 0, HUGE, 0).context("with memory")?;
        let pages = injection.all_pages()?;
        refused(Shape::Merge, 9, "merge_failed_memory")?;
        drop(pages);
        shape::merge(&file, 0, HUGE, 9).context("with memory")?;
        ensure!(gmem::bytes(&file)? == pattern, "bytes in the end");
        Ok(())
    })
}
