// SPDX-License-Identifier: GPL-2.0
//! `stage2` and `stage2_map`: what a VM's tables map is what its guest has touched.
//!
//! The oracles: the test's own layout, and KVM's counts of leaves.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::{
        pages::{self, set_slot, Region, Touch, LARGE, PAGE},
        steps::{self, Step},
        Vm,
    },
    ktap,
    map::{
        self,
        guest::{every, writes, Guest, AT, READ_ONLY},
        Row,
    },
    module::{self, Kvmate, WithoutKvm, DEBUGFS},
    oracle,
    storm::name_of,
};
use nix::{errno::Errno, libc};
use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    ktap::main(&[
        ("files", files),
        ("small_pages", small_pages),
        ("large_pages_of_each_kind", large_pages_of_each_kind),
        ("read_only", read_only),
        ("mmio", mmio),
        ("holes_punched", holes_punched),
        ("reading_in_parts", reading_in_parts),
        ("one_long_range", one_long_range),
        ("sparse_terabyte", sparse_terabyte),
        ("vm_older_than_the_module", vm_older_than_the_module),
        ("shadow_paging", shadow_paging),
        ("many_roots", many_roots),
        ("ended", ended),
    ])
}

/// How a leaf of ordinary memory looks, once the guest has written to it.
fn written(range: &Row) -> Result<()> {
    let (format, flags) = match module::is_loaded("kvm_intel") {
        true => (
            "rwxu wb writable",
            ["accessed", "dirty", "suppress-ve"].as_slice(),
        ),
        false => ("rwxu pat0 writable", ["accessed", "dirty"].as_slice()),
    };
    ensure_eq!(
        range.cells("access type write").replace("wb+ipat", "wb"),
        format,
        "{range:?}"
    );
    let found: Vec<_> = range.get("flags").split(',').collect();
    ensure_eq!(found, flags, "flags of {range:?}");
    Ok(())
}

/// KVM without the second stage, for a test; loaded again as it was on drop.
struct WithoutStage2(#[allow(dead_code)] WithoutKvm);

impl WithoutStage2 {
    fn new() -> Result<Self> {
        let kvm = WithoutKvm::new()?;
        let switch = if kvm.vendor() == "kvm_amd" {
            "npt=0"
        } else {
            "ept=0"
        };
        let status = std::process::Command::new("modprobe")
            .args([kvm.vendor(), switch])
            .status()?;
        ensure!(
            status.success(),
            "modprobe {} {switch}: {status}",
            kvm.vendor()
        );
        Ok(Self(kvm))
    }
}

impl Drop for WithoutStage2 {
    fn drop(&mut self) {
        for name in [self.0.vendor(), "kvm"] {
            if let Err(error) = module::unload_when_free(name) {
                eprintln!("# rmmod {name}: {error}");
            }
        }
    }
}

fn files() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new()?;
    for (file, mode) in [
        ("memslots", 0o444),
        ("stage2", 0o444),
        ("stage2_map", 0o444),
        ("lookup", 0o644),
    ] {
        let path = Path::new(DEBUGFS).join("vms").join(&guest.name).join(file);
        let found = fs::metadata(&path).context(file)?.permissions().mode() & 0o7777;
        ensure_eq!(found, mode, "mode of {file}");
    }
    // It never ran: there are no tables.
    ensure_eq!(guest.stage2()?.len(), 0, "roots");
    ensure_eq!(guest.ranges()?.len(), 0, "ranges");
    kvmate.unload()
}

fn small_pages() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new()?;
    let region = Region::memfd("small", 8 * LARGE)?;
    region.put(&guest.vm, 1, AT, 0)?;
    // Two runs in one table, one over the border of two, and one alone; the rest is not touched.
    let runs = [(3, 5), (100, 12), (500, 30), (1600, 1)];
    let list = runs
        .iter()
        .flat_map(|&(first, count)| every(AT + first * PAGE, count, PAGE));
    guest.touch(&writes(list))?;
    let own = pages::own_pages(48, false);
    let expected: Vec<_> = runs
        .iter()
        .map(|&(first, count)| (AT + first * PAGE, count * PAGE))
        .collect();
    let ranges = guest.ranges_of_slots()?;
    let found = ranges
        .iter()
        .map(|row| Ok((row.number("gpa")?, row.number("size")?)));
    ensure_eq!(found.collect::<Result<Vec<_>>>()?, expected, "ranges");
    for range in &ranges {
        ensure_eq!(range.cells("kind level why"), "leaf 1 host-4k", "{range:?}");
        written(range)?;
    }
    ensure_eq!(
        guest.agrees()?,
        [48 + own.len() as u64, 0, 0],
        "pages by KVM"
    );
    // Tables: of the guest's own pages, and those of blocks 0, 1 and 3; their directories; the rest.
    let tables = |level| guest.level(level)?.number("tables");
    ensure_eq!([tables(1)?, tables(2)?, tables(3)?], [4, 2, 1], "tables");
    ensure_eq!(guest.level(1)?.number("host-4k")?, 48, "host-4k");
    kvmate.unload()
}

fn large_pages_of_each_kind() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let kinds = [
        ("hugetlb", Region::hugetlb(4 * LARGE)?),
        ("anonymous", Region::anonymous(4 * LARGE, 0, true)?),
        ("tmpfs", Region::tmpfs(4 * LARGE)?),
        ("gmem", Region::gmem(4 * LARGE)?),
    ];
    for (kind, region) in &kinds {
        let mut guest = Guest::new()?;
        region.put(&guest.vm, 1, AT, 0)?;
        // On the host first, so that it is large for whoever comes.
        for block in [0, 1, 3] {
            region.write(block * LARGE, 0);
        }
        guest.touch(&writes([AT, AT + LARGE + 5 * PAGE, AT + 3 * LARGE]))?;
        let ranges = guest.ranges_of_slots()?;
        let found: Vec<_> = ranges
            .iter()
            .map(|row| row.cells("kind level gpa size why"))
            .collect();
        let expected = [
            format!("leaf 2 {AT:#x} {:#x} -", 2 * LARGE),
            format!("leaf 2 {:#x} {LARGE:#x} -", AT + 3 * LARGE),
        ];
        ensure_eq!(found, expected, "{kind}");
        ranges.iter().try_for_each(written)?;
        let own = pages::own_pages(3, false).len() as u64;
        ensure_eq!(guest.agrees()?, [own, 3, 0], "pages by KVM: {kind}");
        ensure_eq!(guest.level(2)?.number("bytes")?, 3 * LARGE, "bytes");
    }
    // One of them is kvmate's own.
    drop(kinds);
    kvmate.unload()
}

fn read_only() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new()?;
    let (slot, mapping) = (Region::hugetlb(LARGE)?, Region::memfd("x", LARGE)?);
    slot.write(0, 0);
    mapping.write(PAGE, 0);
    mapping.read_only(0, LARGE)?;
    slot.put(&guest.vm, 1, AT, READ_ONLY)?;
    mapping.put(&guest.vm, 2, AT + LARGE, 0)?;
    // Two that touch each other and differ in this alone.
    let pages = Region::memfd("pages", 2 * PAGE)?;
    let both = AT + 2 * LARGE;
    set_slot(&guest.vm, 3, both, pages.start, PAGE, READ_ONLY)?;
    set_slot(&guest.vm, 4, both + PAGE, pages.start + PAGE, PAGE, 0)?;
    let read = [AT, AT + LARGE + PAGE, both, both + PAGE].map(|at| (at, Touch::Read));
    guest.touch(&read)?;
    let found: Vec<_> = guest
        .ranges_of_slots()?
        .iter()
        .map(|row| row.cells("level gpa size access write"))
        .collect();
    let expected = [
        format!("2 {AT:#x} {LARGE:#x} r-xu read-only"),
        format!("1 {:#x} 0x1000 r-xu read-only", AT + LARGE + PAGE),
        format!("1 {both:#x} 0x1000 r-xu read-only"),
        format!("1 {:#x} 0x1000 rwxu writable", both + PAGE),
    ];
    ensure_eq!(found, expected, "ranges");
    guest.agrees()?;
    kvmate.unload()
}

fn mmio() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new()?;
    // Nothing is there: KVM notes so in entries of level 1.
    guest.touch(&writes([AT, AT + PAGE, AT + 8 * PAGE]))?;
    let found = guest.ranges_of_slots()?;
    let places: Vec<_> = found
        .iter()
        .map(|row| row.cells("kind level gpa size access why"))
        .collect();
    let expected = [
        format!("mmio 1 {AT:#x} 0x2000 - -"),
        format!("mmio 1 {:#x} 0x1000 - -", AT + 8 * PAGE),
    ];
    ensure_eq!(places, expected, "ranges");
    for range in &found {
        let flags = range.get("flags");
        let generation = flags.split(',').find_map(|f| f.strip_prefix("generation="));
        let generation: u64 = generation.with_context(|| flags.to_owned())?.parse()?;
        // One slot was made since the VM was.
        ensure!(
            generation > 0 && generation < 100,
            "generation {generation}"
        );
        ensure!(!flags.contains("0x"), "bits without a name: {flags}");
    }
    ensure_eq!(guest.level(1)?.number("mmio")?, 3, "mmio");
    guest.agrees()?;
    let found = map::look_up(&guest.name, AT + 8 * PAGE)?;
    ensure_eq!(
        found.cells("stage2_kind stage2_level slot"),
        "mmio 1 ",
        "look-up"
    );
    kvmate.unload()
}

fn holes_punched() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new()?;
    let region = Region::hugetlb(4 * LARGE)?;
    region.put(&guest.vm, 1, AT, 0)?;
    guest.touch(&writes(every(AT, 4, LARGE)))?;
    ensure_eq!(guest.level(2)?.number("leaves")?, 4, "before");
    let file = region.file.as_ref().context("a file")?;
    // SAFETY: A call on a file of ours.
    let done = unsafe {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        libc::fallocate(file.as_raw_fd(), mode, LARGE as i64, LARGE as i64)
    };
    ensure!(done == 0, "fallocate: {}", std::io::Error::last_os_error());
    let found: Vec<_> = guest
        .ranges_of_slots()?
        .iter()
        .map(|row| row.cells("level gpa size"))
        .collect();
    let expected = [
        format!("2 {AT:#x} {LARGE:#x}"),
        format!("2 {:#x} {:#x}", AT + 2 * LARGE, 2 * LARGE),
    ];
    ensure_eq!(found, expected, "ranges");
    guest.agrees()?;
    let hole = map::look_up(&guest.name, AT + LARGE)?;
    ensure_eq!(
        hole.cells("slot stage2_level host_level pfn"),
        "1   ",
        "look-up in the hole"
    );
    guest.touch(&writes([AT + LARGE]))?;
    ensure_eq!(guest.ranges_of_slots()?.len(), 1, "ranges");
    guest.agrees()?;
    kvmate.unload()
}

/// What is read so is what is read at once, from that place on. The host's kernel may change an entry
/// meanwhile: then it is tried again.
fn reads_the_same(
    path: &Path,
    from: impl Fn(usize) -> usize,
    read: impl Fn(&mut File, &mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    let mut lengths = Vec::new();
    for _ in 0..4 {
        let whole = fs::read(path)?;
        let at = from(whole.len());
        let (mut file, mut text) = (File::open(path)?, Vec::new());
        file.seek(SeekFrom::Start(at as u64))?;
        read(&mut file, &mut text)?;
        if text == whole[at..] {
            return Ok(());
        }
        lengths.push((text.len(), whole.len()));
    }
    anyhow::bail!("another text each time, of these lengths: {lengths:?}")
}

fn reading_in_parts() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new()?;
    let region = Region::memfd("many", 8 * LARGE)?;
    region.put(&guest.vm, 1, AT, 0)?;
    // Every other page, so that each is a range: more than a step can take, or a buffer.
    let count = 1500;
    let list = writes(every(AT, count, 2 * PAGE));
    guest.touch(&list)?;
    let path = Path::new(DEBUGFS)
        .join("vms")
        .join(&guest.name)
        .join("stage2_map");
    let whole = fs::read_to_string(&path)?;
    let rows = map::parse(&whole, map::RANGES)?;
    let of_slot = rows
        .iter()
        .filter(|row| row.number("gpa").is_ok_and(|gpa| gpa >= AT));
    ensure_eq!(of_slot.count() as u64, count, "ranges");
    // By a byte, by parts that cut lines, and from places in the middle.
    for size in [1, 13, 4095, 70_000] {
        reads_the_same(
            &path,
            |_| 0,
            |file, text| {
                let mut part = vec![0u8; size];
                loop {
                    match file.read(&mut part)? {
                        0 => return Ok(()),
                        read => text.extend(&part[..read]),
                    }
                }
            },
        )
        .with_context(|| format!("by {size}"))?;
    }
    let places: [fn(usize) -> usize; 5] =
        [|all| all / 2, |_| 1, |all| all - 3, |_| 0, |all| all / 3];
    for (number, place) in places.iter().enumerate() {
        reads_the_same(&path, place, |file, text| {
            file.read_to_end(text)?;
            Ok(())
        })
        .with_context(|| format!("from place {number}"))?;
    }
    // A reader that is open does not hold up the VM's end.
    let mut reader = File::open(&path)?;
    let mut part = [0; 4096];
    ensure!(reader.read(&mut part)? > 0, "nothing read");
    let name = guest.name.clone();
    drop(guest);
    oracle::wait_for_end(&name)?;
    let late = reader.read(&mut part).map_err(|e| e.raw_os_error());
    ensure_eq!(
        late,
        Err(Some(Errno::EIO as i32)),
        "a read after the VM's end"
    );
    drop(reader);
    kvmate.unload()
}

/// More than a step takes, all of a kind: one range.
fn one_long_range() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new()?;
    let region = Region::memfd("long", 12 * LARGE)?;
    region.put(&guest.vm, 1, AT, 0)?;
    let (begin, size) = (AT + LARGE / 2, 10 * LARGE);
    pages::fault_in(&guest.vcpu, begin, size)?;
    let ranges = guest.ranges_of_slots()?;
    let found: Vec<_> = ranges
        .iter()
        .map(|row| row.cells("level gpa size why"))
        .collect();
    ensure_eq!(found, [format!("1 {begin:#x} {size:#x} host-4k")], "ranges");
    let tables = guest.level(1)?.number("tables")?;
    ensure!(tables >= 11, "{tables} tables");
    guest.agrees()?;
    kvmate.unload()
}

/// As much of a TiB as this machine has addresses, of which a page in each 16 GiB is there.
fn sparse_terabyte() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new()?;
    let processor = fs::read_to_string("/proc/cpuinfo")?;
    let bits = processor
        .split_once("address sizes")
        .and_then(|(_, rest)| rest.split_once(':')?.1.split_whitespace().next())
        .context("address sizes")?;
    let end = 1u64 << bits.parse::<u32>()?.min(40);
    let begin = 4u64 << 30;
    let region = Region::anonymous(end - begin, 0, false)?;
    set_slot(&guest.vm, 1, begin, region.start, end - begin, 0)?;
    let places: Vec<_> = (begin..end).step_by(16 << 30).collect();
    for &at in &places {
        pages::fault_in(&guest.vcpu, at, PAGE)?;
    }
    let resident = resident()?;
    let began = Instant::now();
    let ranges = guest.ranges_of_slots()?;
    let found = ranges.iter().map(|row| row.cells("level gpa size"));
    let expected: Vec<_> = places
        .iter()
        .map(|at| format!("1 {at:#x} 0x1000"))
        .collect();
    ensure_eq!(found.collect::<Vec<_>>(), expected, "ranges");
    guest.agrees()?;
    // A walk page by page would take hours.
    ensure!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    // Memory of the VMM's grew by what this test keeps, not by the guest's.
    ensure!(
        self::resident()? < resident + 256,
        "memory came to be there"
    );
    kvmate.unload()
}

/// How many pages of this process are there.
fn resident() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    Ok(text.split(' ').nth(1).context("statm")?.parse()?)
}

fn vm_older_than_the_module() -> Result<()> {
    let mut guest = Guest::new()?;
    let region = Region::hugetlb(2 * LARGE)?;
    region.put(&guest.vm, 1, AT, 0)?;
    guest.touch(&writes([AT, AT + LARGE]))?;
    let kvmate = Kvmate::load("")?;
    ensure_eq!(guest.agrees()?[1], 2, "large pages");
    let ranges = guest.ranges_of_slots()?;
    ensure_eq!(ranges.len(), 1, "ranges");
    kvmate.unload()
}

fn shadow_paging() -> Result<()> {
    let kvm = WithoutStage2::new()?;
    let kvmate = Kvmate::load("")?;
    {
        let mut guest = Guest::new()?;
        let region = Region::hugetlb(LARGE)?;
        region.put(&guest.vm, 1, AT, 0)?;
        guest.touch(&writes([AT]))?;
        let rows = guest.stage2()?;
        let found: Vec<_> = rows
            .iter()
            .map(|row| row.cells("root mode as vcpus leaves tables unknown"))
            .collect();
        ensure_eq!(found, ["0 shadow 0 1 - - -"], "stage2");
        ensure_eq!(guest.ranges()?.len(), 0, "ranges");
        // What is not of stage 2 is told.
        let row = map::look_up(&guest.name, AT)?;
        ensure_eq!(row.cells("slot host_level stage2_level"), "1 2 ", "look-up");
    }
    drop(kvm);
    kvmate.unload()
}

/// Without a second stage each vCPU that pages nothing has a root of its own.
fn many_roots() -> Result<()> {
    const COUNT: u64 = 150;
    let kvm = WithoutStage2::new()?;
    let kvmate = Kvmate::load("")?;
    {
        let vm = Vm::new(steps::MEMORY, false)?;
        steps::load(&vm, 0, &[Step::Out(1)]);
        let mut vcpus = Vec::new();
        for id in 0..COUNT {
            let mut vcpu = vm.vcpu(id)?;
            steps::start_with(&vcpu, 0, false)?;
            steps::run(&mut vcpu, || ())?;
            vcpus.push(vcpu);
        }
        let rows = map::table(&name_of(&vm), "stage2", map::STAGE2)?;
        let found: Vec<_> = rows.iter().map(|r| r.cells("root mode as vcpus")).collect();
        let all: Vec<_> = (0..COUNT)
            .map(|root| format!("{root} shadow 0 1"))
            .collect();
        ensure_eq!(found, all, "roots");
    }
    drop(kvm);
    kvmate.unload()
}

fn ended() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new()?;
    let folder = Path::new(DEBUGFS).join("vms").join(&guest.name);
    let opened =
        ["memslots", "stage2", "stage2_map", "lookup"].map(|name| File::open(folder.join(name)));
    let name = guest.name.clone();
    drop(guest);
    oracle::wait_for_end(&name)?;
    for file in opened {
        let mut text = String::new();
        let found = file?
            .read_to_string(&mut text)
            .map_err(|e| e.raw_os_error());
        ensure_eq!(
            found,
            Err(Some(Errno::EIO as i32)),
            "a read after the VM's end"
        );
    }
    kvmate.unload()
}
