//! Strangers on the network: from addresses that no client has they send what they overheard of clients, as it was or changed, and what they made
//! up. What the gateway sends to such an address is bounded by what came from there (RFC 9000, section 8).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::BytesMut;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{Event, World};
use crate::link::Aggregate;
use crate::oracle::Violation;
use crate::plan::{Feature, Plan};
use crate::random::Stream;

/// Datagrams that are remembered.
const OVERHEARD_MAX: usize = 32;
/// Most bytes of a datagram that is made up.
const DATAGRAM_BYTES_MAX: u64 = 1472;
/// An address that has proven nothing gets at most so many times the bytes that came from it, and a datagram of each connection that has moved
/// there: the challenge, whatever came (RFC 9000, section 8.2.1).
const AMPLIFICATION_MAX: u64 = 3;
/// IDs that are made up and pass for the gateway's: of 65,536 one does by chance.
const GUESSED_MAX: u32 = 3;

#[derive(Debug)]
pub(crate) struct Strangers {
    random: Stream,
    /// Which of them have addresses of IPv6, where the gateway has one too.
    v6: Option<Stream>,
    /// Length of the gateway's connection IDs.
    id_bytes: usize,
    overheard: Vec<Vec<u8>>,
    /// Connection IDs that were made up, and how often the gateway has taken one for its own.
    made_up: FxHashSet<Vec<u8>>,
    guessed: u32,
    addresses: FxHashMap<SocketAddr, Exchange>,
    last: Option<SocketAddr>,
}

/// What has gone between a stranger's address and the gateway.
#[derive(Debug, Default)]
struct Exchange {
    received_bytes: u64,
    sent_bytes: u64,
    /// Whether it has shown a token that was sent there.
    is_proven: bool,
    /// Whether anything came from there but made-up IDs.
    is_owed: bool,
    /// Connections that may have been taken for moved there, by their IDs.
    moved: BTreeSet<Vec<u8>>,
}

impl Strangers {
    pub fn new(plan: &Plan) -> Self {
        let draws = &plan.draws;
        Strangers {
            random: draws.stream("strangers"),
            v6: plan.features.has(Feature::OuterAddresses).then(|| draws.stream("strangers.v6")),
            id_bytes: plan.layout.id_bytes,
            overheard: Vec::new(),
            made_up: FxHashSet::default(),
            guessed: 0,
            addresses: FxHashMap::default(),
            last: None,
        }
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
        if !exchange.is_owed {
            return self.guesses("an answer");
        }
        let Exchange { received_bytes, sent_bytes, is_proven, moved, .. } = exchange;
        let free_bytes = moved.len() as u64 * DATAGRAM_BYTES_MAX;
        if *is_proven || *sent_bytes <= AMPLIFICATION_MAX * *received_bytes + free_bytes {
            return Ok(());
        }
        let moved = moved.len();
        let what =
            format!("{to} got {sent_bytes} bytes for {received_bytes}, where {moved} connections may have moved");
        Err(Violation::new("amplification", what))
    }

    /// A datagram crosses from one shard to another.
    pub fn crosses(&mut self, datagram: &[u8]) -> Result<(), Violation> {
        if self.is_made_up(datagram) { self.guesses("a way to another shard") } else { Ok(()) }
    }

    /// Whether a datagram begins with a short header whose ID was made up.
    fn is_made_up(&self, datagram: &[u8]) -> bool {
        let is_short = datagram.first().is_some_and(|first| first & 0x80 == 0);
        is_short && datagram.get(1..9).is_some_and(|id| self.made_up.contains(id))
    }

    /// A made-up ID has got something that only the gateway's own do.
    fn guesses(&mut self, what: &str) -> Result<(), Violation> {
        self.guessed += 1;
        if self.guessed <= GUESSED_MAX {
            return Ok(());
        }
        Err(Violation::new("guesses", format!("{} made-up connection IDs have got {what}", self.guessed)))
    }

    /// An address for the next datagram: a new one, or the one before.
    fn address(&mut self) -> SocketAddr {
        if let Some(last) = self.last.filter(|_| self.random.permille(600)) {
            return last;
        }
        let host = self.random.between(0, 1 << 15) as u32;
        let ip = match self.v6.as_mut().is_some_and(|v6| v6.permille(400)) {
            true => IpAddr::from(Ipv6Addr::new(0xfd00, 0x1a, 0, 0, 0, 0, 0, host as u16)),
            false => IpAddr::from(Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 19, 128, 0)) + host)),
        };
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
                self.made_up.extend(datagram.get(1..9).filter(|_| !is_long).map(<[u8]>::to_vec));
            }
            4 if !datagram.is_empty() => {
                let place = self.random.index(datagram.len());
                datagram[place] ^= 1 << self.random.between(0, 8);
            }
            _ => {}
        }
        let from = self.address();
        self.sends(from, &datagram);
        (from, datagram)
    }

    /// A stranger sends a datagram.
    pub fn sends(&mut self, from: SocketAddr, datagram: &[u8]) {
        let is_made_up = self.is_made_up(datagram);
        let exchange = self.addresses.entry(from).or_default();
        exchange.is_owed |= !is_made_up;
        exchange.received_bytes += datagram.len() as u64;
        exchange.moved.extend(short_header_id(datagram, self.id_bytes).map(<[u8]>::to_vec));
    }

    /// A stranger shows a token that was sent to its address.
    pub fn proves(&mut self, address: SocketAddr) {
        let exchange = self.addresses.entry(address).or_default();
        (exchange.is_proven, exchange.is_owed) = (true, true);
    }
}

/// The connection ID of the packet with a short header in a datagram: it may stand behind such with long ones (RFC 9000, section 12.2).
fn short_header_id(datagram: &[u8], id_bytes: usize) -> Option<&[u8]> {
    let mut rest = datagram;
    while *rest.first()? & 0x80 != 0 {
        rest = behind_long_header(rest)?;
    }
    rest.get(1..1 + id_bytes)
}

/// What stands behind a packet with a long header (RFC 9000, section 17.2).
fn behind_long_header(packet: &[u8]) -> Option<&[u8]> {
    let is_initial = packet.first()? & 0x30 == 0;
    let rest = &mut packet.get(5..)?;
    for _ in 0..2 {
        let length = usize::from(*rest.split_off_first()?);
        rest.split_off(..length)?;
    }
    if is_initial {
        let token_bytes = varint(rest)?;
        rest.split_off(..token_bytes)?;
    }
    let length = varint(rest)?;
    rest.get(length..)
}

/// RFC 9000, section 16.
fn varint(rest: &mut &[u8]) -> Option<usize> {
    let length = 1 << (rest.first()? >> 6);
    let bytes = rest.split_off(..length)?;
    Some(bytes[1..].iter().fold(usize::from(bytes[0] & 0x3f), |value, &byte| value << 8 | usize::from(byte)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_header_is_found_behind_long_ones() {
        let short = [0x40, 1, 2, 3, 4, 5, 6, 7, 8, 99, 99];
        // A token of two bytes, a length of two bytes; and a Handshake packet.
        let initial = [0xc0, 0, 0, 0, 1, 1, 7, 0, 2, 9, 9, 0x40, 2, 5, 5];
        let handshake = [0xe0, 0, 0, 0, 1, 1, 7, 0, 3, 5, 5, 5];
        let found = |parts: &[&[u8]]| short_header_id(&parts.concat(), 8).is_some_and(|id| *id == short[1..9]);
        assert!(found(&[&short]) && found(&[&handshake, &short]) && found(&[&initial, &handshake, &short]));
        assert!(!found(&[&initial]) && !found(&[&initial, &handshake]) && !found(&[&initial[..13]]) && !found(&[]));
    }
}
