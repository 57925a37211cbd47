// SPDX-License-Identifier: GPL-2.0
//! How long interrupts take: from their signal to their injection, and to the guest's EOI.
//!
//! One interrupt of a vector is followed at a time ([`Followed`]): that bounds the memory, and whose an
//! injection is needs no guess. What is signalled meanwhile is not timed. What KVM cannot see is
//! never told, and then there is no time: [`Times::count`] stays 0.

use super::log_linear::{index, percentile, BUCKETS};

/// The times of a stage, in cycles.
pub struct Times {
    counts: [u64; BUCKETS],
    count: u64,
    total: u64,
    max: u64,
}

impl Times {
    /// None.
    pub const EMPTY: Self = Self {
        counts: [0; BUCKETS],
        count: 0,
        total: 0,
        max: 0,
    };

    fn add(&mut self, time: u64) {
        if let Some(count) = self.counts.get_mut(index(time)) {
            *count = count.wrapping_add(1);
        }
        self.count = self.count.wrapping_add(1);
        self.total = self.total.wrapping_add(time);
        self.max = self.max.max(time);
    }

    /// How many were timed.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Total, average, the percentiles 50, 99, 99.9, and the maximum.
    pub fn sums(&self) -> [u64; 6] {
        let at = |per_mille| percentile(&self.counts, per_mille, self.max);
        let average = self.total.checked_div(self.count).unwrap_or(0);
        [self.total, average, at(500), at(990), at(999), self.max]
    }
}

/// What is timed of whoever signals.
pub struct Way {
    /// Signal to injection.
    pub injected: Times,
    /// Signal to EOI.
    pub ended: Times,
}

impl Way {
    /// Nothing.
    pub const EMPTY: Self = Self {
        injected: Times::EMPTY,
        ended: Times::EMPTY,
    };
}

/// An interrupt that a vCPU has accepted. `V`: which vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed<V> {
    vcpu: V,
    signalled: u64,
    injected: bool,
}

impl<V: PartialEq> Followed<V> {
    /// Signalled then, and accepted by that vCPU.
    pub fn new(vcpu: V, signalled: u64) -> Self {
        Self {
            vcpu,
            signalled,
            injected: false,
        }
    }

    /// Whether it was signalled so long ago that it will not be heard of any more.
    pub fn is_lost(&self, now: u64, long: u64) -> bool {
        now.saturating_sub(self.signalled) > long
    }

    /// Its vector is injected into a vCPU. Only the first time counts: KVM injects again what the
    /// guest could not take.
    pub fn inject(&mut self, vcpu: V, now: u64, way: &mut Way) {
        if vcpu == self.vcpu && !self.injected {
            self.injected = true;
            way.injected.add(now.saturating_sub(self.signalled));
        }
    }

    /// A vCPU has ended its vector. Whether that was this one: before its injection it was another, which was
    /// in service when this one was accepted.
    pub fn end(&self, vcpu: V, now: u64, way: &mut Way) -> bool {
        let ours = vcpu == self.vcpu && self.injected;
        if ours {
            way.ended.add(now.saturating_sub(self.signalled));
        }
        ours
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_whole_way() {
        let (mut way, mut one) = (Way::EMPTY, Followed::new(3, 1000));
        one.inject(2, 1100, &mut way);
        assert!(!one.end(2, 1200, &mut way));
        assert_eq!((way.injected.count(), way.ended.count()), (0, 0));
        one.inject(3, 1400, &mut way);
        one.inject(3, 1500, &mut way);
        assert!(one.end(3, 3000, &mut way));
        assert_eq!(way.injected.sums(), [400, 400, 400, 400, 400, 400]);
        assert_eq!(way.ended.sums()[5], 2000);
    }

    #[test]
    fn an_end_before_the_injection_is_of_another() {
        let (mut way, mut one) = (Way::EMPTY, Followed::new((), 0));
        assert!(!one.end((), 7, &mut way));
        assert_eq!((way.injected.count(), way.ended.count()), (0, 0));
        one.inject((), 9, &mut way);
        assert!(one.end((), 12, &mut way));
        assert_eq!((way.injected.sums()[0], way.ended.sums()[0]), (9, 12));
    }

    #[test]
    fn clocks_that_differ_do_no_harm() {
        let (mut way, mut one) = (Way::EMPTY, Followed::new((), 10));
        one.inject((), 5, &mut way);
        assert!(one.end((), 4, &mut way));
        assert_eq!(way.ended.sums(), [0; 6]);
        assert!(!one.is_lost(5, 0) && !one.is_lost(15, 5) && one.is_lost(16, 5));
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_values(values in prop::collection::vec(0u64..1 << 40, 1..100)) {
            let mut times = Times::EMPTY;
            values.iter().for_each(|&value| times.add(value));
            let [total, average, p50, p99, p999, max] = times.sums();
            prop_assert_eq!(times.count(), values.len() as u64);
            prop_assert_eq!(total, values.iter().sum::<u64>());
            prop_assert_eq!(average, total / times.count());
            prop_assert_eq!(max, values.iter().copied().max().unwrap());
            prop_assert!(p50 <= p99 && p99 <= p999 && p999 <= max);
        }
    }
}
