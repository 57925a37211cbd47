// SPDX-License-Identifier: GPL-2.0
//! gmem tells what is where and who holds it: compared with what the test does and holds, and with
//! `/proc/kpagecount`.

use anyhow::{ensure, Result};
use kvmate_tests::{
    affinity::Affinity,
    ensure_eq,
    gmem::{
        self,
        guest::Guest,
        pins::{self, pin, By, Hold},
        punch, query, Map, HUGE, PAGE,
    },
    ktap,
    module::{Kvmate, Stop},
};
use kvmate_uapi::{
    kvmate_gmem_query, KVMATE_GMEM_DIRTY, KVMATE_GMEM_HOLE, KVMATE_GMEM_LOCKED, KVMATE_GMEM_MAPPED,
    KVMATE_GMEM_PINNED, KVMATE_GMEM_SMALL,
};
use nix::{errno::Errno, libc};
use std::{
    fs::File,
    io::Read,
    os::{fd::AsRawFd, unix::fs::FileExt},
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("bad_input", bad_input),
        ("folios_and_holes", folios_and_holes),
        ("mapped", mapped),
        ("held", held),
        ("locked", locked),
        ("sparse", sparse),
        ("paged", paged),
    ])
}

fn bad_input() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(2 * HUGE, 0)?;
    let mut room = [query::Record::default(); 2];
    let good = kvmate_gmem_query {
        offset: 0,
        length: HUGE as u64,
        records: room.as_mut_ptr() as u64,
        count: 2,
        flags: 0,
    };
    type Change = fn(&mut kvmate_gmem_query);
    let cases: [(&str, Change, Result<(), Errno>); 8] = [
        ("good", |_| (), Ok(())),
        ("odd offset", |q| q.offset = 1, Err(Errno::EINVAL)),
        ("odd length", |q| q.length = 4095, Err(Errno::EINVAL)),
        (
            "overflow",
            |q| (q.offset, q.length) = (u64::MAX - 4095, 8192),
            Err(Errno::EINVAL),
        ),
        ("a flag", |q| q.flags = 1, Err(Errno::EINVAL)),
        ("no room", |q| q.count = 0, Err(Errno::EINVAL)),
        ("no array", |q| q.records = 8, Err(Errno::EFAULT)),
        ("behind the end", |q| q.offset = 1 << 40, Ok(())),
    ];
    for (what, change, expected) in cases {
        let mut query = good;
        change(&mut query);
        ensure_eq!(query::ask(&file, &mut query), expected, "{what}");
    }
    let mut behind = kvmate_gmem_query {
        offset: 1 << 40,
        ..good
    };
    query::ask(&file, &mut behind)?;
    ensure_eq!((behind.count, behind.length), (0, 0), "behind the end");
    ensure_eq!(
        // SAFETY: No such call: the argument is not looked at.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), 0xe7ff, 0) }),
        Err(Errno::ENOTTY),
        "an unknown number"
    );
    let bad: *mut kvmate_gmem_query = std::ptr::null_mut();
    ensure_eq!(
        // SAFETY: The kernel checks the address.
        Errno::result(unsafe {
            libc::ioctl(file.as_raw_fd(), kvmate_uapi::KVMATE_GMEM_QUERY, bad)
        }),
        Err(Errno::EFAULT),
        "no argument"
    );
    drop(file);
    kvmate.unload()
}

/// Offset, length, order and flags of each record.
fn outline(records: &[query::Record]) -> Vec<(usize, usize, u32, u32)> {
    let outline = |r: &query::Record| (r.offset as usize, r.length as usize, r.order, r.flags);
    records.iter().map(outline).collect()
}

fn folios_and_holes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(4 * HUGE, 0)?;
    let whole = query::records(&file, 0, 4 * HUGE, 100)?;
    ensure_eq!(
        outline(&whole),
        [(0, 4 * HUGE, 0, KVMATE_GMEM_HOLE)],
        "an empty file"
    );
    file.write_all_at(b"x", HUGE as u64)?;
    file.write_all_at(b"x", 3 * HUGE as u64)?;
    punch(&file, HUGE + 4 * PAGE, 4 * PAGE)?;
    // What the split leaves: the 4 pages before the hole, and a ladder behind it.
    let mut expected = vec![
        (0, HUGE, 0, KVMATE_GMEM_HOLE),
        (HUGE, 4 * PAGE, 2, KVMATE_GMEM_DIRTY),
        (HUGE + 4 * PAGE, 4 * PAGE, 0, KVMATE_GMEM_HOLE),
    ];
    for order in 3..9 {
        let length = PAGE << order;
        expected.push((HUGE + length, length, order, KVMATE_GMEM_DIRTY));
    }
    expected.push((2 * HUGE, HUGE, 0, KVMATE_GMEM_HOLE));
    expected.push((3 * HUGE, HUGE, 9, KVMATE_GMEM_DIRTY));
    let all = query::records(&file, 0, 4 * HUGE, 100)?;
    ensure_eq!(outline(&all), expected, "after a punch");
    for record in &all {
        let pages = if record.flags & KVMATE_GMEM_HOLE == 0 {
            record.length as usize / PAGE
        } else {
            0
        };
        ensure_eq!(record.references as usize, pages, "{record:?}");
        ensure_eq!(record.expected as usize, pages, "{record:?}");
        ensure_eq!(record.mappings, 0, "{record:?}");
    }
    // One at a time gives the same, and so does debugfs.
    ensure_eq!(
        outline(&query::records(&file, 0, 4 * HUGE, 1)?),
        outline(&all),
        "one record a call"
    );
    ensure_eq!(outline(&query::map(&file)?), outline(&all), "debugfs' map");
    // A range in a folio and a hole: all of the folio, the hole as far as asked.
    let part = query::records(&file, 3 * HUGE + PAGE, PAGE, 9)?;
    ensure_eq!(
        outline(&part),
        [(3 * HUGE, HUGE, 9, KVMATE_GMEM_DIRTY)],
        "a part of a folio"
    );
    let part = query::records(&file, PAGE, 2 * PAGE, 9)?;
    ensure_eq!(
        outline(&part),
        [(PAGE, 2 * PAGE, 0, KVMATE_GMEM_HOLE)],
        "a part of a hole"
    );
    drop(file);
    kvmate.unload()
}

/// A record says so many references, expected ones and mappings, and these flags besides dirty.
fn says(file: &File, at: usize, numbers: [u32; 3], flags: u32, what: &str) -> Result<()> {
    let record = query::at(file, at)?;
    let found = [record.references, record.expected, record.mappings];
    ensure_eq!(found, numbers, "{what}: {record:?}");
    ensure_eq!(
        record.flags,
        flags | KVMATE_GMEM_DIRTY,
        "{what}: {record:?}"
    );
    Ok(())
}

fn mapped() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(HUGE, 0)?;
    let map = Map::new(&file, HUGE)?;
    map.write(5, 1);
    says(&file, 0, [513, 513, 1], KVMATE_GMEM_MAPPED, "mapped by PMD")?;
    ensure_eq!(query::mapped(&map, 0)?, 1, "kpagecount");
    let second = Map::new(&file, HUGE)?;
    second.read(0);
    says(&file, 0, [514, 514, 2], KVMATE_GMEM_MAPPED, "mapped twice")?;
    ensure_eq!(query::mapped(&map, 0)?, 2, "kpagecount of two");
    let mut guest = Guest::new(&map, HUGE)?;
    guest.exchange(64, 7)?;
    says(&file, 0, [514, 514, 2], KVMATE_GMEM_MAPPED, "and a guest")?;
    drop((guest, second));
    // SAFETY: Our own mapping.
    Errno::result(unsafe { libc::mlock(map.address() as *const _, HUGE) })?;
    says(&file, 0, [513, 513, 1], KVMATE_GMEM_MAPPED, "mlock")?;
    drop(map);
    says(&file, 0, [512, 512, 0], 0, "not mapped any more")?;
    drop(file);
    // Small pages: each counts for itself.
    let file = gmem::create(HUGE, KVMATE_GMEM_SMALL)?;
    let (map, second) = (Map::new(&file, HUGE)?, Map::new(&file, HUGE)?);
    for page in 0..4 {
        map.write(page * PAGE, 1);
        if page % 2 == 1 {
            second.read(page * PAGE);
        }
        let maps = 1 + page as u32 % 2;
        let record = query::at(&file, page * PAGE)?;
        ensure_eq!(record.mappings, maps, "{record:?}");
        ensure_eq!(record.expected, 1 + maps, "{record:?}");
        ensure_eq!(
            query::mapped(&map, page * PAGE)?,
            u64::from(maps),
            "kpagecount"
        );
    }
    drop((map, second, file));
    kvmate.unload()
}

fn held() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let _hold = Hold::load()?;
    // Else the list that the first pages are in may be of a processor that we have left.
    let _one = Affinity::one()?;
    for (flags, expected) in [(0, 513), (KVMATE_GMEM_SMALL, 2)] {
        let file = gmem::create(HUGE, flags)?;
        let map = Map::new(&file, HUGE)?;
        // More than a processor's list takes, so that none of the first ones is in it.
        map.fill(0, HUGE, 3);
        let at = 17 * PAGE;
        let mapped = KVMATE_GMEM_MAPPED;
        says(&file, at, [expected, expected, 1], mapped, "nobody")?;
        for by in pins::ALL {
            let held = pin(by, &map, at)?;
            let (more, pinned) = match (by, flags) {
                // A pin of a small page counts as 1024 references: GUP_PIN_COUNTING_BIAS.
                (By::Ring, KVMATE_GMEM_SMALL) => (1024, KVMATE_GMEM_PINNED),
                (By::Ring, _) => (1, KVMATE_GMEM_PINNED),
                _ => (1, 0),
            };
            let what = format!("held by {by:?}, flags {flags}");
            says(
                &file,
                at,
                [expected + more, expected, 1],
                mapped | pinned,
                &what,
            )?;
            if flags == KVMATE_GMEM_SMALL {
                says(
                    &file,
                    at + PAGE,
                    [expected, expected, 1],
                    mapped,
                    "the next",
                )?;
            }
            drop(held);
            says(&file, at, [expected, expected, 1], mapped, "let go")?;
        }
        drop((map, file));
    }
    kvmate.unload()
}

fn locked() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let hold = Hold::load()?;
    let file = gmem::create(HUGE, 0)?;
    let map = Map::new(&file, HUGE)?;
    map.write(0, 1);
    let stop = Stop::default();
    let seen = std::thread::scope(|scope| {
        let locker = scope.spawn(|| {
            while !stop.asked() {
                hold.lock(map.address(), 20_000)?;
            }
            anyhow::Ok(())
        });
        let _stop = stop.on_drop();
        for _ in 0..1_000_000 {
            let flags = query::at(&file, 0)?.flags;
            if flags & KVMATE_GMEM_LOCKED != 0 {
                return Ok(true);
            }
            ensure!(!locker.is_finished(), "nobody locks");
            std::thread::yield_now();
        }
        Ok(false)
    })?;
    ensure!(seen, "a locked folio is never told");
    says(&file, 0, [513, 513, 1], KVMATE_GMEM_MAPPED, "in the end")?;
    drop((map, file, hold));
    kvmate.unload()
}

fn sparse() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let size = 1 << 40;
    let file = gmem::create(size, 0)?;
    let places = [0, 77 * HUGE, size / 2, size - HUGE];
    for at in places {
        file.write_all_at(b"y", at as u64)?;
    }
    let all = query::records(&file, 0, size, 2)?;
    let folios: Vec<_> = all
        .iter()
        .filter(|r| r.order == 9)
        .map(|r| r.offset as usize)
        .collect();
    ensure_eq!(folios, places, "where the folios are");
    ensure_eq!(all.len(), 7, "folios and holes");
    ensure_eq!(
        all.iter().map(|r| r.length).sum::<u64>(),
        size as u64,
        "all lengths"
    );
    ensure_eq!(outline(&query::map(&file)?), outline(&all), "debugfs' map");
    drop(file);
    kvmate.unload()
}

fn paged() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(16 * HUGE, KVMATE_GMEM_SMALL)?;
    for page in (0..16 * HUGE / PAGE).step_by(2) {
        file.write_all_at(b"z", (page * PAGE) as u64)?;
    }
    let all = query::records(&file, 0, 16 * HUGE, 1000)?;
    ensure_eq!(all.len(), 16 * 512, "folios and holes");
    // Some 260 KiB: one read gets a part, and no more than a part was made.
    let mut listed = File::open(query::map_path(&file)?)?;
    let mut room = vec![0; 4 << 20];
    let first = listed.read(&mut room)?;
    ensure!((1..=64 << 10).contains(&first), "{first} bytes at once");
    ensure_eq!(outline(&query::map(&file)?), outline(&all), "debugfs' map");
    // An open one holds the module, and stands still when the file is gone.
    drop(file);
    ensure!(
        listed.read(&mut room).is_err(),
        "a map of a file that is gone"
    );
    drop(listed);
    kvmate.unload()
}
