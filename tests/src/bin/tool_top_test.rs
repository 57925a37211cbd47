// SPDX-License-Identifier: GPL-2.0
//! `kvmate top` on a pseudo-terminal: what is on its screen, and its keys; its ends are `tool_top_life_test`'s.
//! Nothing is timed: each step stands by until the screen shows it.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::{self, real, real::Program, Vm},
    ktap,
    module::{Kvmate, DEBUGFS},
    seen,
    storm::{name_of, Guest},
    table,
    tool::top,
};
use std::{fs, process::ExitCode, thread, time::Duration};

fn main() -> ExitCode {
    ktap::main(&[
        ("counts", counts),
        ("rates", rates),
        ("keys_choose", keys_choose),
        ("sort", sort),
        ("pause", pause),
        ("resize", resize),
    ])
}

const TAB: &str = "\t";
const UP: &str = "\x1b[A";
const DOWN: &str = "\x1b[B";

/// The lines of reasons on a screen: whether it is chosen, reason, count, rate.
fn reasons(screen: &str) -> Vec<(bool, String, u64, String)> {
    let lines = screen
        .lines()
        .skip_while(|line| !line.contains("REASONS of"));
    let list = lines.skip(1).take_while(|line| !line.contains("how long"));
    let parsed = list.filter_map(|line| {
        let mut words = line.get(2..)?.split_whitespace();
        let (reason, count, rate) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        Some((
            line.starts_with('>'),
            reason.to_owned(),
            count,
            rate.to_owned(),
        ))
    });
    parsed.collect()
}

/// Reasons and counts alone, by name.
fn counted(screen: &str) -> Vec<(String, u64)> {
    let mut all: Vec<_> = reasons(screen)
        .into_iter()
        .map(|(_, reason, count, _)| (reason, count))
        .collect();
    all.sort();
    all
}

/// As the module's table has them, of a guest that stands.
fn in_table(file: &str) -> Result<Vec<(String, u64)>> {
    let text = fs::read_to_string(format!("{DEBUGFS}/vms/{file}"))?;
    let rows = table::exits(&text)?;
    let mut all: Vec<_> = rows
        .into_iter()
        .map(|row| (row.reason, row.count))
        .collect();
    all.sort();
    Ok(all)
}

/// The histogram of the chosen reason is that of the table: each bar tells how many exits it is of, of one
/// power of two or of several together.
fn is_drawn(screen: &str, file: &str) -> Result<()> {
    let mut lines = screen.lines();
    let title = lines.find(|line| line.starts_with(" how long "));
    let reason = title.and_then(|line| line.split(' ').nth(3));
    let reason = reason.with_context(|| format!("nothing is drawn:\n{screen}"))?;
    let [.., counts, times, _keys] = lines.collect::<Vec<_>>()[..] else {
        anyhow::bail!("nothing below the title:\n{screen}");
    };
    let text = fs::read_to_string(format!("{DEBUGFS}/vms/{file}"))?;
    let all = table::exits_hist(&text)?;
    let line = all.iter().find(|line| line.reason == reason);
    let line = line.with_context(|| format!("{reason} is not in {all:?}"))?;
    ensure!(line.timed > 0, "without a time: {line:?}");
    let numbers: Vec<u64> = counts
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    // From left to right, so many of the table's are each bar's.
    let mut buckets = line.buckets.iter().filter(|&&count| count > 0);
    for &number in &numbers {
        let mut sum = 0;
        while sum < number {
            sum += buckets
                .next()
                .with_context(|| format!("{numbers:?}, {line:?}"))?;
        }
        ensure_eq!(sum, number, "a bar of {numbers:?}, {line:?}");
    }
    ensure!(
        buckets.next().is_none(),
        "not all are drawn: {numbers:?}, {line:?}"
    );
    let first = line
        .buckets
        .iter()
        .position(|&count| count > 0)
        .unwrap_or(0);
    let from = first.checked_sub(1).map_or(0, |bits| 1u64 << bits);
    let digits = |text: &str| text.trim_end_matches(char::is_alphabetic).parse().ok();
    let shown: Option<u64> = times.split_whitespace().next().and_then(digits);
    let scaled = [from, from / 1000, from / 1_000_000, from / 1_000_000_000];
    ensure!(
        shown.is_some_and(|shown| scaled.contains(&shown)),
        "{shown:?}, from {from} ns"
    );
    Ok(())
}

fn counts() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new(Program::Out)?;
    guest.run(1000)?;
    let names = seen::names();
    let mut top = top::start(&[])?;
    let screen = top.shows(names.out)?;
    let found = counted(&screen);
    ensure_eq!(
        found,
        in_table(&format!("{}/exits", guest.name))?,
        "reasons"
    );
    ensure!(found.contains(&(names.out.into(), 1001)), "{found:?}");
    ensure!(found.contains(&(names.hlt.into(), 2)), "{found:?}");
    let vm = format!("> {} ", guest.name);
    let line = screen
        .lines()
        .find(|line| line.starts_with(&vm))
        .context("no line of the VM")?;
    ensure!(line.contains(" tool_top_test "), "{line}");
    let vcpu = screen
        .lines()
        .any(|line| line.contains(&format!("  0         user   {}", names.hlt)));
    ensure!(vcpu, "no line of the vCPU:\n{screen}");
    is_drawn(&screen, &format!("{}/exits_hist", guest.name))?;
    top.press("q")?;
    top.ends_well()?;
    drop(guest);
    kvmate.unload()
}

/// So many exits are never shown as more a second than they can have been: two readings are an interval apart.
fn rates() -> Result<()> {
    const SECONDS: f64 = 0.5;
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new(Program::Out)?;
    guest.run(4000)?;
    let name = seen::names().out;
    let mut top = top::start(&["--interval", "0.5"])?;
    let rate = |screen: &str| {
        let found = reasons(screen)
            .into_iter()
            .find(|(_, reason, ..)| reason == name);
        found.and_then(|(_, _, count, rate)| Some((count, rate.parse::<f64>().ok()?)))
    };
    top.until("it stands", |screen| rate(screen) == Some((4001, 0.0)))?;
    guest.run(300)?;
    let screen = top.until("it runs", |screen| {
        rate(screen).is_some_and(|(_, rate)| rate > 0.0)
    })?;
    let (count, told) = rate(&screen).context("no rate")?;
    let most = (count - 4001) as f64 / SECONDS;
    ensure!(
        told <= most + 0.5,
        "{told} a second, at most {most} are true"
    );
    top.until("it stands again", |screen| {
        rate(screen) == Some((4301, 0.0))
    })?;
    top.press("q")?;
    top.ends_well()?;
    drop(guest);
    kvmate.unload()
}

/// A VM with two vCPUs that have done different things.
struct Two {
    _vcpus: [kvm_ioctls::VcpuFd; 2],
    _vm: Vm,
    name: String,
}

fn two() -> Result<Two> {
    let vm = Vm::new(1 << 16, false)?;
    real::load(&vm, Program::Out);
    let mut vcpus = [vm.vcpu(0)?, vm.vcpu(1)?];
    for (vcpu, count) in vcpus.iter_mut().zip([100, 250]) {
        real::start(vcpu, count)?;
        guest::run(vcpu, None)?;
    }
    let name = name_of(&vm);
    Ok(Two {
        _vcpus: vcpus,
        _vm: vm,
        name,
    })
}

fn keys_choose() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (two, other) = (two()?, Guest::new(Program::Cpuid)?);
    let names = seen::names();
    let mut top = top::start(&[&two.name])?;
    let has = |screen: &str, reason: &str, count| counted(screen).contains(&(reason.into(), count));
    top.until("both vCPUs", |screen| has(screen, names.out, 350))?;
    // The reason that is drawn below is the one that is chosen.
    let first = |screen: &str| reasons(screen).into_iter().position(|(chosen, ..)| chosen);
    let screen = top.until("a reason is chosen", |screen| first(screen) == Some(0))?;
    let second = reasons(&screen)[1].1.clone();
    ensure!(
        screen.contains(&format!("how long {} took", reasons(&screen)[0].1)),
        "{screen}"
    );
    top.press(DOWN)?;
    top.shows(&format!("how long {second} took"))?;
    top.press(UP)?;
    top.until("the first again", |screen| first(screen) == Some(0))?;
    // The panels, and in that of vCPUs each of them.
    top.press(TAB)?;
    top.shows("[VMS 2]")?;
    top.press(TAB)?;
    top.shows("[VCPUS 2]")?;
    for (key, of, count) in [
        (DOWN, "vCPU 0", 100),
        ("j", "vCPU 1", 250),
        ("k", "vCPU 0", 100),
        ("k", "all vCPUs", 350),
    ] {
        top.press(key)?;
        top.until(of, |screen| {
            screen.contains(&format!("REASONS of {of}")) && has(screen, names.out, count)
        })?;
    }
    top.press(DOWN)?;
    let screen = top.until("vCPU 0", |screen| has(screen, names.out, 100))?;
    ensure_eq!(
        counted(&screen),
        in_table(&format!("{}/vcpu0/exits", two.name))?,
        "of vCPU 0"
    );
    is_drawn(&screen, &format!("{}/vcpu0/exits_hist", two.name))?;
    // Another VM: all of its vCPUs, its own reasons.
    top.press("\x1b[Z")?;
    let screen = top.shows("[VMS 2]")?;
    let place = |screen: &str, name: &str| {
        screen
            .lines()
            .position(|line| line.get(2..).is_some_and(|l| l.starts_with(name)))
    };
    let below = place(&screen, &other.name) > place(&screen, &two.name);
    top.press(if below { DOWN } else { UP })?;
    let screen = top.until("the other VM", |screen| has(screen, names.cpuid, 1))?;
    ensure!(
        screen.contains(&format!("> {}", other.name)) && screen.contains("REASONS of all vCPUs"),
        "{screen}"
    );
    is_drawn(&screen, &format!("{}/exits_hist", other.name))?;
    // Sideways, and by ten.
    top.press("\x1b[C")?;
    top.shows("[VCPUS 1]")?;
    top.press("\x1b[D")?;
    top.shows("[VMS 2]")?;
    top.press(if below { "\x1b[5~" } else { "\x1b[6~" })?;
    top.until("the first VM", |screen| has(screen, names.out, 350))?;
    // Whatever key ends the help: also those that end top otherwise.
    for (opens, ends) in [("?", "x"), ("h", "q"), ("?", "\x1b"), ("h", "?")] {
        top.press(opens)?;
        top.shows("Help: a key ends it")?;
        top.press(ends)?;
        top.until("help is gone", |screen| !screen.contains("Help:"))?;
    }
    top.press("\x03")?;
    top.ends_well()?;
    drop((two, other));
    kvmate.unload()
}

fn sort() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new(Program::Out)?;
    guest.run(50)?;
    let rows = table::exits(&fs::read_to_string(format!(
        "{DEBUGFS}/vms/{}/exits",
        guest.name
    ))?)?;
    let by = |key: &dyn Fn(&table::Row) -> u64| {
        let mut sorted = rows.clone();
        sorted.sort_by(|a, b| (key(b), b.total, &a.reason).cmp(&(key(a), a.total, &b.reason)));
        sorted.into_iter().map(|row| row.reason).collect::<Vec<_>>()
    };
    let mut by_name = by(&|_| 0);
    by_name.sort();
    let mut top = top::start(&[])?;
    // Where nothing happens, time and rate are that of all that was.
    for (order, expected) in [
        ("time", by(&|row| row.total)),
        ("rate", by(&|row| row.total)),
        ("count", by(&|row| row.count)),
        ("p99", by(&|row| row.percentiles[1])),
        ("name", by_name),
        ("time", by(&|row| row.total)),
    ] {
        let sorted = |screen: &str| -> Vec<String> {
            reasons(screen)
                .into_iter()
                .map(|(_, reason, ..)| reason)
                .collect()
        };
        top.until(&format!("{expected:?} by {order}"), |screen| {
            screen.contains(&format!("sorted by {order} ")) && sorted(screen) == expected
        })?;
        top.press("s")?;
    }
    top.press("q")?;
    top.ends_well()?;
    drop(guest);
    kvmate.unload()
}

fn pause() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut guest = Guest::new(Program::Out)?;
    let name = seen::names().out;
    let count = |screen: &str| {
        counted(screen)
            .into_iter()
            .find(|(reason, _)| reason == name)
            .map(|(_, count)| count)
    };
    let mut top = top::start(&[])?;
    top.until("one", |screen| count(screen) == Some(1))?;
    top.press("p")?;
    top.shows("PAUSED")?;
    guest.run(50)?;
    // Time for some readings that must not be; keys are answered all the same.
    thread::sleep(Duration::from_millis(500));
    top.press("s")?;
    let screen = top.shows("sorted by rate")?;
    ensure_eq!(count(&screen), Some(1), "exits while paused");
    top.press(" ")?;
    top.until("it goes on", |screen| {
        !screen.contains("PAUSED") && count(screen) == Some(51)
    })?;
    // What stands still because of a knob is told of.
    let off = "knobs/observe is 0, so nothing is recorded";
    kvmate.write("knobs/observe", "0")?;
    top.shows(off)?;
    kvmate.write("knobs/observe", "1")?;
    top.until("it is recorded", |screen| !screen.contains(off))?;
    top.press("q")?;
    top.ends_well()?;
    drop(guest);
    kvmate.unload()
}

fn resize() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let guest = Guest::new(Program::Out)?;
    let mut top = top::start(&[])?;
    top.shows(seen::names().out)?;
    top.resize(10, 40)?;
    top.shows("kvmate top needs 80x24, this is 40x10")?;
    top.resize(50, 132)?;
    let screen = top.shows(seen::names().out)?;
    let last = screen.lines().count();
    ensure!(
        last == 50 && screen.lines().any(|line| line.chars().count() == 132),
        "{last} lines:\n{screen}"
    );
    top.resize(24, 80)?;
    top.until("24 lines", |screen| {
        screen.lines().count() == 24 && screen.contains("q quit")
    })?;
    top.press("q")?;
    top.ends_well()?;
    drop(guest);
    kvmate.unload()
}
