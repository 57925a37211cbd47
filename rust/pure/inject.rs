// SPDX-License-Identifier: GPL-2.0
//! What is written to `inject`, and what an MSI is.

/// KVM knows GSIs below this (`KVM_MAX_IRQ_ROUTES`).
pub const GSIS: u32 = 4096;

/// A message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where it is written to: who gets it.
    pub address: u64,
    /// What is written: vector, delivery mode, trigger mode.
    pub data: u32,
}

impl Msi {
    /// An MSI, if the address is one that APICs listen at: 0xfee00000 to 0xfeefffff, with the high
    /// bits of a long APIC id from bit 40 on.
    pub const fn new(address: u64, data: u32) -> Option<Self> {
        if address & 0xff_fff0_0000 != 0xfee0_0000 {
            return None;
        }
        Some(Self { address, data })
    }

    /// An NMI for the vCPU whose APIC id is the number user space gave it, as it is from its making
    /// on. `long`: ids may have more than eight bits. `None`: it cannot be addressed.
    pub const fn nmi(vcpu: u32, long: bool) -> Option<Self> {
        /// The delivery mode.
        const NMI: u32 = 0x400;
        // 255 is all of them.
        if vcpu == 255 || (vcpu > 255 && !long) {
            return None;
        }
        let (low, high) = (vcpu as u64 & 0xff, vcpu as u64 >> 8);
        Some(Self {
            address: 0xfee0_0000 | (low << 12) | (high << 40),
            data: NMI,
        })
    }
}

/// What is to be done with a GSI's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Up and down.
    Edge,
    /// Up, until it is told to go down.
    High,
    /// Down.
    Low,
}

/// What is written to `inject`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `gsi N`, `gsi N high`, `gsi N low`
    Gsi(u32, Line),
    /// `msi ADDRESS DATA`
    Msi(Msi),
    /// `nmi VCPU`
    Nmi(u32),
    /// `irqfd GSI`
    Irqfd(u32),
}

/// A number: decimal, or hexadecimal after `0x`; no sign, no blank, at most 64 bits.
pub(super) fn number(word: &[u8]) -> Option<u64> {
    let (digits, radix) = match word.strip_prefix(b"0x") {
        Some(digits) => (digits, 16),
        None => (word, 10),
    };
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, &digit| {
        let digit = char::from(digit).to_digit(radix)?;
        sum.checked_mul(radix.into())?.checked_add(digit.into())
    })
}

/// A number of at most 32 bits.
pub(super) fn number32(word: &[u8]) -> Option<u32> {
    u32::try_from(number(word)?).ok()
}

/// The words of a line, which may end with a newline. `None`: more than fit.
pub(super) fn words<const N: usize>(text: &[u8]) -> Option<([&[u8]; N], usize)> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let (mut words, mut count) = ([&[] as &[u8]; N], 0);
    for word in text.split(|&byte| byte == b' ').filter(|w| !w.is_empty()) {
        *words.get_mut(count)? = word;
        count += 1;
    }
    Some((words, count))
}

/// What is asked; `None` if that is nothing.
pub fn parse(text: &[u8]) -> Option<Request> {
    let (words, count) = words::<3>(text)?;
    match words.get(..count)? {
        [b"gsi", gsi] => Some(Request::Gsi(number32(gsi)?, Line::Edge)),
        [b"gsi", gsi, b"high"] => Some(Request::Gsi(number32(gsi)?, Line::High)),
        [b"gsi", gsi, b"low"] => Some(Request::Gsi(number32(gsi)?, Line::Low)),
        [b"msi", address, data] => Msi::new(number(address)?, number32(data)?).map(Request::Msi),
        [b"nmi", vcpu] => Some(Request::Nmi(number32(vcpu)?)),
        [b"irqfd", gsi] => Some(Request::Irqfd(number32(gsi)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_understood() {
        let msi = |address, data| Some(Request::Msi(Msi { address, data }));
        for (text, wanted) in [
            ("gsi 10", Some(Request::Gsi(10, Line::Edge))),
            ("gsi 10\n", Some(Request::Gsi(10, Line::Edge))),
            ("  gsi   0xa  high ", Some(Request::Gsi(10, Line::High))),
            (
                "gsi 4294967295 low",
                Some(Request::Gsi(u32::MAX, Line::Low)),
            ),
            ("msi 0xfee00000 0x4041", msi(0xfee0_0000, 0x4041)),
            ("msi 4276092928 65", msi(0xfee0_0000, 65)),
            (
                "msi 0xabcdef00fee12000 0x31",
                msi(0xabcd_ef00_fee1_2000, 0x31),
            ),
            ("nmi 0", Some(Request::Nmi(0))),
            ("irqfd 24", Some(Request::Irqfd(24))),
        ] {
            assert_eq!(parse(text.as_bytes()), wanted, "{text:?}");
        }
    }

    #[test]
    fn what_is_not() {
        for text in [
            "",
            "\n",
            " ",
            "gsi",
            "gsi ",
            "gsi x",
            "gsi -1",
            "gsi +1",
            "gsi 0x",
            "gsi 1_0",
            "gsi 1 up",
            "gsi 1 High",
            "gsi 1 high high",
            "gsi 1 high low",
            "gsi 4294967296",
            "gsi 0x1ffffffff",
            "gsi 99999999999999999999999999",
            "GSI 1",
            "gsi\t1",
            "gsi 1\n\n",
            "gsi 1\ngsi 2",
            "gsi 1\0",
            "1",
            "msi",
            "msi 0xfee00000",
            "msi 0xfee00000 0x100000000",
            "msi 0xfee00000 1 2",
            "msi 0xfed00000 1",
            "msi 0xfef00000 1",
            "msi 0x1fee00000 1",
            "msi 0 0",
            "nmi",
            "nmi 0 0",
            "nmi all",
            "irqfd",
            "irqfd -1",
            "\u{e9}",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn nmis() {
        let nmi = |vcpu, long| Msi::nmi(vcpu, long).map(|msi| (msi.address, msi.data));
        assert_eq!(nmi(0, false), Some((0xfee0_0000, 0x400)));
        assert_eq!(nmi(254, false), Some((0xfeef_e000, 0x400)));
        assert_eq!(nmi(255, false), None);
        assert_eq!(nmi(255, true), None);
        assert_eq!(nmi(256, false), None);
        assert_eq!(nmi(0x1203, true), Some((0x0000_1200_fee0_3000, 0x400)));
        for vcpu in [0, 1, 254, 256, 4095] {
            let msi = Msi::nmi(vcpu, true).unwrap();
            assert_eq!(Msi::new(msi.address, msi.data), Some(msi), "{vcpu}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_do_no_harm(text: Vec<u8>) {
            parse(&text);
        }

        #[test]
        fn numbers_as_they_are_written(n: u32, data: u32, id in 0u64..1 << 24, rest in 0u64..1 << 20) {
            let gsi = Some(Request::Gsi(n, Line::Edge));
            prop_assert_eq!(parse(format!("gsi {n}").as_bytes()), gsi);
            prop_assert_eq!(parse(format!("gsi {n:#x}").as_bytes()), gsi);
            prop_assert_eq!(parse(format!("gsi {n:#X}").as_bytes()), gsi);
            let address = (id << 40) | 0xfee0_0000 | rest;
            let msi = Some(Request::Msi(Msi { address, data }));
            prop_assert_eq!(parse(format!("msi {address:#x} {data}").as_bytes()), msi);
        }
    }
}
