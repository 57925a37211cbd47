// SPDX-License-Identifier: GPL-2.0
//! What the guest and the test have in common: one structure in guest memory, of atomics only.
//!
//! The test writes what the guest is to do, the guest counts what it took. Each vCPU has its own part,
//! which its GS base points to, so that an NMI's stub finds it with no register.

use crate::guest::Shared;
use std::sync::atomic::AtomicU64;

/// How many vCPUs such a guest can have.
pub const CPUS: usize = 2;

/// The interrupt by which the test wakes a vCPU: of the lowest priority of all.
pub const FENCE: u8 = 0x30;
/// What the LAPIC delivers when an interrupt went away before it was taken.
pub const SPURIOUS: u8 = 0xff;
/// The PICs' 16 vectors begin here.
pub const PIC: u8 = 0x20;
/// An NMI's.
pub const NMI: u8 = 2;

/// The port written over and over by a guest that holds.
pub const HELD: u16 = 0x10;
/// The port written with the vector of an exception.
pub const FAULT: u16 = 0x12;

/// Halt, and take what comes.
pub const HALT: u64 = 0;
/// Compute without exits, and take what comes.
pub const SPIN: u64 = 1;
/// Take no interrupt: what comes twice meanwhile may coalesce.
pub const HOLD: u64 = 2;

/// All of it.
#[repr(C)]
pub struct Machine {
    /// [`HALT`], [`SPIN`] or [`HOLD`]; a vCPU looks after each interrupt.
    pub mode: AtomicU64,
    /// Not 0: there are a PIC and an IOAPIC in the kernel.
    pub chips: AtomicU64,
    /// The PICs' inputs that are on.
    pub pic: AtomicU64,
    /// Those that are level-triggered (their ELCR).
    pub pic_level: AtomicU64,
    /// The IOAPIC's redirection entries; 0: masked.
    pub pins: [AtomicU64; 24],
    /// How often a device still wants an interrupt of that vector; the handler serves it once.
    pub devices: [AtomicU64; 256],
    /// The vector that is not ended before the test says so (0); none: 0.
    pub lingers: AtomicU64,
    /// Each vCPU's part.
    pub cpus: [Cpu; CPUS],
}

/// A vCPU's part. The stubs know where its first three members are.
#[repr(C)]
pub struct Cpu {
    /// Where it is, as the guest sees it.
    pub own: AtomicU64,
    /// The time-stamp counter when the last interrupt's stub began.
    pub entered: AtomicU64,
    /// Interrupts by vector.
    pub counts: [AtomicU64; 256],
    /// Which vCPU.
    pub number: AtomicU64,
    /// 1 when its LAPIC is on.
    pub ready: AtomicU64,
    /// 1 while it holds.
    pub held: AtomicU64,
    /// How far it has come in [`SPIN`].
    pub turns: AtomicU64,
}

// SAFETY: Both are of atomics alone.
unsafe impl Shared for Machine {}
// SAFETY: As above.
unsafe impl Shared for Cpu {}
