//! Where lines go, and those that wait for it: a file or a socket that cannot be used costs a line in the log, and later lines are counted.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tollgate_config::Sync;
use tracing::{info, warn};

use super::journal::Journal;
use super::local_socket::LocalSocket;
use super::recorder::Moment;

/// Lines that wait, in bytes; further ones are lost, until those are written.
pub(super) const WAITING_BYTES_MAX: usize = 1 << 20;
/// How soon a place is tried again that cannot be used.
const RETRY: Duration = Duration::from_secs(1);
/// How soon one is that is only busy.
const RETRY_BUSY: Duration = Duration::from_millis(20);
/// For how long it may be busy without a word.
const BUSY: Duration = Duration::from_secs(5);
/// See [`Sync::Second`].
const SYNC: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Place {
    File(Journal, Sync),
    Socket(LocalSocket),
}

/// Where lines of one kind go.
#[derive(Debug)]
pub(super) struct Paper {
    /// What the lines are, for the log.
    what: &'static str,
    name: String,
    place: Place,
    waiting: VecDeque<String>,
    waiting_bytes: usize,
    lost: u64,
    hindrance: Option<Hindrance>,
    sync_at: Option<Instant>,
}

/// The place cannot be used.
#[derive(Debug)]
struct Hindrance {
    since: Instant,
    try_at: Instant,
    is_told: bool,
}

/// The inside of an object: who writes when, and that of `object`.
pub(super) fn line(time: SystemTime, object: &str) -> String {
    let inside = object.strip_prefix('{').and_then(|object| object.strip_suffix('}')).unwrap_or_default();
    let time = humantime::format_rfc3339_millis(time);
    format!("\"time\":\"{time}\",\"process\":{},{inside}", std::process::id())
}

/// The same of something that has to do with lines alone.
fn of_lines(event: &str) -> String {
    line(SystemTime::now(), &format!("{{\"event\":\"{event}\"}}"))
}

impl Paper {
    pub fn file(what: &'static str, path: &Path, sync: Sync) -> Self {
        Paper::new(what, path, Place::File(Journal::new(path, of_lines), sync))
    }

    pub fn socket(what: &'static str, path: &Path) -> Self {
        Paper::new(what, path, Place::Socket(LocalSocket::new(path)))
    }

    fn new(what: &'static str, path: &Path, place: Place) -> Self {
        Paper {
            what,
            name: path.display().to_string(),
            place,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            lost: 0,
            hindrance: None,
            sync_at: None,
        }
    }

    /// Takes a line, `object` in JSON. Nothing is written yet.
    pub fn push(&mut self, time: SystemTime, object: &str) {
        let line = line(time, object);
        if self.lost > 0 || self.waiting_bytes + line.len() > WAITING_BYTES_MAX {
            self.lost += 1;
        } else {
            self.waiting_bytes += line.len();
            self.waiting.push_back(line);
        }
    }

    /// So many reports were lost on their way here.
    pub fn lose(&mut self, reports: u64) {
        self.lost += reports;
    }

    /// Opens the place anew, at once. A file that was moved away is left by the next line, wherever that comes from.
    pub fn reopen(&mut self, now: Moment) {
        match &mut self.place {
            Place::File(..) => self.push(now.time, "{\"event\":\"reopened\"}"),
            Place::Socket(socket) => socket.reopen(),
        }
        self.hindrance.iter_mut().for_each(|hindrance| hindrance.try_at = now.at);
    }

    /// When [`Paper::write`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let retry = self.hindrance.as_ref().map(|hindrance| hindrance.try_at).filter(|_| self.owes());
        [retry, self.sync_at].into_iter().flatten().min()
    }

    fn owes(&self) -> bool {
        !self.waiting.is_empty() || self.lost > 0
    }

    /// Writes what waits, if it is time.
    pub fn write(&mut self, now: Instant) {
        if self.owes() && self.hindrance.as_ref().is_none_or(|hindrance| hindrance.try_at <= now) {
            let written = self.write_all();
            self.waiting_bytes = self.waiting.iter().map(String::len).sum();
            match written {
                Ok(()) => self.recover(),
                Err(error) => self.fail(&error, now),
            }
            if let Place::File(_, sync) = self.place {
                self.sync_at = match sync {
                    Sync::Never => None,
                    Sync::Second => Some(self.sync_at.unwrap_or(now + SYNC)),
                    Sync::Event => Some(now),
                };
            }
        }
        if self.sync_at.take_if(|at| *at <= now).is_some() {
            self.sync(now);
        }
    }

    fn write_all(&mut self) -> io::Result<()> {
        self.write_waiting()?;
        if self.lost > 0 {
            self.waiting.push_back(line(SystemTime::now(), &format!("{{\"event\":\"lost\",\"count\":{}}}", self.lost)));
            self.lost = 0;
            self.write_waiting()?;
        }
        Ok(())
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        match &mut self.place {
            Place::File(journal, _) => journal.write(&mut self.waiting),
            Place::Socket(socket) => socket.write(&mut self.waiting),
        }
    }

    /// Brings to the disk what was written.
    pub fn sync(&mut self, now: Instant) {
        if let Place::File(journal, Sync::Second | Sync::Event) = &self.place
            && let Err(error) = journal.sync()
        {
            self.fail(&error, now);
        }
    }

    fn recover(&mut self) {
        if self.hindrance.take().is_some_and(|hindrance| hindrance.is_told) {
            info!("{} are written to {} again", self.what, self.name);
        }
    }

    fn fail(&mut self, error: &io::Error, now: Instant) {
        let is_busy = error.kind() == io::ErrorKind::WouldBlock;
        let try_at = now + if is_busy { RETRY_BUSY } else { RETRY };
        let hindrance = self.hindrance.get_or_insert(Hindrance { since: now, try_at, is_told: false });
        hindrance.try_at = try_at;
        let is_due = !is_busy || hindrance.since + BUSY <= now;
        if is_due && !std::mem::replace(&mut hindrance.is_told, true) {
            let (what, name) = (self.what, &self.name);
            warn!(
                "{what} wait in memory, and further ones are lost and counted, for {name} cannot be used: {error}; it is tried again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use super::*;

    #[test]
    fn lines_wait_for_a_place_up_to_a_bound_and_how_many_more_there_were_is_told_behind_them() {
        const LINE_BYTES: usize = 1000;
        let folder = tempfile::tempdir().unwrap();
        let parent = folder.path().join("parent");
        fs::write(&parent, "a file in the place of the folder").unwrap();
        let path = parent.join("audit");
        let mut paper = Paper::file("lines", &path, Sync::Event);
        let object = format!("{{\"event\":\"{}\"}}", "x".repeat(LINE_BYTES));
        let mut now = Instant::now();
        let pushed = 2 * WAITING_BYTES_MAX / LINE_BYTES;
        for _ in 0..pushed {
            paper.push(SystemTime::now(), &object);
            paper.write(now);
        }
        assert!(paper.waiting_bytes <= WAITING_BYTES_MAX && paper.poll_timeout() == Some(now + RETRY));
        fs::remove_file(&parent).unwrap();
        paper.write(now);
        assert!(!path.exists(), "it is not time yet");
        now += RETRY;
        paper.write(now);
        assert_eq!((paper.waiting_bytes, paper.poll_timeout()), (0, None));
        paper.push(SystemTime::now(), &object);
        paper.write(now);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let lost = lines.iter().position(|line| line["event"] == "lost").unwrap();
        assert_eq!(lost, lines.len() - 2, "behind those that waited, before those that came later");
        assert_eq!(lost + lines[lost]["count"].as_u64().unwrap() as usize, pushed);
        assert!((1..).zip(&lines).all(|(number, line)| line["seq"] == number));
        assert_eq!(lines[0]["process"], std::process::id());
    }
}
