//! TCP connections of a run.

use std::time::Duration;

use super::{Feature, Peer, Plan};
use crate::tcp::DELAYED_ACK;

/// Two ends that have one TCP connection after the other. Of pairs, the first is the device's.
#[derive(Debug, Clone, Copy)]
pub struct TcpFlow {
    pub device: usize,
    pub peer: Peer,
    pub device_opens: bool,
    /// What each end sends, in each connection while there are faults.
    pub bytes: [u64; 2],
    /// The same, in the one connection of the calm.
    pub calm_bytes: [u64; 2],
    /// Between connections, about.
    pub pause: Duration,
    /// What the application writes at once, in bytes.
    pub write_bytes: u64,
    /// Of the ends' interfaces, which may be more than the tunnel carries.
    pub mtu_bytes: [u64; 2],
    pub buffer_bytes: [u64; 2],
    /// When the application reads, if it does not at once.
    pub reads_every: [Option<Duration>; 2],
    /// Whether hosts of the network hand on super-packets. What a router forwards comes one by one.
    pub has_tso: bool,
    pub has_timestamps: bool,
    pub has_ecn: bool,
    pub may_be_fragmented: bool,
    /// Packets with a wrong checksum, of a million; those from the network whose checksum is to be completed have none.
    pub damaged_ppm: u32,
    /// Packets from the network whose checksum is to be completed, of a thousand.
    pub offloaded_permille: u32,
}

impl TcpFlow {
    /// What Reno carries from an end in `time`, about: a window each round trip. The window grows by a segment each round trip from one loss to the
    /// next, and so has about the inverse of the root of their rate (Mathis et al., 1997), as far as the other end's buffer lets it.
    pub fn carried_bytes(&self, side: usize, time: Duration, round_trip: Duration) -> u64 {
        let segments = (1e6 / f64::from(self.damaged_ppm.max(1))).sqrt() as u64;
        let [mtu_bytes, other_mtu_bytes] = self.mtu_bytes;
        let window_bytes = (segments * mtu_bytes.min(other_mtu_bytes)).min(self.buffer_bytes[1 - side]);
        let round = round_trip + DELAYED_ACK + self.reads_every[1 - side].unwrap_or_default();
        window_bytes * (time.as_millis() / round.as_millis()) as u64
    }
}

impl Plan {
    pub(super) fn draw_tcp(&mut self) {
        let mut random = self.draws.stream("plan.tcp");
        self.devices.iter_mut().for_each(|device| device.has_tun = random.permille(400));
        // At a low rate these would take too long.
        let is_bulk = self.features.has(Feature::Bulk) && !self.features.has(Feature::Limits);
        let calm_factor = if is_bulk { 8 } else { 1 };
        for _ in 0..random.log_uniform(1, 4) {
            let (device, other) = (random.index(self.devices.len()), random.index(self.devices.len()));
            let between_devices = random.permille(300) && self.features.has(Feature::Peers) && device != other;
            let host = self.network_host(random.between(0, 5) as u8);
            let directions = random.pick(&[[true, false], [false, true], [false, true], [true, true]]);
            let bytes = [0; 2].map(|_| random.log_uniform(2_000, 400_000));
            let calm_bytes = [0; 2].map(|_| random.log_uniform(50_000, 1_000_000));
            let of_sender = |bytes: [u64; 2]| [0, 1].map(|side| if directions[side] { bytes[side] } else { 0 });
            let may_be_fragmented = random.permille(300) && self.tunnel.addr().is_ipv4();
            // What may be fragmented fits any path, so that nobody does.
            let mtus: &[u64] = if may_be_fragmented { &[576, 1100] } else { &[1280, 1330, 1330, 1500] };
            let mtu_bytes = [0; 2].map(|_| random.pick(mtus));
            let is_too_much = random.permille(250) && !may_be_fragmented;
            let damaged_ppm = random.log_uniform(1_000, 15_000) as u32;
            self.tcp.push(TcpFlow {
                device,
                peer: if between_devices { Peer::Device(other) } else { Peer::Network(host) },
                device_opens: random.permille(500),
                bytes: of_sender(bytes),
                calm_bytes: of_sender(calm_bytes).map(|bytes| calm_factor * bytes),
                pause: random.log_duration(self.safety / 16, self.safety),
                write_bytes: random.log_uniform(500, 200_000),
                mtu_bytes: if is_too_much { [1500; 2] } else { mtu_bytes },
                buffer_bytes: [0; 2].map(|_| random.log_uniform(16_000, 2_000_000)),
                reads_every: [0; 2].map(|_| {
                    let every = random.log_duration(Duration::from_millis(1), Duration::from_millis(300));
                    random.permille(300).then_some(every)
                }),
                has_tso: random.permille(600),
                has_timestamps: random.permille(700),
                has_ecn: random.permille(500),
                may_be_fragmented,
                damaged_ppm: if random.permille(500) { damaged_ppm } else { 0 },
                offloaded_permille: random.between(0, 1001) as u32,
            });
        }
    }
}
