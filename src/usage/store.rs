//! The file that holds users' rows: one table, by user and day.
//!
//! Days that are [`DAYS_MAX`] past are added to one row of their user, that of day 0: what somebody has carried in all stays exact.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::book::{Book, Day, Entry, Figures};
use super::query::{Page, Period, Query};
use crate::whole_file;

/// Days of which each user has a row of its own.
pub const DAYS_MAX: u32 = 400;

/// Of what is read or about to be written, in memory.
const CACHE_BYTES: usize = 8 << 20;

/// The version of what the tables hold.
const FORMAT: u64 = 1;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT_KEY: &str = "format";
const DAYS: TableDefinition<'_, (&str, u32), Figures> = TableDefinition::new("days");

/// Where rows go that are too old to be kept apart.
const BEFORE: Day = Day(0);

/// Why the store is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("another process has it open: give each gateway a file of its own")]
    InUse,
    /// What is in it is not ours to change: it is newer, damaged, or something else.
    #[error("it {0}")]
    NotOurs(String),
    /// The system refuses.
    #[error("{0}")]
    System(String),
}

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => StoreError::InUse,
            redb::Error::Io(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
                StoreError::NotOurs(format!("cannot be read ({error})"))
            }
            error @ (redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. }) => StoreError::NotOurs(format!("cannot be read ({error})")),
            error => StoreError::System(error.to_string()),
        }
    }
}

/// The open store.
#[derive(Debug)]
pub struct Store(Database);

impl Store {
    /// Opens the file at `path`, or makes it, readable by its owner only.
    ///
    /// # Errors
    ///
    /// If it is of no use.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (database, format) = guarded(|| {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
            let database = builder.create_with_backend(FileBackend::new(open(path)?)?)?;
            let transaction = database.begin_write()?;
            let format = {
                let mut meta = transaction.open_table(META)?;
                let found = meta.get(FORMAT_KEY)?.map(|found| found.value());
                if found.is_none() {
                    meta.insert(FORMAT_KEY, FORMAT)?;
                }
                found.unwrap_or(FORMAT)
            };
            if format == FORMAT {
                transaction.open_table(DAYS)?;
                transaction.commit()?;
            }
            Ok((database, format))
        })?;
        match format {
            FORMAT => Ok(Store(database)),
            _ => Err(StoreError::NotOurs(format!("has format {format}, this program writes {FORMAT}"))),
        }
    }

    /// Adds all of `book`: all of it is on the disk when this returns, or nothing.
    ///
    /// # Errors
    ///
    /// The store is to be opened anew then.
    pub fn add(&self, book: &Book) -> Result<(), StoreError> {
        guarded(|| {
            let transaction = self.0.begin_write()?;
            {
                let mut days = transaction.open_table(DAYS)?;
                for (user, day, entry) in book.rows() {
                    put(&mut days, user, day, *entry)?;
                    let kept = day.earlier(DAYS_MAX);
                    while let Some((old, row)) = first_before(&days, user, kept)? {
                        days.remove((user, old.0))?;
                        put(&mut days, user, BEFORE, row)?;
                    }
                }
            }
            Ok(transaction.commit()?)
        })
    }

    /// Rows.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub fn page(&self, query: &Query) -> Result<Page, StoreError> {
        guarded(|| {
            let days = self.0.begin_read()?.open_table(DAYS)?;
            let first = query.after.as_ref().map(|(user, _)| user).or(query.user.as_ref());
            let rows = days.range((first.map_or("", |first| first), 0)..)?;
            let rows = rows.map(|row| -> Result<_, redb::Error> {
                let (key, figures) = row?;
                let (user, day) = key.value();
                Ok((user.to_owned(), Day(day), Entry::of_figures(figures.value())))
            });
            // They come by user: behind the one that is wanted there is nothing.
            let mut rows = rows.take_while(|row| match (row, &query.user) {
                (Ok((user, ..)), Some(wanted)) => user <= wanted,
                _ => true,
            });
            let is_kept = |day: Day| query.period == Period::Total || day != BEFORE;
            query.sum(rows.by_ref().filter(|row| row.as_ref().map_or(true, |(_, day, _)| is_kept(*day))))
        })
    }

    /// What each user who has anything of the month of `day` has of the day and of the month, in bytes of both ways.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn used(&self, day: Day) -> Result<Vec<(String, [u64; 2])>, StoreError> {
        guarded(|| {
            let days = self.0.begin_read()?.open_table(DAYS)?;
            let mut all: Vec<(String, [u64; 2])> = Vec::new();
            for row in days.iter()? {
                let (key, figures) = row?;
                let (user, of) = key.value();
                if Day(of) < day.month() || Day(of) > day {
                    continue;
                }
                let bytes = Entry::of_figures(figures.value()).amount.usage.bytes();
                let more = [if Day(of) == day { bytes } else { 0 }, bytes];
                match all.last_mut().filter(|(name, _)| name == user) {
                    Some((_, sum)) => *sum = [sum[0] + more[0], sum[1] + more[1]],
                    None => all.push((user.to_owned(), more)),
                }
            }
            Ok(all)
        })
    }

    /// Removes all rows of `user`. Returns whether there were any.
    ///
    /// # Errors
    ///
    /// The store is to be opened anew then.
    pub fn forget(&self, user: &str) -> Result<bool, StoreError> {
        guarded(|| {
            let transaction = self.0.begin_write()?;
            let mut is_known = false;
            transaction.open_table(DAYS)?.retain_in((user, 0)..=(user, u32::MAX), |_, _| {
                is_known = true;
                false
            })?;
            transaction.commit()?;
            Ok(is_known)
        })
    }
}

fn put(days: &mut Table<'_, (&str, u32), Figures>, user: &str, day: Day, more: Entry) -> Result<(), redb::Error> {
    let mut row = more;
    if let Some(before) = days.get((user, day.0))? {
        row += Entry::of_figures(before.value());
    }
    days.insert((user, day.0), row.figures())?;
    Ok(())
}

fn first_before(
    days: &Table<'_, (&str, u32), Figures>,
    user: &str,
    kept: Day,
) -> Result<Option<(Day, Entry)>, redb::Error> {
    let Some(row) = days.range((user, BEFORE.0 + 1)..(user, kept.0.max(BEFORE.0 + 1)))?.next() else { return Ok(None) };
    let (key, figures) = row?;
    Ok(Some((Day(key.value().1), Entry::of_figures(figures.value()))))
}

fn open(path: &Path) -> io::Result<File> {
    fs::create_dir_all(whole_file::folder(path))?;
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// What `act` returns. Where a file is damaged in a way that the library does not expect, it panics: nothing of the store is used again then.
fn guarded<T>(act: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(|| Ok(act()?)))
        .unwrap_or_else(|_| Err(StoreError::NotOurs("is damaged in a way that nobody has foreseen".to_owned())))
}

/// Gives the file at `path` another name, which has the time in it.
///
/// # Errors
///
/// When the system refuses.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "-");
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{time}"));
    let aside = PathBuf::from(name);
    fs::rename(path, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tollgate_shards::Usage;

    use super::*;
    use crate::usage::Amount;

    fn book(rows: &[(&str, u32, u64)]) -> Book {
        let mut book = Book::default();
        for (user, day, bytes) in rows {
            let usage = Usage { sent_bytes: *bytes, ..Usage::default() };
            book.add(user, Entry::at(Day(*day).begin_unix_s(), Amount { usage, ..Amount::default() }));
        }
        book
    }

    fn rows(store: &Store, query: &Query) -> Vec<(String, u32, u64)> {
        let rows = store.page(query).unwrap().rows.into_iter();
        rows.map(|row| (row.user, row.begin.0, row.entry.amount.usage.sent_bytes)).collect()
    }

    fn row(user: &str, begin: u32, bytes: u64) -> (String, u32, u64) {
        (user.to_owned(), begin, bytes)
    }

    #[test]
    fn what_was_added_is_there_when_the_file_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/usage");
        for _ in 0..2 {
            let store = Store::open(&path).unwrap();
            store.add(&book(&[("alice", 20_000, 1), ("alice", 20_001, 2), ("bob", 20_001, 4)])).unwrap();
            assert!(matches!(Store::open(&path), Err(StoreError::InUse)));
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let store = Store::open(&path).unwrap();
        let days = Query { period: Period::Day, user: Some("alice".into()), ..Query::default() };
        assert_eq!(rows(&store, &days), [row("alice", 20_000, 2), row("alice", 20_001, 4)]);
        assert_eq!(rows(&store, &Query::default()), [row("alice", 0, 6), row("bob", 0, 8)]);
        let used = |day| store.used(Day(day)).unwrap();
        assert_eq!(used(20_001), [("alice".to_owned(), [4, 6]), ("bob".to_owned(), [8, 8])]);
        assert_eq!(
            (used(20_002), used(19_999)),
            (vec![("alice".to_owned(), [0, 6]), ("bob".to_owned(), [0, 8])], vec![])
        );
        assert_eq!([store.forget("alice").unwrap(), store.forget("alice").unwrap()], [true, false]);
        assert_eq!(rows(&store, &Query::default()), [row("bob", 0, 8)]);
    }

    #[test]
    fn days_long_past_have_one_row_and_are_in_the_sum() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("usage")).unwrap();
        for day in 0..DAYS_MAX + 30 {
            store.add(&book(&[("alice", 20_000 + day, 1)])).unwrap();
        }
        let days = Query { period: Period::Day, ..Query::default() };
        let kept = rows(&store, &days);
        assert_eq!((kept.len() as u32, &kept[0]), (DAYS_MAX + 1, &row("alice", 20_029, 1)));
        assert_eq!(rows(&store, &Query::default()), [row("alice", 0, u64::from(DAYS_MAX) + 30)]);
    }

    #[test]
    fn what_is_newer_or_damaged_or_something_else_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage");
        let newer = Database::create(&path).unwrap();
        let transaction = newer.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert(FORMAT_KEY, FORMAT + 1).unwrap();
        transaction.commit().unwrap();
        drop(newer);
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(&error, StoreError::NotOurs(why) if why.contains("format 2")), "{error}");
        fs::write(&path, b"a letter to somebody else".repeat(1000)).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::NotOurs(_))));
        let aside = set_aside(&path).unwrap();
        assert!(aside.exists() && !path.exists());
        assert!(Store::open(&path).is_ok());
        // A folder in the place of the file.
        assert!(matches!(Store::open(folder.path()), Err(StoreError::System(_))));
    }

    #[test]
    fn a_damaged_file_never_ends_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage");
        let store = Store::open(&path).unwrap();
        (0..50).for_each(|day| store.add(&book(&[("alice", 20_000 + day, 1), ("bob", 20_000 + day, 1)])).unwrap());
        drop(store);
        let whole = fs::read(&path).unwrap();
        let mut not_ours = 0;
        for place in (0..whole.len()).step_by(whole.len() / 200) {
            let mut damaged = whole.clone();
            damaged[place..(place + 64).min(whole.len())].fill(0xa5);
            fs::write(&path, &damaged).unwrap();
            let used = Store::open(&path).and_then(|store| {
                store.page(&Query::default())?;
                store.add(&book(&[("alice", 20_060, 1)]))
            });
            not_ours += usize::from(matches!(used, Err(StoreError::NotOurs(_))));
        }
        assert!(not_ours > 0, "no damage was seen");
    }
}
