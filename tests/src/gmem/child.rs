// SPDX-License-Identifier: GPL-2.0
//! Things that may end a process, done in a child.

use anyhow::Result;
use nix::{
    errno::Errno,
    libc,
    sys::{
        signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal},
        wait::{waitpid, WaitStatus},
    },
    unistd::{fork, ForkResult},
};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    By(i32),
    /// By this signal.
    Killed(Signal),
}

/// Run in a child, which ends with the status that is given back. No other thread of ours may hold a
/// lock that it needs: it should do little.
pub fn run(run: impl FnOnce() -> i32) -> Result<Ended> {
    // SAFETY: The child does what its caller says and ends.
    match unsafe { fork() }? {
        ForkResult::Child => {
            // The runtime's handler would try the access once more, and need memory itself.
            // SAFETY: The default, which ends the child.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
            let status = run();
            // SAFETY: Ends the child at once.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => loop {
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, status)) => return Ok(Ended::By(status)),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Ended::Killed(signal)),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        },
    }
}

/// The signal that ends a child which does that, if one does.
pub fn signal_of(what: impl FnOnce()) -> Result<Option<Signal>> {
    let ended = run(|| {
        what();
        0
    })?;
    Ok(match ended {
        Ended::Killed(signal) => Some(signal),
        Ended::By(_) => None,
    })
}

/// `SIGALRM` every so many microseconds, to this process, until this is dropped.
pub struct Alarms(());

impl Alarms {
    /// From now on. `restart`: system calls are to go on after it, where they can.
    pub fn every(microseconds: i64, restart: bool) -> Result<Self> {
        extern "C" fn nothing(_: i32) {}
        let flags = if restart {
            SaFlags::SA_RESTART
        } else {
            SaFlags::empty()
        };
        let action = SigAction::new(SigHandler::Handler(nothing), flags, SigSet::empty());
        // SAFETY: The handler does nothing.
        unsafe { sigaction(Signal::SIGALRM, &action) }?;
        timer(microseconds)?;
        Ok(Self(()))
    }
}

impl Drop for Alarms {
    fn drop(&mut self) {
        timer(0).expect("a timer of ours");
    }
}

fn timer(microseconds: i64) -> Result<()> {
    let every = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let timer = libc::itimerval {
        it_interval: every,
        it_value: every,
    };
    // SAFETY: A whole structure.
    Errno::result(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) })?;
    Ok(())
}
