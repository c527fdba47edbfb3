//! What a core has counted, for whoever looks without asking: each core publishes it from time to time, and never waits for a reader.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use tollgate_shards::{ConnectionUsage, EndedUsage, Usage, UserIndex};

use super::Report;

/// Time between two reports of a core: what is published is not older than that, but for a core that finds its place taken.
const INTERVAL: Duration = Duration::from_millis(200);

/// What was published so short a time ago is new enough for whoever asks: however often that is, a core looks at all of its connections ten times a
/// second at most.
const FRESH: Duration = Duration::from_millis(100);

/// What a core's connections have carried.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CoreUsage {
    /// When that was; `None` before the first time.
    pub published: Option<Instant>,
    /// Each client's that has an address.
    pub clients: Vec<ConnectionUsage>,
    /// The sum of those who are gone.
    pub former: Usage,
    /// The same by user, of those who have gone since [`Board::take_usage`], where somebody calls that.
    pub ended: BTreeMap<UserIndex, EndedUsage>,
    /// How many shards there were on the core before this one: their clients are not among these.
    pub shards_before: u32,
}

/// Where the newest of a core is.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Places>);

#[derive(Debug, Default)]
struct Places {
    report: Mutex<Option<Report>>,
    usage: Mutex<CoreUsage>,
    /// Time between two usages, in milliseconds; 0 where nobody wants to know.
    usage_interval_ms: AtomicU64,
    /// Whether somebody takes what users have carried whose connections are gone.
    keeps_ended: AtomicBool,
}

impl Board {
    /// The newest report; `None` before the core's first turn.
    pub fn report(&self) -> Option<Report> {
        *lock(&self.0.report)
    }

    /// The newest usage.
    pub fn usage(&self) -> CoreUsage {
        lock(&self.0.usage).clone()
    }

    /// The same, and those who have gone are with the caller from now on.
    pub fn take_usage(&self) -> CoreUsage {
        let mut place = lock(&self.0.usage);
        let ended = std::mem::take(&mut place.ended);
        CoreUsage { ended, ..place.clone() }
    }

    /// Says how often usage is wanted, if it is, and whether somebody [takes](Board::take_usage) it. The core follows in its next turn.
    pub fn want_usage(&self, interval: Option<Duration>, is_taken: bool) {
        self.0.keeps_ended.store(is_taken, Ordering::Relaxed);
        let interval_ms = interval.map_or(0, |interval| interval.as_millis() as u64);
        self.0.usage_interval_ms.store(interval_ms, Ordering::Relaxed);
    }

    /// The core's end.
    pub fn publisher(&self) -> Publisher {
        Publisher { board: self.clone(), ..Publisher::default() }
    }
}

fn lock<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The place, unless somebody is just reading.
fn try_lock<T>(place: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match place.try_lock() {
        Ok(place) => Some(place),
        Err(TryLockError::Poisoned(place)) => Some(place.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn add(sum: &mut BTreeMap<UserIndex, EndedUsage>, more: BTreeMap<UserIndex, EndedUsage>) {
    more.into_iter().for_each(|(user, ended)| *sum.entry(user).or_default() += ended);
}

/// When something is published.
#[derive(Debug, Default)]
struct Rhythm {
    tried_at: Option<Instant>,
    /// Whether a turn was made since.
    is_due: bool,
}

impl Rhythm {
    fn poll_timeout(&self, interval: Duration) -> Option<Instant> {
        self.tried_at.filter(|_| self.is_due).map(|at| at + interval)
    }

    /// A turn was made. Returns whether to publish now.
    fn handle_turn(&mut self, now: Instant, interval: Duration) -> bool {
        self.is_due = true;
        self.poll_timeout(interval).is_none_or(|at| at <= now)
    }

    fn tried(&mut self, now: Instant, is_published: bool) {
        (self.tried_at, self.is_due) = (Some(now), !is_published);
    }
}

/// A core's end of its board.
#[derive(Debug, Default)]
pub struct Publisher {
    board: Board,
    report: Rhythm,
    usage: Rhythm,
    /// The memory of the usage before the last.
    spare: Vec<ConnectionUsage>,
    /// What is not published yet of those who are gone.
    ended: BTreeMap<UserIndex, EndedUsage>,
    shards_before: u32,
}

impl Publisher {
    fn usage_interval(&self) -> Option<Duration> {
        let interval_ms = self.board.0.usage_interval_ms.load(Ordering::Relaxed);
        (interval_ms > 0).then(|| Duration::from_millis(interval_ms))
    }

    /// Another shard is on the core.
    pub fn handle_begun_anew(&mut self) {
        self.shards_before += 1;
    }

    /// Takes what users have carried whose connections have just ended.
    pub fn handle_ended(&mut self, ended: BTreeMap<UserIndex, EndedUsage>) {
        if self.board.0.keeps_ended.load(Ordering::Relaxed) {
            add(&mut self.ended, ended);
        } else {
            self.ended.clear();
        }
    }

    /// A turn was made: publishes what is due. Where somebody is just reading, it is tried again after the next interval.
    pub fn handle_turn(
        &mut self,
        now: Instant,
        report: impl FnOnce() -> Report,
        clients: impl Iterator<Item = ConnectionUsage>,
        former: Usage,
    ) {
        if self.report.handle_turn(now, INTERVAL) {
            let place = try_lock(&self.board.0.report);
            self.report.tried(now, place.is_some());
            if let Some(mut place) = place {
                *place = Some(report());
            }
        }
        let Some(interval) = self.usage_interval() else { return };
        if self.usage.handle_turn(now, interval) {
            self.publish_usage(now, clients, former);
        }
    }

    /// Somebody asks for the usage, and is not reading: publishes it, unless that was just done.
    pub fn handle_query(&mut self, now: Instant, clients: impl Iterator<Item = ConnectionUsage>, former: Usage) {
        if self.usage.tried_at.is_none_or(|at| at + FRESH <= now) {
            self.publish_usage(now, clients, former);
        }
    }

    fn publish_usage(&mut self, now: Instant, clients: impl Iterator<Item = ConnectionUsage>, former: Usage) {
        self.spare.clear();
        self.spare.extend(clients);
        let board = self.board.clone();
        let place = try_lock(&board.0.usage);
        self.usage.tried(now, place.is_some());
        place.into_iter().for_each(|mut place| self.fill(&mut place, now, former));
    }

    /// The core ends: publishes what all have carried, and waits for whoever is just reading.
    pub fn publish_last(&mut self, now: Instant, clients: impl Iterator<Item = ConnectionUsage>, former: Usage) {
        self.spare.clear();
        self.spare.extend(clients);
        let board = self.board.clone();
        self.fill(&mut lock(&board.0.usage), now, former);
    }

    fn fill(&mut self, place: &mut CoreUsage, now: Instant, former: Usage) {
        place.published = Some(now);
        std::mem::swap(&mut place.clients, &mut self.spare);
        place.former = former;
        place.shards_before = self.shards_before;
        add(&mut place.ended, std::mem::take(&mut self.ended));
    }

    /// When another turn is wanted, so that the last one's figures do not stay unknown for as long as the core sleeps.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let usage = self.usage_interval().and_then(|interval| self.usage.poll_timeout(interval));
        [self.report.poll_timeout(INTERVAL), usage].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::packet_io::Traffic;

    fn report(passes: u64) -> Report {
        Report { traffic: Traffic { passes, ..Traffic::default() }, ..Report::default() }
    }

    /// A turn `after` the start, with a report of that number and the usage of former clients of that many bytes.
    fn turn(publisher: &mut Publisher, at: Instant, number: u64) {
        let former = Usage { sent_bytes: number, ..Usage::default() };
        publisher.handle_turn(at, || report(number), iter::empty(), former);
    }

    #[test]
    fn a_report_is_published_at_most_once_in_an_interval_and_the_last_one_always() {
        let (board, start) = (Board::default(), Instant::now());
        let mut publisher = board.publisher();
        assert_eq!(board.report(), None);
        turn(&mut publisher, start, 1);
        assert_eq!(publisher.poll_timeout(), None, "a core without work sleeps for as long as it likes");
        turn(&mut publisher, start + INTERVAL / 2, 2);
        assert_eq!((board.report(), publisher.poll_timeout()), (Some(report(1)), Some(start + INTERVAL)));
        turn(&mut publisher, start + INTERVAL, 3);
        assert_eq!((board.report(), publisher.poll_timeout()), (Some(report(3)), None));
        turn(&mut publisher, start + 10 * INTERVAL, 4);
        assert_eq!(board.report(), Some(report(4)));
    }

    #[test]
    fn usage_is_published_as_often_as_it_is_wanted_and_not_at_all_where_it_is_not() {
        let (board, start) = (Board::default(), Instant::now());
        let (mut publisher, interval) = (board.publisher(), 10 * INTERVAL);
        turn(&mut publisher, start, 1);
        assert_eq!(board.usage(), CoreUsage::default());
        board.want_usage(Some(interval), false);
        turn(&mut publisher, start + INTERVAL, 2);
        assert_eq!((board.usage().former.sent_bytes, publisher.poll_timeout()), (2, None));
        turn(&mut publisher, start + 2 * INTERVAL, 3);
        assert_eq!((board.usage().former.sent_bytes, publisher.poll_timeout()), (2, Some(start + INTERVAL + interval)));
        turn(&mut publisher, start + INTERVAL + interval, 4);
        assert_eq!((board.usage().former.sent_bytes, publisher.poll_timeout()), (4, None));
    }

    #[test]
    fn usage_is_published_for_whoever_asks_but_not_again_at_once() {
        let (board, start) = (Board::default(), Instant::now());
        let mut publisher = board.publisher();
        let mut ask = |at: Instant, number: u64| {
            publisher.handle_query(at, iter::empty(), Usage { sent_bytes: number, ..Usage::default() });
            board.usage().former.sent_bytes
        };
        assert_eq!([ask(start, 1), ask(start + FRESH / 2, 2), ask(start + FRESH, 3)], [1, 1, 3]);
        assert_eq!(publisher.poll_timeout(), None, "nobody wants to know the next");
    }

    #[test]
    fn those_who_are_gone_are_kept_by_user_until_somebody_takes_them() {
        let (board, start) = (Board::default(), Instant::now());
        let mut publisher = board.publisher();
        let ended = |bytes| {
            let usage = Usage { sent_bytes: bytes, ..Usage::default() };
            BTreeMap::from([(UserIndex(7), EndedUsage { usage, connections: 1, lasted: INTERVAL })])
        };
        publisher.handle_ended(ended(1));
        board.want_usage(Some(INTERVAL), true);
        [2, 3].into_iter().for_each(|bytes| publisher.handle_ended(ended(bytes)));
        turn(&mut publisher, start, 1);
        publisher.handle_ended(ended(4));
        publisher.handle_begun_anew();
        turn(&mut publisher, start + INTERVAL, 2);
        let taken = board.take_usage();
        let user = taken.ended[&UserIndex(7)];
        assert_eq!((user.usage.sent_bytes, user.connections, user.lasted), (9, 3, 3 * INTERVAL));
        assert_eq!((taken.shards_before, board.take_usage().ended.len()), (1, 0));
        // Nobody wants them any more.
        board.want_usage(Some(INTERVAL), false);
        publisher.handle_ended(ended(5));
        turn(&mut publisher, start + 2 * INTERVAL, 3);
        assert!(board.usage().ended.is_empty());
    }

    #[test]
    fn a_core_that_finds_somebody_reading_goes_on_and_tries_again_later() {
        let (board, start) = (Board::default(), Instant::now());
        board.want_usage(Some(INTERVAL), true);
        let mut publisher = board.publisher();
        let (readers, usage) = (lock(&board.0.report), lock(&board.0.usage));
        turn(&mut publisher, start, 1);
        assert_eq!(publisher.poll_timeout(), Some(start + INTERVAL));
        drop((readers, usage));
        turn(&mut publisher, start + INTERVAL, 2);
        assert_eq!((board.report(), publisher.poll_timeout()), (Some(report(2)), None));
        assert_eq!(board.usage().former.sent_bytes, 2);
    }
}
