//! A simulated device: it connects as one user, stays or vanishes, comes back, and changes its outer address.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::TransportConfig;
use tollgate_shards::packet::MergeLimits;
use tollgate_shards::{Client, ClientEvent, Fingerprint, Machine, Output, Transmit, Tunnel, TunnelParams, Users};

use crate::gateway::GATEWAYS;
use crate::hostile::cheat::CheatingHandshake;
use crate::identity::{Dial, Hello, Identity, reset_key};
use crate::link::Link;
use crate::packets::kernel;
use crate::plan::{Cheat, CheatPlan, DevicePlan, Direction};
use crate::random::Stream;
use crate::schedule::Time;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Connect,
    Close,
    /// Lose everything without a word.
    Vanish,
    Rebind,
}

pub enum End {
    /// Without frames: the simulator has the inner packets themselves.
    Tunnel(Box<Tunnel>),
    /// With a TUN queue, and what it told at a moment when nobody had asked.
    Client(Box<Client>, VecDeque<ClientEvent>),
}

impl End {
    pub(crate) fn tunnel(&mut self) -> &mut Tunnel {
        match self {
            End::Tunnel(tunnel) => tunnel,
            End::Client(client, _) => &mut client.tunnel,
        }
    }

    pub(crate) fn poll_event(&mut self, now: Instant) -> Option<ClientEvent> {
        let (client, events) = match self {
            End::Tunnel(tunnel) => return tunnel.poll_event(),
            End::Client(client, events) => (client, events),
        };
        events.pop_front().or_else(|| match client.poll_output(now, false, None)? {
            Output::Action(event) => Some(event),
            Output::Frame(_) | Output::Transmit(_) => None,
        })
    }

    /// The next inner packet that has arrived, or several that a client has merged, as a frame with its virtio header.
    pub(crate) fn poll_frame(&mut self, now: Instant) -> Option<Vec<u8>> {
        let (client, events) = match self {
            End::Tunnel(tunnel) => return tunnel.poll_packet().map(|packet| kernel::plain(&packet)),
            End::Client(client, events) => (client, events),
        };
        loop {
            match client.poll_output(now, true, None)? {
                Output::Frame(frame) => {
                    return Some([frame.header, &frame.payloads.concat()].concat());
                }
                Output::Action(event) => events.push_back(event),
                Output::Transmit(_) => {}
            }
        }
    }

    pub(crate) fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        let (client, events) = match self {
            End::Tunnel(tunnel) => return tunnel.poll_transmit(now, buf),
            End::Client(client, events) => (client, events),
        };
        loop {
            match client.poll_output(now, false, Some(buf))? {
                Output::Transmit(transmit) => return Some(transmit),
                Output::Action(event) => events.push_back(event),
                Output::Frame(_) => {}
            }
        }
    }
}

/// A connection as the device sees it.
pub struct Session {
    pub end: End,
    pub address: Option<IpAddr>,
    /// Whether it is over, but for what it still says.
    pub over: bool,
    /// Tells the device's sessions apart.
    pub number: u64,
    /// The Noise key of a client of a plan, if it has one.
    pub key: Option<Fingerprint>,
    /// Whether a shard may have refused it within the handshake, because a snapshot lacks it.
    pub may_be_refused: bool,
}

impl Session {
    /// Some shard may go by these users.
    pub fn judge(&mut self, users: &Users) {
        self.may_be_refused |= self.key.is_some_and(|key| users.find(&key).is_none());
    }
}

pub struct Device {
    pub plan: DevicePlan,
    pub session: Option<Session>,
    pub last_address: Option<IpAddr>,
    /// The credential of its last connection, and the snapshot that was in force everywhere when that began.
    pub shown: Option<(Fingerprint, u64)>,
    /// Where its datagrams seem to come from.
    pub outer: SocketAddr,
    pub up: Link,
    pub down: Link,
    pub random: Stream,
    /// When the driver is to look at it next.
    pub wake: Option<Time>,
    /// Whether something has happened to it.
    pub dirty: bool,
    pub wanted: bool,
    pub returning: bool,
    pub sessions: u64,
    /// Inner packets of the calm phase that arrived: up, down.
    pub exchanged: (u64, u64),
    /// Where a test acts: the inner packets that arrived, maybe merged.
    pub received: Vec<Vec<u8>>,
    pub events: Vec<ClientEvent>,
    /// While a test has it: datagrams to the gateway stay here instead.
    pub held: Option<Vec<Vec<u8>>>,
    /// While it has it: where its datagrams seem to come from, though nothing reaches it there.
    pub spoofs: Option<SocketAddr>,
}

impl Device {
    pub fn new(index: u32, plan: DevicePlan, outer: SocketAddr, seed: u64) -> Self {
        let number = u64::from(index);
        let link = |direction, link_plan| Link::new(direction, link_plan, &plan.changes, (seed, number));
        Device {
            session: None,
            last_address: None,
            shown: None,
            outer,
            up: link(Direction::Up, plan.up),
            down: link(Direction::Down, plan.down),
            random: Stream::numbered(seed, "device", number),
            wake: None,
            dirty: false,
            wanted: !plan.is_left_out,
            returning: false,
            sessions: 0,
            exchanged: (0, 0),
            received: Vec::new(),
            events: Vec::new(),
            held: None,
            spoofs: None,
            plan,
        }
    }

    /// Begins a handshake, whatever became of the session before.
    pub fn connect(&mut self, identity: &Identity, transport: Arc<TransportConfig>, now: Instant) {
        let seed = self.random.seed();
        let Dial { mut handshake, quic_version } =
            identity.client(Hello { returns: self.plan.returns, ..Hello::default() });
        let params = TunnelParams {
            quic_version,
            remote: self.remote(),
            server_name: "gateway".to_owned(),
            transport,
            send_datagrams_max: 64,
            seed,
        };
        if let Some(CheatPlan { cheat, .. }) = self.plan.cheats {
            handshake = Arc::new(CheatingHandshake { handshake, swallows_acks: cheat == Cheat::NeverAcknowledges });
        }
        let key = reset_key(&seed);
        let end = if self.plan.has_tun {
            Client::new(params, MergeLimits::default(), handshake, key, now)
                .map(|client| End::Client(Box::new(client), VecDeque::new()))
        } else {
            Tunnel::new(params, handshake, key, now).map(|tunnel| End::Tunnel(Box::new(tunnel)))
        };
        let mut end = end.expect("a usable name and address");
        if self.plan.returns {
            end.tunnel().move_by(identity.moving(Hello { returns: true, ..Hello::default() }));
        }
        self.begin(end);
    }

    /// Another session begins with this end of it.
    pub(crate) fn begin(&mut self, end: End) {
        self.sessions += 1;
        self.session =
            Some(Session { end, address: None, over: false, number: self.sessions, key: None, may_be_refused: false });
    }

    /// Where it reaches the gateway.
    pub fn remote(&self) -> SocketAddr {
        GATEWAYS[self.plan.gateway]
    }

    pub fn attached(&mut self) -> Option<(&mut Session, IpAddr)> {
        let session = self.session.as_mut().filter(|session| !session.over)?;
        let address = session.address?;
        Some((session, address))
    }

    pub fn address(&self) -> Option<IpAddr> {
        self.session.as_ref().filter(|session| !session.over)?.address
    }

    /// When the session that begins now ends, and how.
    pub fn draw_end(&mut self) -> Option<(Duration, Act)> {
        let after = self.random.around(self.plan.stays?);
        let vanish = self.random.permille(self.plan.vanish_permille);
        Some((after, if vanish { Act::Vanish } else { Act::Close }))
    }
}
