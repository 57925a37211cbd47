// SPDX-License-Identifier: GPL-2.0
//! `kvmate export` and the distribution's own Prometheus: its linter, and a server that scrapes.
//!
//! The runner says where they are (`KVMATE_PROMETHEUS`, by `scripts/prometheus`).

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    export::{self, Exporter, PLAIN},
    gmem,
    guest::steps::{self, Step},
    ktap,
    module::Kvmate,
    seen,
};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    ktap::main(&[("promtool", promtool), ("scraped", scraped)])
}

/// One of their programs.
fn program(name: &str) -> Result<PathBuf> {
    match std::env::var_os("KVMATE_PROMETHEUS").filter(|folder| !folder.is_empty()) {
        Some(folder) => Ok(Path::new(&folder).join(name)),
        None => ktap::skip("the distribution's Prometheus could not be had"),
    }
}

/// `promtool check metrics`
fn check(text: &str) -> Result<Output> {
    let mut child = Command::new(program("promtool")?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool")?;
    let mut input = child.stdin.take().context("no pipe")?;
    input.write_all(text.as_bytes())?;
    drop(input);
    Ok(child.wait_with_output()?)
}

/// Of all that there can be it finds nothing to complain of.
fn promtool() -> Result<()> {
    program("promtool")?;
    let kvmate = Kvmate::load("")?;
    let exporter = Exporter::start(&[])?;
    let nothing = exporter.get("/metrics", Some(PLAIN))?.body;
    let mut guest = steps::Guest::new(&[Step::Out(10), Step::Cpuid(10)])?;
    guest.run()?;
    let file = gmem::create(4096, 0)?;
    gmem::Map::new(&file, 4096)?.write(0, 1);
    let all = exporter.get("/metrics", Some(PLAIN))?.body;
    for name in [
        "kvmate_vcpu_exit_seconds_total{",
        "_bucket{le=",
        "kvmate_gmem_faults_total{",
    ] {
        ensure!(all.contains(name), "no {name} in {all}");
    }
    for text in [&nothing, &all] {
        let done = check(text)?;
        let said =
            [done.stdout, done.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        ensure_eq!(
            (done.status.code(), said.concat()),
            (Some(0), String::new()),
            "promtool of {text}"
        );
    }
    // It does look.
    let bad = all.replace("kvmate_vm_exits_total", "kvmate_vm_exits");
    ensure!(!check(&bad)?.status.success(), "promtool takes {bad}");
    drop((guest, file));
    exporter.end()?;
    kvmate.unload()
}

/// A Prometheus; dropping it kills.
struct Prometheus {
    child: Child,
    at: String,
    log: PathBuf,
}

impl Prometheus {
    /// One that scrapes that address every three seconds.
    fn start(target: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join("kvmate-prometheus");
        fs::create_dir_all(&folder)?;
        let configuration = folder.join("prometheus.yml");
        fs::write(
            &configuration,
            format!(
                "global:\n  scrape_interval: 3s\n  scrape_timeout: 3s\nscrape_configs:\n  - job_name: kvmate\n    \
                 static_configs: [{{ targets: ['{target}'] }}]\n"
            ),
        )?;
        // A port that was free a moment ago: it takes no 0.
        let at = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let log = folder.join("log");
        let output = fs::File::create(&log)?;
        let child = Command::new(program("prometheus")?)
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={at}"))
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("prometheus")?;
        Ok(Self { child, at, log })
    }

    /// Ask its API.
    fn api(&self, path: &str) -> Result<Value> {
        let answer = export::get(&self.at, &format!("/api/v1/{path}"), None)?;
        let value: Value = serde_json::from_str(&answer.body)?;
        ensure_eq!(value["status"], "success", "status of {path}: {value}");
        Ok(value["data"].clone())
    }

    /// The value of a query that has one.
    fn value(&self, query: &str) -> Result<Option<String>> {
        let escaped: Vec<_> = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let escaped = escaped.concat();
        let data = self.api(&format!("query?query={escaped}"))?;
        let value = data["result"][0]["value"][1].as_str();
        Ok(value.map(str::to_owned))
    }

    /// Stand by until the query's value is that.
    fn until(&mut self, query: &str, expected: &str) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(150);
        loop {
            // It may not listen yet.
            let value = self.value(query);
            if let Ok(Some(value)) = &value {
                if value == expected {
                    return Ok(());
                }
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > end {
                let log = fs::read_to_string(&self.log)?;
                let last: Vec<_> = log.lines().rev().take(5).collect();
                anyhow::bail!("{query} is {value:?}, not {expected}; {ended:?}, {last:?}");
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server scrapes it, and knows what the module's tables say.
fn scraped() -> Result<()> {
    program("prometheus")?;
    let kvmate = Kvmate::load("")?;
    let exporter = Exporter::start(&[])?;
    let mut guest = steps::Guest::new(&[Step::Out(10), Step::Cpuid(10), Step::Read(3)])?;
    guest.run()?;
    let mut prometheus = Prometheus::start(&exporter.at())?;
    prometheus.until("up", "1")?;
    prometheus.until("kvmate_up", "1")?;
    for _ in 0..2 {
        let counts = seen::exits_of(&guest.name)?;
        for (reason, count) in &counts.0 {
            let labels = format!("vm=\"{}\",vcpu=\"0\",reason=\"{reason}\"", guest.name);
            prometheus.until(
                &format!("kvmate_vcpu_exits_total{{{labels}}}"),
                &count.to_string(),
            )?;
        }
        let joined = format!(
            "kvmate_vm_exits_total * on(vm) group_left(process) kvmate_vm_info{{pid=\"{}\"}}",
            std::process::id()
        );
        prometheus.until(&joined, &counts.sum().to_string())?;
        guest.run()?;
    }
    let quantile =
        "histogram_quantile(1, sum by (vm, le) (kvmate_vm_exit_duration_seconds_bucket)) > bool 0";
    prometheus.until(quantile, "1")?;
    // Only OpenMetrics tells of units.
    let metadata = prometheus.api("targets/metadata?metric=kvmate_vcpu_exit_seconds")?;
    ensure_eq!(metadata[0]["type"], "counter", "type in {metadata}");
    ensure_eq!(metadata[0]["unit"], "seconds", "unit in {metadata}");
    // The module goes and the exporter stays.
    drop(guest);
    let unloaded = || -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        std::mem::forget(kvmate);
        while let Err(error) = kvmate_tests::module::unload("kvmate") {
            // A scrape is under way.
            ensure!(Instant::now() < end, "rmmod kvmate: {error}");
            thread::sleep(Duration::from_millis(3));
        }
        Ok(())
    };
    unloaded()?;
    prometheus.until("kvmate_up", "0")?;
    prometheus.until("up", "1")?;
    drop(prometheus);
    exporter.end()
}
