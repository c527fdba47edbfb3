mod acks;

use super::*;
use crate::packet::test_packets::{self, ACK, CWR, FIN, PSH, Packet, SYN, into_super_packet};

/// A frame as it would be written, and in how many parts.
#[derive(Debug, PartialEq)]
struct Written {
    header: VnetHeader,
    packet: Vec<u8>,
    parts: usize,
    carries_data: bool,
}

fn drain(coalescer: &mut Coalescer) -> Vec<Written> {
    let mut frames = Vec::new();
    while let Some(frame) = coalescer.poll_frame() {
        let mut bytes = frame.header.to_vec();
        frame.payloads.iter().for_each(|payload| bytes.extend(payload));
        let (header, packet) = VnetHeader::parse(&bytes).unwrap();
        assert_eq!(frame.inner_bytes(), packet.len());
        frames.push(Written {
            header,
            packet: packet.to_vec(),
            parts: frame.payloads.len(),
            carries_data: frame.carries_data,
        });
    }
    assert!(coalescer.is_empty());
    frames
}

fn push(coalescer: &mut Coalescer, packet: Vec<u8>) {
    let inner = InnerPacket::parse(&packet).unwrap();
    coalescer.push(packet.into(), &inner).unwrap();
}

fn merge_within(limits: MergeLimits, packets: impl IntoIterator<Item = Vec<u8>>) -> Vec<Written> {
    let mut coalescer = Coalescer::new(limits);
    packets.into_iter().for_each(|packet| push(&mut coalescer, packet));
    drain(&mut coalescer)
}

fn merge(packets: impl IntoIterator<Item = Vec<u8>>) -> Vec<Written> {
    merge_within(MergeLimits::default(), packets)
}

/// How many packets went into each frame.
fn sizes(packets: impl IntoIterator<Item = Vec<u8>>) -> Vec<usize> {
    parts(&merge(packets))
}

fn parts(frames: &[Written]) -> Vec<usize> {
    frames.iter().map(|frame| frame.parts).collect()
}

/// The `index`th segment of a stream of equal segments.
fn nth(base: &Packet, index: usize) -> Packet {
    Packet {
        seq: base.seq.wrapping_add((index * base.payload.len()) as u32),
        identification: base.identification.wrapping_add(index as u16),
        ..base.clone()
    }
}

/// Frames of three segments of which the second was changed.
fn sizes_with_second(base: &Packet, change: impl Fn(&mut Packet)) -> Vec<usize> {
    let mut second = nth(base, 1);
    change(&mut second);
    sizes([base.build(), second.build(), nth(base, 2).build()])
}

#[test]
fn consecutive_packets_become_the_super_packet_that_the_kernel_would_make() {
    let timestamps = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let tcp = Packet { options: timestamps, flags: ACK | PSH, payload: (0..240).collect(), ..Packet::tcp_v4() };
    let tcp_v6 = Packet { v6: true, flow_label: 0xabcde, traffic_class: 0x28, ..tcp.clone() };
    let udp = Packet { payload: (0..201).collect(), ..Packet::udp_v4() };
    let udp_v6 = Packet { v6: true, ..udp.clone() };
    for (whole, hdr_len) in [(tcp, 52), (tcp_v6, 72), (udp, 28), (udp_v6, 48)] {
        let frames = merge(whole.segments(100));
        let mut expected = whole.build();
        let header = VnetHeader { hdr_len, ..into_super_packet(&mut expected, 100) };
        assert_eq!(frames, [Written { header, packet: expected, parts: 3, carries_data: true }]);
    }
}

#[test]
fn payloads_are_slices_of_what_came_in() {
    let base = Packet::tcp_v4();
    let packets = [base.build(), nth(&base, 1).build()].map(Bytes::from);
    let mut coalescer = Coalescer::new(MergeLimits::default());
    for packet in &packets {
        coalescer.push(packet.clone(), &InnerPacket::parse(packet).unwrap()).unwrap();
    }
    let frame = coalescer.poll_frame().unwrap();
    for (payload, packet) in frame.payloads.iter().zip(&packets) {
        assert_eq!(payload.as_ptr(), packet[40..].as_ptr());
    }
}

#[test]
fn a_packet_alone_is_a_plain_frame() {
    for (packet, carries_data) in [
        (Packet::tcp_v4().build(), true),
        (Packet { payload: vec![], ..Packet::tcp_v6() }.build(), false),
        (Packet { payload: vec![], ..Packet::udp_v4() }.build(), false),
        (Packet::udp_v6().build(), true),
    ] {
        let expected = Written { header: VnetHeader::default(), packet: packet.clone(), parts: 1, carries_data };
        assert_eq!(merge([packet]), [expected]);
    }
}

#[test]
fn merging_stops_at_a_gap_or_overlap_in_sequence() {
    let base = Packet::tcp_v4();
    assert_eq!(sizes_with_second(&base, |_| ()), [3]);
    assert_eq!(sizes_with_second(&base, |second| second.seq += 1), [1, 1, 1]);
    assert_eq!(sizes_with_second(&base, |second| second.seq -= 1), [1, 1, 1]);
    assert_eq!(sizes_with_second(&base, |second| second.seq = base.seq), [1, 1, 1], "a retransmission");
}

#[test]
fn merging_stops_where_a_header_field_differs() {
    for base in [Packet::tcp_v4(), Packet::tcp_v6()] {
        let base = Packet { options: vec![1, 1, 1, 1], ..base };
        assert_eq!(sizes_with_second(&base, |second| second.ack += 1), [1, 1, 1]);
        assert_eq!(sizes_with_second(&base, |second| second.window += 1), [1, 1, 1]);
        assert_eq!(sizes_with_second(&base, |second| second.urgent += 1), [1, 1, 1]);
        assert_eq!(sizes_with_second(&base, |second| second.ttl += 1), [1, 1, 1]);
        assert_eq!(sizes_with_second(&base, |second| second.traffic_class = 3), [1, 1, 1], "congestion experienced");
        assert_eq!(sizes_with_second(&base, |second| second.options[3] = 0), [1, 1, 1]);
        assert_eq!(sizes_with_second(&base, |second| second.options = vec![]), [1, 1, 1]);
    }
    assert_eq!(sizes_with_second(&Packet::tcp_v4(), |second| second.fragment = 0), [1, 1, 1]);
    assert_eq!(sizes_with_second(&Packet::tcp_v6(), |second| second.flow_label = 1), [1, 1, 1]);
}

#[test]
fn merging_stops_at_any_flag_but_ack_and_push() {
    let base = Packet::tcp_v4();
    for flags in [ACK | SYN, ACK | FIN, ACK | 0x04, ACK | 0x20, ACK | 0x40, ACK | CWR, 0] {
        assert_eq!(sizes_with_second(&base, |second| second.flags = flags), [1, 1, 1], "{flags:#x}");
    }
    let mut reserved = nth(&base, 1).build();
    reserved[32] |= 1;
    test_packets::complete(&mut reserved);
    assert_eq!(sizes([base.build(), reserved, nth(&base, 2).build()]), [1, 1, 1]);
}

#[test]
fn a_push_ends_the_run_behind_it() {
    let base = Packet::tcp_v4();
    assert_eq!(sizes_with_second(&base, |second| second.flags = ACK | PSH), [2, 1]);
    let pushed_first = Packet { flags: ACK | PSH, ..base.clone() };
    assert_eq!(sizes([pushed_first.build(), nth(&base, 1).build(), nth(&base, 2).build()]), [1, 2]);
}

#[test]
fn a_shorter_segment_is_the_last_and_a_longer_one_starts_anew() {
    let base = Packet::tcp_v4();
    let short = Packet { payload: vec![1; 99], ..nth(&base, 1) };
    let after_short = Packet { seq: short.seq + 99, ..nth(&base, 2) };
    assert_eq!(sizes([base.build(), short.build(), after_short.build()]), [2, 1]);
    let long = Packet { payload: vec![1; 101], ..nth(&base, 1) };
    let after_long = Packet { seq: long.seq + 101, payload: vec![1; 101], ..nth(&base, 2) };
    assert_eq!(sizes([base.build(), long.build(), after_long.build()]), [1, 2]);

    let datagram = Packet::udp_v4();
    let short = Packet { payload: vec![1; 99], ..datagram.clone() };
    let long = Packet { payload: vec![1; 101], ..datagram.clone() };
    assert_eq!(sizes([datagram.build(), short.build(), short.build(), long.build(), long.build()]), [2, 1, 2]);
}

#[test]
fn an_acknowledgement_without_data_keeps_its_place() {
    let base = Packet::tcp_v4();
    let bare = Packet { payload: vec![], ..nth(&base, 1) };
    let frames = merge([base.build(), bare.build(), nth(&base, 1).build(), nth(&base, 2).build()]);
    assert_eq!(
        frames.iter().map(|frame| (frame.parts, frame.carries_data)).collect::<Vec<_>>(),
        [(1, true), (1, false), (2, true)]
    );
}

#[test]
fn identifications_must_count_up_unless_fragmentation_is_forbidden() {
    let base = Packet { fragment: 0, identification: u16::MAX, ..Packet::tcp_v4() };
    assert_eq!(sizes_with_second(&base, |_| ()), [3]);
    assert_eq!(sizes_with_second(&base, |second| second.identification += 1), [1, 1, 1]);
    let atomic = Packet { fragment: 0x4000, ..base };
    assert_eq!(sizes_with_second(&atomic, |second| second.identification = 7), [3]);
    let datagram = Packet { fragment: 0, ..Packet::udp_v4() };
    assert_eq!(sizes([datagram.build(), nth(&datagram, 1).build(), datagram.build()]), [2, 1]);
}

#[test]
fn a_wrong_checksum_is_never_merged_and_never_mended() {
    for base in [Packet::tcp_v4(), Packet::tcp_v6()] {
        for damaged in 0..3 {
            let mut packets: Vec<_> = (0..3).map(|index| nth(&base, index).build()).collect();
            *packets[damaged].last_mut().unwrap() ^= 1;
            let frames = merge(packets.clone());
            let alone = frames.iter().find(|frame| frame.packet == packets[damaged]).expect("unchanged");
            assert_eq!(alone.header, VnetHeader::default());
            assert_eq!(frames.iter().map(|frame| frame.parts).sum::<usize>(), 3);
            assert_eq!(frames.len(), if damaged == 1 { 3 } else { 2 });
        }
    }
    let base = Packet::tcp_v4();
    let mut damaged = nth(&base, 1).build();
    damaged[10] ^= 1;
    assert_eq!(sizes([base.build(), damaged, nth(&base, 2).build()]), [1, 1, 1], "IPv4 header checksum");
}

#[test]
fn a_datagram_without_checksum_or_with_a_wrong_length_passes_alone() {
    let base = Packet::udp_v4();
    let mut without = base.build();
    without[26..28].fill(0);
    assert_eq!(sizes([base.build(), without, base.build(), base.build()]), [1, 1, 2]);
    // The same where the absent checksum happens to be right: the payload makes the sum come out as ones.
    let two_bytes = Packet { payload: vec![0, 0], ..base.clone() };
    let payload = two_bytes.build()[26..28].to_vec();
    let mut without = Packet { payload, ..two_bytes.clone() }.build();
    assert_eq!(without[26..28], [0xff, 0xff]);
    without[26..28].fill(0);
    assert_eq!(sizes([two_bytes.build(), without, two_bytes.build()]), [1, 1, 1]);
    let mut wrong = base.build();
    wrong[25] -= 1;
    test_packets::complete(&mut wrong);
    assert_eq!(sizes([base.build(), wrong, base.build()]), [1, 1, 1]);
    let empty = Packet { payload: vec![], ..base.clone() };
    assert_eq!(sizes([empty.build(), empty.build(), base.build()]), [1, 1, 1]);
}

#[test]
fn interleaved_flows_are_merged_side_by_side_in_order_of_their_first_packets() {
    let base = Packet { payload: vec![7; 500], ..Packet::tcp_v4() };
    let others = [Packet { source_port: 1, ..base.clone() }, Packet { source_host: 7, ..base.clone() }];
    let flows = [vec![base.clone()], others.into(), vec![Packet { v6: true, ..base }]].concat();
    let segments: Vec<_> = flows.iter().map(|flow| flow.segments(100)).collect();
    let frames = merge((0..5).flat_map(|index| segments.iter().map(move |of_flow| of_flow[index].clone())));
    let in_turn: Vec<_> = segments.into_iter().flat_map(merge).collect();
    assert_eq!((parts(&frames), frames), (vec![5; 4], in_turn));
}

#[test]
fn flows_that_share_a_tag_are_still_told_apart() {
    let base = Packet::tcp_v4();
    let other = Packet { source_port: 1, ..nth(&base, 1) };
    let packet = other.build();
    let tag = Segment::read(&packet, &InnerPacket::parse(&packet).unwrap()).unwrap().flow.tag();
    let mut coalescer = Coalescer::new(MergeLimits::default());
    push(&mut coalescer, base.build());
    coalescer.tags[0] = tag;
    push(&mut coalescer, packet);
    push(&mut coalescer, nth(&other, 1).build());
    assert_eq!(parts(&drain(&mut coalescer)), [1, 2]);
}

#[test]
fn nothing_of_one_batch_shows_in_the_next() {
    let old = Packet { ack: 1, ..Packet::tcp_v6() };
    let new = Packet::tcp_v4();
    let mut coalescer = Coalescer::new(MergeLimits::default());
    for batch in [&[&old, &nth(&old, 1)][..], &[&new], &[&new, &nth(&new, 1)]] {
        let packets: Vec<_> = batch.iter().map(|segment| segment.build()).collect();
        packets.iter().for_each(|packet| push(&mut coalescer, packet.clone()));
        assert_eq!(drain(&mut coalescer), merge(packets));
    }
}

#[test]
fn a_closed_run_never_grows_again() {
    let base = Packet::tcp_v4();
    let [first, second, third, fourth] = [0, 1, 2, 3].map(|index| nth(&base, index).build());
    let frames = merge([first.clone(), third.clone(), second.clone(), fourth.clone()]);
    let packets: Vec<_> = frames.into_iter().map(|frame| frame.packet).collect();
    assert_eq!(packets, [first, third, second, fourth], "the second and fourth would fit earlier frames");
}

#[test]
fn a_fragment_closes_the_runs_between_its_addresses_only() {
    let near = Packet::tcp_v4();
    let far = Packet { source_host: 9, ..Packet::tcp_v4() };
    let fragment = Packet { fragment: 3, ..Packet::udp_v4() }.build();
    let packets = [near.build(), far.build(), fragment, nth(&near, 1).build(), nth(&far, 1).build()];
    assert_eq!(sizes(packets), [1, 2, 1, 1]);

    let near = Packet::tcp_v6();
    let far = Packet { destination_host: 9, ..Packet::tcp_v6() };
    let optioned =
        test_packets::with_extension(&nth(&near, 1).build(), protocol::HOP_BY_HOP, &[6, 0, 1, 4, 0, 0, 0, 0]);
    let packets = [near.build(), far.build(), optioned, nth(&near, 1).build(), nth(&far, 1).build()];
    assert_eq!(sizes(packets), [1, 2, 1, 1]);
}

#[test]
fn a_packet_with_ipv4_options_passes_alone_and_keeps_its_place() {
    let base = Packet::tcp_v4();
    let optioned = test_packets::with_ipv4_options(&nth(&base, 1).build(), &[1, 1, 1, 1]);
    assert_eq!(sizes([base.build(), optioned, nth(&base, 1).build()]), [1, 1, 1]);
}

#[test]
fn a_frame_never_exceeds_the_longest_packet() {
    let base = Packet { payload: vec![7; 1400], options: vec![1; 12], ..Packet::tcp_v6() };
    let frames = merge((0..100).map(|index| nth(&base, index).build()));
    assert_eq!(parts(&frames), [46, 46, 8]);
    assert!(frames[0].packet.len() <= INNER_BYTES_MAX);
    assert!(frames[0].packet.len() + 1400 > INNER_BYTES_MAX);
    let base = Packet { payload: vec![7; (INNER_BYTES_MAX - 40) / 3], ..Packet::tcp_v4() };
    let frames = merge((0..4).map(|index| nth(&base, index).build()));
    assert_eq!(
        frames.iter().map(|frame| (frame.parts, frame.packet.len())).collect::<Vec<_>>(),
        [(3, 65533), (1, 21871)]
    );
}

#[test]
fn a_frame_never_holds_too_many_segments() {
    let tcp = Packet { payload: vec![7; 10], ..Packet::tcp_v4() };
    assert_eq!(sizes((0..130).map(|index| nth(&tcp, index).build())), [SEGMENTS_MAX, SEGMENTS_MAX, 2]);
    let udp = Packet { payload: vec![7; 10], ..Packet::udp_v6() };
    assert_eq!(sizes((0..130).map(|_| udp.build())), [SEGMENTS_MAX, SEGMENTS_MAX, 2]);
}

#[test]
fn what_the_queue_does_not_take_is_not_merged() {
    let packets = || {
        let tcp = (0..2).map(|index| nth(&Packet::tcp_v4(), index).build());
        tcp.chain((0..2).map(|_| Packet::udp_v4().build()))
    };
    let sizes = |limits| parts(&merge_within(limits, packets()));
    let limits = MergeLimits::default();
    assert_eq!(sizes(limits), [2, 2]);
    assert_eq!(sizes(MergeLimits { tso: false, ..limits }), [1, 1, 2]);
    assert_eq!(sizes(MergeLimits { uso: false, ..limits }), [2, 1, 1]);
    assert_eq!(sizes(MergeLimits { runs_max: 0, ..limits }), [1, 1, 1, 1]);
}

#[test]
fn with_too_many_flows_runs_are_closed() {
    let mut coalescer = Coalescer::new(MergeLimits { runs_max: 2, ..MergeLimits::default() });
    for (index, source_port) in (0..4).flat_map(|index| (0..5).map(move |port| (index, port))) {
        push(&mut coalescer, nth(&Packet { source_port, ..Packet::tcp_v4() }, index).build());
        assert!(coalescer.runs.len() <= 2 && coalescer.runs.len() == coalescer.tags.len());
    }
}

#[test]
fn a_full_merger_gives_packets_back_until_it_is_drained() {
    let mut coalescer = Coalescer::new(MergeLimits { frames_max: 2, ..MergeLimits::default() });
    let packet = Bytes::from(Packet { payload: vec![], ..Packet::tcp_v4() }.build());
    let inner = InnerPacket::parse(&packet).unwrap();
    for _ in 0..2 {
        assert!(!coalescer.is_full());
        assert_eq!(coalescer.push(packet.clone(), &inner), Ok(()));
    }
    assert!(coalescer.is_full());
    assert_eq!(coalescer.push(packet.clone(), &inner), Err(packet.clone()));
    assert!(coalescer.poll_frame().is_some());
    assert_eq!(coalescer.push(packet.clone(), &inner), Err(packet.clone()));
    assert!(coalescer.poll_frame().is_some());
    assert!(coalescer.is_empty());
    assert_eq!(coalescer.push(packet.clone(), &inner), Ok(()));
    assert_eq!(drain(&mut coalescer).len(), 1);
}

#[test]
fn polling_closes_runs_so_that_a_frame_never_changes_under_the_reader() {
    let base = Packet::tcp_v4();
    let other = Packet { source_port: 1, ..Packet::tcp_v4() };
    let mut coalescer = Coalescer::new(MergeLimits::default());
    push(&mut coalescer, base.build());
    push(&mut coalescer, other.build());
    assert!(coalescer.poll_frame().is_some());
    push(&mut coalescer, nth(&base, 1).build());
    push(&mut coalescer, nth(&other, 1).build());
    push(&mut coalescer, nth(&other, 2).build());
    assert_eq!(parts(&drain(&mut coalescer)), [1, 1, 2]);
}

#[test]
fn storage_is_used_again_and_packets_are_given_back_after_a_batch() {
    let base = Packet { payload: vec![7; 10], ..Packet::tcp_v4() };
    let packets: Vec<_> = (0..50).map(|index| Bytes::from(nth(&base, index).build())).collect();
    let mut coalescer = Coalescer::new(MergeLimits::default());
    for is_first in [true, false, false] {
        let batch = packets.clone();
        let heap = allocation_counter::measure(|| {
            for packet in batch {
                let inner = InnerPacket::parse(&packet).unwrap();
                coalescer.push(packet, &inner).unwrap();
            }
            while coalescer.poll_frame().is_some() {}
        });
        assert_eq!(heap.count_total > 0, is_first);
        assert!(packets.iter().all(Bytes::is_unique));
    }
}
