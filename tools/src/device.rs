// SPDX-License-Identifier: GPL-2.0
//! `/dev/kvmate`, and why it cannot be opened.

use anyhow::{anyhow, Result};
use kvmate_uapi::call::{self, DEVICE};
use rustix::io::Errno;
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

/// What an error of a call to the module means, if the call itself has no other meaning for it.
pub fn failed(call: &str, error: &io::Error) -> anyhow::Error {
    match Errno::from_io_error(error) {
        Some(Errno::NOTTY) => anyhow!(
            "{call}: the loaded module is of another version; install the one that came with this tool"
        ),
        _ => anyhow!("{call}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_are_told() {
        let said = |errno: Errno| failed("KVMATE_X", &errno.into()).to_string();
        assert!(said(Errno::NOTTY)
            .ends_with("another version; install the one that came with this tool"));
        assert!(said(Errno::NOMEM).contains("memory"));
    }

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
