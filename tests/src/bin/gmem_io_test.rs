// SPDX-License-Identifier: GPL-2.0
//! gmem: `read()`, `write()`, `lseek()`, `fstat()`, and `fallocate()` that allocates.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{
        self, allocated, child::Alarms, fallocate, folios, info_of, punch, seek, Map, HUGE, PAGE,
        PUNCH,
    },
    ktap,
    module::Kvmate,
    storm,
};
use kvmate_uapi::KVMATE_GMEM_SMALL;
use nix::{
    errno::Errno,
    libc::{self, SEEK_DATA, SEEK_HOLE},
};
use std::{
    fs::{File, OpenOptions},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("reads_and_writes", reads_and_writes),
        ("unbroken_by_signals", unbroken_by_signals),
        ("seek_and_blocks", seek_and_blocks),
        ("allocate", allocate),
        ("fallocate_refuses", fallocate_refuses),
        ("interrupted", interrupted),
        ("nothing_is_punched_quickly", nothing_is_punched_quickly),
    ])
}

fn reads_and_writes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for flags in [0, KVMATE_GMEM_SMALL] {
        let file = gmem::create(3 * HUGE, flags)?;
        ensure!(
            gmem::bytes(&file)? == vec![0; 3 * HUGE],
            "a new file reads zeros"
        );
        ensure_eq!(allocated(&file)?, 0, "reading holes allocates nothing");
        let data: Vec<u8> = (0..2 * HUGE + 77).map(|i| (i % 251) as u8).collect();
        file.write_all_at(&data, 4000)?;
        let mut expected = vec![0; 3 * HUGE];
        expected[4000..4000 + data.len()].copy_from_slice(&data);
        ensure!(gmem::bytes(&file)? == expected, "what was written");
        let map = Map::new(&file, 3 * HUGE)?;
        ensure!(map.copy(0, 3 * HUGE) == expected, "the same, mapped");
        // From a mapping of the file itself, and into it: what is copied must be made present first.
        punch(&file, 0, HUGE)?;
        // SAFETY: Plain bytes of the mapping, which nobody changes but the call.
        let own = unsafe { std::slice::from_raw_parts(map.address() as *const u8, HUGE) };
        file.write_all_at(own, HUGE as u64)?;
        ensure!(
            map.copy(0, 2 * HUGE) == vec![0; 2 * HUGE],
            "zeros of the file itself"
        );
        // SAFETY: As above.
        let own = unsafe { std::slice::from_raw_parts_mut(map.address() as *mut u8, HUGE) };
        file.read_exact_at(own, 2 * HUGE as u64)?;
        ensure!(
            map.copy(0, HUGE) == expected[2 * HUGE..],
            "read into itself"
        );
        let bad = 8usize as *const libc::c_void;
        // SAFETY: The kernel checks the pointer; a bad one is what is tried.
        let found = Errno::result(unsafe { libc::pwrite(file.as_raw_fd(), bad, 1, 0) });
        ensure_eq!(found, Err(Errno::EFAULT), "write from nowhere");
        let found =
            // SAFETY: As above.
            Errno::result(unsafe { libc::pread(file.as_raw_fd(), bad.cast_mut(), 1, 0) });
        ensure_eq!(found, Err(Errno::EFAULT), "read to nowhere");
        let mut small = [1; 10];
        let end = 3 * HUGE as u64;
        ensure_eq!(file.read_at(&mut small, end - 4)?, 4, "read over the end");
        ensure_eq!(file.read_at(&mut small, end)?, 0, "read at the end");
        ensure_eq!(file.read_at(&mut small, end + 9)?, 0, "read behind it");
        let mut out = tempfile()?;
        std::io::copy(&mut &file, &mut out).context("sendfile")?;
        ensure!(gmem::bytes(&out)? == gmem::bytes(&file)?, "by sendfile");
    }
    kvmate.unload()
}

fn tempfile() -> Result<File> {
    let options = &mut OpenOptions::new();
    Ok(options
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open("/tmp")?)
}

fn seek_and_blocks() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for flags in [0, KVMATE_GMEM_SMALL] {
        let file = gmem::create(4 * HUGE, flags)?;
        let (page, end) = (PAGE as i64, 4 * HUGE as i64);
        ensure_eq!(
            seek(&file, 0, SEEK_DATA),
            Err(Errno::ENXIO),
            "data in nothing"
        );
        ensure_eq!(seek(&file, 77, SEEK_HOLE), Ok(77), "hole in nothing");
        fallocate(&file, 0, 2 * page, 3 * page)?;
        for (from, data, hole) in [
            (0, Ok(2 * page), Ok(0)),
            (1, Ok(2 * page), Ok(1)),
            (2 * page, Ok(2 * page), Ok(5 * page)),
            (3 * page + 7, Ok(3 * page + 7), Ok(5 * page)),
            (5 * page, Err(Errno::ENXIO), Ok(5 * page)),
            (end - 1, Err(Errno::ENXIO), Ok(end - 1)),
            (end, Err(Errno::ENXIO), Err(Errno::ENXIO)),
            (i64::MAX, Err(Errno::ENXIO), Err(Errno::ENXIO)),
            (-1, Err(Errno::ENXIO), Err(Errno::ENXIO)),
        ] {
            ensure_eq!(seek(&file, from, SEEK_DATA), data, "SEEK_DATA from {from}");
            ensure_eq!(seek(&file, from, SEEK_HOLE), hole, "SEEK_HOLE from {from}");
        }
        fallocate(&file, 0, 0, end)?;
        ensure_eq!(seek(&file, 3, SEEK_HOLE), Ok(end), "hole in a full file");
        ensure_eq!(seek(&file, 3, libc::SEEK_SET), Ok(3), "SEEK_SET");
        ensure_eq!(seek(&file, 3, libc::SEEK_CUR), Ok(6), "SEEK_CUR");
        ensure_eq!(seek(&file, 0, libc::SEEK_END), Ok(end), "SEEK_END");
        ensure_eq!(seek(&file, 0, 9), Err(Errno::EINVAL), "another whence");
        punch(&file, 7 * PAGE, PAGE)?;
        ensure_eq!(seek(&file, 0, SEEK_HOLE), Ok(7 * page), "a punched hole");
        ensure_eq!(
            seek(&file, 7 * page, SEEK_DATA),
            Ok(8 * page),
            "data behind it"
        );
        ensure_eq!(allocated(&file)?, 4 * HUGE - PAGE, "st_blocks");
    }
    kvmate.unload()
}

fn allocate() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(4 * HUGE, 0)?;
    let map = Map::new(&file, 4 * HUGE)?;
    file.write_all_at(b"data", HUGE as u64 + 100)?;
    for mode in [0, libc::FALLOC_FL_KEEP_SIZE] {
        fallocate(&file, mode, 0, 3 * HUGE as i64)?;
        ensure_eq!(allocated(&file)?, 3 * HUGE, "mode {mode}");
        ensure_eq!(folios(&file)?[9], 3, "huge folios");
    }
    let mut expected = vec![0; 4 * HUGE];
    expected[HUGE + 100..HUGE + 104].copy_from_slice(b"data");
    ensure!(
        map.copy(0, 3 * HUGE) == expected[..3 * HUGE],
        "data stays, holes are zero"
    );
    // Bytes round outwards to pages; the folio does not reach out of what was asked for.
    fallocate(&file, 0, 3 * HUGE as i64 + 5000, 5000)?;
    ensure_eq!(allocated(&file)?, 3 * HUGE + 2 * PAGE, "of 5000 bytes");
    fallocate(&file, 0, 4 * HUGE as i64 - 1, 1)?;
    ensure_eq!(allocated(&file)?, 3 * HUGE + 3 * PAGE, "the last byte");
    ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    drop((map, file));
    kvmate.unload()
}

fn fallocate_refuses() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(HUGE, 0)?;
    let size = HUGE as i64;
    for mode in [0, libc::FALLOC_FL_KEEP_SIZE, PUNCH] {
        for (offset, length) in [(-1, 1), (0, 0), (0, -1), (i64::MIN, 1)] {
            let found = fallocate(&file, mode, offset, length);
            ensure_eq!(
                found,
                Err(Errno::EINVAL),
                "mode {mode} of {offset}, {length}"
            );
        }
        for (offset, length) in [(i64::MAX, 1), (1, i64::MAX)] {
            let found = fallocate(&file, mode, offset, length);
            ensure_eq!(
                found,
                Err(Errno::EFBIG),
                "mode {mode} of {offset}, {length}"
            );
        }
    }
    for mode in [0, libc::FALLOC_FL_KEEP_SIZE] {
        for (offset, length) in [(0, size + 1), (size, 1), (size - 1, 2)] {
            let found = fallocate(&file, mode, offset, length);
            ensure_eq!(
                found,
                Err(Errno::EPERM),
                "mode {mode} of {offset}, {length}"
            );
        }
    }
    for mode in [
        libc::FALLOC_FL_PUNCH_HOLE,
        libc::FALLOC_FL_COLLAPSE_RANGE,
        libc::FALLOC_FL_ZERO_RANGE,
        libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        libc::FALLOC_FL_INSERT_RANGE,
        libc::FALLOC_FL_UNSHARE_RANGE,
        PUNCH | libc::FALLOC_FL_ZERO_RANGE,
        1 << 20,
    ] {
        let found = fallocate(&file, mode, 0, size);
        ensure_eq!(found, Err(Errno::EOPNOTSUPP), "mode {mode:#x}");
    }
    ensure_eq!(allocated(&file)?, 0, "what was refused allocates nothing");
    file.write_all_at(&[9; HUGE], 0)?;
    for (offset, length) in [(size, 1), (size, size), (size + 5, i64::MAX - size - 5)] {
        fallocate(&file, PUNCH, offset, length).context("a punch behind the end")?;
    }
    ensure!(
        gmem::bytes(&file)? == vec![9; HUGE],
        "a punch behind the end does nothing"
    );
    fallocate(&file, PUNCH, 5, i64::MAX - 5).context("a punch over the end")?;
    ensure_eq!(allocated(&file)?, PAGE, "after it");
    ensure_eq!(gmem::bytes(&file)?[..6], [9, 9, 9, 9, 9, 0], "after it");
    drop(file);
    kvmate.unload()
}

fn unbroken_by_signals() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (size, file) = (48 << 20, gmem::create(48 << 20, KVMATE_GMEM_SMALL)?);
    let data: Vec<u8> = (0..size).map(|i| (i % 253) as u8).collect();
    let mut back = vec![0; size];
    // As of any regular file, a read or a write is whole, whatever signals come meanwhile.
    let alarms = Alarms::every(1000, true)?;
    let written = file.write_at(&data, 0)?;
    let read = file.read_at(&mut back, 0)?;
    drop(alarms);
    ensure_eq!((written, read), (size, size), "under alarms");
    ensure!(back == data, "what was read under alarms");
    drop(file);
    kvmate.unload()
}

fn interrupted() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(64 << 20, KVMATE_GMEM_SMALL)?;
    let alarms = Alarms::every(2000, false)?;
    let mut times = 0;
    let full = loop {
        let before = allocated(&file)?;
        match fallocate(&file, 0, 0, 64 << 20) {
            Err(Errno::EINTR) => ensure!(allocated(&file)? > before, "no prefix was done"),
            other => break other,
        }
        times += 1;
    };
    drop(alarms);
    full.context("in the end")?;
    ensure!(times > 0, "64 MiB were allocated within 2 ms");
    ensure_eq!(allocated(&file)?, 64 << 20, "in the end");
    // A hole goes by parts of 1 GiB. With a signal in each, a part is done each time.
    let gib = 1 << 30;
    let parts = 2000;
    let wide = gmem::create(parts * gib, KVMATE_GMEM_SMALL)?;
    for part in 0..parts {
        wide.write_all_at(b"x", (part * gib + PAGE) as u64)?;
    }
    ensure_eq!(allocated(&wide)?, parts * PAGE, "before the punch");
    let alarms = Alarms::every(if storm::slow() { 5000 } else { 500 }, false)?;
    let mut times = 0;
    let all = loop {
        let before = allocated(&wide)?;
        match punch(&wide, 0, parts * gib) {
            Err(Errno::EINTR) => ensure!(allocated(&wide)? < before, "no prefix was punched"),
            other => break other,
        }
        times += 1;
        let done = parts - allocated(&wide)? / PAGE;
        let next = seek(&wide, 0, SEEK_DATA)?;
        ensure_eq!(next as usize, done * gib + PAGE, "the first that is left");
    };
    drop(alarms);
    all.context("in the end")?;
    ensure!(times > 0, "2000 GiB were punched within half a millisecond");
    ensure_eq!(allocated(&wide)?, 0, "in the end");
    drop((file, wide));
    kvmate.unload()
}

fn nothing_is_punched_quickly() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let size = (1u64 << 63) - 4096;
    let file = gmem::create_as(&kvmate_uapi::kvmate_gmem {
        size,
        ..gmem::wish(0, 0)
    })?;
    file.write_all_at(b"end", size - 3)?;
    let began = std::time::Instant::now();
    fallocate(&file, PUNCH, 1, size as i64 - 1)?;
    ensure!(
        began.elapsed().as_secs() < 100,
        "{:?} for one page",
        began.elapsed()
    );
    ensure_eq!(allocated(&file)?, 0, "after it");
    ensure_eq!(info_of(&file, "punch_asked")?, size - 1, "asked");
    drop(file);
    kvmate.unload()
}
