// SPDX-License-Identifier: GPL-2.0
//! gmem on a machine of several nodes: a file's memory comes from the node that was asked for, or from
//! nowhere. Runs where `tests/plan` says so (`numa=fake=2`).

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    gmem::{
        self, allocated, child::signal_of, fallocate, folios, info_of, memory::Before, Map, HUGE,
        PAGE,
    },
    ktap,
    module::Kvmate,
};
use kvmate_uapi::{KVMATE_GMEM_NODE, KVMATE_GMEM_SMALL};
use nix::{errno::Errno, libc, sys::signal::Signal};
use std::{fs, fs::File, process::ExitCode};

fn main() -> ExitCode {
    ktap::main(&[
        ("asked_for", asked_for),
        ("by_policy", by_policy),
        ("exhausted", exhausted),
    ])
}

fn create_on(node: u32, size: usize, flags: u32) -> nix::Result<File> {
    gmem::create_as(&kvmate_uapi::kvmate_gmem {
        node,
        ..gmem::wish(size, flags | KVMATE_GMEM_NODE)
    })
}

/// The node of each page of a mapping, as `move_pages()` tells.
fn nodes_of(map: &Map, size: usize) -> Result<Vec<i32>> {
    let pages: Vec<usize> = (0..size)
        .step_by(PAGE)
        .map(|at| map.address() + at)
        .collect();
    let mut nodes = vec![-1i32; pages.len()];
    // SAFETY: As many of each; without target nodes it only tells.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_ptr(),
            std::ptr::null::<i32>(),
            nodes.as_mut_ptr(),
            0,
        )
    })?;
    Ok(nodes)
}

/// Free memory of a node, in bytes.
fn free_on(node: u32) -> Result<usize> {
    let text = fs::read_to_string(format!("/sys/devices/system/node/node{node}/meminfo"))?;
    let line = text
        .lines()
        .find(|l| l.contains("MemFree:"))
        .context("MemFree")?;
    let number = line.split_whitespace().nth(3).context("MemFree")?;
    Ok(number.parse::<usize>()? << 10)
}

fn asked_for() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let online = fs::read_to_string("/sys/devices/system/node/has_memory")?;
    ensure_eq!(online.trim(), "0-1", "nodes that have memory");
    for (node, flags) in [
        (0, 0),
        (1, 0),
        (0, KVMATE_GMEM_SMALL),
        (1, KVMATE_GMEM_SMALL),
    ] {
        let size = 8 * HUGE;
        let file = create_on(node, size, flags)?;
        let map = Map::new(&file, size)?;
        fallocate(&file, 0, 0, (size / 2) as i64)?;
        map.fill(0, size, 1);
        let nodes = nodes_of(&map, size)?;
        ensure!(
            nodes.iter().all(|n| *n == node as i32),
            "node {node}, flags {flags}: {nodes:?}"
        );
        if flags == 0 {
            ensure_eq!(folios(&file)?[9], 8, "huge folios");
        }
        ensure_eq!(info_of(&file, "fallbacks")?, 0, "fallbacks");
    }
    ensure_eq!(
        create_on(2, HUGE, 0).err(),
        Some(Errno::EINVAL),
        "a node that is not there"
    );
    kvmate.unload()
}

/// Without a node, the task's policy chooses.
fn by_policy() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    for node in [0, 1] {
        let file = gmem::create(4 * HUGE, 0)?;
        let map = Map::new(&file, 4 * HUGE)?;
        let (bind, mask) = (2, 1u64 << node);
        // SAFETY: A whole mask of 63 nodes.
        Errno::result(unsafe { libc::syscall(libc::SYS_set_mempolicy, bind, &mask, 64) })?;
        map.fill(0, 4 * HUGE, 1);
        // SAFETY: No mask.
        Errno::result(unsafe { libc::syscall(libc::SYS_set_mempolicy, 0, 0usize, 0) })?;
        let nodes = nodes_of(&map, 4 * HUGE)?;
        ensure!(
            nodes.iter().all(|n| *n == node),
            "bound to {node}: {nodes:?}"
        );
    }
    kvmate.unload()
}

/// A node has no more: no other is asked, nobody is killed, and what was had stays right.
fn exhausted() -> Result<()> {
    let kvmate = Kvmate::load("")?;
    let before = Before::now()?;
    let (size, other) = (free_on(1)? + (64 << 20), free_on(0)?);
    let file = create_on(1, size, 0)?;
    let map = Map::new(&file, size)?;
    let full = fallocate(&file, 0, 0, size as i64);
    ensure_eq!(full, Err(Errno::ENOMEM), "more than the node has");
    let had = allocated(&file)?;
    ensure!(had > size / 2, "{had} bytes of some {size} could be had");
    ensure!(
        free_on(0)? + (32 << 20) > other,
        "taken from the other node"
    );
    // A page or two may come back from the processors' lists.
    let rest = size - (32 << 20)..size;
    let ended = signal_of(|| rest.step_by(PAGE).for_each(|at| map.write(at, 1)))?;
    ensure_eq!(ended, Some(Signal::SIGBUS), "a fault then");
    ensure!(map.copy(had / 2, HUGE) == vec![0; HUGE], "what was had");
    drop((map, file));
    before.is_now()?;
    kvmate.unload()
}
