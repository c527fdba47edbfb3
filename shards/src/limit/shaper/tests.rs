use std::collections::VecDeque;

use super::*;
use crate::ids::ShardIndex;
use crate::packet::ecn::Ecn;
use crate::packet::test_packets::Packet;
use crate::test_time::origin;

const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;
pub(super) const KEY: FlowKey = FlowKey([1; 16]);
const MS: Duration = Duration::from_millis(1);

pub(super) fn connection(slot: u32) -> ConnectionKey {
    ConnectionKey { owner: ShardIndex(0), slot, generation: 0 }
}

pub(super) fn rate(bits_per_s: u64) -> Rate {
    Rate::from_bits_per_s(bits_per_s).unwrap()
}

/// A packet of `bytes` that carries `number`.
fn packet(source_port: u16, traffic_class: u8, bytes: usize, number: u32) -> Bytes {
    let mut payload = vec![0; bytes - 28];
    payload[..4].copy_from_slice(&number.to_be_bytes());
    Packet { source_port, traffic_class, payload, ..Packet::udp_v4() }.build().into()
}

fn none_dropped(reason: DropReason, waiting: QueuedPacket) {
    panic!("{waiting:?} was dropped: {reason:?}");
}

/// A shaper, its tokens, and what came of each packet.
struct Link {
    shaper: Shaper,
    now: Instant,
    tokens_per_ms: f64,
    tokens: f64,
    drops: Vec<(DropReason, QueuedPacket)>,
}

impl Link {
    fn new(bits_per_s: u64) -> Link {
        let mut shaper = Shaper::new(ShaperLimits::default(), KEY);
        shaper.set_rate(rate(bits_per_s));
        Link { shaper, now: origin(), tokens_per_ms: bits_per_s as f64 / 8000.0, tokens: 0.0, drops: Vec::new() }
    }

    fn push(&mut self, packet: Bytes) {
        self.shaper.push(self.now, Direction::Up, connection(0), packet, &mut |reason, waiting| {
            self.drops.push((reason, waiting))
        });
    }

    /// One millisecond later: what the tokens have paid for, each with how long it waited.
    fn tick(&mut self) -> Vec<(QueuedPacket, Duration)> {
        self.now += MS;
        self.tokens += self.tokens_per_ms;
        let mut sent = Vec::new();
        while let Some(waiting) =
            self.shaper.pop(self.now, self.tokens as u64, &mut |reason, waiting| self.drops.push((reason, waiting)))
        {
            self.tokens -= waiting.packet.len() as f64;
            let waited = self.now - waiting.since;
            sent.push((waiting, waited));
        }
        if self.shaper.is_empty() {
            self.tokens = self.tokens.min(self.tokens_per_ms);
        }
        sent
    }

    fn dropped_for(&self, reason: DropReason) -> usize {
        self.drops.iter().filter(|(dropped_for, _)| *dropped_for == reason).count()
    }
}

fn source_port(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[20], packet[21]])
}

fn p99(mut delays: Vec<Duration>) -> Duration {
    delays.sort_unstable();
    delays[delays.len() * 99 / 100]
}

/// Sends at a rate and does not listen.
struct Flood {
    source_port: u16,
    bytes_per_ms: f64,
    owed_bytes: f64,
}

impl Flood {
    const PACKET_BYTES: usize = 1400;

    fn new(source_port: u16, bits_per_s: u64) -> Flood {
        Flood { source_port, bytes_per_ms: bits_per_s as f64 / 8000.0, owed_bytes: 0.0 }
    }

    fn tick(&mut self, link: &mut Link) {
        self.owed_bytes += self.bytes_per_ms;
        while self.owed_bytes >= Self::PACKET_BYTES as f64 {
            self.owed_bytes -= Self::PACKET_BYTES as f64;
            link.push(packet(self.source_port, 0, Self::PACKET_BYTES, 0));
        }
    }
}

/// Sends as TCP does: a window that grows by a packet a round trip, and shrinks by three tenths (RFC 9438, section 4.6) after one with marks or
/// losses.
struct Aimd {
    traffic_class: u8,
    window: f64,
    is_slow_start: bool,
    in_flight: usize,
    cut_at: Instant,
    answers: VecDeque<(Instant, bool)>,
    sent: u32,
}

impl Aimd {
    const ROUND_TRIP: Duration = Duration::from_millis(40);
    const PACKET_BYTES: usize = 1400;

    fn new(traffic_class: u8, now: Instant) -> Aimd {
        let answers = VecDeque::new();
        Aimd { traffic_class, window: 10.0, is_slow_start: true, in_flight: 0, cut_at: now, answers, sent: 0 }
    }

    fn tick(&mut self, link: &mut Link) {
        while let Some((at, congested)) = self.answers.front().copied()
            && at <= link.now
        {
            self.answers.pop_front();
            self.in_flight -= 1;
            if !congested {
                self.window += if self.is_slow_start { 1.0 } else { 1.0 / self.window };
            } else if link.now >= self.cut_at + Self::ROUND_TRIP {
                self.is_slow_start = false;
                self.window = (self.window * 0.7).max(2.0);
                self.cut_at = link.now;
            }
        }
        while self.in_flight < self.window as usize {
            self.in_flight += 1;
            self.sent += 1;
            link.push(packet(40000, self.traffic_class, Self::PACKET_BYTES, self.sent));
        }
    }

    fn answer(&mut self, now: Instant, congested: bool) {
        self.answers.push_back((now + Self::ROUND_TRIP, congested));
    }
}

/// Half a minute of a responsive flow over 20 mbps: mean delay after five seconds, share of the rate used, packets marked.
fn responsive(traffic_class: u8) -> (Link, Duration, f64, usize) {
    let mut link = Link::new(20_000_000);
    let mut sender = Aimd::new(traffic_class, link.now);
    let (mut delays, mut bytes, mut marked, mut told) = (Vec::new(), 0, 0, 0);
    for ms in 0..30_000 {
        sender.tick(&mut link);
        for (waiting, waited) in link.tick() {
            let congested = ecn::codepoint(&waiting.packet) == Some(Ecn::Ce);
            marked += usize::from(congested);
            sender.answer(link.now, congested);
            if ms >= 5_000 {
                delays.push(waited);
                bytes += waiting.packet.len();
            }
        }
        while told < link.drops.len() {
            told += 1;
            sender.answer(link.now, true);
        }
    }
    let mean = delays.iter().sum::<Duration>() / delays.len() as u32;
    (link, mean, bytes as f64 / (25.0 * 2_500_000.0), marked)
}

#[test]
fn a_responsive_flow_is_held_near_the_target_by_drops() {
    let (link, mean, used, marked) = responsive(0);
    assert!(mean < 10 * MS, "{mean:?}");
    assert!(used > 0.9, "{used}");
    assert!(link.dropped_for(DropReason::QueueDelay) > 10, "{}", link.drops.len());
    assert_eq!((link.dropped_for(DropReason::QueueDelay), marked), (link.drops.len(), 0));
}

#[test]
fn an_ecn_capable_flow_is_held_near_the_target_by_marks_alone() {
    let (link, mean, used, marked) = responsive(ECT_0);
    assert!(mean < 10 * MS, "{mean:?}");
    assert!(used > 0.9, "{used}");
    assert!(marked > 10, "{marked}");
    assert_eq!(link.drops.len(), 0);
}

#[test]
fn a_slow_user_is_not_starved() {
    for (bits_per_s, seconds) in [(64_000, 100), (1_000, 6_000)] {
        let mut link = Link::new(bits_per_s);
        let mut flood = Flood::new(40000, 2 * bits_per_s);
        let mut bytes = 0;
        let mut longest = Duration::ZERO;
        for _ in 0..seconds * 1000 {
            flood.tick(&mut link);
            for (waiting, waited) in link.tick() {
                bytes += waiting.packet.len();
                longest = longest.max(waited);
            }
        }
        let possible = bits_per_s as usize / 8 * seconds;
        assert!(bytes > possible * 95 / 100 && bytes <= possible, "{bytes} of {possible} at {bits_per_s}");
        assert!(longest < link.shaper.wait_max, "{longest:?} at {bits_per_s}");
    }
}

#[test]
fn a_slow_users_ping_waits_for_little_more_than_the_packet_on_its_way() {
    let mut link = Link::new(64_000);
    let mut flood = Flood::new(40000, 128_000);
    let mut pings = Vec::new();
    for ms in 0..100_000 {
        flood.tick(&mut link);
        if ms % 500 == 0 {
            link.push(packet(7, 0, 84, ms));
        }
        pings.extend(link.tick().into_iter().filter(|sent| source_port(&sent.0.packet) == 7).map(|sent| sent.1));
    }
    assert!(pings.len() >= 198, "{}", pings.len());
    // 1400 bytes take 175 ms.
    assert!(p99(pings.clone()) < 200 * MS, "{:?}", p99(pings));
}

#[test]
fn memory_is_given_back_when_nothing_has_waited_for_a_while() {
    let (mut shaper, start) = (Shaper::new(ShaperLimits::default(), KEY), origin());
    shaper.push(start, Direction::Up, connection(0), packet(1, 0, 100, 0), &mut none_dropped);
    shaper.pop(start + MS, 100, &mut none_dropped).unwrap();
    let due = shaper.expires_at().unwrap();
    shaper.expire(due - MS, &mut none_dropped);
    assert!(shaper.flows.is_some());
    // To look for packets in vain is no use of it.
    assert!(shaper.pop(due - MS, 100, &mut none_dropped).is_none());
    shaper.expire(due, &mut none_dropped);
    assert!(shaper.flows.is_none());
    assert_eq!(shaper.expires_at(), None);
}

#[test]
fn an_idle_user_costs_little() {
    assert!(size_of::<Shaper>() <= 128, "{}", size_of::<Shaper>());
}

#[test]
fn a_buffer_that_somebody_else_holds_is_not_changed_by_a_mark() {
    let unmarked = packet(7, ECT_0, 100, 5);
    let held = unmarked.clone();
    assert_eq!(marked(unmarked), packet(7, CE, 100, 5));
    assert_eq!(held, packet(7, ECT_0, 100, 5));
}
