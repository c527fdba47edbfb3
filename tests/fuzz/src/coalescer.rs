//! Any packets in any order, merged into frames: none is lost, changed or reordered within its flow.

use std::collections::BTreeSet;

use bytes::Bytes;
use tollgate_shards::packet::{Coalescer, InnerPacket, MergeKind, MergeLimits, VnetHeader, vnet};

use crate::input::Input;
use crate::packets::{Parts, addresses, draw, flow, kept};

/// Packets of one input.
const PACKETS_MAX: usize = 300;

/// Packets of a few flows and of none, with twists, pushed and polled as the input says.
pub fn coalescer(data: &[u8]) {
    let mut input = Input::new(data);
    let switches = input.u8();
    let limits = MergeLimits {
        tso: switches & 1 == 0,
        uso: switches & 2 == 0,
        thins_acks: switches & 4 != 0,
        runs_max: usize::from(input.u8() % 9),
        frames_max: usize::from(input.u8()),
    };
    let mut coalescer = Coalescer::new(limits);
    let (mut pushed, mut polled) = (Vec::new(), Vec::new());
    let mut last: Option<Parts> = None;
    for _ in 0..PACKETS_MAX {
        if input.is_empty() {
            break;
        }
        let packet = match input.u8() {
            0..=1 => {
                poll(&mut coalescer, &mut polled);
                continue;
            }
            2 => {
                coalescer.give_up(if input.u8() & 1 == 0 { MergeKind::Tcp } else { MergeKind::Udp });
                continue;
            }
            3..=15 => input.bytes().to_vec(),
            16..=95 => {
                let bytes = usize::from(input.u16()) % 1500;
                let parts = draw(&mut input, bytes);
                last = Some(parts.clone());
                parts.build()
            }
            kind => match &mut last {
                Some(parts) => {
                    follow(parts, kind, &mut input);
                    let mut packet = parts.clone().build();
                    if kind >= 240 {
                        let at = usize::from(input.u16()) % packet.len();
                        packet[at] ^= input.u8();
                    }
                    packet
                }
                None => continue,
            },
        };
        let Ok(inner) = InnerPacket::parse(&packet) else { continue };
        if coalescer.is_full() {
            assert!(coalescer.push(Bytes::from(packet.clone()), &inner).is_err());
            poll(&mut coalescer, &mut polled);
        }
        coalescer.push(Bytes::from(packet.clone()), &inner).expect("there is room again");
        pushed.push(packet);
    }
    poll(&mut coalescer, &mut polled);
    assert!(coalescer.is_empty());
    judge(&pushed, &polled, coalescer.thinned_acks());
}

/// Makes of a packet the one that follows it in its flow, but for a twist.
fn follow(parts: &mut Parts, kind: u8, input: &mut Input<'_>) {
    use crate::packets::Transport;
    if let etherparse::IpHeaders::Ipv4(ip, _) = &mut parts.ip {
        ip.identification = ip.identification.wrapping_add(u16::from(!kind.is_multiple_of(5)));
    }
    if let Transport::Tcp(tcp) = &mut parts.transport {
        tcp.sequence_number = tcp.sequence_number.wrapping_add(parts.payload.len() as u32);
        if parts.payload.is_empty() {
            tcp.acknowledgment_number = tcp.acknowledgment_number.wrapping_add(input.u16().into());
        }
        tcp.psh = kind.is_multiple_of(13);
        tcp.fin |= kind.is_multiple_of(101);
    }
    if kind.is_multiple_of(7) {
        parts.payload.truncate(input.u16().into());
    }
    if kind.is_multiple_of(11)
        && let Transport::Udp(udp) = &mut parts.transport
    {
        udp.source_port ^= 1;
    }
}

/// All frames, each taken apart by the model.
fn poll(coalescer: &mut Coalescer, polled: &mut Vec<Vec<u8>>) {
    while let Some(frame) = coalescer.poll_frame() {
        let (header, headers) = VnetHeader::parse(frame.header).expect("a virtio header");
        let packet = [headers, &frame.payloads.concat()].concat();
        assert_eq!(frame.inner_bytes(), packet.len());
        if header.gso_type == vnet::GSO_NONE {
            assert!(!header.needs_csum() && frame.payloads.len() == 1);
            polled.push(packet);
            continue;
        }
        let parts = Parts::of(&packet).expect("only TCP and UDP without extension headers is merged");
        let segments = parts.segments(header.gso_size.into());
        assert_eq!(segments.len(), frame.payloads.len(), "each packet is one segment");
        assert!(segments.len() > 1);
        // The frame is what the kernel takes: as it would have handed it out itself.
        let (expected, expected_packet) = parts.super_packet(header.gso_size);
        assert_eq!(VnetHeader { hdr_len: 0, ..header }, expected);
        assert_eq!(packet, expected_packet);
        polled.extend(segments);
    }
}

fn judge(pushed: &[Vec<u8>], polled: &[Vec<u8>], thinned_acks: u64) {
    assert_eq!(pushed.len() as u64, polled.len() as u64 + thinned_acks, "none is lost or made up");
    let flows: BTreeSet<_> = pushed.iter().filter_map(|packet| flow(packet)).collect();
    let addresses_of = |packet: &[u8]| addresses(packet).expect("an IP packet");
    // A packet of no known flow may belong to any of those between its addresses, and keeps its place in each.
    for flow_asked in &flows {
        let between = (flow_asked.0, flow_asked.1);
        let of = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
            let belongs = |packet: &&Vec<u8>| match flow(packet) {
                Some(flow) => flow == *flow_asked,
                None => addresses_of(packet) == between,
            };
            packets.iter().filter(belongs).map(|packet| kept(packet)).collect()
        };
        let (before, after) = (of(pushed), of(polled));
        if thinned_acks == 0 {
            assert_eq!(before, after, "{flow_asked:?}");
        } else {
            let mut left = before.iter();
            for packet in &after {
                assert!(left.any(|other| other == packet), "reordered or changed: {flow_asked:?}");
            }
            let acks = |packets: &[Vec<u8>]| packets.iter().filter(|packet| is_pure_ack(packet)).count();
            assert_eq!(before.len() - acks(&before), after.len() - acks(&after), "only acknowledgements are left out");
            // The last one says all that those before it said.
            let last = |packets: &[Vec<u8>]| packets.iter().rfind(|packet| is_pure_ack(packet)).cloned();
            assert_eq!(last(&before), last(&after));
        }
    }
}

fn is_pure_ack(packet: &[u8]) -> bool {
    Parts::of(packet).is_some_and(|parts| parts.is_pure_ack())
}
