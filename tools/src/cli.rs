// SPDX-License-Identifier: GPL-2.0
//! The command line: what subcommands there are. What each takes stands with it.

use crate::{export, map};
use clap::{Parser, Subcommand};

/// Shows what the kernel module kvmate tells of running VMs.
#[derive(Debug, Parser)]
#[command(name = "kvmate", version, arg_required_else_help = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw a VM's guest-physical memory: what is mapped by which size, slots, and why a page is small
    Map(map::Arguments),
    /// Export what the module tells, for Prometheus: OpenMetrics over HTTP
    Export(export::Arguments),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_excludes_what() {
        let parse = |text: &str| Arguments::try_parse_from(text.split(' '));
        assert!(parse("kvmate map 101-4").is_ok());
        assert!(parse("kvmate map 101-4 --json --why").is_ok());
        assert!(parse("kvmate map 101-4 --page 2M --json").is_ok());
        for text in [
            "kvmate",
            "kvmate map",
            "kvmate map a b",
            "kvmate map a --page",
            "kvmate map a --page x",
            "kvmate map a --page 0 --why",
            "kvmate map a --what",
            "kvmate list",
            "kvmate export x",
            "kvmate export --listen localhost",
            "kvmate export --listen 127.0.0.1:65536",
            "kvmate export --max-vms -1",
        ] {
            assert_eq!(parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
        assert_eq!(parse("kvmate --version").unwrap_err().exit_code(), 0);
    }
}
