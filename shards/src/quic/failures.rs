//! Sources whose handshakes keep failing, and what they cost: a handshake that comes to nothing takes a thousand times what an Initial without
//! a token does. Whoever goes on with it is ignored for a while, but for a share in which honest clients behind the same NAT come in.
//!
//! The crate `ratelimit` has one limiter of some 100 bytes for each thing limited. Sources are limited here by two words each, in a table that
//! cannot grow: two rows of counters under keyed hashes, of which the lesser one counts (a count-min sketch).
//!
//! This module knows no connections.

use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use siphasher::sip::SipHasher24;

use crate::quic::admission::Prefix;

/// Counters of a row. With some thousand failing sources, one honest source in a hundred is taken for one of them.
const COUNTERS_MAX: usize = 4096;
const ROWS: usize = 2;

/// What a handshake costs that fails once the ClientHello is complete: key exchange and signature.
pub const COST_OF_FAILURE: Duration = Duration::from_millis(1);
/// What one costs that gave way before.
pub const COST_OF_HALF: Duration = Duration::from_micros(50);

/// One source may cost a hundredth of a core's time, and so much of it at once.
const SHARE: u32 = 100;
const BURST: Duration = Duration::from_millis(32);

/// While a source is ignored: handshakes that are let in nevertheless, of one port and of the source.
const PAUSE_OF_PORT: Duration = Duration::from_secs(1);
const PAUSE_OF_SOURCE: Duration = Duration::from_millis(50);
const RESERVED_BURST: u32 = 8;

/// What each counter tells apart.
#[derive(Clone, Copy)]
enum Of {
    Failures(Prefix),
    ReservedPort(SocketAddr),
    Reserved(Prefix),
}

/// The failures of all sources.
pub struct Failures {
    key: [u8; 16],
    /// When each counter will be empty, in nanoseconds since `start`.
    empty_at: Box<[[u64; COUNTERS_MAX]; ROWS]>,
    start: Instant,
}

impl Failures {
    /// No failures. `key` is nobody else's.
    pub fn new(key: [u8; 16], now: Instant) -> Self {
        Failures { key, empty_at: Box::new([[0; COUNTERS_MAX]; ROWS]), start: now }
    }

    /// A handshake from `address` has come to nothing, at the stated cost.
    pub fn count(&mut self, now: Instant, address: IpAddr, cost: Duration) {
        for prefix in Prefix::widths(address) {
            // Wider ranges have more, as they have more places.
            let pause = cost * SHARE / prefix.shares() as u32;
            self.add(now, Of::Failures(prefix), pause);
        }
    }

    /// Whether the source of `address` is ignored at present.
    pub fn is_ignored(&self, now: Instant, address: IpAddr) -> bool {
        Prefix::widths(address).any(|prefix| self.level(now, Of::Failures(prefix)) > BURST * SHARE)
    }

    /// Whether a handshake from `remote` may begin. `persists` is whether the client has been at it for some time: one that is ignored repeats
    /// its Initial after a second, with the same token and from the same port.
    pub fn admits(&mut self, now: Instant, remote: SocketAddr, persists: bool) -> bool {
        if !self.is_ignored(now, remote.ip()) {
            return true;
        }
        let port = Of::ReservedPort(remote);
        let source = Of::Reserved(Prefix::source(remote.ip()));
        let has_room = self.level(now, port).is_zero()
            && self.level(now, source) + PAUSE_OF_SOURCE <= PAUSE_OF_SOURCE * RESERVED_BURST;
        if !persists || !has_room {
            return false;
        }
        self.add(now, port, PAUSE_OF_PORT);
        self.add(now, source, PAUSE_OF_SOURCE);
        true
    }

    fn add(&mut self, now: Instant, of: Of, pause: Duration) {
        let now = self.nanoseconds(now);
        let pause = pause.as_nanos() as u64;
        for (row, place) in self.places(of).into_iter().enumerate() {
            let empty_at = &mut self.empty_at[row][place];
            // Failures while it is ignored do not keep a source out for longer than the burst's time.
            let most = now + 2 * (BURST * SHARE).as_nanos() as u64;
            *empty_at = ((*empty_at).max(now) + pause).min(most);
        }
    }

    fn level(&self, now: Instant, of: Of) -> Duration {
        let now = self.nanoseconds(now);
        let levels = self.places(of).into_iter().enumerate().map(|(row, place)| {
            let empty_at = self.empty_at[row][place];
            empty_at.saturating_sub(now)
        });
        Duration::from_nanos(levels.min().unwrap_or_default())
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_nanos() as u64
    }

    fn places(&self, of: Of) -> [usize; ROWS] {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        match of {
            Of::Failures(prefix) => write_prefix(&mut hasher, 0, prefix),
            Of::Reserved(prefix) => write_prefix(&mut hasher, 1, prefix),
            Of::ReservedPort(remote) => {
                write_prefix(&mut hasher, 2, Prefix::source(remote.ip()));
                hasher.write_u16(remote.port());
            }
        }
        let hash = hasher.finish();
        [hash as usize % COUNTERS_MAX, (hash >> 32) as usize % COUNTERS_MAX]
    }
}

fn write_prefix(hasher: &mut SipHasher24, kind: u8, prefix: Prefix) {
    let (network, bits) = prefix.parts();
    hasher.write_u8(kind);
    hasher.write_u8(bits);
    match network {
        IpAddr::V4(v4) => hasher.write(&v4.octets()),
        IpAddr::V6(v6) => hasher.write(&v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures() -> (Failures, Instant) {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
        let now = Instant::now();
        (Failures::new([7; 16], now), now)
    }

    fn from(ip: &str, port: u16) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), port)
    }

    /// A loop that fails as fast as it can, each time from another port, for `seconds`. Returns how many handshakes came in.
    fn fail(failures: &mut Failures, now: &mut Instant, ip: &str, seconds: u64, persists: bool) -> usize {
        let mut admitted = 0;
        for attempt in 0..seconds * 500 {
            if failures.admits(*now, from(ip, 1000 + (attempt % 60_000) as u16), persists) {
                admitted += 1;
                failures.count(*now, ip.parse().unwrap(), COST_OF_FAILURE);
            }
            *now += Duration::from_millis(2);
        }
        admitted
    }

    #[test]
    fn a_source_that_fails_fast_gets_ten_a_second() {
        let (mut failures, mut now) = failures();
        assert!(fail(&mut failures, &mut now, "198.18.0.1", 1, false) <= 45);
        let admitted = fail(&mut failures, &mut now, "198.18.0.1", 20, false);
        assert!((150..=220).contains(&admitted), "{admitted} in 20 s");
        assert!(failures.admits(now, from("198.18.0.2", 1), false), "its neighbour is nobody's business");
    }

    #[test]
    fn who_persists_comes_in_beside_a_source_that_fails_fast() {
        let (mut failures, mut now) = failures();
        fail(&mut failures, &mut now, "198.18.0.1", 5, false);
        for port in 1..20 {
            fail(&mut failures, &mut now, "198.18.0.1", 1, false);
            // Unless the burst has just room, the first attempt is in vain.
            assert!(failures.admits(now, from("198.18.0.1", port), true), "port {port}");
        }
    }

    #[test]
    fn persisting_with_one_port_or_with_all_gets_a_share_and_no_more() {
        let (mut failures, mut now) = failures();
        (0..100).for_each(|_| failures.count(now, "198.18.0.1".parse().unwrap(), COST_OF_FAILURE));
        let of_port = (0..1000).filter(|_| failures.admits(now, from("198.18.0.1", 1), true)).count();
        assert_eq!(of_port, 1);
        let admitted = fail(&mut failures, &mut now, "198.18.0.1", 10, true);
        assert!(admitted <= 320, "{admitted} in 10 s");
    }

    #[test]
    fn a_source_that_stops_failing_is_heard_again() {
        let (mut failures, mut now) = failures();
        fail(&mut failures, &mut now, "198.18.0.1", 60, true);
        assert!(failures.is_ignored(now, "198.18.0.1".parse().unwrap()));
        now += 2 * BURST * SHARE;
        assert!(!failures.is_ignored(now, "198.18.0.1".parse().unwrap()));
    }

    #[test]
    fn an_ipv6_site_is_one_source() {
        let (mut failures, now) = failures();
        for subnet in 0..400u16 {
            let address = IpAddr::from(std::net::Ipv6Addr::new(0xfd00, 0, 0, subnet, 0, 0, 0, 1));
            failures.count(now, address, COST_OF_FAILURE);
        }
        assert!(failures.is_ignored(now, "fd00:0:0:ffff::1".parse().unwrap()));
        assert!(!failures.is_ignored(now, "fd00:0:1::1".parse().unwrap()));
    }

    #[test]
    fn half_handshakes_count_for_little() {
        let (mut failures, now) = failures();
        for _ in 0..256 {
            failures.count(now, "198.18.0.1".parse().unwrap(), COST_OF_HALF);
        }
        assert!(!failures.is_ignored(now, "198.18.0.1".parse().unwrap()));
    }
}
