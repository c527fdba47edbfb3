use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::ids::{CommandId, Fingerprint, Generation, Reconnects};
use crate::limit::lease::{LeaseClose, LeaseGrant, LeaseId, LeaseReport};
use crate::limit::rate::{Limit, Rate};
use crate::quic::placement::Load;
use crate::session::message::{CloseReason, Login};
use crate::session::users::User;

const ODD: Shards = Shards { generation: Generation::Odd, count: 4 };

/// The users of a process, in an order of its own.
fn users(names: &[&str]) -> Users {
    Users::new(names.iter().map(|name| User { name: (*name).to_owned(), ..User::default() }).collect()).unwrap()
}

fn theirs() -> Users {
    users(&["alice", "bob", "carol"])
}

fn ours() -> Users {
    users(&["dave", "carol", "bob", "alice"])
}

fn connection() -> impl Strategy<Value = ConnectionKey> {
    (any::<u16>(), any::<u32>(), any::<u64>()).prop_map(|(owner, slot, generation)| ConnectionKey {
        owner: ShardIndex(owner),
        slot,
        generation,
    })
}

fn user() -> impl Strategy<Value = UserIndex> {
    (0..3_u32).prop_map(UserIndex)
}

fn lease() -> impl Strategy<Value = LeaseId> {
    (any::<u16>(), any::<u64>()).prop_map(|(holder, number)| LeaseId { holder: ShardIndex(holder), number })
}

fn login() -> impl Strategy<Value = Login> {
    (user(), connection(), any::<[u8; 32]>(), reconnects()).prop_map(|(user, connection, credential, reconnects)| {
        Login { user, connection, credential: Fingerprint(credential), reconnects }
    })
}

fn reconnects() -> impl Strategy<Value = Reconnects> {
    prop_oneof![Just(Reconnects::Never), Just(Reconnects::ByItself), any::<IpAddr>().prop_map(Reconnects::Moving)]
}

fn reason() -> impl Strategy<Value = CloseReason> {
    prop_oneof![
        Just(CloseReason::PoolExhausted),
        Just(CloseReason::PoolReserved),
        Just(CloseReason::Superseded),
        Just(CloseReason::TooManyConnections),
        Just(CloseReason::Revoked),
        Just(CloseReason::Moved),
        Just(CloseReason::OverQuota),
    ]
}

/// What may be said to another process.
fn control() -> impl Strategy<Value = ControlMessage> {
    use ControlMessage as M;
    let shard = || any::<u16>().prop_map(ShardIndex);
    let report = (user(), lease(), any::<[u64; 5]>()).prop_map(|(user, lease, bytes)| {
        let [granted_bytes, spent_bytes, returned_bytes, wanted_bytes, least_bytes] = bytes;
        M::LeaseWanted(LeaseReport {
            user,
            lease,
            granted_bytes,
            spent_bytes,
            returned_bytes,
            wanted_bytes,
            least_bytes,
        })
    });
    let grant = (user(), lease(), any::<u64>(), any::<bool>())
        .prop_map(|(user, lease, granted_bytes, recall)| M::Tokens(LeaseGrant { user, lease, granted_bytes, recall }));
    let close = (user(), lease(), any::<u64>())
        .prop_map(|(user, lease, spent_bytes)| M::LeaseClosed(LeaseClose { user, lease, spent_bytes }));
    prop_oneof![
        (login(), any::<u64>(), any::<Option<IpAddr>>(), any::<u64>())
            .prop_map(|(login, version, address, age_ms)| { M::Login { login, version, address, age_ms } }),
        (user(), connection()).prop_map(|(user, connection)| M::Gone { user, connection }),
        (connection(), any::<IpAddr>(), any::<u64>()).prop_map(|(connection, address, age_ms)| M::Admit {
            connection,
            address,
            age_ms
        }),
        (connection(), reason(), any::<u64>()).prop_map(|(connection, reason, version)| M::Close {
            connection,
            reason,
            version
        }),
        (any::<IpAddr>(), connection()).prop_map(|(address, connection)| M::Route { address, connection }),
        (any::<IpAddr>(), connection()).prop_map(|(address, connection)| M::Unroute { address, connection }),
        Just(M::RoutesTold),
        report,
        grant,
        close,
        (shard(), any::<u64>(), vec(any::<IpAddr>(), 0..4)).prop_map(|(from, command, revoked)| M::Barrier {
            from,
            command: CommandId(command),
            revoked
        }),
        (shard(), any::<u32>(), any::<u32>()).prop_map(|(owner, owner_incarnation, home_incarnation)| {
            M::Reattached { owner, owner_incarnation, home_incarnation }
        }),
        (user(), any::<u64>()).prop_map(|(user, level_bytes)| M::Level { user, level_bytes }),
        any::<Option<u64>>().prop_map(|lost_ms| M::Yielded { lost_ms }),
        vec((any::<[u8; 32]>().prop_map(Fingerprint), any::<IpAddr>()), 0..4)
            .prop_map(|addresses| M::Remembered { addresses }),
        (user(), any::<Option<u64>>(), any::<u64>()).prop_map(|(user, bits_per_s, burst_bytes)| {
            let rate = bits_per_s.and_then(Rate::from_bits_per_s);
            M::Limit { user, limit: rate.map(|rate| Limit { rate, burst_bytes }) }
        }),
    ]
}

fn packets() -> impl Strategy<Value = PacketMessage> {
    let octets = || vec(any::<u8>(), 0..60);
    let ecn = prop_oneof![Just(None), Just(Some(Ecn::Ect0)), Just(Some(Ecn::Ect1)), Just(Some(Ecn::Ce))];
    prop_oneof![
        (connection(), vec(octets(), 0..5)).prop_map(|(connection, packets)| {
            PacketMessage::Hairpin { connection, packets: packets.into_iter().map(Bytes::from).collect() }
        }),
        octets().prop_map(|frame| PacketMessage::Frame(frame.into())),
        (any::<SocketAddr>(), any::<Option<IpAddr>>(), ecn, 1..65_536_usize, octets()).prop_map(
            |(mut remote, local_ip, ecn, segment_bytes, data)| {
                // Neither a scope nor a flow label means anything to the gateway.
                if let SocketAddr::V6(v6) = &mut remote {
                    v6.set_flowinfo(0);
                    v6.set_scope_id(0);
                }
                PacketMessage::Datagram(Received { remote, local_ip, ecn, segment_bytes, data: data[..].into() })
            }
        ),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![control().prop_map(Message::from), packets().prop_map(Message::from)]
}

/// The same message where users have our numbers.
fn translated(mut message: ControlMessage) -> ControlMessage {
    if let Some(user) = message.user_mut() {
        *user = ours().find_name(theirs().name(*user)).unwrap();
    }
    message
}

proptest! {
    #[test]
    fn what_is_said_to_another_process_is_heard_there(message in message(), place in 0..4_u16) {
        let expected = match &message {
            Message::Control(message) => format!("{:?}", Message::Control(translated(message.clone()))),
            other => format!("{other:?}"),
        };
        let bytes = encode(ODD.at(place), message, &theirs()).unwrap();
        let (to, heard) = decode(&bytes, ODD, &ours()).unwrap();
        prop_assert_eq!((to, format!("{heard:?}")), (ODD.at(place), expected));
    }

    #[test]
    fn what_is_cut_off_or_changed_is_refused(message in message(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let bytes = encode(ODD.at(0), message, &theirs()).unwrap();
        prop_assert!(decode(&bytes[..at.index(bytes.len())], ODD, &ours()).is_err());
        let mut changed = bytes.clone();
        changed[at.index(bytes.len())] ^= 1_u8 << bit;
        prop_assert!(decode(&changed, ODD, &ours()).is_err());
        let longer = [&bytes[..], &[0]].concat();
        prop_assert_eq!(decode(&longer, ODD, &ours()).unwrap_err(), SiblingError::Damaged);
    }

    #[test]
    fn no_bytes_make_it_panic(spoken in vec(any::<u8>(), 0..200)) {
        let _ = decode(&spoken, ODD, &ours());
        let mut bytes = [&MAGIC[..], &VERSION.to_be_bytes(), &[0; HASH_BYTES], &spoken].concat();
        seal(&mut bytes);
        let _ = decode(&bytes, ODD, &ours());
    }
}

fn gone(user: u32) -> Message {
    let connection = ConnectionKey { owner: ShardIndex(1), slot: 2, generation: 3 };
    ControlMessage::Gone { user: UserIndex(user), connection }.into()
}

#[test]
fn another_version_is_refused_by_its_number() {
    let mut bytes = encode(ODD.at(0), gone(0), &theirs()).unwrap();
    bytes[2..4].copy_from_slice(&(VERSION + 1).to_be_bytes());
    let error = decode(&bytes, ODD, &ours()).unwrap_err();
    assert_eq!(error, SiblingError::Version { theirs: VERSION + 1 });
    assert!(error.to_string().contains(&format!("version {}", VERSION + 1)), "{error}");
    assert_eq!(decode(b"GET / HTTP/1.1", ODD, &ours()).unwrap_err(), SiblingError::Foreign);
}

#[test]
fn a_user_whom_only_the_other_process_knows_is_nobody() {
    let bytes = encode(ODD.at(0), gone(1), &theirs()).unwrap();
    let heard = |users: &Users| match decode(&bytes, ODD, users).unwrap().1 {
        Message::Control(ControlMessage::Gone { user, .. }) => user,
        other => panic!("{other:?}"),
    };
    assert_eq!(heard(&ours()), UserIndex(2));
    assert_eq!(heard(&users(&["dave"])), UserIndex::NOBODY);
    let left = ours().succeed(Vec::new()).unwrap();
    assert_eq!(heard(&left), UserIndex(2), "who has just gone is still told apart");
}

#[test]
fn what_stays_within_a_process_is_not_said_to_another() {
    let load = Message::Load { from: ShardIndex(0), load: Load::default() };
    let held = ControlMessage::Held { home: ShardIndex(0), allocator_incarnation: 0 };
    for message in [load, held.into()] {
        assert_eq!(encode(ODD.at(0), message, &theirs()), Err(SiblingError::Internal));
    }
}

#[test]
fn a_shard_that_is_not_there_and_too_many_bytes_are_refused() {
    let bytes = encode(ODD.at(3), gone(0), &theirs()).unwrap();
    let fewer = Shards { count: 3, ..ODD };
    assert_eq!(decode(&bytes, fewer, &ours()).unwrap_err(), SiblingError::NoSuchShard { shard: ODD.at(3) });
    let frame = PacketMessage::Frame(vec![0; MESSAGE_BYTES_MAX].into());
    assert!(matches!(encode(ODD.at(0), frame.into(), &theirs()), Err(SiblingError::TooLong { .. })));
    assert!(matches!(decode(&vec![0; MESSAGE_BYTES_MAX + 1], ODD, &ours()), Err(SiblingError::TooLong { .. })));
}

/// The bytes of one message of each kind, as they are in this version. Where they change, [`VERSION`] must.
#[test]
fn the_format_of_a_version_stays() {
    let connection = ConnectionKey { owner: ODD.at(1), slot: 300, generation: 1 << 32 | 5 };
    let address = IpAddr::from([198, 18, 0, 7]);
    let (user, lease) = (UserIndex(1), LeaseId { holder: ShardIndex(1), number: 9 });
    let [granted_bytes, spent_bytes, returned_bytes, wanted_bytes, least_bytes] = [1000, 200, 30, 4, 1];
    let report = LeaseReport { user, lease, granted_bytes, spent_bytes, returned_bytes, wanted_bytes, least_bytes };
    let (credential, reconnects) = (Fingerprint([0xab; 32]), Reconnects::Moving(address));
    let received = Received {
        remote: "[fd00::1]:443".parse().unwrap(),
        local_ip: Some(address),
        ecn: Some(Ecn::Ce),
        segment_bytes: 1200,
        data: b"datagram"[..].into(),
    };
    use ControlMessage as M;
    let messages: Vec<Message> = vec![
        M::Login {
            login: Login { user, connection, credential, reconnects },
            version: 3,
            address: Some(address),
            age_ms: 5000,
        }
        .into(),
        M::Gone { user, connection }.into(),
        M::Admit { connection, address, age_ms: 6000 }.into(),
        M::Close { connection, reason: CloseReason::Revoked, version: 3 }.into(),
        M::Route { address, connection }.into(),
        M::Unroute { address, connection }.into(),
        M::RoutesTold.into(),
        M::LeaseWanted(report).into(),
        M::Tokens(LeaseGrant { user, lease, granted_bytes, recall: true }).into(),
        M::LeaseClosed(LeaseClose { user, lease, spent_bytes }).into(),
        M::Barrier { from: ShardIndex(1), command: CommandId(17), revoked: vec![address] }.into(),
        M::Reattached { owner: ShardIndex(1), owner_incarnation: 2, home_incarnation: 1 }.into(),
        M::Level { user, level_bytes: 70_000 }.into(),
        M::Yielded { lost_ms: Some(5) }.into(),
        M::Remembered { addresses: vec![(credential, address)] }.into(),
        M::Limit { user, limit: Some(Limit { rate: Rate::from_bits_per_s(300).unwrap(), burst_bytes: 70_000 }) }.into(),
        PacketMessage::Hairpin { connection, packets: vec![Bytes::from_static(b"a"), Bytes::from_static(b"bc")] }
            .into(),
        PacketMessage::Frame(Bytes::from_static(b"frame")).into(),
        PacketMessage::Datagram(received).into(),
    ];
    let spoken = messages.into_iter().map(|message| {
        let bytes = encode(ODD.at(2), message, &theirs()).unwrap();
        bytes[HEAD_BYTES..].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    assert_eq!((VERSION, spoken.collect::<Vec<_>>().join("\n")), (3, include_str!("format.txt").trim_end().to_owned()));
}
