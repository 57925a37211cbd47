// SPDX-License-Identifier: GPL-2.0
//! `kvmate gmem`, as a user runs it: beside the file itself, the module's tables and `/proc`.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{
        self, allocated, bytes, folios, info,
        pins::{pin, By},
        query, Map, HUGE, PAGE,
    },
    ktap,
    module::{Kvmate, DEBUGFS},
    storm::until,
    tool::{self, Done},
};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    ktap::main(&[
        ("bad_input", bad_input),
        ("create", create),
        ("list_and_map", list_and_map),
        ("changes", changes),
        ("held", held),
        ("ends_meanwhile", ends_meanwhile),
        ("qemu", qemu),
    ])
}

fn run(arguments: &[&str]) -> Result<Done> {
    tool::run("gmem", arguments)
}

/// What is to be done, with some patience: others may hold a page for a moment.
fn well(arguments: &[&str]) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let done = run(arguments)?;
        let held = done.status == Some(1) && done.err.contains("try again");
        if !held || Instant::now() > end {
            return done.well();
        }
        println!("# {}", done.err.trim_end());
        thread::sleep(Duration::from_millis(20));
    }
}

fn bad_input() -> Result<()> {
    for wrong in [
        &[][..],
        &["create", "--", "true"],
        &["create", "--size", "16M"],
        &["create", "--size", "0", "--", "true"],
        &["create", "--size", "4097", "--", "true"],
        &["create", "--size", "1.5G", "--", "true"],
        &["map"],
        &["map", "2", "--pid", "1", "--fd", "3"],
        &["query", "--pid", "1"],
        &["split", "--fd", "3"],
        &["merge", "--pid", "1", "--fd", "3", "--order", "0"],
        &["punch", "--pid", "1", "--fd", "3"],
    ] {
        let done = run(wrong)?;
        done.says(2, "Usage: ")
            .or_else(|_| done.says(2, "--help"))?;
    }
    for asked in [
        &["list"][..],
        &["map", "2"],
        &["create", "--size", "4K", "--", "true"],
    ] {
        run(asked)?.says(1, "is not loaded: insmod kvmate.ko")?;
    }
    let kvmate = Kvmate::load("")?;
    tool::run_as_nobody(&["gmem", "list"])?.says(1, "needs root")?;
    tool::run_as_nobody(&["gmem", "create", "--size", "4K", "--", "true"])?
        .says(1, "needs root")?;
    run(&["map", "4096"])?.says(1, "there is no memory file 4096")?;
    let (pid, null) = (std::process::id().to_string(), File::open("/dev/null")?);
    let fd = null.as_raw_fd().to_string();
    for what in ["map", "query", "split", "merge"] {
        run(&[what, "--pid", &pid, "--fd", &fd])?.says(1, "is no memory file of kvmate's")?;
    }
    run(&["query", "--pid", &pid, "--fd", "1000"])?.says(1, "has no descriptor 1000")?;
    run(&["query", "--pid", "4194304", "--fd", "3"])?.says(1, "there is no process 4194304")?;
    let node = ["create", "--size", "4K", "--node", "1000", "--", "true"];
    run(&node)?.says(1, "no NUMA node 1000")?;
    run(&["create", "--size", "4K", "--", "/no/such"])?.says(127, "there is no such command")?;
    run(&["create", "--size", "4K", "--", "/etc/passwd"])?.says(126, "cannot be run")?;
    ensure_eq!(run(&["list"])?.well()?.lines().count(), 1, "what is left");
    kvmate.unload()
}

/// The command has the file, and no other of ours; it is as it was asked for.
fn create() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let script =
        "stat -L -c %s {}; readlink {}; readlink /proc/$$/fd/* | grep -c -e gmem -e kvmate; \
                  test /proc/self/fd/$KVMATE_GMEM_FD = {} && echo here 1<>{}; head -c 5 {}; \
                  cat $0/gmem/$(stat -L -c %i {})/info; exit 3";
    for (option, order) in [("--json", 9), ("--small", 0)] {
        let mut arguments = vec!["create", "--size", "16M", "--name", "a name"];
        if order == 0 {
            arguments.push(option);
        }
        arguments.extend(["--", "sh", "-c", script, DEBUGFS]);
        let done = run(&arguments)?;
        ensure_eq!(
            (done.status, &*done.err),
            (Some(3), ""),
            "the command's status"
        );
        let lines: Vec<_> = done.out.lines().collect();
        ensure_eq!(lines[0], "16777216", "the file's size");
        ensure!(lines[1].contains("gmem:a name"), "it is {}", lines[1]);
        ensure_eq!(
            lines[2..4],
            ["1", "here"],
            "how many files of ours, and what is in it"
        );
        let folios = format!("folios_order{order} 1");
        ensure!(
            lines.contains(&folios.as_str()),
            "{folios:?} is not in {}",
            done.out
        );
    }
    ensure_eq!(
        fs::read_dir(format!("{DEBUGFS}/gmem"))?.count(),
        0,
        "files that are left"
    );
    kvmate.unload()
}

/// A file of 16 MiB and some pages: huge folios, small ones, holes.
fn known() -> Result<(File, Vec<u8>)> {
    let file = gmem::create(8 * HUGE + 4 * PAGE, 0)?;
    let pattern: Vec<u8> = (0..2 * HUGE)
        .map(|at| (at / PAGE) as u8 ^ at as u8)
        .collect();
    file.write_all_at(&pattern, 0)?;
    file.write_all_at(b"end", 8 * HUGE as u64)?;
    file.write_all_at(&pattern[..HUGE], 4 * HUGE as u64)?;
    gmem::punch(&file, 4 * HUGE, PAGE)?;
    let all = bytes(&file)?;
    Ok((file, all))
}

/// Ours, by process and descriptor.
fn of(file: &File) -> [String; 4] {
    let (pid, fd) = (std::process::id(), file.as_raw_fd());
    [
        "--pid".into(),
        pid.to_string(),
        "--fd".into(),
        fd.to_string(),
    ]
}

fn asked<'a>(what: &'a str, of: &'a [String; 4], rest: &[&'a str]) -> Vec<&'a str> {
    let of = of.iter().map(String::as_str);
    [what]
        .into_iter()
        .chain(of)
        .chain(rest.iter().copied())
        .collect()
}

fn list_and_map() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, _) = known()?;
    let (inode, pid) = (file.metadata()?.ino(), std::process::id());
    let told = tool::valid("gmem-list", &run(&["list", "--json"])?.well()?)?;
    ensure_eq!(told["version"], 1, "version");
    let listed = told["files"].as_array().context("files")?;
    ensure_eq!(listed.len(), 1, "files");
    let info = info(&file)?;
    ensure_eq!(listed[0]["inode"], inode, "inode");
    ensure_eq!(listed[0]["name"], "test", "name");
    ensure_eq!(listed[0]["size"], info["size"], "size");
    ensure_eq!(listed[0]["allocated"], allocated(&file)?, "allocated");
    ensure_eq!(listed[0]["huge"], info["folios_order9"] << 21, "huge");
    let users = listed[0]["users"].as_array().context("users")?;
    let ours = |user: &&Value| user["pid"] == pid && user["fd"] == file.as_raw_fd();
    ensure_eq!(users.iter().filter(ours).count(), 1, "{users:?}");
    let text = run(&["list"])?.well()?;
    let user = format!("tool_gmem_test ({pid}) fd {}", file.as_raw_fd());
    ensure!(text.contains(&user), "{user:?} is not in {text}");

    let (of, number) = (of(&file), inode.to_string());
    let text = run(&["map", &number])?.well()?;
    ensure_eq!(
        run(&asked("map", &of, &[]))?.well()?,
        text,
        "by process and descriptor"
    );
    let lines: Vec<_> = text.lines().collect();
    let title = format!("file {inode}: 16400K, of which 4M by 2 MiB and 2060K by less");
    ensure_eq!(lines[0], title, "title");
    let cells: Vec<_> = lines[1].split('|').collect();
    ensure_eq!(cells[1].trim_end(), "MM..-...k", "cells");

    let records = query::records(&file, 0, 8 * HUGE + 4 * PAGE, 100)?;
    for what in ["map", "query"] {
        let told = tool::valid("gmem", &run(&[what, &number, "--json"])?.well()?)?;
        let told = told["records"].as_array().context("records")?;
        ensure_eq!(told.len(), records.len(), "records");
        for (found, record) in told.iter().zip(&records) {
            ensure_eq!(found["offset"], record.offset, "{record:?}");
            ensure_eq!(found["length"], record.length, "{record:?}");
            ensure_eq!(found["order"], record.order, "{record:?}");
            ensure_eq!(found["expected"], record.expected, "{record:?}");
        }
    }
    // What reaches into a part: two huge folios, and of a hole what is in it.
    let part = ["--offset", "2044K", "--length", "4M"];
    let text = run(&asked("query", &of, &part))?.well()?;
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .collect();
    ensure_eq!(lines.len(), 4, "{text}");
    ensure_eq!(lines[1][..3], ["0x0", "2M", "folio"], "{text}");
    ensure_eq!(lines[3][..3], ["0x400000", "2044K", "hole"], "{text}");
    run(&asked("query", &of, &["--offset", "1G"]))?
        .says(1, "not all in the file, which has 16400K")?;
    drop(file);
    kvmate.unload()
}

/// Split, merge, punch: the folios are as asked, and no byte is another.
fn changes() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let (file, mut expected) = known()?;
    let of = of(&file);
    let well = |what: &str, rest: &[&str]| self::well(&asked(what, &of, rest));
    let told = well(
        "split",
        &["--offset", "2M", "--length", "2M", "--order", "4"],
    )?;
    ensure_eq!(told, "2M at 0x200000: split to at most 64K\n", "split");
    let now = folios(&file)?;
    ensure_eq!((now[9], now[4] >= 32), (1, true), "folios after a split");
    let told = well("split", &["--length", "2M"])?;
    ensure_eq!(told, "2M at 0x0: split to at most 4K\n", "split");
    ensure_eq!(folios(&file)?[9], 0, "huge folios");
    ensure!(folios(&file)?[0] >= 512, "small folios");
    ensure!(bytes(&file)? == expected, "a byte has changed by a split");

    let told = well("merge", &["--length", "4M"])?;
    ensure_eq!(told, "4M at 0x0: merged to at least 2M\n", "merge");
    ensure_eq!(folios(&file)?[9], 2, "huge folios");
    let hole = run(&asked("merge", &of, &["--length", "8M"]))?;
    hole.says(1, "a hole of 2M at 0x400000; 4M of 8M were done: --fill")?;
    well("merge", &["--length", "16M", "--fill"])?;
    ensure_eq!(folios(&file)?[9], 8, "huge folios");
    ensure!(bytes(&file)? == expected, "a byte has changed by a merge");
    run(&asked("merge", &of, &["--offset", "4K", "--length", "2M"]))?
        .says(1, "must be multiples of 2M")?;

    let told = well("punch", &["--offset", "1M", "--length", "2M"])?;
    let has = 8 * HUGE + 4 * PAGE - HUGE;
    ensure_eq!(
        told,
        format!("2M at 0x100000: punched; the file has {}K now\n", has >> 10),
        "punch"
    );
    ensure_eq!(allocated(&file)?, has, "memory");
    expected[1 << 20..3 << 20].fill(0);
    ensure!(
        bytes(&file)? == expected,
        "a byte beside the hole has changed"
    );
    drop(file);
    // One of small pages is not merged.
    let small = gmem::create(HUGE, kvmate_uapi::KVMATE_GMEM_SMALL)?;
    let of = self::of(&small);
    run(&asked("merge", &of, &["--fill"]))?.says(1, "4 KiB pages only")?;
    // Nor what is not open for writing.
    let number = small.as_raw_fd();
    let reading = File::open(format!("/proc/self/fd/{number}"))?;
    run(&asked("split", &self::of(&reading), &[]))?.says(1, "not open for writing")?;
    drop((small, reading));
    kvmate.unload()
}

/// What somebody holds is not split: who looks is told where, and how often.
fn held() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let file = gmem::create(4 * HUGE, 0)?;
    let map = Map::new(&file, 4 * HUGE)?;
    map.fill(0, 4 * HUGE, 7);
    let of = of(&file);
    let pinned = pin(By::Ring, &map, 2 * HUGE + PAGE)?;
    let refused = run(&asked("split", &of, &[]))?;
    refused.says(1, "somebody holds the folio of 2M at 0x400000: it has ")?;
    ensure!(
        refused.err.contains("and looks pinned") && refused.err.contains("4M of 8M were done"),
        "{}",
        refused.err
    );
    let text = run(&asked("map", &of, &[]))?.well()?;
    ensure!(text.contains("|kkpM"), "{text}");
    let text = run(&asked("query", &of, &["--offset", "4M", "--length", "2M"]))?.well()?;
    let line = text.lines().nth(1).context("no line")?;
    ensure!(line.contains("pinned") && line.ends_with(",held"), "{text}");
    drop(pinned);
    well(&asked("split", &of, &[]))?;
    ensure_eq!(folios(&file)?[9], 0, "huge folios");
    drop((map, file));
    kvmate.unload()
}

/// Who has the file is killed while it is looked at: that is told, or it was in time.
fn ends_meanwhile() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for _ in 0..5 {
        let mut owner = tool::start("gmem", &["create", "--size", "64M", "--", "sleep", "1000"])?;
        tool::became(&owner, "sleep")?;
        let pid = owner.id().to_string();
        let number = tool::valid("gmem-list", &run(&["list", "--json"])?.well()?)?;
        let file = &number["files"][0];
        let (inode, fd) = (
            file["inode"].to_string(),
            file["users"][0]["fd"].to_string(),
        );
        run(&["map", &inode])?.well()?;
        let lookers = [
            tool::start("gmem", &["map", &inode])?,
            tool::start("gmem", &["query", "--pid", &pid, "--fd", &fd])?,
            tool::start("gmem", &["split", "--pid", &pid, "--fd", &fd])?,
        ];
        owner.kill()?;
        owner.wait()?;
        for looker in lookers {
            let done = Done::awaited(looker)?;
            let gone = [
                "has ended",
                "there is no memory file",
                "there is no process",
                "has no descriptor",
            ];
            let told =
                gone.iter().any(|gone| done.err.contains(gone)) && done.err.lines().count() == 1;
            ensure!(
                done.status == Some(0) || done.status == Some(1) && told,
                "status {:?}: {}",
                done.status,
                done.err
            );
        }
        let folder = PathBuf::from(format!("{DEBUGFS}/gmem/{inode}"));
        until("the file is gone", || Ok(!folder.exists()))?;
        run(&["map", &inode])?.says(1, &format!("there is no memory file {inode}"))?;
    }
    kvmate.unload()
}

/// The line of the documentation: QEMU takes the file as its guest's memory, all of it.
fn qemu() -> Result<()> {
    const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";
    if !Path::new(PROGRAM).exists() {
        return ktap::skip("there is no QEMU here");
    }
    let kvmate = Kvmate::load("")?;
    let mut command = tool::command("gmem")?;
    command.args(["create", "--size", "64M", "--name", "ram", "--", PROGRAM]);
    command.args([
        "-S",
        "-accel",
        "tcg",
        "-m",
        "64M",
        "-machine",
        "pc,memory-backend=ram",
    ]);
    command.args([
        "-object",
        "memory-backend-file,id=ram,size=64M,share=on,align=2M,prealloc=on,mem-path={}",
    ]);
    command.args(["-nodefaults", "-display", "none", "-monitor", "stdio"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut qemu = command.spawn()?;
    let mut monitor = qemu.stdin.take().context("its monitor")?;
    let maps = format!("/proc/{}/maps", qemu.id());
    let mut files = Vec::new();
    let taken = until("QEMU has taken the file", || {
        let told = tool::valid("gmem-list", &run(&["list", "--json"])?.well()?)?;
        files = told["files"].as_array().context("files")?.clone();
        Ok(files.len() == 1 && files[0]["allocated"] == 64 << 20)
    });
    let mapped = fs::read_to_string(maps).unwrap_or_default();
    // It ends whatever was found.
    let told = monitor.write_all(b"quit\n");
    drop(monitor);
    let done = Done::awaited(qemu)?;
    taken.with_context(|| format!("{files:?}; QEMU: {}", done.err))?;
    told?;
    ensure!(mapped.contains("gmem:ram"), "not mapped: {mapped}");
    ensure_eq!(done.status, Some(0), "QEMU's status: {}", done.err);
    ensure_eq!(files[0]["name"], "ram", "name");
    ensure_eq!(files[0]["huge"], 64 << 20, "by 2 MiB");
    ensure_eq!(
        files[0]["users"][0]["process"],
        "qemu-system-x86",
        "who has it"
    );
    kvmate.unload()
}
