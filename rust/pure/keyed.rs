// SPDX-License-Identifier: GPL-2.0
//! Places for keys in a table of fixed size: each key keeps the place it got, and who comes when
//! there is none left near its own gets none.
//!
//! One writer; readers see a key only when its place is its own.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// How many places are tried for a key, so that a hostile guest cannot make a search long.
const TRIES: usize = 16;

/// The keys of `N` places; `N` is a power of two. All zero bytes is the state without any.
pub struct Keys<const N: usize>([AtomicU64; N]);

impl<const N: usize> Keys<N> {
    /// The writer: the place of a key, taken now if it has none and one is free near its own.
    pub fn place(&self, key: u32) -> Option<usize> {
        const { assert!(N.is_power_of_two()) };
        // The high bits of a multiplication depend on all bits of the key.
        let home = (key.wrapping_mul(0x9e37_79b1) >> (32 - N.trailing_zeros())) as usize;
        for step in 0..TRIES {
            let place = (home + step) & (N - 1);
            let found = self.0.get(place)?;
            match found.load(Relaxed) {
                0 => {
                    found.store(u64::from(key) + 1, Release);
                    return Some(place);
                }
                taken if taken == u64::from(key) + 1 => return Some(place),
                _ => {}
            }
        }
        None
    }

    /// A reader: which key has a place.
    pub fn key(&self, place: usize) -> Option<u32> {
        match self.0.get(place)?.load(Acquire) {
            0 => None,
            key => Some((key - 1) as u32),
        }
    }

    /// A reader: all keys, with their places.
    pub fn all(&self) -> impl Iterator<Item = (u32, usize)> + '_ {
        (0..N).filter_map(|place| Some((self.key(place)?, place)))
    }
}

#[cfg(test)]
impl<const N: usize> Keys<N> {
    /// What zeroed memory is.
    pub(super) fn zeroed() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn a_key_keeps_its_place(keys in prop::collection::vec(prop_oneof![0..200u32, any::<u32>()], 0..400)) {
            let places = Keys::<64>::zeroed();
            let mut known: BTreeMap<u32, Option<usize>> = BTreeMap::new();
            for key in keys {
                let place = places.place(key);
                prop_assert_eq!(*known.entry(key).or_insert(place), place);
            }
            let mut found: Vec<_> = places.all().collect();
            found.sort_unstable();
            let placed: Vec<_> = known.into_iter().filter_map(|(k, p)| Some((k, p?))).collect();
            prop_assert_eq!(found, placed);
        }
    }

    /// A quarter of the places is had by whatever keys come.
    #[test]
    fn a_few_all_fit() {
        for first in [0u32, 0x174, 0xc000_0080, 0x4000_0000, 0x800] {
            let places = Keys::<256>::zeroed();
            assert!((first..first + 128).all(|key| places.place(key).is_some()));
        }
    }
}
