// SPDX-License-Identifier: GPL-2.0
//! `lookup` and `KVMATE_LOOKUP`: what is said of a page is what the kernel says.
//!
//! The oracles: `/proc/self/pagemap`, `/proc/kpageflags`, `/proc/kpagecount`, `/proc/kpagecgroup`, and
//! KVM's counts of leaves.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::pages::{
        Region,
        Touch::{self, Write},
        LARGE, PAGE,
    },
    ktap,
    map::{
        self,
        guest::{every, writes, Guest, AT, LOG, READ_ONLY},
        Row,
    },
    module::{Kvmate, DEBUGFS, DEVICE},
};
use kvmate_uapi::{
    kvmate_lookup, KVMATE_FOUND_FOLIO, KVMATE_FOUND_HOST, KVMATE_FOUND_SLOT, KVMATE_FOUND_STAGE2,
    KVMATE_HOST_WRITE, KVMATE_LOOKUP, KVMATE_WHY_HOST_4K, KVMATE_WHY_NONE,
};
use nix::{errno::Errno, libc};
use std::{
    fs::{self, File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("look_up", look_up),
        ("nothing_is_faulted_in", nothing_is_faulted_in),
        ("pinned", pinned),
        ("ioctl", ioctl),
        ("errors", errors),
    ])
}

/// Let go of the references that CPUs keep to pages which are new to the lists of memory reclaim.
fn settle() -> Result<()> {
    let path = "/proc/sys/vm/drop_caches";
    fs::write(path, "1").context(path)
}

/// What `lookup` says of an address is what the kernel says of its page.
fn compare(found: &Row, hva: u64) -> Result<u64> {
    let pfn = map::page_map(hva)?.context("not there")?;
    ensure_eq!(found.number("pfn")?, pfn, "pfn");
    ensure_eq!(found.number("hva")?, hva, "hva");
    let flags = map::page_flags(pfn)?;
    let names: Vec<_> = found.get("flags").split(',').collect();
    // KPF_*: dirty, anon, mmap, huge, thp, swapbacked, compound_head, compound_tail, uptodate
    for (bit, name) in [
        (3, "uptodate"),
        (4, "dirty"),
        (11, "mmap"),
        (12, "anon"),
        (14, "swapbacked"),
        (15, "compound_head"),
        (16, "compound_tail"),
        (17, "huge"),
        (22, "thp"),
    ] {
        let expected = (flags >> bit) & 1 == 1;
        ensure_eq!(
            names.contains(&name),
            expected,
            "{name} in {names:?}, not as {flags:#x}"
        );
    }
    ensure_eq!(
        names.len() as u32,
        flags.count_ones(),
        "flags {names:?} of {flags:#x}"
    );
    ensure_eq!(found.number("mapcount")?, map::page_count(pfn)?, "mapcount");
    ensure_eq!(found.number("cgroup")?, map::page_cgroup(pfn)?, "cgroup");
    ensure_eq!(found.number("node")?, 0, "node");
    Ok(pfn)
}

fn open() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .context(DEVICE)
}

fn ask(device: &File, asked: kvmate_lookup) -> nix::Result<kvmate_lookup> {
    let mut answer = asked;
    // SAFETY: The kernel checks the number and the argument.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), KVMATE_LOOKUP, &mut answer) })?;
    Ok(answer)
}

fn question(vm_fd: i32, gpa: u64) -> kvmate_lookup {
    // SAFETY: Integers only.
    let zero: kvmate_lookup = unsafe { std::mem::zeroed() };
    kvmate_lookup { vm_fd, gpa, ..zero }
}

fn look_up() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new()?;
    let kinds = [
        ("tmpfs", Region::memfd("small", 2 * LARGE)?, 1, 0),
        ("anon", Region::anonymous(2 * LARGE, 0, true)?, 2, 9),
        ("hugetlbfs", Region::hugetlb(2 * LARGE)?, 2, 9),
        ("anon", Region::anonymous(2 * LARGE, 0, false)?, 1, 0),
        ("tmpfs", Region::tmpfs(2 * LARGE)?, 2, 9),
    ];
    for (slot, (_, region, ..)) in kinds.iter().enumerate() {
        region.write(LARGE, 0);
        region.put(&guest.vm, slot as u32 + 1, AT + slot as u64 * 4 * LARGE, 0)?;
    }
    for (slot, (kind, region, level, order)) in kinds.iter().enumerate() {
        let base = AT + slot as u64 * 4 * LARGE;
        let gpa = base + LARGE + 0x123;
        guest.touch(&writes([gpa]))?;
        settle()?;
        let found = map::look_up(&guest.name, gpa)?;
        let what = format!("{kind}: {found:?}");
        ensure_eq!(found.number("gpa")?, gpa, "gpa of {what}");
        ensure_eq!(found.number("slot")?, slot as u64 + 1, "slot of {what}");
        ensure_eq!(found.number("slot_gpa")?, base, "slot_gpa of {what}");
        ensure_eq!(found.number("slot_size")?, 2 * LARGE, "slot_size of {what}");
        ensure!(
            found.get("backing").starts_with(&format!("{kind} ")),
            "backing of {what}"
        );
        let pfn = compare(&found, region.start + LARGE + 0x123).context(what.clone())?;
        ensure_eq!(found.number("host_level")?, *level, "host_level of {what}");
        ensure_eq!(
            found.number("stage2_level")?,
            *level,
            "stage2_level of {what}"
        );
        ensure_eq!(found.number("order")?, *order, "order of {what}");
        let why = if *level == 1 { "host-4k" } else { "" };
        ensure_eq!(found.get("why"), why, "why of {what}");
        // The guest's table leads to the same page.
        let leads = found.number("stage2_address")? >> 12;
        ensure_eq!(leads, pfn & !((1 << order) - 1), "stage2_address of {what}");
        ensure_eq!(
            found.number("stage2_encryption")?,
            0,
            "stage2_encryption of {what}"
        );
        ensure_eq!(
            found.cells("stage2_kind stage2_access stage2_write"),
            "leaf rwxu writable",
            "{what}"
        );
        ensure_eq!(
            found.cells("host_write host_dirty host_accessed"),
            "1 1 1",
            "{what}"
        );
        ensure!(!found.get("stage2_flags").contains("0x"), "{what}");
        ensure_eq!(
            found.number("refcount")?,
            found.number("expected")?,
            "references of {what}"
        );
    }
    // Memory that is not of any slot.
    let none = map::look_up(&guest.name, 3 << 30)?;
    ensure_eq!(none.0.len(), 1, "facts about nothing: {none:?}");
    kvmate.unload()
}

fn nothing_is_faulted_in() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new()?;
    let region = Region::memfd("untouched", 2 * LARGE)?;
    region.put(&guest.vm, 1, AT, 0)?;
    guest.touch(&writes([AT + 7 * PAGE]))?;
    let of_kvm = map::kvm_pages(&guest.name)?;
    for page in [0, 6, 8, 512, 1023] {
        let found = map::look_up(&guest.name, AT + page * PAGE)?;
        ensure_eq!(
            found.cells("slot stage2_level host_level pfn"),
            "1   ",
            "page {page}"
        );
        ensure_eq!(found.number("hva")?, region.start + page * PAGE, "hva");
    }
    guest.ranges()?;
    guest.stage2()?;
    map::table(&guest.name, "memslots", map::MEMSLOTS)?;
    ensure_eq!(map::kvm_pages(&guest.name)?, of_kvm, "pages by KVM");
    let there: Vec<_> = every(0, 1024, 1)
        .filter(|page| matches!(map::page_map(region.start + page * PAGE), Ok(Some(_))))
        .collect();
    ensure_eq!(there, [7], "pages on the host");
    let blocks = region.file.as_ref().context("a file")?.metadata()?.blocks();
    ensure_eq!(blocks, PAGE / 512, "blocks of the file");
    kvmate.unload()
}

fn pinned() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new()?;
    let region = Region::memfd("pinned", LARGE)?;
    region.put(&guest.vm, 1, AT, 0)?;
    guest.touch(&writes([AT]))?;
    let counts = |guest: &Guest| -> Result<[u64; 3]> {
        let found = map::look_up(&guest.name, AT)?;
        Ok([
            found.number("refcount")?,
            found.number("expected")?,
            found.number("mapcount")?,
        ])
    };
    settle()?;
    // The page cache's, and the mapping's.
    ensure_eq!(counts(&guest)?, [2, 2, 1], "at rest");
    let second = Region::of(
        region.file.as_ref().context("a file")?.try_clone()?,
        LARGE,
        0,
        0,
    )?;
    second.write(0, 0);
    ensure_eq!(counts(&guest)?, [3, 3, 2], "mapped twice");
    // A pipe takes a reference to the page.
    let (out, into) = nix::unistd::pipe()?;
    let part = libc::iovec {
        iov_base: region.start as *mut libc::c_void,
        iov_len: 8,
    };
    // SAFETY: A part of our own mapping.
    let spliced = unsafe { libc::vmsplice(into.as_raw_fd(), &part, 1, 0) };
    ensure_eq!(spliced, 8, "vmsplice");
    ensure_eq!(counts(&guest)?, [4, 3, 2], "pinned by a pipe");
    drop((out, into));
    ensure_eq!(counts(&guest)?, [3, 3, 2], "let go");
    kvmate.unload()
}

fn ioctl() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let device = open()?;
    let mut guest = Guest::new()?;
    let (small, large) = (Region::memfd("small", LARGE)?, Region::hugetlb(LARGE)?);
    small.put(&guest.vm, 1, AT, 0)?;
    large.put(&guest.vm, 2, AT + LARGE, LOG | READ_ONLY)?;
    // Another one in the other address space.
    large.put(&guest.vm, (1 << 16) | 5, AT, 0)?;
    large.write(0, 0);
    guest.touch(&[(AT + 3 * PAGE, Write), (AT + LARGE, Touch::Read)])?;
    settle()?;
    let fd = guest.vm.fd.as_raw_fd();
    let all = KVMATE_FOUND_SLOT | KVMATE_FOUND_STAGE2 | KVMATE_FOUND_HOST | KVMATE_FOUND_FOLIO;
    for (gpa, why) in [(AT + 3 * PAGE + 5, KVMATE_WHY_HOST_4K), (AT + LARGE, 3)] {
        let found = ask(&device, question(fd, gpa))?;
        let told = map::look_up(&guest.name, gpa)?;
        ensure_eq!(found.found, all, "found at {gpa:#x}");
        ensure_eq!((found.vm_fd, found.gpa), (fd, gpa), "what was asked");
        ensure_eq!(found.why, why, "why at {gpa:#x}");
        for (column, number) in [
            ("hva", found.hva),
            ("slot", found.slot.into()),
            ("slot_gpa", found.slot_gpa),
            ("slot_size", found.slot_size),
            ("stage2_entry", found.stage2_entry),
            ("stage2_level", found.stage2_level.into()),
            ("pfn", found.pfn),
            ("host_level", found.host_level.into()),
            ("order", found.order.into()),
            ("refcount", found.refcount as u64),
            ("expected", found.expected as u64),
            ("mapcount", found.mapcount as u64),
            ("cgroup", found.cgroup),
            ("node", found.node as u64),
        ] {
            ensure_eq!(number, told.number(column)?, "{column} at {gpa:#x}");
        }
        ensure_eq!(found.page_flags, map::page_flags(found.pfn)?, "page_flags");
        let writable = found.host_flags & KVMATE_HOST_WRITE != 0;
        ensure_eq!(
            u64::from(writable),
            told.number("host_write")?,
            "host_flags"
        );
    }
    ensure_eq!(
        ask(&device, question(fd, AT + LARGE))?.slot_flags,
        LOG | READ_ONLY,
        "slot_flags"
    );
    let other = kvmate_lookup {
        address_space: 1,
        ..question(fd, AT)
    };
    let other = ask(&device, other)?;
    ensure_eq!(other.slot, 5, "slot of the other address space");
    let both = KVMATE_FOUND_SLOT | KVMATE_FOUND_HOST | KVMATE_FOUND_FOLIO;
    ensure_eq!(
        (other.found, other.why),
        (both, KVMATE_WHY_NONE),
        "found in the other address space"
    );
    // A VM that has no vCPU yet has slots.
    let young = guest.vm.kvm.create_vm()?;
    let found = ask(&device, question(young.as_raw_fd(), AT))?.found;
    ensure_eq!(found, 0, "found in a VM without slots");
    // SAFETY: Our own memory, which outlives the VM.
    unsafe {
        young.set_user_memory_region(kvm_bindings::kvm_userspace_memory_region {
            slot: 4,
            flags: 0,
            guest_phys_addr: AT,
            memory_size: LARGE,
            userspace_addr: small.start,
        })?;
    }
    let found = ask(&device, question(young.as_raw_fd(), AT + 3 * PAGE))?;
    ensure_eq!(
        (found.found, found.slot),
        (both, 4),
        "found in a VM without vCPUs"
    );
    drop(young);
    let nothing = ask(&device, question(fd, 3 << 30))?;
    ensure_eq!(
        (nothing.found, nothing.hva, nothing.pfn),
        (0, 0, 0),
        "where nothing is"
    );
    drop(device);
    kvmate.unload()
}

fn errors() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new()?;
    let path = format!("vms/{}/lookup", guest.name);
    let errno = |result: std::io::Result<()>| result.err().and_then(|e| e.raw_os_error());
    let read = || fs::read_to_string(Path::new(DEBUGFS).join(&path)).map_err(|e| e.raw_os_error());
    ensure_eq!(
        read(),
        Err(Some(Errno::ENODATA as i32)),
        "a read before a write"
    );
    for (text, expected) in [
        ("", Errno::EINVAL),
        ("here", Errno::EINVAL),
        ("-1", Errno::EINVAL),
        ("0x10000000000000", Errno::EINVAL),
        ("0x10000000000000000", Errno::ERANGE),
    ] {
        if text.is_empty() {
            continue;
        }
        ensure_eq!(
            errno(kvmate.write(&path, text)),
            Some(expected as i32),
            "{text:?}"
        );
    }
    ensure_eq!(read(), Err(Some(Errno::ENODATA as i32)), "after refusals");
    kvmate.write(&path, "4096\n")?;
    ensure!(
        read().is_ok_and(|text| text.starts_with("gpa 0x1000\n")),
        "{:?}",
        read()
    );
    ensure_eq!(
        errno(kvmate.write(&path, "x")),
        Some(Errno::EINVAL as i32),
        "x"
    );
    ensure!(
        read().is_ok_and(|text| text.starts_with("gpa 0x1000\n")),
        "the one before is kept"
    );

    let device = open()?;
    let fd = guest.vm.fd.as_raw_fd();
    let asked = question(fd, 0);
    ask(&device, asked)?;
    for bit in 0..32 {
        let flags = kvmate_lookup {
            flags: 1 << bit,
            ..asked
        };
        ensure_eq!(
            ask(&device, flags).err(),
            Some(Errno::EINVAL),
            "flags bit {bit}"
        );
    }
    for word in 0..asked.reserved.len() {
        let mut reserved = asked;
        reserved.reserved[word] = 1;
        ensure_eq!(
            ask(&device, reserved).err(),
            Some(Errno::EINVAL),
            "reserved {word}"
        );
    }
    let far = question(fd, 1 << 52);
    ensure_eq!(
        ask(&device, far).err(),
        Some(Errno::EINVAL),
        "a far address"
    );
    ask(&device, question(fd, (1 << 52) - 1))?;
    for address_space in [2, u32::MAX] {
        let other = kvmate_lookup {
            address_space,
            ..asked
        };
        ensure_eq!(
            ask(&device, other).err(),
            Some(Errno::EINVAL),
            "address space {address_space}"
        );
    }
    for bad in [-1, i32::MIN, 1 << 20] {
        ensure_eq!(
            ask(&device, question(bad, 0)).err(),
            Some(Errno::EBADF),
            "descriptor {bad}"
        );
    }
    for other in [
        device.as_raw_fd(),
        guest.vcpu.as_raw_fd(),
        guest.vm.kvm.as_raw_fd(),
    ] {
        ensure_eq!(
            ask(&device, question(other, 0)).err(),
            Some(Errno::EBADFD),
            "not a VM's"
        );
    }
    // SAFETY: The kernel checks the argument; this one is bad.
    let found = Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), KVMATE_LOOKUP, 16) });
    ensure_eq!(found, Err(Errno::EFAULT), "a bad pointer");
    drop(device);
    kvmate.unload()
}
