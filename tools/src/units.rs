// SPDX-License-Identifier: GPL-2.0
//! Numbers as people write and read them.

/// Guest-physical addresses have no more bits.
const BITS: u32 = 52;

/// A guest-physical address: hexadecimal with `0x`, decimal, or with K, M, G or T.
pub fn address(text: &str) -> Result<u64, String> {
    match scaled(text) {
        Some(address) if address >> BITS == 0 => Ok(address),
        Some(_) => Err(format!("guest-physical addresses have {BITS} bits at most")),
        None => Err("an address is like 0x12345000, 4096, 2M or 1G, of 64 bits at most".into()),
    }
}

/// A size, or a place, in whole pages: written as an address.
pub fn pages(text: &str) -> Result<u64, String> {
    match scaled(text) {
        Some(bytes) if bytes % 4096 == 0 => Ok(bytes),
        Some(_) => Err("it is no multiple of 4096".into()),
        None => Err("it is like 2M, 1G, 4096 or 0x1000, of 64 bits at most".into()),
    }
}

fn scaled(text: &str) -> Option<u64> {
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let unit = units
        .into_iter()
        .find_map(|(letter, shift)| {
            let digits = text.strip_suffix([letter, letter.to_ascii_lowercase()])?;
            Some((digits, shift))
        })
        .filter(|(digits, _)| !digits.starts_with("0x"));
    match (unit, text.strip_prefix("0x")) {
        (Some((digits, shift)), _) => whole(digits, 10).and_then(|n| n.checked_mul(1 << shift)),
        (None, Some(digits)) => whole(digits, 16),
        (None, None) => whole(text, 10),
    }
}

/// A number, decimal or hexadecimal with `0x`.
pub fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => whole(digits, 16),
        None => whole(text, 10),
    };
    let fitting = parsed.and_then(|number| T::try_from(number).ok());
    fitting.ok_or_else(|| {
        let bits = 8 * size_of::<T>();
        format!("a number is like 10 or 0x1f, of {bits} bits at most")
    })
}

/// Digits only: no sign, as `from_str_radix` would take.
fn whole(digits: &str, radix: u32) -> Option<u64> {
    let all = digits.chars().all(|digit| digit.is_digit(radix));
    all.then(|| u64::from_str_radix(digits, radix).ok())?
}

/// A number of bytes, exact, in the largest unit that it is a multiple of.
pub fn size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let unit = units
        .into_iter()
        .find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    match unit {
        Some((shift, letter)) => format!("{}{letter}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// A number with a comma before each three digits.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// How often in a second.
pub fn rate(number: f64) -> String {
    if number < 1000.0 {
        format!("{number:.1}")
    } else {
        count(number.round() as u64)
    }
}

/// A length of time as numbers are told in JSON.
pub fn nanoseconds(length: std::time::Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

/// A length of time in nanoseconds, to three digits.
pub fn duration(ns: u64) -> String {
    let units = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)];
    // Below 999.5 it is rounded to three digits.
    let unit = units.iter().find(|(_, unit)| ns as f64 / unit < 999.5);
    match unit {
        Some((name, 1.0)) => format!("{ns}{name}"),
        Some((name, unit)) => format!("{}{name}", digits(ns as f64 / unit)),
        None => format!("{:.0}s", ns as f64 / 1e9),
    }
}

/// A number to three digits, as long as it has no more before the point.
fn digits(number: f64) -> String {
    match number {
        n if n < 9.995 => format!("{n:.2}"),
        n if n < 99.95 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("0x12345000", 0x1234_5000),
            ("0xABC", 0xabc),
            ("2M", 2 << 20),
            ("2m", 2 << 20),
            ("1G", 1 << 30),
            ("16K", 16 << 10),
            ("1T", 1 << 40),
            ("0xfffffffffffff", (1 << 52) - 1),
        ] {
            assert_eq!(address(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "x",
            "0x",
            "0xg",
            "-1",
            "+1",
            "0x-1",
            "M",
            "1.5G",
            "1 G",
            "0x1M",
            "1GG",
            "12z",
            "0x10000000000000",
            "4096T",
            "99999999999999999999",
            "0x10000000000000000",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn whole_pages() {
        for (text, expected) in [("0", 0), ("4K", 4096), ("2M", 2 << 20), ("0x1000", 4096)] {
            assert_eq!(pages(text), Ok(expected));
        }
        for text in [
            "",
            "1",
            "4095",
            "1.5G",
            "-4096",
            "16777216T",
            "0x10000000000000000",
        ] {
            assert!(pages(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(number("10"), Ok(10u32));
        assert_eq!(number("0xfee00000"), Ok(0xfee0_0000u32));
        assert_eq!(number("0x100fee00000"), Ok(0x100_fee0_0000u64));
        for text in ["", "x", "0x", "-1", "+1", "1K", "4294967296", "0x1ffffffff"] {
            let said = number::<u32>(text).unwrap_err();
            assert!(said.ends_with("of 32 bits at most"), "{text}");
        }
    }

    #[test]
    fn sizes_are_exact() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (4096, "4K"),
            (12288, "12K"),
            (2 << 20, "2M"),
            ((2 << 20) + 4096, "2052K"),
            (1 << 30, "1G"),
            (3 << 40, "3T"),
            (1 << 51, "2048T"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn counts_and_rates() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (123_456, "123,456"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(count(number), text);
        }
        assert_eq!(
            [rate(0.0), rate(999.94), rate(1000.0), rate(12345.6)],
            ["0.0", "999.9", "1,000", "12,346"]
        );
    }

    #[test]
    fn times_have_three_digits() {
        for (ns, text) in [
            (0, "0ns"),
            (7, "7ns"),
            (999, "999ns"),
            (1000, "1.00us"),
            (9994, "9.99us"),
            (9995, "10.0us"),
            (19_721, "19.7us"),
            (99_949, "99.9us"),
            (99_950, "100us"),
            (999_499, "999us"),
            (999_500, "1.00ms"),
            (183_017_000, "183ms"),
            (1_500_000_000, "1.50s"),
            (7_200_000_000_000, "7200s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }
}
