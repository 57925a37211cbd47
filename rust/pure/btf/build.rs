// SPDX-License-Identifier: GPL-2.0
//! Makes BTF, for tests.

use super::{Btf, Result, Types};

/// vmlinux's types, and a module's. Tests leak a little.
pub fn read(base: &[u8], own: Option<&[u8]>) -> Result<Btf<'static>> {
    let leak = |blob: &[u8]| &*blob.to_vec().leak();
    // Few marks, or none, so that types beyond the last one are met too.
    let base = Box::leak(Box::new(Types::of_vmlinux(leak(base), vec![9; 3].leak())?));
    let own = match own {
        Some(own) => Some(&*Box::leak(Box::new(Types::of_module(
            leak(own),
            base,
            &mut [],
        )?))),
        None => None,
    };
    Ok(Btf::new(base, own))
}

/// A blob in the making.
pub struct Builder {
    types: Vec<u8>,
    names: Vec<u8>,
    next: u32,
    first_name: u32,
}

impl Builder {
    /// As vmlinux's.
    pub fn base() -> Self {
        Self {
            types: Vec::new(),
            names: vec![0],
            next: 1,
            first_name: 0,
        }
    }

    /// As a module's on top of it.
    pub fn module(base: &Self) -> Self {
        Self {
            types: Vec::new(),
            names: Vec::new(),
            next: base.next,
            first_name: base.names.len() as u32,
        }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.first_name + self.names.len() as u32;
        self.names.extend(name.as_bytes());
        self.names.push(0);
        at
    }

    /// Any type; its number.
    pub fn kind(&mut self, name: &str, kind: u32, count: u32, word: u32, more: &[u32]) -> u32 {
        let name = self.name(name);
        for word in [name, (kind << 24) | count, word].iter().chain(more) {
            self.types.extend(word.to_le_bytes());
        }
        self.next += 1;
        self.next - 1
    }

    /// An integer.
    pub fn int(&mut self, name: &str, size: u32) -> u32 {
        self.kind(name, 1, 0, size, &[size * 8])
    }

    /// An array.
    pub fn array(&mut self, of: u32, count: u32) -> u32 {
        self.kind("", 3, 0, 0, &[of, of, count])
    }

    /// A structure of members with name, type and offset in bits.
    pub fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.composed(4, name, size, members)
    }

    /// A structure (4) or union (5); add 0x80 for offsets with bit-field sizes.
    pub fn composed(
        &mut self,
        kind: u32,
        name: &str,
        size: u32,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        let more: Vec<u32> = members
            .iter()
            .flat_map(|&(name, of, offset)| [self.name(name), of, offset])
            .collect();
        self.kind(name, kind, members.len() as u32, size, &more)
    }

    /// The finished blob.
    pub fn blob(&self) -> Vec<u8> {
        let mut out = vec![0x9f, 0xeb, 1, 0];
        let types = self.types.len() as u32;
        for word in [24, 0, types, types, self.names.len() as u32] {
            out.extend(word.to_le_bytes());
        }
        [out, self.types.clone(), self.names.clone()].concat()
    }
}
