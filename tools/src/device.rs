// SPDX-License-Identifier: GPL-2.0
//! `/dev/kvmate`, and why it cannot be opened.

use anyhow::{anyhow, Result};
use kvmate_uapi::call::{self, DEVICE};
use std::io::{self, ErrorKind};

/// Open it.
pub fn open() -> Result<call::Device> {
    call::Device::open().map_err(|error| refused(&error))
}

fn refused(error: &io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::NotFound => {
            anyhow!("there is no {DEVICE}: the module kvmate is not loaded: insmod kvmate.ko, or modprobe kvmate")
        }
        ErrorKind::PermissionDenied => {
            anyhow!("{DEVICE} cannot be opened: this needs root (sudo kvmate ...)")
        }
        _ => anyhow!("{DEVICE}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes() {
        for (errno, part) in [
            (2, "insmod kvmate.ko"),
            (13, "root"),
            (1, "root"),
            (24, "open files"),
        ] {
            let said = refused(&io::Error::from_raw_os_error(errno)).to_string();
            assert!(said.contains(part), "{said}");
        }
    }
}
