//! How a plan is drawn from its seed. Each seed switches features on or off and draws how strong they are, so that rare combinations get their
//! turn. A feature that is switched off by hand shifts no other choice.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;
use tollgate_noise::Kind;
use tollgate_shards::{
    AddressRange, BURST_BYTES_MIN, Congestion, ConnectionLimit, Limit, Limits, Rate, SessionLimits, ShaperLimits,
    TransportParams, User, WhenReached,
};

use super::features::chance;
use super::hostile::{HARM, LATER_HARM, QUIET};
use super::links::draw_link;
use super::{
    DevicePlan, Disturbances, Feature, Features, FlowPlan, FramesPlan, LayoutPlan, Peer, Plan, ShellPlan, Source,
    Surroundings,
};
use crate::gateway::{GATEWAY, GATEWAYS};
use crate::noise;
use crate::random::{Draws, Stream};

/// How much there may be in a run.
pub(super) struct Scale {
    pub shards: &'static [u16],
    pub users_max: u64,
    /// About how many inner packets are sent: from, to.
    pub packets: (u64, u64),
}

impl Scale {
    const FULL: Scale = Scale { shards: &[1, 2, 2, 3, 4, 4, 5, 8], users_max: 16, packets: (1_000, 16_000) };
}

impl Plan {
    /// The plan of `seed`, with no features but those `allowed`, for `safety` of simulated time before it gets calm.
    pub fn new(seed: u64, allowed: Features, safety: Duration) -> Self {
        Plan::with(seed, (allowed, Features::of(&[])), safety)
    }

    /// The same where those of `always` happen whatever the seed says.
    pub fn with(seed: u64, (allowed, always): (Features, Features), safety: Duration) -> Self {
        Plan::draw(Draws::seeded(seed), (allowed, always), safety, Scale::FULL)
    }

    pub(super) fn draw(draws: Draws, (allowed, always): (Features, Features), safety: Duration, scale: Scale) -> Self {
        let mut random = draws.stream("plan.features");
        let drawn: Vec<_> = Feature::all().filter(|&feature| random.permille(chance(feature))).collect();
        let mut features = Features::of(&drawn).and(allowed);
        // Of the runs with somebody who means harm, some are quiet otherwise: there others must not suffer.
        let means_harm = |it: &&Feature| drawn.contains(it) && (allowed.has(**it) || !LATER_HARM.contains(it));
        let is_harmed = HARM.iter().any(|it| means_harm(&it)) && HARM.iter().any(|&it| allowed.has(it));
        if is_harmed && draws.stream("plan.quiet").permille(400) {
            features = features.and(Features::of(&[&HARM[..], &QUIET[..]].concat()));
        }
        let features = features.or(always).possible();
        let mut random = draws.stream("plan.world");
        let shards = random.pick(scale.shards);
        let ticks = [Duration::from_micros(100), Duration::from_millis(1), Duration::from_millis(5)];
        let tick = random.pick(&ticks);
        let idle_timeout = random.duration(Duration::from_secs(3), Duration::from_secs(12));
        let transport = TransportParams {
            mtu_bytes: 1400,
            idle_timeout,
            keep_alive: None,
            initial_rtt: random.permille(500).then_some(Duration::from_millis(100)),
            datagram_send_buffer_bytes_max: random.log_uniform(64 << 10, 4 << 20) as usize,
            datagram_receive_buffer_bytes_max: random.log_uniform(64 << 10, 4 << 20) as usize,
            congestion: random.pick(&[Congestion::Uncontrolled, Congestion::Cubic, Congestion::NewReno]),
        };
        let isolate_clients = random.permille(500) || !features.has(Feature::Peers);
        let limits = Limits {
            waiting: draw_waiting(&mut random),
            hairpin_packets_max: random.log_uniform(1, 64) as usize,
            send_datagrams_max: draws.stream("plan.sends").log_uniform(1, 64) as usize,
            ..Limits::default()
        };
        let mut plan = Plan {
            seed: draws.seed,
            features,
            safety,
            tick: if features.has(Feature::Ticks) { tick } else { Duration::from_micros(1) },
            shards,
            tunnel: tunnel(features, &mut random),
            isolate_clients,
            session_limits: SessionLimits::default(),
            keep_alive: idle_timeout / 3,
            transport,
            limits,
            layout: LayoutPlan::PLAIN,
            users: Vec::new(),
            devices: Vec::new(),
            flows: Vec::new(),
            disturbances: disturbances(features, &mut draws.stream("plan.disturbances")),
            frames: features.has(Feature::Frames).then(|| draw_frames(&mut draws.stream("plan.frames"))),
            flood: None,
            failures: None,
            large: None,
            shell: features.has(Feature::Shell).then(|| ShellPlan::draw(features, &mut draws.stream("plan.shell"))),
            tcp: Vec::new(),
            surroundings: Surroundings::default(),
            draws,
        };
        plan.draw_users(scale.users_max);
        plan.draw_devices();
        plan.draw_rough_links();
        plan.draw_outside();
        plan.draw_halts();
        plan.draw_flows(scale.packets);
        if features.has(Feature::Tcp) {
            plan.draw_tcp();
        }
        if features.has(Feature::Forgery) {
            plan.draw_forged_flows();
        }
        plan.draw_cheats();
        if features.has(Feature::Noise) {
            plan.draw_noise();
        }
        if features.has(Feature::Expiry) {
            plan.draw_deadlines();
        }
        if features.has(Feature::Bounds) {
            plan.draw_bounds();
        }
        if features.has(Feature::Memory) {
            plan.limits.memory_bytes_max = plan.draws.stream("plan.memory").log_uniform(64 << 10, 4 << 20) as usize;
        }
        if features.has(Feature::Floods) {
            plan.draw_flood();
        }
        if features.has(Feature::Failures) {
            plan.draw_failures();
        }
        if features.has(Feature::Large) {
            plan.draw_large();
        }
        if features.has(Feature::Layouts) {
            plan.layout = LayoutPlan::draw(&mut plan.draws.stream("plan.layouts"));
        }
        plan
    }

    fn draw_users(&mut self, users_max: u64) {
        let mut random = self.draws.stream("plan.users");
        let count = random.log_uniform(1, users_max) as usize;
        for index in 0..count {
            let user = draw_user(index, self.tunnel, self.features, &mut random);
            self.users.push(user);
        }
    }

    fn draw_devices(&mut self) {
        let mut random = self.draws.stream("plan.devices");
        for user in 0..self.users.len() {
            let count = random.pick(&[1, 1, 1, 2, 2, 3, 4]);
            let shared = random.permille(300);
            for number in 0..count {
                let device = self.draw_device(user, &mut random);
                let identity =
                    if shared && number > 0 { self.devices[self.devices.len() - 1].identity } else { device.identity };
                self.devices.push(DevicePlan { identity, ..device });
            }
        }
        self.certify();
    }

    /// Some devices have keys instead of certificates. Who shared a certificate shares a key.
    fn draw_noise(&mut self) {
        let mut random = self.draws.stream("plan.noise");
        let mut keys = BTreeMap::new();
        for device in &mut self.devices {
            let has_key = random.permille(400);
            // The others cost twice as much.
            let kind = random.pick(&[Kind::Standard, Kind::Standard, Kind::PostQuantum, Kind::Hybrid]);
            let number = device.identity;
            device.identity =
                *keys.entry(number).or_insert(if has_key { noise::with_key(number, kind) } else { number });
        }
        self.users.iter_mut().for_each(|user| user.credentials.clear());
        self.certify();
    }

    fn draw_device(&self, user: usize, random: &mut Stream) -> DevicePlan {
        let features = self.features;
        let seconds = Duration::from_secs;
        let first_connect = random.duration(Duration::ZERO, self.safety / 4);
        let stays =
            random.permille(700).then(|| random.log_duration(Duration::from_millis(500), self.safety.max(seconds(1))));
        let vanish_permille = random.between(100, 1000) as u32;
        let vanish_permille = match (features.has(Feature::Vanish), features.has(Feature::Close)) {
            (true, true) => vanish_permille,
            (true, false) => 1000,
            _ => 0,
        };
        let ends = features.has(Feature::Vanish) || features.has(Feature::Close);
        let pause = random.log_duration(Duration::from_millis(100), seconds(10));
        let rebind_every = random.permille(600).then(|| random.log_duration(Duration::from_millis(50), seconds(30)));
        let link = draw_link(features, random);
        DevicePlan {
            first_connect,
            stays: stays.filter(|_| ends),
            vanish_permille,
            pause,
            rebind_every: rebind_every.filter(|_| features.has(Feature::Rebinding)),
            // In every other place.
            returns: features.has(Feature::Upgrade) && self.devices.len() % 2 == 1,
            ..DevicePlan::steady(user, self.devices.len() as u64, link)
        }
    }

    fn draw_flows(&mut self, packets: (u64, u64)) {
        let mut random = self.draws.stream("plan.flows");
        let packets = random.log_uniform(packets.0, packets.1);
        let count = random.between(1, 3 * self.devices.len() as u64 + 2) as usize;
        for number in 0..count {
            let share = 1 + random.between(0, 2 * packets / count as u64);
            let device = random.index(self.devices.len());
            let other = random.index(self.devices.len());
            let between_devices = random.permille(400) && self.features.has(Feature::Peers);
            let peer = if between_devices {
                Peer::Device(other)
            } else {
                Peer::Network(self.network_host(random.between(0, 5) as u8))
            };
            let bursts = random.log_uniform(1, 64);
            let burst = if self.features.has(Feature::Bursts) { bursts } else { 1 + bursts / 32 };
            let top = if self.features.has(Feature::Oversize) { 2000 } else { 1340 };
            let low = random.log_uniform(1, 1340);
            let high = if random.permille(500) { low } else { random.between(low, top) };
            self.flows.push(FlowPlan {
                device,
                peer,
                down: random.permille(500),
                every: (self.safety * burst.min(u64::from(u32::MAX)) as u32 / 2 / share as u32)
                    .max(Duration::from_micros(200)),
                burst,
                payload_bytes: (low, high + 1),
                port: 1000 + number as u16,
                source: Source::Own,
            });
        }
    }

    /// Room for all who may be connected at once, and for little more.
    fn draw_bounds(&mut self) {
        let mut random = self.draws.stream("plan.bounds");
        self.limits.connections_max = self.devices.len() + random.log_uniform(1, 16) as usize;
        self.limits.handshakes_max = random.log_uniform(1, 16) as usize;
        self.limits.handshakes_per_source_max = random.log_uniform(1, 8) as usize;
        self.limits.merge.frames_max = random.log_uniform(1, 512) as usize;
        self.limits.merge.runs_max = random.log_uniform(1, 64) as usize;
    }

    /// Flows that must come to nothing, but for those whose drawn address is the device's own by chance.
    fn draw_forged_flows(&mut self) {
        let mut random = self.draws.stream("plan.forgery");
        let first_port = 1000 + self.flows.len() as u16;
        let inside = |number| own_range(number, 1, self.tunnel).first();
        let parse = |address: &&str| -> IpAddr { address.parse().expect("an address") };
        let mut addresses = vec![self.tunnel.addr(), self.tunnel.network(), GATEWAY.ip(), inside(0), inside(3)];
        addresses.extend([self.network_host(0), self.tunnel.broadcast()]);
        if self.features.has(Feature::OuterAddresses) {
            addresses.extend(GATEWAYS.map(|gateway| gateway.ip()));
        }
        let everywhere =
            ["0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.7.7", "224.0.0.5", "239.1.1.1", "255.255.255.255"];
        let everywhere_v6 = ["::", "::1", "fe80::7", "ff02::5", "ff0e::1", "::ffff:10.77.0.9"];
        addresses.extend(everywhere.iter().chain(&everywhere_v6).map(parse));
        let count = random.between(1, 2 * self.devices.len() as u64 + 2) as u16;
        for number in 0..count {
            let (device, other) = (random.index(self.devices.len()), random.index(self.devices.len()));
            let (address, is_source) = (random.pick(&addresses), random.permille(500));
            let source = match random.between(0, 3) {
                0 => Source::Device(other),
                _ if is_source => Source::Forged(address),
                _ => Source::Own,
            };
            let is_own = source == Source::Own;
            self.flows.push(FlowPlan {
                device,
                peer: Peer::Network(if is_own { address } else { self.network_host(1) }),
                down: false,
                every: random.log_duration(Duration::from_millis(2), self.safety.max(Duration::from_secs(1))),
                burst: random.log_uniform(1, 16),
                payload_bytes: (8, 1 + random.log_uniform(8, 1340)),
                port: first_port + number,
                source,
            });
        }
    }
}

fn draw_waiting(random: &mut Stream) -> ShaperLimits {
    ShaperLimits {
        bytes_max: random.log_uniform(8 << 10, 512 << 10) as usize,
        packets_max: random.log_uniform(8, 1024) as usize,
        wait_max: random.log_duration(Duration::from_millis(50), Duration::from_secs(1)),
        flows_max: random.log_uniform(1, 64) as u16,
    }
}

fn draw_frames(random: &mut Stream) -> FramesPlan {
    FramesPlan {
        super_permille: random.between(100, 1001) as u32,
        offloaded_permille: random.between(0, 1001) as u32,
        damaged_permille: random.log_uniform(1, 200) as u32,
        fragmented_permille: random.between(20, 300) as u32,
    }
}

fn tunnel(features: Features, random: &mut Stream) -> IpNet {
    let scarce = features.has(Feature::Scarcity) && !features.has(Feature::Pools);
    let prefix = random.pick(&[27, 28, 29]);
    let roomy = random.pick(&[24, 24, 20, 16]);
    let v4 = if scarce { prefix } else { roomy };
    let text = if features.has(Feature::Ipv6) { format!("fd00:77::1/{}", v4 + 96) } else { format!("10.77.0.1/{v4}") };
    text.parse().expect("a network")
}

/// A user as drawn, without certificates.
pub fn draw_user(index: usize, tunnel: IpNet, features: Features, random: &mut Stream) -> User {
    let limit = random.permille(600).then(|| draw_limit(random));
    let length = random.pick(&[1, 1, 1, 2, 3, 4]);
    let pool = random.permille(400).then(|| own_range(index, length, tunnel));
    let connections_max = NonZeroU32::new(random.between(1, 4) as u32).expect("1 at least");
    let when_reached = random.pick(&[WhenReached::RefuseNew, WhenReached::CloseOldest]);
    let connection_limit = random.permille(400).then_some(ConnectionLimit { connections_max, when_reached });
    User {
        name: format!("user{index}"),
        limit: limit.filter(|_| features.has(Feature::Limits)),
        pool: pool.filter(|_| features.has(Feature::Pools)).into_iter().collect(),
        connection_limit: connection_limit.filter(|_| features.has(Feature::ConnectionLimits)),
        ..User::default()
    }
}

/// Anything from 64 kbps to 1 gbps, with a burst from a packet to a second's worth.
pub fn draw_limit(random: &mut Stream) -> Limit {
    let rate = Rate::from_bits_per_s(random.log_uniform(64_000, 1_000_000_000)).expect("not 0");
    let burst = random.log_duration(Duration::from_millis(10), Duration::from_secs(1));
    let least = random.pick(&[1500, 4096, BURST_BYTES_MIN]);
    Limit::with_burst(rate, burst, least)
}

/// The user's own addresses: `length` of them, from 64 on, 8 apart.
fn own_range(index: usize, length: u32, tunnel: IpNet) -> AddressRange {
    let first = 64 + 8 * index as u32;
    let at = |offset: u32| match tunnel.network() {
        IpAddr::V4(network) => IpAddr::from(Ipv4Addr::from(u32::from(network) + offset)),
        IpAddr::V6(network) => IpAddr::from(Ipv6Addr::from(u128::from(network) + u128::from(offset))),
    };
    AddressRange::new(at(first), at(first + length - 1)).expect("in order")
}

fn disturbances(features: Features, random: &mut Stream) -> Disturbances {
    let mut every = || random.log_duration(Duration::from_secs(1), Duration::from_secs(30));
    let (reload_every, kick_every, restart_every) = (every(), every(), every());
    let order_spread = random.log_duration(Duration::from_micros(1), Duration::from_secs(1));
    let mesh_delay = random.log_duration(Duration::from_micros(1), Duration::from_millis(10));
    let mesh_loss_ppm = random.log_uniform(1_000, 300_000) as u32;
    let misrouted_permille = random.log_uniform(1, 500) as u32;
    let strangers_every = random.log_duration(Duration::from_millis(10), Duration::from_secs(2));
    Disturbances {
        reload_every,
        kick_every,
        restart_every,
        strangers_every,
        order_spread,
        mesh_delay: if features.has(Feature::MeshDelay) { mesh_delay } else { Duration::ZERO },
        mesh_loss_ppm: if features.has(Feature::MeshLoss) { mesh_loss_ppm } else { 0 },
        misrouted_permille: if features.has(Feature::Misrouting) { misrouted_permille } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAFETY: Duration = Duration::from_secs(60);

    #[test]
    fn leaving_a_feature_out_changes_nothing_else() {
        for seed in 0..50 {
            let with = Plan::new(seed, Features::ALL, SAFETY);
            let without = Plan::new(seed, Features::ALL.without(&[Feature::Loss, Feature::Limits]), SAFETY);
            let links = |plan: &Plan| plan.devices.iter().map(|device| device.up.delay).collect::<Vec<_>>();
            let pools = |plan: &Plan| plan.users.iter().map(|user| user.pool.clone()).collect::<Vec<_>>();
            assert_eq!((links(&with), pools(&with), with.tunnel), (links(&without), pools(&without), without.tunnel));
            assert_eq!(format!("{:?}", with.flows), format!("{:?}", without.flows));
            assert!(without.devices.iter().all(|device| device.up.loss_ppm == 0));
            assert!(without.users.iter().all(|user| user.limit.is_none()));
        }
    }

    #[test]
    fn what_is_always_to_happen_changes_nothing_else() {
        for seed in 0..50 {
            let without = Plan::new(seed, Features::ALL, SAFETY);
            let with = Plan::with(seed, (Features::ALL, Features::of(&[Feature::Large])), SAFETY);
            assert!(with.features.has(Feature::Large));
            assert_eq!(format!("{:?}", with.flows), format!("{:?}", without.flows));
        }
    }

    #[test]
    fn every_feature_is_on_in_some_runs_and_off_in_others() {
        let plans: Vec<_> = (0..400).map(|seed| Plan::new(seed, Features::ALL, SAFETY)).collect();
        for feature in Feature::all() {
            let on = plans.iter().filter(|plan| plan.features.has(feature)).count();
            assert!((8..380).contains(&on), "{}: {on}", feature.name());
        }
    }

    #[test]
    fn addresses_of_users_own_are_inside_the_tunnel_and_disjoint() {
        for seed in 0..100 {
            let plan = Plan::new(seed, Features::ALL, SAFETY);
            let ranges: Vec<_> = plan.users.iter().flat_map(|user| &user.pool).collect();
            assert!(
                ranges.iter().all(|range| plan.tunnel.contains(&range.first()) && plan.tunnel.contains(&range.last()))
            );
            assert!(ranges.windows(2).all(|pair| pair[0].last() < pair[1].first()));
        }
    }
}
