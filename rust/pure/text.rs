// SPDX-License-Identifier: GPL-2.0
//! Text in fixed arrays, as structures for user space have it.

/// `text` in an array of `N` bytes: cut if it must be, always ended by a zero byte, and filled up
/// with zero bytes.
pub fn fixed<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    for (to, &from) in out.iter_mut().take(N.saturating_sub(1)).zip(text) {
        *to = from;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_with_zero_whatever_the_length() {
        assert_eq!(fixed::<4>(b""), [0; 4]);
        assert_eq!(fixed::<4>(b"abc"), *b"abc\0");
        assert_eq!(fixed::<4>(b"abcd"), *b"abc\0");
        assert_eq!(fixed::<4>(b"abcdefgh"), *b"abc\0");
        assert_eq!(fixed::<1>(b"a"), [0]);
        assert_eq!(fixed::<0>(b"a"), [0; 0]);
    }
}
