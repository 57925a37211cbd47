// SPDX-License-Identifier: GPL-2.0
//! The table `latency`: each interrupt that a binding sends alone is timed once, between the test's
//! own clock readings; and where nobody tells, there is no number.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::irq::{Chips, Guest, Running, Trigger},
    ktap,
    module::Kvmate,
    poke::{self, poked, Binding, Device, MSI_VECTOR, PIN, VECTOR},
    seen, storm,
};
use kvmate_uapi::kvmate_irqfd;
use std::{
    fs,
    os::fd::{AsRawFd, RawFd},
    process::ExitCode,
    sync::atomic::Ordering::Release,
    thread,
    time::{Duration, Instant},
};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

fn main() -> ExitCode {
    ktap::main(&[
        ("knob", knob),
        ("msis", msis),
        ("lowest_priority", lowest_priority),
        ("pins", pins),
        ("held_back", held_back),
        ("pic_is_not_told", pic_is_not_told),
        ("others_are_not_timed", others_are_not_timed),
        ("one_in_service_is_another", one_in_service_is_another),
    ])
}

const COLUMNS: &str = "target stage count total_ns avg_ns p50_ns p99_ns p999_ns max_ns";

/// A stage's numbers; `None`: all are `-`.
type Numbers = Option<Vec<u64>>;

/// The only binding's: signal to injection, signal to EOI.
fn latency(name: &str) -> Result<(Numbers, Numbers)> {
    let path = seen::vms().join(name).join("latency");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut lines = text.lines();
    ensure_eq!(lines.next(), Some(COLUMNS), "header");
    let mut stage = |wanted: &str| -> Result<Numbers> {
        let line = lines.next().context("no line")?;
        let words: Vec<_> = line.split(' ').collect();
        ensure_eq!((words.len(), words[1]), (9, wanted), "{line}");
        if words[2..].iter().all(|word| *word == "-") {
            return Ok(None);
        }
        let numbers = words[2..].iter().map(|word| word.parse());
        Ok(Some(
            numbers.collect::<Result<_, _>>().context(line.to_owned())?,
        ))
    };
    let both = (stage("injected")?, stage("ended")?);
    ensure_eq!(lines.next(), None, "one line more");
    Ok(both)
}

fn timed() -> Result<Kvmate> {
    let kvmate = Kvmate::load("")?;
    kvmate.write("knobs/latency", "1")?;
    Ok(kvmate)
}

/// An eventfd that is bound to something of the guest.
fn bound(
    running: &Running<'_>,
    asked: impl FnOnce(RawFd, RawFd) -> kvmate_irqfd,
) -> Result<(EventFd, Binding)> {
    let eventfd = EventFd::new(EFD_NONBLOCK)?;
    let asked = asked(running.vm.fd.as_raw_fd(), eventfd.as_raw_fd());
    Ok((eventfd, Device::open()?.bind(asked)?))
}

fn knob() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    ensure_eq!(kvmate.read("knobs/latency")?, "0", "at first");
    for bad in ["2", "-1", "x"] {
        ensure!(kvmate.write("knobs/latency", bad).is_err(), "{bad}");
    }
    for value in ["1", "1", "0", "0", "1"] {
        kvmate.write("knobs/latency", value)?;
        ensure_eq!(kvmate.read("knobs/latency")?, value, "the knob");
    }
    kvmate.unload()
}

/// So many, one after the other; how long the slowest of them took by our clock, in ns, and all.
fn send(
    running: &Running<'_>,
    count: u64,
    eventfd: &EventFd,
    until: impl Fn(u64) -> Result<()>,
) -> Result<(u64, u64)> {
    let (mut slowest, mut all) = (0, 0);
    for number in 1..=count {
        let begin = Instant::now();
        eventfd.write(1)?;
        until(number)?;
        // And its EOI.
        running.settled()?;
        let took = begin.elapsed().as_nanos() as u64;
        (slowest, all) = (slowest.max(took), all + took);
    }
    Ok((slowest, all))
}

/// Each was timed once, and no longer than it took.
fn all_timed(name: &str, count: u64, (slowest, all): (u64, u64)) -> Result<()> {
    let (injected, ended) = latency(name)?;
    let injected = injected.context("no injections")?;
    let ended = ended.context("no EOIs")?;
    println!("# {name}: injected {injected:?}, ended {ended:?}, slowest {slowest}");
    for numbers in [&injected, &ended] {
        let [found, total, average, p50, p99, p999, max] = numbers[..] else {
            unreachable!();
        };
        ensure_eq!(found, count, "{numbers:?}");
        ensure!(
            0 < total && total <= all && max <= slowest,
            "{numbers:?}: {slowest}, {all}"
        );
        // The average is one of whole cycles, which may be long.
        let off = average.abs_diff(total / count);
        ensure!(off * 1000 <= average, "{numbers:?}");
        ensure!(p50 <= p99 && p99 <= p999 && p999 <= max, "{numbers:?}");
    }
    // The guest ends each after it was injected.
    ensure!(injected[1] < ended[1], "{injected:?}, {ended:?}");
    Ok(())
}

fn msis() -> Result<()> {
    let kvmate = timed()?;
    poked(Trigger::Edge, |guest| {
        let msi = (0xfee0_0000, u32::from(MSI_VECTOR));
        let (eventfd, _binding) = bound(guest.running, |v, e| poke::msi_at(v, e, msi))?;
        ensure_eq!(latency(&guest.name)?, (None, None), "before");
        let took = send(guest.running, 50, &eventfd, |n| guest.until(MSI_VECTOR, n))?;
        all_timed(&guest.name, 50, took)?;
        // Not when it is off; what was timed stays.
        kvmate.write("knobs/latency", "0")?;
        eventfd.write(1)?;
        guest.until(MSI_VECTOR, 51)?;
        guest.running.settled()?;
        all_timed(&guest.name, 50, took)
    })?;
    kvmate.unload()
}

/// Delivered to whom the APICs choose.
fn lowest_priority() -> Result<()> {
    let kvmate = timed()?;
    poked(Trigger::Edge, |guest| {
        let msi = (0xfee0_0000, 0x100 | u32::from(MSI_VECTOR));
        let (eventfd, _binding) = bound(guest.running, |v, e| poke::msi_at(v, e, msi))?;
        let took = send(guest.running, 20, &eventfd, |n| guest.until(MSI_VECTOR, n))?;
        all_timed(&guest.name, 20, took)
    })?;
    kvmate.unload()
}

fn pins() -> Result<()> {
    let kvmate = timed()?;
    poked(Trigger::Edge, |guest| {
        let (eventfd, _binding) = bound(guest.running, |v, e| poke::gsi(v, e, PIN))?;
        let took = send(guest.running, 50, &eventfd, |n| guest.until(VECTOR, n))?;
        all_timed(&guest.name, 50, took)
    })?;
    kvmate.unload()
}

/// What the guest does not take for a while has taken so long.
fn held_back() -> Result<()> {
    let kvmate = timed()?;
    poked(Trigger::Edge, |guest| {
        let msi = (0xfee0_0000, u32::from(MSI_VECTOR));
        let (eventfd, _binding) = bound(guest.running, |v, e| poke::msi_at(v, e, msi))?;
        guest.running.held(|| {
            eventfd.write(1)?;
            thread::sleep(Duration::from_millis(80));
            ensure_eq!(latency(&guest.name)?, (None, None), "while it holds");
            Ok(())
        })?;
        guest.until(MSI_VECTOR, 1)?;
        guest.running.settled()?;
        let (injected, ended) = latency(&guest.name)?;
        for numbers in [injected.context("no injection")?, ended.context("no EOI")?] {
            ensure_eq!(numbers[0], 1, "{numbers:?}");
            ensure!(numbers[6] >= 80_000_000, "{numbers:?}");
        }
        Ok(())
    })?;
    kvmate.unload()
}

/// What goes through the PIC passes no LAPIC's vector.
fn pic_is_not_told() -> Result<()> {
    let kvmate = timed()?;
    let mut guest = Guest::new(Chips::Kernel, 1)?;
    let vector = guest.pic(5, Trigger::Edge);
    let name = storm::name_of(&guest.vm);
    guest.run(|running| {
        let (eventfd, _binding) = bound(running, |v, e| poke::gsi(v, e, 5))?;
        send(running, 5, &eventfd, |n| running.until(0, vector, n))?;
        ensure_eq!(latency(&name)?, (None, None), "latency");
        Ok(())
    })?;
    kvmate.unload()
}

/// The same vector, sent by KVM's own interfaces or to another VM, is nobody's.
fn others_are_not_timed() -> Result<()> {
    let kvmate = timed()?;
    poked(Trigger::Edge, |guest| {
        poked(Trigger::Edge, |other| {
            let msi = (0xfee0_0000, u32::from(MSI_VECTOR));
            let (eventfd, _binding) = bound(guest.running, |v, e| poke::msi_at(v, e, msi))?;
            for count in 1..=20 {
                guest.running.signal(msi)?;
                guest.until(MSI_VECTOR, count)?;
                other.running.signal(msi)?;
                other.until(MSI_VECTOR, count)?;
            }
            guest.running.settled()?;
            ensure_eq!(latency(&guest.name)?, (None, None), "latency");
            // While one of the other's is under way.
            let took = send(guest.running, 20, &eventfd, |count| {
                other.running.signal(msi)?;
                guest.until(MSI_VECTOR, 20 + count)
            })?;
            all_timed(&guest.name, 20, took)
        })
    })?;
    kvmate.unload()
}

/// While one of the same vector, of somebody else, waits for its EOI: that EOI is not ours.
fn one_in_service_is_another() -> Result<()> {
    let kvmate = timed()?;
    poked(Trigger::Edge, |guest| {
        let msi = (0xfee0_0000, u32::from(MSI_VECTOR));
        let (eventfd, _binding) = bound(guest.running, |v, e| poke::msi_at(v, e, msi))?;
        let lingers = &guest.running.machine().lingers;
        lingers.store(MSI_VECTOR.into(), Release);
        guest.running.signal(msi)?;
        guest.until(MSI_VECTOR, 1)?;
        eventfd.write(1)?;
        thread::sleep(Duration::from_millis(80));
        ensure_eq!(
            latency(&guest.name)?,
            (None, None),
            "while it is in service"
        );
        lingers.store(0, Release);
        guest.until(MSI_VECTOR, 2)?;
        guest.running.settled()?;
        let (injected, ended) = latency(&guest.name)?;
        let (injected, ended) = (injected.context("no injection")?, ended.context("no EOI")?);
        ensure_eq!((injected[0], ended[0]), (1, 1), "how many");
        ensure!(
            80_000_000 <= injected[1] && injected[1] < ended[1],
            "{injected:?}, {ended:?}"
        );
        Ok(())
    })?;
    kvmate.unload()
}
