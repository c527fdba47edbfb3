//! What users have carried, kept over restarts: sums by user and day, a file that holds them, and the thread that writes it.
//!
//! Whoever counts hands on differences and never waits for the disk. This module knows no connection.

mod book;
mod keeper;
mod query;
mod store;

pub use book::{Amount, Book, Day, Entry, Figures, ROWS_MAX, unix_s};
pub use keeper::{Ask, Bookkeeper, FLUSH, Told};
pub use query::{PAGE_ROWS_MAX, Page, Period, Query, Row};
pub use store::DAYS_MAX;
