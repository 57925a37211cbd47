// SPDX-License-Identifier: GPL-2.0
//! Why a folio was not split, or not merged: told to who asked, counted, and kept of punches.

use super::query::Piece;
use crate::wrap::folio::FolioState;
use kernel::{error::Error, prelude::*};

/// Why not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody else holds a reference to it.
    Referenced,
    /// No memory for it.
    Memory,
    /// There is none.
    Hole,
    /// A page of it has failed.
    Poisoned,
}

impl Why {
    pub(super) const ALL: [Self; 4] = [Self::Referenced, Self::Memory, Self::Hole, Self::Poisoned];

    /// What `info` and the trace call it.
    pub(super) const fn name(self) -> &'static CStr {
        match self {
            Self::Referenced => c"referenced",
            Self::Memory => c"memory",
            Self::Hole => c"hole",
            Self::Poisoned => c"poisoned",
        }
    }
}

/// What was refused, and where.
#[derive(Clone, Copy)]
pub(super) struct Refused {
    pub(super) why: Why,
    pub(super) at: Piece,
}

impl Refused {
    /// A folio that somebody may hold.
    pub(super) fn folio(folio: FolioState) -> Self {
        let why = if is_referenced(&folio) {
            Why::Referenced
        } else {
            Why::Memory
        };
        Self {
            why,
            at: Piece::Folio(folio),
        }
    }

    /// Whether its references look as if they stayed long.
    pub(super) fn is_pinned(&self) -> bool {
        matches!(self.at, Piece::Folio(folio) if folio.pinned != 0)
    }

    /// What user space is told.
    pub(super) fn errno(&self) -> Error {
        match self.why {
            Why::Referenced => EAGAIN,
            Why::Memory => ENOMEM,
            Why::Hole => EINVAL,
            Why::Poisoned => EHWPOISON,
        }
    }
}

/// Whether somebody besides the cache and page tables has a reference to it.
pub(super) fn is_referenced(folio: &FolioState) -> bool {
    folio.references > folio.expected
}
