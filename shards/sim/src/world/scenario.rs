//! A world in which nothing happens by itself: a test makes clients, acts, lets time pass, and looks at what came out. The oracles of addresses,
//! tokens and queues judge here too; packets are the test's own to judge.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use ipnet::IpNet;
use quinn_proto::crypto::ClientConfig;
use tollgate_noise::Kind;
use tollgate_shards::packet::MergeLimits;
use tollgate_shards::packet::vnet::HEADER_BYTES;
use tollgate_shards::{
    AddressRange, BURST_BYTES_MIN, Client, ClientEvent, ClientMtu, Command, Congestion, Counters, DropReason, Ecn,
    Event as ShardEvent, Limit, Limits, Machine, Rate, SessionLimits, Shard, ShardIndex, Shards, Snapshot,
    TransportParams, TunnelParams, User, home_of, transport,
};

use super::World;
use crate::client::{Device, End};
use crate::gateway::GATEWAY;
use crate::hostile::cheat::{CheatingHandshake, carry};
use crate::identity::{self, Dial, Hello, Identity, reset_key};
use crate::link::{Aggregate, Link};
use crate::noise;
use crate::packets::{Forger, destination_of};
use crate::plan::{DevicePlan, Direction, Feature, Features, LinkPlan, Plan};
use crate::run::Options;

/// What carries an inner packet is longer in these worlds.
const INNER_BYTES_MIN: usize = 100;
/// Certificates that no user has are numbered from here on.
const STRANGERS: u64 = 1 << 16;

/// A user of such a world.
#[derive(Debug, Default, Clone)]
pub struct UserSpec {
    /// The rate, if there is one.
    pub limit_bits_per_s: Option<u64>,
    /// Time in which the burst comes back; a second by default.
    pub burst: Option<Duration>,
    /// First and last address of a pool of the user's own.
    pub pool: Option<(&'static str, &'static str)>,
    /// The shard that must be the user's home.
    pub home: Option<u16>,
}

impl UserSpec {
    fn user(&self, index: usize, shards: u16) -> User {
        let limit = self.limit_bits_per_s.and_then(Rate::from_bits_per_s);
        let burst = self.burst.unwrap_or(Duration::from_secs(1));
        let range = |(first, last): (&str, &str)| AddressRange::new(first.parse().ok()?, last.parse().ok()?);
        let mut user = User {
            name: format!("user{index}"),
            limit: limit.map(|rate| Limit::with_burst(rate, burst, BURST_BYTES_MIN)),
            pool: self.pool.map(|pool| range(pool).expect("two addresses in order")).into_iter().collect(),
            ..User::default()
        };
        while self.home.is_some_and(|home| home_of(&user.name, Shards::alone(shards)).0 != home) {
            user.name.push('x');
        }
        user
    }
}

/// What such a world begins with.
#[derive(Debug, Clone)]
pub struct Setup {
    pub shards: u16,
    pub tunnel: &'static str,
    pub isolate_clients: bool,
    pub users: Vec<UserSpec>,
    /// Bound of the queue of datagrams received, of each connection at either end.
    pub datagram_receive_buffer_bytes: usize,
    /// Bound of each client's queue of datagrams to send.
    pub send_datagrams_max: usize,
    pub congestion: Congestion,
    /// The memory of each shard.
    pub memory_bytes_max: usize,
    /// Connections of each shard.
    pub connections_max: usize,
    /// Every client's link at first.
    pub link: LinkPlan,
    /// What is unusual about the clients' handshakes.
    pub hello: Hello,
    /// Whether packets go [unprotected](crate::open).
    pub is_open: bool,
    /// Whether shards send new clients to each other, instead of keeping those that come.
    pub places: bool,
    /// The users' Noise keys, in turn; `None` for a certificate. If there is any, the gateway serves all kinds beside TLS.
    pub keys: Vec<Option<Kind>>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            shards: 2,
            tunnel: "198.18.0.1/24",
            isolate_clients: true,
            users: vec![UserSpec::default(); 2],
            datagram_receive_buffer_bytes: 4 << 20,
            send_datagrams_max: 64,
            // Its small window at the start lets queues fill.
            congestion: Congestion::Cubic,
            memory_bytes_max: Limits::default().memory_bytes_max,
            connections_max: Limits::default().connections_max,
            link: LinkPlan::default(),
            hello: Hello::default(),
            is_open: false,
            places: false,
            keys: Vec::new(),
        }
    }
}

impl Setup {
    /// Of the user at `index`.
    fn identity(&self, index: usize) -> u64 {
        let kind = self.keys.get(index % self.keys.len().max(1)).copied().flatten();
        kind.map_or(index as u64, |kind| noise::with_key(index as u64, kind))
    }

    fn plan(&self) -> Plan {
        let users = self.users.iter().enumerate().map(|(index, spec)| {
            let credentials = vec![Identity::cached(self.identity(index)).fingerprint];
            User { credentials, ..spec.user(index, self.shards) }
        });
        let users = users.collect();
        Plan {
            features: Features::of(if self.keys.iter().any(Option::is_some) { &[Feature::Noise] } else { &[] }),
            shards: self.shards,
            tick: Duration::from_nanos(1),
            tunnel: self.tunnel.parse::<IpNet>().expect("a network"),
            isolate_clients: self.isolate_clients,
            session_limits: SessionLimits::default(),
            transport: TransportParams {
                mtu_bytes: 1400,
                idle_timeout: Duration::from_secs(30),
                keep_alive: None,
                initial_rtt: None,
                datagram_send_buffer_bytes_max: 4 << 20,
                datagram_receive_buffer_bytes_max: self.datagram_receive_buffer_bytes,
                congestion: self.congestion,
            },
            keep_alive: Duration::from_secs(25),
            limits: Limits {
                memory_bytes_max: self.memory_bytes_max,
                connections_max: self.connections_max,
                ..Limits::default()
            },
            users,
            devices: Vec::new(),
            flows: Vec::new(),
            ..Plan::new(0, Features::of(&[]), Duration::ZERO)
        }
    }
}

/// What came out of a world in which a test acts. Nothing is kept in a run that follows a plan.
#[derive(Debug, Default)]
pub struct Seen {
    pub(crate) is_kept: bool,
    /// No shard hears the loads of others.
    pub(crate) keeps_arrivals: bool,
    pub hello: Hello,
    send_datagrams_max: usize,
    link: LinkPlan,
    /// The certificate that each user's clients show from now on.
    identities: Vec<u64>,
    /// Inner packets that went to the gateway's TUN, maybe merged, with the shard that wrote them.
    pub tun: Vec<(u16, Vec<u8>)>,
    /// What the shards told.
    pub events: Vec<ShardEvent>,
    /// What the gateway told of clients' paths.
    pub client_mtus: Vec<ClientMtu>,
    /// UDP datagrams that carried an inner packet and reached a client after its connection was over.
    pub late_datagrams: u64,
    sent_bytes: BTreeMap<SocketAddr, u64>,
}

impl Seen {
    pub(super) fn told(&mut self, events: Vec<ShardEvent>, client_mtus: Vec<ClientMtu>) {
        if self.is_kept {
            self.events.extend(events);
            self.client_mtus.extend(client_mtus);
        }
    }

    pub(super) fn sent(&mut self, to: SocketAddr, bytes: usize) {
        if self.is_kept {
            *self.sent_bytes.entry(to).or_default() += bytes as u64;
        }
    }

    pub(super) fn late<'a>(&mut self, datagrams: impl Iterator<Item = &'a [u8]>) {
        self.late_datagrams += datagrams.filter(|datagram| datagram.len() > INNER_BYTES_MIN).count() as u64;
    }

    /// Bytes that the gateway has sent to `remote`.
    pub fn sent_to(&self, remote: SocketAddr) -> u64 {
        self.sent_bytes.get(&remote).copied().unwrap_or_default()
    }
}

impl World {
    /// A gateway without clients, in which only what a test does happens.
    pub fn scenario(setup: Setup) -> Self {
        identity::begin(0, setup.is_open);
        let identities = (0..setup.users.len()).map(|index| setup.identity(index)).collect();
        let mut world = World::new(setup.plan(), Options::default());
        let Setup { hello, send_datagrams_max, link, places, .. } = setup;
        world.seen = Seen {
            is_kept: true,
            keeps_arrivals: !places,
            hello,
            send_datagrams_max,
            link,
            identities,
            ..Seen::default()
        };
        world
    }

    /// Starts all shards anew, as after a crash: the keys stay, everything else is gone.
    pub fn crash(&mut self) {
        self.gateway.start_all(self.now);
        (0..self.plan.shards).for_each(|index| self.oracle.died(self.now, ShardIndex(index)));
        (0..self.plan.shards).for_each(|index| self.touch_shard(index));
    }

    /// A client of `user` whose connection lands on shard `owner`. It has sent nothing yet.
    pub fn connect(&mut self, user: usize, owner: u16) -> usize {
        let (identity, hello) = (Identity::cached(self.seen.identities[user]), self.seen.hello);
        let client = self.dial(user, &identity.client(hello), owner);
        if hello.returns {
            self.client_mut(client).tunnel.move_by(identity.moving(hello));
        }
        client
    }

    /// The same, where the client's TLS is the test's own.
    pub fn connect_with<T: ClientConfig + 'static>(&mut self, user: usize, tls: &Arc<T>, owner: u16) -> usize {
        self.dial(user, &Dial::tls(tls.clone()), owner)
    }

    /// The same, where the client's handshake is the test's own.
    pub fn dial(&mut self, user: usize, dial: &Dial, owner: u16) -> usize {
        let index = self.devices.len() as u32;
        let outer = self.fresh_outer_address(index);
        let plan = DevicePlan::steady(user, self.seen.identities[user], self.seen.link);
        let mut device = Device::new(index, plan, outer, self.plan.seed);
        device.wanted = false;
        self.keep_arrivals();
        let mut seeds = (0..=255).map(|_| device.random.seed());
        let seed = seeds.find(|&seed| self.owner_of(self.client_of(dial, seed)) == owner);
        let seed = seed.expect("one ID in N leads to each of N shards");
        device.begin(End::Client(Box::new(self.client_of(dial, seed)), VecDeque::new()));
        self.devices.push(device);
        self.touch_device(index);
        index as usize
    }

    /// The same, of a client that can be made to send any frames, and that may never acknowledge anything.
    pub fn connect_cheat(&mut self, user: usize, owner: u16, swallows_acks: bool) -> usize {
        let Dial { handshake, quic_version } = Identity::cached(self.seen.identities[user]).client(self.seen.hello);
        let handshake = Arc::new(CheatingHandshake { handshake, swallows_acks });
        self.dial(user, &Dial { handshake, quic_version }, owner)
    }

    /// A client that cheats sends QUIC frames of the test's own.
    pub fn send_frames(&mut self, client: usize, frames: &[u8]) {
        self.client_mut(client).tunnel.send(carry(frames).into());
    }

    /// The same, at `outer`.
    pub fn connect_from(&mut self, outer: SocketAddr, user: usize, owner: u16) -> usize {
        let client = self.connect(user, owner);
        self.move_to(client, outer);
        client
    }

    fn client_of(&self, dial: &Dial, seed: [u8; 32]) -> Client {
        let transport_params =
            TransportParams { keep_alive: Some(self.plan.keep_alive), ..self.plan.transport.clone() };
        let params = TunnelParams {
            quic_version: dial.quic_version,
            remote: GATEWAY,
            server_name: "gateway".to_owned(),
            transport: Arc::new(transport(&transport_params)),
            send_datagrams_max: self.seen.send_datagrams_max,
            seed,
        };
        Client::new(params, MergeLimits::default(), dial.handshake.clone(), reset_key(&seed), self.instant())
            .expect("a usable name and address")
    }

    /// Connects and waits for the address.
    pub fn attach(&mut self, user: usize, owner: u16) -> (usize, IpAddr) {
        let client = self.connect(user, owner);
        self.run(Duration::from_secs(2));
        (client, self.devices[client].address().expect("the client gets an address"))
    }

    /// Whether a client has been given an address, and has its connection still.
    pub fn is_attached(&self, client: usize) -> bool {
        let ends = |event: &&ClientEvent| matches!(event, ClientEvent::Assigned(_) | ClientEvent::Closed(_));
        matches!(self.devices[client].events.iter().rfind(ends), Some(ClientEvent::Assigned(_)))
    }

    pub fn client(&self, client: usize) -> &Client {
        match self.devices[client].session.as_ref().map(|session| &session.end) {
            Some(End::Client(client, _)) => client,
            _ => panic!("client {client} is no more"),
        }
    }

    /// A client to which something is about to happen.
    pub fn client_mut(&mut self, client: usize) -> &mut Client {
        self.touch_device(client as u32);
        match self.devices[client].session.as_mut().map(|session| &mut session.end) {
            Some(End::Client(client, _)) => client,
            _ => panic!("client {client} is no more"),
        }
    }

    /// A client says goodbye.
    pub fn close(&mut self, client: usize) {
        let now = self.instant();
        self.client_mut(client).tunnel.close(now);
    }

    /// Lets a client vanish without a word.
    pub fn kill(&mut self, client: usize) {
        self.devices[client].session = None;
    }

    /// Nothing is heard of a client any more, until [`World::unsilence`].
    pub fn silence(&mut self, client: usize) {
        self.devices[client].held = Some(Vec::new());
    }

    /// What a silenced client has said arrives.
    pub fn unsilence(&mut self, client: usize) {
        let outer = self.devices[client].outer;
        for datagram in self.devices[client].held.take().unwrap_or_default() {
            self.udp(outer, &datagram);
        }
    }

    /// What a silenced client has said since it was last asked.
    pub fn take_held(&mut self, client: usize) -> Vec<Vec<u8>> {
        self.devices[client].held.replace(Vec::new()).unwrap_or_default()
    }

    /// From now on a client's datagrams come from `outer`, and what is sent there reaches it.
    pub fn move_to(&mut self, client: usize, outer: SocketAddr) {
        self.leave_outer_address(client as u32);
        self.take_outer_address(client as u32, outer);
    }

    /// Gives a client another link: to the gateway, and from it.
    pub fn relink(&mut self, client: usize, up: LinkPlan, down: LinkPlan) {
        let link = |direction, plan| Link::new(direction, plan, &[], (self.plan.seed, client as u64));
        let (up, down) = (link(Direction::Up, up), link(Direction::Down, down));
        (self.devices[client].up, self.devices[client].down) = (up, down);
    }

    /// From now on clients of `user` show a certificate, or have a key, that nobody has.
    pub fn revoke_credential(&mut self, user: usize) {
        self.seen.identities[user] = noise::renewed(self.seen.identities[user], STRANGERS + user as u64);
    }

    /// A client's kernel sends an inner packet.
    pub fn send_up(&mut self, client: usize, packet: &[u8]) {
        let (now, frame) = (self.instant(), [&[0; HEADER_BYTES], packet].concat());
        self.client_mut(client).handle_frame(now, &frame);
    }

    /// A client that has cheated its own state machine: an inner packet of any kind.
    pub fn send_forged(&mut self, client: usize, packet: &[u8]) {
        self.client_mut(client).tunnel.send(packet.to_vec().into());
    }

    /// Who forges packets as a client that has its address, among others.
    pub fn forger(&self, client: usize) -> Forger {
        let leased = self.devices[client].address().expect("it is attached");
        let others = self.devices.iter().filter_map(|device| device.address()).filter(|&other| other != leased);
        Forger {
            random: self.plan.draws.stream("forger"),
            tunnel: self.plan.tunnel,
            leased,
            others: others.collect(),
            is_isolated: self.plan.isolate_clients,
        }
    }

    /// The gateway's kernel sends an inner packet to the TUN.
    pub fn send_down(&mut self, packet: &[u8]) {
        self.send_down_frame(&[&[0; HEADER_BYTES], packet].concat());
    }

    /// The gateway's kernel sends a frame to the TUN.
    pub fn send_down_frame(&mut self, frame: &[u8]) {
        let destination = destination_of(&frame[HEADER_BYTES..]);
        let index = destination.map_or(0, |destination| self.gateway.steer_tun(destination));
        let now = self.instant();
        self.shard_mut(index).handle_frame(now, frame);
    }

    /// A datagram from `remote`, at the shard that the kernel would choose.
    pub fn udp(&mut self, remote: SocketAddr, datagram: &[u8]) {
        self.udp_aggregate(remote, datagram.len(), datagram);
    }

    /// Several datagrams from `remote` in one receive.
    pub fn udp_aggregate(&mut self, remote: SocketAddr, segment_bytes: usize, data: &[u8]) {
        self.udp_marked(remote, segment_bytes, None, data);
    }

    /// The same, with that ECN codepoint.
    pub fn udp_marked(&mut self, remote: SocketAddr, segment_bytes: usize, ecn: Option<Ecn>, data: &[u8]) {
        self.reach_gateway(remote, Aggregate { segment_bytes, ecn, data: BytesMut::from(data) });
    }

    /// Whether a shard's socket takes no datagram from now on.
    pub fn block(&mut self, index: u16, is_blocked: bool) {
        self.gateway.cores[usize::from(index)].is_blocked = is_blocked;
        self.touch_shard(index);
    }

    /// Lets everything happen that happens at this instant.
    pub fn step(&mut self) {
        self.moment().unwrap_or_else(|violation| panic!("{violation}"));
    }

    /// Lets `time` pass.
    pub fn run(&mut self, time: Duration) {
        self.step();
        self.run_until(self.now + time).unwrap_or_else(|violation| panic!("{violation}"));
    }

    /// Tells every shard to stop.
    pub fn stop(&mut self) {
        let now = self.instant();
        (0..self.plan.shards).for_each(|index| self.shard_mut(index).handle_command(now, Command::Stop));
    }

    /// From now on every message between two shards takes so long.
    pub fn delay_messages(&mut self, delay: Duration) {
        self.mesh.fix_delays(vec![delay; usize::from(self.plan.shards).pow(2)]);
    }

    /// The newest snapshot's successor, in which `user` has an address pool of its own. No shard has entered it yet.
    pub fn snapshot_with_pool(&mut self, user: usize, pool: AddressRange) -> Arc<Snapshot> {
        self.gateway.population.set_pool(user, pool);
        self.gateway.next_snapshot()
    }

    /// The newest snapshot's successor, in which there is no user. No shard has entered it yet.
    pub fn snapshot_without_users(&mut self) -> Arc<Snapshot> {
        (0..self.plan.users.len()).for_each(|user| self.gateway.population.set_present(user, false));
        self.gateway.next_snapshot()
    }

    pub fn shard(&self, index: u16) -> &Shard {
        self.gateway.cores[usize::from(index)].shard()
    }

    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.gateway.cores.iter().map(|core| core.shard())
    }

    /// Packets that the shards have dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.sum(|counters| counters.drops.of(reason))
    }

    /// The sum of one counter over the shards.
    pub fn sum(&self, counter: impl Fn(&Counters) -> u64) -> u64 {
        self.shards().map(|shard| counter(&shard.counters())).sum()
    }

    /// The sum of one counter over the clients that have not been killed.
    pub fn sum_clients(&self, counter: impl Fn(&Counters) -> u64) -> u64 {
        let living = (0..self.devices.len()).filter(|&client| self.devices[client].session.is_some());
        living.map(|client| counter(&self.client(client).tunnel.counters())).sum()
    }

    /// How many connections there are, and of how many users.
    pub fn connections(&self) -> (u64, u64) {
        (self.sum(|counters| counters.connections), self.sum(|counters| counters.users))
    }

    /// Inner addresses that are somebody's.
    pub fn addresses_held(&self) -> u64 {
        self.shard(0).addresses_held().expect("shard 0 holds the pool")
    }
}
