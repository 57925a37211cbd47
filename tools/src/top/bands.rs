// SPDX-License-Identifier: GPL-2.0
//! How long a reason's exits took, drawn. The module tells percentiles by reason, not buckets: so this is a
//! histogram of four bars whose edges are the percentiles and whose parts are known (half of the exits, 49%,
//! 0.9%, 0.1%), on a logarithmic axis. Nothing between them is made up.

use super::read::Exit;
use crate::units;

/// A bar: which part of the exits, up to which time, and the columns it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Band {
    pub part: &'static str,
    pub to_ns: u64,
    pub from: usize,
    pub to: usize,
}

/// The bars, and the axis below them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bands {
    pub bands: [Band; 4],
    pub axis: String,
}

const PARTS: [&str; 4] = ["50%", "49%", "0.9%", "0.1%"];

/// Drawn so wide; none if no exit was timed yet.
pub fn of(exit: &Exit, width: usize) -> Option<Bands> {
    if exit.max_ns == 0 || width == 0 {
        return None;
    }
    let edges = [exit.p50_ns, exit.p99_ns, exit.p999_ns, exit.max_ns];
    // Powers of ten around all of it; two at least, that there is an axis.
    let first = edges[0].max(1).ilog10();
    let last = (edges[3].ilog10() + 1).max(first + 1);
    let column = |ns: u64| {
        let at = (ns.max(1) as f64).log10() - f64::from(first);
        let at = at.max(0.0) / f64::from(last - first) * width as f64;
        (at as usize).min(width - 1)
    };
    let mut from = 0;
    let bands = std::array::from_fn(|i| {
        // Percentiles are within a sixteenth, so that one may seem to be above the maximum.
        let to_ns = edges[i].min(exit.max_ns);
        let to = column(to_ns).max(from);
        let band = Band {
            part: PARTS[i],
            to_ns,
            from,
            to,
        };
        from = to;
        band
    });
    Some(Bands {
        bands,
        axis: axis(first, last, width),
    })
}

fn axis(first: u32, last: u32, width: usize) -> String {
    let mut line = String::new();
    for power in first..last {
        let at = (power - first) as usize * width / (last - first) as usize;
        // Where labels would touch, the earlier one stands.
        if power == first || line.len() < at {
            line = format!("{line:at$}|{}", mark(power));
        }
    }
    line.truncate(width);
    line
}

/// `10us`: a power of ten, without digits behind the point.
fn mark(power: u32) -> String {
    let text = units::duration(10u64.saturating_pow(power));
    let digits = text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.split('.').next().unwrap_or(number);
    format!("{number}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(times: [u64; 4]) -> Exit {
        Exit {
            reason: "io".into(),
            count: 1000,
            total_ns: 0,
            p50_ns: times[0],
            p99_ns: times[1],
            p999_ns: times[2],
            max_ns: times[3],
        }
    }

    #[test]
    fn bars_stand_where_times_are() {
        let drawn = of(&exit([20_000, 50_000, 200_000, 900_000]), 40).unwrap();
        let columns = drawn.bands.clone().map(|band| (band.from, band.to));
        assert_eq!(columns, [(0, 6), (6, 13), (13, 26), (26, 39)]);
        assert_eq!(drawn.bands[2].part, "0.9%");
        assert_eq!(drawn.bands[3].to_ns, 900_000);
        assert_eq!(drawn.axis, "|10us               |100us");
    }

    #[test]
    fn extremes() {
        assert_eq!(of(&exit([0; 4]), 40), None, "no time is known");
        assert_eq!(of(&exit([1; 4]), 0), None, "no place");
        let one = of(&exit([1; 4]), 40).unwrap();
        assert!(one.bands.iter().all(|band| band.to < 40), "{one:?}");
        // Not drawn beyond the longest that there was.
        let above = of(&exit([100, 106, 106, 101]), 40).unwrap();
        assert_eq!(above.bands[1].to_ns, 101);
        let far = of(&exit([0, 1, u64::MAX, u64::MAX]), 30).unwrap();
        assert!(far.bands.iter().all(|b| b.from <= b.to && b.to < 30));
        assert!(far.axis.len() <= 30, "{:?}", far.axis);
    }
}
