// SPDX-License-Identifier: GPL-2.0
//! `kvmate export`: what the module tells, for Prometheus. [`server`] speaks HTTP, [`collect`] reads the
//! module's tables into a [`model`], of which [`bounds`] keeps the labels few; [`metrics`] writes it as OpenMetrics
//! and [`format`] chooses between that and the older text.

mod bounds;
mod collect;
mod format;
mod metrics;
mod model;
mod server;

use crate::tree;
use anyhow::Result;
use clap::Args;
use collect::{Collector, Limits};
use std::net::SocketAddr;

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmate export                                at http://127.0.0.1:9980/metrics
  kvmate export --listen '[::]:9980'           at all of this machine's addresses: everybody may read
  curl -s http://127.0.0.1:9980/metrics | grep vm_exits
  curl -s http://127.0.0.1:9980/metrics | promtool check metrics

It says on its standard output where it listens, needs root, and ends by SIGTERM or SIGINT with status 0.
While the module is not loaded, kvmate_up is 0. Between scrapes nothing of the module is open: rmmod works.
Exit status: 0 ended by a signal, 1 failed, 2 wrong usage. tools/metrics.md documents the metrics.")]
pub struct Arguments {
    /// Where to listen: an IPv4 or IPv6 address and a port; port 0: any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9980")]
    pub listen: SocketAddr,
    /// Tell of so many VMs at most; kvmate_left_out counts what is beyond this and the other bounds
    #[arg(long, value_name = "N", default_value = "64")]
    pub max_vms: usize,
    /// Tell of so many vCPUs of each VM at most, those with the lowest numbers
    #[arg(long, value_name = "N", default_value = "64")]
    pub max_vcpus: usize,
    /// Tell of so many exit reasons at most, all VMs together
    #[arg(long, value_name = "N", default_value = "32")]
    pub max_reasons: usize,
    /// Tell of so many memory files at most
    #[arg(long, value_name = "N", default_value = "64")]
    pub max_gmem_files: usize,
}

/// Do it.
pub fn run(asked: &Arguments) -> Result<()> {
    // The module may come later; rights do not.
    tree::may_be_read()?;
    let limits = Limits {
        vms: asked.max_vms,
        vcpus: asked.max_vcpus,
        reasons: asked.max_reasons,
        files: asked.max_gmem_files,
    };
    server::serve(asked.listen, Collector::new(limits))
}
