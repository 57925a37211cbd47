// SPDX-License-Identifier: GPL-2.0
//! Times in nanoseconds, counted by powers of two, as KVM's own logarithmic histograms are
//! (`kvm_stats_log_hist_update()`): a bucket for 0, one for 1, one for 2 and 3, and so on.

use super::{cycles, log_linear};
use core::fmt;

/// How many buckets there are: the last begins at 2^46 ns, most of a day.
pub const BUCKETS: usize = 48;

/// A histogram of times. As text its buckets in which there is something, each `FROM:COUNT`, with commas;
/// `-` without any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram([u64; BUCKETS]);

/// The shortest time of a bucket.
const fn from(bucket: usize) -> u64 {
    match bucket {
        0 => 0,
        bits => 1 << (bits - 1),
    }
}

impl Histogram {
    /// Nothing yet.
    pub const EMPTY: Self = Self([0; BUCKETS]);

    /// Take in buckets of [`log_linear`], of a counter with `khz` thousand cycles a second. Each goes
    /// where its middle belongs: times within a sixteenth of a bound may be on its other side.
    pub fn add(&mut self, buckets: &[u64], khz: u32) {
        for (index, &count) in buckets.iter().enumerate() {
            let ns = cycles::to_ns(log_linear::middle(index), khz);
            let bits = (u64::BITS - ns.leading_zeros()) as usize;
            if let Some(sum) = self.0.get_mut(bits.min(BUCKETS - 1)) {
                *sum += count;
            }
        }
    }

    /// All of them.
    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }

    /// How many each bucket has.
    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.0
    }
}

impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut there = self.0.iter().enumerate().filter(|(_, &count)| count > 0);
        let Some((first, count)) = there.next() else {
            return f.write_str("-");
        };
        write!(f, "{}:{count}", from(first))?;
        there.try_for_each(|(bucket, count)| write!(f, ",{}:{count}", from(bucket)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// KVM's rule: `fls64()`.
    fn bucket(ns: u64) -> usize {
        (0..BUCKETS - 1)
            .find(|&n| ns < 1 << n)
            .unwrap_or(BUCKETS - 1)
    }

    proptest! {
        #[test]
        fn times_are_in_their_bucket_or_beside(
            times in prop::collection::vec((0..45u32, any::<u64>()).prop_map(|(b, v)| v & ((1 << b) - 1)), 0..50),
            khz in 500_000..4_000_000u32,
        ) {
            for &cycles in &times {
                let mut counts = [0; log_linear::BUCKETS];
                counts[log_linear::index(cycles)] = 3;
                let mut histogram = Histogram::EMPTY;
                histogram.add(&counts, khz);
                prop_assert_eq!(histogram.sum(), 3);
                let ns = cycles::to_ns(cycles, khz);
                let found = histogram.0.iter().position(|&n| n == 3).unwrap();
                let around = bucket(ns - ns / 16 - u64::from(ns > 0))..=bucket(ns + ns / 16 + 1);
                prop_assert!(around.contains(&found), "{} ns in {}", ns, found);
            }
        }
    }

    #[test]
    fn ends() {
        let mut counts = [0; log_linear::BUCKETS];
        counts[0] = 1;
        counts[log_linear::BUCKETS - 1] = 2;
        let mut histogram = Histogram::EMPTY;
        histogram.add(&counts, 1_000_000);
        assert_eq!((histogram.0[0], histogram.0[45]), (1, 2));
        // A slow counter: beyond the last bound.
        histogram.add(&counts, 1000);
        assert_eq!((histogram.0[0], histogram.0[47]), (2, 2));
    }

    #[test]
    fn text() {
        let mut histogram = Histogram::EMPTY;
        assert_eq!(histogram.to_string(), "-");
        histogram.0[15] = 900;
        assert_eq!(histogram.to_string(), "16384:900");
        for (bucket, count) in [(0, 1), (1, 2), (2, u64::MAX), (47, 4)] {
            histogram.0[bucket] = count;
        }
        let expected = format!("0:1,1:2,2:{},16384:900,{}:4", u64::MAX, 1u64 << 46);
        assert_eq!(histogram.to_string(), expected);
        // What a bucket begins with is in it.
        assert!((0..BUCKETS).all(|at| bucket(from(at)) == at));
    }
}
