// SPDX-License-Identifier: GPL-2.0
//! What an interrupt costs, kvmate's binding beside `KVM_IRQFD`: from the write to the eventfd to the
//! first instruction of the guest's handler, on one processor, with a guest that halts. The guest's
//! time-stamp counter is the host's, and it is read at both ends.

use super::{
    sample::ticks,
    table::{print, row, spread},
};
use crate::{
    guest::irq::{self, Chips, Guest, Running, Trigger},
    module::Kvmate,
    way::{Target, Way},
};
use anyhow::{ensure, Context, Result};
use std::{sync::atomic::Ordering::Acquire, thread, time::Duration};

const VECTOR: u8 = 0x51;
const PIN: u32 = 10;
const MSI: u32 = 24;

/// Where the interrupts go, and what that is.
const GSIS: [(u32, &str); 2] = [
    (
        MSI,
        "eventfd to MSI: write, wake-up, entry, the guest's handler",
    ),
    (
        PIN,
        "eventfd to the IOAPIC: write, worker, wake-up, entry, the guest's handler",
    ),
];

/// Who delivers.
#[derive(Clone, Copy, PartialEq)]
enum Who {
    /// KVM, and kvmate is not loaded. What the others are compared with.
    Kvm,
    /// KVM, and kvmate observes.
    Beside,
    /// KVM, and kvmate counts interrupts too.
    Counted,
    /// kvmate, which observes as well.
    Kvmate,
}

const ALL: [Who; 4] = [Who::Kvm, Who::Beside, Who::Counted, Who::Kvmate];

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM_IRQFD",
            Self::Beside => "KVM_IRQFD, kvmate loaded",
            Self::Counted => "KVM_IRQFD, kvmate, irqs=1",
            Self::Kvmate => "kvmate's binding",
        }
    }

    /// What each of so many interrupts cost.
    fn measure(self, gsi: u32, count: u32) -> Result<Vec<f64>> {
        let kvmate = match self {
            Self::Kvm => None,
            Self::Beside | Self::Kvmate => Some(Kvmate::load("")?),
            Self::Counted => Some(Kvmate::load("irqs=1")?),
        };
        let way = match self {
            Self::Kvm | Self::Beside | Self::Counted => Way::Kvm,
            Self::Kvmate => Way::Kvmate,
        };
        let mut guest = Guest::new(Chips::Kernel, 1)?;
        guest.ioapic(PIN as usize, Trigger::Edge, 0, VECTOR);
        guest.route(&[irq::msi(0, VECTOR)])?;
        guest.share_clock()?;
        let costs = guest.run(|running| interrupts(running, way, gsi, count))?;
        drop(guest);
        kvmate.map_or(Ok(()), Kvmate::unload)?;
        Ok(costs)
    }
}

fn interrupts(running: &Running, way: Way, gsi: u32, count: u32) -> Result<Vec<f64>> {
    // Those that have every path taken once.
    const WARM: u32 = 20;
    let irqfd = way.irqfd(running, Target::Gsi(gsi))?;
    let mut costs = Vec::new();
    for number in 1..=count + WARM {
        let begun = ticks();
        irqfd.signal()?;
        // The guest takes it, and halts again.
        thread::sleep(Duration::from_millis(2));
        ensure!(
            running.count(0, VECTOR) == u64::from(number),
            "{} interrupts of {number}",
            running.count(0, VECTOR)
        );
        if number > WARM {
            let entered = running.machine().cpus[0].entered.load(Acquire);
            let cost = entered.checked_sub(begun);
            costs.push(cost.context("the guest's clock is not the host's")? as f64);
        }
    }
    Ok(costs)
}

/// Instructions an interrupt: the median of so many. Tells how many targets were missed, and whether
/// something could not be measured.
pub fn instructions(count: u32, target: f64) -> (usize, bool) {
    let (mut missed, mut failed) = (0, false);
    for (gsi, what) in GSIS {
        println!("\n{what}");
        let mut rows = vec![row(&[
            "who",
            "instructions",
            "lowest",
            "highest",
            "ratio",
            "added",
            "target",
            "",
        ])];
        let mut bare = None;
        for who in ALL {
            let mut cells = row(&[who.name(), "-", "-", "-", "-", "-", "-"]);
            let mut remark = String::new();
            eprintln!(
                "bench: counting {count} interrupts, GSI {gsi}: {}",
                who.name()
            );
            match who.measure(gsi, count) {
                Ok(costs) => {
                    let (lowest, median, highest) = spread(costs).unwrap_or_default();
                    let bare = *bare.get_or_insert(median);
                    let ratio = median / bare;
                    for (cell, value) in cells[1..].iter_mut().zip([median, lowest, highest]) {
                        *cell = format!("{value:.1}");
                    }
                    cells[4] = format!("{ratio:.4}");
                    cells[5] = format!("{:.1}", median - bare);
                    if who == Who::Kvmate {
                        let over = ratio - target;
                        cells[6] = format!("{target}");
                        missed += usize::from(over > 0.0);
                        remark = match over > 0.0 {
                            true => format!("MISSED by {over:.4}"),
                            false => "ok".into(),
                        };
                    }
                }
                Err(error) => {
                    failed = true;
                    remark = format!("FAILED: {error:#}").replace('\n', " ");
                }
            }
            cells.push(remark);
            rows.push(cells);
        }
        print(&rows);
    }
    (missed, failed)
}
