// SPDX-License-Identifier: GPL-2.0
//! A terminal for a program that draws on the whole screen: a pseudo-terminal, and an emulator that keeps what is
//! on the screen. What the program writes is taken only while a test looks: a test may let it block.
//! It is taken frame by frame, by the mark of a synchronized update's end: so no half of a frame is looked at, and no frame missed.

use anyhow::{bail, ensure, Context, Result};
use nix::{
    errno::Errno,
    libc,
    poll::{poll, PollFd, PollFlags},
    pty::{openpty, Winsize},
    sys::{
        signal::{kill, Signal},
        termios::{tcgetattr, Termios},
    },
    unistd::{setsid, Pid},
};
use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What must come comes within this, on a slow machine too.
const BOUND: Duration = Duration::from_secs(60);

/// A program on its terminal; dropping it kills.
pub struct Terminal {
    child: Child,
    master: File,
    /// Keeps the terminal's modes when the program is gone.
    slave: OwnedFd,
    modes: Termios,
    emulator: vt100::Parser,
    /// What came behind the last frame.
    rest: Vec<u8>,
}

/// The end of a synchronized update.
const END: &[u8] = b"\x1b[?2026l";

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Terminal {
    /// Start a program on one of 80x24, its standard error on a pipe.
    pub fn start(mut command: Command) -> Result<Self> {
        let pty = openpty(Some(&size(24, 80)), None).context("openpty")?;
        let modes = tcgetattr(&pty.slave)?;
        command
            .stdin(pty.slave.try_clone()?)
            .stdout(pty.slave.try_clone()?)
            .stderr(Stdio::piped())
            .env("TERM", "xterm");
        // SAFETY: Both are async-signal-safe, and the standard input is the terminal by then.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                Ok(())
            });
        }
        Ok(Self {
            child: command.spawn().context("the program")?,
            master: pty.master.into(),
            slave: pty.slave,
            modes,
            emulator: vt100::Parser::new(24, 80, 0),
            rest: Vec::new(),
        })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Take the next frame, if one is there soon.
    fn take(&mut self) -> Result<()> {
        let end = |bytes: &[u8]| bytes.windows(END.len()).position(|part| part == END);
        if end(&self.rest).is_none() {
            let wait = 20u16;
            let mut ready = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, wait)? > 0 {
                let mut bytes = [0; 4096];
                let read = self.master.read(&mut bytes)?;
                self.rest.extend(&bytes[..read]);
            }
        }
        if let Some(at) = end(&self.rest) {
            let frame: Vec<u8> = self.rest.drain(..at + END.len()).collect();
            self.emulator.process(&frame);
        }
        Ok(())
    }

    /// Nothing was ever written to the terminal.
    pub fn is_untouched(&mut self) -> Result<()> {
        self.take()?;
        let screen = self.screen();
        ensure!(
            screen.trim().is_empty() && self.rest.is_empty(),
            "written: {screen:?}, {:?}",
            self.rest
        );
        Ok(())
    }

    /// What is on the screen.
    pub fn screen(&self) -> String {
        self.emulator.screen().contents()
    }

    /// Stand by until the screen is so, and give it.
    pub fn until(&mut self, what: &str, so: impl Fn(&str) -> bool) -> Result<String> {
        let end = Instant::now() + BOUND;
        loop {
            let screen = self.screen();
            if so(&screen) {
                return Ok(screen);
            }
            ensure!(
                Instant::now() < end,
                "never on the screen: {what}:\n{screen}"
            );
            if let Some(status) = self.child.try_wait()? {
                bail!("it has ended: {status}, before {what}: {}", self.said()?);
            }
            self.take()?;
        }
    }

    /// Stand by until that is on the screen.
    pub fn shows(&mut self, part: &str) -> Result<String> {
        self.until(part, |screen| screen.contains(part))
    }

    /// Press keys.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Make the window another size, as a terminal's program does.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<()> {
        self.emulator.set_size(rows, columns);
        let size = size(rows, columns);
        // SAFETY: The argument is what the request reads.
        Errno::result(unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) })?;
        Ok(())
    }

    /// Send it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Whether the terminal's modes are what they were before the program.
    pub fn modes_are_back(&self) -> Result<bool> {
        Ok(tcgetattr(&self.slave)? == self.modes)
    }

    /// The modes, the screen and the cursor are as before the program.
    pub fn is_given_back(&mut self) -> Result<()> {
        ensure!(
            self.modes_are_back()?,
            "other modes: {:?}",
            tcgetattr(&self.slave)?
        );
        let end = Instant::now() + BOUND;
        while self.emulator.screen().alternate_screen() || self.emulator.screen().hide_cursor() {
            ensure!(
                Instant::now() < end,
                "the other screen, or no cursor:\n{}",
                self.screen()
            );
            self.take()?;
        }
        Ok(())
    }

    /// Set the modes to what they were before the program, as a shell does.
    pub fn set_modes_back(&self) -> Result<()> {
        use nix::sys::termios::{tcsetattr, SetArg};
        Ok(tcsetattr(&self.slave, SetArg::TCSANOW, &self.modes)?)
    }

    /// Stand by until something is so; what is written meanwhile is left.
    pub fn stand_by(&self, what: &str, so: impl Fn() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + BOUND;
        while !so()? {
            ensure!(Instant::now() < end, "not so: {what}");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Whether it is stopped.
    pub fn is_stopped(&self) -> Result<bool> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        let (_, state) = stat.rsplit_once(") ").context("no state")?;
        Ok(state.starts_with('T'))
    }

    /// Whether its first thread waits in a `write()` to the terminal.
    pub fn is_blocked(&self) -> Result<bool> {
        let call = fs::read_to_string(format!("/proc/{}/syscall", self.id()))?;
        Ok(call.starts_with(&format!("{} 0x1 ", libc::SYS_write)))
    }

    /// Stand by until it has ended; `look`: take what it writes.
    pub fn ends(&mut self, look: bool) -> Result<ExitStatus> {
        let end = Instant::now() + BOUND;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < end, "it does not end:\n{}", self.screen());
            if look {
                self.take()?;
            } else {
                thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Stand by until it has ended well, and given the terminal back.
    pub fn ends_well(mut self) -> Result<()> {
        let status = self.ends(true)?;
        ensure!(status.success(), "{status}: {}", self.said()?);
        self.is_given_back()
    }

    /// Stand by until a signal has ended it, the terminal given back.
    pub fn ends_by(mut self, signal: Signal) -> Result<()> {
        let status = self.ends(true)?;
        ensure!(
            status.signal() == Some(signal as i32),
            "{status}, not {signal}"
        );
        self.is_given_back()
    }

    /// What it said on its standard error; it has ended.
    pub fn said(&mut self) -> Result<String> {
        let mut said = String::new();
        if let Some(mut error) = self.child.stderr.take() {
            error.read_to_string(&mut said)?;
        }
        Ok(said)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
