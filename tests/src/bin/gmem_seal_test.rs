// SPDX-License-Identifier: GPL-2.0
//! gmem's seals, beside a real memfd's: the same calls on both say the same.

use anyhow::{ensure, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{
        self, errno, fallocate, folios, mmap,
        pins::{try_pin, By},
        seal, shape, HUGE, PAGE, PUNCH,
    },
    ktap,
    module::Kvmate,
};
use kvmate_uapi::{
    kvmate_gmem_seals, KVMATE_GMEM_SEALS, KVMATE_GMEM_SEAL_FUTURE_WRITE as FUTURE,
    KVMATE_GMEM_SEAL_SEAL as SEAL, KVMATE_GMEM_SEAL_WRITE as WRITE, KVMATE_GMEM_SMALL,
};
use nix::{errno::Errno, libc};
use std::{
    fs::{File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::FileExt},
    process::ExitCode,
    time::Duration,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("bad_input", bad_input),
        ("as_memfd", as_memfd),
        ("writable_mappings_are_busy", writable_mappings_are_busy),
        ("held_pages_are_busy", held_pages_are_busy),
        ("pinned_for_writing_is_busy", pinned_for_writing_is_busy),
        ("held_one_after_another", held_one_after_another),
        ("mapped_before_future_write", mapped_before_future_write),
        ("beside_older_mappings", beside_older_mappings),
        ("folios_still_change", folios_still_change),
        ("mapping_meets_sealing", mapping_meets_sealing),
    ])
}

const SIZE: usize = 2 * HUGE;
const READ: i32 = libc::PROT_READ;
const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;

type Add = fn(&File, u32) -> nix::Result<u32>;

/// Ours and a memfd, with something in them.
fn pair() -> Result<[(File, Add); 2]> {
    let pair: [(File, Add); 2] = [
        (gmem::create(SIZE, 0)?, seal::add),
        (gmem::memfd(SIZE)?, seal::add_to_memfd),
    ];
    for (file, _) in &pair {
        file.write_all_at(&[7; 3 * PAGE], 0)?;
    }
    Ok(pair)
}

fn read_only(file: &File) -> Result<File> {
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(OpenOptions::new().read(true).open(again)?)
}

fn bad_input() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(SIZE, 0)?;
    for (add, seals) in [(8, 0), (1 << 31, 0), (WRITE, 1), (0, WRITE)] {
        let mut asked = kvmate_gmem_seals { add, seals };
        ensure_eq!(
            seal::call(&file, &mut asked),
            Err(Errno::EINVAL),
            "{add} {seals}"
        );
    }
    let nowhere: *mut kvmate_gmem_seals = std::ptr::null_mut();
    ensure_eq!(
        // SAFETY: The kernel checks the address.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), KVMATE_GMEM_SEALS, nowhere) }),
        Err(Errno::EFAULT),
        "no argument"
    );
    ensure_eq!(seal::add(&file, 0), Ok(0), "the seals then");
    let reader = read_only(&file)?;
    ensure_eq!(
        seal::add(&reader, 0),
        Ok(0),
        "asking needs no right to write"
    );
    drop((file, reader));
    kvmate.unload()
}

/// All that seals have to do with, and what each said.
fn try_all(file: &File, add: Add) -> Result<Vec<(&'static str, Result<i64, Errno>)>> {
    let unit = |result: nix::Result<()>| result.map(|()| 0);
    let io = |result: std::io::Result<usize>| match errno(result) {
        None => Ok(0),
        Some(error) => Err(error),
    };
    let map = |protection, file: &File| {
        let start = mmap(file, SIZE, protection, libc::MAP_SHARED)?;
        // SAFETY: Our own mapping, of which only the protection changes.
        let changed = Errno::result(unsafe { libc::mprotect(start.cast(), SIZE, BOTH) });
        // SAFETY: Our own mapping, not used any more.
        Errno::result(unsafe { libc::munmap(start.cast(), SIZE) })?;
        Ok(i64::from(changed.err().map_or(0, |error| error as i32)))
    };
    let reader = read_only(file)?;
    let mut byte = [0];
    Ok(vec![
        ("write", io(file.write_at(b"abc", 5))),
        ("write of nothing", io(file.write_at(b"", 5))),
        ("write at the end", io(file.write_at(b"x", SIZE as u64))),
        (
            "read",
            io(file.read_at(&mut byte, 5)).map(|_| byte[0].into()),
        ),
        ("punch", unit(fallocate(file, PUNCH, 0, PAGE as i64))),
        ("punch of a part", unit(fallocate(file, PUNCH, 1, 5))),
        (
            "punch behind the end",
            unit(fallocate(file, PUNCH, SIZE as i64, 5)),
        ),
        ("odd punch", unit(fallocate(file, PUNCH, 0, 0))),
        ("other mode", unit(fallocate(file, 8, 0, PAGE as i64))),
        (
            "allocate",
            unit(fallocate(file, 0, HUGE as i64, PAGE as i64)),
        ),
        ("map to write", map(BOTH, file)),
        ("map to read, then to write", map(READ, file)),
        ("map the read-only one", map(READ, &reader)),
        ("map that to write", map(BOTH, &reader)),
        (
            "seals of the read-only one",
            add(&reader, WRITE).map(i64::from),
        ),
        ("future-write", add(file, FUTURE).map(i64::from)),
    ])
}

fn as_memfd() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for first in [
        0,
        WRITE,
        FUTURE,
        SEAL,
        WRITE | FUTURE,
        WRITE | SEAL,
        FUTURE | SEAL,
    ] {
        for second in [0, WRITE, FUTURE, SEAL] {
            let [(ours, add), (theirs, add_theirs)] = pair()?;
            for seals in [first, second] {
                let expected = add_theirs(&theirs, seals).map(i64::from);
                let found = add(&ours, seals).map(i64::from);
                // memfd looks at its seals even where nothing is added.
                if seals != 0 {
                    ensure_eq!(found, expected, "{first} then {second}");
                }
            }
            let found = try_all(&ours, add)?;
            let expected = try_all(&theirs, add_theirs)?;
            ensure_eq!(found, expected, "under {first} and {second}");
        }
    }
    // And that it is what we know of memfd.
    let [(ours, add), _] = pair()?;
    ensure_eq!(add(&ours, WRITE), Ok(WRITE), "the write seal");
    let found = try_all(&ours, add)?;
    let said = |what| {
        found
            .iter()
            .find(|(name, _)| *name == what)
            .map(|(_, said)| *said)
    };
    for (what, expected) in [
        ("write", Err(Errno::EPERM)),
        ("read", Ok(7)),
        ("punch", Err(Errno::EPERM)),
        ("allocate", Ok(0)),
        ("map to write", Err(Errno::EPERM)),
        ("map to read, then to write", Ok(Errno::EACCES as i64)),
    ] {
        ensure_eq!(said(what), Some(expected), "{what}");
    }
    drop(ours);
    kvmate.unload()
}

fn writable_mappings_are_busy() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for (file, add) in pair()? {
        for protection in [BOTH, READ] {
            let map = mmap(&file, SIZE, protection, libc::MAP_SHARED)?;
            ensure_eq!(add(&file, WRITE), Err(Errno::EBUSY), "mapped {protection}");
            ensure_eq!(add(&file, 0), Ok(0), "no seal then");
            file.write_all_at(b"still", 0)?;
            // SAFETY: Our own mapping, not used any more.
            Errno::result(unsafe { libc::munmap(map.cast(), SIZE) })?;
        }
        let map = mmap(&read_only(&file)?, SIZE, READ, libc::MAP_SHARED)?;
        ensure_eq!(
            add(&file, WRITE),
            Ok(WRITE),
            "mapped from a read-only descriptor"
        );
        // SAFETY: Our own mapping, which is there.
        ensure_eq!(unsafe { map.read_volatile() }, b's', "what is read there");
        // SAFETY: Our own mapping, not used any more.
        Errno::result(unsafe { libc::munmap(map.cast(), SIZE) })?;
    }
    kvmate.unload()
}

fn held_pages_are_busy() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for (file, add) in pair()? {
        let reader = read_only(&file)?;
        let map = mmap(&reader, SIZE, READ, libc::MAP_SHARED)?;
        let pin = try_pin(By::Pipe, map as usize + PAGE)?;
        ensure_eq!(add(&file, WRITE), Err(Errno::EBUSY), "a page in a pipe");
        file.write_all_at(b"still", 0)?;
        ensure_eq!(add(&file, FUTURE), Ok(FUTURE), "future-write");
        drop(pin);
        ensure_eq!(add(&file, WRITE), Ok(FUTURE | WRITE), "let go");
        // SAFETY: Our own mapping, not used any more.
        Errno::result(unsafe { libc::munmap(map.cast(), SIZE) })?;
    }
    kvmate.unload()
}

/// Who has pinned pages for writing may write to them without a mapping.
fn pinned_for_writing_is_busy() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for (file, add) in pair()? {
        let map = mmap(&file, SIZE, BOTH, libc::MAP_SHARED)?;
        // SAFETY: Our own mapping, which is there.
        unsafe { map.add(PAGE).write_volatile(7) };
        let pin = try_pin(By::Ring, map as usize + PAGE)?;
        // SAFETY: Our own mapping, not used any more.
        Errno::result(unsafe { libc::munmap(map.cast(), SIZE) })?;
        ensure_eq!(add(&file, WRITE), Err(Errno::EBUSY), "a pin that writes");
        ensure_eq!(add(&file, 0), Ok(0), "no seal then");
        drop(pin);
        ensure_eq!(add(&file, WRITE), Ok(WRITE), "let go");
    }
    kvmate.unload()
}

/// Pages each of which is held for a moment only, but one after another for longer than one may be.
fn held_one_after_another() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut busy = 0;
    // Who lets go may be late once.
    for _ in 0..6 {
        let file = gmem::create(SIZE, KVMATE_GMEM_SMALL)?;
        file.write_all_at(&[5; 24 * PAGE], 0)?;
        let map = mmap(&read_only(&file)?, SIZE, READ, libc::MAP_SHARED)?;
        let pins: Vec<_> = (0..24)
            .map(|page| try_pin(By::Pipe, map as usize + page * PAGE))
            .collect::<Result<_, _>>()?;
        let added = std::thread::scope(|scope| {
            scope.spawn(|| {
                for pin in pins {
                    std::thread::sleep(Duration::from_millis(25));
                    drop(pin);
                }
            });
            seal::add(&file, WRITE)
        });
        // SAFETY: Our own mapping, not used any more.
        Errno::result(unsafe { libc::munmap(map.cast(), SIZE) })?;
        match added {
            Ok(_) => {
                drop(file);
                return kvmate.unload();
            }
            Err(error) => ensure_eq!(error, Errno::EBUSY, "what else"),
        }
        busy += 1;
    }
    ensure!(false, "busy {busy} times");
    Ok(())
}

fn mapped_before_future_write() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for (file, add) in pair()? {
        let map = mmap(&file, SIZE, BOTH, libc::MAP_SHARED)?;
        ensure_eq!(add(&file, FUTURE), Ok(FUTURE), "future-write");
        for at in [0, HUGE + 5] {
            // SAFETY: Our own mapping, writable since before the seal.
            unsafe { map.add(at).write_volatile(99) };
            let mut byte = [0];
            file.read_exact_at(&mut byte, at as u64)?;
            ensure_eq!(byte, [99], "written through a mapping of before");
        }
        ensure_eq!(add(&file, WRITE), Err(Errno::EBUSY), "mapped still");
        // SAFETY: Our own mapping, not used any more.
        Errno::result(unsafe { libc::munmap(map.cast(), SIZE) })?;
        ensure_eq!(add(&file, WRITE), Ok(FUTURE | WRITE), "not mapped any more");
    }
    kvmate.unload()
}

/// A mapping that continues one of before the seal is made as any other: with none of its rights.
fn beside_older_mappings() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut said = Vec::new();
    for (old, new) in [(BOTH, BOTH), (BOTH, READ), (READ, READ)] {
        let [(ours, add), (theirs, add_theirs)] = pair()?;
        let found = beside_an_older_one(&ours, add, old, new)?;
        let expected = beside_an_older_one(&theirs, add_theirs, old, new)?;
        ensure_eq!(found, expected, "{new} beside {old}");
        said.push(found);
    }
    let expected = [
        Err(Errno::EPERM),
        Ok(Err(Errno::EACCES)),
        Ok(Err(Errno::EACCES)),
    ];
    ensure_eq!(said, expected, "and what we know of memfd");
    kvmate.unload()
}

/// Map the first half, seal, map the second half behind it; tells whether that can be made writable.
fn beside_an_older_one(
    file: &File,
    add: Add,
    old: i32,
    new: i32,
) -> Result<Result<nix::Result<()>, Errno>> {
    // Room for both, so that the second stands right behind the first.
    let start = mmap(file, SIZE, READ, libc::MAP_SHARED)?.cast::<libc::c_void>();
    let map = |at: usize, protection: i32| {
        // SAFETY: In the room above, which nobody uses.
        unsafe {
            let start = start.byte_add(at);
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            let made = libc::mmap(start, HUGE, protection, flags, file.as_raw_fd(), at as i64);
            match made == libc::MAP_FAILED {
                true => Err(Errno::last()),
                false => Ok(made),
            }
        }
    };
    // SAFETY: Our own mapping, not used.
    Errno::result(unsafe { libc::munmap(start, SIZE) })?;
    let first = map(0, old)?;
    ensure_eq!(add(file, FUTURE), Ok(FUTURE), "future-write");
    let second = map(HUGE, new).map(|second| {
        // SAFETY: Our own mapping, of which only the protection changes.
        Errno::result(unsafe { libc::mprotect(second, HUGE, BOTH) }).map(drop)
    });
    // SAFETY: Our own mappings, not used any more.
    Errno::result(unsafe { libc::munmap(first, SIZE) })?;
    Ok(second)
}

fn folios_still_change() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(SIZE, 0)?;
    file.write_all_at(&vec![9; SIZE], 0)?;
    ensure_eq!(seal::add(&file, WRITE | SEAL), Ok(WRITE | SEAL), "seals");
    shape::split(&file, 0, SIZE, 3)?;
    ensure_eq!(folios(&file)?[3], 128, "split");
    shape::merge(&file, 0, SIZE, 9)?;
    ensure_eq!(folios(&file)?[9], 2, "merged");
    ensure!(gmem::bytes(&file)? == vec![9; SIZE], "bytes");
    drop(file);
    kvmate.unload()
}

/// Who maps while another seals: either has it mapped and the other is told so, or not.
fn mapping_meets_sealing() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (mut sealed, mut busy) = (0, 0);
    // How much later who maps is to begin than who seals: whoever came first waits longer the next time,
    // and each time longer until the other comes first.
    let (mut later, mut step) = (0i64, 0i64);
    let spin = |times: i64| (0..times).for_each(|_| std::hint::spin_loop());
    for round in 0..4000 {
        if round >= 400 && sealed > 0 && busy > 0 {
            break;
        }
        let file = gmem::create(SIZE, 0)?;
        let go = std::sync::Barrier::new(2);
        let (mapped, added) = std::thread::scope(|scope| {
            let mapper = scope.spawn(|| {
                go.wait();
                spin(later);
                mmap(&file, SIZE, BOTH, libc::MAP_SHARED).map(|map| map as usize)
            });
            go.wait();
            spin(-later);
            let added = seal::add(&file, WRITE);
            (mapper.join().expect("no panic"), added)
        });
        match (mapped, added) {
            (Err(Errno::EPERM), Ok(WRITE)) => {
                sealed += 1;
                step = (2 * step).clamp(-(1 << 16), -16);
                later += step;
            }
            (Ok(_), Err(Errno::EBUSY)) => {
                busy += 1;
                step = (2 * step).clamp(16, 1 << 16);
                later += step;
            }
            // mm was asked before it was unsealed again, or neither came first.
            (Err(Errno::EPERM), Err(Errno::EBUSY)) => {}
            other => ensure!(false, "round {round}: {other:?}"),
        }
        if let Ok(map) = mapped {
            // SAFETY: The mapping made above, not used any more.
            Errno::result(unsafe { libc::munmap(map as *mut _, SIZE) })?;
        }
    }
    println!("# sealed {sealed}, busy {busy}, {later} later in the end");
    ensure!(sealed > 0 && busy > 0, "sealed {sealed}, busy {busy}");
    kvmate.unload()
}
