//! A gateway's shards and one client, in one thread under virtual time: the simulator's world until the client has its address. From then on
//! a fixture moves every packet itself: what one end sends, the other receives half a millisecond later, in the same runs of datagrams, as
//! UDP segmentation and its undoing carry them over a real network.
//!
//! Nothing here is measured but [`Wire::pass`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tollgate::identity::Identity;
use tollgate::tls;
use tollgate_config::{ClientTls, KeyExchange, PemSource, ServerTls, open_file};
use tollgate_shards::{
    Action, Congestion, Event, Handshakes, Limits, Machine, Message, Output, Received, SessionLimits, ShardIndex,
    Snapshot, Told, Transmit, User, Users,
};
use tollgate_sim::LinkPlan;
use tollgate_sim::world::{GATEWAY, Setup, UserSpec, World};
use zeroize::Zeroizing;

/// The name in the gateway's certificate, by which the simulator's clients call it.
const SERVER_NAME: &str = "gateway";
/// From one end to the other.
pub const ONE_WAY: Duration = Duration::from_micros(500);
/// Longer than a login takes on this wire.
const LOGIN_TIME: Duration = Duration::from_secs(2);

/// The gateway's TLS and its user's: the product's, where the simulator's own has no real key exchange.
pub struct Credentials {
    server: Arc<QuicServerConfig>,
    client: Arc<QuicClientConfig>,
    users: Arc<Users>,
}

impl Credentials {
    pub fn generate() -> Result<Self> {
        let (gateway, user) = (Identity::generate(SERVER_NAME, &[SERVER_NAME])?, Identity::generate("user", &[])?);
        let inline = |pem: &str| PemSource::Inline(Zeroizing::new(pem.to_owned()));
        let server = tls::server(
            &ServerTls {
                key_exchange: None,
                certificates: vec![inline(&gateway.certificate_pem)],
                key: inline(&gateway.key_pem),
            },
            &open_file,
        )?;
        let client = tls::client(&ClientTls {
            key_exchange: KeyExchange::Standard,
            trusted: vec![inline(&gateway.certificate_pem)],
            certificates: vec![inline(&user.certificate_pem)],
            key: inline(&user.key_pem),
        })?;
        let user = User { name: "user".to_owned(), credentials: vec![user.fingerprint], ..User::default() };
        Ok(Credentials { server, client, users: Arc::new(Users::new(vec![user])?) })
    }
}

/// The shards, the client, and what is on its way to it.
pub struct Wire {
    pub world: World,
    client: usize,
    client_address: SocketAddr,
    /// What has reached the client and was not handled yet.
    to_client: Vec<Received>,
}

impl Wire {
    /// A gateway of `shards` shards, configured as by default, and a client of the first one that has the address returned.
    pub fn attached(credentials: &Credentials, shards: u16) -> Result<(Self, Ipv4Addr)> {
        let mut world = World::scenario(Setup {
            shards,
            users: vec![UserSpec::default()],
            congestion: Congestion::Uncontrolled,
            send_datagrams_max: Limits::default().send_datagrams_max,
            link: LinkPlan { delay: ONE_WAY, ..LinkPlan::default() },
            ..Setup::default()
        });
        let users = credentials.users.clone();
        let handshakes = Handshakes { tls: Some(credentials.server.clone()), noise: None };
        world.gateway.snapshot = Arc::new(Snapshot {
            version: 0,
            users,
            isolate_clients: true,
            session_limits: SessionLimits::default(),
            handshakes,
        });
        // Only shards that begin anew have that snapshot.
        world.crash();
        let mut wire = Wire { world, client: 0, client_address: GATEWAY, to_client: Vec::new() };
        wire.connect(credentials);
        wire.world.run(LOGIN_TIME);
        match wire.world.devices[wire.client].address() {
            Some(IpAddr::V4(address)) => Ok((wire, address)),
            address => bail!("the client got {address:?}, which is no IPv4 address"),
        }
    }

    /// Puts a new client in the place of the one before, which stays connected.
    pub fn connect(&mut self, credentials: &Credentials) {
        self.client = self.world.connect_with(0, &credentials.client, 0);
        self.client_address = self.world.devices[self.client].outer;
    }

    /// Lets `time` pass for both ends.
    pub fn advance(&mut self, time: Duration) {
        self.world.now = self.world.now + time;
    }

    /// The client's turn: it sends `packets`, handles what has reached it, and returns what it has to say. Inner packets from the gateway are
    /// counted.
    pub fn client_turn(&mut self, packets: impl IntoIterator<Item = Bytes>) -> (Vec<Received>, u64) {
        let (now, tunnel) = (self.world.instant(), &mut self.world.client_mut(self.client).tunnel);
        packets.into_iter().for_each(|packet| tunnel.send(packet));
        for received in self.to_client.drain(..) {
            tunnel.handle_udp(now, received);
        }
        if tunnel.poll_timeout().is_some_and(|(at, _)| at <= now) {
            tunnel.handle_timeout(now);
        }
        let packets = std::iter::from_fn(|| tunnel.poll_packet()).count() as u64;
        let (mut sends, mut buf) = (Vec::new(), Vec::new());
        while let Some(transmit) = tunnel.poll_transmit(now, &mut buf) {
            sends.push(received(self.client_address, GATEWAY, &transmit, &buf));
            buf.clear();
        }
        (sends, packets)
    }

    /// A pass of the shard `index`, as a core of the gateway makes it, but for the system calls: what is measured.
    pub fn pass(&mut self, index: u16, batch: &mut Batch, output: &mut Passes) {
        let (now, shard) = (self.world.instant(), self.world.shard_mut(index));
        for received in batch.received.drain(..) {
            shard.handle_udp(now, received);
        }
        for frame in &batch.frames {
            shard.handle_frame(now, frame);
        }
        for message in batch.messages.drain(..) {
            shard.handle_message(now, message);
        }
        if shard.poll_timeout().is_some_and(|(at, _)| at <= now) {
            shard.handle_timeout(now);
        }
        let mut buf = output.spare.pop().unwrap_or_default();
        buf.clear();
        while let Some(next) = shard.poll_output(now, true, Some(&mut buf)) {
            match next {
                Output::Frame(frame) => {
                    output.frames += 1;
                    output.packets += frame.payloads.len() as u64;
                }
                Output::Transmit(transmit) => {
                    let mut spare = output.spare.pop().unwrap_or_default();
                    spare.clear();
                    output.sends.push((transmit, std::mem::replace(&mut buf, spare)));
                }
                Output::Action(Action::Send(to, message)) => output.messages.push((to, message)),
                Output::Action(Action::Tell(Told { event, .. })) => {
                    output.attached += u64::from(matches!(event, Event::Attached { .. }))
                }
                Output::Action(_) => {}
            }
        }
        output.spare.push(buf);
    }

    /// Puts what passes have sent on its way to the client.
    pub fn carry(&mut self, output: &mut Passes) {
        for (transmit, buf) in output.sends.drain(..) {
            if transmit.remote == self.client_address {
                self.to_client.push(received(GATEWAY, self.client_address, &transmit, &buf));
            }
            output.spare.push(buf);
        }
    }
}

/// What a shard's pass starts from. Drained by it.
#[derive(Default)]
pub struct Batch {
    /// From the UDP socket.
    pub received: Vec<Received>,
    /// From the TUN queue.
    pub frames: Vec<Vec<u8>>,
    /// From other shards.
    pub messages: Vec<Message>,
}

/// What passes came to.
#[derive(Default)]
pub struct Passes {
    pub sends: Vec<(Transmit, Vec<u8>)>,
    pub messages: Vec<(ShardIndex, Message)>,
    /// Frames for the TUN queue.
    pub frames: u64,
    /// Packets in them.
    pub packets: u64,
    /// Clients that got their address.
    pub attached: u64,
    /// Buffers that were sent, to be used again.
    spare: Vec<Vec<u8>>,
}

impl Passes {
    /// Begins to count anew.
    pub fn clear(&mut self) {
        (self.frames, self.packets, self.attached) = (0, 0, 0);
    }
}

/// What arrives of a send.
fn received(from: SocketAddr, to: SocketAddr, transmit: &Transmit, data: &[u8]) -> Received {
    Received {
        remote: from,
        local_ip: Some(to.ip()),
        ecn: transmit.ecn,
        segment_bytes: transmit.segment_bytes,
        data: BytesMut::from(data),
    }
}
