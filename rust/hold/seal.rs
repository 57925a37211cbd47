// SPDX-License-Identifier: GPL-2.0
//! Seals: `KVMATE_GMEM_SEALS`, with memfd's meaning.
//!
//! They change under the inode lock, under which all calls look that write. Who maps looks without
//! it (`mmap_lock` is held): the write seal is set while mm lets nobody map the file writable, and refused
//! while somebody has. A read-only mapping that could be made writable counts as writable there; once
//! sealed, new ones cannot be.

use super::{file::File, refused::is_referenced};
use crate::wrap::{
    mapping::Mapping,
    memory_file::Call,
    merge::drain_lru,
    signal::fatal_signal_pending,
    uabi::{self, GmemSeals},
};
use kernel::{
    prelude::*,
    sync::atomic::Relaxed,
    time::{delay::fsleep, Delta},
    uaccess::{UserPtr, UserSlice},
};

const ALL: u32 = uabi::GMEM_SEAL_SEAL | WRITE;
/// Nobody writes by a call, or maps it to write.
const WRITE: u32 = uabi::GMEM_SEAL_WRITE | uabi::GMEM_SEAL_FUTURE_WRITE;

/// How often it is looked whether a page is held, as memfd does: with pauses of 20 to 80 ms.
const LOOKS: u32 = 5;
/// And how often in all, where it is one page after another: some seconds.
const ALL_LOOKS: u32 = 100;

impl File {
    /// `KVMATE_GMEM_SEALS`
    pub(super) fn seals(&self, mapping: &Mapping, call: &Call) -> Result<isize> {
        let argument = UserSlice::new(UserPtr::from_addr(call.argument), size_of::<GmemSeals>());
        let (mut reader, mut writer) = argument.reader_writer();
        let mut asked: GmemSeals = reader.read()?;
        if asked.add & !ALL != 0 || asked.seals != 0 {
            return Err(EINVAL);
        }
        if asked.add != 0 {
            if !call.writable {
                return Err(EPERM);
            }
            self.seal(mapping, asked.add)?;
        }
        asked.seals = self.seals.load(Relaxed);
        writer.write(&asked)?;
        Ok(0)
    }

    fn seal(&self, mapping: &Mapping, add: u32) -> Result {
        let _lock = mapping.lock_inode();
        let seals = self.seals.load(Relaxed);
        if seals & uabi::GMEM_SEAL_SEAL != 0 {
            return Err(EPERM);
        }
        let write = add & !seals & uabi::GMEM_SEAL_WRITE != 0;
        let denied = write.then(|| mapping.deny_writable()).transpose()?;
        if write {
            nobody_holds(mapping)?;
        }
        self.seals.store(seals | add, Relaxed);
        drop(denied);
        Ok(())
    }

    /// `EPERM`: sealed.
    pub(super) fn may_write(&self) -> Result {
        if self.is_write_sealed() {
            return Err(EPERM);
        }
        Ok(())
    }

    /// Whether nobody is to write by a call, or to map it to write.
    pub(super) fn is_write_sealed(&self) -> bool {
        self.seals.load(Relaxed) & WRITE != 0
    }
}

/// `EBUSY`: somebody has references to a page, and could write to it, even if nobody can map it.
fn nobody_holds(mapping: &Mapping) -> Result {
    let (mut page, end) = (0, File::size_in_pages(mapping));
    let (mut looks, mut all) = (0, 0);
    while let Some(folio) = mapping.look(page..end) {
        if fatal_signal_pending() {
            return Err(EINTR);
        }
        if !is_referenced(&folio) {
            page = folio.index + (1 << folio.order);
            looks = 0;
            continue;
        }
        match looks {
            _ if all == ALL_LOOKS => return Err(EBUSY),
            0 => drain_lru(false),
            1 => drain_lru(true),
            LOOKS => return Err(EBUSY),
            _ => fsleep(Delta::from_millis(5 << looks)),
        }
        (looks, all) = (looks + 1, all + 1);
    }
    Ok(())
}
