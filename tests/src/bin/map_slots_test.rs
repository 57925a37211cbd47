// SPDX-License-Identifier: GPL-2.0
//! `memslots`: a VM's memory is what was put there.

use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_create_guest_memfd, kvm_userspace_memory_region2};
use kvmate_tests::{
    ensure_eq,
    guest::pages::{self, set_slot, Region, LARGE, PAGE},
    ktap,
    map::{
        self,
        guest::{Guest, AT, LOG, READ_ONLY},
    },
    module::{Kvmate, DEBUGFS},
};
use nix::libc;
use std::{
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    process::ExitCode,
};

/// `KVM_MEM_GUEST_MEMFD`
const GUEST_MEMFD: u32 = 4;

fn main() -> ExitCode {
    ktap::main(&[
        ("memslots", memslots),
        ("guest_memory_files", guest_memory_files),
        ("many_memslots", many_memslots),
        ("memslots_follow_changes", memslots_follow_changes),
    ])
}

fn inode(region: &Region) -> Result<u64> {
    Ok(region.file.as_ref().context("a file")?.metadata()?.ino())
}

fn memslots() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new()?;
    let memfd = Region::memfd("a memfd", 4 * LARGE)?;
    let part = Region::of(
        memfd.file.as_ref().context("a file")?.try_clone()?,
        LARGE,
        0,
        LARGE + 3 * PAGE,
    )?;
    let huge = Region::hugetlb(LARGE)?;
    let logged = Region::anonymous(LARGE, PAGE, false)?;
    memfd.put(&guest.vm, 7, AT, READ_ONLY)?;
    // From the middle of a mapping on.
    set_slot(&guest.vm, 3, 2 * AT, part.start + PAGE, PAGE, 0)?;
    huge.put(&guest.vm, 9, AT + 8 * LARGE, 0)?;
    logged.put(&guest.vm, 500, AT + 4 * LARGE, LOG | READ_ONLY)?;
    // The other address space.
    memfd.put(&guest.vm, (1 << 16) | 7, 0, 0)?;
    // A mapping, another one's file, and a hole.
    let mixed = Region::anonymous(3 * LARGE, 0, false)?;
    let over = Region::memfd("over", LARGE)?;
    // SAFETY: Takes the place of a part of our own reservation.
    unsafe {
        let at = (mixed.start + LARGE) as *mut libc::c_void;
        let file = over.file.as_ref().context("a file")?.as_raw_fd();
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        ensure!(
            libc::mmap(at, LARGE as usize, libc::PROT_READ, flags, file, 0) == at,
            "mmap"
        );
    }
    mixed.put(&guest.vm, 10, AT + 16 * LARGE, 0)?;
    // And no mapping at all.
    set_slot(&guest.vm, 11, AT + 32 * LARGE, 0x10_0000_0000, PAGE, 0)?;
    let own = guest.vm.memory.address();
    let (file, part_of, large) = (inode(&memfd)?, inode(&part)?, inode(&huge)?);
    let (name, size) = ("/memfd:a\\040memfd\\040(deleted)", LARGE);
    let expected = [
        format!("0 0 0x0 {:#x} {own:#x} - - anon private 1 - - -", pages::MEMORY),
        format!("0 7 {AT:#x} {:#x} {:#x} read-only - tmpfs shared 1 {file} 0x0 {name}", 4 * size, memfd.start),
        format!("0 500 {:#x} {size:#x} {:#x} dirty-log,read-only bitmap anon private 1 - - -", AT + 4 * size, logged.start),
        format!("0 9 {:#x} {size:#x} {:#x} - - hugetlbfs shared 1 {large} 0x0 /memfd:large\\040(deleted)", AT + 8 * size, huge.start),
        format!("0 10 {:#x} {:#x} {:#x} - - mixed private 3 - - -", AT + 16 * size, 3 * size, mixed.start),
        format!("0 11 {:#x} 0x1000 0x1000000000 - - none - 0 - - -", AT + 32 * size),
        format!("0 3 {:#x} 0x1000 {:#x} - - tmpfs shared 1 {part_of} {:#x} {name}", 2 * AT, part.start + PAGE, size + 4 * PAGE),
        format!("1 7 0x0 {:#x} {:#x} - - tmpfs shared 1 {file} 0x0 {name}", 4 * size, memfd.start),
    ];
    let found = map::table(&guest.name, "memslots", map::MEMSLOTS)?;
    let found: Vec<_> = found.iter().map(|row| row.cells(map::MEMSLOTS)).collect();
    ensure_eq!(found, expected, "memslots");
    kvmate.unload()
}

fn guest_memory_files() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new()?;
    let ours = Region::gmem(4 * LARGE)?;
    ours.put(&guest.vm, 1, AT, 0)?;
    // KVM's own: what it maps there is not what is mapped at the slot's address.
    let theirs = guest.vm.fd.create_guest_memfd(kvm_create_guest_memfd {
        size: LARGE,
        ..Default::default()
    });
    // SAFETY: A fresh descriptor that nobody else owns.
    let theirs = unsafe { OwnedFd::from_raw_fd(theirs.context("KVM_CREATE_GUEST_MEMFD")?) };
    let shared = Region::anonymous(LARGE, 0, false)?;
    let asked = kvm_userspace_memory_region2 {
        slot: 2,
        flags: GUEST_MEMFD,
        guest_phys_addr: AT + 8 * LARGE,
        memory_size: LARGE,
        userspace_addr: shared.start,
        guest_memfd: theirs.as_raw_fd() as u32,
        ..Default::default()
    };
    // SAFETY: The region outlives the VM's use of it.
    unsafe { guest.vm.fd.set_user_memory_region2(asked) }.context("a slot with guest_memfd")?;
    let number = inode(&ours)?;
    let expected = [
        format!("1 - kvmate_gmem shared 1 {number} 0x0"),
        "2 guest-memfd anon private 1 - -".to_owned(),
    ];
    let mut found = map::table(&guest.name, "memslots", map::MEMSLOTS)?;
    found.retain(|row| row.number("gpa").is_ok_and(|gpa| gpa >= AT));
    let cells = found
        .iter()
        .map(|row| row.cells("slot flags backing share vmas inode offset"));
    ensure_eq!(cells.collect::<Vec<_>>(), expected, "memslots");
    let info = Path::new(DEBUGFS).join("gmem").join(number.to_string());
    ensure!(info.exists(), "{} is not the file's folder", info.display());
    drop((guest, ours, theirs));
    kvmate.unload()
}

fn many_memslots() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new()?;
    let region = Region::anonymous(PAGE, 0, false)?;
    // More than fit into a batch, or into a buffer; not in the order of their numbers, and each begins
    // where another ends.
    let count = 306;
    let at = |slot: u32| AT + u64::from(slot * 7 % (count + 1)) * PAGE;
    for slot in 1..=count {
        region.put(&guest.vm, slot, at(slot), 0)?;
    }
    let rows = map::table(&guest.name, "memslots", map::MEMSLOTS)?;
    let slots = (1..=count).map(|slot| (at(slot), u64::from(slot)));
    let mut expected: Vec<_> = slots.chain([(0, 0)]).collect();
    expected.sort_unstable();
    let found = rows
        .iter()
        .map(|row| Ok((row.number("gpa")?, row.number("slot")?)));
    ensure_eq!(found.collect::<Result<Vec<_>>>()?, expected, "slots");
    kvmate.unload()
}

fn memslots_follow_changes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new()?;
    let region = Region::anonymous(LARGE, 0, false)?;
    let of = |slot: &str| -> Result<Option<String>> {
        let rows = map::table(&guest.name, "memslots", map::MEMSLOTS)?;
        let row = rows.iter().find(|row| row.get("slot") == slot);
        Ok(row.map(|row| row.cells("gpa flags dirty")))
    };
    ensure_eq!(of("1")?, None, "before");
    region.put(&guest.vm, 1, AT, 0)?;
    ensure_eq!(of("1")?, Some(format!("{AT:#x} - -")), "made");
    region.put(&guest.vm, 1, AT, LOG)?;
    ensure_eq!(
        of("1")?,
        Some(format!("{AT:#x} dirty-log bitmap")),
        "logged"
    );
    region.put(&guest.vm, 1, 2 * AT, LOG)?;
    ensure_eq!(
        of("1")?,
        Some(format!("{:#x} dirty-log bitmap", 2 * AT)),
        "moved"
    );
    set_slot(&guest.vm, 1, 2 * AT, region.start, 0, 0)?;
    ensure_eq!(of("1")?, None, "deleted");
    kvmate.unload()
}
