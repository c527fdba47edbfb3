//! Inner packets with marks, and the oracle that follows them: each arrives once at most, as it was sent, where it may, and in the order of its
//! flow.
//!
//! Only what identifies a packet is kept of it; what it must look like is made again when it arrives.

mod forged;
pub mod kernel;
mod make;
mod permission;
mod reassembly;
pub mod wire;

use std::net::IpAddr;

use rustc_hash::FxHashMap;
use tollgate_shards::DropReason;

use crate::plan::{Feature, Plan};
use crate::schedule::Time;
use crate::tcp::Book;

pub use forged::Forger;
pub use make::{FlowSpec, Form, udp};
pub use permission::{Permission, Way};
pub use reassembly::IDENTIFICATION_MIN;
use reassembly::{Piece, Reassembly};

/// "Congestion experienced", in the two bits of ECN.
pub const CE: u8 = 3;

/// Where a packet is made or arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    Tun,
    Client(u32),
}

/// Where a packet comes from, and what for.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub from: Place,
    /// The number of the client's connection.
    pub session: u64,
    pub made: Time,
    pub way: Way,
}

/// What is known of a packet that was made.
#[derive(Debug)]
struct Sent {
    flow: FlowSpec,
    payload_bytes: usize,
    form: Form,
    origin: Origin,
    arrived: bool,
    /// Whether a frame with it has crossed from one shard to another.
    crossed: bool,
}

/// A packet that has arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub from: Place,
    pub made: Time,
    pub bytes: u64,
}

/// All inner packets of a run.
#[derive(Debug)]
pub struct Packets {
    pub permission: Permission,
    pub tcp: Book,
    keeps_order: bool,
    /// Whether fragments, which show no ports, may wait in another queue than the rest of their flow.
    may_wait_apart: bool,
    pub delivered: u64,
    /// By mark, which is the place and one more.
    sent: Vec<Sent>,
    /// Sessions of devices that were sent away, and since when nothing of theirs may arrive at a client; at the TUN nothing may at all.
    forbidden: FxHashMap<(u32, u64), Option<Time>>,
    /// The last mark of each flow that has arrived, by place: an address may have gone from one client to another meanwhile.
    last: FxHashMap<(FlowSpec, Place, bool), u64>,
    reassembly: Reassembly,
    /// From when on nothing that is made arrives.
    nothing_from: Option<Time>,
}

impl Packets {
    /// None yet.
    pub fn new(plan: &Plan) -> Self {
        Packets {
            permission: Permission::new(plan),
            tcp: Book::new(plan.keeps_order()),
            keeps_order: plan.keeps_order(),
            may_wait_apart: plan.features.has(Feature::Limits),
            delivered: 0,
            sent: Vec::new(),
            forbidden: FxHashMap::default(),
            last: FxHashMap::default(),
            reassembly: Reassembly::default(),
            nothing_from: None,
        }
    }

    pub fn made(&self) -> u64 {
        self.sent.len() as u64
    }

    /// Makes a packet of `flow` with at least the eight bytes of its mark as payload, for which there is that way.
    pub fn make(
        &mut self,
        now: Time,
        flow: FlowSpec,
        (payload_bytes, form): (usize, Form),
        from: Place,
        way: Way,
    ) -> Vec<u8> {
        let mark = self.follow(now, flow, (payload_bytes, form), from, way);
        make::packet(&flow, mark, payload_bytes.max(make::MARK_BYTES), form)
    }

    /// Makes a super-packet of so many datagrams, the last of which may be shorter. Returns it with the payload of each.
    pub fn make_super(&mut self, now: Time, flow: FlowSpec, lengths: &[usize], from: Place, way: Way) -> Vec<u8> {
        let mut payloads = Vec::new();
        for (identification, &payload_bytes) in (0..).zip(lengths) {
            let mark = self.follow(now, flow, (payload_bytes, Form::Segment { identification }), from, way);
            payloads.extend(make::payload(mark, payload_bytes));
        }
        make::super_packet(&flow, &payloads)
    }

    /// A packet that is about to be sent. Returns its mark.
    fn follow(
        &mut self,
        now: Time,
        flow: FlowSpec,
        (payload_bytes, form): (usize, Form),
        from: Place,
        way: Way,
    ) -> u64 {
        let payload_bytes = payload_bytes.max(make::MARK_BYTES);
        let origin = Origin { from, session: flow.session, made: now, way };
        self.sent.push(Sent { flow, payload_bytes, form, origin, arrived: false, crossed: false });
        self.made()
    }

    /// Whether each packet that did not arrive may have been dropped for the reason that was counted.
    pub fn only_rightly_dropped(&self, drops: impl Iterator<Item = (DropReason, u64)>) -> Result<(), String> {
        let lost = self.sent.iter().filter(|sent| !sent.arrived).map(|sent| (sent.origin.way, sent.origin.made));
        self.permission.only_rightly_dropped(drops, lost.chain(self.tcp.lost()))
    }

    /// Nothing that a device has sent in one of its sessions may leave the gateway from now on. What has left it before has arrived at other
    /// clients before `clients_from`; without that, they are not judged.
    pub fn forbid(&mut self, device: u32, session: u64, clients_from: Option<Time>) {
        self.forbidden.insert((device, session), clients_from);
    }

    /// Of what is made from now on nothing may arrive.
    pub fn nothing_passes_from(&mut self, now: Time) {
        self.nothing_from = Some(now);
    }

    /// Whether a session was sent away so long ago that nothing of it or for it may arrive at a client.
    pub fn is_forbidden(&self, now: Time, device: u32, session: u64) -> bool {
        self.forbidden.get(&(device, session)).copied().flatten().is_some_and(|clients_from| now > clients_from)
    }

    /// A packet, or several merged into one, has arrived, as a frame with its virtio header: at a place, in that session of a client's. Returns
    /// which.
    pub fn handle_arrival(
        &mut self,
        now: Time,
        (at, session): (Place, u64),
        frame: &[u8],
    ) -> Result<Vec<Arrival>, String> {
        let packet = frame.get(kernel::HEADER_BYTES..).unwrap_or_default();
        if wire::addresses_of(packet).is_none() {
            return Err(format!("what arrived at {at:?} is no IP packet"));
        }
        if self.permission.has_forged() && frame.windows(forged::MARK.len()).any(|part| part == forged::MARK) {
            return Err(format!("a forged packet arrived at {at:?}: {packet:02x?}"));
        }
        match self.reassembly.arrives(now, (at, session), packet)? {
            Piece::Foreign => {}
            Piece::Waits => return Ok(Vec::new()),
            Piece::Whole(packet) => return Ok(vec![self.arrived(now, (at, session), &packet, false)?]),
        }
        if make::mark_of(packet).is_none() {
            // An ICMP message of the gateway's.
            return Ok(Vec::new());
        }
        let parts = kernel::taken_apart(frame).map_err(|what| format!("at {at:?} {what}"))?;
        let is_merged = parts.len() > 1;
        parts.iter().map(|packet| self.arrived(now, (at, session), packet, is_merged)).collect()
    }

    /// A frame of the TUN crosses from one shard to another: once, or it might go round.
    pub fn crosses(&mut self, frame: &[u8]) -> Result<(), String> {
        if wire::is_tcp(frame.get(kernel::HEADER_BYTES..).unwrap_or_default()) {
            return self.tcp.crosses(frame);
        }
        let mark = frame.get(kernel::HEADER_BYTES..).and_then(make::mark_of);
        let place = mark.and_then(|mark| usize::try_from(mark).ok()?.checked_sub(1));
        let Some(sent) = place.and_then(|place| self.sent.get_mut(place)) else { return Ok(()) };
        if std::mem::replace(&mut sent.crossed, true) {
            return Err(format!("a frame of {:?} crosses from shard to shard a second time", sent.flow));
        }
        Ok(())
    }

    fn arrived(
        &mut self,
        now: Time,
        (at, session): (Place, u64),
        packet: &[u8],
        is_merged: bool,
    ) -> Result<Arrival, String> {
        let mark = make::mark_of(packet).ok_or("a part of a frame has no mark")?;
        let place = usize::try_from(mark).ok().and_then(|mark| mark.checked_sub(1));
        let Some(sent) = place.and_then(|place| self.sent.get_mut(place)) else {
            return Err(format!("packet {mark}, which nobody sent, arrived at {at:?}"));
        };
        let Sent { flow, payload_bytes, form, origin, arrived, .. } = *sent;
        if arrived {
            return Err(format!("packet {mark} arrived twice, now at {at:?}"));
        }
        sent.arrived = true;
        self.judge(now, (at, session), &origin).map_err(|what| format!("packet {mark} of {flow:?}: {what}"))?;
        is_unchanged(&make::packet(&flow, mark, payload_bytes, form), packet, is_merged)
            .map_err(|what| format!("packet {mark} arrived changed at {at:?}: {what}"))?;
        self.delivered += 1;
        let is_apart = form.is_fragment() && self.may_wait_apart;
        let last = self.last.insert((flow, at, is_apart), mark).unwrap_or(0);
        if self.keeps_order && last > mark {
            return Err(format!("packet {mark} arrived at {at:?} behind packet {last} of its flow {flow:?}"));
        }
        Ok(Arrival { from: origin.from, made: origin.made, bytes: packet.len() as u64 })
    }

    /// Segments of TCP have arrived, as one frame. Returns which.
    pub fn handle_segments(
        &mut self,
        now: Time,
        (at, session): (Place, u64),
        packets: &[Vec<u8>],
    ) -> Result<Vec<Arrival>, String> {
        let mut arrivals = Vec::new();
        for (index, packet) in packets.iter().enumerate() {
            let (origin, arrival) = self.tcp.arrives(at, packet, (index, packets.len()))?;
            self.judge(now, (at, session), &origin)?;
            arrivals.push(arrival);
        }
        Ok(arrivals)
    }

    /// Whether what comes from there may arrive here and now.
    fn judge(&self, now: Time, (at, session): (Place, u64), origin: &Origin) -> Result<(), String> {
        // In another session it may have the address that it sent to before.
        if origin.from == at && origin.session == session {
            return Err(format!("it arrived where it came from, {at:?}"));
        }
        if self.nothing_from.is_some_and(|from| origin.made > from) {
            return Err(format!(
                "it was made at {} s, and arrived at {at:?} although the gateway had stopped",
                origin.made
            ));
        }
        self.permission.arrives(at, origin)?;
        if let Place::Client(device) = origin.from
            && let Some(&clients_from) = self.forbidden.get(&(device, origin.session))
            && (at == Place::Tun || clients_from.is_some_and(|clients_from| now > clients_from))
        {
            return Err(format!("device {device}, which had been sent away, sent what arrived at {at:?}"));
        }
        Ok(())
    }
}

/// On the way a packet may be marked with "congestion experienced" if it is ECN-capable (RFC 3168). Where it was merged with others, and may not be
/// fragmented, its identification means nothing (RFC 6864, section 4.1). Nothing else changes.
pub fn is_unchanged(sent: &[u8], arrived: &[u8], is_merged: bool) -> Result<(), String> {
    if sent.len() != arrived.len() {
        return Err(format!("{} bytes instead of {}", arrived.len(), sent.len()));
    }
    let mut expected = sent.to_vec();
    let (before, after) = (wire::ecn_of(sent), wire::ecn_of(arrived));
    if before != after {
        if before == 0 || after != CE {
            return Err(format!("ECN went from {before} to {after}"));
        }
        expected[1] |= if wire::is_v6(sent) { CE << 4 } else { CE };
    }
    if !wire::is_v6(sent) {
        if !wire::header_checksum_is_right(arrived) {
            return Err("a wrong IPv4 header checksum".to_owned());
        }
        if is_merged && sent[6] & 0x40 != 0 {
            expected[4..6].copy_from_slice(&arrived[4..6]);
        }
        wire::renew_header_checksum(&mut expected);
    }
    if expected == arrived {
        return Ok(());
    }
    let place = expected.iter().zip(arrived).position(|(expected, arrived)| expected != arrived).unwrap_or_default();
    Err(format!("byte {place} is {:#04x} instead of {:#04x}", arrived[place], expected[place]))
}

pub fn source_of(packet: &[u8]) -> Option<IpAddr> {
    wire::addresses_of(packet).map(|(source, _)| source)
}

/// Whether `packet` is an answer that the gateway gives in a client's name: a packet to that client was too large for it (RFC 1191). Clients of the
/// simulator send no ICMP.
pub fn is_too_big_answer(packet: &[u8]) -> bool {
    let Some((first, icmp_at)) = packet.first().map(|&first| (first, usize::from(first & 0xf) * 4)) else {
        return false;
    };
    first >> 4 == 4
        && packet.get(9) == Some(&1)
        && packet.get(icmp_at..icmp_at + 2) == Some(&[3, 4])
        && packet.get(icmp_at + 8..).and_then(destination_of) == source_of(packet)
}

pub fn destination_of(packet: &[u8]) -> Option<IpAddr> {
    wire::addresses_of(packet).map(|(_, destination)| destination)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tollgate_shards::packet::{ecn, packet_too_big};

    use super::*;
    use crate::gateway::GATEWAY;
    use crate::plan::Features;

    const NOW: Time = Time { ns: 1000 };

    fn flow(port: u16) -> FlowSpec {
        FlowSpec {
            source: "198.18.0.2".parse().unwrap(),
            destination: "198.19.9.9".parse().unwrap(),
            source_port: port,
            destination_port: 7,
            session: 1,
        }
    }

    fn sent(port: u16, count: usize) -> (Packets, Vec<Vec<u8>>) {
        sent_on(Way::Network, port, count)
    }

    fn sent_on(way: Way, port: u16, count: usize) -> (Packets, Vec<Vec<u8>>) {
        let plan = Plan { isolate_clients: false, ..Plan::new(0, Features::of(&[]), Duration::ZERO) };
        let mut packets = Packets::new(&plan);
        let made =
            (0..count).map(|_| packets.make(NOW, flow(port), (100, Form::Whole), Place::Client(3), way)).collect();
        (packets, made)
    }

    #[test]
    fn what_arrives_as_it_was_sent_is_right() {
        let (mut packets, made) = sent(1, 3);
        made.iter()
            .for_each(|packet| drop(packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(packet)).unwrap()));
        assert_eq!((packets.made(), packets.delivered), (3, 3));
    }

    #[test]
    fn a_packet_that_arrives_twice_is_found() {
        let (mut packets, made) = sent(1, 1);
        packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(&made[0])).unwrap();
        assert!(packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(&made[0])).unwrap_err().contains("twice"));
    }

    #[test]
    fn a_packet_out_of_order_is_found_unless_order_may_change() {
        let (mut packets, made) = sent(1, 2);
        packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(&made[1])).unwrap();
        assert!(packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(&made[0])).unwrap_err().contains("behind"));
        let (mut packets, made) = sent(1, 2);
        packets.keeps_order = false;
        packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(&made[1])).unwrap();
        packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(&made[0])).unwrap();
    }

    #[test]
    fn what_is_delivered_without_right_is_found_and_what_is_dropped_without_right() {
        let plan = Plan::new(0, Features::of(&[]), Duration::ZERO);
        let mut packets = Packets::new(&plan);
        let leased = plan.tunnel.hosts().nth(5).unwrap();
        let neighbour = plan.tunnel.hosts().nth(6).unwrap();
        let (network, relayed) = (plan.network_host(0), Way::Client { is_relayed: true });
        let way = |source, destination| packets.permission.way_up(leased, source, destination);
        assert_eq!(way(leased, network), Way::Network);
        assert_eq!(way(neighbour, network), Way::Nowhere(DropReason::ForgedSource));
        assert_eq!(way(leased, GATEWAY.ip()), Way::Nowhere(DropReason::OuterAddress));
        assert_eq!((way(leased, plan.tunnel.addr()), way(leased, neighbour)), (Way::Network, relayed));
        for (way, at) in [
            (relayed, Place::Client(4)),
            (relayed, Place::Tun),
            (Way::Network, Place::Client(4)),
            (Way::Nowhere(DropReason::ForgedSource), Place::Tun),
        ] {
            let packet = packets.make(NOW, flow(1), (100, Form::Whole), Place::Client(3), way);
            assert!(packets.handle_arrival(NOW, (at, 1), &kernel::plain(&packet)).is_err(), "{way:?} at {at:?}");
        }
        // None of these has arrived: the first four did, wrongly.
        packets.make(NOW, flow(1), (100, Form::Whole), Place::Client(3), Way::Nowhere(DropReason::Multicast));
        packets.make(NOW, flow(1), (100, Form::Whole), Place::Client(3), relayed);
        for (reason, packets_max) in [
            (DropReason::Multicast, 1),
            (DropReason::Isolated, 1),
            (DropReason::ForgedSource, 0),
            (DropReason::OverLimit, 0),
        ] {
            assert_eq!(packets.only_rightly_dropped([(reason, packets_max)].into_iter()), Ok(()));
            assert!(packets.only_rightly_dropped([(reason, packets_max + 1)].into_iter()).is_err(), "{reason:?}");
        }
    }

    #[test]
    fn what_was_sent_by_somebody_sent_away_is_found_at_once_at_the_tun_and_in_time_at_clients() {
        let (mut packets, made) = sent_on(Way::Client { is_relayed: true }, 1, 2);
        packets.forbid(3, 1, Some(NOW));
        assert!(!packets.is_forbidden(NOW, 3, 1), "still under way");
        packets.handle_arrival(NOW, (Place::Client(4), 1), &kernel::plain(&made[0])).unwrap();
        let later = Time { ns: NOW.ns + 1 };
        assert!(packets.is_forbidden(later, 3, 1) && !packets.is_forbidden(later, 3, 2));
        assert!(
            packets
                .handle_arrival(later, (Place::Client(4), 1), &kernel::plain(&made[1]))
                .unwrap_err()
                .contains("sent away")
        );
        let (mut packets, made) = sent_on(Way::Client { is_relayed: true }, 1, 2);
        packets.forbid(3, 1, None);
        packets.handle_arrival(later, (Place::Client(4), 1), &kernel::plain(&made[0])).unwrap();
        let (mut packets, made) = sent(1, 1);
        packets.forbid(3, 1, None);
        assert!(
            packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(&made[0])).unwrap_err().contains("sent away")
        );
    }

    #[test]
    fn an_answer_is_one_that_quotes_a_packet_to_its_sender() {
        let too_large =
            make::packet(&FlowSpec { destination: "198.18.0.2".parse().unwrap(), ..flow(1) }, 1, 1000, Form::Whole);
        let answer = packet_too_big(&too_large, 1100, "198.18.0.2".parse().unwrap()).unwrap();
        assert!(is_too_big_answer(&answer));
        let of_another = packet_too_big(&too_large, 1100, "198.18.0.3".parse().unwrap()).unwrap();
        assert!(!is_too_big_answer(&of_another) && !is_too_big_answer(&too_large) && !is_too_big_answer(&[]));
    }

    #[test]
    fn every_changed_byte_is_found() {
        for port in [1, 2] {
            for place in 0..128 {
                let (mut packets, made) = sent(port, 1);
                let mut changed = made[0].clone();
                changed[place] ^= 0x10;
                // With another protocol it is nobody's to follow.
                assert!(
                    packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(&changed)).is_err() || place == 9,
                    "{port}, {place}"
                );
            }
        }
    }

    #[test]
    fn a_mark_is_right_on_an_ecn_capable_packet_only() {
        let (mut packets, made) = sent(1, 1);
        let mut marked = made[0].clone();
        assert!(ecn::mark_ce(&mut marked), "odd ports are ECN-capable");
        packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(&marked)).unwrap();
        let (mut packets, made) = sent(2, 1);
        let mut marked = made[0].clone();
        marked[1] |= 3;
        assert!(packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(&marked)).is_err());
    }

    #[test]
    fn what_nobody_sent_and_what_comes_back_is_found() {
        let (mut packets, made) = sent(1, 1);
        assert!(
            packets
                .handle_arrival(NOW, (Place::Client(3), 1), &kernel::plain(&made[0]))
                .unwrap_err()
                .contains("came from")
        );
        let foreign = make::packet(&flow(1), 77, 100, Form::Whole);
        assert!(packets.handle_arrival(NOW, (Place::Tun, 1), &kernel::plain(&foreign)).unwrap_err().contains("nobody"));
    }
}
