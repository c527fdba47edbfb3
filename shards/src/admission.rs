//! Which handshakes may begin: bounded in all and for each source.
//!
//! This module knows no connections.

use std::net::{IpAddr, Ipv6Addr};

use rustc_hash::FxHashMap;

/// Where a handshake comes from: an IPv4 address, or an IPv6 /64, which one host fills at will.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source(IpAddr);

impl Source {
    /// The source that `address` belongs to.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Source(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
            v4 => Source(v4),
        }
    }
}

/// The handshakes in progress.
#[derive(Debug)]
pub struct Admission {
    pending: usize,
    pending_max: usize,
    by_source: FxHashMap<Source, usize>,
    by_source_max: usize,
}

impl Admission {
    /// None in progress.
    pub fn new(pending_max: usize, by_source_max: usize) -> Self {
        Admission { pending: 0, pending_max, by_source: FxHashMap::default(), by_source_max }
    }

    /// Takes in a handshake from `source`, unless too many are in progress.
    pub fn admit(&mut self, source: Source) -> bool {
        if self.pending >= self.pending_max {
            return false;
        }
        let from_source = self.by_source.entry(source).or_default();
        let admitted = *from_source < self.by_source_max;
        if admitted {
            *from_source += 1;
            self.pending += 1;
        }
        admitted
    }

    /// Handshakes in progress.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// A handshake that was admitted is over, one way or the other.
    pub fn release(&mut self, source: Source) {
        self.pending -= 1;
        if let Some(from_source) = self.by_source.get_mut(&source) {
            *from_source -= 1;
            if *from_source == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str) -> Source {
        Source::of(address.parse().unwrap())
    }

    #[test]
    fn one_source_cannot_take_all_places() {
        let mut admission = Admission::new(3, 2);
        assert!(admission.admit(source("198.18.0.1")));
        assert!(admission.admit(source("::ffff:198.18.0.1")));
        assert!(!admission.admit(source("198.18.0.1")));
        assert!(admission.admit(source("198.18.0.2")));
        assert!(!admission.admit(source("198.18.0.3")), "full");
        admission.release(source("198.18.0.1"));
        assert!(admission.admit(source("198.18.0.3")));
    }

    #[test]
    fn a_64_is_one_source() {
        assert_eq!(source("fd00::1"), source("fd00::ffff:1:2:3"));
        assert_ne!(source("fd00::1"), source("fd00:0:0:1::1"));
    }

    #[test]
    fn sources_without_handshakes_take_no_memory() {
        let mut admission = Admission::new(10, 2);
        admission.admit(source("198.18.0.1"));
        admission.release(source("198.18.0.1"));
        assert!(admission.by_source.is_empty());
    }
}
