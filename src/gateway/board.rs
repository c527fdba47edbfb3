//! What a core has counted, for whoever looks without asking: each core publishes a block of it from time to time, and never waits for a reader.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::Report;

/// Time between two blocks of a core: what is published is not older than that, but for a core that finds its place taken.
const INTERVAL: Duration = Duration::from_millis(200);

/// Where the newest figures of a core are.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Option<Report>>>);

impl Board {
    /// The newest figures; `None` before the core's first turn.
    pub fn read(&self) -> Option<Report> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The core's end.
    pub fn publisher(&self) -> Publisher {
        Publisher { board: self.clone(), published_at: None, is_due: false }
    }
}

/// A core's end of its board.
#[derive(Debug)]
pub struct Publisher {
    board: Board,
    published_at: Option<Instant>,
    /// Whether a turn was made since.
    is_due: bool,
}

impl Publisher {
    /// A turn was made. Returns whether figures are to be published now.
    pub fn handle_turn(&mut self, now: Instant) -> bool {
        self.is_due = true;
        self.poll_timeout().is_none_or(|at| at <= now)
    }

    /// Puts `report` there, unless somebody is just reading: then it is tried again after the next interval.
    pub fn publish(&mut self, now: Instant, report: Report) {
        let mut place = match self.board.0.try_lock() {
            Err(TryLockError::WouldBlock) => {
                self.published_at = Some(now);
                return;
            }
            Err(TryLockError::Poisoned(place)) => place.into_inner(),
            Ok(place) => place,
        };
        *place = Some(report);
        (self.published_at, self.is_due) = (Some(now), false);
    }

    /// When another turn is wanted, so that the last one's figures do not stay unknown for as long as the core sleeps.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.published_at.filter(|_| self.is_due).map(|at| at + INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet_io::Traffic;

    fn report(passes: u64) -> Report {
        Report { traffic: Traffic { passes, ..Traffic::default() }, ..Report::default() }
    }

    #[test]
    fn figures_are_published_at_most_once_in_an_interval_and_the_last_ones_always() {
        let (board, start) = (Board::default(), Instant::now());
        let mut publisher = board.publisher();
        assert!(publisher.handle_turn(start) && board.read().is_none());
        publisher.publish(start, report(1));
        assert_eq!(publisher.poll_timeout(), None, "a core without work sleeps for as long as it likes");
        assert!(!publisher.handle_turn(start + INTERVAL / 2), "not so soon");
        assert_eq!(publisher.poll_timeout(), Some(start + INTERVAL));
        assert!(publisher.handle_turn(start + INTERVAL));
        publisher.publish(start + INTERVAL, report(2));
        assert_eq!((board.read(), publisher.poll_timeout()), (Some(report(2)), None));
        assert!(publisher.handle_turn(start + 10 * INTERVAL));
    }

    #[test]
    fn a_core_that_finds_somebody_reading_goes_on_and_tries_again_later() {
        let (board, start) = (Board::default(), Instant::now());
        let mut publisher = board.publisher();
        let reader = board.0.lock().unwrap();
        assert!(publisher.handle_turn(start));
        publisher.publish(start, report(1));
        assert_eq!(publisher.poll_timeout(), Some(start + INTERVAL));
        drop(reader);
        assert!(publisher.handle_turn(start + INTERVAL));
        publisher.publish(start + INTERVAL, report(2));
        assert_eq!((board.read(), publisher.poll_timeout()), (Some(report(2)), None));
    }
}
