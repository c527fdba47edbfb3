//! For tests: what splitting and merging have to keep, checked on random traffic.

use bytes::Bytes;
use proptest::prelude::*;

use super::coalesce::{Coalescer, MergeLimits};
use super::inner::InnerPacket;
use super::inner::protocol::{TCP, UDP};
use super::pool::PacketPool;
use super::split::split;
use super::test_packets::{self, ACK, CWR, FIN, PSH, Packet, into_super_packet, naive_sum};
use super::vnet::VnetHeader;

fn split_all(header: &VnetHeader, frame: &[u8]) -> Vec<Bytes> {
    let mut packets = Vec::new();
    split(header, frame, &mut PacketPool::default(), &mut |packet| packets.push(packet)).unwrap();
    packets
}

fn merge_all(coalescer: &mut Coalescer, packets: impl IntoIterator<Item = Bytes>) -> Vec<(VnetHeader, Vec<u8>)> {
    for packet in packets {
        coalescer.push(packet.clone(), &InnerPacket::parse(&packet).unwrap()).unwrap();
    }
    let mut frames = Vec::new();
    while let Some(frame) = coalescer.poll_frame() {
        let mut bytes = frame.header.to_vec();
        frame.payloads.iter().for_each(|payload| bytes.extend(payload));
        let (header, packet) = VnetHeader::parse(&bytes).unwrap();
        frames.push((header, packet.to_vec()));
    }
    frames
}

fn payload(bytes: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    (bytes, any::<u64>()).prop_map(|(length, seed)| {
        let step = |state: &u64| Some(state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407));
        std::iter::successors(Some(seed), step).map(|state| (state >> 33) as u8).take(length).collect()
    })
}

/// A packet with random headers, as far as coalescing allows.
fn spec(protocol: u8, payload_bytes: std::ops::Range<usize>) -> impl Strategy<Value = Packet> {
    let identification = prop_oneof![any::<u16>(), Just(u16::MAX)];
    let ip = (any::<bool>(), any::<u8>(), 0..1u32 << 20, identification, prop_oneof![Just(0), Just(0x4000)]);
    let seq = prop_oneof![any::<u32>(), Just(u32::MAX - 999)];
    let tcp = (seq, any::<u32>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..11), any::<u8>());
    (ip, tcp, payload(payload_bytes)).prop_map(move |(ip, tcp, payload)| {
        let (v6, traffic_class, flow_label, identification, fragment) = ip;
        let (seq, ack, window, options, flags) = tcp;
        let (options, flags) = (options.repeat(4), ACK | flags & (PSH | FIN | CWR));
        let base = Packet { v6, protocol, traffic_class, flow_label, identification, fragment, ..Packet::tcp_v4() };
        Packet { seq, ack, window, options, flags, payload, ..base }
    })
}

/// Packets of several flows in random order, with losses, repetitions, pushes and odd sizes: the flow's number, then the packet.
fn interleaved() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
    let event = (0..6usize, 0..12u8, payload(0..60));
    prop::collection::vec(event, 0..150).prop_map(|events| {
        let mut seqs = [u32::MAX - 500; 6];
        let mut identification = 0u16;
        events
            .into_iter()
            .map(|(flow, twist, odd)| {
                identification = identification.wrapping_add(u16::from(twist != 0));
                let payload = if twist == 1 { odd } else { vec![flow as u8; 40] };
                let seq = if twist == 2 { seqs[flow].wrapping_sub(40) } else { seqs[flow] };
                seqs[flow] = seq.wrapping_add(payload.len() as u32);
                let (v6, source_port) = (flow % 2 == 1, flow as u16 / 2);
                let fragment = if flow < 2 { 0x4000 } else { 0 };
                let protocol = if flow < 4 { TCP } else { UDP };
                let flags = match twist {
                    3 => ACK | PSH,
                    4 => ACK | FIN,
                    _ => ACK,
                };
                let window = if twist == 5 { 1 } else { 500 };
                let base = Packet { v6, protocol, source_port, fragment, identification, ..Packet::tcp_v4() };
                (flow, Packet { seq, flags, window, payload, ..base }.build())
            })
            .collect()
    })
}

/// What merging and splitting again must keep of a packet: all but the identification of an atomic datagram, whatever checksum goes with it.
fn kept(packet: &[u8]) -> Vec<u8> {
    let mut kept = packet.to_vec();
    if packet[0] >> 4 == 4 {
        assert_eq!(naive_sum(&packet[..20]), 0xffff);
        if packet[6] & 0x40 != 0 {
            kept[4..6].fill(0);
            kept[10..12].fill(0);
        }
    }
    kept
}

fn flow_of(packet: &[u8]) -> usize {
    let v6 = packet[0] >> 4 == 6;
    let (start, protocol) = if v6 { (40, packet[6]) } else { (20, packet[9]) };
    let port = usize::from(u16::from_be_bytes([packet[start], packet[start + 1]]));
    assert_eq!(protocol == 17, port >= 2);
    port * 2 + usize::from(v6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn super_packets_are_split_into_right_packets_and_merged_back(
        spec in prop_oneof![spec(TCP, 1..20000), spec(UDP, 1..20000)],
        segment_bytes in 400..1500u16,
    ) {
        let mut frame = spec.build();
        let header = into_super_packet(&mut frame, segment_bytes);
        let packets = split_all(&header, &frame);
        prop_assert_eq!(&packets, &spec.segments(segment_bytes.into()));
        let frames = merge_all(&mut Coalescer::new(MergeLimits::default()), packets.clone());
        if packets.len() > 1 && (spec.protocol == UDP || spec.flags & (FIN | CWR) == 0) {
            prop_assert_eq!(&frames, &[(VnetHeader { hdr_len: frames[0].0.hdr_len, ..header }, frame)]);
        }
        let again: Vec<_> = frames.iter().flat_map(|(header, frame)| split_all(header, frame)).collect();
        prop_assert_eq!(again, packets);
    }

    #[test]
    fn interleaved_flows_keep_every_packet_and_their_own_order(packets in interleaved(), runs_max in 0..8usize) {
        let mut coalescer = Coalescer::new(MergeLimits { runs_max, ..MergeLimits::default() });
        let frames = merge_all(&mut coalescer, packets.iter().map(|(_, packet)| Bytes::copy_from_slice(packet)));
        let after: Vec<_> = frames.iter().flat_map(|(header, frame)| split_all(header, frame)).collect();
        prop_assert_eq!(after.len(), packets.len());
        for flow in 0..6 {
            let sent: Vec<_> = packets.iter().filter(|(of, _)| *of == flow).map(|(_, packet)| kept(packet)).collect();
            let arrived: Vec<_> = after.iter().filter(|packet| flow_of(packet) == flow).map(|packet| kept(packet)).collect();
            prop_assert_eq!(sent, arrived);
        }
    }

    #[test]
    fn random_packets_are_merged_without_panic_and_none_is_lost(
        packets in prop::collection::vec(test_packets::almost_a_packet(), 0..20),
        mismatched in any::<bool>(),
    ) {
        let mut coalescer = Coalescer::new(MergeLimits { runs_max: 4, frames_max: 16, ..MergeLimits::default() });
        let readable: Vec<_> = packets.iter().filter_map(|packet| Some((packet, InnerPacket::parse(packet).ok()?))).collect();
        let mut taken = 0;
        for (index, (packet, inner)) in readable.iter().enumerate() {
            // A caller's mistake must not panic either.
            let inner = if mismatched { &readable[(index + 1) % readable.len()].1 } else { inner };
            taken += usize::from(coalescer.push(Bytes::copy_from_slice(packet), inner).is_ok());
        }
        let mut polled = 0;
        while let Some(frame) = coalescer.poll_frame() {
            polled += frame.payloads.len();
        }
        prop_assert_eq!(polled, taken);
        prop_assert!(taken == readable.len() || taken >= 16, "refused without being full");
    }
}
