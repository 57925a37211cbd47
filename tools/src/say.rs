// SPDX-License-Identifier: GPL-2.0
//! What is said beside what was asked for: lines on standard error.

use std::{
    fmt::Display,
    io::{stderr, Write},
};

/// Say it. If nobody can be told (`2> /dev/full`, a closed pipe), that changes nothing: no status, and nothing
/// that is still to be undone.
pub fn say(text: impl Display) {
    let _ = writeln!(stderr(), "kvmate: {text}");
}
