// SPDX-License-Identifier: GPL-2.0
//! Time-stamp counter cycles as time.

/// Nanoseconds of so many cycles of a counter with `khz` thousand cycles a second; right to a
/// nanosecond, and saturating instead of overflowing. A counter that does not run has no time.
pub const fn to_ns(cycles: u64, khz: u32) -> u64 {
    if khz == 0 {
        return 0;
    }
    let khz = khz as u64;
    // A remainder is below 2^32, times a million below 2^52.
    (cycles / khz)
        .saturating_mul(1_000_000)
        .saturating_add(cycles % khz * 1_000_000 / khz)
}

/// Cycles of so many nanoseconds, rounded down, saturating instead of overflowing.
pub const fn from_ns(ns: u64, khz: u32) -> u64 {
    let khz = khz as u64;
    // A remainder is below 2^20, times a rate below 2^52.
    (ns / 1_000_000)
        .saturating_mul(khz)
        .saturating_add(ns % 1_000_000 * khz / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_wide_arithmetic(cycles: u64, khz: u32) {
            let wide = if khz == 0 { 0 } else { u128::from(cycles) * 1_000_000 / u128::from(khz) };
            prop_assert_eq!(u128::from(to_ns(cycles, khz)), wide.min(u64::MAX.into()));
        }
    }

    proptest! {
        #[test]
        fn from_ns_agrees_with_wide_arithmetic(ns: u64, khz: u32) {
            let wide = u128::from(ns) * u128::from(khz) / 1_000_000;
            prop_assert_eq!(u128::from(from_ns(ns, khz)), wide.min(u64::MAX.into()));
        }
    }

    #[test]
    fn whole_seconds() {
        assert_eq!(to_ns(2_400_000_000, 2_400_000), 1_000_000_000);
        assert_eq!(to_ns(1, 1_000_000), 1);
    }
}
