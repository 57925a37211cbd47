// SPDX-License-Identifier: GPL-2.0
//! kvmate's tables, read.

use anyhow::{ensure, Context, Result};

/// The columns of a table `exits`.
pub const EXITS: &str = "reason count total_ns avg_ns p50_ns p99_ns p999_ns max_ns";

/// A line of a table `exits`; times in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Why guests exited.
    pub reason: String,
    /// How often.
    pub count: u64,
    /// From exit to entry, all together.
    pub total: u64,
    /// On average.
    pub average: u64,
    /// At 500, 990 and 999 thousandths.
    pub percentiles: [u64; 3],
    /// The longest.
    pub max: u64,
}

impl Row {
    fn parse(text: &str) -> Result<Self> {
        let mut words = text.split(' ');
        let reason = words.next().unwrap_or_default().to_owned();
        let numbers = words
            .map(str::parse)
            .collect::<Result<Vec<u64>, _>>()
            .with_context(|| format!("a row of numbers: {text}"))?;
        let [count, total, average, p50, p99, p999, max] = numbers[..] else {
            anyhow::bail!("not eight columns: {text}");
        };
        Ok(Self {
            reason,
            count,
            total,
            average,
            percentiles: [p50, p99, p999],
            max,
        })
    }
}

/// The rows of a table, whose header must be `columns`.
fn body<'a>(text: &'a str, columns: &str) -> Result<impl Iterator<Item = &'a str>> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    ensure!(
        header == columns,
        "header {header:?} instead of {columns:?}"
    );
    Ok(lines)
}

/// A table `exits`.
pub fn exits(text: &str) -> Result<Vec<Row>> {
    body(text, EXITS)?.map(Row::parse).collect()
}

/// The lines of the table `ended`: which VM since load, its name, how many vCPUs it had, and a row.
pub fn ended_rows(text: &str) -> Result<Vec<(u64, String, u64, Row)>> {
    body(text, &format!("number vm vcpus {EXITS}"))?
        .map(|line| {
            let words: Vec<_> = line.splitn(4, ' ').collect();
            let [number, name, vcpus, row] = words[..] else {
                anyhow::bail!("not eleven columns: {line}");
            };
            Ok((
                number.parse().context("a VM's number")?,
                name.to_owned(),
                vcpus.parse().context("a number of vCPUs")?,
                Row::parse(row)?,
            ))
        })
        .collect()
}

/// The rows of a VM in the table `ended`, and how many vCPUs it is said to have had.
pub fn ended(text: &str, vm: &str) -> Result<(u64, Vec<Row>)> {
    let all = ended_rows(text)?.into_iter().filter(|(_, n, ..)| n == vm);
    let (vcpus, rows): (Vec<_>, Vec<_>) = all.map(|(_, _, vcpus, row)| (vcpus, row)).unzip();
    let vcpus = vcpus
        .first()
        .with_context(|| format!("{vm} has not ended"))?;
    Ok((*vcpus, rows))
}

/// The columns of a table `exits_hist`.
pub const EXITS_HIST: &str = "reason timed total_ns histogram";

/// A line of a table `exits_hist`; times in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Why guests exited.
    pub reason: String,
    /// How many exits had an entry after them.
    pub timed: u64,
    /// From exit to entry, all together.
    pub total: u64,
    /// How many took from so long to below the next: at `n` from 2^(n-1), at 0 nothing. As many as
    /// `exit_hist` of the statistics has.
    pub buckets: [u64; 48],
}

impl Histogram {
    /// How many took less than 2^`bits` ns.
    pub fn below(&self, bits: usize) -> u64 {
        self.buckets[..=bits].iter().sum()
    }

    fn parse(line: &str) -> Result<Self> {
        let words: Vec<_> = line.split(' ').collect();
        let [reason, timed, total, histogram] = words[..] else {
            anyhow::bail!("not four columns");
        };
        let mut buckets = [0; 48];
        let mut next = 0;
        for bucket in histogram.split(',').filter(|_| histogram != "-") {
            let (from, count) = bucket.split_once(':').context("no bucket")?;
            let (from, count): (u64, u64) = (from.parse()?, count.parse()?);
            ensure!(from == 0 || from.is_power_of_two(), "from {from}");
            let at = from.checked_ilog2().map_or(0, |bits| bits as usize + 1);
            ensure!(at >= next && count > 0, "out of order, or empty: {bucket}");
            *buckets.get_mut(at).context("beyond the last")? = count;
            next = at + 1;
        }
        let (timed, total) = (timed.parse()?, total.parse()?);
        let sum: u64 = buckets.iter().sum();
        ensure!(sum == timed, "{sum} in buckets");
        Ok(Self {
            reason: reason.to_owned(),
            timed,
            total,
            buckets,
        })
    }
}

/// A table `exits_hist`.
pub fn exits_hist(text: &str) -> Result<Vec<Histogram>> {
    body(text, EXITS_HIST)?
        .map(|line| Histogram::parse(line).with_context(|| line.to_owned()))
        .collect()
}

/// The columns of a table `times`.
pub const TIMES: &str = "reason count total_ns user_ns halted_ns preempted_ns kernel_ns";

/// A line of a table `times`; times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Why guests exited.
    pub reason: String,
    /// How often.
    pub count: u64,
    /// From exit to entry, all together.
    pub total: u64,
    /// Of that in user space.
    pub user: u64,
    /// Halted.
    pub halted: u64,
    /// Waiting for a CPU.
    pub preempted: u64,
    /// The rest.
    pub kernel: u64,
}

/// A table `times`. That each line adds up tells that the columns are these, and no more: the last is what
/// the others leave. Tests have to bound it by clocks of their own.
pub fn times(text: &str) -> Result<Vec<Parts>> {
    body(text, TIMES)?
        .map(|line| {
            let (reason, numbers) = line.split_once(' ').unwrap_or((line, ""));
            let numbers: Vec<u64> = numbers
                .split(' ')
                .map(str::parse)
                .collect::<Result<_, _>>()
                .with_context(|| format!("a row of numbers: {line}"))?;
            let [count, total, user, halted, preempted, kernel] = numbers[..] else {
                anyhow::bail!("not seven columns: {line}");
            };
            let sum = user + halted + preempted + kernel;
            ensure!(sum == total, "the parts add up to {sum}: {line}");
            Ok(Parts {
                reason: reason.to_owned(),
                count,
                total,
                user,
                halted,
                preempted,
                kernel,
            })
        })
        .collect()
}

/// All lines of a table `times` together.
pub fn sum_of(lines: &[Parts]) -> Parts {
    lines.iter().fold(Parts::default(), |sum, line| Parts {
        reason: String::new(),
        count: sum.count + line.count,
        total: sum.total + line.total,
        user: sum.user + line.user,
        halted: sum.halted + line.halted,
        preempted: sum.preempted + line.preempted,
        kernel: sum.kernel + line.kernel,
    })
}

/// The columns of a table `faults`.
pub const FAULTS: &str = "kind which count error";

/// A line of a table `faults`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `class`, `memslot` or `range`.
    pub kind: String,
    /// Which one.
    pub which: String,
    /// How many.
    pub count: u64,
    /// How many of them may be others.
    pub error: u64,
}

/// A table `faults`.
pub fn faults(text: &str) -> Result<Vec<Fault>> {
    body(text, FAULTS)?
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            let [kind, which, count, error] = words[..] else {
                anyhow::bail!("not four columns: {line}");
            };
            Ok(Fault {
                kind: kind.into(),
                which: which.into(),
                count: count.parse()?,
                error: error.parse()?,
            })
        })
        .collect()
}

/// The columns of a table `vcpus`.
pub const VCPUS: &str = "vcpu task state last_exit ago_ns rip requests vm";

/// A line of a table `vcpus`, as it stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vcpu {
    /// The number user space gave it.
    pub vcpu: u32,
    /// `<thread>:<name>`
    pub task: String,
    /// `guest`, `halted`, `kernel` or `user`.
    pub state: String,
    /// Why it exited last.
    pub last_exit: String,
    /// How long ago, in nanoseconds.
    pub ago: String,
    /// Where the guest was then.
    pub rip: String,
    /// What is asked of it.
    pub requests: String,
    /// What is wrong with its VM.
    pub vm: String,
}

impl Vcpu {
    /// How long ago its last exit was.
    pub fn ago(&self) -> Result<u64> {
        self.ago
            .parse()
            .with_context(|| format!("ago_ns {}", self.ago))
    }
}

/// A table `vcpus`.
pub fn vcpus(text: &str) -> Result<Vec<Vcpu>> {
    body(text, VCPUS)?
        .map(|line| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let [vcpu, task, state, last_exit, ago, rip, requests, vm] =
                <[String; 8]>::try_from(words)
                    .ok()
                    .with_context(|| format!("not eight columns: {line}"))?;
            Ok(Vcpu {
                vcpu: vcpu.parse().context("vcpu")?,
                task,
                state,
                last_exit,
                ago,
                rip,
                requests,
                vm,
            })
        })
        .collect()
}
