//! What a child process printed, line by line, for those who wait for a line of it.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How many lines are kept; the oldest go first.
const LINES_MAX: usize = 65_536;

/// How long a line may be in bytes; a longer one is broken up. A gateway's counters are one line of up to 2 KiB for each of 128 shards.
const LINE_BYTES_MAX: u64 = 262_144;

/// The lines of a process's standard output and error, in the order of their arrival.
#[derive(Debug, Clone, Default)]
pub(super) struct Output {
    shared: Arc<(Mutex<Lines>, Condvar)>,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<String>,
    /// How many lines have been forgotten before the first kept one.
    forgotten: usize,
    readers: usize,
    /// Whether somebody has waited for the end in vain: it is not to be waited for again.
    stays_open: bool,
}

impl Output {
    /// Reads lines from `pipe` until its end, on a thread of its own.
    pub(super) fn capture(&self, pipe: impl Read + Send + 'static) {
        let output = self.clone();
        output.lock().readers += 1;
        thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!((&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line), Ok(1..)) {
                output.push(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
            output.lock().readers -= 1;
            output.shared.1.notify_all();
        });
    }

    pub(super) fn count(&self) -> usize {
        let lines = self.lock();
        lines.forgotten + lines.kept.len()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lock().kept.iter().cloned().collect()
    }

    /// Waits until all is read, for `limit` at most, and once.
    pub(super) fn wait_for_end(&self, limit: Duration) {
        let lines = self.lock();
        let is_open = |lines: &mut Lines| lines.readers > 0 && !lines.stays_open;
        let waited = self.shared.1.wait_timeout_while(lines, limit, is_open);
        let (mut lines, _) = waited.unwrap_or_else(PoisonError::into_inner);
        lines.stays_open = lines.readers > 0;
    }

    /// Waits for a line that contains `pattern`, looking from line number `first` on. The error says why none came.
    pub(super) fn wait_for(&self, pattern: &str, first: usize, timeout: Duration) -> Result<String, String> {
        let deadline = Instant::now() + timeout;
        let mut next = first;
        let mut lines = self.lock();
        loop {
            let skipped = next.saturating_sub(lines.forgotten);
            if let Some(found) = lines.kept.iter().skip(skipped).find(|line| line.contains(pattern)) {
                return Ok(found.clone());
            }
            next = next.max(lines.forgotten + lines.kept.len());
            if lines.readers == 0 {
                return Err("the process has closed its output".into());
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Err(format!("{timeout:?} have passed"));
            }
            lines = self.shared.1.wait_timeout(lines, remaining).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn push(&self, line: String) {
        let mut lines = self.lock();
        if lines.kept.len() == LINES_MAX {
            lines.kept.pop_front();
            lines.forgotten += 1;
        }
        lines.kept.push_back(line);
        self.shared.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_wait_ends_with_the_line_the_timeout_or_the_end() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let output = Output::default();
        output.capture(reader);
        writer.write_all(b"first\nlistening on 7\n").unwrap();
        let long = Duration::from_secs(60);
        assert_eq!(output.wait_for("listening", 0, long).unwrap(), "listening on 7");
        assert_eq!(output.wait_for("listening", output.count(), Duration::ZERO).unwrap_err(), "0ns have passed");
        writer.write_all(b"listening on 8\nno newline").unwrap();
        assert_eq!(output.wait_for("listening", 2, long).unwrap(), "listening on 8");
        drop(writer);
        assert_eq!(output.wait_for("never", 0, long).unwrap_err(), "the process has closed its output");
        assert_eq!(output.lines(), ["first", "listening on 7", "listening on 8", "no newline"]);
    }

    #[test]
    fn the_oldest_lines_are_forgotten_first() {
        let output = Output::default();
        (0..LINES_MAX + 3).for_each(|number| output.push(number.to_string()));
        assert_eq!(output.count(), LINES_MAX + 3);
        assert_eq!(output.lines()[0], "3");
        assert_eq!(output.wait_for("65537", LINES_MAX + 1, Duration::ZERO).unwrap(), "65537");
    }
}
