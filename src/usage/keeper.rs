//! The thread that has the store: it takes differences, writes them every [`FLUSH`], and answers questions. What cannot be written waits in memory.
//!
//! Nobody waits for it but who asks it something, and the end of the process for a bounded time.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded, unbounded};
use tracing::{info, warn};

use super::book::{Book, Day};
use super::query::{Page, Query};
use super::store::{Store, StoreError, set_aside};
use crate::io::Wake;

/// Longest time until what has come is written, while the store can be.
pub const FLUSH: Duration = Duration::from_secs(2);
/// How soon a store is tried again that cannot be opened or written.
const RETRY: Duration = Duration::from_secs(5);
/// How soon one is that another process has.
const RETRY_IN_USE: Duration = Duration::from_millis(200);
/// For how long another process may have it without a word: in an upgrade it changes hands.
const IN_USE: Duration = Duration::from_secs(5);
/// What waits for the thread.
const ASKS_MAX: usize = 64;
/// How long the end of the process waits for the last rows to be written.
const LAST_ROWS: Duration = Duration::from_secs(2);

/// What the thread is asked.
#[derive(Debug)]
pub enum Ask {
    /// To add these.
    Post(Book),
    /// For rows.
    Rows(Query),
    /// To forget a user.
    Forget(String),
    /// For what each user has of this day and of its month, with all that was posted.
    Before(Day),
    /// To open the store, and write.
    Open,
    /// To write what it has and close the store: another process is to write.
    Close,
}

/// What the thread tells.
#[derive(Debug)]
pub enum Told {
    /// The rows that were asked for.
    Rows(Page),
    /// A user is forgotten, if there was one of the name; or why not.
    Forgotten(Result<bool, String>),
    /// The store was opened.
    Opened,
    /// Why it cannot be written.
    Unusable(String),
    /// What was asked for of a day and its month: of each user who has something of it, in bytes of both ways.
    Before(Vec<(String, [u64; 2])>),
    /// What could not be written before the store was closed for another process.
    Unwritten(Book),
}

/// The control plane's end of the thread.
#[derive(Debug)]
pub struct Bookkeeper {
    /// `None` at the end.
    asks: Option<Sender<Ask>>,
    told: Receiver<Told>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
    /// What the thread has had no room for.
    unsent: Book,
}

impl Bookkeeper {
    /// Starts the thread, which opens the store at `path` when it is asked to. `wake` is notified when it tells something.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn start(path: PathBuf, wake: Arc<Wake>) -> io::Result<Self> {
        let (asks, asked) = queue();
        // One for each question, and one for each time that the store changes its state.
        let (teller, told) = unbounded();
        let (running, ended) = bounded(0);
        thread::Builder::new().name("tollgate-usage".to_owned()).spawn(move || {
            Thread { path, wake, told: teller, unwritten: Book::default(), place: Place::Elsewhere }.run(&asked);
            drop(running);
        })?;
        Ok(Bookkeeper { asks: Some(asks), told, ended, unsent: Book::default() })
    }

    /// Hands `book` on, now or with the next one.
    pub fn post(&mut self, book: Book) {
        self.unsent.merge(book);
        if self.unsent.is_empty() {
            return;
        }
        let book = std::mem::take(&mut self.unsent);
        if let Some(Err(TrySendError::Full(Ask::Post(book)) | TrySendError::Disconnected(Ask::Post(book)))) =
            self.asks.as_ref().map(|asks| asks.try_send(Ask::Post(book)))
        {
            self.unsent = book;
        }
    }

    /// What the thread has had no room for.
    pub fn take_unsent(&mut self) -> Book {
        std::mem::take(&mut self.unsent)
    }

    /// Whether the thread has, or will have, all that was posted.
    pub fn has_sent_all(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Asks something. Returns whether it will be answered: not where too much waits.
    pub fn ask(&self, ask: Ask) -> bool {
        self.asks.as_ref().is_some_and(|asks| asks.try_send(ask).is_ok())
    }

    /// What the thread has told.
    pub fn poll(&self) -> Option<Told> {
        self.told.try_recv().ok()
    }

    /// Waits until all is written, but not for long.
    pub fn finish(mut self) {
        self.post(Book::default());
        self.asks = None;
        if self.ended.recv_timeout(LAST_ROWS) == Err(RecvTimeoutError::Timeout) {
            warn!("the usage of the last seconds may not be written: the disk takes too long");
        }
    }
}

fn queue() -> (Sender<Ask>, Receiver<Ask>) {
    bounded(ASKS_MAX)
}

/// Where the store is.
#[derive(Debug)]
enum Place {
    /// With another process.
    Elsewhere,
    /// It is to be opened.
    Wanted { since: Instant, try_at: Instant, is_told: bool },
    /// Open; what has come is written at this moment.
    Open(Store, Option<Instant>),
}

impl Place {
    fn wanted(now: Instant) -> Self {
        Place::Wanted { since: now, try_at: now, is_told: false }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Place::Elsewhere => None,
            Place::Wanted { try_at, .. } => Some(*try_at),
            Place::Open(_, flush_at) => *flush_at,
        }
    }
}

struct Thread {
    path: PathBuf,
    wake: Arc<Wake>,
    told: Sender<Told>,
    unwritten: Book,
    place: Place,
}

impl Thread {
    fn run(&mut self, asked: &Receiver<Ask>) {
        loop {
            let ask = match self.place.poll_timeout() {
                Some(at) => asked.recv_deadline(at),
                None => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let now = Instant::now();
            match ask {
                Ok(ask) => self.take(ask, now),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.place.poll_timeout().is_some_and(|at| at <= now) {
                self.advance(now);
            }
        }
        if !self.unwritten.is_empty() {
            self.advance(Instant::now());
            self.advance(Instant::now());
        }
    }

    fn take(&mut self, ask: Ask, now: Instant) {
        match ask {
            Ask::Post(book) => {
                self.unwritten.merge(book);
                if let Place::Open(_, flush_at) = &mut self.place {
                    flush_at.get_or_insert(now + FLUSH);
                }
            }
            Ask::Rows(query) => {
                let page = self.rows(&query, now);
                self.tell(Told::Rows(page));
            }
            Ask::Forget(user) => {
                let forgotten = self.forget(&user, now);
                self.tell(Told::Forgotten(forgotten));
            }
            Ask::Before(day) => self.tell_before(day, now),
            Ask::Open => self.place = Place::wanted(now),
            Ask::Close => {
                self.flush(now);
                self.place = Place::Elsewhere;
                if !self.unwritten.is_empty() {
                    let book = std::mem::take(&mut self.unwritten);
                    self.tell(Told::Unwritten(book));
                }
            }
        }
    }

    fn tell(&self, told: Told) {
        // Whoever has asked may be gone.
        let _ = self.told.send(told);
        self.wake.notify();
    }

    /// Opens the store, or writes.
    fn advance(&mut self, now: Instant) {
        match &self.place {
            Place::Elsewhere => {}
            Place::Wanted { since, is_told, .. } => self.open(*since, *is_told, now),
            Place::Open(..) => self.flush(now),
        }
    }

    fn open(&mut self, since: Instant, is_told: bool, now: Instant) {
        let error = match Store::open(&self.path) {
            Ok(store) => {
                if is_told {
                    info!("usage is written to {} again", self.path.display());
                }
                self.place = Place::Open(store, Some(now));
                return self.tell(Told::Opened);
            }
            Err(error) => error,
        };
        let (text, wait) = match error {
            StoreError::InUse => (error.to_string(), RETRY_IN_USE),
            StoreError::NotOurs(_) => match set_aside(&self.path) {
                Ok(aside) => {
                    let (path, aside) = (self.path.display(), aside.display());
                    warn!("usage begins anew: {path} was of no use, for {error}; it is {aside} from now on");
                    self.place = Place::Wanted { since, try_at: now, is_told };
                    return;
                }
                Err(reason) => (format!("{error}, and cannot be set aside ({reason})"), RETRY),
            },
            StoreError::System(text) => (text, RETRY),
        };
        let is_due = wait == RETRY || since + IN_USE <= now;
        if is_due && !is_told {
            warn!(
                "usage is counted in memory alone, for {} cannot be used: {text}; it is tried again",
                self.path.display()
            );
            self.tell(Told::Unusable(text));
        }
        self.place = Place::Wanted { since, try_at: now + wait, is_told: is_told || is_due };
    }

    /// Writes what has come.
    fn flush(&mut self, now: Instant) {
        let Place::Open(store, flush_at) = &mut self.place else { return };
        *flush_at = None;
        if self.unwritten.is_empty() {
            return;
        }
        match store.add(&self.unwritten) {
            Ok(()) => self.unwritten.clear(),
            Err(error) => self.lose(&error, now),
        }
    }

    /// The store is of no use any more. What it has not taken stays in memory.
    fn lose(&mut self, error: &StoreError, now: Instant) {
        let text = error.to_string();
        warn!(
            "usage is counted in memory alone, for {} cannot be used: {text}; it is tried again",
            self.path.display()
        );
        self.place = Place::Wanted { since: now, try_at: now + RETRY, is_told: true };
        self.tell(Told::Unusable(text));
    }

    fn rows(&mut self, query: &Query, now: Instant) -> Page {
        self.flush(now);
        if let Place::Open(store, _) = &self.place {
            match store.page(query) {
                Ok(page) => return page,
                Err(error) => self.lose(&error, now),
            }
        }
        let rows = self.unwritten.rows();
        let Ok(page) =
            query.sum(rows.map(|(user, day, entry)| Ok::<_, std::convert::Infallible>((user.to_owned(), day, *entry))));
        let since = "the store cannot be read: these are only what could not be written yet".to_owned();
        Page { trouble: Some(since), ..page }
    }

    fn tell_before(&mut self, day: Day, now: Instant) {
        self.flush(now);
        // Where it is open no more, that is told.
        let Place::Open(store, _) = &self.place else { return };
        match store.used(day) {
            Ok(used) => self.tell(Told::Before(used)),
            Err(error) => self.lose(&error, now),
        }
    }

    fn forget(&mut self, user: &str, now: Instant) -> Result<bool, String> {
        let was_there = self.unwritten.forget(user);
        let Place::Open(store, _) = &self.place else { return Err("the store cannot be written".to_owned()) };
        store.forget(user).map(|is_known| is_known || was_there).map_err(|error| {
            self.lose(&error, now);
            error.to_string()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tollgate_shards::Usage;

    use super::*;
    use crate::usage::{Amount, Entry};

    struct Kept {
        keeper: Bookkeeper,
        wake: Arc<Wake>,
    }

    impl Kept {
        fn start(path: &Path) -> Self {
            let wake = Arc::new(Wake::new().unwrap());
            let keeper = Bookkeeper::start(path.to_owned(), wake.clone()).unwrap();
            assert!(keeper.ask(Ask::Open));
            Kept { keeper, wake }
        }

        fn post(&mut self, user: &str, bytes: u64) {
            let usage = Usage { sent_bytes: bytes, ..Usage::default() };
            let mut book = Book::default();
            book.add(user, Entry::at(1_795_828_533, Amount { usage, ..Amount::default() }));
            self.keeper.post(book);
        }

        fn next(&self) -> Told {
            self.keeper.told.recv_timeout(Duration::from_secs(20)).unwrap()
        }

        /// The bytes of each user, and whether that is all.
        fn rows(&self) -> (Vec<(String, u64)>, bool) {
            assert!(self.keeper.ask(Ask::Rows(Query::default())));
            let Told::Rows(page) = self.next() else { panic!("something else") };
            assert!(self.wake.drain());
            let row = |row: crate::usage::Row| (row.user, row.entry.amount.usage.sent_bytes);
            (page.rows.into_iter().map(row).collect(), page.trouble.is_none())
        }
    }

    fn row(user: &str, bytes: u64) -> Vec<(String, u64)> {
        vec![(user.to_owned(), bytes)]
    }

    #[test]
    fn what_is_posted_is_told_at_once_and_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage");
        let mut kept = Kept::start(&path);
        assert!(matches!(kept.next(), Told::Opened));
        [1, 2].into_iter().for_each(|bytes| kept.post("alice", bytes));
        assert_eq!(kept.rows(), (row("alice", 3), true));
        kept.post("alice", 4);
        kept.keeper.finish();
        let kept = Kept::start(&path);
        assert!(matches!(kept.next(), Told::Opened));
        assert_eq!(kept.rows(), (row("alice", 7), true));
        assert!(kept.keeper.ask(Ask::Forget("alice".to_owned())));
        assert!(matches!(kept.next(), Told::Forgotten(Ok(true))));
        assert_eq!(kept.rows(), (Vec::new(), true));
    }

    #[test]
    fn what_cannot_be_written_waits_in_memory_until_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let parent = folder.path().join("parent");
        fs::write(&parent, "a file in the place of the folder").unwrap();
        let mut kept = Kept::start(&parent.join("usage"));
        assert!(matches!(kept.next(), Told::Unusable(_)));
        kept.post("alice", 5);
        assert_eq!(kept.rows(), (row("alice", 5), false));
        fs::remove_file(&parent).unwrap();
        assert!(matches!(kept.next(), Told::Opened));
        assert_eq!(kept.rows(), (row("alice", 5), true));
    }

    #[test]
    fn a_store_goes_from_one_to_the_other_and_nothing_is_counted_twice_or_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage");
        let mut first = Kept::start(&path);
        assert!(matches!(first.next(), Told::Opened));
        first.post("alice", 1);
        let mut second = Kept::start(&path);
        second.post("alice", 2);
        first.keeper.ask(Ask::Close);
        assert!(matches!(second.next(), Told::Opened));
        assert_eq!(second.rows(), (row("alice", 3), true));
        first.keeper.ask(Ask::Open);
        second.post("alice", 4);
        second.keeper.finish();
        assert!(matches!(first.next(), Told::Opened));
        assert_eq!(first.rows(), (row("alice", 7), true));
    }

    #[test]
    fn what_a_busy_thread_has_no_room_for_is_added_up_and_handed_on_later() {
        let ((asks, asked), (_, told), (_running, ended)) = (queue(), unbounded(), bounded(0));
        let wake = Arc::new(Wake::new().unwrap());
        let keeper = Bookkeeper { asks: Some(asks), told, ended, unsent: Book::default() };
        let mut kept = Kept { keeper, wake };
        (0..ASKS_MAX + 2).for_each(|_| kept.post("alice", 1));
        assert_eq!((asked.len(), kept.keeper.unsent.len()), (ASKS_MAX, 1));
        assert!(!kept.keeper.ask(Ask::Close));
        drop(asked.try_recv());
        kept.post("alice", 1);
        let bytes = |ask| match ask {
            Ask::Post(book) => book.rows().map(|(_, _, entry)| entry.amount.usage.sent_bytes).sum::<u64>(),
            _ => 0,
        };
        assert_eq!(asked.try_iter().map(bytes).sum::<u64>(), ASKS_MAX as u64 + 2);
        kept.keeper.asks = None;
    }

    #[test]
    fn a_store_that_is_of_no_use_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage");
        fs::write(&path, vec![0x5a; 100_000]).unwrap();
        let mut kept = Kept::start(&path);
        assert!(matches!(kept.next(), Told::Opened));
        kept.post("alice", 5);
        assert_eq!(kept.rows(), (row("alice", 5), true));
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let aside: Vec<String> = names.filter(|name| name.starts_with("usage.2")).collect();
        assert_eq!(fs::read(folder.path().join(&aside[0])).unwrap(), [0x5a; 100_000]);
    }
}
