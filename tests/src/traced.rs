// SPDX-License-Identifier: GPL-2.0
//! KVM's trace events of interrupts, many of them: exact, or reading them fails.

use anyhow::{ensure, Context, Result};
use std::{fs, path::PathBuf};

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

const CHIPS: [&str; 3] = ["kvm_msi_set_irq", "kvm_pic_set_irq", "kvm_ioapic_set_irq"];
/// What becomes of interrupts in LAPICs.
pub const LAPICS: [&str; 3] = ["kvm_apic_accept_irq", "kvm_inj_virq", "kvm_eoi"];

/// KVM's trace events, from when it was begun or cleared.
pub struct Traced(PathBuf, [&'static str; 3]);

impl Traced {
    /// Begin, with what goes into the chips.
    pub fn begin() -> Result<Self> {
        Self::begin_with(CHIPS)
    }

    /// Begin, with these events.
    pub fn begin_with(events: [&'static str; 3]) -> Result<Self> {
        let folder = PathBuf::from("/sys/kernel/tracing/instances/kvmate-traced");
        if !folder.exists() {
            fs::create_dir(&folder).context("a trace instance")?;
        }
        let traced = Self(folder, events);
        // The newest are lost first, if any are, and then this tells.
        traced.write("options/overwrite", "0")?;
        traced.write("buffer_size_kb", "2048")?;
        traced.clear()?;
        traced.switch("1")?;
        Ok(traced)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.0.join(file), text).with_context(|| file.to_owned())
    }

    fn switch(&self, on: &str) -> Result<()> {
        let mut events = self.1.iter();
        events.try_for_each(|event| self.write(&format!("events/kvm/{event}/enable"), on))
    }

    /// Forget what there was.
    pub fn clear(&self) -> Result<()> {
        self.write("trace", "")
    }

    /// Nothing has gone in since.
    pub fn none(&self, after: &str) -> Result<()> {
        let lines = self.read()?;
        ensure!(lines.is_empty(), "after {after}: {lines:?}");
        Ok(())
    }

    /// What has gone in since.
    pub fn read(&self) -> Result<Vec<Line>> {
        for cpu in fs::read_dir(self.0.join("per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            for name in ["overrun: ", "commit overrun: ", "dropped events: "] {
                let lost = stats.lines().find_map(|line| line.strip_prefix(name));
                ensure!(lost == Some("0"), "the trace lost events: {name}{lost:?}");
            }
        }
        let text = fs::read_to_string(self.0.join("trace")).context("trace")?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| parse(line).with_context(|| format!("not understood: {line}")))
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

fn parse(line: &str) -> Option<Line> {
    let event = line.split_once(": kvm_")?.1;
    match event.split_once(':')?.0 {
        "msi_set_irq" => after(event, "vec ").map(|vector| Line::Msi { vector }),
        "ioapic_set_irq" => after(event, "pin ").map(|pin| Line::Ioapic { pin }),
        "pic_set_irq" => {
            let (chip, pin) = (after(event, "chip ")?, after(event, "pin ")?);
            Some(Line::Pic {
                pin: chip * 8 + pin,
            })
        }
        "apic_accept_irq" if event.contains("(Fixed|") || event.contains("(LowPrio|") => {
            after(event, "vec ").map(|vector| Line::Accepted { vector })
        }
        "inj_virq" if !event.contains("Soft") && !event.contains("[reinjected]") => {
            after(event, "IRQ ").map(|vector| Line::Injected { vector })
        }
        "eoi" if !event.contains("vector -1") => {
            after(event, "vector ").map(|vector| Line::Ended { vector })
        }
        "apic_accept_irq" | "inj_virq" | "eoi" => Some(Line::Other),
        _ => None,
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let ended = self
            .switch("0")
            .and_then(|()| fs::remove_dir(&self.0).context("rmdir"));
        if let Err(error) = ended {
            eprintln!("# {error:#}");
        }
    }
}
