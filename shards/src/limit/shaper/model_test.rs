//! Random walks of a shaper beside a plain model of what it should hold.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{KEY, connection, rate};
use super::*;
use crate::packet::test_packets::Packet;
use crate::test_time::origin;

const CE: u8 = 0b11;

/// What may happen to a shaper.
#[derive(Debug, Clone)]
enum Step {
    Push(Sent),
    Pop { tokens: u64 },
    Wait(Duration),
    Expire,
    Leave { slot: u32 },
    Drain,
    SetRate { bits_per_s: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Sent {
    direction: Direction,
    slot: u32,
    /// Of which flow of the connection.
    source_port: u16,
    v6: bool,
    traffic_class: u8,
    bytes: usize,
}

type Flow = (Direction, u32, u16, bool);

impl Sent {
    fn flow(&self) -> Flow {
        (self.direction, self.slot, self.source_port, self.v6)
    }

    fn packet(&self, number: u32) -> Bytes {
        let mut payload = vec![0xcd; self.bytes];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        let Sent { source_port, v6, traffic_class, .. } = *self;
        Packet { source_port, v6, traffic_class, payload, ..Packet::udp_v4() }.build().into()
    }

    /// The number that [`Sent::packet`] was given.
    fn number(packet: &[u8]) -> u32 {
        let at = if packet[0] >> 4 == 4 { 28 } else { 48 };
        u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let direction = prop_oneof![Just(Direction::Up), Just(Direction::Down)];
    let sent = (direction, 0..3u32, 0..4u16, any::<bool>(), any::<u8>(), 4..2000usize).prop_map(|sent| {
        let (direction, slot, source_port, v6, traffic_class, bytes) = sent;
        Step::Push(Sent { direction, slot, source_port, v6, traffic_class, bytes })
    });
    prop_oneof![
        12 => sent,
        8 => (0..4000u64).prop_map(|tokens| Step::Pop { tokens }),
        6 => (0..60u64).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
        1 => Just(Step::Expire),
        1 => (0..3u32).prop_map(|slot| Step::Leave { slot }),
        1 => Just(Step::Drain),
        1 => (1_000..1_000_000u64).prop_map(|bits_per_s| Step::SetRate { bits_per_s }),
    ]
}

/// What a shaper should hold, from outside.
struct Model {
    now: Instant,
    next: u32,
    waiting: BTreeMap<u32, (Sent, Instant)>,
    /// The number of the last packet of each flow that came out in any way.
    last_out: BTreeMap<Flow, u32>,
}

impl Model {
    /// Checks a packet that came out, and off. `may_be_marked` says whether it was popped.
    fn out(&mut self, waiting: &QueuedPacket, may_be_marked: bool) {
        let number = Sent::number(&waiting.packet);
        let (sent, since) = self.waiting.remove(&number).expect("everything comes out once");
        assert_eq!(
            (waiting.direction, waiting.connection, waiting.since),
            (sent.direction, connection(sent.slot), since)
        );
        if waiting.packet != sent.packet(number) {
            assert!(may_be_marked, "a packet was changed that is going nowhere");
            assert_ne!(sent.traffic_class & 3, 0, "a packet was marked that is not ECN-capable");
            let marked = Sent { traffic_class: sent.traffic_class | CE, ..sent };
            assert_eq!(waiting.packet, marked.packet(number), "nothing but CE and the checksum changes");
        }
        let last = self.last_out.insert(sent.flow(), number);
        assert!(last.is_none_or(|last| last < number), "{number} was overtaken by {last:?}");
    }

    fn dropped(&mut self, limits: &ShaperLimits, wait_max: Duration, reason: DropReason, waiting: &QueuedPacket) {
        match reason {
            DropReason::QueueDelay => assert_eq!(self.waiting[&Sent::number(&waiting.packet)].0.traffic_class & 3, 0),
            DropReason::WaitedTooLong => assert!(self.now - waiting.since >= wait_max),
            DropReason::OverLimit => {
                assert!(self.bytes() > limits.bytes_max || self.waiting.len() > limits.packets_max);
            }
            other => panic!("{other:?}"),
        }
        self.out(waiting, false);
    }

    fn bytes(&self) -> usize {
        self.waiting.iter().map(|(number, (sent, _))| sent.packet(*number).len()).sum()
    }

    fn check(&self, shaper: &Shaper) {
        assert_eq!((shaper.waiting_packets(), shaper.waiting_bytes()), (self.waiting.len(), self.bytes()));
        assert!(shaper.waiting_packets() <= shaper.limits.packets_max);
        assert!(shaper.waiting_bytes() <= shaper.limits.bytes_max);
        assert_eq!(shaper.is_empty(), self.waiting.is_empty());
        assert_eq!(shaper.head_bytes().is_some(), !self.waiting.is_empty());
        if let Some(oldest) = self.waiting.values().map(|(_, since)| *since).min() {
            assert_eq!(shaper.expires_at(), Some(oldest + shaper.wait_max));
        }
    }
}

/// Takes one step, and checks what can be seen of it. `pops_in_vain` makes others before a pop, with too few tokens.
fn take(step: &Step, shaper: &mut Shaper, model: &mut Model, pops_in_vain: bool) -> Option<QueuedPacket> {
    let (limits, wait_max) = (shaper.limits, shaper.wait_max);
    let now = model.now;
    match step {
        Step::Push(sent) => {
            let number = model.next;
            model.next += 1;
            model.waiting.insert(number, (*sent, now));
            shaper.push(now, sent.direction, connection(sent.slot), sent.packet(number), &mut |reason, waiting| {
                assert_eq!(reason, DropReason::OverLimit);
                model.dropped(&limits, wait_max, reason, &waiting);
            });
        }
        Step::Pop { tokens } => {
            let dropped = &mut |reason, waiting: QueuedPacket| model.dropped(&limits, wait_max, reason, &waiting);
            if pops_in_vain {
                // The first drops what has waited too long, so that the second lacks one token for the very packet that goes next.
                assert!(shaper.pop(now, 0, dropped).is_none());
                let head_bytes = shaper.head_bytes().unwrap_or(1) as u64;
                assert!(shaper.pop(now, head_bytes - 1, dropped).is_none());
            }
            let head_bytes = shaper.head_bytes();
            let before = shaper.waiting_packets();
            let popped = shaper.pop(now, *tokens, dropped);
            match &popped {
                None => assert!(shaper.head_bytes().is_none_or(|head_bytes| head_bytes as u64 > *tokens)),
                Some(waiting) => {
                    assert!(waiting.packet.len() as u64 <= *tokens);
                    assert!(now - waiting.since < wait_max);
                    if shaper.waiting_packets() + 1 == before {
                        assert_eq!(Some(waiting.packet.len()), head_bytes);
                    }
                    model.out(waiting, true);
                }
            }
            model.check(shaper);
            return popped;
        }
        Step::Wait(time) => model.now += *time,
        Step::Expire => {
            shaper.expire(now, &mut |reason, waiting| {
                assert_eq!(reason, DropReason::WaitedTooLong);
                model.dropped(&limits, wait_max, reason, &waiting);
            });
            assert!(shaper.expires_at().is_none_or(|at| at > now));
        }
        Step::Leave { slot } => {
            shaper.take_where(|waiting| waiting.connection == connection(*slot), &mut |waiting| {
                assert_eq!(waiting.connection, connection(*slot));
                model.out(&waiting, false);
            });
            assert!(model.waiting.values().all(|(sent, _)| sent.slot != *slot));
        }
        Step::Drain => {
            shaper.drain(&mut |waiting| model.out(&waiting, false));
            assert!(model.waiting.is_empty());
        }
        Step::SetRate { bits_per_s } => shaper.set_rate(rate(*bits_per_s)),
    }
    model.check(shaper);
    None
}

fn walk(limits: ShaperLimits, steps: &[Step], pops_in_vain: bool, start: Instant) -> Vec<(Duration, Bytes)> {
    let mut shaper = Shaper::new(limits, KEY);
    let mut model = Model { now: start, next: 0, waiting: BTreeMap::new(), last_out: BTreeMap::new() };
    let mut popped = Vec::new();
    for step in steps {
        if let Some(waiting) = take(step, &mut shaper, &mut model, pops_in_vain) {
            popped.push((model.now - start, waiting.packet));
        }
    }
    popped
}

proptest! {
    #[test]
    fn everything_comes_out_once_in_order_and_within_bounds(
        (bytes_max, packets_max, flows_max) in (0..20_000usize, 0..30usize, 0..12u16),
        steps in prop::collection::vec(any_step(), 0..200),
    ) {
        let limits = ShaperLimits { bytes_max, packets_max, flows_max, wait_max: Duration::from_millis(500) };
        let start = origin();
        let popped = walk(limits, &steps, false, start);
        prop_assert_eq!(popped, walk(limits, &steps, true, start), "pops that were not paid for made a difference");
    }
}
