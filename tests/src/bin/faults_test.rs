// SPDX-License-Identifier: GPL-2.0
//! `faults`: page faults of guests known in advance, to the fault. The oracles are the guest's own
//! numbers, and the table `exits`: each page fault that KVM handles is an exit for one.

use anyhow::{ensure, Result};
use kvm_bindings::{kvm_regs, KVM_MEM_READONLY};
use kvmate_tests::{
    ensure_eq,
    guest::{
        chosen::{self, Registers},
        long, steps, Vm,
    },
    ktap,
    module::{self, Kvmate},
    oracle::name_of,
    seen, storm,
    table::{self, Fault},
};
use std::process::ExitCode;

fn main() -> ExitCode {
    ktap::main(&[
        ("off_by_default", off_by_default),
        ("exact", exact),
        ("of_two_vcpus", of_two_vcpus),
        ("many_memslots", many_memslots),
        ("hostile", hostile),
    ])
}

/// `mov [0], al; out DONE`
const WRITE: &[u8] = &[0xa2, 0x00, 0x00, 0xe6, steps::DONE];
/// `mov al, [0]; out DONE`
const READ: &[u8] = &[0xa0, 0x00, 0x00, 0xe6, steps::DONE];
/// `out DONE`
const NOTHING: &[u8] = &[0xe6, steps::DONE];

const PAGE: u64 = 0x1000;

/// A table `faults`.
struct Table(Vec<Fault>);

impl Table {
    fn read(kvmate: &Kvmate, path: &str) -> Result<Self> {
        let text = kvmate.read(&format!("vms/{path}/faults"))?;
        Ok(Self(table::faults(&text)?))
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &Fault> + use<'_> {
        let kind = kind.to_owned();
        self.0.iter().filter(move |line| line.kind == kind)
    }

    fn get(&self, kind: &str, which: &str) -> u64 {
        let line = self.of(kind).find(|line| line.which == which);
        line.map_or(0, |line| line.count)
    }

    fn sum(&self, kind: &str) -> u64 {
        self.of(kind).map(|line| line.count).sum()
    }

    /// Faults of the classes whose names have all these parts and none of those.
    fn class(&self, with: &[&str], without: &[&str]) -> u64 {
        let classes = self.of("class").filter(|line| {
            let parts: Vec<_> = line.which.split(',').collect();
            with.iter().all(|part| parts.contains(part))
                && !without.iter().any(|part| parts.contains(part))
        });
        classes.map(|line| line.count).sum()
    }
}

/// Exits for page faults in memory that the guest thinks is physical.
fn exits_for_faults(path: &str) -> Result<u64> {
    let exits = seen::exits_of(path)?;
    Ok(exits.of("npf") + exits.of("EPT_VIOLATION"))
}

/// Where pages are whose host pages are there, so that each is one fault: guest-physical, offset.
fn pages(vm: &Vm, address: u64, offset: usize, count: u64) -> impl Iterator<Item = u64> + use<> {
    for page in 0..count {
        vm.memory.write(offset + (page * PAGE) as usize, NOTHING);
    }
    (0..count).map(move |page| address + page * PAGE)
}

fn data(address: u64) -> Registers {
    Registers {
        data: address,
        ..Registers::default()
    }
}

fn off_by_default() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    ensure_eq!(kvmate.read("knobs/faults")?, "0", "knobs/faults");
    let (guest, mut vcpu) = chosen::vm(4 << 20, WRITE)?;
    chosen::run(&mut vcpu, data(2 << 20))?;
    let name = name_of(&guest.fd);
    ensure!(exits_for_faults(&name)? > 0, "no fault was taken");
    let table = Table::read(&kvmate, &name)?;
    ensure_eq!(table.0, [], "faults while switched off");
    drop((vcpu, guest));
    kvmate.unload()
}

/// Ten writes in slot 0; twenty, seven reads and five calls in slot 5; four reads and writes where a
/// slot is read-only, and three writes where there is nothing.
fn exact() -> Result<()> {
    let kvmate = Kvmate::load("faults=1")?;
    let (guest, mut vcpu) = chosen::vm(16 << 20, WRITE)?;
    guest.alias(5, 0, 1 << 30, 4 << 20, 8 << 20)?;
    guest.alias(6, KVM_MEM_READONLY, 2 << 30, 12 << 20, 2 << 20)?;
    let name = name_of(&guest.fd);
    // The code's own page, and what running it needs.
    chosen::run(&mut vcpu, Registers::default())?;
    let before = Table::read(&kvmate, &name)?;
    let mut nowhere = 0;
    for address in pages(&guest, 2 << 20, 2 << 20, 10)
        .chain(pages(&guest, (1 << 30) + (2 << 20), 6 << 20, 20))
        .chain((0..3).map(|page| (3 << 30) + page * PAGE))
    {
        nowhere += chosen::run(&mut vcpu, data(address))?;
    }
    ensure_eq!(nowhere, 3, "writes to where nothing is");
    for address in pages(&guest, (1 << 30) + (4 << 20), 8 << 20, 5) {
        let registers = Registers {
            code: Some(address),
            ..Registers::default()
        };
        chosen::run(&mut vcpu, registers)?;
    }
    let readonly: Vec<_> = pages(&guest, 2 << 30, 12 << 20, 4).collect();
    guest.memory.write(steps::code(0), READ);
    for address in pages(&guest, (1 << 30) + (6 << 20), 10 << 20, 7).chain(readonly.clone()) {
        chosen::run(&mut vcpu, data(address))?;
    }
    guest.memory.write(steps::code(0), WRITE);
    for address in readonly {
        nowhere += chosen::run(&mut vcpu, data(address))?;
    }
    ensure_eq!(nowhere, 7, "writes that went to user space");
    let after = Table::read(&kvmate, &name)?;
    let all = exits_for_faults(&name)?;
    for kind in ["class", "memslot", "range"] {
        ensure_eq!(after.sum(kind), all, "faults by {kind}, against exits");
        ensure_eq!(
            after.of(kind).map(|line| line.error).sum::<u64>(),
            0,
            "errors"
        );
    }
    for (kind, which, expected) in [
        ("memslot", "0:0", 10),
        ("memslot", "0:5", 32),
        ("memslot", "0:6", 8),
        ("memslot", "none", 3),
        ("range", "0x200000", 10),
        ("range", "0x40200000", 20),
        ("range", "0x40400000", 5),
        ("range", "0x40600000", 7),
        ("range", "0x80000000", 8),
        ("range", "0xc0000000", 3),
    ] {
        let found = after.get(kind, which) - before.get(kind, which);
        ensure_eq!(found, expected, "{kind} {which}: {:?}", after.0);
    }
    for (with, without, expected) in [
        (&["write"][..], &["present", "walk"][..], 33),
        (&["write", "present"], &["walk"], 4),
        (&["read"], &["present", "walk"], 11),
        (&["exec"], &["present", "walk"], 5),
    ] {
        let found = after.class(with, without) - before.class(with, without);
        ensure_eq!(found, expected, "{with:?}: {:?}", after.0);
    }
    kvmate.write(&format!("vms/{name}/reset"), "1")?;
    ensure_eq!(Table::read(&kvmate, &name)?.0, [], "faults after a reset");
    drop((vcpu, guest));
    kvmate.unload()
}

/// Each has its own table, and together they are the VM's.
fn of_two_vcpus() -> Result<()> {
    let kvmate = Kvmate::load("faults=1")?;
    let (guest, first) = chosen::vm(16 << 20, WRITE)?;
    let mut vcpus = [first, guest.vcpu(1)?];
    for (id, vcpu) in vcpus.iter_mut().enumerate() {
        let (offset, count) = ((4 + 4 * id) << 20, 20 + 10 * id as u64);
        for address in pages(&guest, offset as u64, offset, count) {
            chosen::run(vcpu, data(address))?;
        }
        // Both in one range too.
        for address in pages(&guest, (2 << 20) + (id as u64) * 5 * PAGE, 2 << 20, 5) {
            chosen::run(vcpu, data(address))?;
        }
    }
    let name = name_of(&guest.fd);
    let table = |path: &str| Table::read(&kvmate, path);
    let all = table(&name)?;
    let each = [
        table(&format!("{name}/vcpu0"))?,
        table(&format!("{name}/vcpu1"))?,
    ];
    for (which, expected) in [
        ("0x200000", [5, 5]),
        ("0x400000", [20, 0]),
        ("0x800000", [0, 30]),
    ] {
        let found = [&each[0], &each[1]].map(|table| table.get("range", which));
        ensure_eq!(found, expected, "{which} of each vCPU");
        ensure_eq!(
            all.get("range", which),
            expected[0] + expected[1],
            "{which}"
        );
    }
    for kind in ["class", "memslot"] {
        let sum = each[0].sum(kind) + each[1].sum(kind);
        ensure_eq!(all.sum(kind), sum, "faults by {kind}");
    }
    ensure_eq!(all.sum("memslot"), exits_for_faults(&name)?, "exits");
    drop((vcpus, guest));
    kvmate.unload()
}

/// More memslots than there are places: none is counted twice, none is lost.
fn many_memslots() -> Result<()> {
    const SLOTS: u64 = 200;
    let kvmate = Kvmate::load("faults=1")?;
    let (guest, mut vcpu) = chosen::vm(4 << 20, WRITE)?;
    let name = name_of(&guest.fd);
    for slot in 1..=SLOTS {
        let address = (1 << 30) + slot * (2 << 20);
        guest.alias(slot as u32, 0, address, 2 << 20, 1 << 20)?;
        for page in pages(&guest, address, 2 << 20, 2) {
            chosen::run(&mut vcpu, data(page))?;
        }
    }
    let table = Table::read(&kvmate, &name)?;
    ensure_eq!(table.sum("memslot"), exits_for_faults(&name)?, "exits");
    let slots = table
        .of("memslot")
        .filter(|line| line.which.starts_with("0:"));
    let own: Vec<_> = slots.filter(|line| line.which != "0:0").collect();
    for line in &own {
        ensure_eq!(line.count, 2, "{line:?}");
    }
    let other = table.get("memslot", "other");
    ensure_eq!(
        own.len() as u64 * 2 + other,
        SLOTS * 2,
        "faults in those slots"
    );
    ensure!((32..=64).contains(&own.len()), "{} slots apart", own.len());
    drop((vcpu, guest));
    kvmate.unload()
}

/// `mov [rdi], al; add rdi, rdx; dec rsi; test sil, 15; jnz over; mov [rbx], al; add rbx, rcx; over: test
/// rsi, rsi; jnz begin; out DONE`
const WALK: &[u8] = &[
    0x88,
    0x07, // mov [rdi], al
    0x48,
    0x01,
    0xd7, // add rdi, rdx
    0x48,
    0xff,
    0xce, // dec rsi
    0x40,
    0xf6,
    0xc6,
    0x0f, // test sil, 15
    0x75,
    0x05, // jnz over
    0x88,
    0x03, // mov [rbx], al
    0x48,
    0x01,
    0xcb, // add rbx, rcx
    0x48,
    0x85,
    0xf6, // over: test rsi, rsi
    0x75,
    0xe8, // jnz begin
    0xe6,
    steps::DONE,
];

/// A guest that touches as many ranges as it can once each, and one of them more often.
fn hostile() -> Result<()> {
    const CODE: usize = 0x10000;
    const RANGE: u64 = 2 << 20;
    const HOT: u64 = 1 << 30;
    const FIRST: u64 = 2 << 30;
    let ranges = if storm::slow() { 1u64 << 13 } else { 1 << 16 };
    let hits = ranges / 16;
    let kvmate = Kvmate::load("faults=1")?;
    let (guest, mut vcpu) = chosen::vm(8 << 20, NOTHING)?;
    let name = name_of(&guest.fd);
    // On VMX only the first access to a page without memory is a page fault: there it is to have some.
    let step = if module::is_loaded("kvm_intel") {
        guest.alias(1, 0, HOT, 4 << 20, RANGE as usize)?;
        let _ = pages(&guest, HOT, 4 << 20, RANGE / PAGE);
        PAGE
    } else {
        0
    };
    long::map(&guest, 2 << 20, FIRST + ranges * RANGE);
    guest.memory.write(CODE, WALK);
    long::enter(&vcpu)?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE as u64,
        rflags: 2,
        rdi: FIRST,
        rsi: ranges,
        rdx: RANGE,
        rbx: HOT,
        rcx: step,
        ..Default::default()
    })?;
    let nowhere = chosen::on(&mut vcpu)?;
    let expected = ranges + if step == 0 { hits } else { 0 };
    ensure_eq!(nowhere, expected, "writes to where nothing is");
    let table = Table::read(&kvmate, &name)?;
    let all = exits_for_faults(&name)?;
    ensure!(all >= ranges + hits, "{all} faults only");
    ensure_eq!(table.sum("class"), all, "faults by class");
    ensure_eq!(table.sum("memslot"), all, "faults by memslot");
    ensure_eq!(
        table.get("memslot", "none"),
        nowhere,
        "faults without memslot"
    );
    // Each page of the guest's page tables that it comes to.
    let tables = (FIRST + ranges * RANGE) >> 30;
    let walks = table.class(&["walk"], &[]);
    ensure!(
        (tables - 1..=2 * tables + 8).contains(&walks),
        "{walks} faults of page tables of {tables} pages: {:?}",
        table.0
    );
    let shown: Vec<_> = table.of("range").collect();
    ensure_eq!(shown.len(), 32, "ranges shown");
    // All 64 counters together are all faults, and these are the greater half of them.
    let together = table.sum("range");
    ensure!(
        (all / 2..=all).contains(&together),
        "{together} of {all} faults in the ranges shown"
    );
    for line in &shown {
        let Fault { count, error, .. } = line;
        ensure!(error <= &(all / 64) && error <= count, "of {all}: {line:?}");
        let start = u64::from_str_radix(line.which.trim_start_matches("0x"), 16)?;
        let truth = match start {
            HOT => hits,
            // Its code and tables.
            low if low < 8 << 20 => continue,
            walked => {
                let inside = (FIRST..FIRST + ranges * RANGE).contains(&walked);
                ensure!(inside && walked % RANGE == 0, "no such range: {line:?}");
                1
            }
        };
        ensure!(
            count - error <= truth && truth <= *count,
            "{truth} faults: {line:?}"
        );
    }
    let hottest = shown.first().map(|line| line.which.as_str());
    ensure_eq!(hottest, Some("0x40000000"), "the hottest range");
    drop((vcpu, guest));
    kvmate.unload()
}
