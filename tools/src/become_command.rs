// SPDX-License-Identifier: GPL-2.0
//! Becoming a command that inherits a descriptor: its signals and its status are then those of this process.
//!
//! A command that cannot be run has the status that shells give it: 127 if there is none, else 126. What
//! fails before it is our own: 1, or 2 for the command line.

use anyhow::{Error, Result};
use rustix::io::FdFlags;
use std::{
    convert::Infallible,
    ffi::{OsStr, OsString},
    fmt,
    io::{self, ErrorKind},
    os::{
        fd::AsFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            process::CommandExt,
        },
    },
    process::Command,
};

/// A command that could not be run.
#[derive(Debug)]
struct NotRun {
    program: OsString,
    error: io::Error,
}

impl fmt::Display for NotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = self.program.to_string_lossy();
        match self.error.kind() {
            ErrorKind::NotFound => write!(
                f,
                "{program}: there is no such command: check its path, and PATH"
            ),
            _ => write!(f, "{program} cannot be run: {}", self.error),
        }
    }
}

impl std::error::Error for NotRun {}

/// The exit status that an error asks for.
pub fn status(error: &Error) -> u8 {
    match error.downcast_ref::<NotRun>() {
        Some(not) if not.error.kind() == ErrorKind::NotFound => 127,
        Some(_) => 126,
        None => 1,
    }
}

/// Let whom we become have a descriptor.
pub fn inherit(fd: impl AsFd) -> Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, FdFlags::empty())?)
}

/// Become the command, with each `{}` in its arguments replaced.
pub fn run(command: &[OsString], with: &str, variables: &[(&str, String)]) -> Result<Infallible> {
    let [program, arguments @ ..] = command else {
        anyhow::bail!("no command");
    };
    let variables = variables.iter().map(|(name, value)| (name, value));
    let error = Command::new(program)
        .args(arguments.iter().map(|argument| replaced(argument, with)))
        .envs(variables)
        .exec();
    let program = program.clone();
    Err(NotRun { program, error }.into())
}

fn replaced(argument: &OsStr, with: &str) -> OsString {
    let mut bytes = Vec::new();
    let mut rest = argument.as_bytes();
    while let Some(at) = rest.windows(2).position(|two| two == b"{}") {
        bytes.extend_from_slice(&rest[..at]);
        bytes.extend_from_slice(with.as_bytes());
        rest = &rest[at + 2..];
    }
    bytes.extend_from_slice(rest);
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces() {
        let replaced = |text: &[u8]| super::replaced(OsStr::from_bytes(text), "/proc/self/fd/3");
        assert_eq!(replaced(b"mem-path={}"), "mem-path=/proc/self/fd/3");
        assert_eq!(replaced(b"{}"), "/proc/self/fd/3");
        assert_eq!(replaced(b"{}{}x"), "/proc/self/fd/3/proc/self/fd/3x");
        assert_eq!(replaced(b"{ }{"), "{ }{");
        assert_eq!(replaced(b""), "");
        assert_eq!(replaced(b"\xff{}").as_bytes(), b"\xff/proc/self/fd/3");
    }

    #[test]
    fn statuses() {
        let failed = |program: &str| run(&[program.into()], "", &[]).unwrap_err();
        assert_eq!(status(&failed("/no/such")), 127);
        assert_eq!(status(&failed("kvmate-no-such")), 127);
        assert_eq!(status(&failed("/etc/passwd")), 126);
        assert_eq!(status(&failed("/")), 126);
        assert_eq!(status(&anyhow::anyhow!("other")), 1);
    }
}
