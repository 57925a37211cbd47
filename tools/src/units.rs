// SPDX-License-Identifier: GPL-2.0
//! Numbers as people write and read them.

/// Guest-physical addresses have no more bits.
const BITS: u32 = 52;

/// A guest-physical address: hexadecimal with `0x`, decimal, or with K, M, G or T.
pub fn address(text: &str) -> Result<u64, String> {
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let unit = units
        .into_iter()
        .find_map(|(letter, shift)| {
            let digits = text.strip_suffix([letter, letter.to_ascii_lowercase()])?;
            Some((digits, shift))
        })
        .filter(|(digits, _)| !digits.starts_with("0x"));
    let parsed = match (unit, text.strip_prefix("0x")) {
        (Some((digits, shift)), _) => whole(digits, 10).and_then(|n| n.checked_mul(1 << shift)),
        (None, Some(digits)) => whole(digits, 16),
        (None, None) => whole(text, 10),
    };
    match parsed {
        Some(address) if address >> BITS == 0 => Ok(address),
        Some(_) => Err(format!("guest-physical addresses have {BITS} bits at most")),
        None => Err("an address is like 0x12345000, 4096, 2M or 1G, of 64 bits at most".into()),
    }
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
}
