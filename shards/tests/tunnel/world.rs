//! Shards, clients and the kernels around them, in one thread under virtual time. Steering is the kernel's by default, and can be taken away.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use bytes::BytesMut;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tollgate_shards::packet::MergeLimits;
use tollgate_shards::{
    AddressRange, BURST_BYTES_MIN, Client, ClientEvent, ClientMtu, ClientParams, Command, Congestion, ConnectionIdKey,
    Counters, DropReason, Event, Fingerprint, Limit, Limits, Machine, Params, Rate, Received, Shard, ShardIndex,
    ShardKeys, Snapshot, TokenKey, TransportParams, User, Users, home_of,
};

/// A virtio header that asks for nothing.
pub const PLAIN: [u8; 10] = [0; 10];

/// What carries an inner packet is longer in these tests.
const INNER_BYTES_MIN: usize = 100;

pub struct World {
    pub now: Instant,
    pub shards: Vec<Shard>,
    pub clients: Vec<Endpoint>,
    /// Inner packets that went to the gateway's TUN, with the shard that wrote them.
    pub tun: Vec<(usize, Vec<u8>)>,
    pub events: Vec<Event>,
    /// UDP datagrams that carried an inner packet and reached a client after its connection was over.
    pub late_datagrams: u64,
    /// Bytes that the gateway has sent, by where to.
    sent: BTreeMap<SocketAddr, u64>,
    /// What the gateway told of clients' paths.
    pub client_mtus: Vec<ClientMtu>,
    /// Longer datagrams vanish, either way.
    pub path_bytes_max: usize,
    /// The one client whose path is like that; `None` for all.
    pub narrow_client: Option<usize>,
    /// One of so many datagrams towards clients is lost.
    pub lost_of: Option<u64>,
    sent_down: u64,
    /// Whether the kernel steers; without it everything arrives at shard 0.
    pub steering: bool,
    /// Whether a ClientHello takes two datagrams, as that of hybrid key exchange does.
    pub long_hellos: bool,
    /// Whether clients ask for a protocol that the gateway does not speak, which TLS refuses.
    pub asks_for_another_protocol: bool,
    steered: BTreeMap<IpAddr, ShardIndex>,
    snapshot: Arc<Snapshot>,
    params: Params,
    identities: Vec<Identity>,
    keys: ShardKeys,
    roots: rustls::RootCertStore,
}

pub struct Endpoint {
    pub machine: Client,
    pub address: SocketAddr,
    /// Inner packets that arrived.
    pub received: Vec<Vec<u8>>,
    pub events: Vec<ClientEvent>,
    /// Datagrams on their way to the gateway are kept here instead, while set.
    pub held: Option<Vec<Vec<u8>>>,
    alive: bool,
}

struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["gateway".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        Identity { certificate: made.cert.der().clone(), key }
    }
}

/// What a user of a test world has.
#[derive(Default, Clone)]
pub struct UserSpec {
    pub limit_bits_per_s: Option<u64>,
    /// Time in which the burst comes back; a second by default.
    pub burst: Option<Duration>,
    pub pool: Option<(&'static str, &'static str)>,
    /// The shard that must be the user's home.
    pub home: Option<u16>,
}

pub struct Setup {
    pub shards: u16,
    pub tunnel: &'static str,
    pub isolate_clients: bool,
    pub users: Vec<UserSpec>,
    /// Bound of the queue of datagrams received, of each connection at either end.
    pub datagram_receive_buffer_bytes: usize,
    /// What each shard may hold.
    pub memory_bytes_max: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            shards: 2,
            tunnel: "198.18.0.1/24",
            isolate_clients: true,
            users: vec![UserSpec::default(); 2],
            datagram_receive_buffer_bytes: 4 << 20,
            memory_bytes_max: Limits::default().memory_bytes_max,
        }
    }
}

impl World {
    pub fn new(setup: Setup) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let identities: Vec<_> = setup.users.iter().map(|_| Identity::new()).collect();
        let users = setup.users.iter().zip(&identities).enumerate().map(|(index, (spec, identity))| {
            let mut user = User {
                name: format!("user{index}"),
                certificates: vec![Fingerprint::of(&identity.certificate)],
                limit: spec
                    .limit_bits_per_s
                    .and_then(Rate::from_bits_per_s)
                    .map(|rate| Limit::with_burst(rate, spec.burst.unwrap_or(Duration::from_secs(1)), BURST_BYTES_MIN)),
                pool: spec
                    .pool
                    .iter()
                    .filter_map(|(a, b)| AddressRange::new(a.parse().unwrap(), b.parse().unwrap()))
                    .collect(),
                ..User::default()
            };
            while spec.home.is_some_and(|home| home_of(&user.name, setup.shards).0 != home) {
                user.name.push('x');
            }
            user
        });
        let server = Identity::new();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(server.certificate.clone()).unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(AnyClient))
            .with_single_cert(vec![server.certificate], server.key)
            .unwrap();
        tls.alpn_protocols = vec![b"quincy".to_vec()];
        let keys =
            ShardKeys { reset: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &[3; 64])), token: TokenKey::new(&[4; 32]) };
        let params = Params {
            shards: setup.shards,
            index: ShardIndex(0),
            tunnel: setup.tunnel.parse().unwrap(),
            outer_addresses: vec!["198.19.0.1".parse().unwrap()],
            handshake_timeout: Duration::from_secs(10),
            transport: transport(setup.datagram_receive_buffer_bytes),
            limits: Limits { memory_bytes_max: setup.memory_bytes_max, ..Limits::default() },
            connection_id_key: ConnectionIdKey([5; 16]),
            incarnation: 0,
            wall_clock: std::time::UNIX_EPOCH,
            seed: [0; 32],
        };
        let snapshot = Snapshot {
            version: 0,
            users: Arc::new(Users::new(users.collect()).unwrap()),
            isolate_clients: setup.isolate_clients,
            tls: Arc::new(QuicServerConfig::try_from(tls).unwrap()),
        };
        let mut world = World {
            now: origin(),
            shards: Vec::new(),
            clients: Vec::new(),
            tun: Vec::new(),
            events: Vec::new(),
            late_datagrams: 0,
            sent: BTreeMap::new(),
            client_mtus: Vec::new(),
            path_bytes_max: usize::MAX,
            narrow_client: None,
            lost_of: None,
            sent_down: 0,
            steering: true,
            long_hellos: false,
            asks_for_another_protocol: false,
            steered: BTreeMap::new(),
            snapshot: Arc::new(snapshot),
            params,
            identities,
            keys,
            roots,
        };
        world.start_shards(1);
        world
    }

    /// Starts all shards anew, as after a crash: the keys stay, everything else is gone.
    pub fn start_shards(&mut self, generation: u8) {
        self.shards = (0..self.params.shards)
            .map(|index| {
                let seed = [generation.wrapping_mul(16).wrapping_add(index as u8 + 1); 32];
                let params = Params { index: ShardIndex(index), seed, ..self.params.clone() };
                Shard::new(params, &self.keys, self.snapshot.clone(), self.now)
            })
            .collect();
        self.steered.clear();
    }

    /// A client of `user` whose connection lands on shard `owner`. Its handshake has not begun.
    pub fn connect(&mut self, user: usize, owner: u16) -> usize {
        let index = self.clients.len();
        let seed = (0u8..=255)
            .map(|attempt| {
                [attempt, index as u8, user as u8 ^ ((index >> 8) as u8) << 4].repeat(11)[..32].try_into().unwrap()
            })
            .find(|seed: &[u8; 32]| self.owner_by_seed(user, *seed) == owner)
            .expect("one ID in N leads to each of N shards");
        let machine = self.client(user, seed);
        let [high, low] = (index as u16 + 1).to_be_bytes();
        let address = SocketAddr::from(([198, 19, 1 + high, low], 40_000 + index as u16));
        self.clients.push(Endpoint { machine, address, received: vec![], events: vec![], held: None, alive: true });
        index
    }

    fn owner_by_seed(&self, user: usize, seed: [u8; 32]) -> u16 {
        let mut buf = Vec::new();
        self.client(user, seed).poll_transmit(self.now, &mut buf).unwrap();
        u16::from(buf[6]) % self.params.shards
    }

    fn client(&self, user: usize, seed: [u8; 32]) -> Client {
        let identity = &self.identities[user];
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if self.long_hellos {
            provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768];
        }
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())
            .unwrap();
        tls.alpn_protocols = vec![if self.asks_for_another_protocol { b"other".to_vec() } else { b"quincy".to_vec() }];
        let params = ClientParams {
            remote: "198.19.0.1:55555".parse().unwrap(),
            server_name: "gateway".to_owned(),
            transport: TransportParams { keep_alive: Some(Duration::from_secs(25)), ..self.params.transport.clone() },
            merge: MergeLimits::default(),
            send_datagrams_max: 64,
            seed,
        };
        let tls = Arc::new(QuicClientConfig::try_from(tls).unwrap());
        Client::new(params, tls, Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &seed)), self.now).unwrap()
    }

    /// Connects and waits for the address.
    pub fn attach(&mut self, user: usize, owner: u16) -> (usize, IpAddr) {
        let client = self.connect(user, owner);
        self.run(Duration::from_secs(2));
        let assignment = self.clients[client].machine.assignment().expect("the client gets an address");
        (client, assignment.client_address.addr())
    }

    /// Nothing is heard of a client any more, until [`World::unsilence`].
    pub fn silence(&mut self, client: usize) {
        self.clients[client].held = Some(Vec::new());
    }

    /// What a silenced client has said arrives.
    pub fn unsilence(&mut self, client: usize) {
        let address = self.clients[client].address;
        for datagram in self.clients[client].held.take().unwrap_or_default() {
            self.udp(address, datagram.len(), &datagram);
        }
    }

    /// Lets a client vanish without a word.
    pub fn kill(&mut self, client: usize) {
        self.clients[client].alive = false;
    }

    /// A client's kernel sends an inner packet.
    pub fn send_up(&mut self, client: usize, packet: &[u8]) {
        let frame = [&PLAIN, packet].concat();
        self.clients[client].machine.handle_frame(self.now, &frame);
        self.clients[client].machine.decide(self.now);
    }

    /// A client that has cheated its own state machine: an inner packet of any kind.
    pub fn send_forged(&mut self, client: usize, packet: &[u8]) {
        self.clients[client].machine.send_unchecked(packet.to_vec().into());
    }

    /// The gateway's kernel sends an inner packet to the TUN.
    pub fn send_down(&mut self, packet: &[u8]) {
        self.send_down_frame(&[&PLAIN, packet].concat());
    }

    pub fn send_down_frame(&mut self, frame: &[u8]) {
        let destination = match frame[10] >> 4 {
            4 => IpAddr::from(<[u8; 4]>::try_from(&frame[26..30]).unwrap()),
            _ => IpAddr::from(<[u8; 16]>::try_from(&frame[34..50]).unwrap()),
        };
        let queue = if self.steering { self.steered.get(&destination).map_or(0, |owner| owner.0) } else { 0 };
        self.shards[usize::from(queue)].handle_frame(self.now, frame);
    }

    /// A UDP datagram, or an aggregate, from `remote`, at the shard that the kernel would choose.
    pub fn udp(&mut self, remote: SocketAddr, segment_bytes: usize, data: &[u8]) {
        let steering = if data[0] & 0x80 != 0 { data.get(6) } else { data.get(1) };
        let queue = if self.steering { steering.map_or(0, |byte| u16::from(*byte) % self.params.shards) } else { 0 };
        let local_ip = Some("198.19.0.1".parse().unwrap());
        let received = Received { remote, local_ip, ecn: None, segment_bytes, data: BytesMut::from(data) };
        self.shards[usize::from(queue)].handle_udp(self.now, received);
    }

    /// Moves everything that can move at this instant. Returns whether anything did.
    pub fn step(&mut self) -> bool {
        let mut moved = false;
        let mut mesh = VecDeque::new();
        let mut downward = Vec::new();
        for (index, shard) in self.shards.iter_mut().enumerate() {
            if shard.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                shard.handle_timeout(self.now);
            }
            shard.decide(self.now);
            let mut buf = Vec::new();
            while let Some(transmit) = shard.poll_transmit(self.now, &mut buf) {
                downward
                    .extend(buf.chunks(transmit.segment_bytes).map(|datagram| (transmit.remote, datagram.to_vec())));
                buf.clear();
            }
            while let Some(frame) = shard.poll_frame() {
                let bytes =
                    frame.header.iter().copied().chain(frame.payloads.iter().flatten().copied()).collect::<Vec<_>>();
                self.tun.push((index, bytes[10..].to_vec()));
                moved = true;
            }
            while let Some(steer) = shard.poll_steer() {
                match steer.owner {
                    Some(owner) => self.steered.insert(steer.address, owner),
                    None => self.steered.remove(&steer.address),
                };
            }
            while let Some((to, message)) = shard.poll_message() {
                mesh.push_back((to, message));
            }
            self.events.extend(std::iter::from_fn(|| shard.poll_event()));
            self.client_mtus.extend(std::iter::from_fn(|| shard.poll_client_mtu()));
        }
        moved |= !mesh.is_empty() || !downward.is_empty();
        for (to, message) in mesh {
            self.shards[usize::from(to.0)].handle_message(self.now, message);
        }
        for (remote, datagram) in downward {
            *self.sent.entry(remote).or_default() += datagram.len() as u64;
            self.sent_down += 1;
            let is_lost = self.lost_of.is_some_and(|lost_of| self.sent_down.is_multiple_of(lost_of));
            if is_lost || (datagram.len() > self.path_bytes_max && self.is_narrow(remote)) {
                continue;
            }
            let Some(client) = self.clients.iter_mut().find(|client| client.alive && client.address == remote) else {
                continue;
            };
            self.late_datagrams += u64::from(client.machine.is_drained() && datagram.len() > INNER_BYTES_MIN);
            let segment_bytes = datagram.len();
            let received = Received {
                remote: "198.19.0.1:55555".parse().unwrap(),
                local_ip: None,
                ecn: None,
                segment_bytes,
                data: BytesMut::from(&datagram[..]),
            };
            client.machine.handle_udp(self.now, received);
        }
        for datagram in self.step_clients() {
            moved = true;
            if datagram.1.len() > self.path_bytes_max && self.is_narrow(datagram.0) {
                continue;
            }
            self.udp(datagram.0, datagram.1.len(), &datagram.1);
        }
        moved
    }

    fn is_narrow(&self, client: SocketAddr) -> bool {
        self.narrow_client.is_none_or(|narrow| self.clients[narrow].address == client)
    }

    fn step_clients(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut upward = Vec::new();
        for client in self.clients.iter_mut().filter(|client| client.alive) {
            if client.machine.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                client.machine.handle_timeout(self.now);
            }
            client.machine.decide(self.now);
            let mut buf = Vec::new();
            while let Some(transmit) = client.machine.poll_transmit(self.now, &mut buf) {
                let datagrams = buf.chunks(transmit.segment_bytes).map(<[u8]>::to_vec);
                match &mut client.held {
                    Some(held) => held.extend(datagrams),
                    None => upward.extend(datagrams.map(|datagram| (client.address, datagram))),
                }
                buf.clear();
            }
            while let Some(frame) = client.machine.poll_frame() {
                let bytes =
                    frame.header.iter().copied().chain(frame.payloads.iter().flatten().copied()).collect::<Vec<_>>();
                client.received.push(bytes[10..].to_vec());
            }
            client.events.extend(std::iter::from_fn(|| client.machine.poll_event()));
        }
        upward
    }

    /// Runs for `time`, jumping from one deadline to the next.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..1_000_000 {
            if self.step() {
                continue;
            }
            let shards = self.shards.iter_mut().filter_map(|shard| shard.poll_timeout());
            let clients = self
                .clients
                .iter_mut()
                .filter(|client| client.alive)
                .filter_map(|client| client.machine.poll_timeout());
            let next = shards.chain(clients).map(|(at, _)| at).min();
            match next {
                Some(at) if at <= end => self.now = at.max(self.now + Duration::from_nanos(1)),
                _ => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("the world does not come to rest");
    }

    pub fn stop(&mut self) {
        for shard in &mut self.shards {
            shard.handle_command(self.now, Command::Stop);
        }
    }

    /// The snapshot after the world's, in which there is no user.
    pub fn snapshot_without_users(&self) -> Arc<Snapshot> {
        let users = Arc::new(self.snapshot.users.succeed(Vec::new()).unwrap());
        Arc::new(Snapshot { version: self.snapshot.version + 1, users, ..(*self.snapshot).clone() })
    }

    /// Bytes that the gateway has sent to `remote`.
    pub fn sent_to(&self, remote: SocketAddr) -> u64 {
        self.sent.get(&remote).copied().unwrap_or_default()
    }

    /// From now on the certificate of `user` is nobody's; its clients hold another one.
    pub fn revoke_certificate(&mut self, user: usize) {
        self.identities[user] = Identity::new();
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.shards.iter().map(|shard| shard.counters().drops.of(reason)).sum()
    }

    /// The sum of one counter over the shards.
    pub fn sum(&self, counter: impl Fn(&Counters) -> u64) -> u64 {
        self.shards.iter().map(|shard| counter(&shard.counters())).sum()
    }

    /// The sum of one counter over the clients.
    pub fn sum_clients(&self, counter: impl Fn(&Counters) -> u64) -> u64 {
        self.clients.iter().map(|client| counter(&client.machine.counters())).sum()
    }

    pub fn connections(&self) -> (u64, u64) {
        let counters = self.shards.iter().map(Shard::counters);
        counters.fold((0, 0), |(connections, users), one| (connections + one.connections, users + one.users))
    }

    pub fn addresses_held(&self) -> u64 {
        self.shards[0].addresses_held().unwrap()
    }
}

fn transport(datagram_receive_buffer_bytes: usize) -> TransportParams {
    TransportParams {
        mtu_bytes: 1400,
        idle_timeout: Duration::from_secs(30),
        keep_alive: None,
        initial_rtt: None,
        datagram_send_buffer_bytes_max: 4 << 20,
        datagram_receive_buffer_bytes_max: datagram_receive_buffer_bytes,
        // Whose small window at the start lets queues fill.
        congestion: Congestion::Cubic,
    }
}

#[expect(clippy::disallowed_methods, reason = "an arbitrary origin; time is virtual from here on")]
fn origin() -> Instant {
    Instant::now()
}

/// An IPv4 UDP packet whose checksum is left out, as RFC 768 allows.
pub fn udp4(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) else { panic!("IPv4 only") };
    let total = (28 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(1111u16.to_be_bytes());
    packet.extend(2222u16.to_be_bytes());
    packet.extend((total - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// Takes any certificate; the engine looks up its fingerprint.
#[derive(Debug)]
struct AnyClient;

impl rustls::server::danger::ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::server::danger::ClientCertVerified, rustls::Error> {
        Ok(rustls::server::danger::ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
