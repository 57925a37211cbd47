// SPDX-License-Identifier: GPL-2.0
//! The command line, checked apart from any work.

use clap::{Args, Parser, Subcommand};

/// Shows what the kernel module kvmate tells of running VMs.
#[derive(Debug, Parser)]
#[command(name = "kvmate", version, arg_required_else_help = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw a VM's guest-physical memory: what is mapped by which size, slots, and why a page is small
    Map(Map),
}

/// `kvmate map`
#[derive(Debug, Args)]
#[command(after_help = "\
Colours are for terminals only; NO_COLOR=1 switches them off, CLICOLOR_FORCE=1 on.
Exit status: 0 done, 1 failed, 2 wrong usage. tools/json.md documents --json.")]
pub struct Map {
    /// The VM: its name in /sys/kernel/debug/kvmate/vms (101-4), a process's number, or a part of
    /// a process's name that only one VM has
    pub vm: String,
    /// Tell which ranges are mapped by 4 KiB where 2 MiB could be, and why
    #[arg(long, conflicts_with = "page")]
    pub why: bool,
    /// Tell what is behind one guest-physical address: 0x12345000, 4096, 2M, 1G
    #[arg(long, value_name = "GPA", value_parser = address)]
    pub page: Option<u64>,
    /// For programs: everything, as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Guest-physical addresses have no more bits.
const BITS: u32 = 52;

/// A guest-physical address: hexadecimal with `0x`, decimal, or with K, M, G or T.
fn address(text: &str) -> Result<u64, String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

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
    fn what_excludes_what() {
        let parse = |text: &str| Arguments::try_parse_from(text.split(' '));
        assert!(parse("kvmate map 101-4").is_ok());
        assert!(parse("kvmate map 101-4 --json --why").is_ok());
        assert!(parse("kvmate map 101-4 --page 2M --json").is_ok());
        for text in [
            "kvmate",
            "kvmate map",
            "kvmate map a b",
            "kvmate map a --page",
            "kvmate map a --page x",
            "kvmate map a --page 0 --why",
            "kvmate map a --what",
            "kvmate list",
        ] {
            assert_eq!(parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
        assert_eq!(parse("kvmate --version").unwrap_err().exit_code(), 0);
    }
}
