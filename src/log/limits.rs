//! How many lines others can make this program log: strangers, users, peers, whoever gives orders.
//!
//! Each kind of line has a rate of its own, so that a flood of one kind hides no line of another. What is withheld is counted, and told of
//! in one line a second.

use std::sync::atomic::{AtomicU64, Ordering};

use ratelimit::{Clock, Ratelimiter, StdClock};

/// Lines of a kind in a second.
pub const LINES_PER_S: u64 = 10;
/// Lines of a kind at once.
pub const LINES_BURST: u64 = 20;

/// A kind of line that others can cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A client has its address.
    Connected,
    /// A client is gone.
    Disconnected,
    /// Somebody came with a certificate or a Noise key that no user has.
    UnknownCredential,
    /// There was no address for a client.
    NoAddress,
    /// A client's user had all the connections allowed.
    TooManyConnections,
    /// A client's user had used up a quota.
    OverQuota,
    /// A handshake came to nothing.
    HandshakeFailed,
    /// A client's certificate ends soon.
    CertificateEnds,
    /// An order to close a user's connections.
    Kicked,
    /// Such an order that could not be carried out.
    NotKicked,
    /// Somebody at the control socket or the metrics endpoint who was not served.
    NotServed,
}

impl Kind {
    /// Every kind, in the order of the counters.
    pub const ALL: [Kind; 11] = [
        Kind::Connected,
        Kind::Disconnected,
        Kind::UnknownCredential,
        Kind::NoAddress,
        Kind::TooManyConnections,
        Kind::OverQuota,
        Kind::HandshakeFailed,
        Kind::CertificateEnds,
        Kind::Kicked,
        Kind::NotKicked,
        Kind::NotServed,
    ];

    /// What `count` withheld lines would have told.
    pub fn withheld(self, count: u64) -> String {
        let what = match self {
            Kind::Connected => "clients have connected",
            Kind::Disconnected => "clients have disconnected",
            Kind::UnknownCredential => "clients were refused: no user has their certificates or keys",
            Kind::NoAddress => "clients were refused: no address was free for them",
            Kind::TooManyConnections => "clients were refused: their users had all the connections allowed",
            Kind::OverQuota => "clients were refused: their users' quotas are used up",
            Kind::HandshakeFailed => "handshakes have failed",
            Kind::CertificateEnds => "clients' certificates end soon",
            Kind::Kicked => "users' connections were closed, by order",
            Kind::NotKicked => "orders to kick were not carried out",
            Kind::NotServed => "clients of the control socket or of the metrics endpoint were not served",
        };
        format!("and {count} more {what}")
    }
}

/// The limits of all kinds, shared by all threads. Takes no lock.
pub struct Limits<C: Clock = StdClock> {
    kinds: [Limit<C>; Kind::ALL.len()],
}

struct Limit<C: Clock> {
    rate: Ratelimiter<C>,
    withheld: AtomicU64,
}

/// Whether a line may be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The line is logged.
    Admitted,
    /// It is counted only, the first of its kind since [`Limits::take_withheld`].
    FirstWithheld,
    /// The line is only counted.
    Withheld,
}

impl Default for Limits {
    fn default() -> Self {
        Self::with_clocks(StdClock::default)
    }
}

impl<C: Clock> Limits<C> {
    fn with_clocks(clock: impl Fn() -> C) -> Self {
        let limit = |_| {
            let rate = ratelimit::Builder::with_clock(LINES_PER_S, clock());
            let rate = rate.max_tokens(LINES_BURST).initial_available(LINES_BURST).build();
            Limit { rate: rate.expect("a burst that is full and not empty"), withheld: AtomicU64::new(0) }
        };
        Limits { kinds: std::array::from_fn(limit) }
    }

    /// Judges a line of this kind.
    pub fn judge(&self, kind: Kind) -> Verdict {
        let limit = &self.kinds[kind as usize];
        if limit.rate.try_wait().is_ok() {
            return Verdict::Admitted;
        }
        match limit.withheld.fetch_add(1, Ordering::Relaxed) {
            0 => Verdict::FirstWithheld,
            _ => Verdict::Withheld,
        }
    }

    /// Whether lines were withheld that nobody has been told of.
    pub fn has_withheld(&self) -> bool {
        self.kinds.iter().any(|limit| limit.withheld.load(Ordering::Relaxed) > 0)
    }

    /// How many lines of each kind were withheld since the last time; none are left out.
    pub fn take_withheld(&self) -> impl Iterator<Item = (Kind, u64)> {
        let taken = Kind::ALL.map(|kind| (kind, self.kinds[kind as usize].withheld.swap(0, Ordering::Relaxed)));
        taken.into_iter().filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    /// A clock that stands until it is set, in nanoseconds.
    #[derive(Clone, Default)]
    struct Hand(Arc<AtomicU64>);

    impl Clock for Hand {
        fn elapsed(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::Relaxed))
        }
    }

    fn admitted<C: Clock>(limits: &Limits<C>, kind: Kind, lines: u64) -> u64 {
        (0..lines).filter(|_| limits.judge(kind) == Verdict::Admitted).count() as u64
    }

    #[test]
    fn a_flood_of_one_kind_is_cut_to_its_rate_counted_and_hides_no_other_kind() {
        let hand = Hand::default();
        let limits = Limits::with_clocks(|| hand.clone());
        assert_eq!(admitted(&limits, Kind::UnknownCredential, 1000), LINES_BURST);
        assert!(limits.has_withheld());
        assert_eq!(admitted(&limits, Kind::Connected, LINES_BURST), LINES_BURST);
        let withheld: Vec<_> = limits.take_withheld().collect();
        assert_eq!(withheld, [(Kind::UnknownCredential, 1000 - LINES_BURST)]);
        assert!(!limits.has_withheld());
        let mut lines = 0;
        for tenth in 1..=100 {
            hand.0.store(tenth * 100_000_000, Ordering::Relaxed);
            lines += admitted(&limits, Kind::UnknownCredential, 1000);
        }
        assert_eq!(lines, 10 * LINES_PER_S);
    }

    #[test]
    fn the_first_withheld_line_is_told_apart() {
        let limits = Limits::with_clocks(Hand::default);
        admitted(&limits, Kind::Kicked, LINES_BURST);
        let verdicts = [(); 3].map(|()| limits.judge(Kind::Kicked));
        assert_eq!(verdicts, [Verdict::FirstWithheld, Verdict::Withheld, Verdict::Withheld]);
        assert_eq!(limits.take_withheld().count(), 1);
        assert_eq!(limits.judge(Kind::Kicked), Verdict::FirstWithheld);
    }

    #[test]
    fn every_kind_has_its_place() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            assert!(kind.withheld(3).starts_with("and 3 more "), "{kind:?}");
        }
    }
}
