// SPDX-License-Identifier: GPL-2.0
//! `kvmate completions` and `kvmate man`: made from the very definitions of the command line.

use crate::cli;
use anyhow::{Context, Result};
use clap::{error::ErrorKind, Args, Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use std::io::{self, Write};

/// What completions takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmate completions bash > /usr/share/bash-completion/completions/kvmate
  kvmate completions zsh > /usr/share/zsh/vendor-completions/_kvmate
  kvmate completions fish > /usr/share/fish/vendor_completions.d/kvmate.fish
Exit status: 0 done, 1 failed, 2 wrong usage.")]
pub struct Completions {
    /// For which
    shell: For,
}

/// A shell.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum For {
    Bash,
    Zsh,
    Fish,
}

/// What man takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmate man | man -l -
  kvmate man gmem create | man -l -
  kvmate man > /usr/local/share/man/man1/kvmate.1
Exit status: 0 done, 1 failed, 2 wrong usage.")]
pub struct Man {
    /// Of this subcommand: gmem create
    subcommand: Vec<String>,
}

/// Print completions.
pub fn completions(asked: &Completions) -> Result<()> {
    // Not to the output at once: that would panic if nobody reads.
    print(&completions_for(asked.shell))
}

fn completions_for(shell: For) -> Vec<u8> {
    let shell = match shell {
        For::Bash => Shell::Bash,
        For::Zsh => Shell::Zsh,
        For::Fish => Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut cli::Arguments::command(), "kvmate", &mut text);
    text
}

/// Print a manual page.
pub fn man(asked: &Man) -> Result<()> {
    match page(&asked.subcommand) {
        Ok(text) => print(&text),
        // As clap has it told, with status 2.
        Err(wrong) => cli::Arguments::command()
            .error(ErrorKind::InvalidSubcommand, wrong)
            .exit(),
    }
}

fn page(path: &[String]) -> Result<Vec<u8>> {
    let mut root = cli::Arguments::command();
    // Gives them the names by which they are called: "kvmate-gmem-create".
    root.build();
    let mut command: &Command = &root;
    for name in path {
        let found = command.find_subcommand(name);
        command = found.with_context(|| {
            format!("there is no subcommand {name:?}: kvmate help tells which there are")
        })?;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    Ok(text)
}

fn print(text: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(of: &Command, before: &[String], found: &mut Vec<Vec<String>>) {
        for command in of
            .get_subcommands()
            .filter(|command| command.get_name() != "help")
        {
            let path = [before, &[command.get_name().to_owned()]].concat();
            found.push(path.clone());
            all(command, &path, found);
        }
    }

    fn subcommands() -> Vec<Vec<String>> {
        let mut found = Vec::new();
        all(&cli::Arguments::command(), &[], &mut found);
        let text: Vec<_> = found.iter().map(|path| path.join(" ")).collect();
        for known in ["map", "inject gsi", "gmem create", "trace"] {
            assert!(text.iter().any(|path| path == known), "{known}");
        }
        found
    }

    #[test]
    fn all_are_completed() {
        for shell in [For::Bash, For::Zsh, For::Fish] {
            let text = String::from_utf8(completions_for(shell)).unwrap();
            for path in subcommands() {
                // By all three a subcommand's own options stand behind its names.
                let name = path.last().unwrap();
                assert!(text.contains(name.as_str()), "{shell:?}: {path:?}");
            }
            for option in ["resample", "classes", "no-wait"] {
                assert!(text.contains(option), "{shell:?}: {option}");
            }
        }
    }

    #[test]
    fn all_have_a_page() {
        let top = String::from_utf8(page(&[]).unwrap()).unwrap();
        assert!(top.contains(".TH kvmate 1"), "{top}");
        for path in subcommands() {
            let text = String::from_utf8(page(&path).unwrap()).unwrap();
            let title = format!(".TH kvmate-{} 1", path.join("-"));
            assert!(text.contains(&title), "{title} is not in {text}");
            if let [name] = &path[..] {
                assert!(
                    top.contains(&format!("kvmate\\-{name}(1)")),
                    "{name} is not in {top}"
                );
            }
        }
        assert!(page(&["x".into()]).is_err());
        assert!(page(&["map".into(), "x".into()]).is_err());
    }
}
