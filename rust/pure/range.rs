// SPDX-License-Identifier: GPL-2.0
//! The values a knob may have.

/// An inclusive range of legal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The smallest legal value.
    pub min: u64,
    /// The largest legal value.
    pub max: u64,
}

impl Range {
    /// 0 or 1.
    pub const SWITCH: Range = Range { min: 0, max: 1 };

    /// Whether `value` is legal.
    pub const fn contains(self, value: u64) -> bool {
        self.min <= value && value <= self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switch_takes_two_values_only() {
        assert!(Range::SWITCH.contains(0));
        assert!(Range::SWITCH.contains(1));
        // 256 is what debugfs_create_u8() stores as 0.
        for bad in [2, 255, 256, 257, u64::MAX] {
            assert!(!Range::SWITCH.contains(bad), "{bad}");
        }
    }

    #[test]
    fn both_ends_belong() {
        let range = Range { min: 3, max: 9 };
        let legal: Vec<u64> = (0..20).filter(|&v| range.contains(v)).collect();
        assert_eq!(legal, [3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn whole_range() {
        let range = Range {
            min: 0,
            max: u64::MAX,
        };
        assert!(range.contains(0) && range.contains(u64::MAX));
    }
}
