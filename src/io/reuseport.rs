//! Steering of UDP packets to the sockets of a `SO_REUSEPORT` group by their QUIC connection ID.
//!
//! The kernel runs the program on every datagram with the UDP payload at offset 0; what it returns is the index of a socket in the
//! order they were bound. Which byte of the ID steers is the engine's to say ([`Steering`]). A load beyond the payload would end the program with 0 and so give every runt to the first shard: lengths
//! are checked first. Any index that no socket has makes the kernel choose by the hash of the 4-tuple.
//!
//! A split group has two sockets for each shard: N for short headers, then N for long ones, in the order of the shards. Live traffic
//! has short headers (RFC 9000, section 17.3); whatever strangers send before a handshake has long ones.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use tollgate_shards::Steering;

/// No socket's index: the 4-tuple decides.
const BY_HASH: u32 = u32::MAX;

/// Offset of the first byte of the connection ID in a short header (RFC 9000, 17.3), in bytes.
const SHORT_ID: u32 = 1;
/// Offset of the length of the destination connection ID in a long header (RFC 8999, 5.1), in bytes.
const LONG_ID_LENGTH: u32 = 5;
/// Offset of the first byte of the destination connection ID in a long header (RFC 8999, 5.1), in bytes.
const LONG_ID: u32 = 6;

/// The sockets of a group, in the order of binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One socket for each shard.
    Whole,
    /// One for each shard's short headers, then one for each shard's long headers.
    Split,
}

/// Makes the group that `socket` is in, or will start when it is bound, steer over `shards` shards (1 to 128) by the byte of the connection ID
/// that `steering` names.
pub(super) fn attach(socket: BorrowedFd<'_>, shards: usize, layout: Layout, steering: Steering) -> io::Result<()> {
    let mut program = program(shards as u32, layout, steering);
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

fn program(shards: u32, layout: Layout, steering: Steering) -> [libc::sock_filter; 18] {
    let offset = steering.offset as u32;
    let length = op(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0);
    let byte = |offset| op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, offset);
    // A client's own ID for its Initial is of no generation: that bit is not looked at.
    let shard_bits = op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, steering.shard_mask.into());
    let modulo = op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, shards);
    let answer = op(libc::BPF_RET | libc::BPF_A, 0);
    // What has no connection ID is no live traffic.
    let (first_long, without_id) = match layout {
        Layout::Whole => (0, BY_HASH),
        Layout::Split => (shards, shards),
    };
    [
        length,
        unless(libc::BPF_JGE, SHORT_ID + offset + 1, 15),
        byte(0),
        unless(libc::BPF_JSET, 0x80, 9),
        // A long header. Too short an ID has nothing to steer by.
        length,
        unless(libc::BPF_JGE, LONG_ID + offset + 1, 11),
        byte(LONG_ID_LENGTH),
        unless(libc::BPF_JGT, offset, 9),
        byte(LONG_ID + offset),
        shard_bits,
        modulo,
        op(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, first_long),
        answer,
        // A short header.
        byte(SHORT_ID + offset),
        shard_bits,
        modulo,
        answer,
        op(libc::BPF_RET | libc::BPF_K, without_id),
    ]
}

fn op(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

/// Goes on when the comparison with `value` holds, and skips `skipped` instructions when it does not.
fn unless(comparison: u32, value: u32, skipped: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | comparison | libc::BPF_K) as u16, jt: 0, jf: skipped, k: value }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket as StdSocket};
    use std::time::Duration;

    use tollgate_shards::Steering;

    use super::super::{Poller, ReceiveBatch, ShardSockets, UdpGroup, UdpOptions, UdpSocket, Wake};

    const SHARDS: usize = 3;

    fn group() -> (Vec<UdpSocket>, SocketAddr) {
        group_by(Steering::BYTE_7)
    }

    fn group_by(steering: Steering) -> (Vec<UdpSocket>, SocketAddr) {
        let options = UdpOptions { steering, ..UdpOptions::default() };
        let sockets = UdpGroup::bind("127.0.0.1:0".parse().unwrap(), SHARDS, &options).unwrap();
        let address = sockets[0].local_address();
        (sockets, address)
    }

    /// Which socket of the group gets `packet`.
    fn receiver(sockets: &[UdpSocket], packet: &[u8], to: SocketAddr, from: &StdSocket) -> usize {
        from.send_to(packet, to).unwrap();
        let mut batch = ReceiveBatch::new(4);
        for _ in 0..1000 {
            for (index, socket) in sockets.iter().enumerate() {
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

    /// Of either generation.
    fn shard_of(id: u8, shards: usize) -> usize {
        usize::from(id & 0x7f) % shards
    }

    #[test]
    fn packets_reach_the_socket_that_their_connection_id_names() {
        let (sockets, address) = group();
        // Several senders: the 4-tuple must not matter.
        for sender in 0..3 {
            let client = StdSocket::bind("127.0.0.1:0").unwrap();
            for id in (sender..=255u8).step_by(5) {
                assert_eq!(receiver(&sockets, &long(8, id), address, &client), shard_of(id, SHARDS), "long, {id}");
                assert_eq!(receiver(&sockets, &short(id), address, &client), shard_of(id, SHARDS), "short, {id}");
            }
        }
    }

    #[test]
    fn the_shortest_packets_that_hold_an_id_are_steered() {
        let (sockets, address) = group();
        let client = StdSocket::bind("127.0.0.1:0").unwrap();
        for id in 0..6 {
            assert_eq!(receiver(&sockets, &short(id)[..9], address, &client), shard_of(id, SHARDS));
            assert_eq!(receiver(&sockets, &long(8, id)[..14], address, &client), shard_of(id, SHARDS));
        }
    }

    #[test]
    fn the_first_byte_of_an_id_steers_where_that_is_its_layout() {
        let (sockets, address) = group_by(Steering::BYTE_0);
        let client = StdSocket::bind("127.0.0.1:0").unwrap();
        for id in (0..=255u8).step_by(7) {
            let (mut long, mut short) = (long(1, 0), short(0));
            (long[6], short[1]) = (id, id);
            let shard = usize::from(id & 0x0f) % SHARDS;
            assert_eq!(receiver(&sockets, &long[..7], address, &client), shard, "long, {id}");
            assert_eq!(receiver(&sockets, &short[..2], address, &client), shard, "short, {id}");
        }
    }

    #[test]
    fn packets_without_an_id_go_by_the_4_tuple() {
        let (sockets, address) = group();
        let mut seen = [false; SHARDS];
        for _ in 0..64 {
            let client = StdSocket::bind("127.0.0.1:0").unwrap();
            // With this ID the first is socket 1's, were it not for the length in front of it; the others are too short.
            let by_hash = receiver(&sockets, &long(7, 1), address, &client);
            for runt in [&[0x41u8][..], &[0xc3], &short(1)[..8], &long(8, 1)[..13], &long(8, 1)[..2], &long(0, 1)] {
                assert_eq!(receiver(&sockets, runt, address, &client), by_hash);
            }
            seen[by_hash] = true;
        }
        assert_eq!(seen, [true; SHARDS], "64 senders spread over all sockets");
    }

    #[test]
    fn a_poller_sees_only_its_own_sockets_packets() {
        let (sockets, address) = group();
        let client = StdSocket::bind("127.0.0.1:0").unwrap();
        let wake = Wake::new().unwrap();
        let pollers: Vec<_> = sockets.iter().map(|socket| Poller::new(Some(socket), None, &wake).unwrap()).collect();
        client.send_to(&short(1), address).unwrap();
        assert!(pollers[1].wait(Some(Duration::from_secs(5))).unwrap().udp);
        for other in [0, 2] {
            assert!(!pollers[other].wait(Some(Duration::ZERO)).unwrap().udp);
        }
    }

    /// The sockets of a split group of `shards` shards, in the order of their indices.
    fn split_group(shards: usize) -> (Vec<UdpSocket>, SocketAddr) {
        let options = UdpOptions::default();
        let group = UdpGroup::bind_split("127.0.0.1:0".parse().unwrap(), shards, &options, 1 << 20).unwrap();
        let (live, handshakes): (Vec<_>, Vec<_>) =
            group.into_iter().map(|ShardSockets { live, handshakes }| (live, handshakes)).unzip();
        let address = live[0].local_address();
        assert!(handshakes.iter().all(|socket| socket.local_address() == address));
        (live.into_iter().chain(handshakes).collect(), address)
    }

    #[test]
    fn long_headers_reach_their_shards_own_socket_for_them() {
        for shards in [1, 2, SHARDS] {
            let (sockets, address) = split_group(shards);
            let client = StdSocket::bind("127.0.0.1:0").unwrap();
            for id in (0..=255u8).step_by(7) {
                let shard = shard_of(id, shards);
                assert_eq!(receiver(&sockets, &long(8, id), address, &client), shards + shard, "long, {id}");
                assert_eq!(receiver(&sockets, &short(id), address, &client), shard, "short, {id}");
            }
        }
    }

    #[test]
    fn what_has_no_id_stays_off_the_sockets_of_live_traffic() {
        let (sockets, address) = split_group(SHARDS);
        let client = StdSocket::bind("127.0.0.1:0").unwrap();
        for runt in [&[0x41u8][..], &[0xc3], &short(1)[..8], &long(8, 1)[..13], &long(8, 1)[..2], &long(7, 1)] {
            assert_eq!(receiver(&sockets, runt, address, &client), SHARDS);
        }
    }
}
