//! A limited user's directions share its rate from the moment on at which both want it, whatever was before.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use tollgate_sim::Time;
use tollgate_sim::world::{Setup, UserSpec, World};

use crate::{SERVER, udp4};

const MS: Duration = Duration::from_millis(1);
/// For how long one direction is alone: the burst of a second is long used up.
const ALONE: Duration = Duration::from_secs(12);
const HEADERS_BYTES: usize = 28;
/// An inner packet's length.
const PACKET_BYTES: usize = 1328;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// How a direction's sender behaves.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Sends one and a half times the limit, whatever arrives: so many packets at once, of so many bytes.
    Constant { packets_at_once: usize, packet_bytes: usize },
    /// Sends as TCP does.
    Responsive,
}

/// What the user's rate is offered to.
#[derive(Debug, Clone, Copy)]
struct Case {
    bits_per_s: u64,
    shards: u16,
    /// The owners of the connections on which upload and download run. One connection where they are the same.
    owners: (u16, u16),
    first: Way,
    up: Kind,
    down: Kind,
}

const FLOOD: Kind = Kind::Constant { packets_at_once: 1, packet_bytes: PACKET_BYTES };
/// Both ways on one connection, the upload first.
const FLOODS: Case = Case { bits_per_s: 20_000_000, shards: 1, owners: (0, 0), first: Way::Up, up: FLOOD, down: FLOOD };

impl Case {
    /// The share of what passes that the later direction gets in each of three seconds from its start on.
    fn shares_of_the_later(&self) -> Vec<f64> {
        let limited = UserSpec { limit_bits_per_s: Some(self.bits_per_s), ..UserSpec::default() };
        let mut world = World::scenario(Setup { shards: self.shards, users: vec![limited], ..Setup::default() });
        let (upload, source) = world.attach(0, self.owners.0);
        let (download, destination) =
            if self.owners.0 == self.owners.1 { (upload, source) } else { world.attach(0, self.owners.1) };
        let mut senders = [Sender::new(self, Way::Up), Sender::new(self, Way::Down)];
        if self.first == Way::Down {
            senders.reverse();
        }
        let start = world.now;
        let mut shares = Vec::new();
        while world.now < start + ALONE + 3 * 1000 * MS {
            let both = world.now >= start + ALONE;
            for sender in &mut senders[..1 + usize::from(both)] {
                for number in sender.due(world.now) {
                    let mut payload = vec![0; sender.packet_bytes() - HEADERS_BYTES];
                    payload[..4].copy_from_slice(&number.to_be_bytes());
                    match sender.way {
                        Way::Up => world.send_up(upload, &udp4(source, SERVER, &payload)),
                        Way::Down => world.send_down(&udp4(SERVER, destination, &payload)),
                    }
                }
            }
            world.run(MS);
            for sender in &mut senders {
                for number in arrived(&mut world, sender, download, source) {
                    sender.arrived(world.now, number);
                }
            }
            if both && (world.now - start - ALONE).as_millis().is_multiple_of(1000) {
                let passed = senders.each_mut().map(|sender| std::mem::take(&mut sender.passed_bytes) as f64);
                assert!(passed.iter().sum::<f64>() > 0.9 * self.bits_per_s as f64 / 8.0, "{self:?}: {passed:?} bytes");
                shares.push(passed[1] / (passed[0] + passed[1]));
            } else if !both {
                senders[0].passed_bytes = 0;
            }
        }
        shares
    }

    fn shares_equally(&self) {
        let shares = self.shares_of_the_later();
        assert!(shares.iter().all(|share| (0.4..=0.6).contains(share)), "{self:?}: {shares:.2?}");
    }
}

/// The numbers of the packets that have arrived one way.
fn arrived(world: &mut World, sender: &Sender, download: usize, source: IpAddr) -> Vec<u32> {
    let IpAddr::V4(source) = source else { panic!("IPv4 only") };
    let packets: Vec<Vec<u8>> = match sender.way {
        Way::Up => {
            let (ours, others) = world.seen.tun.drain(..).partition(|(_, packet)| packet[12..16] == source.octets());
            world.seen.tun = others;
            let ours: Vec<(u16, Vec<u8>)> = ours;
            ours.into_iter().map(|(_, packet)| packet).collect()
        }
        Way::Down => std::mem::take(&mut world.devices[download].received),
    };
    let payloads =
        packets.iter().flat_map(|packet| packet[HEADERS_BYTES..].chunks(sender.packet_bytes() - HEADERS_BYTES));
    payloads.map(|payload| u32::from_be_bytes(payload[..4].try_into().unwrap())).collect()
}

/// One direction's sender, and what has arrived of it.
struct Sender {
    way: Way,
    kind: Kind,
    limit_bits_per_s: u64,
    next: u32,
    passed_bytes: usize,
    last: Option<Time>,
    owed_bytes: f64,
    window: Window,
}

impl Sender {
    fn new(case: &Case, way: Way) -> Self {
        let kind = if way == Way::Up { case.up } else { case.down };
        let (limit_bits_per_s, window) = (case.bits_per_s, Window::default());
        Sender { way, kind, limit_bits_per_s, next: 0, passed_bytes: 0, last: None, owed_bytes: 0.0, window }
    }

    fn packet_bytes(&self) -> usize {
        match self.kind {
            Kind::Constant { packet_bytes, .. } => packet_bytes,
            Kind::Responsive => PACKET_BYTES,
        }
    }

    /// The numbers of the packets that it sends now.
    fn due(&mut self, now: Time) -> std::ops::Range<u32> {
        let packets = match self.kind {
            Kind::Constant { packets_at_once, packet_bytes } => {
                let passed = now - self.last.replace(now).unwrap_or(now);
                self.owed_bytes += passed.as_secs_f64() * 1.5 * self.limit_bits_per_s as f64 / 8.0;
                let bursts = (self.owed_bytes / (packet_bytes * packets_at_once) as f64) as usize;
                self.owed_bytes -= (bursts * packets_at_once * packet_bytes) as f64;
                bursts * packets_at_once
            }
            Kind::Responsive => self.window.due(now, self.next),
        };
        let first = self.next;
        self.next += packets as u32;
        first..self.next
    }

    fn arrived(&mut self, now: Time, number: u32) {
        self.passed_bytes += self.packet_bytes();
        self.window.answers.push_back((now + Window::ROUND_TRIP, number));
    }
}

/// A window as TCP has: it grows by a packet a round trip, and shrinks by three tenths (RFC 9438, section 4.6) when packets are missing.
struct Window {
    packets: f64,
    is_slow_start: bool,
    answers: VecDeque<(Time, u32)>,
    /// All before it have arrived or are lost.
    answered: u32,
    answered_at: Option<Time>,
    cut_at: Option<Time>,
}

impl Default for Window {
    fn default() -> Self {
        Window {
            packets: 10.0,
            is_slow_start: true,
            answers: VecDeque::new(),
            answered: 0,
            answered_at: None,
            cut_at: None,
        }
    }
}

impl Window {
    const ROUND_TRIP: Duration = Duration::from_millis(10);
    const TIMEOUT: Duration = Duration::from_millis(200);

    fn due(&mut self, now: Time, next: u32) -> usize {
        while let Some(&(at, number)) = self.answers.front()
            && at <= now
        {
            self.answers.pop_front();
            self.answered_at = Some(now);
            if number > self.answered {
                self.lost(now);
            } else {
                self.packets += if self.is_slow_start { 1.0 } else { 1.0 / self.packets };
            }
            self.answered = number + 1;
        }
        if now - *self.answered_at.get_or_insert(now) >= Self::TIMEOUT {
            // What was under way is lost.
            self.answered = next;
            self.answered_at = Some(now);
            self.lost(now);
        }
        (self.packets as usize).saturating_sub((next - self.answered) as usize)
    }

    fn lost(&mut self, now: Time) {
        if self.cut_at.is_none_or(|cut| now >= cut + 2 * Self::ROUND_TRIP) {
            self.is_slow_start = false;
            self.packets = (self.packets * 0.7).max(2.0);
            self.cut_at = Some(now);
        }
    }
}

#[test]
fn a_download_beside_a_flood_of_uploads_gets_its_half_at_once() {
    for shards in [1, 4] {
        for down in [FLOOD, Kind::Responsive] {
            Case { shards, down, ..FLOODS }.shares_equally();
        }
    }
}

#[test]
fn an_upload_beside_a_flood_of_downloads_gets_its_half_at_once() {
    for shards in [1, 4] {
        for up in [FLOOD, Kind::Responsive] {
            Case { shards, first: Way::Down, up, ..FLOODS }.shares_equally();
        }
    }
}

#[test]
fn responsive_directions_share_equally_whichever_was_first() {
    for shards in [1, 4] {
        for first in [Way::Up, Way::Down] {
            let (up, down) = (Kind::Responsive, Kind::Responsive);
            Case { shards, first, up, down, ..FLOODS }.shares_equally();
        }
    }
}

#[test]
fn directions_on_two_shards_share_equally_whichever_was_first() {
    for (up, down) in [(FLOOD, FLOOD), (FLOOD, Kind::Responsive), (Kind::Responsive, Kind::Responsive)] {
        for first in [Way::Up, Way::Down] {
            Case { shards: 4, owners: (1, 2), first, up, down, ..FLOODS }.shares_equally();
        }
    }
}

#[test]
fn packets_that_come_by_the_frame_share_equally_with_single_ones() {
    // 44 packets are the most that a frame of the TUN holds of these.
    let bursts = Kind::Constant { packets_at_once: 44, packet_bytes: PACKET_BYTES };
    for (shards, owners) in [(1, (0, 0)), (4, (3, 3)), (4, (1, 2))] {
        for first in [Way::Up, Way::Down] {
            Case { shards, owners, first, down: bursts, ..FLOODS }.shares_equally();
            Case { shards, owners, first, up: bursts, ..FLOODS }.shares_equally();
        }
    }
}

#[test]
fn small_packets_share_equally_with_large_ones_at_low_rates_too() {
    let small = Kind::Constant { packets_at_once: 1, packet_bytes: 160 };
    for (shards, owners) in [(1, (0, 0)), (4, (3, 3)), (4, (1, 2))] {
        for (up, down) in [(small, FLOOD), (FLOOD, small)] {
            for first in [Way::Up, Way::Down] {
                Case { bits_per_s: 2_000_000, shards, owners, first, up, down }.shares_equally();
            }
        }
    }
}

#[test]
fn a_ping_passes_floods_in_both_directions_by() {
    const PINGED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 19, 9, 8));
    for shards in [1, 4] {
        let limited = UserSpec { limit_bits_per_s: Some(FLOODS.bits_per_s), ..UserSpec::default() };
        let mut world = World::scenario(Setup { shards, users: vec![limited], ..Setup::default() });
        let (client, address) = world.attach(0, 0);
        let mut floods = [Sender::new(&FLOODS, Way::Up), Sender::new(&FLOODS, Way::Down)];
        let (start, flood) = (world.now, [0; PACKET_BYTES - HEADERS_BYTES]);
        let mut round_trips = Vec::new();
        for ms in 0u32..9_000 {
            let under_way = if ms < 4_000 { 1 } else { 2 };
            for sender in &mut floods[..under_way] {
                for _ in sender.due(world.now) {
                    match sender.way {
                        Way::Up => world.send_up(client, &udp4(address, SERVER, &flood)),
                        Way::Down => world.send_down(&udp4(SERVER, address, &flood)),
                    }
                }
            }
            if ms % 10 == 0 {
                let mut payload = [0; 56];
                payload[..4].copy_from_slice(&ms.to_be_bytes());
                world.send_up(client, &udp4(address, PINGED, &payload));
            }
            world.run(MS);
            // What arrives together may have been merged.
            let payloads = |frames: Vec<Vec<u8>>| {
                let payloads =
                    |frame: Vec<u8>| frame[HEADERS_BYTES..].chunks(56).map(<[u8]>::to_vec).collect::<Vec<_>>();
                frames.into_iter().flat_map(payloads).collect::<Vec<_>>()
            };
            let written = world.seen.tun.drain(..).map(|(_, packet)| packet);
            for ping in payloads(written.filter(|packet| packet[16..20] == [198, 19, 9, 8]).collect()) {
                world.send_down(&udp4(PINGED, address, &ping));
            }
            let received = world.devices[client].received.drain(..);
            for pong in payloads(received.filter(|packet| packet[12..16] == [198, 19, 9, 8]).collect()) {
                let sent = u32::from_be_bytes(pong[..4].try_into().unwrap());
                round_trips.push(world.now - start - sent * MS);
            }
        }
        round_trips.sort_unstable();
        assert!(round_trips.len() >= 898, "{shards} shards: {} of 900 answered", round_trips.len());
        let p99 = round_trips[round_trips.len() * 99 / 100];
        assert!(p99 < 10 * MS, "{shards} shards: {p99:?}");
    }
}
