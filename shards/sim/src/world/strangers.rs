//! Strangers on the network: from addresses that no client has they send what they overheard of clients, as it was or changed, and what they made
//! up. What the gateway sends to such an address is bounded by what came from there (RFC 9000, section 8).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::BytesMut;
use rustc_hash::FxHashMap;

use super::{Event, World};
use crate::link::Aggregate;
use crate::oracle::Violation;
use crate::random::Stream;

/// Datagrams that are remembered.
const OVERHEARD_MAX: usize = 32;
/// Most bytes of a datagram that is made up.
const DATAGRAM_BYTES_MAX: u64 = 1472;
/// An address that has proven nothing gets at most so many times the bytes that came from it, and a datagram of each connection that has moved
/// there: the challenge, whatever came (RFC 9000, section 8.2.1).
const AMPLIFICATION_MAX: u64 = 3;

#[derive(Debug)]
pub(crate) struct Strangers {
    random: Stream,
    overheard: Vec<Vec<u8>>,
    addresses: FxHashMap<SocketAddr, Exchange>,
    last: Option<SocketAddr>,
}

/// What has gone between a stranger's address and the gateway.
#[derive(Debug, Default)]
struct Exchange {
    received_bytes: u64,
    sent_bytes: u64,
    /// Connections that may have been taken for moved there, by their IDs.
    moved: BTreeSet<Vec<u8>>,
}

impl Strangers {
    pub fn new(seed: u64) -> Self {
        let random = Stream::new(seed, "strangers");
        Strangers { random, overheard: Vec::new(), addresses: FxHashMap::default(), last: None }
    }

    /// A client sends a datagram.
    pub fn overhear(&mut self, datagram: &[u8]) {
        // Not all, so that what is remembered is of different times.
        if self.overheard.len() < OVERHEARD_MAX {
            self.overheard.push(datagram.to_vec());
        } else if self.random.permille(200) {
            let place = self.random.index(OVERHEARD_MAX);
            self.overheard[place] = datagram.to_vec();
        }
    }

    /// The gateway sends to some address.
    pub fn sent(&mut self, to: SocketAddr, bytes: usize) -> Result<(), Violation> {
        let Some(exchange) = self.addresses.get_mut(&to) else { return Ok(()) };
        exchange.sent_bytes += bytes as u64;
        let Exchange { received_bytes, sent_bytes, moved } = exchange;
        let free_bytes = moved.len() as u64 * DATAGRAM_BYTES_MAX;
        if *sent_bytes <= AMPLIFICATION_MAX * *received_bytes + free_bytes {
            return Ok(());
        }
        let moved = moved.len();
        let what =
            format!("{to} got {sent_bytes} bytes for {received_bytes}, where {moved} connections may have moved");
        Err(Violation::new("amplification", what))
    }

    /// An address for the next datagram: a new one, or the one before.
    fn address(&mut self) -> SocketAddr {
        if let Some(last) = self.last.filter(|_| self.random.permille(600)) {
            return last;
        }
        let host = self.random.between(0, 1 << 15) as u32;
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 19, 128, 0)) + host);
        let address = SocketAddr::from((ip, 1024 + self.random.between(0, 60_000) as u16));
        self.last = Some(address);
        address
    }

    /// The next datagram, and where it comes from.
    fn datagram(&mut self) -> (SocketAddr, Vec<u8>) {
        let place = self.random.index(OVERHEARD_MAX);
        let mut datagram = self.overheard.get(place).cloned().unwrap_or_default();
        match self.random.between(0, 8) {
            0 => {
                datagram = vec![0; self.random.log_uniform(1, DATAGRAM_BYTES_MAX) as usize];
                self.random.fill(&mut datagram);
            }
            1 => datagram.truncate(self.random.between(1, 1 + datagram.len() as u64) as usize),
            // Another connection ID: of 8 bytes or so, behind the first byte or, in a long header, the version and a length (RFC 8999).
            2 | 3 => {
                let is_long = datagram.first().is_some_and(|first| first & 0x80 != 0);
                let start = if is_long { 6 } else { 1 };
                let mut id = [0; 8];
                self.random.fill(&mut id);
                datagram.iter_mut().skip(start).zip(id).for_each(|(byte, other)| *byte = other);
            }
            4 if !datagram.is_empty() => {
                let place = self.random.index(datagram.len());
                datagram[place] ^= 1 << self.random.between(0, 8);
            }
            _ => {}
        }
        let from = self.address();
        let exchange = self.addresses.entry(from).or_default();
        exchange.received_bytes += datagram.len() as u64;
        if datagram.first().is_some_and(|first| first & 0x80 == 0) {
            exchange.moved.extend(datagram.get(1..9).map(<[u8]>::to_vec));
        }
        (from, datagram)
    }
}

impl World {
    /// Strangers send some datagrams.
    pub(super) fn strangers_send(&mut self) {
        if self.is_calm {
            return;
        }
        for _ in 0..self.strangers.random.log_uniform(1, 64) {
            let (from, datagram) = self.strangers.datagram();
            let data = BytesMut::from(&datagram[..]);
            self.reach_gateway(from, Aggregate { segment_bytes: data.len().max(1), ecn: None, data });
        }
        let pause = self.strangers.random.around(self.plan.disturbances.strangers_every);
        self.schedule.at(self.now + pause + Duration::from_millis(1), Event::Strangers);
    }
}
