// SPDX-License-Identifier: GPL-2.0
//! Text in fixed arrays, as structures for user space have it, and in tables' columns.

use core::fmt;

/// Text in a column: nothing of it parts columns or lines. What is not printable, blanks and
/// backslashes are `\ooo`, as in `/proc/mounts`; no text at all is `-`.
pub struct Column<'a>(pub &'a [u8]);

impl fmt::Display for Column<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("-");
        }
        self.0.iter().try_for_each(|&byte| match byte {
            b'\\' => f.write_str("\\134"),
            byte if byte.is_ascii_graphic() => fmt::Write::write_char(f, byte.into()),
            byte => write!(f, "\\{byte:03o}"),
        })
    }
}

/// `text` in an array of `N` bytes: cut if it must be, always ended by a zero byte, and filled up
/// with zero bytes.
pub fn fixed<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    for (to, &from) in out.iter_mut().take(N.saturating_sub(1)).zip(text) {
        *to = from;
    }
    out
}

/// A VM's name as its folder has it, or nothing, with blanks around it; `None` if it is neither.
pub fn vm_name(text: &[u8]) -> Option<&[u8]> {
    let text = text.trim_ascii();
    let number = |text: &[u8]| {
        !text.is_empty() && text.len() <= 20 && text.iter().all(|byte| byte.is_ascii_digit())
    };
    let mut parts = text.splitn(2, |&byte| byte == b'-');
    let (pid, rest) = (parts.next()?, parts.next());
    let is_name = rest.is_some_and(|rest| {
        number(pid) && pid.len() <= 8 && number(rest.strip_prefix(b"x").unwrap_or(rest))
    });
    (text.is_empty() || is_name).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm_names() {
        for good in ["", "\n", "101-4", " 101-4\n", "7-x12"] {
            assert_eq!(vm_name(good.as_bytes()), Some(good.trim().as_bytes()));
        }
        for bad in [
            "101",
            "-",
            "101-",
            "-4",
            "101-y4",
            "101-4-5",
            "101-4 5",
            "101-xx4",
            "a-4",
            "101-x",
            "123456789-4",
            "1-123456789012345678901",
        ] {
            assert_eq!(vm_name(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_column_has_no_blanks() {
        let column = |text: &[u8]| Column(text).to_string();
        assert_eq!(column(b""), "-");
        assert_eq!(column(b"/memfd:a (deleted)"), "/memfd:a\\040(deleted)");
        assert_eq!(column(b"a\\b\n\xc3\0"), "a\\134b\\012\\303\\000");
    }

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
