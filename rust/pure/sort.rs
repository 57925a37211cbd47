// SPDX-License-Identifier: GPL-2.0
//! Sorting in place, in bounded time, without memory: a heap sort.
//!
//! `core`'s own sort of small values has a panic for orders that are none, of which objtool does not
//! know that it never returns.

/// Sort by a key, the smallest first; what has equal keys may change places.
pub fn by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    let length = items.len();
    for root in (0..length / 2).rev() {
        sink(items, root, length, &key);
    }
    for end in (1..length).rev() {
        items.swap(0, end);
        sink(items, 0, end, &key);
    }
}

/// Sort by a key, and `add` all that have equal keys to one of them. Gives how many are left; they stand
/// first.
pub fn merge_by_key<T: Copy, K: Ord>(
    items: &mut [T],
    key: impl Fn(&T) -> K,
    add: impl Fn(&mut T, &T),
) -> usize {
    by_key(items, &key);
    let mut length: usize = 0;
    for next in 0..items.len() {
        let Some(&item) = items.get(next) else {
            break;
        };
        let before = length.checked_sub(1).and_then(|at| items.get_mut(at));
        match before.filter(|sum| key(sum) == key(&item)) {
            Some(sum) => add(sum, &item),
            None => {
                items.swap(length, next);
                length += 1;
            }
        }
    }
    length
}

/// Let what stands at `root` sink below what is greater, in the heap of the first `end` items.
fn sink<T, K: Ord>(items: &mut [T], mut root: usize, end: usize, key: &impl Fn(&T) -> K) {
    // Whether the first is smaller; of places that there are.
    let less = |items: &[T], a: usize, b: usize| match (items.get(a), items.get(b)) {
        (Some(a), Some(b)) => key(a) < key(b),
        _ => false,
    };
    loop {
        let mut child = 2 * root + 1;
        if child >= end {
            return;
        }
        if child + 1 < end && less(items, child, child + 1) {
            child += 1;
        }
        if !less(items, root, child) {
            return;
        }
        items.swap(root, child);
        root = child;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn merges(items in prop::collection::vec((0..9u32, any::<u16>()), 0..200)) {
            let mut expected = std::collections::BTreeMap::<u32, u64>::new();
            for &(key, count) in &items {
                *expected.entry(key).or_default() += u64::from(count);
            }
            let mut items: Vec<_> = items.into_iter().map(|(k, c)| (k, u64::from(c))).collect();
            let length = super::merge_by_key(&mut items, |&(key, _)| key, |sum, item| sum.1 += item.1);
            items.truncate(length);
            prop_assert_eq!(items, expected.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn sorts(mut items in prop::collection::vec(prop_oneof![0..20u32, any::<u32>()], 0..200)) {
            let mut expected = items.clone();
            expected.sort_unstable_by_key(|&item| !item);
            super::by_key(&mut items, |&item| !item);
            prop_assert_eq!(items, expected);
        }
    }
}
