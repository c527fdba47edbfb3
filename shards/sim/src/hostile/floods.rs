//! Strangers without a certificate who flood the gateway: Initials from addresses that they only claim to have, handshakes that are never finished,
//! tokens that are shown again, elsewhere and too late.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn_proto::Side;
use quinn_proto::transport_parameters::TransportParameters;
use rustls::pki_types::ServerName;
use rustls::quic::{ClientConnection, Version};
use tollgate_shards::{Handshakes, TLS_VERSION};

use super::initial::{DATAGRAM_BYTES, Header, crypto_frame, read_retry};
use crate::identity::{Dial, Hello, Identity};
use crate::noise;
use crate::oracle::Shown;
use crate::random::{Draws, Stream};
use crate::world::{Event, World};

/// The certificate of nobody.
const NOBODY: u64 = 1 << 20;
/// Tokens that are remembered.
const TOKENS_MAX: usize = 64;
/// Handshakes that are kept going.
const HALVES_MAX: usize = 64;
/// Datagrams of each: as many as the gateway hears, and some.
const DATAGRAMS_OF_HALF_MAX: u32 = 20;
/// Behind a flood its handshakes are kept from falling silent, and old tokens are shown, so often.
const LINGER: Duration = Duration::from_millis(900);
/// From this port on addresses are their own: they get what is sent there.
const OWN_PORTS: u16 = 32_768;
/// Of a thousand tokens, so many are shown with another ID than theirs.
const MISLED_PERMILLE: u32 = 200;
/// Of a thousand bursts, so many end with a token that is shown from so many addresses.
const SPREAD_PERMILLE: u32 = 100;
const SPREAD: usize = 40;
/// The ID that they go by (RFC 9000, section 7.2).
pub(super) const SOURCE: [u8; 8] = *b"stranger";
const PING: u8 = 0x01;
/// So much of a ClientHello goes into one datagram.
const HELLO_PART_BYTES: usize = 1000;

/// Where a datagram comes from, and what that shows there.
type Sent = (SocketAddr, Option<Shown>, Vec<u8>);

#[derive(Debug)]
pub struct Floods {
    random: Stream,
    /// Those that have not been shown, and those that have.
    fresh: VecDeque<Token>,
    shown: VecDeque<Token>,
    halves: VecDeque<Half>,
    /// Addresses from which handshakes were begun, and whether a whole ClientHello was sent from there.
    begun: BTreeMap<SocketAddr, bool>,
    /// The versions that the gateway serves, each with what a client of it says first.
    hellos: BTreeMap<u32, Vec<u8>>,
    /// Which of them is next.
    versions: Stream,
    /// IDs of nobody's.
    ids: Stream,
}

/// What a Retry has brought.
#[derive(Debug, Clone)]
struct Token {
    address: SocketAddr,
    version: u32,
    id: Vec<u8>,
    token: Vec<u8>,
}

/// A handshake that was begun.
#[derive(Debug)]
struct Half {
    token: Token,
    kind: Kind,
    sent: u32,
}

impl Half {
    /// The next part of the whole `hello` that it is to send.
    fn next_part<'a>(&self, hello: &'a [u8]) -> Option<&'a [u8]> {
        hello.chunks(HELLO_PART_BYTES).nth(self.sent as usize).filter(|_| matches!(self.kind, Kind::Whole))
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Parts of a ClientHello, never the first, with gaps and contradictions.
    Pieces,
    /// Nothing that brings it further.
    Pings,
    /// A whole ClientHello, and nothing that follows it.
    Whole,
}

impl Floods {
    pub fn new(draws: &Draws) -> Self {
        Floods {
            random: draws.stream("floods"),
            fresh: VecDeque::new(),
            shown: VecDeque::new(),
            halves: VecDeque::new(),
            begun: BTreeMap::new(),
            hellos: BTreeMap::new(),
            versions: draws.stream("floods.versions"),
            ids: draws.stream("floods.ids"),
        }
    }

    /// Whether handshakes were begun at `address`, and no ClientHello was whole.
    pub fn has_only_begun(&self, address: SocketAddr) -> bool {
        self.begun.get(&address) == Some(&false)
    }

    /// The gateway sends a datagram to some address.
    pub fn receive(&mut self, address: SocketAddr, datagram: &[u8]) {
        if address.port() < OWN_PORTS || !is_theirs(address) {
            return;
        }
        if let Some((version, id, token)) = read_retry(datagram) {
            push(&mut self.fresh, TOKENS_MAX, Token { address, version, id, token });
        }
    }

    fn version(&mut self) -> u32 {
        let versions: Vec<u32> = self.hellos.keys().copied().collect();
        self.versions.pick(&versions)
    }

    fn address(&mut self) -> SocketAddr {
        let port = 1024 + self.random.between(0, 64_000) as u16;
        match self.random.between(0, 4) {
            0 => SocketAddr::from(([198, 18, 1, 1], port)),
            1 => {
                // Of one site, or of many.
                let site = if self.random.permille(500) { 7 } else { self.random.between(0, 1 << 16) as u16 };
                let network = self.random.between(0, 1 << 16) as u16;
                SocketAddr::new(Ipv6Addr::new(0xfd00, 0x19, site, network, 0, 0, 0, 1).into(), port)
            }
            _ => {
                let host = self.random.between(1 << 8, 1 << 16) as u32;
                SocketAddr::new(Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + host).into(), port)
            }
        }
    }

    fn own_address(&mut self) -> SocketAddr {
        let mut address = self.address();
        address.set_port(address.port() | OWN_PORTS);
        address
    }

    /// An Initial that claims to be the first of a handshake, from `address`.
    fn first(&mut self, address: SocketAddr) -> Sent {
        let mut id = [0; 8];
        self.random.fill(&mut id);
        let filler = id[7];
        let version = self.version();
        let header = Header { version, destination: &id, source: &SOURCE, token: &[] };
        (address, None, header.unreadable(filler))
    }

    /// An Initial that is wrong in some way.
    fn odd(&mut self) -> Sent {
        let address = self.address();
        let (mut id, mut token) = ([0; 20], vec![0; self.random.log_uniform(1, 600) as usize]);
        self.random.fill(&mut id);
        self.random.fill(&mut token);
        let id = &id[..self.random.between(0, 21) as usize];
        let version = self.version();
        let mut datagram = Header { version, destination: id, source: &SOURCE, token: &token }.unreadable(0x55);
        match self.random.between(0, 4) {
            0 => datagram.truncate(self.random.between(1, DATAGRAM_BYTES as u64) as usize),
            1 => datagram[1..5].fill(0x0a),
            // Its length field says more than there is, or less, so that something else is coalesced behind it.
            2 => {
                let length_at = 6 + id.len() + 1 + SOURCE.len() + 2 + token.len();
                datagram[length_at] = 0x40 | self.random.between(0, 64) as u8;
            }
            _ => {}
        }
        (address, None, datagram)
    }

    /// Another handshake is begun with a token, or would be if its ID were that of the same Retry.
    fn begin(&mut self) -> Option<Sent> {
        let token = self.fresh.pop_back()?;
        if self.ids.permille(MISLED_PERMILLE) {
            return self.mislead(token);
        }
        let kind = self.random.pick(&[Kind::Pieces, Kind::Pings, Kind::Whole]);
        let is_whole = matches!(kind, Kind::Whole);
        *self.begun.entry(token.address).or_default() |= is_whole;
        if is_whole {
            push(&mut self.shown, TOKENS_MAX, token.clone());
        }
        push(&mut self.halves, HALVES_MAX, Half { token, kind, sent: 0 });
        let last = self.halves.len() - 1;
        self.go_on(last)
    }

    fn mislead(&mut self, token: Token) -> Option<Sent> {
        let Token { address, version, mut id, token } = token;
        // One of the bytes that do not lead to the shard.
        id[self.ids.between(1, 7) as usize] ^= 1 << self.ids.between(0, 8);
        Some((address, Some(Shown::Misled), self.with_hello(version, &id, &token)?))
    }

    /// The next datagram of a handshake.
    fn go_on(&mut self, place: usize) -> Option<Sent> {
        let half = self.halves.get_mut(place)?;
        let hello = &self.hellos[&half.token.version];
        let mut frames = vec![PING];
        if let Some(part) = half.next_part(hello) {
            frames = crypto_frame(half.sent as usize * HELLO_PART_BYTES, part);
        } else if matches!(half.kind, Kind::Pieces) {
            for _ in 0..self.random.log_uniform(1, 64) {
                let start = self.random.between(1, hello.len() as u64) as usize;
                let end = (start + self.random.between(1, 8) as usize).min(hello.len());
                let mut piece = hello[start..end].to_vec();
                if self.random.permille(200) {
                    self.random.fill(&mut piece);
                }
                frames.extend(crypto_frame(start, &piece));
            }
        }
        half.sent += 1;
        let Token { address, version, id, token } = &half.token;
        let header = Header { version: *version, destination: id, source: &SOURCE, token };
        let datagram = header.seal(half.sent, &frames)?;
        let sent = (*address, None, datagram);
        if half.sent >= DATAGRAMS_OF_HALF_MAX {
            self.halves.remove(place);
        }
        Some(sent)
    }

    /// A token is shown again: where it was issued, or elsewhere, in front of nothing or of a handshake.
    fn replay(&mut self) -> Option<Sent> {
        let count = self.shown.len();
        let Token { address, version, id, token } =
            self.shown.get(self.random.between(0, count as u64) as usize)?.clone();
        let from = match self.random.between(0, 4) {
            0 => address,
            1 => SocketAddr::new(address.ip(), address.port() ^ 1),
            _ => self.address(),
        };
        let datagram = if self.random.permille(500) {
            self.with_hello(version, &id, &token)?
        } else {
            Header { version, destination: &id, source: &SOURCE, token: &token }.unreadable(id[7])
        };
        Some((from, (from != address).then_some(Shown::Stale), datagram))
    }

    /// A token is shown from many other addresses at once.
    fn spread(&mut self) -> Vec<Sent> {
        let shown = self.shown.back().cloned();
        let datagram = shown
            .and_then(|Token { version, id, token, .. }| self.with_hello(version, &id, &token))
            .unwrap_or_default();
        let places = if datagram.is_empty() { 0 } else { SPREAD };
        let from = (0..places).map(|_| SocketAddr::from(([198, 18, 2, 1], self.ids.between(1024, 1 << 15) as u16)));
        from.map(|from| (from, Some(Shown::Stale), datagram.clone())).collect()
    }

    /// An Initial with a token, and as much of a first message as has room.
    fn with_hello(&self, version: u32, id: &[u8], token: &[u8]) -> Option<Vec<u8>> {
        let hello = &self.hellos[&version];
        let frames = crypto_frame(0, &hello[..hello.len().min(HELLO_PART_BYTES)]);
        Header { version, destination: id, source: &SOURCE, token }.seal(0, &frames)
    }

    /// The next datagram of a flood.
    fn next(&mut self) -> Option<Sent> {
        match self.random.between(0, 10) {
            0..4 => {
                let address = self.address();
                Some(self.first(address))
            }
            4 => Some(self.odd()),
            5 | 6 => {
                let address = self.own_address();
                Some(self.first(address))
            }
            7 => self.begin(),
            8 => {
                let place = self.random.between(0, self.halves.len() as u64) as usize;
                // The others are to last.
                let goes_on = |half: &&Half| {
                    matches!(half.kind, Kind::Pieces) || half.next_part(&self.hellos[&half.token.version]).is_some()
                };
                self.halves.get(place).filter(goes_on)?;
                self.go_on(place)
            }
            _ => self.replay(),
        }
    }
}

fn push<T>(queue: &mut VecDeque<T>, max: usize, item: T) {
    if queue.len() >= max {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// Whether a stranger may have `address`: no client has.
fn is_theirs(address: SocketAddr) -> bool {
    match address {
        SocketAddr::V4(v4) => v4.ip().octets()[..2] == [198, 18],
        SocketAddr::V6(v6) => v6.ip().segments()[..2] == [0xfd00, 0x19],
    }
}

/// What somebody who goes by [`SOURCE`] says first, in each version that is served.
fn hellos(handshakes: &Handshakes) -> BTreeMap<u32, Vec<u8>> {
    let kinds = handshakes.versions().into_iter().filter_map(tollgate_noise::Kind::of_quic_version);
    let noise = kinds.map(|kind| (kind.quic_version(), first_message(kind)));
    noise.chain([(TLS_VERSION, client_hello(Hello::default()))]).collect()
}

/// The same for Noise, of somebody whose key is nobody's.
fn first_message(kind: tollgate_noise::Kind) -> Vec<u8> {
    let params = [&[0x0f, SOURCE.len() as u8], &SOURCE[..]].concat();
    let params = TransportParameters::read(Side::Server, &mut &params[..]).expect("its own ID");
    let Dial { handshake, quic_version } = Identity::cached(noise::with_key(NOBODY, kind)).client(Hello::default());
    let mut session = handshake.start_session(quic_version, "gateway", &params).expect("randomness");
    let mut message = Vec::new();
    session.write_handshake(&mut message);
    message
}

/// A ClientHello.
pub(super) fn client_hello(hello: Hello) -> Vec<u8> {
    // Only its own ID, which it must name (RFC 9000, section 7.3).
    let params = [&[0x0f, SOURCE.len() as u8], &SOURCE[..]].concat();
    let config = Arc::new(Identity::cached(NOBODY).client_config(hello));
    let name = ServerName::try_from("gateway").expect("a name");
    let mut connection = ClientConnection::new(config, Version::V1, name, params).expect("a config of QUIC");
    let mut bytes = Vec::new();
    let _ = connection.write_hs(&mut bytes);
    bytes
}

impl World {
    /// A flood goes on, or what is left of it.
    pub(crate) fn flood(&mut self) {
        let Some(plan) = self.plan.flood.filter(|_| !self.is_calm) else { return };
        if self.floods.hellos.is_empty() {
            self.floods.hellos = hellos(&self.gateway.snapshot.handshakes);
        }
        let is_over = self.now.since_start() >= plan.until;
        if is_over {
            for place in (0..self.floods.halves.len()).rev() {
                let sent = self.floods.go_on(place);
                self.strike(sent);
            }
            (0..4).for_each(|_| {
                let sent = self.floods.replay();
                self.strike(sent);
            });
        } else {
            for _ in 0..self.floods.random.between(1, plan.burst + 1) {
                let sent = self.floods.next();
                self.strike(sent);
            }
            if self.floods.ids.permille(SPREAD_PERMILLE) {
                self.floods.spread().into_iter().for_each(|sent| self.strike(Some(sent)));
            }
        }
        self.schedule.at(self.now + if is_over { LINGER } else { plan.every }, Event::Flood);
    }

    fn strike(&mut self, sent: Option<Sent>) {
        let Some((from, shown, datagram)) = sent else { return };
        let holds = self.floods.begun.contains_key(&from);
        // With a token, or soon. One that is shown with another ID is of its address all the same, should that ID pass for the gateway's.
        if holds || shown == Some(Shown::Misled) {
            self.strangers.proves(from);
        }
        if holds {
            self.oracle.proofs.proves(from);
        }
        if let Some(shown) = shown {
            self.oracle.proofs.shows(from, shown);
        }
        self.strike_from(from, &datagram);
    }
}
