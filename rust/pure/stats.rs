// SPDX-License-Identifier: GPL-2.0
//! A VM's statistics in the self-describing layout of `KVM_GET_STATS_FD`: header, id, descriptors,
//! data, one right after the other.
//!
//! Which statistics there are depends on the processor's vendor only: after those that are named here
//! ([`Values`], the histogram) comes one for each exit reason that KVM has a name for.

use super::histogram::{Histogram, BUCKETS};

/// How long a name may be, with a zero byte at its end.
pub const NAME: usize = 48;

const HEADER: usize = 24;
const DESCRIPTOR: usize = 16 + NAME;

/// What a number is; what the descriptor's flags and exponent make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// So many, since the VM was seen or its tables were reset.
    Count,
    /// Nanoseconds, likewise.
    Time,
    /// The longest time, in nanoseconds.
    Longest,
    /// How many there are now.
    Now,
    /// 1 or 0: whether it is so now.
    Flag,
    /// [`BUCKETS`] numbers, of a [`Histogram`].
    Histogram,
}

impl Kind {
    /// `flags` (`KVM_STATS_TYPE_*`, `KVM_STATS_UNIT_*`), `exponent` and `size`.
    const fn described(self) -> (u32, i16, u16) {
        const INSTANT: u32 = 1;
        const PEAK: u32 = 2;
        const LOG_HIST: u32 = 4;
        const SECONDS: u32 = 2 << 4;
        const BOOLEAN: u32 = 4 << 4;
        match self {
            Self::Count => (0, 0, 1),
            Self::Time => (SECONDS, -9, 1),
            Self::Longest => (PEAK | SECONDS, -9, 1),
            Self::Now => (INSTANT, 0, 1),
            Self::Flag => (INSTANT | BOOLEAN, 0, 1),
            Self::Histogram => (LOG_HIST | SECONDS, -9, BUCKETS as u16),
        }
    }
}

macro_rules! values {
    ($($(#[$what:meta])* $name:ident: $kind:ident,)*) => {
        /// The numbers that are named here, in the order of their descriptors.
        #[derive(Clone, Debug, Default)]
        pub struct Values {
            $($(#[$what])* pub $name: u64,)*
        }

        const NAMED: &[(&str, Kind)] = &[$((stringify!($name), Kind::$kind),)*];

        impl Values {
            fn each<E>(&self, mut put: impl FnMut(u64) -> Result<(), E>) -> Result<(), E> {
                $(put(self.$name)?;)*
                Ok(())
            }
        }
    };
}

values! {
    /// vCPUs.
    vcpus: Now,
    /// Exits, for whatever reason.
    exits: Count,
    /// Exits of vCPUs that had no record yet.
    exits_unrecorded: Count,
    /// Exits for reasons without a name, or of a failed entry.
    exits_other: Count,
    /// Exits whose time is known.
    exit_timed: Count,
    /// From these exits to the next entries.
    exit_ns: Time,
    /// The longest of them.
    exit_max_ns: Longest,
    /// Exits whose time was split.
    times_exits: Count,
    /// From these exits to the next entries; the sum of the four that follow.
    times_ns: Time,
    /// In user space.
    times_user_ns: Time,
    /// Halted.
    times_halted_ns: Time,
    /// Waiting for a CPU.
    times_preempted_ns: Time,
    /// The rest.
    times_kernel_ns: Time,
    /// MSRs read.
    msr_reads: Count,
    /// MSRs written.
    msr_writes: Count,
    /// Of both, those with #GP.
    msr_faults: Count,
    /// Page faults that made the guest exit.
    page_faults: Count,
    /// Of these, writes.
    page_faults_write: Count,
    /// Fetches.
    page_faults_exec: Count,
    /// Where there was a translation.
    page_faults_present: Count,
    /// Of user mode.
    page_faults_user: Count,
    /// Of the guest's page tables.
    page_faults_walk: Count,
    /// Where there is no memory.
    page_faults_mmio: Count,
    /// Interrupts put into the guest.
    irqs_injected: Count,
    /// Interrupts that the guest ended.
    irqs_eoi: Count,
    /// Whether hardware does both by itself.
    irqs_hidden: Flag,
    /// Interrupts that LAPICs were given.
    irqs_accepted: Count,
    /// Whether KVM does not tell of them.
    irqs_accepted_hidden: Flag,
}

/// How long header, id and descriptors are together, with that many exit reasons.
pub const fn head_size(reasons: usize) -> usize {
    HEADER + NAME + (NAMED.len() + 1 + reasons) * DESCRIPTOR
}

/// How long the data is.
pub const fn data_size(reasons: usize) -> usize {
    (NAMED.len() + BUCKETS + reasons) * size_of::<u64>()
}

/// The parts of a name in a field of [`NAME`] bytes: cut to what fits, `_` for blanks, zeros behind.
fn name(parts: [&[u8]; 2]) -> impl Iterator<Item = u8> + '_ {
    let text = parts.into_iter().flatten().take(NAME - 1);
    text.map(|&byte| if byte == b' ' { b'_' } else { byte })
        .chain(core::iter::repeat(0))
        .take(NAME)
}

/// Tell `put` the bytes of header, id and descriptors.
pub fn head<'a, E>(
    id: &'a [u8],
    reasons: impl ExactSizeIterator<Item = &'a [u8]>,
    mut put: impl FnMut(u8) -> Result<(), E>,
) -> Result<(), E> {
    let mut all = |bytes: &[u8]| bytes.iter().try_for_each(|&byte| put(byte));
    let descriptors = NAMED.len() + 1 + reasons.len();
    let header = [
        0,
        NAME,
        descriptors,
        HEADER,
        HEADER + NAME,
        head_size(reasons.len()),
    ];
    for word in header {
        all(&(word as u32).to_ne_bytes())?;
    }
    name([id, b""]).try_for_each(|byte| all(&[byte]))?;
    let named = NAMED
        .iter()
        .map(|&(name, kind)| ([name.as_bytes(), b""], kind));
    let histogram = core::iter::once(([&b"exit_hist"[..], &b""[..]], Kind::Histogram));
    let reasons = reasons.map(|name| ([&b"exits_"[..], name], Kind::Count));
    let mut offset = 0;
    for (parts, kind) in named.chain(histogram).chain(reasons) {
        let (flags, exponent, size) = kind.described();
        all(&flags.to_ne_bytes())?;
        all(&exponent.to_ne_bytes())?;
        all(&size.to_ne_bytes())?;
        all(&u32::to_ne_bytes(offset))?;
        // The size of buckets that are all of one size.
        all(&[0; 4])?;
        name(parts).try_for_each(|byte| all(&[byte]))?;
        offset += u32::from(size) * size_of::<u64>() as u32;
    }
    Ok(())
}

/// Tell `put` the numbers, in the descriptors' order.
pub fn data<E>(
    values: &Values,
    histogram: &Histogram,
    reasons: impl Iterator<Item = u64>,
    mut put: impl FnMut(u64) -> Result<(), E>,
) -> Result<(), E> {
    values.each(&mut put)?;
    histogram
        .buckets()
        .iter()
        .try_for_each(|&count| put(count))?;
    reasons.into_iter().try_for_each(put)
}

#[cfg(test)]
mod tests;
