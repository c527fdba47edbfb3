//! Sources whose handshakes keep failing, and what they cost: a handshake that comes to nothing takes a thousand times what an Initial without
//! a token does. Each source has a budget. Beyond it a client has to show that it is there by repeating what it sent, which costs it a round
//! trip; far beyond it the source is ignored, but for a share in which honest clients behind the same NAT come in.
//!
//! Sources are limited by two words each, in a table that cannot grow: two rows of counters under keyed hashes, of which the lesser one counts (a
//! count-min sketch).

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use siphasher::sip::SipHasher24;

use crate::quic::admission::Prefix;

/// Counters of a row. With some thousand failing sources, one honest source in a hundred is taken for one of them.
const COUNTERS_MAX: usize = 4096;
const ROWS: usize = 2;

/// What a handshake of TLS or of any kind of Noise costs at most that fails once its first message is complete: key exchange and signature. Measured were
/// 0.3 to 0.5 ms; the rest is for slower processors.
pub const COST_OF_FAILURE: Duration = Duration::from_millis(1);
/// What one costs that gave way before.
pub const COST_OF_HALF: Duration = Duration::from_micros(50);

/// One source may cost a tenth of a core's time, and so much of it at once.
const SHARE: u32 = 10;
const BURST: Duration = Duration::from_millis(64);
/// All together may cost a quarter. Where they cost more, each counts as if it had a hundredth.
const SHARE_OF_ALL: u32 = 4;
const BURST_OF_ALL: Duration = Duration::from_millis(256);
const SCARCITY: u32 = 10;

/// Levels at which a source is doubted, at which it is ignored, and which it does not exceed, so that it is heard again soon.
const DOUBTED_ABOVE: Duration = BURST.saturating_mul(SHARE);
const IGNORED_ABOVE: Duration = DOUBTED_ABOVE.saturating_mul(2);
const LEVEL_MAX: Duration = DOUBTED_ABOVE.saturating_mul(3);

/// How long a port is remembered from which a first packet came that was not heard.
const REMEMBERED: Duration = Duration::from_millis(500);

/// While a source is ignored: handshakes that are let in nevertheless, of one port and of the source.
const PAUSE_OF_PORT: Duration = Duration::from_secs(1);
const PAUSE_OF_SOURCE: Duration = Duration::from_millis(50);
const RESERVED_BURST: u32 = 8;

/// How the handshakes of a source are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As they come.
    Heard,
    /// From clients that have shown that they repeat what is not answered.
    Doubted,
    /// A few, from clients that have been at it for a second.
    Ignored,
}

#[cfg(feature = "inspect")]
impl Standing {
    pub fn name(self) -> &'static str {
        match self {
            Standing::Heard => "heard",
            Standing::Doubted => "doubted",
            Standing::Ignored => "ignored",
        }
    }
}

/// What each counter tells apart.
#[derive(Clone, Copy, Hash)]
enum Of {
    Failures(Prefix),
    Reserved(Prefix),
    /// A port of a source.
    ReservedPort(Prefix, u16),
    Unheard(Prefix, u16),
}

pub struct Failures {
    failures: Sketch,
    /// Apart, since strangers fill it with as many ports as they like.
    ports: Sketch,
    /// When the counter of all together will be empty.
    all_empty_at: u64,
    start: Instant,
}

impl Failures {
    /// No failures. `key` is nobody else's.
    pub fn new(key: [u8; 16], now: Instant) -> Self {
        Failures { failures: Sketch::new(key), ports: Sketch::new(key), all_empty_at: 0, start: now }
    }

    /// A handshake from `address` has come to nothing, at the stated cost.
    pub fn count(&mut self, now: Instant, address: IpAddr, cost: Duration) {
        let now = self.nanoseconds(now);
        let of_all = nanoseconds_of(BURST_OF_ALL * SHARE_OF_ALL);
        let is_scarce = self.all_empty_at.saturating_sub(now) > of_all;
        self.all_empty_at = (self.all_empty_at.max(now) + nanoseconds_of(cost * SHARE_OF_ALL)).min(now + 2 * of_all);
        let scarcity = if is_scarce { SCARCITY } else { 1 };
        for prefix in Prefix::widths(address) {
            // Wider ranges have more, as they have more places.
            let pause = cost * SHARE * scarcity / prefix.shares() as u32;
            self.failures.add(now, Of::Failures(prefix), pause);
        }
    }

    /// How handshakes from `address` are taken at present.
    pub fn standing(&self, now: Instant, address: IpAddr) -> Standing {
        let now = self.nanoseconds(now);
        let levels = Prefix::widths(address).map(|prefix| self.failures.level(now, Of::Failures(prefix)));
        match levels.max().unwrap_or_default() {
            level if level <= DOUBTED_ABOVE => Standing::Heard,
            level if level <= IGNORED_ABOVE => Standing::Doubted,
            _ => Standing::Ignored,
        }
    }

    /// Whether a first packet came from `remote` before, a moment ago. The next one has.
    ///
    /// A ClientHello of hybrid key exchange takes two datagrams. The first one is missed then, and its client repeats it as soon as the
    /// other one is acknowledged (RFC 9002, section 6.1.2); half a ClientHello costs little.
    pub fn is_repeated(&mut self, now: Instant, remote: SocketAddr) -> bool {
        let now = self.nanoseconds(now);
        let of = Of::Unheard(Prefix::source(remote.ip()), remote.port());
        let is_repeated = !self.ports.level(now, of).is_zero();
        if !is_repeated {
            self.ports.add(now, of, REMEMBERED);
        }
        is_repeated
    }

    /// Whether a handshake from `remote` may begin, if its source is ignored: `persists` is whether the client has been at it for some time. One
    /// that is ignored repeats its Initial after a second, with the same token and from the same port.
    pub fn admits(&mut self, now: Instant, remote: SocketAddr, persists: bool) -> bool {
        if self.standing(now, remote.ip()) != Standing::Ignored {
            return true;
        }
        let now = self.nanoseconds(now);
        let prefix = Prefix::source(remote.ip());
        let (source, port) = (Of::Reserved(prefix), Of::ReservedPort(prefix, remote.port()));
        let has_room = self.failures.level(now, port).is_zero()
            && self.failures.level(now, source) + PAUSE_OF_SOURCE <= PAUSE_OF_SOURCE * RESERVED_BURST;
        if !persists || !has_room {
            return false;
        }
        self.failures.add(now, port, PAUSE_OF_PORT);
        self.failures.add(now, source, PAUSE_OF_SOURCE);
        true
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        nanoseconds_of(now.saturating_duration_since(self.start))
    }
}

/// Leaky buckets for any number of things, in bounded memory.
struct Sketch {
    key: [u8; 16],
    /// When each counter will be empty, in nanoseconds.
    empty_at: Box<[[u64; COUNTERS_MAX]; ROWS]>,
}

impl Sketch {
    fn new(key: [u8; 16]) -> Self {
        Sketch { key, empty_at: Box::new([[0; COUNTERS_MAX]; ROWS]) }
    }

    fn add(&mut self, now: u64, of: Of, pause: Duration) {
        for (row, place) in self.places(of).into_iter().enumerate() {
            let empty_at = &mut self.empty_at[row][place];
            *empty_at = ((*empty_at).max(now) + nanoseconds_of(pause)).min(now + nanoseconds_of(LEVEL_MAX));
        }
    }

    fn level(&self, now: u64, of: Of) -> Duration {
        let levels = self.places(of).into_iter().enumerate().map(|(row, place)| {
            let empty_at = self.empty_at[row][place];
            empty_at.saturating_sub(now)
        });
        Duration::from_nanos(levels.min().unwrap_or_default())
    }

    fn places(&self, of: Of) -> [usize; ROWS] {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        of.hash(&mut hasher);
        let hash = hasher.finish();
        [hash as usize % COUNTERS_MAX, (hash >> 32) as usize % COUNTERS_MAX]
    }
}

fn nanoseconds_of(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time::origin;

    fn failures() -> (Failures, Instant) {
        let now = origin();
        (Failures::new([7; 16], now), now)
    }

    fn from(ip: &str, port: u16) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), port)
    }

    fn is_ignored(failures: &Failures, now: Instant, ip: &str) -> bool {
        failures.standing(now, ip.parse().unwrap()) == Standing::Ignored
    }

    /// Sources that fail as fast as they can, each time from another port, for `seconds`. Returns how many handshakes came in.
    fn fail(failures: &mut Failures, now: &mut Instant, sources: &[&str], seconds: u64, persists: bool) -> usize {
        let mut admitted = 0;
        for attempt in 0..seconds * 500 {
            for ip in sources {
                if failures.admits(*now, from(ip, 1000 + (attempt % 60_000) as u16), persists) {
                    admitted += 1;
                    failures.count(*now, ip.parse().unwrap(), COST_OF_FAILURE);
                }
            }
            *now += Duration::from_millis(2);
        }
        admitted
    }

    #[test]
    fn a_source_that_fails_fast_costs_a_tenth_of_a_core() {
        let (mut failures, mut now) = failures();
        assert!(fail(&mut failures, &mut now, &["198.18.0.1"], 1, false) <= 240);
        let admitted = fail(&mut failures, &mut now, &["198.18.0.1"], 20, false);
        assert!((1900..=2050).contains(&admitted), "{admitted} in 20 s");
        assert!(failures.admits(now, from("198.18.0.2", 1), false), "its neighbour is nobody's business");
    }

    #[test]
    fn many_sources_that_fail_fast_cost_a_hundredth_of_a_core_each() {
        let (mut failures, mut now) = failures();
        let sources: Vec<_> = (0..10).map(|host| format!("198.18.0.{host}")).collect();
        let sources: Vec<_> = sources.iter().map(String::as_str).collect();
        fail(&mut failures, &mut now, &sources, 5, false);
        let admitted = fail(&mut failures, &mut now, &sources, 20, false);
        assert!((20 * 100..20 * 280).contains(&admitted), "{admitted} in 20 s");
    }

    #[test]
    fn a_source_is_doubted_before_it_is_ignored() {
        let (mut failures, now) = failures();
        let ip = "198.18.0.1".parse().unwrap();
        let mut standings = Vec::new();
        for _ in 0..200 {
            standings.push(failures.standing(now, ip));
            failures.count(now, ip, COST_OF_FAILURE);
        }
        let number = |standing| standings.iter().filter(|&&other| other == standing).count();
        assert_eq!((number(Standing::Heard), number(Standing::Doubted)), (65, 64));
        assert!(standings.is_sorted_by_key(|standing| *standing as u8));
    }

    #[test]
    fn a_port_is_remembered_for_a_moment() {
        let (mut failures, now) = failures();
        let port = from("198.18.0.1", 1);
        assert!(!failures.is_repeated(now, port) && failures.is_repeated(now, port));
        assert!(!failures.is_repeated(now, from("198.18.0.1", 2)));
        assert!(!failures.is_repeated(now + REMEMBERED, port));
    }

    /// Otherwise strangers would have honest sources ignored by filling the table.
    #[test]
    fn any_number_of_ports_says_nothing_about_a_source() {
        let (mut failures, now) = failures();
        for port in 0..=u16::MAX {
            failures.is_repeated(now, from("198.18.0.1", port));
        }
        let hosts = (0..=255).map(|host| IpAddr::from([198, 18, 7, host]));
        assert!(hosts.into_iter().all(|ip| failures.standing(now, ip) == Standing::Heard));
    }

    #[test]
    fn who_persists_comes_in_beside_a_source_that_fails_fast() {
        let (mut failures, mut now) = failures();
        fail(&mut failures, &mut now, &["198.18.0.1"], 5, false);
        for port in 1..20 {
            fail(&mut failures, &mut now, &["198.18.0.1"], 1, false);
            // Unless the burst has just room, the first attempt is in vain.
            assert!(failures.admits(now, from("198.18.0.1", port), true), "port {port}");
        }
    }

    #[test]
    fn persisting_with_one_port_or_with_all_gets_a_share_and_no_more() {
        let (mut failures, mut now) = failures();
        (0..400).for_each(|_| failures.count(now, "198.18.0.1".parse().unwrap(), COST_OF_FAILURE));
        let of_port = (0..1000).filter(|_| failures.admits(now, from("198.18.0.1", 1), true)).count();
        assert_eq!(of_port, 1);
        let admitted = fail(&mut failures, &mut now, &["198.18.0.1"], 10, true);
        assert!(admitted <= 10 * (100 + 20) + 128, "{admitted} in 10 s");
    }

    #[test]
    fn a_source_that_stops_failing_is_heard_again() {
        let (mut failures, mut now) = failures();
        fail(&mut failures, &mut now, &["198.18.0.1"], 60, true);
        assert_ne!(failures.standing(now, "198.18.0.1".parse().unwrap()), Standing::Heard);
        now += Duration::from_secs(2);
        assert_eq!(failures.standing(now, "198.18.0.1".parse().unwrap()), Standing::Heard);
    }

    #[test]
    fn an_ipv6_site_is_one_source() {
        let (mut failures, now) = failures();
        for subnet in 0..800u16 {
            let address = IpAddr::from(std::net::Ipv6Addr::new(0xfd00, 0, 0, subnet, 0, 0, 0, 1));
            failures.count(now, address, COST_OF_FAILURE);
        }
        assert!(is_ignored(&failures, now, "fd00:0:0:ffff::1"));
        assert!(!is_ignored(&failures, now, "fd00:0:1::1"));
    }

    #[test]
    fn half_handshakes_count_for_little() {
        let (mut failures, now) = failures();
        let ip = "198.18.0.1".parse().unwrap();
        for _ in 0..1024 {
            failures.count(now, ip, COST_OF_HALF);
        }
        assert_eq!(failures.standing(now, ip), Standing::Heard);
    }
}
