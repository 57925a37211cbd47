// SPDX-License-Identifier: GPL-2.0
//! `small_guest [COUNT]`: a guest on KVM that writes COUNT times (1000) to a port and halts; tells
//! what it did and how many exits KVM itself has counted for it. For the tour, and for trying things.

use anyhow::{Context, Result};
use kvmate_tests::{
    guest::{self, real, Vm},
    stats::Stats,
};

fn main() -> Result<()> {
    let count = std::env::args().nth(1).map_or(Ok(1000), |a| a.parse());
    let count = count.context("usage: small_guest [COUNT]")?;
    let vm = Vm::new(1 << 16, false)?;
    real::load(&vm, real::Program::Out);
    let mut vcpu = vm.vcpu(0)?;
    let stats = Stats::of(&vcpu)?;
    real::start(&vcpu, count)?;
    let writes = guest::run(&mut vcpu, None)?;
    println!(
        "the guest wrote {writes} times to a port; KVM counted {} exits",
        stats.get("exits")?
    );
    Ok(())
}
