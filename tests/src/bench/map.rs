// SPDX-License-Identifier: GPL-2.0
//! What reading a VM's stage-2 tables costs, beside a plain copy of as many bytes, and for how long
//! KVM's MMU lock is held meanwhile.

use crate::{
    guest::{
        pages::{self, Region, Touch, PAGE},
        Vm,
    },
    map,
    module::Kvmate,
    storm::name_of,
};
use anyhow::{ensure, Context, Result};
use std::{hint::black_box, time::Instant};

/// Where the guest's memory is.
const AT: u64 = 1 << 30;
/// How much of it is mapped, by 4 KiB: a table for each 2 MiB.
const SIZE: u64 = 32 << 20;

/// Measure, and tell in a line. By the clock, which counts instructions where the machine does.
pub fn report() -> Result<String> {
    let kvmate = Kvmate::load("observe=0")?;
    let vm = Vm::new(pages::MEMORY, false)?;
    let mut vcpu = vm.vcpu(0)?;
    let region = Region::memfd("bench", SIZE)?;
    region.put(&vm, 1, AT, 0)?;
    let all: Vec<_> = (0..SIZE / PAGE)
        .map(|page| (AT + page * PAGE, Touch::Write))
        .collect();
    pages::touch(&vm.memory, &mut vcpu, &all)?;
    let name = name_of(&vm);
    let read = || map::table(&name, "stage2", map::STAGE2);
    // The second time, so that all is warm.
    read()?;
    let began = Instant::now();
    let rows = read()?;
    let walked = began.elapsed();
    let (mut tables, mut held) = (0, 0);
    for row in &rows {
        tables += row.number("tables")?;
        held = held.max(row.number("held_ns")?);
    }
    ensure!(tables >= SIZE >> 21, "{tables} tables");
    let bytes = vec![1u8; (tables * PAGE) as usize];
    let mut copy = bytes.clone();
    let began = Instant::now();
    copy.copy_from_slice(black_box(&bytes));
    let copied = began.elapsed();
    black_box(&copy);
    let entries = tables * 512;
    let each = |time: std::time::Duration| time.as_nanos() as f64 / entries as f64;
    let rate = 1e3 / each(walked);
    let (walk, copy) = (each(walked), each(copied));
    drop((vcpu, vm));
    kvmate.unload().context("after the walk")?;
    Ok(format!(
        "stage2: {entries} entries in {tables} tables, {walk:.2} ns each ({rate:.1} million a second), \
         a copy {copy:.2}; MMU lock held {held} ns at most"
    ))
}
