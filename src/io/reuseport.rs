//! Steering of UDP packets to the sockets of a `SO_REUSEPORT` group by their QUIC connection ID.
//!
//! The kernel runs the program on every datagram with the UDP payload at offset 0; what it returns is the index of a socket in the group. Which
//! byte of the ID steers, and which bit of it is the generation, is the engine's to say ([`Steering`]). A load beyond the payload would end the
//! program with 0 and so give every runt to the first shard: lengths are checked first.
//!
//! Each process has two sockets in it for each of its N shards: N for short headers, then N for long ones, in the order of the shards. Live traffic
//! has short headers (RFC 9000, section 17.3); whatever strangers send before a handshake has long ones.
//!
//! While two processes share a group, one setsockopt of either exchanges the program for both.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use tollgate_shards::{Generation, Steering};

use super::members::{Group, Members};

/// Offset of the first byte of the connection ID in a short header (RFC 9000, 17.3), in bytes.
const SHORT_ID: u32 = 1;
/// Offset of the length of the destination connection ID in a long header (RFC 8999, 5.1), in bytes.
const LONG_ID_LENGTH: u32 = 5;
/// Offset of the first byte of the destination connection ID in a long header (RFC 8999, 5.1), in bytes.
const LONG_ID: u32 = 6;

/// Makes the group that `socket` is in, or will start when it is bound, steer over the sockets of `group` by the byte of the connection ID that
/// `steering` names.
pub(super) fn attach(socket: BorrowedFd<'_>, group: Group, steering: Steering) -> io::Result<()> {
    let mut program = program(group, steering);
    let descriptor = libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    // SAFETY: the option's value is a `sock_fprog`, whose instructions live in `program` until the call, which copies them, returns.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const descriptor).cast(),
            size_of_val(&descriptor) as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn program(group: Group, steering: Steering) -> Vec<libc::sock_filter> {
    let offset = steering.offset as u32;
    let length = op(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0);
    let byte = |offset| op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, offset);
    let [long, short] = [true, false].map(|is_long| choice(group, steering, is_long));
    // Where these begin, in instructions.
    let short_header = 9 + long.len();
    let without_id = short_header + 1 + short.len();
    let mut program = vec![
        length,
        unless(libc::BPF_JGE, SHORT_ID + offset + 1, without_id - 2),
        byte(0),
        unless(libc::BPF_JSET, 0x80, short_header - 4),
        length,
        unless(libc::BPF_JGE, LONG_ID + offset + 1, without_id - 6),
        byte(LONG_ID_LENGTH),
        // Too short an ID has nothing to steer by.
        unless(libc::BPF_JGT, offset, without_id - 8),
        byte(LONG_ID + offset),
    ];
    program.extend(long);
    program.push(byte(SHORT_ID + offset));
    program.extend(short);
    program.push(op(libc::BPF_RET | libc::BPF_K, without_an_id(group.newest())));
    program
}

/// Returns the index for the byte that was loaded.
fn choice(group: Group, steering: Steering, is_long: bool) -> Vec<libc::sock_filter> {
    let of = |generation| choice_among(group.of(generation), steering, is_long);
    let [even, odd] = [Generation::Even, Generation::Odd].map(of);
    if group.is_of_one() {
        // A client's own ID for its Initial is of no generation.
        return even;
    }
    [[unless(libc::BPF_JSET, steering.generation_mask.into(), odd.len())].as_slice(), &odd, &even].concat()
}

fn choice_among(members: Members, steering: Steering, is_long: bool) -> Vec<libc::sock_filter> {
    let calculate = |operation, value| op(libc::BPF_ALU | operation | libc::BPF_K, value);
    let shards = shards(members);
    let first = if is_long { shards } else { 0 };
    let mut steps = vec![
        calculate(libc::BPF_AND, steering.shard_mask.into()),
        calculate(libc::BPF_MOD, shards),
        calculate(libc::BPF_ADD, first + members.turned()),
    ];
    if members.turned() > 0 {
        steps.push(calculate(libc::BPF_MOD, members.count()));
    }
    steps.extend([calculate(libc::BPF_ADD, members.first()), op(libc::BPF_RET | libc::BPF_A, 0)]);
    steps
}

/// Shards of the process whose sockets `members` are.
fn shards(members: Members) -> u32 {
    members.count() / 2
}

/// The socket for what has no connection ID, which is no live traffic.
fn without_an_id(members: Members) -> u32 {
    members.place(shards(members))
}

fn op(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

/// Goes on when the comparison with `value` holds, and skips `skipped` instructions when it does not.
fn unless(comparison: u32, value: u32, skipped: usize) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | comparison | libc::BPF_K) as u16, jt: 0, jf: skipped as u8, k: value }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket as StdSocket};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use tollgate_shards::{Generation, Steering};

    use super::super::members::{Group, Members};
    use super::super::{Poller, ReceiveBatch, ShardSockets, UdpGroup, UdpOptions, UdpSocket, Wake};

    const SHARDS: usize = 3;
    const ANY_PORT: &str = "127.0.0.1:0";
    const HANDSHAKE_BUFFER_BYTES: usize = 1 << 20;

    /// The sockets of a group of `shards` shards, in the order of their indices.
    fn group(shards: usize, steering: Steering) -> (Vec<UdpSocket>, SocketAddr) {
        let options = UdpOptions { steering, ..UdpOptions::default() };
        let sockets = UdpGroup::bind(ANY_PORT.parse().unwrap(), shards, &options, HANDSHAKE_BUFFER_BYTES).unwrap();
        in_order(sockets)
    }

    fn in_order(sockets: Vec<ShardSockets>) -> (Vec<UdpSocket>, SocketAddr) {
        let (live, handshakes): (Vec<_>, Vec<_>) =
            sockets.into_iter().map(|ShardSockets { live, handshakes }| (live, handshakes)).unzip();
        let address = live[0].local_address();
        assert!(handshakes.iter().all(|socket| socket.local_address() == address));
        (live.into_iter().chain(handshakes).collect(), address)
    }

    /// Which of the sockets gets `packet`.
    fn receiver<'a>(
        sockets: impl IntoIterator<Item = &'a UdpSocket> + Clone,
        packet: &[u8],
        to: SocketAddr,
        from: &StdSocket,
    ) -> usize {
        from.send_to(packet, to).unwrap();
        let mut batch = ReceiveBatch::new(4);
        for _ in 0..1000 {
            for (index, socket) in sockets.clone().into_iter().enumerate() {
                let mut got = Vec::new();
                socket.receive(&mut batch, &mut |received| got.push(received)).unwrap();
                if let Some(first) = got.first() {
                    assert_eq!((got.len(), &first.data[..]), (1, packet));
                    return index;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("a packet of {} bytes reached no socket", packet.len());
    }

    /// With an ID of this length, were it cut, and of this byte 7.
    fn long(id_length: u8, id: u8) -> Vec<u8> {
        let mut packet = vec![0xc3, 0, 0, 0, 1, id_length, 1, 2, 3, 4, 5, 6, 7, id];
        packet.resize(1200, 0x55);
        packet
    }

    fn short(id: u8) -> Vec<u8> {
        let mut packet = vec![0x41, 1, 2, 3, 4, 5, 6, 7, id];
        packet.resize(100, 0xaa);
        packet
    }

    fn shard_of(id: u8, shards: usize) -> usize {
        usize::from(id & 0x7f) % shards
    }

    /// One process has the IDs of both generations: that of a client's Initial is of none.
    #[test]
    fn packets_reach_the_socket_that_their_connection_id_names() {
        for shards in 1..=SHARDS {
            let (sockets, address) = group(shards, Steering::BYTE_7);
            // Several senders: the 4-tuple must not matter.
            for sender in 0..3 {
                let client = StdSocket::bind(ANY_PORT).unwrap();
                for id in (sender..=255u8).step_by(5) {
                    let shard = shard_of(id, shards);
                    assert_eq!(receiver(&sockets, &short(id), address, &client), shard, "short, {id}");
                    assert_eq!(receiver(&sockets, &long(8, id), address, &client), shards + shard, "long, {id}");
                }
            }
        }
    }

    #[test]
    fn the_shortest_packets_that_hold_an_id_are_steered() {
        let (sockets, address) = group(SHARDS, Steering::BYTE_7);
        let client = StdSocket::bind(ANY_PORT).unwrap();
        for id in 0..6 {
            assert_eq!(receiver(&sockets, &short(id)[..9], address, &client), shard_of(id, SHARDS));
            assert_eq!(receiver(&sockets, &long(8, id)[..14], address, &client), SHARDS + shard_of(id, SHARDS));
        }
    }

    #[test]
    fn the_first_byte_of_an_id_steers_where_that_is_its_layout() {
        let (sockets, address) = group(SHARDS, Steering::BYTE_0);
        let client = StdSocket::bind(ANY_PORT).unwrap();
        for id in (0..=255u8).step_by(7) {
            let (mut long, mut short) = (long(1, 0), short(0));
            (long[6], short[1]) = (id, id);
            let shard = usize::from(id & 0x0f) % SHARDS;
            assert_eq!(receiver(&sockets, &long[..7], address, &client), SHARDS + shard, "long, {id}");
            assert_eq!(receiver(&sockets, &short[..2], address, &client), shard, "short, {id}");
        }
    }

    #[test]
    fn what_has_no_id_stays_off_the_sockets_of_live_traffic() {
        let (sockets, address) = group(SHARDS, Steering::BYTE_7);
        let client = StdSocket::bind(ANY_PORT).unwrap();
        for runt in runts() {
            assert_eq!(receiver(&sockets, &runt, address, &client), SHARDS);
        }
    }

    /// With the ID of the sixth the first socket for handshakes is not meant, were it not for the length in front of it; the others are too short.
    fn runts() -> [Vec<u8>; 6] {
        let cut = |packet: Vec<u8>, bytes| packet[..bytes].to_vec();
        [vec![0x41], vec![0xc3], cut(short(1), 8), cut(long(8, 1), 13), cut(long(8, 1), 2), long(7, 1)]
    }

    /// A process with `new` shards joins one with `old`, has its own IDs and what is of nobody, and is alone in the end, in whatever state
    /// of the group: the old one closes its sockets one by one, from the last to the first.
    fn one_process_after_another(old: usize, new: usize, steering: Steering) {
        let options = UdpOptions { steering, ..UdpOptions::default() };
        let (mut before, address) = group(old, steering);
        let joined = UdpGroup::join(address, new, &options, HANDSHAKE_BUFFER_BYTES).unwrap();
        let (joined, _) = in_order(joined);
        let client = StdSocket::bind(ANY_PORT).unwrap();
        let packet = |generation: u8, shard: usize, is_long: bool| {
            let (mut packet, first) = if is_long { (long(8, 0), 6) } else { (short(0), 1) };
            packet[first + steering.offset] = shard as u8 | generation;
            packet
        };
        let odd = steering.generation_mask;
        for shard in 0..old {
            // The program is still the old one's, which knows no generations.
            let of_new = packet(odd, shard, false);
            assert_eq!(receiver(before.iter().chain(&joined), &of_new, address, &client), shard);
        }
        let old_members = Members::behind(0, before.len() as u32);
        let mut members = Members::behind(before.len() as u32, joined.len() as u32);
        loop {
            let group = Group::of_two(Generation::Odd, members, old_members);
            UdpGroup::steer(address, joined[0].as_fd(), group, steering).unwrap();
            let all = before.iter().chain(&joined);
            for shard in 0..new {
                for (is_long, first) in [(false, 0), (true, new)] {
                    let place = before.len() + first + shard;
                    assert_eq!(receiver(all.clone(), &packet(odd, shard, is_long), address, &client), place);
                }
            }
            for index in 0..before.len() {
                let of_old = packet(0, index % old, index >= old);
                assert_eq!(receiver(all.clone(), &of_old, address, &client), index, "{} left", before.len());
            }
            let runt = receiver(all, &[0x41], address, &client);
            assert_eq!(runt, before.len() + new);
            if before.pop().is_none() {
                break;
            }
            members = members.one_left();
        }
        UdpGroup::steer(address, joined[0].as_fd(), Group::of_one(members), steering).unwrap();
        for shard in 0..new {
            for generation in [0, odd] {
                assert_eq!(receiver(&joined, &packet(generation, shard, true), address, &client), new + shard);
            }
        }
    }

    #[test]
    fn two_processes_share_a_port_by_generation_whatever_their_shards_and_their_sockets_left() {
        for (old, new) in [(1, 1), (2, 2), (4, 4), (1, 4), (4, 1), (2, 3), (3, 2)] {
            one_process_after_another(old, new, Steering::BYTE_7);
        }
        one_process_after_another(2, 3, Steering::BYTE_0);
    }

    #[test]
    fn a_poller_sees_only_its_own_sockets_packets() {
        let (sockets, address) = group(SHARDS, Steering::BYTE_7);
        let client = StdSocket::bind(ANY_PORT).unwrap();
        let wake = Wake::new().unwrap();
        let pollers: Vec<_> = sockets.iter().map(|socket| Poller::new(Some(socket), None, &wake).unwrap()).collect();
        client.send_to(&short(1), address).unwrap();
        assert!(pollers[1].wait(Some(Duration::from_secs(5))).unwrap().udp);
        for other in [0, 2] {
            assert!(!pollers[other].wait(Some(Duration::ZERO)).unwrap().udp);
        }
    }
}
