// SPDX-License-Identifier: GPL-2.0
//! A memory file for a command, which inherits it.

use crate::{become_command, device, units};
use anyhow::{anyhow, Result};
use clap::Args;
use kvmate_uapi::{kvmate_gmem, KVMATE_GMEM_NODE, KVMATE_GMEM_SMALL};
use rustix::io::Errno;
use std::{ffi::OsString, io, os::fd::AsRawFd};

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
CMD inherits the file: each {} in its arguments is replaced by /proc/self/fd/N, and KVMATE_GMEM_FD is N. The file goes
with the last process that has it. A VMM has to map it shared.
Examples:
  kvmate gmem create --size 2G -- qemu-system-x86_64 -accel kvm -m 2G -machine pc,memory-backend=ram \\
      -object memory-backend-file,id=ram,size=2G,share=on,align=2M,mem-path={}
  kvmate gmem create --size 64M --name test --node 0 --small -- bash
Exit status: CMD's, which this process becomes; before that 1 failed, 2 wrong usage, 126 CMD cannot be run, 127 there is
no CMD. Errors of this tool's begin with \"kvmate: error:\".")]
pub struct Arguments {
    /// How large it is, for ever: 2G
    #[arg(long, value_parser = size)]
    size: u64,
    /// What it is called in /proc/PID/maps, in at most 31 bytes
    #[arg(long, default_value = "kvmate", value_parser = name)]
    name: String,
    /// Take memory of this NUMA node only
    #[arg(long)]
    node: Option<u32>,
    /// Pages of 4 KiB only
    #[arg(long)]
    small: bool,
    /// What to run, and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

fn size(text: &str) -> Result<u64, String> {
    match units::pages(text)? {
        0 => Err("it is 4096 at least".into()),
        size if size > i64::MAX as u64 => Err("it is at most 2^63 - 4096".into()),
        size => Ok(size),
    }
}

fn name(text: &str) -> Result<String, String> {
    match text.len() < 32 && !text.contains('\0') {
        true => Ok(text.to_owned()),
        false => Err("it has 31 bytes at most".into()),
    }
}

/// What is asked of the module.
fn wish(asked: &Arguments) -> kvmate_gmem {
    let mut wish = kvmate_gmem {
        size: asked.size,
        flags: if asked.small { KVMATE_GMEM_SMALL } else { 0 },
        node: asked.node.unwrap_or(0),
        ..Default::default()
    };
    if asked.node.is_some() {
        wish.flags |= KVMATE_GMEM_NODE;
    }
    for (to, from) in wish.name.iter_mut().zip(asked.name.bytes()) {
        *to = from as _;
    }
    wish
}

/// Do it: returns only if that failed.
pub fn run(asked: &Arguments) -> Result<()> {
    let device = device::open()?;
    let made = device.create(&wish(asked));
    let file = made.map_err(|error| refused(asked, &error))?;
    drop(device);
    become_command::inherit(&file)?;
    let number = file.as_raw_fd();
    let path = format!("/proc/self/fd/{number}");
    let variables = [("KVMATE_GMEM_FD", number.to_string())];
    match become_command::run(&asked.command, &path, &variables)? {}
}

fn refused(asked: &Arguments, error: &io::Error) -> anyhow::Error {
    match (Errno::from_io_error(error), asked.node) {
        (Some(Errno::INVAL), Some(node)) => anyhow!(
            "there is no NUMA node {node} with memory: cat /sys/devices/system/node/has_memory"
        ),
        _ => device::failed("KVMATE_GMEM_CREATE", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::Command, gmem::What};
    use clap::Parser;

    fn parse(text: &str) -> Result<Arguments, String> {
        let parsed = crate::cli::Arguments::try_parse_from(text.split(' '));
        match parsed.map_err(|error| error.to_string())?.command {
            Command::Gmem(crate::gmem::Arguments {
                what: What::Create(asked),
            }) => Ok(asked),
            _ => Err("another command".into()),
        }
    }

    #[test]
    fn arguments() {
        let asked = parse(
            "kvmate gmem create --size 2G --name x --node 1 --small -- qemu -m 1G mem-path={}",
        )
        .unwrap();
        let wish = wish(&asked);
        assert_eq!((wish.size, wish.node), (2 << 30, 1));
        assert_eq!(wish.flags, KVMATE_GMEM_SMALL | KVMATE_GMEM_NODE);
        assert_eq!(wish.name[..2], [b'x' as _, 0]);
        assert_eq!(asked.command.len(), 4);
        let plain = super::wish(&parse("kvmate gmem create --size 4K -- cat").unwrap());
        assert_eq!((plain.flags, plain.node), (0, 0));
        for text in [
            "-- cat",
            "--size 2G",
            "--size 2G --",
            "--size 0 -- cat",
            "--size 1 -- cat",
            "--size 1.5G -- cat",
            "--size -4096 -- cat",
            "--size 8388608T -- cat",
            "--size 2G --node x -- cat",
            "--size 2G --name 12345678901234567890123456789012 -- cat",
        ] {
            assert!(
                parse(&format!("kvmate gmem create {text}")).is_err(),
                "{text}"
            );
        }
    }
}
