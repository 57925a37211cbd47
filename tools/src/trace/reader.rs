// SPDX-License-Identifier: GPL-2.0
//! Who reads the lines, and may stand still for ever: `| less`, a terminal after Ctrl-S.
//!
//! A `write()` that waits for them would go on after a signal (signal-hook asks for `SA_RESTART`), so it is only done
//! where there is room.

use rustix::{
    event::{poll, PollFd, PollFlags, Timespec},
    io::Errno,
    pipe::PIPE_BUF,
};
use std::{
    io::{self, ErrorKind, Write},
    os::fd::AsFd,
};

/// They: what is written to, and whether a signal has asked for the end.
pub struct Reader<F, S> {
    to: F,
    ended: S,
}

/// For so long it is waited for room before a signal is looked for. Who takes nothing for so long after one gets no more.
pub const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

impl<F: AsFd, S: Fn() -> bool> Reader<F, S> {
    /// Who reads that.
    pub fn new(to: F, ended: S) -> Self {
        Self { to, ended }
    }
}

impl<F: AsFd, S: Fn() -> bool> Write for Reader<F, S> {
    /// Write whole lines, if there are any, for the rest may be given up. `TimedOut`: a signal came, and nobody reads.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A pipe with room has room for so much.
        let part = &bytes[..bytes.len().min(PIPE_BUF)];
        let line = part.iter().rposition(|byte| *byte == b'\n');
        let part = line.map_or(part, |end| &part[..=end]);
        loop {
            let last = (self.ended)();
            match poll(&mut [PollFd::new(&self.to, PollFlags::OUT)], Some(&PAUSE)) {
                Ok(0) if last => return Err(ErrorKind::TimedOut.into()),
                Ok(0) | Err(Errno::INTR) => {}
                // Also if they have gone, which this tells then.
                Ok(_) => return Ok(rustix::io::write(&self.to, part)?),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Nothing is kept here.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::pipe;
    use std::{cell::Cell, io::Read, thread};

    #[test]
    fn who_stands_still() {
        let (from, to) = pipe().unwrap();
        let asked = Cell::new(0);
        // The signal comes while it waits.
        let ended = || {
            asked.set(asked.get() + 1);
            asked.get() > 20
        };
        let line = b"0123456789\n";
        let lines = line.repeat(100_000);
        let said = Reader::new(&to, ended).write_all(&lines).unwrap_err();
        assert_eq!(said.kind(), ErrorKind::TimedOut);
        drop(to);
        let mut taken = Vec::new();
        std::fs::File::from(from).read_to_end(&mut taken).unwrap();
        assert!(!taken.is_empty() && taken.len() < lines.len());
        assert!(taken.ends_with(b"\n") && lines.starts_with(&taken));
    }

    /// Nothing is lost for who reads, whatever signal came.
    #[test]
    fn who_reads() {
        let (from, to) = pipe().unwrap();
        let read = thread::spawn(move || {
            let mut all = Vec::new();
            std::fs::File::from(from).read_to_end(&mut all).map(|_| all)
        });
        let mut text = vec![b'x'; 3 * PIPE_BUF];
        text.extend(b"\nend");
        let text = text.repeat(50);
        Reader::new(&to, || true).write_all(&text).unwrap();
        drop(to);
        assert!(read.join().unwrap().unwrap() == text);
    }
}
