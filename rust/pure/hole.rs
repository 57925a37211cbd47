// SPDX-License-Identifier: GPL-2.0
//! What a hole in a file means for its pages and folios, and where folios may stand.

use core::ops::Range;

/// log2 of a page's size.
pub const PAGE_SHIFT: u32 = 12;

/// A folio: `1 << order` pages from page `index` on, a multiple of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its first page.
    pub index: usize,
    /// log2 of its number of pages.
    pub order: u32,
}

impl Block {
    /// The one of that order that has the page.
    pub const fn around(page: usize, order: u32) -> Self {
        Self {
            index: page >> order << order,
            order,
        }
    }

    /// Its pages.
    pub const fn pages(self) -> Range<usize> {
        self.index..self.index + (1 << self.order)
    }

    /// The ones that have `page` and lie within `limits`, the largest first, up to `largest`; the last
    /// is the page alone.
    pub fn within(
        page: usize,
        largest: u32,
        limits: &Range<usize>,
    ) -> impl Iterator<Item = Block> + '_ {
        (0..=largest)
            .rev()
            .map(move |order| Self::around(page, order))
            .filter(|block| {
                let pages = block.pages();
                limits.start <= pages.start && pages.end <= limits.end
            })
    }
}

/// A hole that is to be made: a range of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    bytes: Range<u64>,
}

/// What making a hole takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Whole folios lie here, which are removed.
    pub remove: Range<usize>,
    /// Bytes to zero, before and behind them.
    pub zero: [Range<u64>; 2],
    /// Whole pages of the hole that stay, zeroed, because their folio reaches out of it.
    pub kept: usize,
}

impl Hole {
    /// The part of `offset..offset + length` that lies in a file of `size` bytes, if any does.
    pub fn new(offset: u64, length: u64, size: u64) -> Option<Self> {
        let bytes = offset..offset.saturating_add(length).min(size);
        (!bytes.is_empty()).then_some(Self { bytes })
    }

    /// How many bytes.
    pub fn length(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// The pages that lie in it wholly; empty where there is none.
    pub fn whole(&self) -> Range<usize> {
        let start = self.bytes.start.div_ceil(1 << PAGE_SHIFT) as usize;
        let end = (self.bytes.end >> PAGE_SHIFT) as usize;
        start..end.max(start)
    }

    /// It in parts that end where no folio reaches over, `step` pages (a power of two) each.
    pub fn parts(&self, step: usize) -> impl Iterator<Item = Hole> + '_ {
        let step = (step as u64) << PAGE_SHIFT;
        let mut at = self.bytes.start;
        core::iter::from_fn(move || {
            let bytes = at..self.bytes.end.min((at / step + 1) * step);
            at = bytes.end;
            (!bytes.is_empty()).then_some(Hole { bytes })
        })
    }

    /// What it takes, when these folios have the first whole page and the first page behind the last
    /// whole one.
    pub fn plan(&self, first: Option<Block>, behind: Option<Block>) -> Plan {
        let whole = self.whole();
        let mut remove = whole.clone();
        if let Some(block) = first.filter(|b| b.index < whole.start) {
            remove.start = block.pages().end.min(whole.end);
        }
        if let Some(block) = behind.filter(|b| b.index < whole.end) {
            remove.end = block.index.max(remove.start);
        }
        let byte = |page: usize| (page as u64) << PAGE_SHIFT;
        let zero = if remove.is_empty() {
            [self.bytes.clone(), self.bytes.end..self.bytes.end]
        } else {
            [
                self.bytes.start..byte(remove.start),
                byte(remove.end)..self.bytes.end,
            ]
        };
        let kept = whole.len() - remove.len();
        Plan { remove, zero, kept }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 1 << PAGE_SHIFT;

    /// A file of 64 pages: folios that do not overlap, some of its pages.
    fn folios() -> impl Strategy<Value = Vec<Block>> {
        proptest::collection::vec((0usize..64, 0u32..6), 0..40).prop_map(|wanted| {
            let mut folios: Vec<Block> = Vec::new();
            for (page, order) in wanted {
                let new = Block::around(page, order);
                let apart = |b: &Block| {
                    b.pages().end <= new.pages().start || new.pages().end <= b.pages().start
                };
                if folios.iter().all(apart) {
                    folios.push(new);
                }
            }
            folios
        })
    }

    proptest! {
        #[test]
        fn plans_are_exact(folios in folios(), offset in 0..64 * PAGE, length in 1..64 * PAGE) {
            let size = 64 * PAGE;
            let hole = Hole::new(offset, length, size).expect("begins inside");
            let bytes = offset..(offset + length).min(size);
            let at = |page: usize| folios.iter().copied().find(|b| b.pages().contains(&page));
            let whole = hole.whole();
            let plan = hole.plan(at(whole.start), at(whole.end));
            // No folio is removed in part, and what is removed is in the hole.
            for block in &folios {
                let pages = block.pages();
                let inside = plan.remove.start <= pages.start && pages.end <= plan.remove.end;
                let outside = pages.end <= plan.remove.start || plan.remove.end <= pages.start
                    || plan.remove.is_empty();
                prop_assert!(inside || outside, "{block:?} {plan:?}");
                // Every folio that lies in the hole as a whole goes.
                let lies = whole.start <= pages.start && pages.end <= whole.end;
                prop_assert!(!lies || inside, "{block:?} stays: {plan:?}");
            }
            // Removed and zeroed bytes together are the hole, each once.
            let mut ranges = vec![
                plan.zero[0].clone(),
                plan.remove.start as u64 * PAGE..plan.remove.end as u64 * PAGE,
                plan.zero[1].clone(),
            ];
            ranges.retain(|r| !r.is_empty());
            let mut next = bytes.start;
            for range in ranges {
                prop_assert_eq!(range.start, next);
                next = range.end;
            }
            prop_assert_eq!(next, bytes.end);
            prop_assert_eq!(plan.kept, whole.len() - plan.remove.len());
        }

        #[test]
        fn parts_are_the_whole(offset in 0..1u64 << 40, length in 1..1u64 << 36) {
            let hole = Hole::new(offset, length, u64::MAX).expect("no end");
            let mut next = offset;
            for part in hole.parts(1 << 16) {
                prop_assert_eq!(part.bytes.start, next);
                prop_assert!(part.length() <= PAGE << 16);
                next = part.bytes.end;
                prop_assert!(next == offset + length || next % (PAGE << 16) == 0);
            }
            prop_assert_eq!(next, offset + length);
        }

        #[test]
        fn blocks_have_their_page(page in 0usize..1 << 20, start in 0usize..1 << 20, n in 1usize..4096) {
            let limits = start..start + n;
            let blocks: Vec<_> = Block::within(page, 9, &limits).collect();
            prop_assert_eq!(!blocks.is_empty(), limits.contains(&page));
            prop_assert!(blocks.windows(2).all(|w| w[0].order > w[1].order));
            for block in blocks {
                prop_assert!(block.pages().contains(&page));
                prop_assert!(limits.start <= block.pages().start && block.pages().end <= limits.end);
                prop_assert_eq!(block.index % (1 << block.order), 0);
            }
        }
    }

    #[test]
    fn within_one_page_nothing_is_removed() {
        let hole = Hole::new(10, 100, PAGE).expect("inside");
        let plan = hole.plan(None, None);
        assert!(plan.remove.is_empty() && plan.kept == 0);
        assert_eq!(plan.zero[0], 10..110);
    }

    #[test]
    fn nothing_behind_the_end() {
        assert_eq!(Hole::new(PAGE, 1, PAGE), None);
        assert_eq!(Hole::new(u64::MAX, u64::MAX, PAGE), None);
        assert_eq!(Hole::new(0, u64::MAX, PAGE).map(|h| h.length()), Some(PAGE));
    }
}
