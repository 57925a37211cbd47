// SPDX-License-Identifier: GPL-2.0
//! The terminal, taken and given back: at the end, on an error, on a panic, on signals that end the tool, and
//! while it is stopped.
//!
//! A thread of its own takes the signals, so that they are answered while the module is read or the terminal
//! takes no output. It and the drawing share the terminal by a lock; for a signal that ends the tool it is waited for
//! [`PATIENCE`] only, as who draws may be blocked by a terminal that takes nothing. SIGKILL and SIGSTOP cannot
//! be caught: after these the terminal is as it was left.

use anyhow::{Context, Result};
use crossterm::{
    cursor::Show,
    execute, queue,
    terminal::{
        disable_raw_mode, enable_raw_mode, BeginSynchronizedUpdate, EndSynchronizedUpdate,
        EnterAlternateScreen, LeaveAlternateScreen,
    },
};
use ratatui::{backend::CrosstermBackend, Frame, Terminal};
use rustix::termios::{tcgetattr, LocalModes};
use signal_hook::{
    consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH},
    iterator::{Handle, Signals},
    low_level::{emulate_default_handler, raise},
};
use std::{
    io::{self, Stdout},
    panic,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    thread,
    time::{Duration, Instant},
};

type Shared = Arc<Mutex<Terminal<CrosstermBackend<Stdout>>>>;

/// For so long an ending signal waits for what is being drawn.
const PATIENCE: Duration = Duration::from_millis(500);

/// The terminal, while it is ours.
pub struct Screen {
    terminal: Shared,
    signals: Handle,
}

impl Screen {
    /// Take it.
    pub fn take() -> Result<Self> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT])
            .context("signals cannot be caught")?;
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
        }));
        let taken = enter().and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        let terminal = taken.inspect_err(|_| give_back()).context("the terminal")?;
        let screen = Self {
            terminal: Arc::new(Mutex::new(terminal)),
            signals: signals.handle(),
        };
        let shared = screen.terminal.clone();
        thread::Builder::new().spawn(move || answer(&mut signals, &shared))?;
        Ok(screen)
    }

    /// Draw; the terminal shows it when it is whole, if it can.
    pub fn draw(&self, what: impl FnOnce(&mut Frame)) -> Result<()> {
        let mut terminal = lock(&self.terminal);
        queue!(io::stdout(), BeginSynchronizedUpdate).context("the terminal")?;
        terminal.draw(what).context("the terminal")?;
        execute!(io::stdout(), EndSynchronizedUpdate).context("the terminal")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.signals.close();
        let _locked = lock(&self.terminal);
        give_back();
    }
}

fn lock<T>(terminal: &Mutex<T>) -> MutexGuard<'_, T> {
    terminal.lock().unwrap_or_else(PoisonError::into_inner)
}

fn enter() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen)
}

/// Errors are left: where the terminal is gone there is nothing to give back.
fn give_back() {
    let _ = disable_raw_mode();
    let _ = execute!(
        io::stdout(),
        LeaveAlternateScreen,
        Show,
        EndSynchronizedUpdate
    );
}

/// Whether it gives each key at once, and nothing else does anything with it. What crossterm says of that is
/// what was set last.
fn is_raw() -> bool {
    let modes = tcgetattr(io::stdin());
    let line_by_line = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
    modes.is_ok_and(|modes| !modes.local_modes.intersects(line_by_line))
}

/// Answer signals until the screen is given back.
fn answer(signals: &mut Signals, terminal: &Shared) {
    for signal in signals.forever() {
        match signal {
            SIGTSTP => {
                let mut terminal = lock(terminal);
                give_back();
                let _ = emulate_default_handler(SIGTSTP);
                let _ = enter();
                let _ = terminal.clear();
            }
            // After SIGTSTP, which is seen to above, or SIGSTOP: others may have set the terminal's modes, and
            // have written to it.
            SIGCONT => {
                let mut terminal = lock(terminal);
                if !is_raw() {
                    let _ = disable_raw_mode();
                    let _ = enable_raw_mode();
                }
                let _ = terminal.clear();
            }
            ends => {
                let (until, mut held) = (Instant::now() + PATIENCE, None);
                while held.is_none() && Instant::now() < until {
                    held = match terminal.try_lock() {
                        Ok(terminal) => Some(terminal),
                        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                        Err(TryLockError::WouldBlock) => None,
                    };
                    thread::sleep(Duration::from_millis(5));
                }
                if held.is_some() {
                    give_back();
                } else {
                    // What is written now would wait too.
                    let _ = disable_raw_mode();
                }
                let _ = emulate_default_handler(ends);
            }
        }
        // Have the loop that waits for keys draw.
        let _ = raise(SIGWINCH);
    }
}
