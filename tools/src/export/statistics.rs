// SPDX-License-Identifier: GPL-2.0
//! A descriptor in the layout of `KVM_GET_STATS_FD` (`Documentation/virt/kvm/api.rst`), taken apart: what
//! `KVMATE_GET_VM_STATS` gives.

use anyhow::{bail, ensure, Context, Result};
use std::{
    fs::File,
    io::{Seek, SeekFrom},
    os::unix::fs::FileExt,
};

/// `struct kvm_stats_header`.
const HEADER: usize = 24;
/// `struct kvm_stats_desc` without the name.
const DESCRIPTOR: usize = 16;
/// What a file of kvmate's is far below; a larger one is no such file.
const MOST: u64 = 1 << 20;

/// All of such a file, of one moment.
#[derive(Debug)]
pub struct Statistics {
    bytes: Vec<u8>,
    name_size: usize,
    count: usize,
    id: usize,
    descriptors: usize,
    data: usize,
}

impl Statistics {
    /// Read it, by one read: only what that gives adds up.
    pub fn read(file: &File) -> Result<Self> {
        let size = (&mut &*file).seek(SeekFrom::End(0))?;
        ensure!(size <= MOST, "{size} bytes are too many");
        let mut bytes = vec![0; size as usize];
        let read = file.read_at(&mut bytes, 0)?;
        ensure!(read == bytes.len(), "{read} of {size} bytes");
        Self::new(bytes)
    }

    fn new(bytes: Vec<u8>) -> Result<Self> {
        let words: Vec<_> = bytes
            .chunks_exact(4)
            .take(HEADER / 4)
            .map(|word| u32::from_ne_bytes(word.try_into().expect("four")) as usize)
            .collect();
        let [flags, name_size, count, id, descriptors, data] = words[..] else {
            bail!("a short header");
        };
        ensure!(flags == 0, "unknown flags {flags:#x}");
        Ok(Self {
            bytes,
            name_size,
            count,
            id,
            descriptors,
            data,
        })
    }

    fn name_at(&self, at: usize) -> Option<&[u8]> {
        let field = self.bytes.get(at..at + self.name_size)?;
        field.split(|&byte| byte == 0).next()
    }

    /// Whose statistics they are.
    pub fn id(&self) -> Option<&[u8]> {
        self.name_at(self.id)
    }

    /// The numbers of one of them.
    pub fn get(&self, name: &str) -> Result<Vec<u64>> {
        for index in 0..self.count {
            let at = self.descriptors + index * (DESCRIPTOR + self.name_size);
            let one = self.bytes.get(at..at + DESCRIPTOR);
            let one = one.context("descriptors beyond the end")?;
            if self.name_at(at + DESCRIPTOR) != Some(name.as_bytes()) {
                continue;
            }
            let size = usize::from(u16::from_ne_bytes([one[6], one[7]]));
            let offset = u32::from_ne_bytes([one[8], one[9], one[10], one[11]]) as usize;
            let numbers = self.data.checked_add(offset);
            let numbers = numbers.and_then(|from| self.bytes.get(from..from + 8 * size));
            let numbers = numbers.with_context(|| format!("{name} is beyond the end"))?;
            return Ok(numbers
                .chunks_exact(8)
                .map(|number| u64::from_ne_bytes(number.try_into().expect("eight")))
                .collect());
        }
        bail!("no statistic {name}")
    }

    /// The only number of one of them.
    pub fn number(&self, name: &str) -> Result<u64> {
        match self.get(name)?[..] {
            [number] => Ok(number),
            ref numbers => bail!("{} numbers of {name}", numbers.len()),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Such a file's bytes: names of 8 bytes, numbers right behind the descriptors.
    pub fn file(id: &str, all: &[(&str, &[u64])]) -> Vec<u8> {
        let name = |text: &str| {
            let mut field = [0; 8];
            field[..text.len()].copy_from_slice(text.as_bytes());
            field
        };
        let descriptors = HEADER + 8;
        let data = descriptors + all.len() * (DESCRIPTOR + 8);
        let header = [0, 8, all.len(), HEADER, descriptors, data];
        let mut bytes: Vec<u8> = header
            .iter()
            .flat_map(|&word| (word as u32).to_ne_bytes())
            .collect();
        bytes.extend(name(id));
        let mut offset = 0;
        for (text, numbers) in all {
            bytes.extend([0; 6]);
            bytes.extend((numbers.len() as u16).to_ne_bytes());
            bytes.extend(u32::to_ne_bytes(offset));
            bytes.extend([0; 4]);
            bytes.extend(name(text));
            offset += 8 * numbers.len() as u32;
        }
        let numbers = all.iter().flat_map(|(_, numbers)| *numbers);
        bytes.extend(numbers.flat_map(|number| number.to_ne_bytes()));
        bytes
    }

    #[test]
    fn numbers_by_their_names() -> Result<()> {
        let all = Statistics::new(file(
            "k-1",
            &[("a", &[7]), ("hist", &[1, 2, 3]), ("b", &[9])],
        ))?;
        assert_eq!(all.id(), Some(&b"k-1"[..]));
        assert_eq!(all.number("a")?, 7);
        assert_eq!(all.get("hist")?, [1, 2, 3]);
        assert_eq!(all.number("b")?, 9);
        assert!(all.number("hist").is_err());
        assert!(all.get("his").is_err());
        Ok(())
    }

    #[test]
    fn whatever_the_bytes_are_nothing_panics() {
        let whole = file("k-1", &[("a", &[7]), ("b", &[1, 2])]);
        for length in 0..whole.len() {
            let all = Statistics::new(whole[..length].to_vec());
            assert!(all.and_then(|all| all.get("b")).is_err(), "{length}");
        }
        for at in 0..whole.len() {
            for byte in [0, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                if let Ok(all) = Statistics::new(bytes) {
                    let _ = (all.id(), all.number("a"), all.get("b"));
                }
            }
        }
    }
}
