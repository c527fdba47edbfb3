//! Which acknowledgements go in the place of others.

use super::*;

/// A pure acknowledgement, the `number`th of those that acknowledge 2800 bytes each.
fn ack(base: &Packet, number: u32) -> Packet {
    Packet { ack: base.ack.wrapping_add(2800 * number), payload: vec![], ..base.clone() }
}

fn with_timestamps(number: u8) -> Packet {
    Packet { options: vec![1, 1, 8, 10, 0, 0, 0, number, 0, 0, 0, number], ..Packet::tcp_v4() }
}

/// What is written of two acknowledgements in a row, the second of which was changed: by their numbers.
fn written_of_two(change: impl Fn(&mut Packet)) -> usize {
    let base = with_timestamps(1);
    let mut second = ack(&base, 1);
    change(&mut second);
    sizes([ack(&base, 0).build(), second.build()]).len()
}

#[test]
fn an_acknowledgement_goes_in_the_place_of_those_that_it_supersedes() {
    for base in [Packet::tcp_v4(), Packet::tcp_v6(), Packet { ack: u32::MAX - 3000, ..with_timestamps(7) }] {
        let last = Packet { window: 9, ..ack(&base, 4) };
        let acks = [ack(&base, 0), ack(&base, 1), ack(&base, 2), ack(&base, 3), last.clone()];
        let mut coalescer = Coalescer::new(MergeLimits::default());
        acks.iter().for_each(|ack| push(&mut coalescer, ack.build()));
        assert_eq!(coalescer.thinned_acks(), 4);
        let header = VnetHeader::default();
        assert_eq!(drain(&mut coalescer), [Written { header, packet: last.build(), parts: 1, carries_data: false }]);
    }
}

#[test]
fn every_acknowledgement_goes_if_thinning_is_off() {
    let base = Packet::tcp_v4();
    let limits = MergeLimits { thins_acks: false, ..MergeLimits::default() };
    assert_eq!(merge_within(limits, (0..5).map(|number| ack(&base, number).build())).len(), 5);
}

#[test]
fn what_says_more_than_an_acknowledgement_is_neither_superseded_nor_supersedes() {
    assert_eq!(written_of_two(|_| ()), 1);
    assert_eq!(written_of_two(|second| second.ack -= 2800), 2, "a repetition tells of a loss");
    assert_eq!(written_of_two(|second| second.ack -= 2801), 2, "an old one");
    assert_eq!(written_of_two(|second| second.flags |= FIN), 2);
    assert_eq!(written_of_two(|second| second.flags |= PSH), 2);
    assert_eq!(written_of_two(|second| second.flags |= 0x40), 2, "ECE");
    assert_eq!(written_of_two(|second| second.seq += 1), 2);
    assert_eq!(written_of_two(|second| second.payload = vec![1]), 2);
    assert_eq!(written_of_two(|second| second.ttl -= 1), 2);
    assert_eq!(written_of_two(|second| second.traffic_class = 3), 2, "congestion experienced");
    assert_eq!(written_of_two(|second| second.options = vec![]), 2, "without timestamps");
    let sack = vec![1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    assert_eq!(written_of_two(|second| second.options = sack.clone()), 2, "SACK");
    let base = with_timestamps(1);
    let first = Packet { options: sack, ..ack(&base, 0) };
    assert_eq!(sizes([first.build(), ack(&base, 1).build()]), [1, 1]);
    let mut damaged = ack(&base, 1).build();
    damaged[31] ^= 1;
    assert_eq!(sizes([ack(&base, 0).build(), damaged]), [1, 1]);
}

#[test]
fn an_acknowledgement_is_superseded_only_by_the_next_of_its_flow() {
    let base = Packet::tcp_v4();
    let other = Packet { source_port: 9, ..base.clone() };
    let data = Packet { ack: base.ack + 2800, ..base.clone() };
    let frames = merge([
        ack(&base, 0).build(),
        ack(&other, 0).build(),
        ack(&base, 1).build(),
        data.build(),
        ack(&Packet { seq: base.seq + 100, ..base.clone() }, 2).build(),
    ]);
    let packets: Vec<_> = frames.into_iter().map(|frame| frame.packet).collect();
    let last = ack(&Packet { seq: base.seq + 100, ..base.clone() }, 2).build();
    assert_eq!(packets, [ack(&base, 1).build(), ack(&other, 0).build(), data.build(), last]);
}

#[test]
fn no_acknowledgement_covers_more_than_a_super_packet_would() {
    let base = Packet::tcp_v4();
    let frames = merge((0..60).map(|number| ack(&base, number).build()));
    let acked: Vec<_> =
        frames.iter().map(|frame| u32::from_be_bytes(*frame.packet[28..].first_chunk().unwrap())).collect();
    assert_eq!(acked, [23, 47, 59].map(|number| base.ack + 2800 * number), "24 x 2800 is more than 65536");
}
