//! For tests: what splitting and merging have to keep, checked on random traffic.

use bytes::Bytes;
use proptest::prelude::*;

use super::coalesce::{Coalescer, MergeLimits};
use super::inner::InnerPacket;
use super::pool::PacketPool;
use super::split::split;
use super::test_packets::{self, ACK, CWR, Checked, FIN, PSH, TcpSegment, UdpDatagram, check, into_super_packet};
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

fn tcp(payload_bytes: std::ops::Range<usize>) -> impl Strategy<Value = TcpSegment> {
    let ip = (any::<bool>(), any::<u8>(), 0..1u32 << 20, any::<u16>(), any::<bool>());
    let tcp = (any::<u32>(), any::<u32>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..11), any::<u8>());
    (ip, tcp, payload(payload_bytes)).prop_map(|(ip, tcp, payload)| {
        let (v6, traffic_class, flow_label, identification, dont_fragment) = ip;
        let (seq, ack, window, options, flags) = tcp;
        let options = options.repeat(4);
        let flags = ACK | flags & (PSH | FIN | CWR);
        let base = TcpSegment { v6, traffic_class, flow_label, identification, dont_fragment, ..TcpSegment::v4() };
        TcpSegment { seq, ack, window, options, flags, payload, ..base }
    })
}

fn udp(payload_bytes: std::ops::Range<usize>) -> impl Strategy<Value = UdpDatagram> {
    (any::<bool>(), any::<u8>(), any::<u16>(), any::<bool>(), payload(payload_bytes)).prop_map(
        |(v6, traffic_class, identification, dont_fragment, payload)| UdpDatagram {
            v6,
            traffic_class,
            identification,
            dont_fragment,
            payload,
            ..UdpDatagram::v4()
        },
    )
}

fn joined(segments: &[Checked]) -> Vec<u8> {
    segments.iter().flat_map(|segment| segment.payload.clone()).collect()
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
                let dont_fragment = flow < 2;
                if flow >= 4 {
                    let base = UdpDatagram { v6, source_port, dont_fragment, identification, ..UdpDatagram::v4() };
                    return (flow, UdpDatagram { payload, ..base }.build());
                }
                let flags = match twist {
                    3 => ACK | PSH,
                    4 => ACK | FIN,
                    _ => ACK,
                };
                let window = if twist == 5 { 1 } else { 500 };
                let base = TcpSegment { v6, source_port, dont_fragment, identification, ..TcpSegment::v4() };
                (flow, TcpSegment { seq, flags, window, payload, ..base }.build())
            })
            .collect()
    })
}

/// The parts of a checked packet that merging and splitting again must keep: all but the identification of an atomic datagram.
fn kept(packet: &[u8]) -> Checked {
    let mut checked = check(packet);
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        checked.identification = None;
    }
    checked
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
    fn tcp_super_packets_are_split_into_right_segments_and_merged_back(spec in tcp(1..20000), gso_size in 200..1500u16) {
        let mut frame = spec.build();
        let header = into_super_packet(&mut frame, gso_size);
        let packets = split_all(&header, &frame);
        let segments: Vec<_> = packets.iter().map(|packet| check(packet)).collect();
        prop_assert_eq!(joined(&segments), &spec.payload[..]);
        let first = check(&spec.build());
        let last = segments.len() - 1;
        for (index, segment) in segments.iter().enumerate() {
            prop_assert_eq!(&segment.rest, &first.rest);
            prop_assert_eq!(segment.seq, spec.seq.wrapping_add(index as u32 * u32::from(gso_size)));
            prop_assert_eq!(segment.identification, first.identification.map(|first| first.wrapping_add(index as u16)));
            let is_full = index < last || spec.payload.len().is_multiple_of(usize::from(gso_size));
            prop_assert_eq!(segment.payload.len() == usize::from(gso_size), is_full);
            let only_last = if index == last { PSH | FIN } else { 0 };
            let only_first = if index == 0 { CWR } else { 0 };
            prop_assert_eq!(segment.flags, spec.flags & (ACK | only_last | only_first));
        }

        let frames = merge_all(&mut Coalescer::new(MergeLimits::default()), packets.clone());
        if spec.flags & (FIN | CWR) == 0 && packets.len() > 1 && packets.len() <= 64 {
            prop_assert_eq!(&frames, &[(VnetHeader { hdr_len: frames[0].0.hdr_len, ..header }, frame)]);
        }
        let again: Vec<_> = frames.iter().flat_map(|(header, frame)| split_all(header, frame)).collect();
        prop_assert_eq!(again, packets);
    }

    #[test]
    fn udp_super_packets_are_split_into_right_datagrams_and_merged_back(spec in udp(1..20000), gso_size in 400..1500u16) {
        let mut frame = spec.build();
        let header = into_super_packet(&mut frame, gso_size);
        let packets = split_all(&header, &frame);
        let datagrams: Vec<_> = packets.iter().map(|packet| check(packet)).collect();
        prop_assert_eq!(joined(&datagrams), &spec.payload[..]);
        for (index, datagram) in datagrams.iter().enumerate() {
            let first = check(&spec.build());
            prop_assert_eq!(&datagram.rest, &first.rest);
            prop_assert_eq!(datagram.identification, first.identification.map(|first| first.wrapping_add(index as u16)));
        }
        let frames = merge_all(&mut Coalescer::new(MergeLimits::default()), packets.clone());
        if packets.len() > 1 {
            prop_assert_eq!(&frames, &[(VnetHeader { hdr_len: frames[0].0.hdr_len, ..header }, frame)]);
        } else {
            prop_assert_eq!(frames, [(VnetHeader::default(), packets[0].to_vec())]);
        }
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
