//! A gateway's shards and one client in one thread, under virtual time: what one end sends, the other receives half a millisecond later, in
//! the same runs of datagrams, as UDP segmentation and its undoing carry them over a real network.
//!
//! Nothing here is measured; [`pass`] is what the fixtures measure.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::hmac;
use bytes::BytesMut;
use quinn_proto::TransportConfig;
use quinn_proto::crypto::rustls::QuicClientConfig;
use tollgate::identity::Identity;
use tollgate::tls;
use tollgate_config::{ClientTls, KeyExchange, PemSource, ServerTls};
use tollgate_shards::{
    Action, Congestion, ConnectionIdKey, Event, Limits, Machine, Message, Output, Params, Received, Shard, ShardIndex,
    ShardKeys, Snapshot, TokenKey, Transmit, TransportParams, Tunnel, TunnelParams, User, Users, transport,
};
use zeroize::Zeroizing;

use super::fixture::LARGE_BYTES;

/// The gateway's outer address.
const GATEWAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 19, 0, 1)), 55_555);
/// The client's.
const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 19, 1, 1)), 40_000);
/// The name in the gateway's certificate.
const SERVER_NAME: &str = "gateway";
/// From one end to the other.
pub const ONE_WAY: Duration = Duration::from_micros(500);
/// Longest time that a client needs to come or to go, on this wire.
const PATIENCE: Duration = Duration::from_secs(60);

/// The shards, the client, and what is on its way between them.
pub struct Wire {
    /// Virtual time.
    pub now: Instant,
    pub shards: Vec<Shard>,
    pub client: Tunnel,
    /// What has reached the client and was not handled yet.
    pub to_client: Vec<Received>,
    tls: Arc<QuicClientConfig>,
    transport: Arc<TransportConfig>,
    clients: u32,
}

impl Wire {
    /// A gateway of `shards` shards, and a client whose connection is going to be the first one's. The handshake has not begun.
    pub fn new(shards: u16) -> Result<Self> {
        let now = Instant::now();
        let (gateway, user) = (Identity::generate(SERVER_NAME, &[SERVER_NAME])?, Identity::generate("user", &[])?);
        let inline = |pem: &str| PemSource::Inline(Zeroizing::new(pem.to_owned()));
        let server_tls = ServerTls {
            key_exchange: None,
            certificates: vec![inline(&gateway.certificate_pem)],
            key: inline(&gateway.key_pem),
        };
        let client_tls = tls::client(&ClientTls {
            key_exchange: KeyExchange::Standard,
            trusted: vec![inline(&gateway.certificate_pem)],
            certificates: vec![inline(&user.certificate_pem)],
            key: inline(&user.key_pem),
        })?;
        let reset = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &[3; 64]));
        let (connection_id, token) = (ConnectionIdKey([5; 16]), TokenKey::new(&[4; 32]));
        let keys = ShardKeys { connection_id, reset, token };
        let certificates = vec![user.fingerprint];
        let user = User { name: "user".to_owned(), certificates, ..User::default() };
        let users = Arc::new(Users::new(vec![user])?);
        let snapshot = Arc::new(Snapshot { version: 0, users, isolate_clients: true, tls: tls::server(&server_tls)? });
        let params = |index| Params {
            shards,
            index: ShardIndex(index),
            tunnel: "198.18.0.1/24".parse().expect("a network"),
            outer_addresses: vec![GATEWAY.ip()],
            handshake_timeout: Duration::from_secs(10),
            transport: transport_params(None),
            limits: Limits::default(),
            incarnation: 0,
            wall_clock: std::time::UNIX_EPOCH,
            seed: [index as u8 + 1; 32],
        };
        let shards = (0..shards).map(|index| Shard::new(params(index), &keys, snapshot.clone(), now)).collect();
        let transport = Arc::new(transport(&transport_params(Some(Duration::from_secs(25)))));
        let client = tunnel(0, &client_tls, &transport, now)?;
        let to_client = Vec::new();
        let mut wire = Wire { now, shards, client, to_client, tls: client_tls, transport, clients: 0 };
        wire.replace_client()?;
        Ok(wire)
    }

    /// Waits for the client's address, and returns it.
    pub fn attach(&mut self) -> Result<Ipv4Addr> {
        self.exchange_until(|wire| wire.client.assignment().is_some()).context("the client gets no address")?;
        match self.client.assignment().map(|assignment| assignment.client_address.addr()) {
            Some(IpAddr::V4(address)) => Ok(address),
            address => bail!("the client got {address:?}, which is no IPv4 address"),
        }
    }

    /// Has the client say goodbye, waits until everybody has forgotten it, and puts a new one in its place.
    pub fn reconnect(&mut self) -> Result<()> {
        self.client.close(self.now);
        let is_owned = |shard: &Shard| shard.owned_connections() > 0;
        self.exchange_until(|wire| wire.client.is_drained() && !wire.shards.iter().any(is_owned))?;
        self.replace_client()
    }

    /// The client's turn: it handles what has reached it, and returns what it has to say. Inner packets from the gateway are counted.
    pub fn client_turn(&mut self) -> (Vec<Received>, u64) {
        for received in self.to_client.drain(..) {
            self.client.handle_udp(self.now, received);
        }
        if self.client.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
            self.client.handle_timeout(self.now);
        }
        let packets = std::iter::from_fn(|| self.client.poll_packet()).count() as u64;
        let mut sends = Vec::new();
        let mut buf = Vec::new();
        while let Some(transmit) = self.client.poll_transmit(self.now, &mut buf) {
            sends.push(received(CLIENT, GATEWAY, &transmit, &buf));
            buf.clear();
        }
        (sends, packets)
    }

    /// Puts what passes have sent on its way to the client.
    pub fn carry(&mut self, output: &mut Passes) {
        for (transmit, buf) in output.sends.drain(..) {
            self.to_client.push(received(GATEWAY, CLIENT, &transmit, &buf));
            output.spare.push(buf);
        }
    }

    fn exchange_until(&mut self, done: impl Fn(&Wire) -> bool) -> Result<()> {
        let end = self.now + PATIENCE;
        while !done(self) {
            ensure!(self.now < end, "nothing came of {} s", PATIENCE.as_secs());
            self.exchange(end);
        }
        Ok(())
    }

    /// Both ends' turns at this instant; then on to when something arrives, or somebody wants something, or to the `end`.
    fn exchange(&mut self, end: Instant) {
        let (mut sends, _) = self.client_turn();
        let mut moved = !sends.is_empty();
        let mut output = Passes::default();
        for index in 0..self.shards.len() {
            // The client's are all the first shard's, which comes first.
            let mut batch = Batch { received: std::mem::take(&mut sends), ..Batch::default() };
            self.turn(index, &mut batch, &mut output);
        }
        moved |= !output.sends.is_empty();
        self.carry(&mut output);
        if moved {
            self.now += ONE_WAY;
            return;
        }
        let shards = self.shards.iter_mut().filter_map(Machine::poll_timeout);
        let next = shards.chain(self.client.poll_timeout()).map(|(at, _)| at).min();
        self.now = next.unwrap_or(end).clamp(self.now + Duration::from_nanos(1), end);
    }

    /// A pass of one shard, and of those that it has messages for.
    fn turn(&mut self, index: usize, batch: &mut Batch, output: &mut Passes) {
        pass(&mut self.shards[index], self.now, batch, output);
        let mut messages: VecDeque<_> = output.messages.drain(..).collect();
        while let Some((to, message)) = messages.pop_front() {
            batch.messages.push(message);
            pass(&mut self.shards[usize::from(to.0)], self.now, batch, output);
            messages.extend(output.messages.drain(..));
        }
    }

    /// A new client. The first byte of its first connection ID decides which shard is the owner: the first.
    fn replace_client(&mut self) -> Result<()> {
        loop {
            self.clients += 1;
            self.client = tunnel(self.clients, &self.tls, &self.transport, self.now)?;
            let mut initial = Vec::new();
            self.client.poll_transmit(self.now, &mut initial).context("the client does not begin")?;
            // The ID follows the first byte, the version and its own length (RFC 9000, section 17.2).
            let steer = initial.get(6).context("the client's first packet is cut off")?;
            if usize::from(*steer).is_multiple_of(self.shards.len()) {
                self.client = tunnel(self.clients, &self.tls, &self.transport, self.now)?;
                return Ok(());
            }
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

/// A pass of a shard, as a core of the gateway makes it, but for the system calls.
pub fn pass(shard: &mut Shard, now: Instant, batch: &mut Batch, output: &mut Passes) {
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
            Output::Action(Action::Log(event)) => output.attached += u64::from(matches!(event, Event::Attached { .. })),
            Output::Action(_) => {}
        }
    }
    output.spare.push(buf);
}

fn tunnel(number: u32, tls: &Arc<QuicClientConfig>, transport: &Arc<TransportConfig>, now: Instant) -> Result<Tunnel> {
    let mut seed = [7; 32];
    // Either half of the seed makes connection IDs.
    seed[..4].copy_from_slice(&number.to_le_bytes());
    seed[16..20].copy_from_slice(&number.to_le_bytes());
    let params = TunnelParams {
        remote: GATEWAY,
        server_name: SERVER_NAME.to_owned(),
        transport: transport.clone(),
        send_datagrams_max: Limits::default().send_datagrams_max,
        seed,
    };
    Ok(Tunnel::new(params, tls.clone(), Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &seed)), now)?)
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

/// As the gateway's configuration has it by default.
fn transport_params(keep_alive: Option<Duration>) -> TransportParams {
    TransportParams {
        mtu_bytes: LARGE_BYTES as u16,
        idle_timeout: Duration::from_secs(30),
        keep_alive,
        initial_rtt: None,
        datagram_send_buffer_bytes_max: 4 << 20,
        datagram_receive_buffer_bytes_max: 4 << 20,
        congestion: Congestion::Uncontrolled,
    }
}
