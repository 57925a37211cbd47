// SPDX-License-Identifier: GPL-2.0
//! How many are due when so much time has gone by, at a rate that may be more than can be done.

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// The most that are due at a time. What would be more is never made up for: the rate is not kept.
pub const AT_ONCE: u64 = 64;

/// The longest time that is looked at.
const LONG: u64 = 10 * SECOND;

/// The fastest that may be asked for.
pub const FASTEST: u64 = 1_000_000;

/// Time between two looks at the clock at a rate, in nanoseconds: one interrupt's, but not less than
/// 50 us.
pub const fn interval(rate: u64) -> u64 {
    const SHORTEST: u64 = 50_000;
    match SECOND.checked_div(rate) {
        Some(interval) if interval > SHORTEST => interval,
        Some(_) => SHORTEST,
        None => SECOND,
    }
}

/// How many are due after `elapsed` nanoseconds at a rate a second of at most [`FASTEST`], and the part
/// of one that is left over, which is to be given the next time as `left`, in billionths.
pub const fn due(rate: u64, elapsed: u64, left: u64) -> (u64, u64) {
    let elapsed = if elapsed < LONG { elapsed } else { LONG };
    let rate = if rate < FASTEST { rate } else { FASTEST };
    // At most 10^16 and 10^9.
    let credit = elapsed * rate + left % SECOND;
    match credit / SECOND {
        whole if whole <= AT_ONCE => (whole, credit % SECOND),
        _ => (AT_ONCE, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn intervals() {
        assert_eq!(interval(0), SECOND);
        assert_eq!(interval(1), SECOND);
        assert_eq!(interval(5000), 200_000);
        assert_eq!(interval(20_000), 50_000);
        assert_eq!(interval(FASTEST), 50_000);
        assert_eq!(interval(u64::MAX), 50_000);
    }

    proptest! {
        #[test]
        fn no_more_than_at_once(rate: u64, elapsed: u64, left: u64) {
            let (now, left) = due(rate, elapsed, left);
            prop_assert!(now <= AT_ONCE && left < SECOND);
        }

        #[test]
        fn the_rate_is_kept_where_it_can(
            rate in 1..FASTEST,
            looks in prop::collection::vec(1u64..60_000, 1..300),
        ) {
            let (mut sum, mut left) = (0, 0);
            for &elapsed in &looks {
                let (now, rest) = due(rate, elapsed, left);
                sum += now;
                left = rest;
            }
            let exact = looks.iter().sum::<u64>() * rate / SECOND;
            prop_assert_eq!(sum, exact);
        }
    }
}
