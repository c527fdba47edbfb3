//! Standard output and standard error: what a command prints, and the reports that a running program prints when it is asked.
//!
//! Whoever reads them may have stopped, may have gone, or may be a full disk. A command that prints and ends may wait for its reader. A
//! program that runs never does: [`Reports`] has a thread of its own. The control plane's event loop cannot write them itself: a terminal or a
//! disk may block whatever it says of its readiness, and a descriptor that is made non-blocking is so for whoever shares it.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing::error;

/// Bytes written at a time: once a pipe is ready for writing, so many fit without waiting (`PIPE_BUF`).
const CHUNK_BYTES_MAX: usize = 4096;

/// Reports that wait for standard output; a further one is dropped.
const REPORTS_MAX: usize = 8;

/// How long standard output may take no byte until the log tells of it.
const STALL: Duration = Duration::from_secs(1);

/// How long the end of a program waits for the reports that it was asked for.
const LAST_REPORTS: Duration = Duration::from_millis(500);

/// How long to wait before a descriptor is tried again that is ready and yet takes nothing.
const RETRY: Duration = Duration::from_millis(1);

/// Prints `text` and the end of the line on standard output, for a command that does nothing else. A reader that has gone, as `head` has,
/// does not want the rest: that is no error.
///
/// # Errors
///
/// If standard output cannot be written for another reason, a full disk for example.
pub fn print(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    let printed =
        output.write_all(text.as_bytes()).and_then(|()| output.write_all(b"\n")).and_then(|()| output.flush());
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(io::Error::new(error.kind(), format!("standard output cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// `error` and what caused it. Many errors name their cause in their own words: what has been said is not said again.
pub fn with_causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A number as in "950 ", "1.20 k" or "12.3 G", before its unit.
pub fn scaled(number: u64) -> String {
    let mut scaled = number as f64;
    for prefix in ["", "k", "M", "G", "T", "P"] {
        // What would be rounded to four digits is of the next prefix.
        if scaled < 999.5 {
            let digits = match scaled {
                _ if prefix.is_empty() => 0,
                ..9.995 => 2,
                ..99.95 => 1,
                _ => 0,
            };
            return format!("{scaled:.digits$} {prefix}");
        }
        scaled /= 1000.0;
    }
    format!("{scaled:.0} E")
}

/// Writes all of `bytes` to `descriptor` and, while it waits for the reader, says so to `stalled` each time that it has taken nothing for
/// as long as `patience`; goes on if that says so.
///
/// # Errors
///
/// If the descriptor cannot be written, or with [`io::ErrorKind::TimedOut`] when `stalled` has had enough. Part of it may be written then.
pub fn write_all(
    descriptor: BorrowedFd<'_>,
    mut bytes: &[u8],
    patience: Duration,
    mut stalled: impl FnMut() -> bool,
) -> io::Result<()> {
    let mut since = Instant::now();
    while !bytes.is_empty() {
        let left = patience.saturating_sub(since.elapsed());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut ready = [PollFd::new(&descriptor, PollFlags::OUT)];
        match poll(&mut ready, Some(&timeout)) {
            Ok(0) => {
                if !stalled() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                since = Instant::now();
                continue;
            }
            // What is wrong with the descriptor, if anything, the write says.
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match rustix::io::write(descriptor, &bytes[..bytes.len().min(CHUNK_BYTES_MAX)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => (bytes, since) = (&bytes[written..], Instant::now()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => thread::sleep(RETRY),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Prints reports on standard output by a thread of its own.
#[derive(Debug)]
pub struct Reports {
    /// `Some` until the end.
    to: Option<Sender<String>>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
    /// Whether the log has told that reports do not come out, and none has come out since.
    is_told: Arc<AtomicBool>,
}

impl Reports {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn start() -> io::Result<Self> {
        let (to, reports) = bounded(REPORTS_MAX);
        let is_told = Arc::new(AtomicBool::new(false));
        let told = is_told.clone();
        let (running, ended) = bounded(0);
        thread::Builder::new().name("tollgate-reports".to_owned()).spawn(move || {
            write_reports(io::stdout().as_fd(), &reports, &told);
            drop(running);
        })?;
        Ok(Reports { to: Some(to), ended, is_told })
    }

    /// Prints `report` as a line, some time. The log tells once if that cannot be done.
    pub fn print(&self, report: String) {
        if self.to.as_ref().is_some_and(|to| to.try_send(report).is_err()) {
            tell(&self.is_told, "nobody reads it");
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.to = None;
        // The thread of a standard output that nobody reads ends with the process.
        let _ = self.ended.recv_timeout(LAST_REPORTS);
    }
}

fn write_reports(output: BorrowedFd<'_>, reports: &Receiver<String>, is_told: &AtomicBool) {
    let mut is_broken_off = false;
    while let Ok(report) = reports.recv() {
        let start = if is_broken_off { "\n" } else { "" };
        let stalled = || {
            tell(is_told, "nobody reads it");
            true
        };
        match write_all(output, format!("{start}{report}\n").as_bytes(), STALL, stalled) {
            Ok(()) => {
                is_told.store(false, Ordering::Relaxed);
                is_broken_off = false;
            }
            Err(error) => {
                tell(is_told, &error.to_string());
                is_broken_off = true;
            }
        }
    }
}

fn tell(is_told: &AtomicBool, reason: &str) {
    if !is_told.swap(true, Ordering::Relaxed) {
        error!("a report cannot be printed on standard output: {reason}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    /// Longer than any of this takes.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_a_pipe_does_not_take_at_once_it_takes_later() {
        let (mut reader, writer) = io::pipe().unwrap();
        let text = vec![b'x'; 300_000];
        let expected = text.clone();
        let reading = thread::spawn(move || {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).map(|_| read)
        });
        write_all(writer.as_fd(), &text, LONG, || false).unwrap();
        drop(writer);
        assert!(reading.join().unwrap().unwrap() == expected);
    }

    #[test]
    fn a_reader_that_has_stopped_is_waited_for_no_longer_than_wanted() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut stalls = 0;
        let stalled = || {
            stalls += 1;
            stalls < 3
        };
        let error = write_all(writer.as_fd(), &[0; 1 << 20], Duration::from_millis(20), stalled).unwrap_err();
        assert_eq!((error.kind(), stalls), (io::ErrorKind::TimedOut, 3));
    }

    #[test]
    fn a_reader_that_has_gone_and_a_full_disk_are_errors() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let error = write_all(writer.as_fd(), b"x", LONG, || true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = write_all(full.as_fd(), b"x", LONG, || true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn numbers_have_three_digits_and_a_prefix() {
        for (number, expected) in [
            (0, "0 "),
            (999, "999 "),
            (1000, "1.00 k"),
            (9_996, "10.0 k"),
            (123_456, "123 k"),
            (999_600, "1.00 M"),
            (u64::MAX, "18 E"),
        ] {
            assert_eq!(scaled(number), expected);
        }
    }
}
