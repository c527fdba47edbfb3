//! How often a connection may change its remote address, and what may be sent to an address that has not answered yet: together at most three
//! times what came from there (RFC 9000, sections 8.1 and 9.3.1), however often the address changes.
//!
//! Whoever sends with a forged address has the gateway send to somebody else. Each change of path may cost one datagram more than the three
//! times, so a change has to be covered by what came before it, but for the first one: an honest client whose NAT has rebound goes on at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How often a connection may change to an address that has not proven anything: so many at once, and one for each pause.
const MOVES_BURST: u32 = 4;
const MOVE_PAUSE: Duration = Duration::from_millis(500);
/// Bytes sent for each received one.
const AMPLIFICATION_MAX: u64 = 3;
/// After that long, one datagram that was not covered is forgiven: a client may have rebound twice before it could answer.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// What one connection has sent to addresses that it only supposes to be its client's.
#[derive(Debug)]
pub struct Moves {
    /// The last address that is known to answer.
    proven: SocketAddr,
    /// The present one, while it is not known to.
    visit: Option<Visit>,
    /// The address that would be next, and what came from it.
    next: Option<(SocketAddr, u64)>,
    /// What was sent to addresses that proved nothing, beyond what they were entitled to, in bytes.
    owed_bytes: u64,
    owed_since: Instant,
    /// Moves left, as of a time.
    left: u32,
    counted_at: Instant,
}

#[derive(Debug)]
struct Visit {
    address: SocketAddr,
    received_bytes: u64,
    sent_bytes: u64,
    /// Whether something came from there that may be the answer to a challenge.
    has_answered: bool,
}

impl Moves {
    /// A connection with the client at `proven`, which has shown to be there.
    pub fn new(proven: SocketAddr, now: Instant) -> Self {
        Moves { proven, visit: None, next: None, owed_bytes: 0, owed_since: now, left: MOVES_BURST, counted_at: now }
    }

    /// A datagram of `bytes` bytes came from `remote`, while the connection sends datagrams of up to `mtu_bytes` to `current`. Returns whether
    /// the connection may see it, and move.
    pub fn may_receive(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        bytes: usize,
        current: SocketAddr,
        mtu_bytes: u16,
    ) -> bool {
        self.follow(now, current);
        if remote == current {
            if let Some(visit) = &mut self.visit {
                visit.received_bytes += bytes as u64;
            }
            return true;
        }
        if remote == self.proven {
            return true;
        }
        let came = match self.next {
            Some((next, came)) if next == remote => came + bytes as u64,
            _ => bytes as u64,
        };
        self.next = Some((remote, came));
        self.refill(now);
        // Covered by what came before it: the datagram itself entitles to no more than quinn-proto sends for it.
        let covered = (came - bytes as u64) * AMPLIFICATION_MAX;
        let owed_bytes = self.owed_bytes();
        self.left > 0 && (owed_bytes == 0 || covered >= owed_bytes + u64::from(mtu_bytes))
    }

    /// The connection, which sends to `current` now, has `bytes` bytes for `remote` in datagrams of up to `mtu_bytes`. Returns whether they may go.
    ///
    /// An address that has proven nothing gets no more than it is entitled to, and a datagram, whatever the connection has for it. Once it was left it
    /// gets nothing, not even a challenge.
    #[must_use]
    pub fn may_send(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        bytes: usize,
        current: SocketAddr,
        mtu_bytes: u16,
    ) -> bool {
        if remote == self.proven {
            return true;
        }
        self.follow(now, current);
        let Some(visit) = self.visit.as_mut().filter(|visit| visit.address == remote) else { return false };
        let sent_bytes = visit.sent_bytes + bytes as u64;
        let may_go = sent_bytes <= visit.received_bytes * AMPLIFICATION_MAX + u64::from(mtu_bytes);
        if may_go {
            visit.sent_bytes = sent_bytes;
        }
        may_go
    }

    /// Whether the connection sends to `remote`, and has not heard yet that its client is there.
    pub fn is_unproven(&self, remote: SocketAddr) -> bool {
        self.visit.as_ref().is_some_and(|visit| visit.address == remote)
    }

    /// What may be the answer to a challenge came from `remote`: anybody can send that, and only the connection knows what it has asked.
    pub fn answer(&mut self, remote: SocketAddr) {
        if let Some(visit) = self.visit.as_mut().filter(|visit| visit.address == remote) {
            visit.has_answered = true;
        }
    }

    /// Whether the connection may have got the right answer from where it sends to.
    pub fn has_answered(&self) -> bool {
        self.visit.as_ref().is_some_and(|visit| visit.has_answered)
    }

    /// The challenge was answered from `remote` (RFC 9000, section 8.2.3).
    pub fn prove(&mut self, remote: SocketAddr) {
        if self.is_unproven(remote) {
            self.proven = remote;
            self.visit = None;
        }
    }

    /// Takes note of where the connection sends now.
    pub fn follow(&mut self, now: Instant, current: SocketAddr) {
        let known = self.visit.as_ref().map_or(self.proven, |visit| visit.address);
        if known == current {
            return;
        }
        let owed_bytes = self.owed_bytes();
        if self.visit.take().is_some() {
            self.owed_since = if owed_bytes > self.owed_bytes { now } else { self.owed_since };
            self.owed_bytes = owed_bytes;
        }
        if current == self.proven {
            return;
        }
        self.left = self.left.saturating_sub(1);
        let came = self.next.take_if(|(next, _)| *next == current).map_or(0, |(_, came)| came);
        self.visit = Some(Visit { address: current, received_bytes: came, sent_bytes: 0, has_answered: false });
    }

    #[cfg(feature = "inspect")]
    pub fn state(&self) -> &'static str {
        match (&self.visit, self.owed_bytes) {
            (Some(_), _) => "probing",
            (None, 0) => "proven",
            (None, _) => "left_owing",
        }
    }

    /// What is owed by now, the present visit included.
    fn owed_bytes(&self) -> u64 {
        let visit = self.visit.as_ref();
        let (sent, received) = visit.map_or((0, 0), |visit| (visit.sent_bytes, visit.received_bytes));
        (self.owed_bytes + sent).saturating_sub(received * AMPLIFICATION_MAX)
    }

    fn refill(&mut self, now: Instant) {
        let pauses = now.saturating_duration_since(self.counted_at).as_nanos() / MOVE_PAUSE.as_nanos();
        if pauses > 0 {
            self.left = self.left.saturating_add(u32::try_from(pauses).unwrap_or(u32::MAX)).min(MOVES_BURST);
            self.counted_at = now;
        }
        if now.saturating_duration_since(self.owed_since) >= FORGIVEN_AFTER {
            self.owed_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time::origin;

    const MTU: u16 = 1450;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([198, 18, 0, 1], port))
    }

    /// A connection that moves with every datagram that it may see, and sends as much as it may to where it is.
    struct Model {
        moves: Moves,
        now: Instant,
        current: SocketAddr,
        answers: Vec<SocketAddr>,
        /// What came from, and went to, addresses that never answer.
        came: u64,
        went: u64,
    }

    impl Model {
        fn new() -> Self {
            let now = origin();
            let moves = Moves::new(at(1), now);
            Model { moves, now, current: at(1), answers: vec![at(1)], came: 0, went: 0 }
        }

        fn datagram(&mut self, from: SocketAddr, bytes: usize) -> bool {
            let answers = self.answers.contains(&from);
            self.came += if answers { 0 } else { bytes as u64 };
            let seen = self.moves.may_receive(self.now, from, bytes, self.current, MTU);
            if seen {
                self.current = from;
                self.moves.follow(self.now, self.current);
                // As much as quinn-proto does: a datagram is begun while anything is left of the budget.
                let budget = (bytes as u64 * 3).div_ceil(u64::from(MTU)) as usize * usize::from(MTU);
                let bytes = if answers { 100_000 } else { budget };
                if answers {
                    self.moves.prove(from);
                }
                let is_sent = self.moves.may_send(self.now, self.current, bytes, self.current, MTU);
                assert!(is_sent || !answers);
                self.went += if answers || !is_sent { 0 } else { bytes as u64 };
            }
            seen
        }
    }

    #[test]
    fn bouncing_is_never_answered_with_more_than_three_times_what_came() {
        for (bytes, pause_ms, forged) in [(40, 10, 1), (40, 1000, 1), (60, 100, 5), (1200, 10, 1), (500, 700, 3)] {
            let mut model = Model::new();
            for bounce in 0..500 {
                model.datagram(at(100 + bounce % forged), bytes);
                model.datagram(at(1), bytes);
                model.now += Duration::from_millis(pause_ms);
                // The first one is not covered, and one a minute is forgiven.
                let forgiven = (1 + u64::from(bounce) * pause_ms / 60_000) * u64::from(MTU);
                assert!(model.went <= model.came * 3 + forgiven, "{} for {}", model.went, model.came);
            }
            assert!(model.went > 0);
        }
    }

    #[test]
    fn an_address_that_was_left_before_it_proved_anything_gets_nothing_more() {
        let mut model = Model::new();
        assert!(model.datagram(at(9), 40) && model.datagram(at(1), 40));
        let may_send = |model: &mut Model, to| model.moves.may_send(model.now, to, 1200, at(1), MTU);
        assert!(!may_send(&mut model, at(9)) && may_send(&mut model, at(1)));
    }

    #[test]
    fn addresses_change_a_few_times_a_second_at_most() {
        let mut model = Model::new();
        model.answers.extend((2..1000).map(at));
        let moved = (2..1000)
            .filter(|&port| {
                model.now += Duration::from_millis(10);
                model.datagram(at(port), 1200)
            })
            .count();
        assert!((15..=25).contains(&moved), "{moved} moves in 10 s");
    }

    #[test]
    fn the_way_home_is_always_open() {
        let mut model = Model::new();
        for _ in 0..100 {
            model.datagram(at(9), 1200);
            assert!(model.datagram(at(1), 40) && model.current == at(1));
        }
    }

    #[test]
    fn a_client_that_could_not_answer_in_time_is_forgiven() {
        let mut model = Model::new();
        assert!(model.datagram(at(2), 40));
        assert!(!model.datagram(at(3), 40), "the first is not paid for yet");
        assert!((0..30).any(|_| model.datagram(at(3), 40)), "it pays by and by");
        model.now += FORGIVEN_AFTER;
        assert!(model.datagram(at(4), 40));
    }
}
