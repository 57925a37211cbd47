// SPDX-License-Identifier: GPL-2.0
//! Log-linear buckets: eight to each power of two, so that a bucket is at most an eighth as wide as
//! its smallest value, and its middle at most a sixteenth away from any value in it.

/// How many buckets there are. Values from 2^45 on (hours, in cycles) share the last one.
pub const BUCKETS: usize = 344;

/// The bucket of a value. No division, no loop: this is on the hot path.
#[inline(always)]
pub const fn index(value: u64) -> usize {
    let shift = (value | 8).ilog2() - 3;
    // Far from overflowing: at most 60 * 8 + 15.
    let index = ((shift as usize) << 3).wrapping_add((value >> shift) as usize);
    if index < BUCKETS {
        index
    } else {
        BUCKETS - 1
    }
}

/// The smallest value of a bucket.
pub const fn lower(index: usize) -> u64 {
    if index < 8 {
        return index as u64;
    }
    let shift = index / 8 - 1;
    ((index % 8 + 8) as u64) << shift
}

/// The value that stands for a bucket: its middle.
pub const fn middle(index: usize) -> u64 {
    let (lower, end) = (lower(index), lower(index + 1));
    lower + (end - lower) / 2
}

/// The value at a rank of `per_mille` thousandths (500: the median) among what was counted, by the
/// nearest-rank rule: within a sixteenth of the true one, and never above `max`. 0 if nothing was.
pub fn percentile(counts: &[u64], per_mille: u64, max: u64) -> u64 {
    let total: u64 = counts.iter().sum();
    // ceil(total * per_mille / 1000) without overflow.
    let rank = total / 1000 * per_mille + (total % 1000 * per_mille).div_ceil(1000);
    let mut seen = 0;
    for (index, &count) in counts.iter().enumerate() {
        seen += count;
        if count > 0 && seen >= rank {
            // Everything beyond the limit is in one bucket, of which only the maximum is known.
            return if index + 1 >= BUCKETS {
                max
            } else {
                middle(index).min(max)
            };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u64 = 1 << 45;

    /// Values of every magnitude, not only huge ones.
    fn value() -> impl Strategy<Value = u64> {
        (0..46u32, any::<u64>()).prop_map(|(bits, v)| v & ((1 << bits) - 1))
    }

    /// The nearest-rank rule, said once more in the plainest way.
    fn exact(sorted: &[u64], per_mille: u64) -> u64 {
        let rank = (sorted.len() as u64 * per_mille).div_ceil(1000).max(1);
        sorted[rank as usize - 1]
    }

    #[test]
    fn buckets_follow_each_other() {
        assert_eq!(index(0), 0);
        for bucket in 0..BUCKETS {
            assert_eq!(index(lower(bucket)), bucket);
            assert_eq!(index(lower(bucket + 1) - 1), bucket);
        }
        assert_eq!(lower(BUCKETS), LIMIT);
        assert_eq!(index(LIMIT), BUCKETS - 1);
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn middle_is_within_a_sixteenth(v in value()) {
            let error = middle(index(v)).abs_diff(v);
            prop_assert!(error * 16 <= v, "{v}: {error}");
        }

        #[test]
        fn percentile_is_within_a_sixteenth(
            mut values in prop::collection::vec(value(), 1..400),
            per_mille in prop::sample::select(vec![1u64, 500, 990, 999, 1000]),
        ) {
            let mut counts = [0; BUCKETS];
            for &v in &values {
                counts[index(v)] += 1;
            }
            values.sort_unstable();
            let max = *values.last().unwrap();
            let (found, wanted) = (percentile(&counts, per_mille, max), exact(&values, per_mille));
            prop_assert!(found.abs_diff(wanted) * 16 <= wanted, "{found} instead of {wanted}");
            prop_assert!(found <= max);
        }

        #[test]
        fn percentiles_never_fall(values in prop::collection::vec(value(), 0..200)) {
            let mut counts = [0; BUCKETS];
            values.iter().for_each(|&v| counts[index(v)] += 1);
            let max = values.iter().copied().max().unwrap_or(0);
            let all = [1, 500, 990, 999, 1000].map(|p| percentile(&counts, p, max));
            prop_assert!(all.is_sorted() && all[4] <= max);
        }
    }

    #[test]
    fn nothing_and_too_much() {
        assert_eq!(percentile(&[0; BUCKETS], 500, 0), 0);
        let mut counts = [0; BUCKETS];
        counts[BUCKETS - 1] = 3;
        assert_eq!(percentile(&counts, 500, u64::MAX), u64::MAX);
        counts[0] = u64::MAX / 2;
        assert_eq!(percentile(&counts, 500, u64::MAX), 0);
    }
}
