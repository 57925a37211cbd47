// SPDX-License-Identifier: GPL-2.0
//! A line of text that is put together without memory of its own.

use core::{
    ffi::CStr,
    fmt::{Result, Write},
};

/// A line of less than `N` bytes; what is longer is cut. A zero byte ends it always.
pub struct Line<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Line<N> {
    /// An empty one.
    pub const fn new() -> Self {
        const { assert!(N > 0) };
        Self {
            bytes: [0; N],
            length: 0,
        }
    }

    /// One with these bytes, up to a zero byte.
    pub fn of(text: &[u8]) -> Self {
        let mut line = Self::new();
        let end = text.iter().position(|&byte| byte == 0);
        line.push(text.get(..end.unwrap_or(text.len())).unwrap_or(text));
        line
    }

    fn push(&mut self, text: &[u8]) {
        let room = N - 1 - self.length;
        for (to, &from) in self.bytes.iter_mut().skip(self.length).take(room).zip(text) {
            *to = from;
            self.length += 1;
        }
    }

    /// It, as C has it.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }

    /// It, with the zero bytes behind it.
    pub fn bytes(&self) -> &[u8; N] {
        &self.bytes
    }
}

impl<const N: usize> Default for Line<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Write for Line<N> {
    fn write_str(&mut self, text: &str) -> Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_cut_and_ended() {
        let mut line = Line::<6>::new();
        assert_eq!(line.as_c_str(), c"");
        write!(line, "{}", 12).unwrap();
        assert_eq!(line.as_c_str(), c"12");
        line.write_str("abcdef").unwrap();
        assert_eq!(line.as_c_str(), c"12abc");
        write!(line, "more").unwrap();
        assert_eq!(line.bytes(), b"12abc\0");
        assert_eq!(Line::<6>::of(b"ab\0cd").as_c_str(), c"ab");
        assert_eq!(Line::<6>::of(b"abcdefg").as_c_str(), c"abcde");
    }
}
