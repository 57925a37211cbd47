// SPDX-License-Identifier: GPL-2.0
//! `observe`, switched ten thousand times while guests run; `storm_test` does it less often.

use kvmate_tests::{ktap, storm};
use std::process::ExitCode;

fn main() -> ExitCode {
    ktap::main(&[("ten_thousand_times", || storm::switch_observe(10_000))])
}
