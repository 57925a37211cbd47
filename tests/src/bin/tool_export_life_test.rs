// SPDX-License-Identifier: GPL-2.0
//! `kvmate export` while VMMs hang and die, clients are slow, and the module comes and goes.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    delay::Delay,
    ensure_eq,
    export::Exporter,
    gmem,
    guest::steps::{self, Step},
    hung::{self, Vmm},
    ktap,
    module::{self, Kvmate, Stop},
    seen,
    storm::{self, until},
};
use nix::{
    errno::Errno,
    libc::c_void,
    sched::{sched_setaffinity, CpuSet},
    sys::{
        mman::{madvise, mmap_anonymous, munmap, MapFlags, MmapAdvise, ProtFlags},
        signal::Signal,
    },
    unistd::Pid,
};
use std::{
    fs,
    io::{Read, Write},
    num::NonZeroUsize,
    process::ExitCode,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [hung::VMM, LOCKED] => {
            let error = locked().expect_err("a VMM never ends by itself");
            eprintln!("# VMM: {error:#}");
            ExitCode::FAILURE
        }
        [hung::VMM, what] => hung::vmm(what),
        _ => ktap::main(&[
            ("vmm_stopped", vmm_stopped),
            ("mmap_lock_held", mmap_lock_held),
            ("killed_while_scraped", killed_while_scraped),
            ("slow_clients", slow_clients),
            ("module_comes_and_goes", module_comes_and_goes),
            ("module_goes_while_scraped", module_goes_while_scraped),
            ("ends", ends),
        ]),
    }
}

/// All of a VM that hangs is told of, histograms too.
fn all_is_told(exporter: &Exporter, name: &str) -> Result<()> {
    let metrics = exporter.metrics()?;
    let exits = metrics.whole(&format!("kvmate_vm_exits_total{{vm=\"{name}\"}}"))?;
    ensure_eq!(exits, seen::exits_of(name)?.sum(), "exits of {name}");
    ensure!(exits > 0, "no exits of {name}");
    let histograms = metrics.count("kvmate_vm_exit_duration_seconds_count{");
    ensure_eq!(histograms, seen::exits_of(name)?.0.len(), "histograms");
    ensure_eq!(metrics.count("kvmate_vm_info{"), 1, "VMs");
    Ok(())
}

fn vmm_stopped() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let exporter = Exporter::start(&[])?;
    for what in ["out", "halt", "spin"] {
        let vmm = Vmm::new(what)?;
        // It is in the middle of what it does.
        until("its guest has exited", || {
            Ok(seen::exits_of(&vmm.name)?.sum() > 0)
        })?;
        vmm.stop()?;
        all_is_told(&exporter, &vmm.name).context(what)?;
        vmm.until('T')?;
        drop(vmm);
        all_are_gone()?;
    }
    exporter.end()?;
    kvmate.unload()
}

fn all_are_gone() -> Result<()> {
    until("all VMs are gone", || Ok(seen::names_of_vms()?.is_empty()))
}

/// The VMM whose mmap_lock is held.
const LOCKED: &str = "locked";

/// A VMM that has its mmap_lock held while the test keeps a page fault of `madvise()` below it waiting; and a
/// thread that asks for the lock again and again.
fn locked() -> Result<()> {
    let mut guest = steps::Guest::new(&[Step::Cpuid(10)])?;
    guest.run()?;
    let file = gmem::create(4096, 0)?;
    let map = gmem::Map::new(&file, 4096)?;
    println!("{}", guest.name);
    let size = NonZeroUsize::new(4096).context("a page")?;
    // It is on the processor that it got from the test, and may want the lock before it has begun.
    thread::spawn(move || loop {
        // SAFETY: A new mapping, at no address that anybody has, and gone before anybody knows it.
        let done = unsafe {
            mmap_anonymous(None, size, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE)
                .and_then(|at| munmap(at, 4096))
        };
        done.expect("a mapping");
        thread::sleep(Duration::from_millis(1));
    });
    run_on(&[0])?;
    let at = NonNull::new(map.address() as *mut c_void).context("an address")?;
    // SAFETY: It changes nothing that is there.
    unsafe { madvise(at, 4096, MmapAdvise::MADV_POPULATE_WRITE) }?;
    loop {
        thread::park();
    }
}

/// Run this thread, and what it starts, on these processors.
fn run_on(processors: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &processor in processors {
        set.set(processor)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Whether one of its threads waits for the lock now: it is asleep right in a call that takes it for writing. (What
/// waits for a page of the program is asleep in the same way, elsewhere.)
fn waits(process: u32) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?.path();
        let stat = fs::read_to_string(task.join("stat"))?;
        let state = stat.rsplit_once(") ").map(|(_, state)| state);
        if state.is_some_and(|state| state.starts_with('D')) {
            let stack = fs::read_to_string(task.join("stack"))?;
            let inmost = stack.lines().next().unwrap_or_default();
            if ["mmap", "munmap", "mprotect"]
                .iter()
                .any(|call| inmost.contains(call))
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// A scrape from begin to end while a VMM's mmap_lock is held, and wanted by another. Whoever holds it does so
/// on a processor of its own, for nobody else gets anything done there meanwhile.
fn mmap_lock_held() -> Result<()> {
    run_on(&[1])?;
    let done = scrape_with_mmap_lock_held();
    run_on(&[0, 1])?;
    done
}

fn scrape_with_mmap_lock_held() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let delay = Delay::load()?;
    let exporter = Exporter::start(&[])?;
    // A machine may be so slow that it is given back before: then once more, and longer; but for less than what
    // the kernel takes for a hang.
    let mut through = false;
    for held in [2, 4, 8] {
        let before = delay.hits("fault_made")?;
        delay.at("fault_made", Duration::from_secs(held))?;
        let vmm = Vmm::new(LOCKED)?;
        delay.until_hit("fault_made", before)?;
        let end = Instant::now() + Duration::from_secs(held);
        let mut wanted = false;
        while !wanted && Instant::now() < end {
            wanted = waits(vmm.id())?;
        }
        if wanted {
            all_is_told(&exporter, &vmm.name)?;
            through = waits(vmm.id())?;
        }
        delay.at("fault_made", Duration::ZERO)?;
        drop(vmm);
        all_are_gone()?;
        if through {
            break;
        }
    }
    ensure!(through, "the lock was never held for long enough");
    exporter.end()?;
    delay.unload()?;
    kvmate.unload()
}

/// VMs and their processes go at any moment of a scrape; what is told is whole, and nothing is an error.
fn killed_while_scraped() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let exporter = Exporter::start(&[])?;
    let (stop, mut most) = (Stop::default(), 0);
    let scrapes = thread::scope(|scope| -> Result<u32> {
        let scraper = scope.spawn(|| -> Result<u32> {
            let mut scrapes = 0;
            while !stop.asked() {
                let metrics = exporter.metrics()?;
                ensure_eq!(metrics.whole("kvmate_up")?, 1, "up");
                ensure_eq!(metrics.whole("kvmate_read_failures_total")?, 0, "failures");
                let told = metrics.count("kvmate_vm_info{") as u64;
                let ended = metrics.left_out("ended")?;
                ensure_eq!(told + ended, metrics.whole("kvmate_vms")?, "VMs");
                scrapes += 1;
            }
            Ok(scrapes)
        });
        let _stop = stop.on_drop();
        for round in 0..6 {
            let vmm = storm::Vmm::start(true)?;
            most = seen::names_of_vms()?.len().max(most);
            thread::sleep(Duration::from_millis(3 + 37 * round));
            vmm.kill()?;
        }
        all_are_gone()?;
        stop.ask();
        scraper.join().expect("the scraper")
    })?;
    ensure!(most > 0 && scrapes > 0, "{scrapes} scrapes of {most} VMs");
    println!("# {scrapes} scrapes, up to {most} VMs");
    ensure_eq!(
        exporter.metrics()?.whole("kvmate_vms")?,
        0,
        "VMs at the end"
    );
    exporter.end()?;
    kvmate.unload()
}

/// Who says nothing, says it slowly, or does not read, keeps nobody from being answered, and is hung up on.
fn slow_clients() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let exporter = Exporter::start(&[])?;
    let mut silent = Vec::new();
    for part in [
        &b""[..],
        b"GET /met",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\n",
    ] {
        for _ in 0..4 {
            let mut stream = exporter.connect()?;
            stream.write_all(part)?;
            silent.push(stream);
        }
    }
    exporter.metrics().context("beside clients that hang")?;
    for mut stream in silent.drain(..) {
        let mut said = Vec::new();
        // Hung up on, maybe with a word; the stream's own limit is much longer.
        let done = stream.read_to_end(&mut said);
        let hung = done.is_ok() || errno(&done) == Some(Errno::ECONNRESET);
        ensure!(hung, "{done:?} after {said:?}");
        ensure!(!said.starts_with(b"HTTP/1.1 200"), "an answer to nothing");
    }
    // More than it serves at once: those behind them come when these are hung up on.
    for _ in 0..40 {
        silent.push(exporter.connect()?);
    }
    exporter.metrics().context("behind clients that hang")?;
    drop(silent);
    exporter.end()?;
    kvmate.unload()
}

fn errno(done: &std::io::Result<usize>) -> Option<Errno> {
    let error = done.as_ref().err()?.raw_os_error();
    error.map(Errno::from_raw)
}

/// It needs no module to begin with, and keeps none.
fn module_comes_and_goes() -> Result<()> {
    let exporter = Exporter::start(&[])?;
    for _ in 0..3 {
        let metrics = exporter.metrics()?;
        ensure_eq!(metrics.whole("kvmate_up")?, 0, "up without the module");
        ensure_eq!(metrics.count("kvmate_"), 3, "samples: {metrics:?}");
        let kvmate = Kvmate::load("")?;
        let mut guest = steps::Guest::new(&[Step::Out(10)])?;
        guest.run()?;
        all_is_told(&exporter, &guest.name)?;
        // A VM and a connection that is open, and not a scrape under way.
        let _open = exporter.connect()?;
        kvmate.unload()?;
    }
    exporter.end()
}

/// Unloading is refused while a scrape is under way at worst, and what is told says so or is whole.
fn module_goes_while_scraped() -> Result<()> {
    let exporter = Exporter::start(&[])?;
    let mut guest = steps::Guest::new(&[Step::Out(10)])?;
    guest.run()?;
    let stop = Stop::default();
    let (ups, downs) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| -> Result<()> {
        let scraper = scope.spawn(|| -> Result<()> {
            while !stop.asked() {
                let metrics = exporter.metrics()?;
                match metrics.whole("kvmate_up")? {
                    0 => {
                        ensure_eq!(metrics.count("kvmate_"), 3, "samples: {metrics:?}");
                        downs.fetch_add(1, Relaxed);
                    }
                    _ => {
                        let told = metrics.count("kvmate_vm_info{") as u64;
                        let all = told + metrics.left_out("ended")?;
                        ensure_eq!(all, metrics.whole("kvmate_vms")?, "VMs: {metrics:?}");
                        ups.fetch_add(1, Relaxed);
                    }
                }
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        let _stop = stop.on_drop();
        for round in 0..8 {
            let kvmate = Kvmate::load("")?;
            let before = ups.load(Relaxed);
            thread::sleep(Duration::from_millis(30));
            // It goes at any moment, and not always before a scrape is through.
            if round % 2 == 0 && !scraper.is_finished() {
                until("it was scraped", || {
                    Ok(ups.load(Relaxed) > before || scraper.is_finished())
                })?;
            }
            std::mem::forget(kvmate);
            until("it is unloaded", || match module::unload("kvmate") {
                Ok(()) => Ok(true),
                Err(Errno::EWOULDBLOCK) => Ok(false),
                Err(error) => Err(error.into()),
            })?;
        }
        stop.ask();
        scraper.join().expect("the scraper")
    })?;
    let (ups, downs) = (ups.into_inner(), downs.into_inner());
    ensure!(
        ups > 0 && downs > 0,
        "{ups} scrapes with it, {downs} without"
    );
    println!("# {ups} scrapes with the module, {downs} without");
    drop(guest);
    exporter.end()
}

/// Signals end it at once and well, whoever is connected.
fn ends() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let exporter = Exporter::start(&[])?;
        let at = exporter.at();
        let mut silent = exporter.connect()?;
        silent.write_all(b"GET /metrics")?;
        exporter.metrics()?;
        exporter.end_by(signal)?;
        // The port is free for the next, at once.
        let next = Exporter::start_at(&at, &[])?;
        next.metrics()?;
        next.end()?;
    }
    Ok(())
}
