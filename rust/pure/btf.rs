// SPDX-License-Identifier: GPL-2.0
//! A reader of BTF, the kernel's type information: where a structure's members are.
//!
//! It reads what a running kernel offers (`/sys/kernel/btf/vmlinux`, and a module's on top of that)
//! in place, allocates nothing, and takes any bytes at all: what makes no sense is [`Malformed`].
//! [`Types`] are one such blob, [`Btf`] is what one may ask of them.
//! The format is that of `include/uapi/linux/btf.h`; [`crate`]'s `layout` asks the questions.

/// The blob is no BTF, or contradicts itself, or knows types that we do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What reading answers.
pub type Result<T> = core::result::Result<T, Malformed>;

const MAGIC: u16 = 0xeb9f;
/// The header's length without the parts that were added later.
const HEADER: usize = 24;
/// A type's length without what its kind adds.
const TYPE: usize = 12;
/// A member's length, in a structure or union.
const MEMBER: usize = 12;

/// Each so many types their offset is marked: a type is found by its number in half as many steps,
/// on average.
const STEP: u32 = 1024;
/// How many marks are good for a whole kernel, which has some 130,000 types.
pub const MARKS: usize = 256;

/// How deep unnamed structures may stand in one another, and how long a chain of typedefs may be.
const DEEP: u32 = 32;
/// How many members are looked at for one question. Structures of thousands exist; a blob made to
/// keep us busy does not get further.
const PATIENCE: u32 = 1 << 16;

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// A type, by the number that others call it by. 0 is `void`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(u32);

/// Where a member is, in bits from the start of the structure asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The first bit.
    pub offset: u64,
    /// How many bits.
    pub size: u64,
}

/// One type as it stands in a blob.
#[derive(Clone, Copy)]
struct Type<'a> {
    kind: u32,
    /// Whether members' offsets carry bit-field sizes.
    flag: bool,
    name: u32,
    /// A size in bytes or another type, as the kind has it.
    word: u32,
    /// What the kind adds.
    more: &'a [u8],
}

/// A structure's or union's member as it stands in a blob.
struct Field {
    name: u32,
    kind: Id,
    offset: u32,
    /// 0: not a bit field.
    bits: u32,
}

/// One blob: its types and the marks to find them by, and its names.
pub struct Types<'a> {
    types: &'a [u8],
    names: &'a [u8],
    /// The number of the first type, and of the first that is not here any more.
    first: u32,
    end: u32,
    /// What names begin at: a module's go on where the base's end.
    first_name: u32,
    marks: &'a [u32],
}

/// The types of vmlinux, or of a module on top of them.
#[derive(Clone, Copy)]
pub struct Btf<'a> {
    base: &'a Types<'a>,
    own: Option<&'a Types<'a>>,
}

impl<'a> Btf<'a> {
    /// vmlinux's types, and those of a module that were read on top of these.
    pub fn new(base: &'a Types<'a>, own: Option<&'a Types<'a>>) -> Self {
        Self { base, own }
    }

    /// Calls `each` with every structure of that name and its size in bytes, until it answers
    /// something.
    ///
    /// They are the module's own if it has any: only what is the same in vmlinux is left out of a
    /// module's blob, while vmlinux may have one that the module does not use. There can be more
    /// than one, for the tool that writes BTF does not see all duplicates.
    pub fn each_struct<T>(
        &self,
        name: &[u8],
        mut each: impl FnMut(Id, u32) -> Option<T>,
    ) -> Result<Option<T>> {
        for part in [self.own, Some(self.base)].into_iter().flatten() {
            let (mut at, mut id, mut seen) = (0, part.first, false);
            while let Some((found, next)) = part.next(at)? {
                if found.kind == kind::STRUCT && self.is_named(found.name, name) {
                    seen = true;
                    if let Some(answer) = each(Id(id), found.word) {
                        return Ok(Some(answer));
                    }
                }
                at = next;
                id += 1;
            }
            if seen {
                break;
            }
        }
        Ok(None)
    }

    /// The member of a structure or union by its path: names with dots between, those of unnamed
    /// structures and unions left out, as in C.
    pub fn member(&self, of: Id, path: &[u8]) -> Result<Option<Member>> {
        let mut patience = PATIENCE;
        let mut offset = 0u64;
        let (mut kind, mut bits) = (of, 0);
        for name in path.split(|&c| c == b'.') {
            let Some(field) = self.field(kind, name, DEEP, &mut patience)? else {
                return Ok(None);
            };
            offset += u64::from(field.offset);
            (kind, bits) = (field.kind, field.bits);
        }
        let size = match bits {
            0 => self.size(kind)?.checked_mul(8).ok_or(Malformed)?,
            bits => bits.into(),
        };
        Ok(Some(Member { offset, size }))
    }

    /// The named field of a structure or union, also inside its unnamed ones; its offset is from the
    /// start of `of`.
    fn field(&self, of: Id, name: &[u8], deep: u32, patience: &mut u32) -> Result<Option<Field>> {
        let of = self.plain(of)?;
        if !matches!(of.kind, kind::STRUCT | kind::UNION) {
            return Ok(None);
        }
        for raw in of.more.chunks_exact(MEMBER) {
            *patience = patience.checked_sub(1).ok_or(Malformed)?;
            let mut field = Field::read(raw, of.flag)?;
            if self.is_named(field.name, name) {
                return Ok(Some(field));
            }
            if !self.is_named(field.name, b"") {
                continue;
            }
            let deep = deep.checked_sub(1).ok_or(Malformed)?;
            if let Some(inner) = self.field(field.kind, name, deep, patience)? {
                field.offset = field.offset.checked_add(inner.offset).ok_or(Malformed)?;
                return Ok(Some(Field {
                    offset: field.offset,
                    ..inner
                }));
            }
        }
        Ok(None)
    }

    /// A type's size in bytes.
    fn size(&self, of: Id) -> Result<u64> {
        let (mut id, mut times) = (of, 1u64);
        for _ in 0..DEEP {
            let found = self.plain(id)?;
            let size = match found.kind {
                kind::INT
                | kind::STRUCT
                | kind::UNION
                | kind::ENUM
                | kind::ENUM64
                | kind::FLOAT => found.word.into(),
                kind::PTR => 8,
                kind::ARRAY => {
                    id = Id(word(found.more, 0)?);
                    let count = u64::from(word(found.more, 8)?);
                    times = times.checked_mul(count).ok_or(Malformed)?;
                    continue;
                }
                _ => return Err(Malformed),
            };
            return times.checked_mul(size).ok_or(Malformed);
        }
        Err(Malformed)
    }

    /// The type behind typedefs, qualifiers and tags.
    fn plain(&self, mut id: Id) -> Result<Type<'a>> {
        for _ in 0..DEEP {
            let found = self.at(id)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = Id(found.word)
                }
                _ => return Ok(found),
            }
        }
        Err(Malformed)
    }

    fn at(&self, Id(id): Id) -> Result<Type<'a>> {
        match self.own {
            Some(own) if id >= own.first => own.at(id),
            _ => self.base.at(id),
        }
    }

    /// Whether the name at that place is this one.
    fn is_named(&self, at: u32, name: &[u8]) -> bool {
        let part = match self.own {
            Some(own) if at >= own.first_name => own,
            _ => self.base,
        };
        let found = part.names.get((at - part.first_name) as usize..);
        found.is_some_and(|found| found.starts_with(name) && found.get(name.len()) == Some(&0))
    }
}

impl<'a> Types<'a> {
    /// Read vmlinux's. `marks` may be of any number: the more, the faster is a type found.
    pub fn of_vmlinux(blob: &'a [u8], marks: &'a mut [u32]) -> Result<Self> {
        Self::read(blob, 1, 0, marks)
    }

    /// Read a module's, which refer to those of vmlinux.
    pub fn of_module(blob: &'a [u8], base: &Types<'_>, marks: &'a mut [u32]) -> Result<Self> {
        let first_name = u32::try_from(base.names.len()).map_err(|_| Malformed)?;
        Self::read(blob, base.end, first_name, marks)
    }

    fn read(blob: &'a [u8], first: u32, first_name: u32, marks: &'a mut [u32]) -> Result<Self> {
        let magic = blob.first_chunk::<4>().ok_or(Malformed)?;
        if u16::from_le_bytes([magic[0], magic[1]]) != MAGIC || magic[2] != 1 {
            return Err(Malformed);
        }
        let header = word(blob, 4)? as usize;
        if header < HEADER {
            return Err(Malformed);
        }
        let rest = blob.get(header..).ok_or(Malformed)?;
        let section = |at| {
            let (from, length) = (word(blob, at)? as usize, word(blob, at + 4)? as usize);
            let end = from.checked_add(length).ok_or(Malformed)?;
            rest.get(from..end).ok_or(Malformed)
        };
        let mut part = Self {
            types: section(8)?,
            names: section(16)?,
            first,
            end: first,
            first_name,
            marks: &[],
        };
        let count = part.mark(marks)?;
        part.end = first.checked_add(count).ok_or(Malformed)?;
        part.marks = marks;
        Ok(part)
    }

    /// Count the types, and mark where each [`STEP`]th is.
    fn mark(&self, marks: &mut [u32]) -> Result<u32> {
        let (mut at, mut count) = (0, 0);
        loop {
            if count % STEP == 0 {
                if let Some(mark) = marks.get_mut((count / STEP) as usize) {
                    *mark = u32::try_from(at).map_err(|_| Malformed)?;
                }
            }
            match self.next(at)? {
                Some((_, next)) => at = next,
                None => return Ok(count),
            }
            count += 1;
        }
    }

    fn at(&self, id: u32) -> Result<Type<'a>> {
        if id >= self.end {
            return Err(Malformed);
        }
        let number = id.checked_sub(self.first).ok_or(Malformed)?;
        let mark = ((number / STEP) as usize).min(self.marks.len().saturating_sub(1));
        let mut at = self.marks.get(mark).map_or(0, |&at| at as usize);
        for _ in mark as u32 * STEP..number {
            at = self.next(at)?.ok_or(Malformed)?.1;
        }
        Ok(self.next(at)?.ok_or(Malformed)?.0)
    }

    /// The type at that place and the place of the next, or nothing at the end.
    #[inline]
    fn next(&self, at: usize) -> Result<Option<(Type<'a>, usize)>> {
        let rest = self.types.get(at..).ok_or(Malformed)?;
        if rest.is_empty() {
            return Ok(None);
        }
        let info = word(rest, 4)?;
        let (kind, count) = ((info >> 24) & 0x7f, (info & 0xff_ffff) as usize);
        let length = match kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION => count * MEMBER,
            kind::ENUM | kind::FUNC_PROTO => count * 8,
            kind::DATASEC | kind::ENUM64 => count * 12,
            kind::PTR | kind::FWD | kind::TYPEDEF | kind::VOLATILE | kind::CONST => 0,
            kind::RESTRICT | kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
            _ => return Err(Malformed),
        };
        let found = Type {
            kind,
            flag: info >> 31 == 1,
            name: word(rest, 0)?,
            word: word(rest, 8)?,
            more: rest.get(TYPE..TYPE + length).ok_or(Malformed)?,
        };
        Ok(Some((found, at + TYPE + length)))
    }
}

impl Field {
    fn read(raw: &[u8], flag: bool) -> Result<Self> {
        let place = word(raw, 8)?;
        Ok(Self {
            name: word(raw, 0)?,
            kind: Id(word(raw, 4)?),
            offset: if flag { place & 0xff_ffff } else { place },
            bits: if flag { place >> 24 } else { 0 },
        })
    }
}

#[inline]
fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    Ok(u32::from_le_bytes(*bytes.ok_or(Malformed)?))
}

#[cfg(test)]
pub mod build;
#[cfg(test)]
mod tests;
