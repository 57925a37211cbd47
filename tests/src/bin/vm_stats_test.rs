// SPDX-License-Identifier: GPL-2.0
//! `KVMATE_GET_VM_STATS`: layout, numbers, reading.
//!
//! The oracles: upstream's own checks of such descriptors, which KVM's pass as well; the guest's own
//! numbers; KVM's statistics; kvmate's tables.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    binary_stats, ensure_eq,
    guest::{
        long,
        steps::{self, at_rest, Step},
        Vm,
    },
    ktap,
    module::{Kvmate, EVERYTHING},
    poke::stats_of,
    seen,
    stats::Stats,
    storm::name_of,
    table::{self, sum_of},
};
use nix::{errno::Errno, libc};
use std::{
    io::{IoSliceMut, Read, Seek, SeekFrom, Write},
    os::{fd::AsRawFd, unix::fs::FileExt},
    process::ExitCode,
};

fn main() -> ExitCode {
    ktap::main(&[
        ("as_upstream", as_upstream),
        ("numbers", numbers),
        ("interrupts", interrupts),
        ("reads", reads),
        ("bad_buffers", bad_buffers),
    ])
}

const STEPS: [Step; 8] = [
    Step::Out(30),
    Step::Cpuid(40),
    Step::Read(7),
    Step::Write(6),
    Step::ReadNone(5),
    Step::WriteNone(4),
    Step::Touch(1),
    Step::Halt(3),
];

/// Upstream's test, of KVM's own descriptors and of ours; the VM's end is not as KVM's.
fn as_upstream() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let vm = Vm::new(steps::MEMORY, false)?;
        let none = Stats::from_file(stats_of(&vm)?)?;
        ensure_eq!(none.get("vcpus")?, 0, "vCPUs of a new VM");
        let vcpus = (0..4).map(|id| vm.vcpu(id)).collect::<Result<Vec<_>>>()?;
        ensure_eq!(none.get("vcpus")?, 4, "its vCPUs");
        let kvm = binary_stats::check(&Stats::of(&vcpus[0])?.file).context("KVM's")?;
        let file = stats_of(&vm)?;
        let layout = binary_stats::check(&file.try_clone()?).context("a duplicate")?;
        ensure_eq!(
            binary_stats::check(&stats_of(&vm)?)?,
            layout,
            "another descriptor"
        );
        ensure_eq!(layout.id, format!("kvmate-{}", name_of(&vm)), "the id");
        // What is of one kind is described in one way.
        for (ours, theirs) in [
            ("exits", "exits"),
            ("times_halted_ns", "halt_wait_ns"),
            ("exit_hist", "halt_wait_hist"),
        ] {
            let kinds = [(&layout, ours), (&kvm, theirs)].map(|(layout, name)| {
                let one = layout.all.get(name).context(name)?;
                Ok::<_, anyhow::Error>((one.kind, one.unit, one.exponent))
            });
            let [ours_is, theirs_is] = kinds;
            ensure_eq!(ours_is?, theirs_is?, "{ours} as KVM's {theirs}");
        }
        let reasons = layout.all.keys().filter(|name| name.starts_with("exits_"));
        ensure!(
            reasons.count() > 60,
            "too few reasons: {:?}",
            layout.all.keys()
        );
        ids.push(layout.id);
        // The vCPUs keep the VM.
        let Vm { kvm: _, fd, memory } = vm;
        drop(fd);
        binary_stats::check(&file).context("the VM's descriptor is closed")?;
        drop((vcpus, memory));
        let ended = binary_stats::check(&file).err();
        let errno = ended.and_then(|e| e.downcast_ref::<std::io::Error>()?.raw_os_error());
        ensure_eq!(errno, Some(libc::ENODEV), "after the VM's end");
    }
    drop(kvmate);
    Ok(())
}

fn numbers() -> Result<()> {
    let kvmate = Kvmate::load(EVERYTHING)?;
    let (vm, vcpus) = at_rest(2, &STEPS)?;
    let (name, stats) = (name_of(&vm), Stats::from_file(stats_of(&vm)?)?);
    let values = stats.read()?;
    values.add_up()?;
    let get = |name: &str| values.get(name);
    // By the guest.
    let known = steps::known(&STEPS);
    ensure_eq!(get("vcpus")?, 2, "vCPUs");
    ensure_eq!(get("msr_reads")?, 2 * known.reads, "MSRs read");
    ensure_eq!(get("msr_writes")?, 2 * known.writes, "MSRs written");
    ensure_eq!(get("msr_faults")?, 2 * known.faults, "MSRs with #GP");
    let names = seen::names();
    for (reason, count) in [
        (names.out, known.ports),
        (names.cpuid, known.cpuids),
        (names.hlt, known.halts),
    ] {
        ensure_eq!(get(&format!("exits_{reason}"))?, 2 * count, "{reason}");
    }
    // By KVM.
    let kvm = vcpus.iter().map(|vcpu| Stats::of(vcpu)?.get("exits"));
    ensure_eq!(get("exits")?, kvm.sum::<Result<u64>>()?, "exits, and KVM's");
    // By the tables.
    let read = |table: &str| kvmate.read(&format!("vms/{name}/{table}"));
    let rows = table::exits(&read("exits")?)?;
    for row in &rows {
        ensure_eq!(get(&format!("exits_{}", row.reason))?, row.count, "{row:?}");
    }
    ensure_eq!(
        get("exits")?,
        rows.iter().map(|r| r.count).sum::<u64>(),
        "exits, and the table"
    );
    ensure_eq!(
        get("exit_ns")?,
        rows.iter().map(|r| r.total).sum::<u64>(),
        "their times"
    );
    let mut together = vec![0; 48];
    for line in table::exits_hist(&read("exits_hist")?)? {
        for (sum, count) in together.iter_mut().zip(line.buckets) {
            *sum += count;
        }
    }
    ensure_eq!(values.all("exit_hist")?, together, "the histograms of all");
    let longest = rows.iter().map(|r| r.max).max();
    ensure_eq!(Some(get("exit_max_ns")?), longest, "the longest");
    let times = sum_of(&table::times(&read("times")?)?);
    for (name, part) in [
        ("times_exits", times.count),
        ("times_ns", times.total),
        ("times_user_ns", times.user),
        ("times_halted_ns", times.halted),
        ("times_preempted_ns", times.preempted),
        ("times_kernel_ns", times.kernel),
    ] {
        ensure_eq!(get(name)?, part, "{name}");
    }
    ensure!(
        times.user > 0 && times.kernel > 0,
        "nothing took time: {times:?}"
    );
    let faults = table::faults(&read("faults")?)?;
    let faults = |kind: &str, with: &str| {
        let named = faults.iter().filter(|f| {
            f.kind == kind && (with.is_empty() || f.which.split(',').any(|part| part == with))
        });
        named.map(|f| f.count).sum::<u64>()
    };
    ensure!(faults("class", "") > 0, "no page faults");
    ensure_eq!(get("page_faults")?, faults("class", ""), "page faults");
    for part in ["write", "exec", "present", "user", "walk"] {
        let stat = format!("page_faults_{part}");
        ensure_eq!(get(&stat)?, faults("class", part), "{stat}");
    }
    ensure_eq!(
        get("page_faults_mmio")?,
        faults("memslot", "none"),
        "faults without memory"
    );
    // All but the last exit of each vCPU were timed; and so many in each bucket were not too few or
    // too many for the total.
    ensure_eq!(get("exit_timed")?, get("exits")? - 2, "timed exits");
    let buckets = || values.all("exit_hist").map(|b| b.iter().enumerate());
    let least: u64 = buckets()?.skip(1).map(|(n, count)| count << (n - 1)).sum();
    let most: u64 = buckets()?.map(|(n, count)| count << n).sum();
    let total = get("exit_ns")?;
    ensure!(
        least - least / 16 <= total && total <= most + most / 16,
        "{total} ns, of the histogram {least} to {most}"
    );
    kvmate.write(&format!("vms/{name}/reset"), "1")?;
    let after = stats.read()?;
    for (name, numbers) in &after.0 {
        let expected = match name.as_str() {
            "vcpus" => 2,
            "irqs_hidden" | "irqs_accepted_hidden" => values.get(name)?,
            _ => 0,
        };
        ensure_eq!(
            numbers.iter().sum::<u64>(),
            expected,
            "{name} after a reset"
        );
    }
    drop((vcpus, vm, stats));
    kvmate.unload()
}

fn interrupts() -> Result<()> {
    const COUNT: u64 = 10;
    let kvmate = Kvmate::load(EVERYTHING)?;
    let vm = Vm::new(long::MEMORY, true)?;
    long::load(&vm);
    let mut vcpu = vm.vcpu(0)?;
    long::start(&vcpu, 0, 0x40, 0)?;
    long::run(&mut vcpu)?;
    for number in 1..=COUNT {
        let msi = kvm_bindings::kvm_msi {
            address_lo: 0xfee0_0000,
            data: 0x40,
            ..Default::default()
        };
        vm.fd.signal_msi(msi)?;
        long::start(&vcpu, 0, 0x40, number)?;
        long::run(&mut vcpu)?;
    }
    let table = kvmate.read(&format!("vms/{}/irqs", name_of(&vm)))?;
    let line = table.lines().find_map(|line| line.strip_prefix("0x40 "));
    let columns: Vec<_> = line.context("no such vector")?.split(' ').collect();
    let values = Stats::from_file(stats_of(&vm)?)?.read()?;
    for (column, name, hidden) in [
        (0, "irqs_injected", "irqs_hidden"),
        (1, "irqs_accepted", "irqs_accepted_hidden"),
        (2, "irqs_eoi", "irqs_hidden"),
    ] {
        let is_hidden = columns[column] == "-";
        ensure_eq!(
            values.get(hidden)?,
            u64::from(is_hidden),
            "{hidden}, with {table}"
        );
        if !is_hidden {
            ensure_eq!(values.get(name)?, COUNT, "{name}");
        }
    }
    drop((vcpu, vm));
    kvmate.unload()
}

/// Whatever is read, from wherever, is a part of the same.
fn reads() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (vm, _vcpus) = at_rest(1, &STEPS)?;
    let values = Stats::from_file(stats_of(&vm)?)?.read()?;
    // Nobody has looked yet whether it is.
    ensure_eq!(values.get("irqs_accepted_hidden")?, 0, "hidden");
    let mut file = stats_of(&vm)?;
    let layout = binary_stats::check(&file)?;
    let data = layout
        .all
        .values()
        .map(|one| one.offset)
        .min()
        .context("data")?;
    let mut whole = Vec::new();
    file.read_to_end(&mut whole)?;
    let size = whole.len();
    let end = layout
        .all
        .values()
        .map(|one| one.offset + 8 * one.size)
        .max();
    ensure_eq!(Some(size), end, "the size");
    ensure_eq!(file.read(&mut [0; 8])?, 0, "bytes at the end");
    // Around each border, and in steps of each size.
    let mut places = Vec::new();
    for border in [0, 24, 72, data, size] {
        for from in border.saturating_sub(3)..=border + 3 {
            places.extend([1, 2, 5, 200].map(|length| (from, length)));
        }
    }
    for step in [97, 4096, size, size + 100] {
        places.extend((0..size + step).step_by(step).map(|from| (from, step)));
    }
    for (from, length) in places {
        let mut bytes = vec![0xaa; length];
        let read = file.read_at(&mut bytes, from as u64)?;
        let expected = &whole[from.min(size)..(from + length).min(size)];
        ensure_eq!(read, expected.len(), "bytes at {from} of {length}");
        ensure!(
            &bytes[..read] == expected,
            "{length} bytes at {from} differ"
        );
        ensure!(
            bytes[read..].iter().all(|&b| b == 0xaa),
            "written behind {read} bytes"
        );
    }
    for beyond in [1 << 32, i64::MAX as u64 - 100] {
        ensure_eq!(
            file.read_at(&mut [0; 8], beyond)?,
            0,
            "bytes at {beyond:#x}"
        );
    }
    // One after the other, by the descriptor's own position.
    file.seek(SeekFrom::Start(0))?;
    let mut parts: Vec<u8> = Vec::new();
    let mut part = [0; 1000];
    loop {
        let before = file.stream_position()?;
        ensure_eq!(before, parts.len() as u64, "the position");
        match file.read(&mut part)? {
            0 => break,
            read => parts.extend(&part[..read]),
        }
    }
    ensure!(parts == whole, "read in parts it differs");
    let (mut first, mut second) = ([0; 30], [0; 90]);
    file.seek(SeekFrom::Start(data as u64 - 60))?;
    let mut both = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
    ensure_eq!(
        file.read_vectored(&mut both)?,
        120,
        "bytes into two buffers"
    );
    let joined = [&first[..], &second[..]].concat();
    ensure!(
        joined == whole[data - 60..data + 60],
        "into two buffers it differs"
    );
    ensure_eq!(file.seek(SeekFrom::End(0))?, size as u64, "the end");
    for wrong in [
        file.seek(SeekFrom::End(1)),
        file.seek(SeekFrom::End(-(size as i64) - 1)),
        file.seek(SeekFrom::Current(1)),
    ] {
        let errno = wrong.map_err(|e| e.raw_os_error());
        ensure_eq!(errno, Err(Some(libc::EINVAL)), "a wrong lseek");
    }
    let written = file.write(b"1").map_err(|e| e.raw_os_error());
    ensure_eq!(written, Err(Some(libc::EBADF)), "writing");
    // SAFETY: A number.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFD) };
    ensure_eq!(flags, libc::FD_CLOEXEC, "descriptor's flags");
    drop((vm, file));
    kvmate.unload()
}

/// Two pages of which the second cannot be written.
fn bad_buffers() -> Result<()> {
    const PAGE: usize = 4096;
    let kvmate = Kvmate::load("")?;
    let (vm, _vcpus) = at_rest(1, &STEPS)?;
    let mut file = stats_of(&vm)?;
    let layout = binary_stats::check(&file)?;
    let data = layout
        .all
        .values()
        .map(|one| one.offset)
        .min()
        .context("data")?;
    let mut whole = Vec::new();
    file.read_to_end(&mut whole)?;
    // SAFETY: New memory of ours.
    let pages = unsafe {
        let (both, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        let pages = libc::mmap(
            std::ptr::null_mut(),
            2 * PAGE,
            both,
            private | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        ensure!(pages != libc::MAP_FAILED, "mmap");
        ensure_eq!(
            libc::mprotect(pages.byte_add(PAGE), PAGE, libc::PROT_NONE),
            0,
            "mprotect"
        );
        pages
    };
    for (from, room) in [
        (0, 10),
        (0, 40),
        (20, 60),
        (data - 8, 8),
        (data - 8, 20),
        (data, 24),
    ] {
        // SAFETY: Inside the first page.
        let buffer = unsafe { pages.byte_add(PAGE - room) };
        // SAFETY: The kernel checks the buffer.
        let read = unsafe { libc::pread(file.as_raw_fd(), buffer, 400, from as i64) };
        ensure_eq!(read, room as isize, "bytes at {from} into {room}");
        // SAFETY: Inside the first page, and nobody else uses it.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), room) };
        ensure!(bytes == &whole[from..from + room], "bytes at {from} differ");
    }
    for from in [0, 30, data, data + 8] {
        // SAFETY: The second page; the kernel checks it.
        let read = unsafe { libc::pread(file.as_raw_fd(), pages.byte_add(PAGE), 8, from as i64) };
        ensure_eq!(Errno::result(read), Err(Errno::EFAULT), "no byte at {from}");
    }
    // SAFETY: Ours.
    unsafe { libc::munmap(pages, 2 * PAGE) };
    drop((vm, file));
    kvmate.unload()
}
