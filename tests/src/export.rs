// SPDX-License-Identifier: GPL-2.0
//! `kvmate export` as a process of its own, asked as a scraper asks; and its text taken apart.

use crate::{ensure_eq, tool};
use anyhow::{bail, ensure, Context, Result};
use nix::{
    sys::signal::{kill, Signal},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

/// What Prometheus 2 says that it accepts.
pub const OPEN: &str = "application/openmetrics-text;version=1.0.0;q=0.5,\
    application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
/// What a scraper that is older does.
pub const PLAIN: &str = "text/plain;version=0.0.4;q=1,*/*;q=0.1";

/// How long anything may take.
const LONG: Duration = Duration::from_secs(60);

/// The running exporter; dropping it kills.
pub struct Exporter {
    child: Child,
    out: BufReader<ChildStdout>,
    at: String,
}

impl Exporter {
    /// Start it at a port that is free, and stand by until it listens.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_at("127.0.0.1:0", arguments)
    }

    /// The same at that address.
    pub fn start_at(at: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = tool::of("export", &["--listen", at])?;
        command.args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("the tool")?;
        let out = BufReader::new(child.stdout.take().context("no pipe")?);
        let at = String::new();
        let mut exporter = Self { child, out, at };
        let mut line = String::new();
        exporter.out.read_line(&mut line)?;
        let at = line.strip_prefix("kvmate: http://");
        let at = at.and_then(|at| at.strip_suffix("/metrics\n"));
        exporter.at = at.with_context(|| format!("it said {line:?}"))?.to_owned();
        Ok(exporter)
    }

    /// Where it listens.
    pub fn at(&self) -> String {
        self.at.clone()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A connection to it.
    pub fn connect(&self) -> Result<TcpStream> {
        connect(&self.at)
    }

    /// Say this, and read the answer.
    pub fn ask(&self, text: &[u8]) -> Result<Answer> {
        ask(self.connect()?, text)
    }

    /// `GET`
    pub fn get(&self, path: &str, accept: Option<&str>) -> Result<Answer> {
        get(&self.at, path, accept)
    }

    /// A scrape.
    pub fn metrics(&self) -> Result<Metrics> {
        let answer = self.get("/metrics", Some(OPEN))?;
        ensure_eq!(answer.status, 200, "status; it said {:?}", answer.body);
        ensure!(
            answer.body.ends_with("\n# EOF\n"),
            "no end in {:?}",
            answer.body
        );
        Metrics::new(&answer.body)
    }

    /// End it as a service is ended; it says nothing, and it was well.
    pub fn end(self) -> Result<()> {
        self.end_by(Signal::SIGTERM)
    }

    /// The same by another signal.
    pub fn end_by(mut self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal)?;
        let status = self.child.wait()?;
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out)?;
        let stderr = self.child.stderr.as_mut().context("no pipe")?;
        stderr.read_to_string(&mut err)?;
        ensure_eq!((out.as_str(), err.as_str()), ("", ""), "what it said");
        ensure_eq!(status.code(), Some(0), "its status");
        Ok(())
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(at: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(at).context("connect")?;
    stream.set_read_timeout(Some(LONG))?;
    stream.set_write_timeout(Some(LONG))?;
    Ok(stream)
}

fn ask(mut stream: TcpStream, text: &[u8]) -> Result<Answer> {
    // It may have answered, and hung up, before all was said.
    let said = stream.write_all(text);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if answer.is_empty() {
        said.context("say")?;
        read.context("read")?;
    }
    Answer::new(&answer)
}

/// `GET` from any server, which hangs up behind the answer.
pub fn get(at: &str, path: &str, accept: Option<&str>) -> Result<Answer> {
    let accept = accept.map_or(String::new(), |accept| format!("Accept: {accept}\r\n"));
    let text = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n{accept}\r\n");
    ask(connect(at)?, text.as_bytes())
}

/// What was answered.
pub struct Answer {
    /// The status.
    pub status: u16,
    headers: String,
    /// What came behind the headers.
    pub body: String,
}

impl Answer {
    fn new(bytes: &[u8]) -> Result<Self> {
        let text = String::from_utf8(bytes.to_vec())?;
        let (headers, body) = text
            .split_once("\r\n\r\n")
            .with_context(|| format!("{text:?}"))?;
        let status = headers.split(' ').nth(1).context("no status")?.parse()?;
        let answer = Self {
            status,
            headers: headers.to_owned(),
            body: body.to_owned(),
        };
        if let (Some(length), false) = (answer.header("content-length"), body.is_empty()) {
            ensure_eq!(body.len(), length.parse::<usize>()?, "the body's length");
        }
        Ok(answer)
    }

    /// One of its headers.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.headers.lines().skip(1);
        let mut all = lines.filter_map(|line| line.split_once(": "));
        all.find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }
}

/// The samples of a scrape: each a name with its labels, a blank and a value.
#[derive(Debug)]
pub struct Metrics(Vec<(String, String)>);

impl Metrics {
    fn new(text: &str) -> Result<Self> {
        let mut samples: Vec<(String, String)> = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with("# ")) {
            let (sample, value) = line.rsplit_once(' ').with_context(|| format!("{line:?}"))?;
            samples.push((sample.to_owned(), value.to_owned()));
        }
        let mut names: Vec<_> = samples.iter().map(|(name, _)| name).collect();
        names.sort();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
        ensure!(twice.is_none(), "twice: {twice:?}");
        Ok(Self(samples))
    }

    fn value(&self, sample: &str) -> Result<&str> {
        let found = self.0.iter().find(|(name, _)| name == sample);
        let (_, value) = found.with_context(|| format!("no {sample}"))?;
        Ok(value)
    }

    /// A sample that is a whole number.
    pub fn whole(&self, sample: &str) -> Result<u64> {
        let value = self.value(sample)?;
        value.parse().with_context(|| format!("{sample} {value}"))
    }

    /// A sample that is seconds, in nanoseconds.
    pub fn nanoseconds(&self, sample: &str) -> Result<u64> {
        let value = self.value(sample)?;
        let seconds: f64 = value.parse().with_context(|| format!("{sample} {value}"))?;
        Ok((seconds * 1e9).round() as u64)
    }

    /// How many of that kind were left out.
    pub fn left_out(&self, what: &str) -> Result<u64> {
        self.whole(&format!("kvmate_left_out{{what=\"{what}\"}}"))
    }

    /// How many samples begin so.
    pub fn count(&self, prefix: &str) -> usize {
        let names = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        names.count()
    }

    /// The first that begins so, with its value.
    pub fn starting_with(&self, prefix: &str) -> Option<(String, String)> {
        let mut all = self.0.iter();
        all.find(|(name, _)| name.starts_with(prefix)).cloned()
    }

    /// A histogram's buckets: up to how many nanoseconds (none: any), and how many.
    pub fn buckets(&self, family: &str, labels: &str) -> Result<Vec<(Option<u64>, u64)>> {
        let (before, behind) = (format!("{family}_bucket{{le=\""), format!("\",{labels}}}"));
        let mut buckets = Vec::new();
        for (name, value) in &self.0 {
            let bound = name.strip_prefix(&before);
            let Some(bound) = bound.and_then(|rest| rest.strip_suffix(&behind)) else {
                continue;
            };
            let bound = match bound {
                "+Inf" => None,
                seconds => Some((seconds.parse::<f64>()? * 1e9).round() as u64),
            };
            if buckets
                .last()
                .is_some_and(|(last, _)| bound.is_some() && *last >= bound)
            {
                bail!("buckets out of order: {name}");
            }
            buckets.push((bound, value.parse()?));
        }
        Ok(buckets)
    }
}
