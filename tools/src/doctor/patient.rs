// SPDX-License-Identifier: GPL-2.0
//! Files that may not be readable for ever: `/proc/PID/maps` of a process that hangs with its memory's lock held.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

/// For so long it is waited for a file.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads them. A thread does, which is left to wait, and another begun, where that takes too long.
#[derive(Default)]
pub struct Patient {
    reader: Option<Reader>,
}

struct Reader {
    asked: Sender<PathBuf>,
    told: Receiver<Vec<u8>>,
}

impl Reader {
    /// None: there is no memory for a thread.
    fn new() -> Option<Self> {
        let (asked, ask) = mpsc::channel::<PathBuf>();
        let (tell, told) = mpsc::channel();
        let read = move || {
            for path in ask {
                // One that has gone, or may not be seen, has nothing for us.
                if tell.send(fs::read(path).unwrap_or_default()).is_err() {
                    break;
                }
            }
        };
        thread::Builder::new().spawn(read).ok()?;
        Some(Self { asked, told })
    }
}

impl Patient {
    /// A file's text, lossy, nothing if there is none; `None`: it does not come.
    pub fn read(&mut self, path: &Path) -> Option<String> {
        let reader = self.reader.take().or_else(Reader::new)?;
        reader.asked.send(path.to_owned()).ok()?;
        let text = reader.told.recv_timeout(PATIENCE).ok()?;
        self.reader = Some(reader);
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}
