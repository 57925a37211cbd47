// SPDX-License-Identifier: GPL-2.0
//! `kvmate completions` and `kvmate man`: what shells and `man` take, for each subcommand that `--help` names.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq, ktap,
    tool::{self, Done},
};
use std::{
    fs,
    process::{Command, ExitCode},
};

fn main() -> ExitCode {
    ktap::main(&[
        ("bad_input", bad_input),
        ("bash", bash),
        ("other_shells", other_shells),
        ("man", man),
    ])
}

fn bad_input() -> Result<()> {
    for shell in [&[][..], &["ksh"], &["bash", "zsh"]] {
        let done = tool::run("completions", shell)?;
        done.says(2, "Usage: ")
            .or_else(|_| done.says(2, "--help"))?;
    }
    tool::run("man", &["nonsense"])?.says(2, "there is no subcommand \"nonsense\"")?;
    tool::run("man", &["gmem", "nonsense"])?.says(2, "there is no subcommand \"nonsense\"")
}

/// The subcommands, as the help has them.
fn subcommands() -> Result<Vec<String>> {
    let help = tool::run("--help", &[])?.well()?;
    let list = help.split("Commands:\n").nth(1).context("no commands")?;
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.split_whitespace().next());
    let names: Vec<_> = names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    for known in ["list", "exits", "inject", "gmem", "trace", "top"] {
        ensure!(names.iter().any(|name| name == known), "{known}: {names:?}");
    }
    Ok(names)
}

/// What bash completes, once it has read what it is to read.
fn bash() -> Result<()> {
    let script = tool::run("completions", &["bash"])?.well()?;
    let file = std::env::temp_dir().join("kvmate-completions");
    fs::write(&file, script)?;
    let complete = |words: &str| -> Result<String> {
        let mut command = Command::new("bash");
        command.args([
            "-euc",
            "file=$1; shift; set +u; . \"$file\"; COMP_WORDS=(\"$@\" ''); COMP_CWORD=$#; \
             _kvmate kvmate '' \"${!#}\"; echo \"${COMPREPLY[*]}\"",
            "bash",
        ]);
        command.arg(&file).args(words.split(' '));
        Done::of(command)?.well()
    };
    let all = complete("kvmate");
    let of_gmem = complete("kvmate gmem");
    fs::remove_file(file)?;
    let (all, of_gmem) = (all?, of_gmem?);
    let offered = |text: &str, name: &str| text.split_whitespace().any(|word| word == name);
    for name in subcommands()? {
        ensure!(offered(&all, &name), "{name} is not in {all}");
    }
    for name in ["create", "list", "map", "query", "split", "merge", "punch"] {
        ensure!(offered(&of_gmem, name), "{name} is not in {of_gmem}");
    }
    ensure_eq!(offered(&of_gmem, "exits"), false, "of another: {of_gmem}");
    Ok(())
}

/// Those that are not here: what they read names each subcommand as they want it.
fn other_shells() -> Result<()> {
    let zsh = tool::run("completions", &["zsh"])?.well()?;
    let fish = tool::run("completions", &["fish"])?.well()?;
    ensure_eq!(zsh.lines().next(), Some("#compdef kvmate"), "zsh's first");
    for name in subcommands()? {
        let entry = format!("\n'{name}:");
        ensure!(zsh.contains(&entry), "{entry:?} is not in zsh's");
        let entry = format!(" -a \"{name}\" ");
        ensure!(fish.contains(&entry), "{entry:?} is not in fish's");
    }
    Ok(())
}

fn man() -> Result<()> {
    let top = tool::run("man", &[])?.well()?;
    ensure!(top.contains("\n.TH kvmate 1 "), "{top}");
    for name in subcommands()? {
        let line = format!("kvmate\\-{name}(1)");
        ensure!(top.lines().any(|told| told == line), "{line} is not in it");
        let page = tool::run("man", &[&name])?.well()?;
        let title = format!("\n.TH kvmate-{name} 1 ");
        ensure!(page.contains(&title), "{title:?} is not in {page}");
    }
    let page = tool::run("man", &["gmem", "create"])?.well()?;
    ensure!(page.contains("\n.TH kvmate-gmem-create 1 "), "{page}");
    // What --help has as its examples.
    ensure!(page.contains("Examples:"), "{page}");
    Ok(())
}
