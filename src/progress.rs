//! The progress line on standard error: one that is rewritten on a terminal, now and then a new one elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the line changes on a terminal.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(100);
/// How often there is a new line elsewhere, within a step.
const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// To the first column, then erase the line (ECMA-48).
const ERASE: &str = "\r\x1b[2K";

/// Tells on standard error how far things are.
pub struct Progress {
    is_terminal: bool,
    updated_at: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Progress { is_terminal: io::stderr().is_terminal(), updated_at: Instant::now() }
    }
}

impl Progress {
    /// A new step begins.
    pub fn step(&mut self, text: &str) {
        self.updated_at = Instant::now();
        self.show(&if self.is_terminal { format!("{ERASE}{text} ...") } else { format!("{text}\n") });
    }

    /// The step goes on; called often, shown now and then.
    pub fn update(&mut self, text: impl FnOnce() -> String) {
        let interval = if self.is_terminal { TERMINAL_INTERVAL } else { LINE_INTERVAL };
        if self.updated_at.elapsed() >= interval {
            self.step(&text());
        }
    }

    /// Something to be read in peace.
    pub fn note(&mut self, text: &str) {
        self.clear();
        self.show(&format!("{text}\n"));
    }

    /// Takes the line away, for others to print.
    pub fn clear(&mut self) {
        if self.is_terminal {
            self.show(ERASE);
        }
    }

    fn show(&self, text: &str) {
        // Whoever has closed standard error does not want to know.
        let mut error = io::stderr().lock();
        let _ = error.write_all(text.as_bytes()).and_then(|()| error.flush());
    }
}
