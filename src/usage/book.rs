//! Amounts by user and day (UTC).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tollgate_shards::Usage;

/// Rows that wait to be written: what does not fit is added to the user's row of another day, or counted as lost.
pub const ROWS_MAX: usize = 1 << 18;

const DAY_S: u64 = 86_400;

/// What a user has carried in some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// UDP payload and datagrams.
    pub usage: Usage,
    /// Connections that have begun.
    pub connections: u64,
    /// The sum over connections of the time that they lasted, in milliseconds.
    pub connected_ms: u64,
}

impl Amount {
    /// What has come since `earlier`; nothing where there was more then.
    #[must_use]
    pub fn since(self, earlier: Amount) -> Amount {
        Amount {
            usage: self.usage.since(earlier.usage),
            connections: self.connections.saturating_sub(earlier.connections),
            connected_ms: self.connected_ms.saturating_sub(earlier.connected_ms),
        }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        self.usage += other.usage;
        self.connections += other.connections;
        self.connected_ms += other.connected_ms;
    }
}

/// A row as numbers: bytes and datagrams from the client, then to it; connections, milliseconds, and when the first and the last of it was counted.
pub type Figures = [u64; 8];

/// A user's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// How much.
    pub amount: Amount,
    /// When the first of it was counted, in seconds since 1970.
    pub first_unix_s: u64,
    /// When the last of it was counted.
    pub last_unix_s: u64,
}

impl Entry {
    /// One that was counted at this moment.
    pub fn at(unix_s: u64, amount: Amount) -> Self {
        Entry { amount, first_unix_s: unix_s, last_unix_s: unix_s }
    }

    /// As numbers.
    pub fn figures(&self) -> Figures {
        let Entry { amount: Amount { usage, connections, connected_ms }, first_unix_s, last_unix_s } = *self;
        let Usage { sent_bytes, received_bytes, sent_datagrams, received_datagrams } = usage;
        [
            received_bytes,
            received_datagrams,
            sent_bytes,
            sent_datagrams,
            connections,
            connected_ms,
            first_unix_s,
            last_unix_s,
        ]
    }

    /// From numbers.
    pub fn of_figures(figures: Figures) -> Self {
        let [received_bytes, received_datagrams, sent_bytes, sent_datagrams, connections, connected_ms, first, last] =
            figures;
        let usage = Usage { sent_bytes, received_bytes, sent_datagrams, received_datagrams };
        Entry { amount: Amount { usage, connections, connected_ms }, first_unix_s: first, last_unix_s: last }
    }
}

impl AddAssign for Entry {
    fn add_assign(&mut self, other: Entry) {
        self.amount += other.amount;
        self.first_unix_s = self.first_unix_s.min(other.first_unix_s);
        self.last_unix_s = self.last_unix_s.max(other.last_unix_s);
    }
}

/// A day (UTC), as the number of days since 1970. As text: "2026-11-28".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Day(pub u32);

impl Day {
    /// That of a moment in seconds since 1970.
    pub fn of(unix_s: u64) -> Self {
        Day(u32::try_from(unix_s / DAY_S).unwrap_or(u32::MAX))
    }

    /// The first moment of it, in seconds since 1970.
    pub fn begin_unix_s(self) -> u64 {
        u64::from(self.0) * DAY_S
    }

    /// So many days earlier.
    #[must_use]
    pub fn earlier(self, days: u32) -> Self {
        Day(self.0.saturating_sub(days))
    }

    /// The first day of its month.
    pub fn month(self) -> Day {
        let text = self.to_string();
        let of_month: u32 = text.get(8..10).and_then(|digits| digits.parse().ok()).unwrap_or(1);
        self.earlier(of_month - 1)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = UNIX_EPOCH + Duration::from_secs(self.begin_unix_s());
        write!(f, "{:.10}", humantime::format_rfc3339_seconds(at).to_string())
    }
}

impl FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write a day as in 2026-11-28".to_owned();
        let at = humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).map_err(|_| wrong())?;
        at.duration_since(UNIX_EPOCH).map(|since| Day::of(since.as_secs())).map_err(|_| wrong())
    }
}

impl TryFrom<String> for Day {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Day> for String {
    fn from(day: Day) -> String {
        day.to_string()
    }
}

/// The time of day in seconds since 1970.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Rows by user and day, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book {
    rows: BTreeMap<(String, Day), Entry>,
    /// Bytes for which there was no room.
    pub lost_bytes: u64,
}

impl Book {
    /// Adds to the row of `user` of the day on which `entry` ends.
    pub fn add(&mut self, user: &str, entry: Entry) {
        self.put(user.to_owned(), Day::of(entry.last_unix_s), entry);
    }

    fn put(&mut self, user: String, day: Day, entry: Entry) {
        let has_room = self.rows.len() < ROWS_MAX;
        let key = (user, day);
        if let Some(row) = self.rows.get_mut(&key) {
            *row += entry;
        } else if has_room {
            self.rows.insert(key, entry);
        } else {
            match self.rows.range_mut((key.0.clone(), Day(0))..=(key.0, Day(u32::MAX))).next_back() {
                Some((_, row)) => *row += entry,
                None => self.lost_bytes += entry.amount.usage.bytes(),
            }
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: Book) {
        self.lost_bytes += other.lost_bytes;
        other.rows.into_iter().for_each(|((user, day), entry)| self.put(user, day, entry));
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// All rows, by user and then by day.
    pub fn rows(&self) -> impl Iterator<Item = (&str, Day, &Entry)> {
        self.rows.iter().map(|((user, day), entry)| (&user[..], *day, entry))
    }

    /// Takes the rows out.
    pub fn take_rows(&mut self) -> Vec<(String, Entry)> {
        std::mem::take(&mut self.rows).into_iter().map(|((user, _), entry)| (user, entry)).collect()
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
    }

    /// Forgets a user. Returns whether there was anything.
    pub fn forget(&mut self, user: &str) -> bool {
        let before = self.rows.len();
        self.rows.retain(|(name, _), _| name != user);
        self.rows.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(unix_s: u64, bytes: u64) -> Entry {
        let usage = Usage { sent_bytes: bytes, sent_datagrams: 1, ..Usage::default() };
        Entry::at(unix_s, Amount { usage, connections: 1, connected_ms: 10 })
    }

    #[test]
    fn days_and_months_are_those_of_the_calendar() {
        for (text, month) in [
            ("1970-01-01", "1970-01-01"),
            ("2026-11-28", "2026-11-01"),
            ("2028-02-29", "2028-02-01"),
            ("2028-03-01", "2028-03-01"),
            ("2026-12-31", "2026-12-01"),
        ] {
            let day: Day = text.parse().unwrap();
            assert_eq!((day.to_string(), day.month().to_string()), (text.to_owned(), month.to_owned()));
            assert_eq!([Day::of(day.begin_unix_s()), Day::of(day.begin_unix_s() + DAY_S - 1)], [day, day]);
            assert_eq!(serde_json::from_str::<Day>(&serde_json::to_string(&day).unwrap()).unwrap(), day);
        }
        for text in ["", "2026-13-01", "2026-02-30", "yesterday", "2026-11-28T00:00:00Z", "1969-12-31"] {
            assert!(text.parse::<Day>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_row_is_written_as_it_is_read_and_rows_of_a_day_are_one() {
        let mut row = entry(90_000, 7);
        assert_eq!(Entry::of_figures(row.figures()), row);
        row += entry(80_000, 5);
        assert_eq!((row.amount.usage.sent_bytes, row.amount.connections), (12, 2));
        assert_eq!((row.first_unix_s, row.last_unix_s), (80_000, 90_000));
        let mut book = Book::default();
        [(0, 1), (DAY_S - 1, 2), (DAY_S, 4)].into_iter().for_each(|(at, bytes)| book.add("alice", entry(at, bytes)));
        let bytes: Vec<_> = book.rows().map(|(_, day, row)| (day.0, row.amount.usage.sent_bytes)).collect();
        assert_eq!(bytes, [(0, 3), (1, 4)]);
        assert!(book.forget("alice") && !book.forget("alice"));
    }

    #[test]
    fn what_does_not_fit_goes_to_another_day_of_the_user_or_is_counted() {
        let mut book = Book::default();
        (0..ROWS_MAX as u64).for_each(|number| book.add(&format!("user{number}"), entry(0, 1)));
        book.add("user7", entry(DAY_S, 10));
        book.add("one more", entry(0, 100));
        assert_eq!((book.len(), book.lost_bytes), (ROWS_MAX, 100));
        let user = book.rows().find(|(user, ..)| *user == "user7").unwrap();
        assert_eq!((user.2.amount.usage.sent_bytes, user.2.last_unix_s), (11, DAY_S));
        let mut all = Book::default();
        all.merge(book);
        assert_eq!((all.len(), all.lost_bytes), (ROWS_MAX, 100));
    }
}
