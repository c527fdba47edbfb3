//! The thread that writes the log. Whoever logs hands it a line and goes on: nobody waits for whoever reads standard error, which may block for as
//! long as it likes.
//!
//! Lines that do not fit into the queue, or that standard error does not take, are counted and told of in one line later.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tollgate_config::LogFormat;
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use super::form;
use super::sink::Sink;

/// Lines that wait to be written; further ones are lost.
pub const LINES_MAX: usize = 4096;
/// Longest line, in bytes; the rest of a longer one is cut off.
pub const LINE_BYTES_MAX: usize = 4096;
/// How long lines are withheld before their number is told, and time between two lines that tell how many were lost.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(1);

/// A handle to the writing thread.
#[derive(Debug, Clone)]
pub struct Lines {
    to: Sender<Item>,
    lost: Arc<AtomicU64>,
    format: LogFormat,
}

#[derive(Debug)]
enum Item {
    /// A line, its end included.
    Line(Vec<u8>),
    /// Lines are withheld from now on.
    Withheld,
    /// Somebody wants to know when everything before this is written.
    Flush(Sender<()>),
}

/// What the writer asks for when lines were withheld: to log how many, and whether there are such.
pub trait Summary: Send + 'static {
    /// Whether lines were withheld.
    fn is_due(&self) -> bool;
    /// Logs how many, by way of [`Lines`].
    fn tell(&self);
}

impl Lines {
    /// Starts the thread, which writes lines of that format to `sink` until the process ends.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn start(format: LogFormat, sink: impl Sink, summary: impl Summary) -> io::Result<Self> {
        let (to, items) = bounded(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let lines = Lines { to, lost: lost.clone(), format };
        thread::Builder::new().name("tollgate-log".to_owned()).spawn(move || {
            run(Writer { sink, format, lost: &lost, told: 0, reason: None }, &items, &summary);
        })?;
        Ok(lines)
    }

    /// Has `line`, which is of the log's format, written some time.
    pub fn say(&self, line: &[u8]) {
        let line = if line.len() > LINE_BYTES_MAX { form::cut(self.format, line) } else { line.to_vec() };
        if self.to.try_send(Item::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has the last words of the program written: for people as they are.
    pub fn say_last(&self, words: &str) {
        match self.format {
            LogFormat::Human => self.say(format!("{words}\n").as_bytes()),
            format => self.say(&form::words(format, Level::ERROR, words)),
        }
    }

    /// Has the writer look for withheld lines in a while. It looks anyway while it has lines to write.
    pub fn note_withheld(&self) {
        let _ = self.to.try_send(Item::Withheld);
    }

    /// Lines that were not written, since the start.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until everything is written that was said before, but no longer than `patience`. Returns whether it is.
    pub fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let (done, flushed) = bounded(1);
        self.to.send_deadline(Item::Flush(done), deadline).is_ok() && flushed.recv_deadline(deadline).is_ok()
    }
}

fn run(mut writer: Writer<'_, impl Sink>, items: &Receiver<Item>, summary: &impl Summary) {
    let mut summary_due: Option<Instant> = None;
    let mut told_lost = Instant::now();
    let mut flushes: Vec<Sender<()>> = Vec::new();
    loop {
        let item = match summary_due {
            Some(due) => items.recv_deadline(due),
            None => items.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match item {
            Ok(Item::Line(line)) => writer.write(&line),
            Ok(Item::Withheld) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Item::Flush(done)) => {
                // What was withheld until now belongs to what was said.
                summary_due = summary.is_due().then(Instant::now);
                flushes.push(done);
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if summary_due.is_some_and(|due| due <= Instant::now()) {
            summary_due = None;
            summary.tell();
        } else if summary_due.is_none() && summary.is_due() {
            summary_due = Some(Instant::now() + SUMMARY_INTERVAL);
        }
        if items.is_empty() || told_lost.elapsed() >= SUMMARY_INTERVAL {
            told_lost = Instant::now();
            writer.tell_lost();
        }
        if items.is_empty() {
            // Whoever waited may have given up.
            for done in flushes.drain(..) {
                let _ = done.send(());
            }
        }
    }
}

/// Where lines go, and what is owed there.
struct Writer<'a, S> {
    sink: S,
    format: LogFormat,
    lost: &'a AtomicU64,
    /// Those of them that were told of.
    told: u64,
    /// Why the last line that was lost here could not be written.
    reason: Option<io::Error>,
}

impl<S: Sink> Writer<'_, S> {
    fn write(&mut self, line: &[u8]) {
        if let Err(error) = self.sink.write(line) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.reason = Some(error);
        }
    }

    /// Tells how many lines were lost, unless it cannot be told now.
    fn tell_lost(&mut self) {
        let lost = self.lost.load(Ordering::Relaxed) - self.told;
        if lost == 0 {
            return;
        }
        let reason = self.reason.as_ref().map_or_else(|| "it was read too slowly".to_owned(), ToString::to_string);
        let words = format!("{lost} log lines were lost: {} did not take them ({reason})", S::NAME);
        if self.sink.write(&form::words(self.format, Level::WARN, &words)).is_ok() {
            self.told += lost;
            self.reason = None;
        }
    }
}

/// Hands a formatted event on.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.say(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, PipeReader, pipe};

    use super::super::sink::Stream;
    use super::*;

    /// Longer than any of this takes.
    const LONG: Duration = Duration::from_secs(60);

    struct Nothing;

    impl Summary for Nothing {
        fn is_due(&self) -> bool {
            false
        }

        fn tell(&self) {}
    }

    fn writer() -> (Lines, BufReader<PipeReader>) {
        let (reader, writer) = pipe().unwrap();
        (Lines::start(LogFormat::Human, Stream::new(writer), Nothing).unwrap(), BufReader::new(reader))
    }

    fn read_line(reader: &mut BufReader<PipeReader>) -> String {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line
    }

    #[test]
    fn lines_that_a_reader_has_no_room_for_are_kept_up_to_a_bound_and_the_others_are_counted() {
        // A pipe takes 16 pages, and the writer has one line in its hand.
        const PAGES: usize = 32;
        const MORE: usize = 100;
        let (lines, mut reader) = writer();
        let page = [&[b'x'; 4095][..], b"\n"].concat();
        (0..PAGES).for_each(|_| lines.say(&page));
        (0..LINES_MAX + MORE).for_each(|_| lines.say(b"a line\n"));
        let said = PAGES + LINES_MAX + MORE;
        let (mut written, mut lost) = (0, 0);
        while written + lost < said {
            let line = read_line(&mut reader);
            match line.split_once(" WARN ") {
                Some((_, told)) => lost += told.split(' ').next().unwrap().parse::<usize>().unwrap(),
                None => written += 1,
            }
        }
        assert_eq!(written + lost, said);
        assert!(lost >= MORE, "{lost} of {said} lines lost");
        assert!(lines.flush(LONG));
    }
}
