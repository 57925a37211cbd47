// SPDX-License-Identifier: GPL-2.0
//! Sealing a memory file, and a memfd.

use kvmate_uapi::{
    kvmate_gmem_seals, KVMATE_GMEM_SEALS, KVMATE_GMEM_SEAL_FUTURE_WRITE, KVMATE_GMEM_SEAL_SEAL,
    KVMATE_GMEM_SEAL_WRITE,
};
use nix::{errno::Errno, libc};
use std::{fs::File, os::fd::AsRawFd};

/// Our name of a seal, and memfd's.
pub const ALL: [(u32, i32); 3] = [
    (KVMATE_GMEM_SEAL_SEAL, libc::F_SEAL_SEAL),
    (KVMATE_GMEM_SEAL_WRITE, libc::F_SEAL_WRITE),
    (KVMATE_GMEM_SEAL_FUTURE_WRITE, libc::F_SEAL_FUTURE_WRITE),
];

/// The call itself.
pub fn call(file: &File, seals: &mut kvmate_gmem_seals) -> nix::Result<()> {
    // SAFETY: The argument is one of that ioctl's.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), KVMATE_GMEM_SEALS, seals) }).map(drop)
}

/// Add seals; tells all.
pub fn add(file: &File, add: u32) -> nix::Result<u32> {
    let mut seals = kvmate_gmem_seals { add, seals: 0 };
    call(file, &mut seals)?;
    Ok(seals.seals)
}

/// The same, of a memfd, in our names.
pub fn add_to_memfd(file: &File, add: u32) -> nix::Result<u32> {
    let theirs = ALL.iter().filter(|(our, _)| add & our != 0);
    let theirs = theirs.fold(0, |all, (_, their)| all | their);
    // SAFETY: Integers only.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, theirs) })?;
    // SAFETY: No argument.
    let all = Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) })?;
    let ours = ALL.iter().filter(|(_, their)| all & their != 0);
    Ok(ours.fold(0, |all, (our, _)| all | our))
}
