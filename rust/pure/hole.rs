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
    /// Whole pages of the hole that stay, zeroed, because their folio reaches out of it, at either
    /// end.
    pub kept: [Range<usize>; 2],
}

impl Hole {
    /// The part of `offset..offset + length` that lies in a file of `size` bytes, if any does.
    pub fn new(offset: u64, length: u64, size: u64) -> Option<Self> {
        let bytes = offset..offset.saturating_add(length).min(size);
        (!bytes.is_empty()).then_some(Self { bytes })
    }

    /// Its first byte.
    pub fn start(&self) -> u64 {
        self.bytes.start
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

    /// The pages that it touches.
    pub fn pages(&self) -> Range<usize> {
        let end = self.bytes.end.div_ceil(1 << PAGE_SHIFT) as usize;
        (self.bytes.start >> PAGE_SHIFT) as usize..end
    }

    /// It from that page on, if anything of it is there.
    pub fn starting_at(self, page: usize) -> Option<Self> {
        let start = self.bytes.start.max((page as u64) << PAGE_SHIFT);
        let bytes = start..self.bytes.end;
        (!bytes.is_empty()).then_some(Self { bytes })
    }

    /// Its beginning, up to a multiple of `step` pages (a power of two), where no smaller folio reaches
    /// over; and the rest.
    pub fn part(self, step: usize) -> (Self, Option<Self>) {
        let step = (step as u64) << PAGE_SHIFT;
        let end = self.bytes.end.min((self.bytes.start / step + 1) * step);
        let (bytes, rest) = (self.bytes.start..end, end..self.bytes.end);
        let rest = (!rest.is_empty()).then_some(Self { bytes: rest });
        (Self { bytes }, rest)
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
        let kept = [whole.start..remove.start, remove.end..whole.end];
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
            let [before, after] = plan.kept;
            prop_assert_eq!(before.len() + after.len(), whole.len() - plan.remove.len());
            // What is kept is of a folio that reaches out.
            for (page, out) in before.map(|p| (p, whole.start - 1)).chain(after.map(|p| (p, whole.end))) {
                let folio = at(page).map_or(0..0, Block::pages);
                prop_assert!(folio.contains(&out) || folio.contains(&whole.end));
            }
        }

        #[test]
        fn parts_are_the_whole(offset in 0..1u64 << 40, length in 1..1u64 << 36) {
            let mut rest = Hole::new(offset, length, u64::MAX);
            let mut next = offset;
            while let Some(hole) = rest {
                let (part, behind) = hole.part(1 << 16);
                prop_assert_eq!(part.bytes.start, next);
                prop_assert!(!part.bytes.is_empty() && part.length() <= PAGE << 16);
                next = part.bytes.end;
                prop_assert!(next == offset + length || next % (PAGE << 16) == 0);
                rest = behind;
            }
            prop_assert_eq!(next, offset + length);
        }

        #[test]
        fn starting_at_a_page(offset in 0..64 * PAGE, length in 1..64 * PAGE, page in 0usize..200) {
            let hole = Hole::new(offset, length, u64::MAX).expect("no end");
            let pages = hole.pages();
            prop_assert!(pages.start as u64 * PAGE <= offset && offset < (pages.start as u64 + 1) * PAGE);
            prop_assert!((pages.end as u64 - 1) * PAGE < offset + length && offset + length <= pages.end as u64 * PAGE);
            match hole.clone().starting_at(page) {
                Some(rest) => {
                    prop_assert_eq!(rest.bytes.start, offset.max(page as u64 * PAGE));
                    prop_assert_eq!(rest.bytes.end, offset + length);
                }
                None => prop_assert!(pages.end <= page),
            }
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
        assert!(plan.remove.is_empty() && plan.kept.iter().all(Range::is_empty));
        assert_eq!(plan.zero[0], 10..110);
    }

    #[test]
    fn nothing_behind_the_end() {
        assert_eq!(Hole::new(PAGE, 1, PAGE), None);
        assert_eq!(Hole::new(u64::MAX, u64::MAX, PAGE), None);
        assert_eq!(Hole::new(0, u64::MAX, PAGE).map(|h| h.length()), Some(PAGE));
    }
}
