use super::*;
use crate::ids::Generation;

const TAG_KEY: ConnectionIdKey = ConnectionIdKey([7; 16]);
const CIPHER_KEY: [u8; 16] = [9; 16];

fn quic_lb(id_bytes: usize, server_id: &[u8], key: Option<[u8; 16]>) -> Result<IdLayout, IdLayoutError> {
    let config = QuicLb { rotation: 3, server_id: server_id.to_vec(), key };
    IdLayout::quic_lb(id_bytes, &config, TAG_KEY)
}

/// Every layout there is, with the length of its server ID: each length of an ID, with and without a key.
fn layouts() -> Vec<IdLayout> {
    let mut layouts: Vec<_> = ID_LENGTHS.map(|length| IdLayout::plain(length, TAG_KEY).unwrap()).collect();
    for length in ID_LENGTHS {
        for server_id_bytes in 1..=12 {
            for key in [None, Some(CIPHER_KEY)] {
                layouts.extend(quic_lb(length, &[0xa5; 12][..server_id_bytes], key));
            }
        }
    }
    layouts
}

fn scheme(layout: &IdLayout, shards: u16, here: u16, generation: Generation) -> IdScheme {
    let shards = Shards { generation, count: shards };
    IdScheme::new(layout.clone(), shards, shards.at(here))
}

fn ids(shards: u16, index: u16) -> SteeringIds {
    let layout = IdLayout::plain(8, TAG_KEY).unwrap();
    SteeringIds::new(scheme(&layout, shards, index, Generation::Even), [index as u8 + 1; 16])
}

fn short_packet(id: &[u8]) -> Vec<u8> {
    [&[0x40], id, &[0; 30]].concat()
}

/// What the kernel reads, written down once more.
fn shard_of(layout: &IdLayout, id: &[u8], shards: u16) -> u16 {
    let Steering { offset, shard_mask, .. } = layout.steering();
    u16::from(id[offset] & shard_mask) % shards
}

#[test]
fn there_are_layouts_of_every_length_and_with_server_ids_of_up_to_12_bytes() {
    let layouts = layouts();
    for length in 10..=20 {
        let lb = layouts.iter().filter(|layout| layout.id_bytes() == length).count();
        assert!(lb >= 3, "{lb} layouts of {length} bytes");
    }
    for key in [None, Some(CIPHER_KEY)] {
        assert!(quic_lb(20, &[1; 8], key).is_ok());
        assert!(quic_lb(20, &[1; 11], key).is_ok());
    }
    assert!(quic_lb(20, &[1; 12], None).is_ok());
    assert_eq!(quic_lb(16, &[1; 8], None).unwrap().steering(), Steering::BYTE_0);
    assert_eq!(quic_lb(17, &[1; 8], Some(CIPHER_KEY)).unwrap().steering(), Steering::BYTE_7);
}

#[test]
fn what_fits_in_no_id_is_refused_by_name() {
    let refused = |layout: Result<IdLayout, IdLayoutError>| layout.err().unwrap().to_string();
    for length in [7, 21] {
        assert!(refused(IdLayout::plain(length, TAG_KEY)).contains("from 8 to 20 bytes"));
    }
    assert!(refused(quic_lb(20, &[], None)).contains("at least one byte"));
    assert!(refused(quic_lb(9, &[1], None)).contains("at least 10 bytes, not 9"));
    assert!(refused(quic_lb(15, &[1; 8], None)).contains("at least 16 bytes, not 15"));
    assert!(refused(quic_lb(20, &[1; 13], None)).contains("shorten it"));
    let config = QuicLb { rotation: 7, server_id: vec![1], key: None };
    assert!(refused(IdLayout::quic_lb(20, &config, TAG_KEY)).contains("from 0 to 6"));
}

#[test]
fn ids_of_every_layout_steer_to_their_shard_and_are_known_by_all() {
    for layout in layouts() {
        let shards_max = layout.steering().shards_max();
        assert!(shards_max == if layout.steering().offset == 0 { 16 } else { 128 });
        // Encrypted IDs are drawn until they fit: some numbers of shards do.
        let step = if layout.is_direct() { 1 } else { 21 };
        for shards in (1..=shards_max).step_by(step) {
            for here in [0, shards / 2, shards - 1] {
                for generation in [Generation::Even, Generation::Odd] {
                    let own = scheme(&layout, shards, here, generation);
                    let mut issuer = SteeringIds::new(own.clone(), [here as u8 + 1; 16]);
                    let id = issuer.generate_cid();
                    assert_eq!((id.len(), shard_of(&layout, &id, shards)), (layout.id_bytes(), here));
                    assert_eq!((own.whose(&id), issuer.validate(&id).is_ok()), (Whose::Here, true));
                    let owner = ShardIndex::new(generation, here);
                    assert_eq!(own.steer(&short_packet(&id)), Steered::To(owner));
                    let other = (here + 1) % shards;
                    if other != here {
                        let other = scheme(&layout, shards, other, generation);
                        assert_eq!(other.whose(&id), Whose::Shard(owner));
                        assert_eq!(other.steer(&short_packet(&id)), Steered::To(owner));
                        assert!(SteeringIds::new(other, [0; 16]).validate(&id).is_err());
                    }
                }
            }
        }
    }
}

/// A process before this one has ended or died, and has left clients who do not know it yet.
#[test]
fn ids_of_a_process_that_is_gone_are_answered_by_whichever_shard_gets_them() {
    for layout in layouts() {
        for [own, gone] in [[Generation::Even, Generation::Odd], [Generation::Odd, Generation::Even]] {
            let id = SteeringIds::new(scheme(&layout, 4, 1, gone), [1; 16]).generate_cid();
            for here in 0..3 {
                let own_scheme = scheme(&layout, 3, here, own);
                assert_eq!(own_scheme.whose(&id), Whose::OtherGeneration);
                assert_eq!(own_scheme.steer(&short_packet(&id)), Steered::To(ShardIndex::new(own, here)));
                assert!(SteeringIds::new(own_scheme, [0; 16]).validate(&id).is_ok());
            }
        }
    }
}

/// A stateless reset kills a connection, and all nodes share the key of the resets.
#[test]
fn ids_of_another_node_are_told_and_never_validated() {
    for (length, key) in [(20, None), (20, Some(CIPHER_KEY)), (17, Some(CIPHER_KEY))] {
        for server_id in [&[1, 2, 3][..], &[1; 8]] {
            let own = scheme(&quic_lb(length, server_id, key).unwrap(), 1, 0, Generation::Even);
            let elsewhere = quic_lb(length, &vec![5; server_id.len()], key).unwrap();
            let id = SteeringIds::new(scheme(&elsewhere, 1, 0, Generation::Even), [1; 16]).generate_cid();
            assert_eq!(own.whose(&id), Whose::OtherNode);
            assert!(SteeringIds::new(own, [0; 16]).validate(&id).is_err());
        }
    }
}

/// Before the kernel knows of the other process, after it does, and when it errs.
#[test]
fn packets_of_the_process_beside_are_for_its_shards_and_never_answered_here() {
    for layout in layouts() {
        let beside = Shards { generation: Generation::Odd, count: 3 };
        let mut own = scheme(&layout, 4, 1, Generation::Even);
        own.set_sibling(Some(beside));
        let id = SteeringIds::new(scheme(&layout, 3, 2, Generation::Odd), [1; 16]).generate_cid();
        let long_packet = [&[0xc0, 0, 0, 0, 1, id.len() as u8], &id[..], &[0; 30]].concat();
        assert_eq!(own.whose(&id), Whose::Shard(beside.at(2)));
        for packet in [&short_packet(&id), &long_packet] {
            assert_eq!(own.steer(packet), Steered::To(beside.at(2)));
        }
        assert!(SteeringIds::new(own.clone(), [0; 16]).validate(&id).is_err());
        own.set_sibling(None);
        assert_eq!(own.whose(&id), Whose::OtherGeneration, "that process is gone");
        assert_eq!(own.steer(&short_packet(&id)), Steered::To(ShardIndex(1)));
    }
}

#[test]
fn a_balancer_reads_rotation_and_server_id() {
    let server_id = [0x12, 0x34, 0x56];
    let id = SteeringIds::new(scheme(&quic_lb(14, &server_id, None).unwrap(), 2, 1, Generation::Even), [1; 16])
        .generate_cid();
    assert_eq!((id[0] >> 5, &id[1..4]), (3, &server_id[..]));
    for length in [13, 17, 20] {
        let layout = quic_lb(length, &server_id, Some(CIPHER_KEY)).unwrap();
        let id = SteeringIds::new(scheme(&layout, 2, 1, Generation::Even), [1; 16]).generate_cid();
        let mut plain = id.to_vec();
        cipher::Cipher::new(&CIPHER_KEY).decrypt(&mut plain[1..]);
        assert_eq!((id[0] >> 5, &plain[1..4]), (3, &server_id[..]), "{length} bytes");
        assert_ne!(id[1..4], server_id);
    }
}

#[test]
fn every_steering_byte_of_a_shard_is_used() {
    let mut generator = ids(2, 1);
    let mut seen = [false; 256];
    (0..10_000).for_each(|_| seen[usize::from(generator.generate_cid()[7])] = true);
    assert_eq!(seen.iter().filter(|seen| **seen).count(), 64, "half of those of its generation");
}

/// A quarter of a million is what 65,536 connections hold. Nothing looks whether the ID of a Retry is in use.
#[test]
fn no_id_is_issued_twice_while_it_may_be_in_use() {
    let encrypted = scheme(&quic_lb(10, &[1], Some(CIPHER_KEY)).unwrap(), 1, 0, Generation::Even);
    for mut generator in [ids(128, 5), SteeringIds::new(encrypted, [1; 16])] {
        let issued: std::collections::HashSet<_> = (0..1 << 18).map(|_| generator.generate_cid()).collect();
        assert_eq!(issued.len(), 1 << 18);
    }
}

#[test]
fn a_changed_id_is_refused() {
    for layout in layouts() {
        let mut generator = SteeringIds::new(scheme(&layout, 4, 2, Generation::Even), [2; 16]);
        let id = generator.generate_cid();
        for bit in 0..8 * id.len() {
            let mut changed = id.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(generator.validate(&ConnectionId::new(&changed)).is_err(), "bit {bit} of {id}");
        }
    }
}

/// Two bytes of tag let one in 65,536 pass; the bit of the generation, and QUIC-LB's other bits, make them fewer.
#[test]
fn of_a_million_random_ids_no_more_pass_than_a_tag_lets_pass() {
    let some = [
        IdLayout::plain(8, TAG_KEY),
        IdLayout::plain(20, TAG_KEY),
        quic_lb(10, &[1], None),
        quic_lb(16, &[1; 8], None),
        quic_lb(17, &[1], Some(CIPHER_KEY)),
        quic_lb(13, &[1; 3], Some(CIPHER_KEY)),
    ];
    for layout in some.map(Result::unwrap) {
        let own = scheme(&layout, 1, 0, Generation::Even);
        let mut random = SteeringIds::new(own.clone(), [0x5a; 16]);
        let passes = |_: &u32| {
            let id = random.random();
            own.whose(&id[..layout.id_bytes()]) == Whose::Here
        };
        let passed = (0..1_000_000).filter(passes).count();
        assert!(passed <= 1_000_000 / 65_536, "{passed} of {} bytes", layout.id_bytes());
    }
}

#[test]
fn a_foreign_short_packet_is_not_sent_across_shards() {
    let own = ids(2, 0).scheme;
    assert_eq!(own.steer(&short_packet(&[1, 2, 3, 4, 5, 6, 7, 9])), Steered::Foreign);
    assert_eq!(own.steer(&[0x40, 1, 2]), Steered::Foreign);
    assert_eq!(own.steer(&[]), Steered::Foreign);
}

#[test]
fn an_initial_belongs_to_the_shard_of_its_random_id_whatever_the_generation() {
    for last in [5, 0x85] {
        let mut initial = vec![0xc0, 0, 0, 0, 1, 8];
        initial.extend([1, 1, 1, 1, 1, 1, 1, last, 0]);
        assert_eq!(ids(2, 0).scheme.steer(&initial), Steered::To(ShardIndex(1)));
        assert_eq!(ids(2, 0).scheme.steer(&initial[..9]), Steered::Foreign);
        initial[5] = 7;
        assert_eq!(ids(2, 0).scheme.steer(&initial), Steered::To(ShardIndex(0)), "too short an ID says nothing");
    }
}
