// SPDX-License-Identifier: GPL-2.0
//! How long a reason's exits took, as bars: one a power of two, or where there is no place for so many, one
//! for two or more of them.

use crate::records::{Bucket, Histogram};
use ratatui::{
    style::Modifier,
    text::Line,
    widgets::{self, BarChart, BarGroup},
};

/// Columns of a bar, in which its numbers fit, and between two.
const WIDTH: u16 = 5;
const GAP: u16 = 1;

/// A bar: how many exits took from so long to below the next one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    from_ns: u64,
    count: u64,
}

/// All of them, in so many columns, from the first in which there is something to the last.
pub fn of(histogram: &Histogram, columns: u16) -> Vec<Bar> {
    let most = u32::from(columns / (WIDTH + GAP)).max(1);
    let buckets = &histogram.histogram;
    let (Some(first), Some(last)) = (buckets.first(), buckets.last()) else {
        return Vec::new();
    };
    let (first, last) = (first.bits(), last.bits());
    let step = (last + 1 - first).div_ceil(most);
    let bar = |bits: u32| {
        let within = buckets
            .iter()
            .filter(|bucket| (bits..bits + step).contains(&bucket.bits()));
        Bar {
            from_ns: Bucket::from_bits(bits),
            count: within.map(|bucket| bucket.count).sum(),
        }
    };
    (first..=last).step_by(step as usize).map(bar).collect()
}

/// The bars, drawn: the count in each, and below it from which time it is.
pub fn chart(bars: &[Bar]) -> BarChart<'static> {
    let drawn = |bar: &Bar| {
        widgets::Bar::default()
            .value(bar.count)
            .text_value(short(bar.count))
            .label(Line::raw(time(bar.from_ns)))
    };
    let bars: Vec<_> = bars.iter().map(drawn).collect();
    BarChart::default()
        .bar_width(WIDTH)
        .bar_gap(GAP)
        .value_style(Modifier::REVERSED)
        .data(BarGroup::default().bars(&bars))
}

/// A count in four columns: what has five is drawn in high bars only.
fn short(count: u64) -> String {
    let mut units = ["k", "M", "G", "T", "P", "E"].into_iter();
    if count < 10_000 {
        return count.to_string();
    }
    let (mut scaled, mut unit) = (count as f64 / 1e3, units.next());
    while scaled >= 999.5 {
        (scaled, unit) = (scaled / 1e3, units.next());
    }
    let unit = unit.unwrap_or_default();
    if scaled < 9.95 {
        format!("{scaled:.1}{unit}")
    } else {
        format!("{scaled:.0}{unit}")
    }
}

/// A power of two in five columns: `16us` is 16384 ns.
fn time(ns: u64) -> String {
    const S: u64 = 1_000_000_000;
    let units = [("h", 3600 * S), ("s", S), ("ms", 1_000_000), ("us", 1000)];
    let unit = units.into_iter().find(|(_, unit)| ns >= *unit);
    unit.map_or(format!("{ns}ns"), |(name, unit)| {
        format!("{}{name}", ns / unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(all: &[(u32, u64)]) -> Histogram {
        let bucket = |&(bits, count)| Bucket {
            from_ns: Bucket::from_bits(bits),
            count,
        };
        Histogram {
            histogram: all.iter().map(bucket).collect(),
            ..Histogram::default()
        }
    }

    fn told(all: &[(u32, u64)], columns: u16) -> Vec<(u64, u64)> {
        let bars = of(&histogram(all), columns);
        bars.iter().map(|bar| (bar.from_ns, bar.count)).collect()
    }

    #[test]
    fn bars_have_all_exits() {
        assert_eq!(told(&[], 80), []);
        assert_eq!(told(&[(0, 3)], 80), [(0, 3)]);
        let all = [(15, 7), (16, 2), (18, 1)];
        assert_eq!(
            told(&all, 80),
            [(16384, 7), (32768, 2), (65536, 0), (131072, 1)]
        );
        // Place for two bars: two powers each.
        assert_eq!(told(&all, 12), [(16384, 9), (65536, 1)]);
        assert_eq!(told(&all, 1), [(16384, 10)]);
        let wide: Vec<_> = (0..48).map(|bits| (bits, 1)).collect();
        for columns in 1..300 {
            let bars = told(&wide, columns);
            assert_eq!(bars.iter().map(|bar| bar.1).sum::<u64>(), 48);
            assert!(bars.len() <= usize::from(columns / 6).max(1), "{bars:?}");
        }
    }

    #[test]
    fn numbers_fit() {
        for (count, text) in [
            (0, "0"),
            (9999, "9999"),
            (10_000, "10k"),
            (999_499, "999k"),
            (999_500, "1.0M"),
            (9_949_999, "9.9M"),
            (9_950_000, "10M"),
            (u64::MAX, "18E"),
        ] {
            assert_eq!(short(count), text, "{count}");
        }
        for (bits, text) in [
            (0, "0ns"),
            (1, "1ns"),
            (10, "512ns"),
            (11, "1us"),
            (18, "131us"),
            (21, "1ms"),
            (31, "1s"),
            (37, "68s"),
            (42, "2199s"),
            (47, "19h"),
        ] {
            assert_eq!(time(Bucket::from_bits(bits)), text, "{bits}");
        }
        assert!((0..48).all(|bits| time(Bucket::from_bits(bits)).len() <= 5));
    }
}
