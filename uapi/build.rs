// SPDX-License-Identifier: GPL-2.0
//! Generate the bindings of `kvmate.h` by the bindgen program, as the module's are.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=kvmate.h");
    println!("cargo::rerun-if-changed=helper.h");
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("uapi.rs");
    let status = Command::new("bindgen")
        .args([
            "helper.h",
            "--allowlist-item",
            "(kvmate|KVMATE)_.*",
            "--no-layout-tests",
            "--with-derive-default",
            "--generate-cstr",
            "-o",
        ])
        .arg(&out)
        .status()
        .expect("bindgen is needed (Debian's package bindgen)");
    assert!(status.success(), "bindgen failed on uapi/kvmate.h");
    let text = std::fs::read_to_string(&out).expect("bindgen wrote its output");
    std::fs::write(&out, text.replace("KVMATE_CONST_", "")).expect("OUT_DIR can be written");
}
