//! Questions for rows, some of which are answered at a time.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::book::{Day, Entry};

/// Rows of an answer.
pub const PAGE_ROWS_MAX: usize = 1000;

/// How rows are summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// All of a user's.
    #[default]
    Total,
    /// Each month's.
    Month,
    /// Each day's.
    Day,
}

impl Period {
    /// The first day of the period that `day` is in.
    pub fn begin(self, day: Day) -> Day {
        match self {
            Period::Total => Day(0),
            Period::Month => day.month(),
            Period::Day => day,
        }
    }
}

/// What somebody wants to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// This user's rows only.
    pub user: Option<String>,
    /// How they are summed.
    pub period: Period,
    /// Of this day and later ones.
    pub since: Option<Day>,
    /// Rows behind this one: its user and the first day of its period.
    pub after: Option<(String, Day)>,
}

/// A sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The user's name.
    pub user: String,
    /// The first day of the period.
    pub begin: Day,
    /// What it has.
    pub entry: Entry,
}

/// Some rows, and how the store stands.
#[derive(Debug, Default)]
pub struct Page {
    /// By user, then by day.
    pub rows: Vec<Row>,
    /// Whether none is behind them.
    pub is_last: bool,
    /// What is wrong with the store, if anything is.
    pub trouble: Option<String>,
}

impl Query {
    /// Sums `days`, which come by user and then by day, as far as an answer takes them. What is before the first row wanted may be left out of them.
    ///
    /// # Errors
    ///
    /// The first one among them.
    pub fn sum<E>(&self, days: impl Iterator<Item = Result<(String, Day, Entry), E>>) -> Result<Page, E> {
        let mut page = Page { is_last: true, ..Page::default() };
        for day in days {
            let (user, day, entry) = day?;
            let begin = self.period.begin(day);
            let is_wanted = self.user.as_ref().is_none_or(|wanted| *wanted == user)
                && self.since.is_none_or(|since| day >= since)
                && self.after.as_ref().is_none_or(|(name, last)| (&user, begin) > (name, *last));
            if !is_wanted {
                continue;
            }
            if let Some(row) = page.rows.last_mut().filter(|row| row.user == user && row.begin == begin) {
                row.entry += entry;
            } else if page.rows.len() < PAGE_ROWS_MAX {
                page.rows.push(Row { user, begin, entry });
            } else {
                page.is_last = false;
                break;
            }
        }
        Ok(page)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Period::Total => "total",
            Period::Month => "month",
            Period::Day => "day",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tollgate_shards::Usage;

    use super::*;
    use crate::usage::Amount;

    fn day(user: &str, day: &str, bytes: u64) -> Result<(String, Day, Entry), Infallible> {
        let day: Day = day.parse().unwrap();
        let usage = Usage { sent_bytes: bytes, ..Usage::default() };
        Ok((user.to_owned(), day, Entry::at(day.begin_unix_s(), Amount { usage, ..Amount::default() })))
    }

    fn summed(query: &Query) -> Vec<(String, String, u64)> {
        let days = [
            day("alice", "2026-10-31", 1),
            day("alice", "2026-11-01", 2),
            day("alice", "2026-11-02", 4),
            day("bob", "2026-11-02", 8),
        ];
        let Ok(page) = query.sum(days.into_iter());
        assert!(page.is_last);
        let row = |row: Row| (row.user, row.begin.to_string(), row.entry.amount.usage.sent_bytes);
        page.rows.into_iter().map(row).collect()
    }

    #[test]
    fn days_are_summed_by_period_from_a_day_on_of_a_user_or_of_all() {
        let row = |user: &str, begin: &str, bytes| (user.to_owned(), begin.to_owned(), bytes);
        let by = |period| Query { period, ..Query::default() };
        assert_eq!(summed(&by(Period::Total)), [row("alice", "1970-01-01", 7), row("bob", "1970-01-01", 8)]);
        let months = [row("alice", "2026-10-01", 1), row("alice", "2026-11-01", 6), row("bob", "2026-11-01", 8)];
        assert_eq!(summed(&by(Period::Month)), months);
        let since = Query { since: Some("2026-11-02".parse().unwrap()), user: Some("alice".into()), ..by(Period::Day) };
        assert_eq!(summed(&since), [row("alice", "2026-11-02", 4)]);
        let after = Query { after: Some(("alice".into(), "2026-10-01".parse().unwrap())), ..by(Period::Month) };
        assert_eq!(summed(&after), months[1..]);
    }

    #[test]
    fn all_rows_come_once_over_several_pages() {
        let all: Vec<String> = (0..2 * PAGE_ROWS_MAX + 1).map(|number| format!("{number:0>6}")).collect();
        let (mut query, mut told, mut pages) = (Query::default(), Vec::new(), 0);
        loop {
            let Ok(page) =
                query.sum(all.iter().flat_map(|user| [day(user, "2026-11-01", 1), day(user, "2026-11-02", 1)]));
            told.extend(page.rows.into_iter().inspect(|row| assert_eq!(row.entry.amount.usage.sent_bytes, 2)));
            pages += 1;
            if page.is_last {
                break;
            }
            query.after = told.last().map(|row| (row.user.clone(), row.begin));
        }
        assert_eq!((told.into_iter().map(|row| row.user).collect::<Vec<_>>(), pages), (all, 3));
    }
}
