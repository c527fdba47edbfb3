//! The flows among which a limited user's tokens are shared: which packet belongs to which, and whose turn it is (RFC 8290).
//!
//! A flow is a direction of a connection with a 5-tuple, or with addresses and protocol where there are no ports to see. It gets a queue of its own out of
//! a fixed number, or shares one when there are not enough. Sharing costs it delay, never order.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Instant;

use siphasher::sip::SipHasher13;
use slab::Slab;

use super::codel::Codel;
use super::{Direction, LARGEST_PACKET_BYTES, QueuedPacket};
use crate::ids::ConnectionKey;
use crate::packet::inner::InnerPacket;

/// What a flow may send in one turn, in bytes: a large packet (RFC 8290, section 5.2.4).
const QUANTUM_BYTES: i64 = LARGEST_PACKET_BYTES as i64;
/// How many queues a flow may choose from. With one only, as in RFC 8290, even few flows often meet (section 5.3), which 1,024 queues are
/// to make up for. With eight, as in CAKE, they hardly ever do before most queues are taken, so that far fewer suffice.
const WAYS: usize = 8;

/// The secret by which flows are told apart. Users choose ports and addresses, so the hash is one whose collisions cannot be found without the
/// key.
#[derive(Clone, Copy)]
pub struct FlowKey(pub [u8; 16]);

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FlowKey")
    }
}

impl FlowKey {
    /// Tells flows apart. Two flows with one tag share a queue.
    pub(super) fn tag(&self, direction: Direction, connection: ConnectionKey, packet: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        (direction, connection).hash(&mut hasher);
        if let Ok(inner) = InnerPacket::parse(packet) {
            let transport = inner.transport_offset.and_then(|at| packet.get(at..)).unwrap_or_default();
            let ports = transport.first_chunk::<4>().map_or(0, |ports| u32::from_ne_bytes(*ports));
            (inner.source, inner.destination, inner.protocol, ports).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// A packet and the one behind it in its queue.
#[derive(Debug)]
struct Node {
    waiting: QueuedPacket,
    behind: Option<usize>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whose queue it is or, once it is not listed, was.
    tag: u64,
    /// Whether flows that have no queue of their own have put packets here since it was listed.
    is_shared: bool,
    /// Whether it is in one of the two lists; if not, it is empty.
    is_listed: bool,
    first: Option<usize>,
    last: Option<usize>,
    packets: usize,
    bytes: usize,
    /// What it may still send in this turn; less than nothing if its last packet was longer.
    deficit_bytes: i64,
    codel: Codel,
}

/// All packets of a shaper.
///
/// Between two calls the queue whose turn it is, the *head* queue, is ready: it has a packet and may send it.
#[derive(Debug)]
pub(super) struct Flows {
    /// One storage for all queues, so that memory is bounded by what waits, however it is spread.
    nodes: Slab<Node>,
    queues: Box<[Queue]>,
    /// Queues that have become non-empty lately. They go first.
    new: VecDeque<u16>,
    /// The others that are listed.
    old: VecDeque<u16>,
    bytes: usize,
    /// When a packet last came, went or was dropped.
    pub used_at: Instant,
}

impl Flows {
    /// Makes `queues_max` queues, 1 at least.
    pub fn new(queues_max: u16, now: Instant) -> Flows {
        let queues = (0..queues_max.max(1)).map(|_| Queue::default()).collect();
        Flows { nodes: Slab::new(), queues, new: VecDeque::new(), old: VecDeque::new(), bytes: 0, used_at: now }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn packets(&self) -> usize {
        self.nodes.len()
    }

    pub fn push(&mut self, tag: u64, waiting: QueuedPacket) {
        let index = self.queue_of(tag);
        self.attach(index, waiting);
        let queue = &mut self.queues[index];
        if !queue.is_listed {
            queue.is_listed = true;
            queue.deficit_bytes = QUANTUM_BYTES;
            self.new.push_back(index as u16);
        }
    }

    pub fn head(&self) -> Option<&QueuedPacket> {
        self.first_of(self.head_queue()?)
    }

    /// CoDel of the head's queue, and how many bytes are behind the head in it.
    pub fn head_codel(&mut self) -> Option<(&mut Codel, usize)> {
        let index = self.head_queue()?;
        let head_bytes = self.first_of(index)?.packet.len();
        let queue = &mut self.queues[index];
        Some((&mut queue.codel, queue.bytes - head_bytes))
    }

    /// Takes the head; its flow has had that much of its turn.
    pub fn serve_head(&mut self) -> Option<QueuedPacket> {
        let index = self.head_queue()?;
        let served = self.detach(index)?;
        self.queues[index].deficit_bytes -= served.packet.len() as i64;
        self.pass_turn();
        Some(served)
    }

    /// Takes the head, at nobody's expense.
    pub fn drop_head(&mut self) -> Option<QueuedPacket> {
        self.drop_first_of(self.head_queue()?)
    }

    /// Takes the first packet of the queue with the most bytes.
    pub fn drop_from_fattest(&mut self) -> Option<QueuedPacket> {
        let fatness = |index: &usize| (self.queues[*index].bytes, self.queues[*index].packets);
        let fattest = self.listed().max_by_key(fatness)?;
        self.drop_first_of(fattest)
    }

    /// Since when the oldest packet waits.
    pub fn oldest(&self) -> Option<Instant> {
        self.listed().filter_map(|index| self.first_of(index)).map(|waiting| waiting.since).min()
    }

    /// Takes every packet that was here at `until` or before, in order within each flow.
    pub fn take_until(&mut self, until: Instant, taken: &mut impl FnMut(QueuedPacket)) {
        for index in 0..self.queues.len() {
            while self.first_of(index).is_some_and(|waiting| waiting.since <= until)
                && let Some(waiting) = self.detach(index)
            {
                taken(waiting);
            }
        }
        self.pass_turn();
    }

    /// Takes every packet that is `chosen`, in order within each flow.
    pub fn take_where(&mut self, chosen: impl Fn(&QueuedPacket) -> bool, taken: &mut impl FnMut(QueuedPacket)) {
        for index in 0..self.queues.len() {
            // A queue may hold others too: each is turned around once.
            for _ in 0..self.queues[index].packets {
                match self.detach(index) {
                    Some(waiting) if chosen(&waiting) => taken(waiting),
                    Some(waiting) => self.attach(index, waiting),
                    None => break,
                }
            }
        }
        self.pass_turn();
    }

    /// Finds a flow's queue, or gives it one.
    ///
    /// A flow never has packets in two queues: while one is tagged with it, that one is found; while it may have packets in its home
    /// queue under another's tag, that queue is marked as shared, and no other is given to it.
    fn queue_of(&mut self, tag: u64) -> usize {
        let queues = self.queues.len();
        let home = (tag % queues as u64) as usize;
        let mut free = None;
        for way in 0..WAYS.min(queues) {
            let index = (home + way) % queues;
            let queue = &self.queues[index];
            if queue.tag == tag {
                return index;
            }
            if !queue.is_listed {
                free = free.or(Some(index));
            }
        }
        match free {
            Some(index) if !self.queues[home].is_shared => {
                self.queues[index] = Queue { tag, ..Queue::default() };
                index
            }
            _ => {
                self.queues[home].is_shared = true;
                home
            }
        }
    }

    fn head_queue(&self) -> Option<usize> {
        self.new.front().or(self.old.front()).map(|index| usize::from(*index))
    }

    fn first_of(&self, index: usize) -> Option<&QueuedPacket> {
        self.queues[index].first.map(|key| &self.nodes[key].waiting)
    }

    fn listed(&self) -> impl Iterator<Item = usize> + '_ {
        self.new.iter().chain(&self.old).map(|index| usize::from(*index))
    }

    fn drop_first_of(&mut self, index: usize) -> Option<QueuedPacket> {
        let dropped = self.detach(index);
        self.pass_turn();
        dropped
    }

    fn attach(&mut self, index: usize, waiting: QueuedPacket) {
        let bytes = waiting.packet.len();
        let key = self.nodes.insert(Node { waiting, behind: None });
        let queue = &mut self.queues[index];
        match queue.last.replace(key) {
            Some(last) => self.nodes[last].behind = Some(key),
            None => queue.first = Some(key),
        }
        queue.packets += 1;
        queue.bytes += bytes;
        self.bytes += bytes;
    }

    fn detach(&mut self, index: usize) -> Option<QueuedPacket> {
        let queue = &mut self.queues[index];
        let Node { waiting, behind } = self.nodes.remove(queue.first?);
        queue.first = behind;
        if behind.is_none() {
            queue.last = None;
        }
        queue.packets -= 1;
        queue.bytes -= waiting.packet.len();
        self.bytes -= waiting.packet.len();
        Some(waiting)
    }

    /// Passes the turn on until a queue has it that has a packet and may send it (RFC 8290, section 4.2). That depends on neither time nor
    /// tokens, so it is done at once, and whose turn it is stays so however often one looks.
    fn pass_turn(&mut self) {
        loop {
            let is_new = !self.new.is_empty();
            let list = if is_new { &mut self.new } else { &mut self.old };
            let Some(&index) = list.front() else { return };
            let queue = &mut self.queues[usize::from(index)];
            if queue.deficit_bytes <= 0 {
                queue.deficit_bytes += QUANTUM_BYTES;
                list.pop_front();
                self.old.push_back(index);
            } else if queue.packets > 0 {
                return;
            } else {
                queue.codel.emptied();
                list.pop_front();
                // A new queue waits one round of the old ones, or a flow could stay new for ever.
                if is_new && !self.old.is_empty() {
                    self.old.push_back(index);
                } else {
                    queue.is_listed = false;
                    queue.is_shared = false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardIndex;
    use crate::packet::inner::protocol;
    use crate::packet::test_packets::{self, Packet};
    use crate::test_time::origin;

    const KEY: FlowKey = FlowKey([7; 16]);
    const CONNECTION: ConnectionKey = ConnectionKey { owner: ShardIndex(0), slot: 0, generation: 0 };

    fn flows(queues: u16) -> Flows {
        Flows::new(queues, origin())
    }

    /// Lets a packet of `bytes` wait that is known by its first byte.
    fn push(flows: &mut Flows, tag: u64, name: u8, bytes: usize) {
        let since = flows.used_at;
        let waiting =
            QueuedPacket { direction: Direction::Up, connection: CONNECTION, packet: vec![name; bytes].into(), since };
        flows.push(tag, waiting);
    }

    fn served(flows: &mut Flows) -> Vec<u8> {
        std::iter::from_fn(|| flows.serve_head()).map(|waiting| waiting.packet[0]).collect()
    }

    #[test]
    fn a_flow_is_a_direction_of_a_connection_with_a_5_tuple() {
        let base = Packet::tcp_v4();
        let up = |packet: &[u8]| KEY.tag(Direction::Up, CONNECTION, packet);
        let of = |packet: &Packet| up(&packet.build());
        let same = Packet { seq: 9, traffic_class: 3, ttl: 9, payload: vec![1], ..base.clone() };
        assert_eq!(of(&base), of(&same));
        let mut tags = vec![
            of(&base),
            of(&Packet { source_host: 9, ..base.clone() }),
            of(&Packet { destination_host: 9, ..base.clone() }),
            of(&Packet { source_port: 9, ..base.clone() }),
            of(&Packet { destination_port: 9, ..base.clone() }),
            of(&Packet { v6: true, ..base.clone() }),
            up(&Packet::udp_v4().build()),
            KEY.tag(Direction::Up, ConnectionKey { generation: 1, ..CONNECTION }, &base.build()),
            KEY.tag(Direction::Down, CONNECTION, &base.build()),
            FlowKey([8; 16]).tag(Direction::Up, CONNECTION, &base.build()),
            up(b"no packet"),
        ];
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), 11);
    }

    #[test]
    fn the_fragments_of_a_datagram_are_of_one_flow() {
        let fragment_v4 = |flags_and_offset: u16, payload: Vec<u8>| {
            let mut packet = Packet { payload, ..Packet::udp_v4() }.build();
            packet[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
            KEY.tag(Direction::Up, CONNECTION, &packet)
        };
        assert_eq!(fragment_v4(0x2000, vec![1; 64]), fragment_v4(0x0009, vec![2; 8]));
        let fragment_v6 = |offset: u8, source_port: u16| {
            let packet = Packet { source_port, ..Packet::udp_v6() }.build();
            let fragment = test_packets::with_extension(&packet, protocol::FRAGMENT, &[17, 0, offset, 1, 0, 0, 0, 7]);
            KEY.tag(Direction::Up, CONNECTION, &fragment)
        };
        assert_eq!(fragment_v6(0, 1), fragment_v6(8, 2));
    }

    /// A polynomial hash takes the halves of an address in by `(hash + first) * K + second`: whatever was hashed before, these are all the same.
    #[test]
    fn addresses_that_collide_in_a_hash_without_a_key_are_of_different_flows() {
        const K: u64 = 0xf135_7aea_2e62_a9c5;
        let of = |first: u64| {
            let mut packet = Packet::udp_v6().build();
            packet[24..32].copy_from_slice(&first.to_ne_bytes());
            packet[32..40].copy_from_slice(&first.wrapping_mul(K).wrapping_neg().to_ne_bytes());
            KEY.tag(Direction::Up, CONNECTION, &packet)
        };
        let mut tags: Vec<u64> = (0..64).map(of).collect();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), 64);
    }

    #[test]
    fn few_flows_hardly_ever_share_a_queue() {
        let mut shared = 0;
        for key in 0..100 {
            let mut flows = flows(64);
            for source_port in 40000..40024 {
                let packet = Packet { source_port, ..Packet::udp_v4() }.build();
                push(&mut flows, FlowKey([key; 16]).tag(Direction::Up, CONNECTION, &packet), 0, 100);
            }
            shared += 24 - flows.listed().count();
        }
        assert!(shared < 24, "{shared} of 2400 flows had no queue of their own");
    }

    #[test]
    fn a_flow_that_shares_a_queue_gets_no_other_before_its_packets_are_through() {
        let mut flows = flows(2);
        // All are at home in queue 0; the second flow moves to queue 1, the third finds no other.
        for (tag, name) in [(2, 1), (2, 2), (4, 3), (6, 4), (6, 5)] {
            push(&mut flows, tag, name, 1400);
        }
        // Until queue 1 is through, has waited for one turn of queue 0, and is free.
        let first: Vec<u8> = (0..4).filter_map(|_| flows.serve_head()).map(|waiting| waiting.packet[0]).collect();
        assert_eq!((first, flows.listed().count()), (vec![1, 2, 3, 4], 1));
        push(&mut flows, 6, 6, 1);
        push(&mut flows, 6, 7, 1);
        assert_eq!(served(&mut flows), [5, 6, 7]);
    }

    #[test]
    fn flows_send_the_same_in_bytes_whatever_the_length_of_their_packets() {
        let mut flows = flows(8);
        (0..300).for_each(|_| push(&mut flows, 1, 1, 500));
        (0..100).for_each(|_| push(&mut flows, 2, 2, 1500));
        let mut sent = [0, 0, 0];
        for _ in 0..200 {
            let waiting = flows.serve_head().unwrap();
            sent[usize::from(waiting.packet[0])] += waiting.packet.len();
            assert!(sent[1].abs_diff(sent[2]) <= LARGEST_PACKET_BYTES);
        }
    }

    #[test]
    fn a_packet_of_a_new_flow_goes_first_but_not_for_ever() {
        let mut flows = flows(8);
        (0..20).for_each(|_| push(&mut flows, 1, 1, 1500));
        assert_eq!(flows.serve_head().unwrap().packet[0], 1);
        push(&mut flows, 2, 2, 100);
        assert_eq!(flows.serve_head().unwrap().packet[0], 2);
        // It tries to stay new by sending again as soon as it has sent, and less than it may.
        let mut bulk = 0;
        for _ in 0..10 {
            push(&mut flows, 2, 2, 1400);
            bulk += usize::from(flows.serve_head().unwrap().packet[0] == 1);
        }
        assert!(bulk >= 5, "{bulk} of 10");
    }

    #[test]
    fn a_packet_far_longer_than_a_turn_is_paid_for_with_later_ones() {
        let mut flows = flows(8);
        (0..2).for_each(|_| push(&mut flows, 1, 1, 15_000));
        (0..20).for_each(|_| push(&mut flows, 2, 2, 1500));
        assert_eq!(served(&mut flows), [[1].as_slice(), &[2; 10], &[1], &[2; 10]].concat());
    }

    #[test]
    fn a_dropped_packet_is_no_part_of_its_flows_turn() {
        let mut flows = flows(8);
        for (tag, name) in [(1, 1), (1, 2), (2, 3)] {
            push(&mut flows, tag, name, 1500);
        }
        assert_eq!(flows.drop_head().unwrap().packet[0], 1);
        assert_eq!(served(&mut flows), [2, 3]);
    }

    #[test]
    fn the_fattest_flow_loses_its_oldest_packet() {
        let mut flows = flows(8);
        for (tag, name, bytes) in [(1, 1, 700), (2, 2, 500), (2, 3, 500), (1, 4, 200)] {
            push(&mut flows, tag, name, bytes);
        }
        let dropped: Vec<u8> =
            std::iter::from_fn(|| flows.drop_from_fattest()).map(|waiting| waiting.packet[0]).collect();
        assert_eq!(dropped, [2, 1, 3, 4]);
        assert_eq!((flows.bytes(), flows.packets(), flows.listed().count()), (0, 0, 0));
    }
}
