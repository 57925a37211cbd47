// SPDX-License-Identifier: GPL-2.0
//! What is said beside what was asked for: lines on standard error.

use std::{
    fmt::Display,
    io::{self, stderr, Write},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

/// Say it. If nobody can be told (`2> /dev/full`, a closed pipe), that changes nothing: no status, and nothing
/// that is still to be undone.
pub fn say(text: impl Display) {
    let _ = writeln!(stderr(), "kvmate: {text}");
}

/// Something is under way until this is dropped.
pub struct UnderWay(#[expect(dead_code, reason = "its end is what is seen")] Sender<()>);

/// Do that if what is under way takes longer.
pub fn if_longer(than: Duration, act: impl FnOnce() + Send + 'static) -> io::Result<UnderWay> {
    let (sender, end) = mpsc::channel();
    let wait = move || {
        if end.recv_timeout(than) == Err(RecvTimeoutError::Timeout) {
            act();
        }
    };
    thread::Builder::new().spawn(wait)?;
    Ok(UnderWay(sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_short() -> io::Result<()> {
        let told = || {
            let (sender, told) = mpsc::channel();
            (move || sender.send(()).unwrap_or_default(), told)
        };
        let (tell, long) = told();
        let under_way = if_longer(Duration::from_millis(1), tell)?;
        assert!(long.recv().is_ok());
        drop(under_way);
        let (tell, short) = told();
        drop(if_longer(Duration::from_secs(3600), tell)?);
        assert!(short.recv().is_err(), "it was over");
        Ok(())
    }
}
