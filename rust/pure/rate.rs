// SPDX-License-Identifier: GPL-2.0
//! So many lines a second, and how many more there would have been.

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is written; before it, so many were lost since the last that was.
    Write {
        /// Lines that were lost.
        lost: u64,
    },
    /// It is lost.
    Lose,
}

/// What one CPU has written in this second, and lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    second: u64,
    written: u64,
    untold: u64,
    lost: u64,
}

impl Rate {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            second: 0,
            written: 0,
            untold: 0,
            lost: 0,
        }
    }

    /// A line comes in that second of the clock, of which `limit` are written at most; 0: all.
    pub fn admit(&mut self, second: u64, limit: u64) -> Verdict {
        if second != self.second {
            self.second = second;
            self.written = 0;
        }
        if limit != 0 && self.written >= limit {
            self.untold = self.untold.wrapping_add(1);
            self.lost = self.lost.wrapping_add(1);
            return Verdict::Lose;
        }
        self.written = self.written.wrapping_add(1);
        Verdict::Write {
            lost: core::mem::take(&mut self.untold),
        }
    }

    /// How many were lost in all.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_second_at_a_time() {
        let mut rate = Rate::new();
        let of = |lost| Verdict::Write { lost };
        assert_eq!(rate.admit(7, 2), of(0));
        assert_eq!(rate.admit(7, 2), of(0));
        assert_eq!(rate.admit(7, 2), Verdict::Lose);
        assert_eq!(rate.admit(7, 2), Verdict::Lose);
        // A larger limit counts at once, and what was lost is told once.
        assert_eq!(rate.admit(7, 3), of(2));
        assert_eq!(rate.admit(7, 3), Verdict::Lose);
        assert_eq!(rate.admit(8, 3), of(1));
        assert_eq!(rate.admit(8, 0), of(0));
        assert_eq!(rate.lost(), 3);
    }

    proptest! {
        #[test]
        fn each_line_is_written_or_told_as_lost(
            mut seconds in prop::collection::vec(0..20u64, 1..200),
            limit in 0..5u64,
        ) {
            seconds.sort_unstable();
            let mut rate = Rate::new();
            let (mut written, mut told) = (Vec::new(), 0);
            for &second in &seconds {
                if let Verdict::Write { lost } = rate.admit(second, limit) {
                    written.push(second);
                    told += lost;
                }
            }
            for second in 0..20 {
                let came = seconds.iter().filter(|&&s| s == second).count();
                let expected = if limit == 0 { came } else { came.min(limit as usize) };
                prop_assert_eq!(written.iter().filter(|&&s| s == second).count(), expected);
            }
            prop_assert_eq!(written.len() as u64 + rate.lost(), seconds.len() as u64);
            prop_assert!(told <= rate.lost());
            // What is not told yet is told before the next line.
            let Verdict::Write { lost } = rate.admit(99, limit) else { panic!("lost") };
            prop_assert_eq!(told + lost, rate.lost());
        }
    }
}
