// SPDX-License-Identifier: GPL-2.0
//! Why a page is small: each reason, provoked.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::{
        nested::{self, Tables},
        pages::{
            self, set_slot, Region,
            Touch::{self, Execute, Write},
            LARGE, PAGE,
        },
        Vm,
    },
    ktap,
    map::{
        self,
        guest::{every, writes, Guest, AT, LOG},
    },
    module::{self, Kvmate},
    storm::name_of,
};
use std::{fs, process::ExitCode};

fn main() -> ExitCode {
    ktap::main(&[
        ("dirty_log_over_half", dirty_log_over_half),
        ("edge_and_alignment", edge_and_alignment),
        ("mixed_permissions", mixed_permissions),
        ("nx_recovery", nx_recovery),
        ("write_tracked", write_tracked),
    ])
}

/// KVM's switch for executable large pages, put back on drop.
struct NxHugePages(String);

impl NxHugePages {
    const PATH: &str = "/sys/module/kvm/parameters/nx_huge_pages";

    fn force() -> Result<Self> {
        let before = fs::read_to_string(Self::PATH)?.trim().to_owned();
        fs::write(Self::PATH, "force").context(Self::PATH)?;
        Ok(Self(before))
    }
}

impl Drop for NxHugePages {
    fn drop(&mut self) {
        let before = if self.0 == "Y" { "force" } else { "off" };
        let _ = fs::write(Self::PATH, before);
    }
}

fn dirty_log_over_half() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new()?;
    let region = Region::hugetlb(8 * LARGE)?;
    every(0, 8, LARGE).for_each(|at| region.write(at, 0));
    let half = 4 * LARGE;
    let put = |flags| -> Result<()> {
        set_slot(&guest.vm, 1, AT, region.start, half, 0)?;
        set_slot(&guest.vm, 2, AT + half, region.start + half, half, flags)
    };
    put(0)?;
    let all = writes(every(AT, 8, LARGE));
    pages::touch(&guest.vm.memory, &mut guest.vcpu, &all)?;
    let of = |guest: &Guest| -> Result<Vec<String>> {
        let ranges = guest.ranges_of_slots()?;
        Ok(ranges
            .iter()
            .map(|row| row.cells("level gpa size write why"))
            .collect())
    };
    let before = [format!("2 {AT:#x} {:#x} writable -", 8 * LARGE)];
    ensure_eq!(of(&guest)?, before, "before");
    guest.agrees()?;
    // Write-protected, and split by 4 KiB where it is written to again. Not with PML: hardware logs.
    let pml = fs::read_to_string("/sys/module/kvm_intel/parameters/pml");
    let pml = pml.is_ok_and(|text| text.starts_with('Y'));
    set_slot(&guest.vm, 2, AT + half, region.start + half, half, LOG)?;
    guest.touch(&writes([
        AT + PAGE,
        AT + half + 5 * PAGE,
        AT + half + LARGE + PAGE,
    ]))?;
    let found = guest.ranges_of_slots()?;
    let first = found.first().context("no range")?;
    let cells = first.cells("level gpa size write why");
    ensure_eq!(
        cells,
        format!("2 {AT:#x} {half:#x} writable -"),
        "the half that is not logged"
    );
    let level1 = found.iter().filter(|row| row.get("level") == "1");
    for range in level1.clone() {
        ensure_eq!(range.get("why"), "dirty-log", "{range:?}");
    }
    let written: Vec<_> = level1
        .filter(|row| row.get("write") == "writable")
        .map(|row| row.cells("gpa size"))
        .collect();
    let expected = [5 * PAGE, LARGE + PAGE].map(|at| format!("{:#x} 0x1000", AT + half + at));
    if !pml {
        ensure_eq!(written, expected, "writable pages that are logged");
    }
    let (small, logged) = (guest.level(1)?, guest.level(1)?.number("dirty-log")?);
    let own = small.number("leaves")? - logged;
    ensure_eq!(
        own,
        pages::own_pages(8, false).len() as u64,
        "the guest's own pages"
    );
    guest.agrees()?;
    kvmate.unload()
}

fn edge_and_alignment() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new()?;
    let whole = Region::hugetlb(4 * LARGE)?;
    every(0, 4, LARGE).for_each(|at| whole.write(at, 0));
    // From the middle of a block to the middle of another.
    let cut = LARGE / 2;
    set_slot(&guest.vm, 1, AT + cut, whole.start + cut, 2 * LARGE, 0)?;
    // Not aligned to each other.
    set_slot(
        &guest.vm,
        2,
        AT + 8 * LARGE,
        whole.start + 3 * LARGE + PAGE,
        PAGE * 500,
        0,
    )?;
    let list = [
        cut,
        LARGE - PAGE,
        LARGE,
        2 * LARGE,
        2 * LARGE + PAGE,
        8 * LARGE + 7 * PAGE,
    ];
    guest.touch(&writes(list.map(|at| AT + at)))?;
    let found: Vec<_> = guest
        .ranges_of_slots()?
        .iter()
        .map(|row| row.cells("level gpa size why"))
        .collect();
    let expected = [
        format!("1 {:#x} 0x1000 edge", AT + cut),
        format!("1 {:#x} 0x1000 edge", AT + LARGE - PAGE),
        format!("2 {:#x} {LARGE:#x} -", AT + LARGE),
        format!("1 {:#x} 0x2000 edge", AT + 2 * LARGE),
        format!("1 {:#x} 0x1000 slot-alignment", AT + 8 * LARGE + 7 * PAGE),
    ];
    ensure_eq!(found, expected, "ranges");
    let level = guest.level(1)?;
    let own = guest.vm.memory.address() % LARGE != 0;
    let own = if own {
        pages::own_pages(6, false).len() as u64
    } else {
        0
    };
    ensure_eq!(level.number("slot-alignment")?, 1 + own, "slot-alignment");
    guest.agrees()?;
    kvmate.unload()
}

fn mixed_permissions() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new()?;
    let region = Region::anonymous(2 * LARGE, 0, true)?;
    [0, LARGE].map(|at| region.write(at, 0));
    // Half of the first block; the host cannot map it by one page any more.
    region.read_only(0, LARGE / 2)?;
    region.put(&guest.vm, 1, AT, 0)?;
    guest.touch(&[
        (AT, Touch::Read),
        (AT + LARGE / 2, Write),
        (AT + LARGE, Write),
    ])?;
    let found: Vec<_> = guest
        .ranges_of_slots()?
        .iter()
        .map(|row| row.cells("level gpa size write why"))
        .collect();
    let expected = [
        format!("1 {AT:#x} 0x1000 read-only mixed-permissions"),
        format!("1 {:#x} 0x1000 writable mixed-permissions", AT + LARGE / 2),
        format!("2 {:#x} {LARGE:#x} writable -", AT + LARGE),
    ];
    ensure_eq!(found, expected, "ranges");
    ensure_eq!(
        guest.level(1)?.number("mixed-permissions")?,
        2,
        "mixed-permissions"
    );
    guest.agrees()?;
    kvmate.unload()
}

fn nx_recovery() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let _nx = NxHugePages::force()?;
    let mut guest = Guest::new()?;
    let region = Region::hugetlb(2 * LARGE)?;
    // RET
    [0, LARGE].map(|at| region.write(at, 0xc3));
    region.put(&guest.vm, 1, AT, 0)?;
    guest.touch(&[(AT + PAGE, Write), (AT + LARGE, Execute)])?;
    let found: Vec<_> = guest
        .ranges_of_slots()?
        .iter()
        .map(|row| row.cells("level gpa size why"))
        .collect();
    let expected = [
        format!("2 {AT:#x} {LARGE:#x} -"),
        format!("1 {:#x} 0x1000 nx-recovery", AT + LARGE),
    ];
    ensure_eq!(found, expected, "ranges");
    let first = guest.ranges_of_slots()?;
    let access = first.first().context("a range")?.get("access");
    ensure!(&access[2..3] == "-", "executable: {access}");
    ensure_eq!(guest.level(1)?.number("nx-recovery")?, 1, "nx-recovery");
    guest.agrees()?;
    let found = map::look_up(&guest.name, AT + LARGE)?;
    ensure_eq!(
        found.cells("why host_level stage2_level"),
        "nx-recovery 2 1",
        "look-up"
    );
    kvmate.unload()
}

/// A guest that runs a guest: KVM tracks writes to the pages of its nested tables.
fn write_tracked() -> Result<()> {
    if module::vendor()? != "kvm_amd" {
        return ktap::skip("the guest with a guest of its own is for SVM");
    }
    let kvmate = Kvmate::load("")?;
    let vm = Vm::new(nested::MEMORY, false)?;
    let mut vcpu = vm.vcpu(0)?;
    let name = name_of(&vm);
    let region = Region::hugetlb(3 * LARGE)?;
    every(0, 3, LARGE).for_each(|at| region.write(at, 0));
    let tables = Tables {
        root: AT,
        others: AT + LARGE,
    };
    for (gpa, word) in tables.words() {
        for (at, byte) in word.to_le_bytes().into_iter().enumerate() {
            region.write(gpa - AT + at as u64, byte);
        }
    }
    region.put(&vm, 1, AT, 0)?;
    nested::start(&vm, &vcpu, &tables)?;
    nested::write(&mut vcpu, true, AT + 5 * PAGE)?;
    for block in [1, 2] {
        nested::write(&mut vcpu, false, AT + block * LARGE + 5 * PAGE)?;
    }
    let ranges = || -> Result<Vec<String>> {
        let mut rows = map::table(&name, "stage2_map", map::RANGES)?;
        rows.retain(|row| row.number("gpa").is_ok_and(|gpa| gpa >= AT));
        Ok(rows
            .iter()
            .map(|row| row.cells("root level gpa write why"))
            .collect())
    };
    let mut expected = vec![
        format!("0 1 {:#x} writable write-tracked", AT + 5 * PAGE),
        format!("0 1 {:#x} writable write-tracked", AT + LARGE + 5 * PAGE),
        format!("0 2 {:#x} writable -", AT + 2 * LARGE),
    ];
    ensure_eq!(ranges()?, expected, "ranges");
    let rows = map::table(&name, "stage2", map::STAGE2)?;
    let last = rows
        .last()
        .context("no rows")?
        .cells("root mode vcpus leaves");
    ensure_eq!(last, "1 nested 1 -", "the nested root");
    let found = map::look_up(&name, AT + 5 * PAGE)?;
    ensure_eq!(found.cells("why host_level"), "write-tracked 2", "look-up");
    // KVM gives the shadows up when their tables are written to a few times. Nothing is against a large
    // page then, but what was mapped before stays small until KVM comes by.
    let mut writes = 0;
    while ranges()?.contains(&expected[1]) {
        writes += 1;
        ensure!(writes < 20, "the tables are shadowed for ever");
        nested::write(&mut vcpu, false, AT + LARGE)?;
    }
    let (first, table) = (AT + LARGE + 5 * PAGE, AT + LARGE);
    expected[1] = format!("0 1 {first:#x} writable unknown");
    expected.insert(1, format!("0 1 {table:#x} write-tracked unknown"));
    ensure_eq!(ranges()?, expected, "ranges without shadows");
    drop((vcpu, vm));
    kvmate.unload()
}
