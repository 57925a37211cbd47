// SPDX-License-Identifier: GPL-2.0
//! Misbehaves on purpose, in each way the harness must see: `tests/host/harness_test` runs it. It is
//! in no plan of the real tests.

use anyhow::{bail, Result};
use kvmate_tests::ktap;
use std::{fs, process::ExitCode};

fn main() -> ExitCode {
    ktap::main(&[
        ("passes", || Ok(())),
        ("fails", || bail!("on purpose")),
        ("panics", || panic!("on purpose")),
        ("skips_without_leave", || ktap::skip("on purpose")),
        ("makes_the_kernel_complain", complain),
        ("never_reached", || Ok(())),
    ])
}

/// What a warning looks like in the log; and then the program dies without a word.
fn complain() -> Result<()> {
    fs::write("/dev/kmsg", "<4>WARNING: made up by selfcheck_test\n")?;
    std::process::abort()
}
