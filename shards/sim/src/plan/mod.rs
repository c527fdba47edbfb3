//! What a run is made of: every parameter, decided before it begins.

mod bytes;
mod deadlines;
mod draw;
mod features;
mod hostile;
mod layouts;
mod links;
mod shell;
mod surroundings;
mod tcp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use tollgate_shards::{Limits, SessionLimits, TransportParams, User};

use crate::random::Draws;

pub use deadlines::draw_session_limits;
pub use draw::{draw_limit, draw_user};
pub use features::{Feature, Features};
pub use hostile::{Cheat, CheatPlan, FailuresPlan, FloodPlan, LargePlan};
pub use layouts::LayoutPlan;
pub use links::{Becomes, Bottleneck, Direction, LinkChange, LinkPlan};
pub use shell::ShellPlan;
pub use surroundings::Surroundings;
pub use tcp::TcpFlow;

/// A device of a user: what connects.
#[derive(Debug, Clone)]
pub struct DevicePlan {
    /// Its user, as an index into the plan's users.
    pub user: usize,
    pub identity: u64,
    /// When it first connects.
    pub first_connect: Duration,
    /// How long a connection lasts, about; `None` for as long as it can.
    pub stays: Option<Duration>,
    /// In so many of a thousand cases it vanishes rather than say goodbye.
    pub vanish_permille: u32,
    /// How long it stays away, about.
    pub pause: Duration,
    /// Time between changes of its outer address, about.
    pub rebind_every: Option<Duration>,
    /// Whether it has a TUN queue, with frames both ways.
    pub has_tun: bool,
    pub up: LinkPlan,
    pub down: LinkPlan,
    /// What becomes of its link, by time.
    pub changes: Vec<LinkChange>,
    /// By which of the gateway's addresses it reaches it.
    pub gateway: usize,
    /// The NAT that it is behind.
    pub nat: Option<usize>,
    /// It says that it comes back by itself.
    pub returns: bool,
    /// It never comes. All else is as if it did.
    pub is_left_out: bool,
    /// If it means harm, what it does.
    pub cheats: Option<CheatPlan>,
}

impl DevicePlan {
    /// A device of `user` that shows certificate `identity`, connects at once and stays where it is.
    pub fn steady(user: usize, identity: u64, link: LinkPlan) -> Self {
        DevicePlan {
            user,
            identity,
            first_connect: Duration::ZERO,
            stays: None,
            vanish_permille: 0,
            pause: Duration::from_millis(20),
            rebind_every: None,
            has_tun: false,
            up: link,
            down: link,
            changes: Vec::new(),
            gateway: 0,
            nat: None,
            returns: false,
            is_left_out: false,
            cheats: None,
        }
    }
}

/// The other end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A host of the gateway's networks.
    Network(IpAddr),
    Device(usize),
}

/// One flow of inner packets, one way.
#[derive(Debug, Clone, Copy)]
pub struct FlowPlan {
    pub device: usize,
    pub peer: Peer,
    /// From the network to the device; with a device at the other end there is only up.
    pub down: bool,
    /// Time between its bursts, about.
    pub every: Duration,
    /// Packets sent at once, at most.
    pub burst: u64,
    /// Payload of its packets in bytes: from, to.
    pub payload_bytes: (u64, u64),
    /// Tells flows between the same ends apart.
    pub port: u16,
    /// Whose address its packets up bear.
    pub source: Source,
}

/// The source address of a device's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Own,
    /// That of another device.
    Device(usize),
    Forged(IpAddr),
}

/// What inner packets look like beside whole ones, of a thousand.
#[derive(Debug, Clone, Copy)]
pub struct FramesPlan {
    /// Bursts from the network that are one super-packet.
    pub super_permille: u32,
    /// Packets from the network whose checksum is to be completed.
    pub offloaded_permille: u32,
    /// Packets from clients whose checksum is wrong.
    pub damaged_permille: u32,
    /// Packets from clients that are two fragments.
    pub fragmented_permille: u32,
}

/// How often something happens, about, and how strongly.
#[derive(Debug, Clone, Copy)]
pub struct Disturbances {
    pub reload_every: Duration,
    pub kick_every: Duration,
    pub restart_every: Duration,
    pub strangers_every: Duration,
    /// An order reaches the shards within this time.
    pub order_spread: Duration,
    /// Messages between shards take this long at most.
    pub mesh_delay: Duration,
    /// Messages lost among those that may be, of a million.
    pub mesh_loss_ppm: u32,
    /// Frames and aggregates given to the wrong shard, of a thousand.
    pub misrouted_permille: u32,
}

/// Everything that is decided before a run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub(crate) draws: Draws,
    pub features: Features,
    /// How long faults go on.
    pub safety: Duration,
    /// Events happen at multiples of this.
    pub tick: Duration,
    pub shards: u16,
    pub tunnel: IpNet,
    /// Whether clients are kept apart at first.
    pub isolate_clients: bool,
    /// How long sessions may last at first.
    pub session_limits: SessionLimits,
    /// Transport of gateway and clients.
    pub transport: TransportParams,
    pub keep_alive: Duration,
    pub limits: Limits,
    pub layout: LayoutPlan,
    /// The users at first. Their credentials follow from the devices.
    pub users: Vec<User>,
    /// All devices there will ever be.
    pub devices: Vec<DevicePlan>,
    /// All flows there will ever be.
    pub flows: Vec<FlowPlan>,
    pub disturbances: Disturbances,
    pub frames: Option<FramesPlan>,
    pub flood: Option<FloodPlan>,
    pub failures: Option<FailuresPlan>,
    pub large: Option<LargePlan>,
    pub shell: Option<ShellPlan>,
    /// Pairs of ends that have one TCP connection after the other.
    pub tcp: Vec<TcpFlow>,
    pub surroundings: Surroundings,
}

impl Plan {
    /// Whether packets of a flow arrive in the order in which they were sent, if they do: nothing on their way changes it on purpose.
    pub fn keeps_order(&self) -> bool {
        // A datagram that was lost or refused may come once more from a stranger. A core without sockets leaves frames in its TUN queue, and passes
        // them on when their address may have another owner. Where a NAT gives a port to another client, what is under way goes by that one's link.
        let disorder = [
            Feature::Reordering,
            Feature::Duplication,
            Feature::Misrouting,
            Feature::Strangers,
            Feature::Shell,
            Feature::Nats,
        ];
        // From the moment on when new clients come to another process, what comes there overtakes what the mesh still carries there.
        let is_slow = self.features.has(Feature::MeshDelay) || self.features.has(Feature::Ticks);
        let is_overtaken = self.features.has(Feature::Upgrade) && is_slow;
        !is_overtaken && !disorder.iter().any(|&feature| self.features.has(feature))
    }

    /// Addresses that the tunnel network's pool has, own pools not deducted.
    pub fn tunnel_hosts(&self) -> u64 {
        let bits = (self.tunnel.max_prefix_len() - self.tunnel.prefix_len()).min(32);
        (1u64 << bits).saturating_sub(3)
    }

    /// Gives every user the credentials of its devices.
    pub(crate) fn certify(&mut self) {
        for device in &self.devices {
            let user = &mut self.users[device.user];
            let fingerprint = crate::identity::Identity::cached(device.identity).fingerprint;
            if !user.credentials.contains(&fingerprint) {
                user.credentials.push(fingerprint);
            }
        }
    }

    /// A host of the networks behind the gateway.
    pub fn network_host(&self, number: u8) -> IpAddr {
        if self.tunnel.addr().is_ipv4() {
            IpAddr::from(Ipv4Addr::new(192, 0, 2, number + 1))
        } else {
            IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number) + 1))
        }
    }
}
