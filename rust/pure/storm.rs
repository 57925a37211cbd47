// SPDX-License-Identifier: GPL-2.0
//! What is written to `storm`, and when its interrupts are due. See [`super::inject`] for the words.

use super::inject::{number, number32, words, Msi};

/// The highest rate, a second.
pub const MAX_RATE: u64 = 1_000_000;

/// The longest storm.
pub const MAX_COUNT: u64 = u32::MAX as u64;

const SECOND: u64 = 1_000_000_000;

/// The shortest and the longest pause of a storm's timer, in ns.
const PAUSE: (u64, u64) = (10_000, 10_000_000);

/// What is injected, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An edge of a GSI.
    Gsi(u32),
    /// An MSI.
    Msi(Msi),
}

/// How many interrupts, and at which rate: number k, counted from 0, is due k / rate after the begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    count: u64,
    rate: u64,
}

/// What is written to `storm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `gsi N count N rate R`, `msi ADDRESS DATA count N rate R`
    Start(Target, Plan),
    /// `stop`
    Stop,
}

/// Why that is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It is none of them.
    NotUnderstood,
    /// Count or rate is 0 or too high.
    OutOfRange,
}

impl Plan {
    /// A plan, if it can be carried out.
    pub fn new(count: u64, rate: u64) -> Option<Self> {
        let fits = (1..=MAX_COUNT).contains(&count) && (1..=MAX_RATE).contains(&rate);
        fits.then_some(Self { count, rate })
    }

    /// How many in all.
    pub fn count(self) -> u64 {
        self.count
    }

    /// How many a second.
    pub fn rate(self) -> u64 {
        self.rate
    }

    /// How many are due so many ns after the begin.
    pub fn due(self, elapsed: u64) -> u64 {
        let seconds = elapsed / SECOND;
        let rest = elapsed % SECOND * self.rate / SECOND;
        let due = seconds.saturating_mul(self.rate).saturating_add(rest + 1);
        due.min(self.count)
    }

    /// After how many ns number `k` is due. `k` is at most the count.
    pub fn when(self, k: u64) -> u64 {
        let k = k.min(self.count);
        k / self.rate * SECOND + (k % self.rate * SECOND).div_ceil(self.rate)
    }
}

/// The rate of so many interrupts, the last of which was sent so many ns after the begin, rounded.
/// `None`: there is none, of fewer than two.
pub fn reached(sent: u64, last: u64) -> Option<u64> {
    let intervals = sent.min(MAX_COUNT).checked_sub(1).filter(|&n| n > 0)?;
    (intervals * SECOND + last / 2).checked_div(last)
}

/// How long a timer pauses, in ns, that was late and worked for so long in all: as long again, so
/// that it takes at most half of its CPU however slow that is.
pub fn pause(took: u64) -> u64 {
    took.clamp(PAUSE.0, PAUSE.1)
}

/// What is asked.
pub fn parse(text: &[u8]) -> Result<Request, Bad> {
    let (words, count) = words::<7>(text).ok_or(Bad::NotUnderstood)?;
    let words = words.get(..count).unwrap_or_default();
    if let [b"stop"] = words {
        return Ok(Request::Stop);
    }
    let (target, count, rate) = start(words).ok_or(Bad::NotUnderstood)?;
    let plan = Plan::new(count, rate).ok_or(Bad::OutOfRange)?;
    Ok(Request::Start(target, plan))
}

/// What is to be injected, its count and rate.
fn start(words: &[&[u8]]) -> Option<(Target, u64, u64)> {
    let (target, count, rate) = match words {
        [b"gsi", gsi, b"count", count, b"rate", rate] => (Target::Gsi(number32(gsi)?), count, rate),
        [b"msi", address, data, b"count", count, b"rate", rate] => {
            let msi = Msi::new(number(address)?, number32(data)?)?;
            (Target::Msi(msi), count, rate)
        }
        _ => return None,
    };
    Some((target, number(count)?, number(rate)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_understood() {
        let msi = Target::Msi(Msi {
            address: 0xfee0_0000,
            data: 0x4041,
        });
        for (text, target, count, rate) in [
            (
                "msi 0xfee00000 0x4041 count 1000 rate 5000",
                msi,
                1000,
                5000,
            ),
            ("gsi 10 count 1 rate 1\n", Target::Gsi(10), 1, 1),
            (
                "  gsi  0xa count 0xffffffff  rate 1000000 ",
                Target::Gsi(10),
                MAX_COUNT,
                MAX_RATE,
            ),
        ] {
            let plan = Plan { count, rate };
            let wanted = Ok(Request::Start(target, plan));
            assert_eq!(parse(text.as_bytes()), wanted, "{text:?}");
        }
        for text in ["stop", "stop\n", " stop "] {
            assert_eq!(parse(text.as_bytes()), Ok(Request::Stop), "{text:?}");
        }
    }

    #[test]
    fn what_is_not() {
        for text in [
            "",
            "\n",
            "stop now",
            "stop\nstop",
            "Stop",
            "start",
            "gsi 10",
            "gsi 10 count 5",
            "gsi 10 rate 5",
            "gsi 10 rate 5 count 5",
            "gsi 10 count rate 5",
            "gsi 10 count 5 rate",
            "gsi 10 count 5 rate 5 5",
            "gsi 10 count 5 rate 5 stop",
            "gsi 10 count -5 rate 5",
            "gsi 10 count 5 rate 0.5",
            "gsi 10 count 5 rate 5/s",
            "gsi 10 count 5 rate 18446744073709551616",
            "gsi 10 high count 5 rate 5",
            "gsi 4294967296 count 5 rate 5",
            "nmi 0 count 5 rate 5",
            "irqfd 24 count 5 rate 5",
            "msi 0xfee00000 0x4041",
            "msi 0xfee00000 count 5 rate 5",
            "msi 0xfed00000 0x4041 count 5 rate 5",
            "msi 0xfee00000 0x100000000 count 5 rate 5",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(Bad::NotUnderstood), "{text:?}");
        }
        for (count, rate) in [
            ("0", "1"),
            ("1", "0"),
            ("4294967296", "1"),
            ("1", "1000001"),
            ("1", "1000000000"),
            ("18446744073709551615", "18446744073709551615"),
        ] {
            let text = format!("gsi 10 count {count} rate {rate}");
            assert_eq!(parse(text.as_bytes()), Err(Bad::OutOfRange), "{text:?}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(reached(0, 0), None);
        assert_eq!(reached(1, 5), None);
        assert_eq!(reached(2, 0), None);
        assert_eq!(reached(2, SECOND), Some(1));
        assert_eq!(reached(11, SECOND + SECOND / 100), Some(10));
        assert_eq!(reached(MAX_COUNT, 1), Some((MAX_COUNT - 1) * SECOND));
        assert_eq!(reached(u64::MAX, u64::MAX), Some(0));
    }

    #[test]
    fn pauses() {
        let [none, short, long, longest] = [0, 10_001, 9_999_999, u64::MAX].map(pause);
        assert_eq!([none, short, long], [10_000, 10_001, 9_999_999]);
        assert_eq!(longest, 10_000_000);
    }

    proptest! {
        #[test]
        fn any_bytes_do_no_harm(text: Vec<u8>) {
            let _ = parse(&text);
        }

        #[test]
        fn each_is_due_at_its_time(count in 1..=MAX_COUNT, rate in 1..=MAX_RATE, at: u64) {
            let plan = Plan::new(count, rate).unwrap();
            let k = at % count;
            let when = plan.when(k);
            // To the nanosecond: k / rate, rounded up.
            prop_assert_eq!(u128::from(when), (u128::from(k) * 1_000_000_000).div_ceil(rate.into()));
            prop_assert_eq!(plan.due(when), k + 1);
            if k > 0 {
                prop_assert_eq!(plan.due(when - 1), k);
            }
        }

        #[test]
        fn never_more_than_asked(count in 1..=MAX_COUNT, rate in 1..=MAX_RATE, elapsed: u64) {
            let plan = Plan::new(count, rate).unwrap();
            prop_assert!((1..=count).contains(&plan.due(elapsed)));
            prop_assert!(plan.when(u64::MAX) == plan.when(count));
        }

        #[test]
        fn the_rate_asked_is_the_rate_reached(count in 2..=MAX_COUNT, rate in 1..=MAX_RATE) {
            let plan = Plan::new(count, rate).unwrap();
            // What rounding up to a ns may take away.
            let off = reached(count, plan.when(count - 1)).unwrap().abs_diff(rate);
            prop_assert!(off * 1000 <= rate, "{off}");
        }
    }
}
