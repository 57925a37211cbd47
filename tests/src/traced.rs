// SPDX-License-Identifier: GPL-2.0
//! KVM's trace events of interrupts, many of them: exact, or reading them fails.

use crate::ftrace::{Buffer, Entry};
use anyhow::{ensure, Context, Result};

/// One that went into a chip, or what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// `kvm_msi_set_irq`
    Msi {
        /// Its vector.
        vector: u8,
    },
    /// `kvm_ioapic_set_irq`: the pin goes up or down.
    Ioapic {
        /// Which.
        pin: u8,
    },
    /// `kvm_pic_set_irq`: likewise, counted over both PICs.
    Pic {
        /// Which.
        pin: u8,
    },
    /// `kvm_apic_accept_irq`, with a vector
    Accepted {
        /// Which.
        vector: u8,
    },
    /// `kvm_inj_virq`, for the first time
    Injected {
        /// Its vector.
        vector: u8,
    },
    /// `kvm_eoi`, of an interrupt that was being served
    Ended {
        /// Its vector.
        vector: u8,
    },
    /// None of these: an NMI, an `INT` of the guest's own, an EOI of nothing.
    Other,
}

const CHIPS: [&str; 3] = [
    "kvm/kvm_msi_set_irq",
    "kvm/kvm_pic_set_irq",
    "kvm/kvm_ioapic_set_irq",
];
/// What becomes of interrupts in LAPICs.
pub const LAPICS: [&str; 3] = ["kvm/kvm_apic_accept_irq", "kvm/kvm_inj_virq", "kvm/kvm_eoi"];

/// KVM's trace events, from when it was begun or cleared.
pub struct Traced(Buffer);

impl Traced {
    /// Begin, with what goes into the chips.
    pub fn begin() -> Result<Self> {
        Self::begin_with(CHIPS)
    }

    /// Begin, with these events.
    pub fn begin_with(events: [&'static str; 3]) -> Result<Self> {
        Buffer::of("traced", 2048, &events).map(Self)
    }

    /// Forget what there was.
    pub fn clear(&self) -> Result<()> {
        self.0.clear()
    }

    /// Nothing has gone in since.
    pub fn none(&self, after: &str) -> Result<()> {
        let lines = self.read()?;
        ensure!(lines.is_empty(), "after {after}: {lines:?}");
        Ok(())
    }

    /// What has gone in since.
    pub fn read(&self) -> Result<Vec<Line>> {
        let entries = self.0.read()?;
        entries
            .iter()
            .map(|entry| parse(entry).with_context(|| format!("not understood: {entry:?}")))
            .collect()
    }
}

/// The number after a word.
fn after(text: &str, word: &str) -> Option<u8> {
    let number = text.split_once(word)?.1.split([' ', '|']).next()?;
    match number.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16).ok(),
        None => number.parse().ok(),
    }
}

fn parse(Entry { event, text, .. }: &Entry) -> Option<Line> {
    match event.strip_prefix("kvm_")? {
        "msi_set_irq" => after(text, "vec ").map(|vector| Line::Msi { vector }),
        "ioapic_set_irq" => after(text, "pin ").map(|pin| Line::Ioapic { pin }),
        "pic_set_irq" => {
            let (chip, pin) = (after(text, "chip ")?, after(text, "pin ")?);
            Some(Line::Pic {
                pin: chip * 8 + pin,
            })
        }
        "apic_accept_irq" if text.contains("(Fixed|") || text.contains("(LowPrio|") => {
            after(text, "vec ").map(|vector| Line::Accepted { vector })
        }
        "inj_virq" if !text.contains("Soft") && !text.contains("[reinjected]") => {
            after(text, "IRQ ").map(|vector| Line::Injected { vector })
        }
        "eoi" if !text.contains("vector -1") => {
            after(text, "vector ").map(|vector| Line::Ended { vector })
        }
        "apic_accept_irq" | "inj_virq" | "eoi" => Some(Line::Other),
        _ => None,
    }
}
