// SPDX-License-Identifier: GPL-2.0
//! The most frequent of very many keys, in fixed memory: the Space-Saving sketch.
//!
//! [`PLACES`] keys have a counter each. A key without one takes the place of the smallest, and goes on
//! from its count, which is noted as the key's error. Then, after `n` hits:
//! - all counters together are `n`;
//! - a key was hit `count` times at most, and `count - error` at least;
//! - no error is more than `n / PLACES`, and a key that was hit more often than that has a counter.
//!
//! One writer, which stays on its CPU while it writes, so that readers wait for some hundred
//! instructions at most.

use super::sort;
use core::sync::atomic::{
    fence, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// How many keys have a counter.
pub const PLACES: usize = 64;

/// How often a reader tries.
const TRIES: u32 = 1 << 20;

/// The sketch. All zero bytes is the state without any hit.
pub struct Sketch {
    /// Odd while the writer changes something.
    sequence: AtomicU64,
    /// Where the last hit was: the next one is likely to be there too.
    last: AtomicU32,
    /// How many places are taken.
    taken: AtomicU32,
    keys: [AtomicU64; PLACES],
    counts: [AtomicU64; PLACES],
    errors: [AtomicU64; PLACES],
}

/// A key and what is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hits {
    /// The key.
    pub key: u64,
    /// It was hit so often at most,
    pub count: u64,
    /// and this less at least.
    pub error: u64,
}

/// All of a sketch at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    hits: [Hits; PLACES],
    taken: usize,
}

/// A reader met the writer in the middle too often.
#[derive(Debug)]
pub struct Busy;

impl Sketch {
    /// The writer: a key was hit.
    pub fn hit(&self, key: u64) {
        let taken = (self.taken.load(Relaxed) as usize).min(PLACES);
        let last = self.last.load(Relaxed) as usize;
        let is = |place: usize| self.keys.get(place).is_some_and(|k| k.load(Relaxed) == key);
        let place = if last < taken && is(last) {
            last
        } else {
            (0..taken).find(|&place| is(place)).unwrap_or(taken)
        };
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Relaxed);
        fence(Release);
        let place = match place {
            known if known < taken => known,
            free if free < PLACES => {
                self.taken.store(free as u32 + 1, Relaxed);
                self.take(free, key, 0);
                free
            }
            _ => {
                let counts = self.counts.iter().map(|count| count.load(Relaxed));
                let (count, place) = counts.zip(0..).min().unwrap_or_default();
                self.take(place, key, count);
                place
            }
        };
        if let Some(count) = self.counts.get(place) {
            count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
        }
        self.last.store(place as u32, Relaxed);
        fence(Release);
        self.sequence.store(sequence.wrapping_add(2), Relaxed);
    }

    fn take(&self, place: usize, key: u64, error: u64) {
        if let (Some(at), Some(wrong)) = (self.keys.get(place), self.errors.get(place)) {
            at.store(key, Relaxed);
            wrong.store(error, Relaxed);
        }
    }

    /// A reader: all of it at one moment. `wait` is called between tries.
    pub fn read(&self, into: &mut Snapshot, mut wait: impl FnMut()) -> Result<(), Busy> {
        for _ in 0..TRIES {
            let before = self.sequence.load(Acquire);
            if before & 1 == 0 {
                let counters = self.keys.iter().zip(&self.counts).zip(&self.errors);
                for (hits, ((key, count), error)) in into.hits.iter_mut().zip(counters) {
                    *hits = Hits {
                        key: key.load(Relaxed),
                        count: count.load(Relaxed),
                        error: error.load(Relaxed),
                    };
                }
                into.taken = (self.taken.load(Relaxed) as usize).min(PLACES);
                fence(Acquire);
                if self.sequence.load(Relaxed) == before {
                    return Ok(());
                }
            }
            wait();
        }
        Err(Busy)
    }
}

impl Snapshot {
    /// Nothing yet.
    pub const EMPTY: Snapshot = Snapshot {
        hits: [Hits {
            key: 0,
            count: 0,
            error: 0,
        }; PLACES],
        taken: 0,
    };

    /// The keys that have a counter.
    pub fn hits(&self) -> &[Hits] {
        self.hits.get(..self.taken).unwrap_or_default()
    }

    /// How often a key without a counter was hit at most: the smallest count, if all places are taken.
    pub fn least(&self) -> u64 {
        if self.taken < PLACES {
            return 0;
        }
        self.hits.iter().map(|hits| hits.count).min().unwrap_or(0)
    }
}

/// What several sketches know together. `all` is what each has ([`Snapshot::hits`]), one after the
/// other, less its [`Snapshot::least`] (by [`less`]), of which `least` is the sum. Sums up what is of
/// one key; the most frequent come first. Gives how many there are.
pub fn merge(all: &mut [Hits], least: u64) -> usize {
    let length = sort::merge_by_key(
        all,
        |hits| hits.key,
        |sum, hits| {
            sum.count = sum.count.wrapping_add(hits.count);
            sum.error = sum.error.wrapping_add(hits.error);
        },
    );
    let merged = all.get_mut(..length).unwrap_or_default();
    for hits in merged.iter_mut() {
        hits.count = hits.count.wrapping_add(least);
        hits.error = hits.error.wrapping_add(least);
    }
    sort::by_key(merged, |hits| (core::cmp::Reverse(hits.count), hits.key));
    length
}

/// Hits less what a key without a counter may have had; below nothing, too, until [`merge`] has made
/// it whole.
pub fn less(hits: Hits, least: u64) -> Hits {
    Hits {
        key: hits.key,
        count: hits.count.wrapping_sub(least),
        error: hits.error.wrapping_sub(least),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, sync::atomic::AtomicBool, thread};

    fn sketch() -> Sketch {
        Sketch {
            sequence: AtomicU64::new(0),
            last: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            keys: [const { AtomicU64::new(0) }; PLACES],
            counts: [const { AtomicU64::new(0) }; PLACES],
            errors: [const { AtomicU64::new(0) }; PLACES],
        }
    }

    fn snapshot(sketch: &Sketch) -> Snapshot {
        let mut snapshot = Snapshot::EMPTY;
        sketch.read(&mut snapshot, || ()).unwrap();
        snapshot
    }

    fn merged(sketches: &[Sketch]) -> Vec<Hits> {
        let snapshots: Vec<_> = sketches.iter().map(snapshot).collect();
        let mut all: Vec<_> = snapshots
            .iter()
            .flat_map(|s| s.hits().iter().map(|&hits| less(hits, s.least())))
            .collect();
        let least = snapshots.iter().map(Snapshot::least).sum();
        let length = merge(&mut all, least);
        all.truncate(length);
        all
    }

    /// The file's promises, against the true counts.
    fn check(found: &[Hits], truth: &BTreeMap<u64, u64>, total: u64, sum_is_total: bool) {
        if sum_is_total {
            assert_eq!(found.iter().map(|hits| hits.count).sum::<u64>(), total);
        }
        for hits in found {
            let true_count = truth.get(&hits.key).copied().unwrap_or(0);
            assert!(hits.count - hits.error <= true_count && true_count <= hits.count);
            assert!(hits.error <= total / PLACES as u64);
        }
        for (key, count) in truth {
            let has = found.iter().any(|hits| hits.key == *key);
            assert!(has || *count <= total / PLACES as u64);
        }
        assert!(found.is_sorted_by_key(|hits| core::cmp::Reverse(hits.count)) || sum_is_total);
    }

    proptest! {
        #[test]
        fn keeps_its_promises(keys in prop::collection::vec(
            prop_oneof![0..8u64, 0..100u64, any::<u64>()], 0..3000)
        ) {
            let (sketch, mut truth) = (sketch(), BTreeMap::new());
            for &key in &keys {
                sketch.hit(key);
                *truth.entry(key).or_insert(0) += 1;
            }
            check(snapshot(&sketch).hits(), &truth, keys.len() as u64, true);
        }

        #[test]
        fn several_together_do_too(keys in prop::collection::vec(
            (0..3usize, prop_oneof![0..8u64, 0..100u64, any::<u64>()]), 0..3000)
        ) {
            let (sketches, mut truth) = ([sketch(), sketch(), sketch()], BTreeMap::new());
            for &(which, key) in &keys {
                sketches[which].hit(key);
                *truth.entry(key).or_insert(0) += 1;
            }
            check(&merged(&sketches), &truth, keys.len() as u64, false);
        }
    }

    #[test]
    fn a_hostile_walk_has_the_error_that_is_said() {
        let sketch = sketch();
        for key in 0..1 << 16 {
            sketch.hit(key);
            if key % 8 == 0 {
                sketch.hit(1 << 40);
            }
        }
        let snapshot = snapshot(&sketch);
        let most = snapshot
            .hits()
            .iter()
            .max_by_key(|hits| hits.count)
            .unwrap();
        assert_eq!(most.key, 1 << 40);
        let total = (1 << 16) + (1 << 13);
        assert_eq!(snapshot.hits().iter().map(|h| h.count).sum::<u64>(), total);
        assert!(most.count >= 1 << 13 && most.count <= (1 << 13) + total / 64);
    }

    #[test]
    fn snapshots_are_of_one_moment() {
        let (sketch, stop) = (sketch(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                // All are hit equally often, and each hit takes a place from another.
                for key in (0..).take_while(|_| !stop.load(Relaxed)) {
                    sketch.hit(key % 1000);
                    (0..300).for_each(|_| std::hint::spin_loop());
                }
            });
            for _ in 0..3000 {
                let snapshot = snapshot(&sketch);
                let mut keys: Vec<_> = snapshot.hits().iter().map(|hits| hits.key).collect();
                keys.sort_unstable();
                keys.dedup();
                assert_eq!(keys.len(), snapshot.hits().len());
                assert!(snapshot.hits().iter().all(|h| h.error < h.count));
            }
            stop.store(true, Relaxed);
        });
    }
}
