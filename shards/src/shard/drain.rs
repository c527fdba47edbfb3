//! Sending all clients away, at an even pace.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::data::DataPlane;
use crate::ids::{ConnectionKey, Reconnects};
use crate::notice::Notice;
use crate::quic::close_code;
use crate::quic::intake::Intake;

/// How long a client that was asked to move may take. It takes less, or gives up.
const MOVE_PATIENCE: Duration = Duration::from_secs(10);

/// The clients of a shard that are still to be sent away, and when.
#[derive(Debug)]
pub struct Drain {
    began: Instant,
    /// In this time all are sent away, one after the other.
    over: Duration,
    /// By then at the latest.
    until: Instant,
    /// Those that are left, as many as there are connections at most, and how many there were.
    left: Vec<ConnectionKey>,
    count: usize,
    /// Those that were asked to move, and until when they may take.
    asked: VecDeque<(Instant, ConnectionKey)>,
    /// Those that stay until then.
    staying: Vec<ConnectionKey>,
    is_to_successor: bool,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    AskToMove(ConnectionKey),
    SendAway(ConnectionKey),
}

impl Drain {
    pub fn new(
        now: Instant,
        over: Duration,
        within: Duration,
        clients: impl Iterator<Item = (ConnectionKey, Reconnects)>,
        is_to_successor: bool,
    ) -> Self {
        let (left, staying) = (Vec::new(), Vec::new());
        let asked = VecDeque::new();
        let mut drain =
            Drain { began: now, over, until: now + within, left, count: 0, asked, staying, is_to_successor };
        for (connection, reconnects) in clients {
            let group = if drain.may_stay(reconnects) { &mut drain.staying } else { &mut drain.left };
            group.push(connection);
        }
        drain.count = drain.left.len();
        drain
    }

    /// Whether such a client stays to the end: where another process serves, one that never comes back would be lost for good.
    fn may_stay(&self, reconnects: Reconnects) -> bool {
        self.is_to_successor && reconnects == Reconnects::Never
    }

    /// When the next one is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let at_last = (!self.staying.is_empty()).then_some(self.until);
        [self.next_of_pace(), self.end_of_patience(), at_last].into_iter().flatten().min()
    }

    /// What is to be done next, if anything is due.
    pub fn next(&mut self, now: Instant) -> Option<Due> {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.end_of_patience()) {
            return self.asked.pop_front().map(|(_, connection)| Due::SendAway(connection));
        }
        if !is_due(self.next_of_pace()) {
            return self.staying.pop_if(|_| self.until <= now).map(Due::SendAway);
        }
        let connection = self.left.pop()?;
        if !self.is_to_successor || self.until <= now {
            return Some(Due::SendAway(connection));
        }
        self.asked.push_back((self.until.min(now + MOVE_PATIENCE), connection));
        Some(Due::AskToMove(connection))
    }

    /// A client has logged in meanwhile. Returns whether it stays for a while.
    fn lets_stay(&mut self, now: Instant, connection: ConnectionKey, reconnects: Reconnects) -> bool {
        let stays = self.may_stay(reconnects) && now < self.until;
        if stays {
            self.staying.push(connection);
        }
        stays
    }

    fn next_of_pace(&self) -> Option<Instant> {
        let next = self.count - self.left.len() + 1;
        (next <= self.count).then(|| self.until.min(self.began + share(self.over, next, self.count)))
    }

    fn end_of_patience(&self) -> Option<Instant> {
        self.asked.front().map(|&(at, _)| at)
    }
}

impl DataPlane {
    /// Takes no new clients, and sends those that are here away. Who is logging in goes on where the process beside this one gets the new ones: a client
    /// that never comes back would be refused for good.
    pub fn drain(&mut self, over: Duration, within: Duration, to_successor: bool) {
        if self.quic.intake != Intake::Closed {
            self.quic.intake = if to_successor { Intake::Ending } else { Intake::Refusing };
            let clients = self.clients().into_iter().map(|(connection, identity, _)| (connection, identity.reconnects));
            self.drain = Some(Drain::new(self.now, over, within, clients, to_successor));
            self.send_away();
        }
    }

    /// Takes clients again.
    pub fn resume(&mut self) {
        if self.drain.is_some() {
            (self.quic.intake, self.drain) = (Intake::Open, None);
        }
    }

    pub fn drain_timeout(&self) -> Option<Instant> {
        self.drain.as_ref()?.poll_timeout()
    }

    /// Sends away who is due.
    pub fn send_away(&mut self) {
        while let Some(due) = self.drain.as_mut().and_then(|drain| drain.next(self.now)) {
            let (Due::AskToMove(connection) | Due::SendAway(connection)) = due;
            let Some(slot) = self.quic.connections.find(connection) else { continue };
            if matches!(due, Due::SendAway(_)) || !self.ask_to_move(slot) {
                self.dismiss(slot);
            }
        }
    }

    /// Sends a client away that has logged in while the shard drains, unless it may stay.
    pub fn send_away_late(&mut self, connection: ConnectionKey, reconnects: Reconnects) {
        let now = self.now;
        if let Some(drain) = &mut self.drain
            && !drain.lets_stay(now, connection, reconnects)
        {
            self.dismiss(connection.slot);
        }
    }

    /// Asks a client to connect to the process beside this one while its connection here goes on. Returns whether it was asked: not before it has an
    /// address.
    fn ask_to_move(&mut self, slot: u32) -> bool {
        let Some(client) = self.quic.connections.at(slot).filter(|client| client.address().is_some()) else {
            return false;
        };
        let is_asked = client.tunnel.send_message(&Notice::Move.to_json());
        self.quic.connections.touch(slot);
        is_asked
    }

    /// Sends a client away, as all of them are.
    pub fn dismiss(&mut self, slot: u32) {
        if self.drain.as_ref().is_some_and(|drain| drain.is_to_successor) {
            self.close(slot, close_code::UPGRADE, "The gateway is upgraded");
        } else {
            self.close(slot, close_code::DRAIN, "The gateway drains");
        }
    }
}

/// `part` of `whole` parts of `time`.
fn share(time: Duration, part: usize, whole: usize) -> Duration {
    let ns = time.as_nanos() * part as u128 / whole as u128;
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardIndex;
    use crate::test_time::origin;

    fn drain(over_ms: u64, within_ms: u64, clients: u32, stays: bool) -> Drain {
        let key = |slot| ConnectionKey { owner: ShardIndex(0), slot, generation: 0 };
        let [over, within] = [over_ms, within_ms].map(Duration::from_millis);
        let going = (0..clients).map(|slot| (key(slot), Reconnects::ByItself));
        let staying = (clients..2 * clients).filter(|_| stays).map(|slot| (key(slot), Reconnects::Never));
        Drain::new(origin(), over, within, going.chain(staying), stays)
    }

    /// When each client is sent away, in milliseconds.
    fn times_ms(drain: Drain) -> Vec<u64> {
        let (asked, sent) = asked_and_sent_ms(drain);
        assert!(asked.is_empty());
        sent
    }

    /// When each is asked to move, and when each is sent away.
    fn asked_and_sent_ms(mut drain: Drain) -> (Vec<u64>, Vec<u64>) {
        let began = drain.began;
        let (mut asked, mut sent) = (Vec::new(), Vec::new());
        while let Some(at) = drain.poll_timeout() {
            assert!(drain.next(at - Duration::from_nanos(1)).is_none());
            while let Some(due) = drain.next(at) {
                let times = if matches!(due, Due::AskToMove(_)) { &mut asked } else { &mut sent };
                times.push((at - began).as_millis() as u64);
            }
        }
        (asked, sent)
    }

    #[test]
    fn clients_are_sent_away_at_an_even_pace_the_last_at_the_end() {
        assert_eq!(times_ms(drain(1000, 1000, 4, false)), [250, 500, 750, 1000]);
        assert_eq!(times_ms(drain(1000, 5000, 2, false)), [500, 1000]);
        assert!(times_ms(drain(1000, 1000, 0, false)).is_empty());
    }

    #[test]
    fn at_the_deadline_all_who_are_left_go_at_once() {
        assert_eq!(times_ms(drain(1000, 600, 4, false)), [250, 500, 600, 600]);
        assert_eq!(times_ms(drain(1000, 0, 3, false)), [0, 0, 0]);
        assert_eq!(times_ms(drain(u64::MAX / 2, 1000, 1, false)), [1000]);
    }

    #[test]
    fn those_who_move_have_ten_seconds_and_those_who_stay_go_at_the_deadline() {
        for (over_ms, within_ms, asked, sent) in [
            (1000, 20_000, &[500, 1000][..], [10_500, 11_000, 20_000, 20_000]),
            (1000, 5000, &[500, 1000], [5000; 4]),
            (9000, 5000, &[4500], [5000; 4]),
        ] {
            assert_eq!(asked_and_sent_ms(drain(over_ms, within_ms, 2, true)), (asked.to_vec(), sent.to_vec()));
        }
    }
}
