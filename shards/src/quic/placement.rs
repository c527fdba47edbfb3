//! Which shard owns a new client: the least loaded one, as far as shards have told each other. The ID in the client's Retry takes it there.
//!
//! Loads are told at most every [`INTERVAL`], so what a shard has sent elsewhere meanwhile counts too. Initials come to all shards evenly: each reckons
//! that all others have sent as many to the same place.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::ids::{ShardIndex, Shards};

/// Time between two messages about a load.
const INTERVAL: Duration = Duration::from_millis(100);
/// A load that stays as it is is told once more after this time: messages of loads may be lost.
const REPEAT: Duration = Duration::from_secs(1);
/// How long a client that was sent to a shard counts there beside those of which that has told, unless more have come.
const PROMISE: Duration = Duration::from_millis(500);
/// A client whose first flight takes several datagrams, or comes again, is sent to the same shard for so long.
const MEMORY: Duration = Duration::from_secs(3);
/// Clients remembered for that.
const REMEMBERED_MAX: usize = 256;
/// Of shards that are not busier than the least busy one by more than this, connections decide, in percent of time.
const BUSY_MARGIN: u8 = 25;

/// What decides whether a shard gets new clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Share of the time in which the shard's core had work, in percent.
    pub busy_percent: u8,
    /// Clients and handshakes; none that says goodbye.
    pub connections: u32,
    /// Connections for which there is room.
    pub room: u32,
}

#[derive(Debug, Clone)]
struct Shard {
    load: Load,
    /// Clients sent there: since the last turn of [`PROMISE`], and in the one before.
    promised: [u32; 2],
}

impl Shard {
    fn promised(&self) -> u32 {
        self.promised[0].saturating_add(self.promised[1])
    }

    fn has_room(&self) -> bool {
        self.load.room > self.promised()
    }

    /// Who has come is promised no more.
    fn set(&mut self, load: Load) {
        let mut came = load.connections.saturating_sub(self.load.connections);
        for promised in self.promised.iter_mut().rev() {
            let kept = came.min(*promised);
            (*promised, came) = (*promised - kept, came - kept);
        }
        self.load = load;
    }
}

/// A client that has shown nothing yet: where its datagrams come from, and the connection ID that it has chosen.
type Visitor = (SocketAddr, u64);

pub struct Placement {
    here: ShardIndex,
    of: Shards,
    /// By their places.
    shards: Vec<Shard>,
    /// Those of another process, if new clients go there.
    successor: Option<Shards>,
    connections_max: u32,
    /// When the promises turn.
    turns_at: Instant,
    remembered: Vec<Option<(Visitor, ShardIndex, Instant)>>,
    /// The load that the others were told last, and when the next may be.
    told: Load,
    tells_at: Instant,
    /// When it is told once more.
    repeats_at: Option<Instant>,
}

impl Placement {
    pub fn new(here: ShardIndex, of: Shards, connections_max: usize, now: Instant) -> Self {
        let connections_max = connections_max as u32;
        let load = Load { room: connections_max, ..Load::default() };
        Placement {
            here,
            of,
            successor: None,
            connections_max,
            shards: vec![Shard { load, promised: [0; 2] }; usize::from(of.count)],
            turns_at: now + PROMISE,
            remembered: vec![None; REMEMBERED_MAX],
            told: load,
            tells_at: now,
            repeats_at: None,
        }
    }

    /// New clients go to the shards of the process beside this one, or to the own.
    pub fn lead_to(&mut self, successor: Option<Shards>) {
        self.successor = successor;
    }

    /// This shard has so many clients and handshakes, and holds so many connections.
    pub fn set_own(&mut self, connections: usize, held: usize) {
        let room = self.connections_max.saturating_sub(held as u32);
        let own = &mut self.shards[self.here.place()];
        own.set(Load { connections: connections as u32, room, ..own.load });
    }

    pub fn set_busy(&mut self, busy_percent: u8) {
        self.shards[self.here.place()].load.busy_percent = busy_percent;
    }

    fn own(&self) -> Load {
        self.shards[self.here.place()].load
    }

    /// Another shard has told its load.
    pub fn told(&mut self, shard: ShardIndex, load: Load) {
        if let Some(shard) = self.shards.get_mut(shard.place()) {
            shard.set(load);
        }
    }

    /// A shard has been started anew: it has nothing, and knows nothing.
    pub fn forget(&mut self, shard: ShardIndex, now: Instant) {
        self.told(shard, Load { room: self.connections_max, ..Load::default() });
        self.repeats_at = Some(now);
    }

    /// The shard for a client at `remote`, which has chosen the ID `chosen` for its Initial and is sent to that shard. Of several as good it is this one, or
    /// the next.
    pub fn choose(&mut self, now: Instant, remote: SocketAddr, chosen: &[u8]) -> ShardIndex {
        if let Some(successor) = self.successor {
            // Nobody tells this process their loads. The repetition of a first flight goes where that went.
            return successor.at(chosen.first().map_or(0, |&first| u16::from(first) % successor.count));
        }
        if self.shards.len() == 1 {
            return self.here;
        }
        let visitor = (remote, chosen.first_chunk().map_or(0, |first| u64::from_le_bytes(*first)));
        let place = place(visitor);
        if let Some((known, shard, until)) = self.remembered[place]
            && known == visitor
            && now < until
        {
            return shard;
        }
        self.turn(now);
        let owner = self.least();
        let promised = &mut self.shards[owner.place()].promised[0];
        *promised = promised.saturating_add(1);
        self.remembered[place] = Some((visitor, owner, now + MEMORY));
        owner
    }

    fn least(&self) -> ShardIndex {
        let shards = self.shards.len();
        let has_room = self.shards.iter().any(Shard::has_room);
        let from_here = (0..shards).map(|step| (self.here.place() + step) % shards);
        let open = from_here.map(|index| (index, &self.shards[index])).filter(|(_, it)| it.has_room() || !has_room);
        let least_busy = open.clone().map(|(_, it)| it.load.busy_percent).min().unwrap_or_default();
        let idle_enough = open.filter(|(_, it)| it.load.busy_percent <= least_busy.saturating_add(BUSY_MARGIN));
        let expected = |it: &Shard| u64::from(it.load.connections) + u64::from(it.promised()) * shards as u64;
        let least = idle_enough.min_by_key(|(_, it)| expected(it)).map(|(index, _)| index as u16);
        least.map_or(self.here, |place| self.of.at(place))
    }

    fn turn(&mut self, now: Instant) {
        if now < self.turns_at {
            return;
        }
        let is_long_past = now >= self.turns_at + PROMISE;
        for Shard { promised: [new, old], .. } in &mut self.shards {
            *old = if is_long_past { 0 } else { *new };
            *new = 0;
        }
        self.turns_at = now + PROMISE;
    }

    /// The load to tell all others, if it is time.
    pub fn poll_load(&mut self, now: Instant) -> Option<Load> {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return None;
        }
        let own = self.own();
        self.repeats_at = (own != self.told).then_some(now + REPEAT);
        self.told = own;
        self.tells_at = now + INTERVAL;
        Some(own)
    }

    /// When [`Placement::poll_load`] has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.shards.len() == 1 {
            None
        } else if self.own() != self.told {
            Some(self.tells_at)
        } else {
            self.repeats_at
        }
    }
}

/// Where a client is remembered. Who is remembered in the same place is forgotten, and that is all.
fn place((_, chosen): Visitor) -> usize {
    (chosen.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % REMEMBERED_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTIONS_MAX: usize = 1000;

    fn remote(number: usize) -> SocketAddr {
        SocketAddr::from(([198, 19, (number >> 8) as u8, number as u8], 4433))
    }

    /// Shards that tell each other their loads, with the connections that they own.
    struct Fleet {
        now: Instant,
        placements: Vec<Placement>,
        owned: Vec<u32>,
        clients: usize,
    }

    impl Fleet {
        fn new(shards: u16) -> Self {
            let now = crate::test_time::origin();
            let placements = Shards::alone(shards)
                .iter()
                .map(|here| Placement::new(here, Shards::alone(shards), CONNECTIONS_MAX, now))
                .collect();
            Fleet { now, placements, owned: vec![0; usize::from(shards)], clients: 0 }
        }

        /// A client's Initial comes to shard `at`. Returns who owns it.
        fn join(&mut self, at: usize) -> usize {
            self.update();
            let owner = self.placements[at].choose(self.now, remote(self.clients), &self.clients.to_be_bytes());
            self.clients += 1;
            self.owned[usize::from(owner.0)] += 1;
            usize::from(owner.0)
        }

        fn update(&mut self) {
            for (placement, &connections) in self.placements.iter_mut().zip(&self.owned) {
                placement.set_own(connections as usize, connections as usize);
            }
        }

        fn pass(&mut self, time: Duration) {
            let until = self.now + time;
            while self.now < until {
                self.now += Duration::from_millis(10);
                self.update();
                for from in 0..self.placements.len() {
                    let Some(load) = self.placements[from].poll_load(self.now) else { continue };
                    let others = self.placements.iter_mut().enumerate().filter(|&(index, _)| index != from);
                    others.for_each(|(_, placement)| placement.told(ShardIndex(from as u16), load));
                }
            }
        }
    }

    #[test]
    fn two_clients_have_a_shard_each_wherever_and_whenever_they_come() {
        for (first, second) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for pause_ms in [0, 10, 90, 110, 490, 510, 1100, 60_000] {
                let mut fleet = Fleet::new(2);
                fleet.join(first);
                fleet.pass(Duration::from_millis(pause_ms));
                fleet.join(second);
                assert_eq!(fleet.owned, [1, 1], "at {first} and {second}, {pause_ms} ms apart");
            }
        }
    }

    #[test]
    fn a_first_flight_of_several_datagrams_is_sent_to_one_shard_and_counts_once() {
        let mut fleet = Fleet::new(2);
        let placement = &mut fleet.placements[0];
        let owners = [1, 1, 1, 2, 2].map(|client| placement.choose(fleet.now, remote(7), &[client; 8]).0);
        assert_eq!(owners, [0, 0, 0, 1, 1]);
    }

    #[test]
    fn a_thousand_clients_are_within_a_twentieth_of_even() {
        for shards in [2, 3, 4, 8] {
            for every_ms in [1, 10, 50] {
                let mut fleet = Fleet::new(shards);
                for client in 0..1000_usize {
                    fleet.join((client.wrapping_mul(0x9e37_79b9) >> 7 & 0xffff) % usize::from(shards));
                    fleet.pass(Duration::from_millis(every_ms));
                }
                let even = 1000.0 / f64::from(shards);
                let worst = fleet.owned.iter().map(|&owned| (f64::from(owned) - even).abs()).fold(0.0, f64::max);
                assert!(worst <= even / 20.0, "{shards} shards, {every_ms} ms: {:?}", fleet.owned);
            }
        }
    }

    #[test]
    fn who_came_and_left_at_once_is_counted_no_more() {
        for (first, second) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut fleet = Fleet::new(2);
            for round in 0..20 {
                let (one, other) = if round % 3 == 0 { (second, first) } else { (first, second) };
                fleet.join(one);
                fleet.pass(Duration::from_millis(150));
                fleet.join(other);
                fleet.pass(Duration::from_millis(150));
                assert_eq!(fleet.owned, [1, 1], "round {round} of {first} and {second}");
                fleet.owned = vec![0; 2];
                fleet.pass(Duration::from_millis(120));
            }
        }
    }

    #[test]
    fn who_left_makes_room_for_the_next() {
        let mut fleet = Fleet::new(4);
        fleet.owned = vec![10; 4];
        fleet.pass(Duration::from_secs(2));
        fleet.owned[2] -= 4;
        fleet.pass(Duration::from_secs(1));
        for client in 0..4 {
            assert_eq!(fleet.join(client), 2);
            fleet.pass(Duration::from_secs(2));
        }
        assert_eq!(fleet.owned, [10; 4]);
    }

    #[test]
    fn a_shard_without_room_gets_no_client_while_another_has_some() {
        let mut fleet = Fleet::new(2);
        fleet.owned = vec![CONNECTIONS_MAX as u32 - 1, 0];
        fleet.placements[1].set_busy(100);
        fleet.pass(Duration::from_secs(1));
        assert_eq!((fleet.join(0), fleet.join(0), fleet.join(0)), (0, 1, 1), "one place is left");
        fleet.pass(Duration::from_secs(2));
        assert_eq!((fleet.join(0), fleet.join(1)), (1, 1));
        fleet.owned = vec![CONNECTIONS_MAX as u32; 2];
        fleet.pass(Duration::from_secs(2));
        assert_eq!(
            fleet.placements[1].choose(fleet.now, remote(7777), &[7; 8]),
            ShardIndex(0),
            "the idle one, where none has room"
        );
    }

    #[test]
    fn the_busy_share_comes_before_connections_where_it_differs_by_a_quarter() {
        for (busy, owner) in [(20, 0), (25, 0), (26, 1), (90, 1)] {
            let mut fleet = Fleet::new(2);
            fleet.owned = vec![1, 20];
            fleet.placements[0].set_busy(busy);
            fleet.pass(Duration::from_secs(1));
            assert_eq!(fleet.join(1), owner, "{busy} %");
        }
    }

    #[test]
    fn loads_are_told_at_most_ten_times_a_second_and_nothing_is_told_while_nothing_changes() {
        let mut fleet = Fleet::new(2);
        let told = |fleet: &mut Fleet, changes: bool| {
            let mut told = 0;
            for _ in 0..1000 {
                fleet.now += Duration::from_millis(1);
                fleet.owned[0] += u32::from(changes && fleet.owned[0] < 900);
                fleet.update();
                told += u32::from(fleet.placements[0].poll_load(fleet.now).is_some());
            }
            told
        };
        assert_eq!(told(&mut fleet, false), 0);
        assert!((9..=10).contains(&told(&mut fleet, true)));
        assert_eq!((told(&mut fleet, false), told(&mut fleet, false)), (1, 0), "once more");
        assert_eq!(fleet.placements[0].poll_timeout(), None);
    }

    #[test]
    fn a_shard_that_was_started_anew_is_told_everything_and_gets_clients() {
        let mut fleet = Fleet::new(2);
        fleet.owned = vec![5, 5];
        fleet.pass(Duration::from_secs(3));
        fleet.owned[1] = 0;
        fleet.placements[1] = Placement::new(ShardIndex(1), Shards::alone(2), CONNECTIONS_MAX, fleet.now);
        fleet.placements[0].forget(ShardIndex(1), fleet.now);
        assert_eq!(fleet.join(0), 1);
        fleet.pass(Duration::from_secs(1));
        assert_eq!(fleet.join(1), 1);
    }
}
