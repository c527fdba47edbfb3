//! Which handshakes may begin: bounded in all and for each source. Where there is no room, the one that is least likely to be somebody's
//! login gives way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Pending handshakes of an IPv6 /56 and of a /48, in multiples of what one source may have.
const BY_56_FACTOR: usize = 2;
const BY_48_FACTOR: usize = 4;
/// How long a handshake whose ClientHello is complete keeps its place from newer ones of its own source: what the client's last flight takes
/// on a long path. Where it is longer, a source whose handshakes keep failing fills its part of the table with fewer of them than it may begin.
const UNDER_WAY: Duration = Duration::from_millis(300);
/// How long a handshake whose ClientHello is not complete keeps its place from newer ones where one that is no longer under way has a place too:
/// the datagrams of a first flight can be read one by one. Strangers who send half ClientHellos have nobody give way whose last flight takes longer
/// than [`UNDER_WAY`], unless they fill a source's part within this time.
const HELLO_UNDER_WAY: Duration = Duration::from_millis(100);
/// Of what a source may have, one in so many is kept from handshakes whose client has not shown that it repeats what is not answered.
const FREE_PART: usize = 4;
/// Widths at which an address is counted.
const WIDTHS: usize = 3;

/// A range of addresses that one sender may have for itself: an IPv4 address, or an IPv6 prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    network: IpAddr,
    bits: u8,
}

impl Prefix {
    /// The source that `address` belongs to: an IPv4 address, or an IPv6 /64, which one host fills at will.
    pub fn source(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => Prefix::of_v6(v6, 64),
            v4 => Prefix { network: v4, bits: 32 },
        }
    }

    fn of_v6(address: Ipv6Addr, bits: u8) -> Self {
        let network = Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - bits)));
        Prefix { network: network.into(), bits }
    }

    /// Every range in which `address` is counted, the narrowest first, as sites are given them (RFC 6177).
    pub fn widths(address: IpAddr) -> impl Iterator<Item = Self> {
        let wider = match address.to_canonical() {
            IpAddr::V6(v6) => [Some(Prefix::of_v6(v6, 56)), Some(Prefix::of_v6(v6, 48))],
            IpAddr::V4(_) => [None; WIDTHS - 1],
        };
        std::iter::once(Prefix::source(address)).chain(wider.into_iter().flatten())
    }

    /// How many sources' share the range has.
    pub fn shares(self) -> usize {
        match (self.network, self.bits) {
            (IpAddr::V6(_), 56) => BY_56_FACTOR,
            (IpAddr::V6(_), 48) => BY_48_FACTOR,
            _ => 1,
        }
    }
}

/// A pending handshake's place. Those that give way first compare as less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub has_hello: bool,
    number: u64,
}

impl Place {
    /// Before those of all handshakes whose ClientHello is complete, and after the others.
    const FIRST_WITH_HELLO: Place = Place { has_hello: true, number: 0 };
}

/// Whether another handshake finds room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It does.
    Free,
    /// Once the one in this slot has given way.
    InsteadOf(u32),
    /// Not now: all others of its source are under way.
    None,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    slot: u32,
    remote: SocketAddr,
    begun_at: Instant,
    /// When the ClientHello was complete.
    hello_at: Option<Instant>,
}

impl Pending {
    fn is_under_way(&self, now: Instant) -> bool {
        self.hello_at.is_some_and(|at| now.saturating_duration_since(at) < UNDER_WAY)
    }

    fn has_just_begun(&self, now: Instant) -> bool {
        self.hello_at.is_none() && now.saturating_duration_since(self.begun_at) < HELLO_UNDER_WAY
    }
}

#[derive(Debug)]
pub struct Admission {
    pending: BTreeMap<Place, Pending>,
    pending_max: usize,
    by_prefix: BTreeMap<Prefix, BTreeSet<Place>>,
    by_source_max: usize,
    /// Where they come from, each with its place's number.
    remotes: BTreeSet<(SocketAddr, u64)>,
    /// Number of the next place.
    next: u64,
}

impl Admission {
    pub fn new(pending_max: usize, by_source_max: usize) -> Self {
        Admission {
            pending: BTreeMap::new(),
            pending_max: pending_max.max(1),
            by_prefix: BTreeMap::new(),
            by_source_max: by_source_max.max(1),
            remotes: BTreeSet::new(),
            next: 0,
        }
    }

    /// Whether a handshake from `address` finds room.
    ///
    /// Where the table, or the part of it that the address may use, is full, the oldest whose ClientHello is not complete gives way, unless it has
    /// just begun, and only then the oldest that has still to prove its identity. So an honest client is put at a disadvantage by nobody who sends
    /// less than a whole table's worth of handshakes while it exchanges two flights. Its own neighbours behind a NAT fill their part sooner, so
    /// they do not have it give way as long as it may be under way.
    pub fn room(&self, now: Instant, address: IpAddr) -> Room {
        let full = |prefix: Prefix| {
            let places = self.by_prefix.get(&prefix)?;
            let with_hello = places.range(Place::FIRST_WITH_HELLO..).next();
            (places.len() >= self.prefix_max(prefix)).then(|| self.goes_first(now, places.first(), with_hello))?
        };
        if let Some(neighbour) = Prefix::widths(address).find_map(full) {
            return if neighbour.is_under_way(now) { Room::None } else { Room::InsteadOf(neighbour.slot) };
        }
        if self.pending.len() < self.pending_max {
            return Room::Free;
        }
        self.first_to_go(now).map_or(Room::Free, Room::InsteadOf)
    }

    /// The handshake that gives way to another one first, if there is any.
    pub fn first_to_go(&self, now: Instant) -> Option<u32> {
        let with_hello = self.pending.range(Place::FIRST_WITH_HELLO..).next();
        let first = self.pending.first_key_value();
        self.goes_first(now, first.map(|(place, _)| place), with_hello.map(|(place, _)| place))
            .map(|pending| pending.slot)
    }

    /// Which one of a range gives way: the `first` of all, or the first whose ClientHello is complete.
    fn goes_first(&self, now: Instant, first: Option<&Place>, with_hello: Option<&Place>) -> Option<&Pending> {
        let first = &self.pending[first?];
        let with_hello = with_hello.map(|place| &self.pending[place]).filter(|pending| !pending.is_under_way(now));
        Some(with_hello.filter(|_| first.has_just_begun(now)).unwrap_or(first))
    }

    /// Whether so many handshakes of a range that `address` is in wait for their clients that, if more came in at once, there would be no room.
    pub fn is_crowded(&self, now: Instant, address: IpAddr) -> bool {
        Prefix::widths(address).any(|prefix| {
            let max = self.prefix_max(prefix);
            let crowd = max - max / FREE_PART;
            let places = self.by_prefix.get(&prefix).filter(|places| places.len() >= crowd);
            // Those whose ClientHello is complete come last, the newest of them last of all.
            let of_crowd = places.and_then(|places| places.iter().nth_back(crowd - 1));
            of_crowd.is_some_and(|place| self.pending[place].is_under_way(now))
        })
    }

    /// Most handshakes of one prefix: none fills more than half of the table.
    fn prefix_max(&self, prefix: Prefix) -> usize {
        self.by_source_max.saturating_mul(prefix.shares()).min(self.pending_max.div_ceil(2))
    }

    /// Takes in the handshake of the connection in `slot`, for which [`Admission::room`] is free.
    pub fn admit(&mut self, now: Instant, remote: SocketAddr, slot: u32) -> Place {
        let place = Place { has_hello: false, number: self.next };
        self.next += 1;
        self.insert(place, Pending { slot, remote, begun_at: now, hello_at: None });
        place
    }

    /// The ClientHello of a handshake is complete.
    pub fn complete_hello(&mut self, now: Instant, place: &mut Place) {
        if let Some(pending) = self.remove(*place) {
            place.has_hello = true;
            self.insert(*place, Pending { hello_at: Some(now), ..pending });
        }
    }

    /// Whether a handshake from `remote` is in progress.
    pub fn knows(&self, remote: SocketAddr) -> bool {
        self.remotes.range((remote, 0)..=(remote, u64::MAX)).next().is_some()
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// A handshake that was admitted is over, one way or the other.
    pub fn release(&mut self, place: Place) {
        self.remove(place);
    }

    fn insert(&mut self, place: Place, pending: Pending) {
        for prefix in Prefix::widths(pending.remote.ip()) {
            self.by_prefix.entry(prefix).or_default().insert(place);
        }
        self.remotes.insert((pending.remote, place.number));
        self.pending.insert(place, pending);
    }

    fn remove(&mut self, place: Place) -> Option<Pending> {
        let pending = self.pending.remove(&place)?;
        self.remotes.remove(&(pending.remote, place.number));
        for prefix in Prefix::widths(pending.remote.ip()) {
            if let Some(places) = self.by_prefix.get_mut(&prefix) {
                places.remove(&place);
                if places.is_empty() {
                    self.by_prefix.remove(&prefix);
                }
            }
        }
        Some(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time::origin;

    /// Admits a handshake under the next slot, after whoever has to has given way. Returns its place and who that was.
    fn admit(admission: &mut Admission, address: &str) -> (Place, Option<u32>) {
        admit_at(admission, origin(), address).expect("room")
    }

    fn admit_at(admission: &mut Admission, now: Instant, address: &str) -> Option<(Place, Option<u32>)> {
        let address = address.parse().unwrap();
        let gone = match admission.room(now, address) {
            Room::None => return None,
            Room::Free => None,
            Room::InsteadOf(slot) => {
                let (&place, _) = admission.pending.iter().find(|(_, pending)| pending.slot == slot).unwrap();
                admission.release(place);
                assert_eq!(admission.room(now, address), Room::Free, "one that goes makes room");
                Some(slot)
            }
        };
        let slot = admission.next as u32;
        Some((admission.admit(now, SocketAddr::new(address, 1), slot), gone))
    }

    #[test]
    fn in_a_full_table_the_oldest_without_a_whole_client_hello_gives_way() {
        let mut admission = Admission::new(3, 2);
        let (mut first, _) = admit(&mut admission, "198.18.0.1");
        admit(&mut admission, "198.18.0.2");
        admit(&mut admission, "198.18.0.3");
        admission.complete_hello(origin(), &mut first);
        assert_eq!(admit(&mut admission, "198.18.0.4").1, Some(1));
        assert_eq!(admit(&mut admission, "198.18.0.5").1, Some(2));
        assert_eq!(admission.pending(), 3);
        admission.release(first);
        assert_eq!(admit(&mut admission, "198.18.0.6").1, None);
    }

    #[test]
    fn a_complete_client_hello_holds_a_place_only_until_all_others_have_one_too() {
        let mut admission = Admission::new(3, 3);
        for address in ["198.18.0.1", "198.18.0.2", "198.18.0.3"] {
            let (mut place, _) = admit(&mut admission, address);
            admission.complete_hello(origin(), &mut place);
        }
        assert_eq!(admit(&mut admission, "198.18.0.4").1, Some(0), "the oldest");
        assert_eq!(admit(&mut admission, "198.18.0.5").1, Some(3), "the only one without");
    }

    #[test]
    fn a_full_source_gives_up_its_own_and_nobody_elses() {
        let mut admission = Admission::new(10, 2);
        admit(&mut admission, "198.18.0.9");
        admit(&mut admission, "198.18.0.1");
        admit(&mut admission, "::ffff:198.18.0.1");
        assert_eq!(admit(&mut admission, "198.18.0.1").1, Some(1));
        assert_eq!(admit(&mut admission, "::ffff:198.18.0.1").1, Some(2));
        assert_eq!(admission.pending(), 3);
    }

    #[test]
    fn a_handshake_under_way_gives_way_to_none_of_its_source_for_a_while() {
        let start = origin();
        let mut admission = Admission::new(10, 2);
        for _ in 0..2 {
            let (mut place, _) = admit(&mut admission, "198.18.0.1");
            admission.complete_hello(start, &mut place);
        }
        let at = |ms| start + Duration::from_millis(ms);
        assert!(admit_at(&mut admission, at(0), "198.18.0.1").is_none());
        assert!(admit_at(&mut admission, at(299), "198.18.0.1").is_none());
        assert_eq!(admit_at(&mut admission, at(300), "198.18.0.1").unwrap().1, Some(0), "the oldest");
        assert_eq!(admit_at(&mut admission, at(400), "198.18.0.1").unwrap().1, Some(2), "the only one without");
        assert_eq!(admission.pending(), 2);
    }

    #[test]
    fn a_client_hello_that_is_read_in_parts_gives_way_to_none_while_an_old_handshake_has_a_place() {
        let start = origin();
        let at = |ms| start + Duration::from_millis(ms);
        let same = |_: u64| "198.18.0.9".to_owned();
        let other = |n: u64| format!("198.18.0.{n}");
        for (pending_max, address) in [(10, &same as &dyn Fn(u64) -> String), (3, &other)] {
            let mut admission = Admission::new(pending_max, 3);
            for number in 0..2 {
                let (mut place, _) = admit(&mut admission, &address(number));
                admission.complete_hello(start, &mut place);
            }
            let gone = [(1000, None), (1099, Some(0)), (1100, Some(2)), (1101, Some(1)), (1102, Some(3))];
            for ((ms, slot), number) in gone.into_iter().zip(2..) {
                assert_eq!(admit_at(&mut admission, at(ms), &address(number)).unwrap().1, slot, "after {ms} ms");
            }
        }
    }

    #[test]
    fn a_source_is_crowded_when_three_quarters_of_its_places_are_under_way() {
        let start = origin();
        let is_crowded = |admission: &Admission, ms| {
            admission.is_crowded(start + Duration::from_millis(ms), "198.18.0.1".parse().unwrap())
        };
        let mut admission = Admission::new(100, 8);
        for number in 0..6 {
            admit(&mut admission, "198.18.0.1");
            assert!(!is_crowded(&admission, 0), "beside {number} under way");
            let (mut place, _) = admit(&mut admission, "198.18.0.1");
            admission.complete_hello(start, &mut place);
        }
        assert!(is_crowded(&admission, 0) && is_crowded(&admission, 299));
        assert!(!is_crowded(&admission, 300));
        assert!(!admission.is_crowded(start, "198.18.0.2".parse().unwrap()));
    }

    #[test]
    fn ipv6_is_counted_by_64_by_56_and_by_48() {
        // Each address in a source of its own, of the stated range.
        let in_56 = |n: u64| format!("fd00:0:0:{n:x}::1");
        let in_48 = |n: u64| format!("fd00:0:0:{:x}::1", n << 8);
        let in_64 = |n: u64| format!("fd00::{n:x}");
        for (range, address, max) in
            [("/64", &in_64 as &dyn Fn(u64) -> String, 8), ("/56", &in_56, 16), ("/48", &in_48, 32)]
        {
            let mut admission = Admission::new(256, 8);
            let gone = (0..200).filter_map(|n| admit(&mut admission, &address(n)).1).count();
            assert_eq!((admission.pending(), gone), (max, 200 - max), "{range}");
            assert_eq!(admit(&mut admission, "fd00:0:1::1").1, None, "the neighbour of a {range} loses nothing");
        }
    }

    #[test]
    fn no_source_and_no_48_fills_a_small_table() {
        let one = |_: u64| "198.18.0.9".to_owned();
        let in_48 = |n: u64| format!("fd00:0:0:{:x}::1", n << 8);
        for pending_max in [2, 3, 4, 32, 33] {
            for address in [&one as &dyn Fn(u64) -> String, &in_48] {
                let mut admission = Admission::new(pending_max, 8.min(pending_max));
                for n in 0..100u64 {
                    admit(&mut admission, &address(n));
                }
                assert!(admission.pending() < pending_max, "{} of {pending_max}", admission.pending());
                assert_eq!(admit(&mut admission, "198.18.0.1").1, None);
            }
        }
    }

    #[test]
    fn a_table_for_one_is_for_the_newest() {
        let mut admission = Admission::new(1, 1);
        admit(&mut admission, "198.18.0.1");
        assert_eq!(admit(&mut admission, "198.18.0.2").1, Some(0));
        assert_eq!(admit(&mut admission, "fd00::1").1, Some(1));
    }

    #[test]
    fn sources_without_handshakes_take_no_memory() {
        let mut admission = Admission::new(10, 2);
        let (mut place, _) = admit(&mut admission, "fd00::1");
        assert!(admission.knows("[fd00::1]:1".parse().unwrap()) && !admission.knows("[fd00::1]:2".parse().unwrap()));
        admission.complete_hello(origin(), &mut place);
        admission.release(place);
        assert!(admission.by_prefix.is_empty() && admission.pending.is_empty() && admission.remotes.is_empty());
        assert_eq!(admission.first_to_go(origin()), None);
    }
}
