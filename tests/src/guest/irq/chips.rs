// SPDX-License-Identifier: GPL-2.0
//! The interrupt controllers, as the guest programs them. Runs in the guest.

use super::{
    load::DIRECT,
    shared::{Machine, PIC, SPURIOUS},
};
use std::{arch::asm, sync::atomic::Ordering::Relaxed};

const LAPIC: u64 = DIRECT + 0xfee0_0000;
const IOAPIC: u64 = DIRECT + 0xfec0_0000;

/// Write to a port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: No memory is touched.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

fn write(address: u64, value: u32) {
    // SAFETY: A register of a chip, which the guest's page tables map.
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// The LAPIC on; the first vCPU's takes the PICs' interrupts at LINT0.
pub fn lapic_on(first: bool) {
    const EXTINT: u32 = 0x700;
    const MASKED: u32 = 1 << 16;
    // LINT0 stays masked until it is on.
    write(LAPIC + 0xf0, 0x100 | u32::from(SPURIOUS));
    write(LAPIC + 0x350, if first { EXTINT } else { MASKED });
}

/// The PICs, with their inputs as wanted.
pub fn pic_on(machine: &Machine) {
    let [on_low, on_high, ..] = machine.pic.load(Relaxed).to_le_bytes();
    let [level_low, level_high, ..] = machine.pic_level.load(Relaxed).to_le_bytes();
    outb(0x4d0, level_low);
    outb(0x4d1, level_high);
    // ICW1 to 4: edge-triggered but for the ELCR, cascaded at input 2, vectors, 8086 mode.
    for (port, vector, cascade) in [(0x20, PIC, 4), (0xa0, PIC | 8, 2)] {
        outb(port, 0x11);
        for word in [vector, cascade, 1] {
            outb(port + 1, word);
        }
    }
    // The cascade's input is on if one behind it is.
    outb(0x21, !(on_low | (u8::from(on_high != 0) << 2)));
    outb(0xa1, !on_high);
}

/// The IOAPIC's redirection entries as wanted.
pub fn ioapic_on(machine: &Machine) {
    const MASKED: u64 = 1 << 16;
    for (pin, entry) in (0u32..).zip(&machine.pins) {
        let entry = match entry.load(Relaxed) {
            0 => MASKED,
            entry => entry,
        };
        for (register, half) in [(0x11, entry >> 32), (0x10, entry)] {
            write(IOAPIC, register + 2 * pin);
            write(IOAPIC + 0x10, half as u32);
        }
    }
}

/// The end of an interrupt, told to whom it came from.
pub fn end(vector: u8) {
    match vector {
        SPURIOUS => {}
        PIC..0x30 => {
            if vector >= PIC | 8 {
                outb(0xa0, 0x20);
            }
            outb(0x20, 0x20);
        }
        _ => write(LAPIC + 0xb0, 0),
    }
}
