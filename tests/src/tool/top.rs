// SPDX-License-Identifier: GPL-2.0
//! `kvmate top`, on a terminal.

use crate::{
    module::{self, Kvmate},
    terminal::Terminal,
};
use anyhow::Result;
use std::process::Command;

/// The command; it reads often, if nothing else is asked for.
pub fn command(arguments: &[&str]) -> Result<Command> {
    let mut command = super::command("top")?;
    if !arguments.contains(&"--interval") {
        command.args(["--interval", "0.1"]);
    }
    command.args(arguments);
    Ok(command)
}

/// Start it on a terminal, and stand by until it has drawn.
pub fn start(arguments: &[&str]) -> Result<Terminal> {
    let mut top = Terminal::start(command(arguments)?)?;
    top.shows("kvmate top")?;
    Ok(top)
}

/// rmmod; the tool may have a file open at the moment.
pub fn unload(kvmate: Kvmate) -> Result<()> {
    std::mem::forget(kvmate);
    crate::storm::until("kvmate can be unloaded", || {
        Ok(module::unload("kvmate").is_ok())
    })
}
