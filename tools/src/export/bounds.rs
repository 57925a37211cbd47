// SPDX-License-Identifier: GPL-2.0
//! How many different values a label may have. Who was told of once is told of as long as he is there:
//! otherwise series would come and go where there is more than the bound.

use std::collections::BTreeSet;

/// The values of one label that are told of.
#[derive(Debug)]
pub struct Bound {
    most: usize,
    told: BTreeSet<String>,
}

impl Bound {
    /// At most so many.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            told: BTreeSet::new(),
        }
    }

    /// These are there now, the most important first. Tells how many are left out.
    pub fn are_there<'a>(&mut self, all: impl IntoIterator<Item = &'a str>) -> usize {
        let mut seen = BTreeSet::new();
        let all: Vec<&str> = all.into_iter().filter(|name| seen.insert(*name)).collect();
        self.told.retain(|name| seen.contains(name.as_str()));
        for name in &all {
            if self.told.len() < self.most && !self.told.contains(*name) {
                self.told.insert((*name).to_owned());
            }
        }
        all.len() - self.told.len()
    }

    /// Whether this one is told of.
    pub fn tells(&self, name: &str) -> bool {
        self.told.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told<'a>(bound: &Bound, all: &[&'a str]) -> Vec<&'a str> {
        let all = all.iter().copied();
        all.filter(|name| bound.tells(name)).collect()
    }

    #[test]
    fn who_was_there_first_stays() {
        let mut bound = Bound::new(2);
        assert_eq!(bound.are_there([]), 0);
        assert_eq!(bound.are_there(["b", "b"]), 0);
        assert_eq!(bound.are_there(["a", "b", "c"]), 1);
        assert_eq!(told(&bound, &["a", "b", "c"]), ["a", "b"]);
        assert_eq!(bound.are_there(["c", "d", "b", "a"]), 2);
        assert_eq!(told(&bound, &["a", "b", "c", "d"]), ["a", "b"]);
        // One goes, the first of those that wait takes its place.
        assert_eq!(bound.are_there(["c", "d", "b"]), 1);
        assert_eq!(told(&bound, &["a", "b", "c", "d"]), ["b", "c"]);
        assert_eq!(Bound::new(0).are_there(["a"]), 1);
    }
}
