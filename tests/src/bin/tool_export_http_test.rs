// SPDX-License-Identifier: GPL-2.0
//! `kvmate export`: how it is asked and started, rightly and wrongly.

use anyhow::{ensure, Result};
use kvmate_tests::{
    ensure_eq,
    export::{Exporter, OPEN, PLAIN},
    ktap,
    module::Kvmate,
    tool::{self, Done},
};
use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

fn main() -> ExitCode {
    ktap::main(&[("requests", requests), ("arguments", arguments)])
}

/// Formats, paths, methods, and what is no HTTP.
fn requests() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let exporter = Exporter::start(&[])?;
    let open = exporter.get("/metrics", Some(OPEN))?;
    ensure_eq!(open.status, 200, "status");
    ensure_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "type"
    );
    ensure!(open.body.ends_with("\n# EOF\n"), "{}", open.body);
    ensure!(
        open.body.contains("\n# TYPE kvmate_exits counter\n"),
        "{}",
        open.body
    );
    for accept in [Some(PLAIN), Some("*/*"), None] {
        let plain = exporter.get("/metrics?a=b", accept)?;
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        ensure_eq!(
            plain.header("content-type"),
            Some(kind),
            "type for {accept:?}"
        );
        ensure!(
            !plain.body.contains("# EOF") && !plain.body.contains("# UNIT"),
            "{}",
            plain.body
        );
        ensure!(
            plain.body.contains("\n# TYPE kvmate_exits_total counter\n"),
            "{}",
            plain.body
        );
    }
    let index = exporter.get("/", None)?;
    ensure_eq!(index.status, 200, "status of /");
    ensure!(
        index.body.contains("/metrics") && index.body.len() < 500,
        "{}",
        index.body
    );
    for path in [
        "/metric",
        "/metrics/",
        "//metrics",
        "/%6detrics",
        "/../metrics",
        "/favicon.ico",
    ] {
        ensure_eq!(exporter.get(path, None)?.status, 404, "status of {path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let text = format!("{method} /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        let refused = exporter.ask(text.as_bytes())?;
        ensure_eq!(refused.status, 405, "status of {method}");
        ensure_eq!(
            refused.header("allow"),
            Some("GET, HEAD"),
            "what is allowed"
        );
    }
    let head = exporter.ask(b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n")?;
    ensure_eq!((head.status, head.body.as_str()), (200, ""), "HEAD");
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20));
    for text in [
        &b"\r\nGET\r\n\r\n"[..],
        b"\0\xff\xfe\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        long.as_bytes(),
    ] {
        // It answers 4xx, or hangs up.
        if let Ok(answer) = exporter.ask(text) {
            ensure!(
                (400..500).contains(&answer.status),
                "status {} of {text:?}",
                answer.status
            );
        }
    }
    ensure_eq!(
        exporter.metrics()?.whole("kvmate_up")?,
        1,
        "up after all that"
    );
    exporter.end()?;
    kvmate.unload()
}

/// One line and a status for each thing that is wrong from the start.
fn arguments() -> Result<()> {
    let run = |arguments: &[&str]| Done::of(tool::of("export", arguments)?);
    for wrong in [
        &["--listen", "localhost"][..],
        &["--listen", "127.0.0.1:65536"],
        &["--listen", "1.2.3:80"],
        &["--listen"],
        &["--max-vms", "many"],
        &["x"],
    ] {
        run(wrong)?.says(2, "--help")?;
    }
    let exporter = Exporter::start(&[])?;
    ensure_eq!(
        exporter.metrics()?.whole("kvmate_up")?,
        0,
        "up without the module"
    );
    run(&["--listen", &exporter.at()])?.says(1, "in use (os error 98)")?;
    run(&["--listen", "192.0.2.1:9980"])?.says(1, "cannot listen at 192.0.2.1:9980: choose")?;
    let copy = std::env::temp_dir().join("kvmate-tool");
    fs::copy(std::env::current_exe()?.with_file_name("kvmate"), &copy)?;
    let mut nobody = Command::new(&copy);
    nobody
        .args(["export", "--listen", "127.0.0.1:0"])
        .uid(65534);
    let refused = Done::of(nobody);
    fs::remove_file(copy)?;
    refused?.says(1, "needs root")?;
    exporter.end()
}
