//! One queue of the TUN device: a frame a call in either direction, the virtio header in front.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::io::Errno;
use tollgate_shards::Frame;
use tollgate_shards::packet::{MergeKind, PacketPool, VnetHeader, split, vnet};

use super::transmit::DATA_BYTES_MIN;

/// The longest frame: a virtio header and the longest IPv4 packet or IPv6 packet without jumbo option, in bytes. A buffer for
/// [`TunQueue::read`] needs as many.
pub const FRAME_BYTES_MAX: usize = vnet::HEADER_BYTES + 40 + 65535;

/// Super-packets of a kind that were refused while their packets were not, before they are given up.
const MERGE_REFUSALS_MAX: u32 = 8;
/// The virtio header of one finished packet.
const PLAIN: [u8; vnet::HEADER_BYTES] = [0; vnet::HEADER_BYTES];

/// The most slices that one write can gather (`UIO_MAXIOV`).
const SLICES_MAX: usize = 1024;

/// The result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The kernel took it.
    Written,
    /// The kernel has no room now. The frame is not counted and may be written again.
    Full,
    /// The kernel refused it for good, with this error number: EINVAL for a header that does not fit the packet, EIO while the device
    /// is down.
    Refused(i32),
    /// The kernel refused it as a super-packet; its packets went one by one.
    Apart {
        /// Packets that it refused even so, or had no room for.
        refused: u64,
        /// Said once: super-packets of this kind are not to be tried any more.
        given_up: Option<MergeKind>,
    },
}

/// What went through a queue since it was opened. A super-packet is one frame; bytes are those of the inner packets.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct TunCounters {
    /// Frames read.
    pub read_frames: u64,
    /// Bytes in frames read.
    pub read_bytes: u64,
    /// Frames read with an inner packet of at least [`DATA_BYTES_MIN`]: nothing that short is told apart by looking at its headers.
    pub read_data_frames: u64,
    /// Bytes in these frames.
    pub read_data_bytes: u64,
    /// Frames written.
    pub written_frames: u64,
    /// Bytes in frames written.
    pub written_bytes: u64,
    /// Frames written that carry data by their own account.
    pub written_data_frames: u64,
    /// Bytes in these frames.
    pub written_data_bytes: u64,
    /// Frames that the kernel refused.
    pub refused_frames: u64,
    /// Super-packets that it refused, and whose packets went one by one.
    pub refused_merges: u64,
}

impl std::ops::AddAssign for TunCounters {
    fn add_assign(&mut self, other: TunCounters) {
        self.read_frames += other.read_frames;
        self.read_bytes += other.read_bytes;
        self.read_data_frames += other.read_data_frames;
        self.read_data_bytes += other.read_data_bytes;
        self.written_frames += other.written_frames;
        self.written_bytes += other.written_bytes;
        self.written_data_frames += other.written_data_frames;
        self.written_data_bytes += other.written_data_bytes;
        self.refused_frames += other.refused_frames;
        self.refused_merges += other.refused_merges;
    }
}

/// A queue of a TUN device, owned by one shard.
#[derive(Debug)]
pub struct TunQueue {
    fd: Arc<OwnedFd>,
    counters: Cell<TunCounters>,
    /// Super-packets that were refused while their packets were not, TCP and UDP.
    merge_refusals: [Cell<u32>; 2],
}

impl TunQueue {
    /// Takes a queue's non-blocking descriptor over.
    pub(super) fn new(fd: OwnedFd) -> TunQueue {
        TunQueue { fd: Arc::new(fd), counters: Cell::default(), merge_refusals: Default::default() }
    }

    /// Its descriptor, which is not kept open by this.
    pub fn descriptor(&self) -> Weak<OwnedFd> {
        Arc::downgrade(&self.fd)
    }

    /// What went through the queue since it was opened.
    pub fn counters(&self) -> TunCounters {
        self.counters.get()
    }

    /// Reads one frame into `buf`, which should hold [`FRAME_BYTES_MAX`] (a longer frame would be cut without notice), and returns its
    /// length in bytes, the virtio header included. `None`: there is no frame now.
    ///
    /// An error is final: EBADFD means that the device is gone.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let bytes = loop {
            match rustix::io::read(&self.fd, &mut *buf) {
                Ok(bytes) => break bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        let inner_bytes = bytes.saturating_sub(vnet::HEADER_BYTES);
        let mut counters = self.counters.get();
        counters.read_frames += 1;
        counters.read_bytes += inner_bytes as u64;
        if inner_bytes >= DATA_BYTES_MIN {
            counters.read_data_frames += 1;
            counters.read_data_bytes += inner_bytes as u64;
        }
        self.counters.set(counters);
        Ok(Some(bytes))
    }

    /// Writes one frame, gathered from its slices without a copy as long as they are no more than 1,024.
    ///
    /// Some kernels refuse super-packets, or those whose last packet is shorter, with EINVAL, which has other causes too. So the packets go
    /// again one by one, and the kind is given up only when that has helped `MERGE_REFUSALS_MAX` times.
    pub fn write(&self, frame: &Frame<'_>) -> WriteOutcome {
        match self.write_once(frame) {
            WriteOutcome::Refused(libc::EINVAL) => self.write_apart(frame),
            outcome => outcome,
        }
    }

    fn write_once(&self, frame: &Frame<'_>) -> WriteOutcome {
        let outcome = match self.write_slices(frame) {
            Ok(_) => WriteOutcome::Written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => WriteOutcome::Full,
            Err(error) => WriteOutcome::Refused(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        let mut counters = self.counters.get();
        match outcome {
            WriteOutcome::Written => {
                let inner_bytes = frame.inner_bytes() as u64;
                counters.written_frames += 1;
                counters.written_bytes += inner_bytes;
                if frame.carries_data {
                    counters.written_data_frames += 1;
                    counters.written_data_bytes += inner_bytes;
                }
            }
            WriteOutcome::Refused(_) => counters.refused_frames += 1,
            WriteOutcome::Full | WriteOutcome::Apart { .. } => {}
        }
        self.counters.set(counters);
        outcome
    }

    #[cold]
    fn write_apart(&self, frame: &Frame<'_>) -> WriteOutcome {
        let header = VnetHeader::parse(frame.header).map(|(header, _)| header);
        let Some((header, kind)) = header.and_then(|header| Some((header, MergeKind::of(&header)?))) else {
            return WriteOutcome::Refused(libc::EINVAL);
        };
        let whole = joined(frame);
        let packet = &whole[vnet::HEADER_BYTES..];
        let (mut taken, mut refused) = (0, 0);
        let parts = split(&header, packet, &mut PacketPool::for_one_frame(), &mut |packet| {
            let single = Frame { header: &PLAIN, payloads: &[packet], carries_data: frame.carries_data };
            match self.write_once(&single) {
                WriteOutcome::Written => taken += 1,
                _ => refused += 1,
            }
        });
        if parts.is_err() {
            return WriteOutcome::Refused(libc::EINVAL);
        }
        let mut counters = self.counters.get();
        counters.refused_merges += 1;
        self.counters.set(counters);
        let refusals = &self.merge_refusals[kind as usize];
        refusals.set(refusals.get() + u32::from(taken > 0));
        let given_up = Some(kind).filter(|_| taken > 0 && refusals.get() == MERGE_REFUSALS_MAX);
        WriteOutcome::Apart { refused, given_up }
    }

    fn write_slices(&self, frame: &Frame<'_>) -> io::Result<usize> {
        let count = 1 + frame.payloads.len();
        if count > SLICES_MAX {
            return self.write_joined(frame);
        }
        let mut vectors = [MaybeUninit::<libc::iovec>::uninit(); SLICES_MAX];
        let slices = std::iter::once(frame.header).chain(frame.payloads.iter().map(|payload| &payload[..]));
        for (vector, slice) in vectors.iter_mut().zip(slices) {
            vector.write(libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() });
        }
        loop {
            // SAFETY: the first `count` vectors were written just above and describe slices that outlive the call; the kernel only
            // reads them.
            let written = unsafe { libc::writev(self.fd.as_raw_fd(), vectors.as_ptr().cast(), count as libc::c_int) };
            if let Ok(written) = usize::try_from(written) {
                return Ok(written);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Writes a frame of too many slices for one system call. Only merged packets of a few dozen bytes each come to that.
    #[cold]
    fn write_joined(&self, frame: &Frame<'_>) -> io::Result<usize> {
        let joined = joined(frame);
        loop {
            match rustix::io::write(&self.fd, &joined) {
                Err(Errno::INTR) => {}
                written => return Ok(written?),
            }
        }
    }
}

fn joined(frame: &Frame<'_>) -> Vec<u8> {
    let mut joined = Vec::with_capacity(vnet::HEADER_BYTES + frame.inner_bytes());
    joined.extend_from_slice(frame.header);
    for payload in frame.payloads {
        joined.extend_from_slice(payload);
    }
    joined
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket as StdSocket};
    use std::time::Duration;

    use bytes::Bytes;
    use tollgate_shards::{Ecn, Transmit};

    use super::super::testnet::{in_network_namespace, is_udp, partial_checksum, read, tcp, tun, udp, write};
    use super::super::{Poller, TransmitBatch, UdpOptions, UdpSocket, Wake};
    use super::*;

    fn field(frame: &[u8], at: usize) -> usize {
        usize::from(u16::from_ne_bytes([frame[at], frame[at + 1]]))
    }

    /// The header's kind of super-packet and the length of its segments.
    fn super_packet(frame: &[u8]) -> (u8, usize) {
        (frame[1], field(frame, 4))
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_packet_that_the_kernel_sends_is_read_and_counted() {
        in_network_namespace(|| {
            let (_device, queues) = tun(1);
            let socket = StdSocket::bind("198.18.0.1:0").unwrap();
            socket.send_to(&[7; 700], "198.18.0.9:53").unwrap();
            let frame = read(&queues[0], is_udp);
            let packet = &frame[vnet::HEADER_BYTES..];
            assert_eq!((packet.len(), &packet[16..20]), (728, &[198, 18, 0, 9][..]));
            assert_eq!(&packet[28..], &[7; 700]);
            let counters = queues[0].counters();
            assert_eq!((counters.read_data_frames, counters.read_data_bytes), (1, 728));
            assert!(counters.read_frames >= 1 && counters.read_bytes >= 728);
            let mut buf = vec![0; FRAME_BYTES_MAX];
            while queues[0].read(&mut buf).unwrap().is_some() {}
            let idle = queues[0].counters();
            assert_eq!(queues[0].read(&mut buf).unwrap(), None);
            assert_eq!(queues[0].counters(), idle);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_packet_written_in_slices_reaches_a_socket() {
        in_network_namespace(|| {
            let (_device, queues) = tun(1);
            let socket = StdSocket::bind("198.18.0.1:5353").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let payload: Vec<u8> = (0..1300).map(|index| index as u8).collect();
            let packet = udp(4000, 5353, &payload);
            let mut buf = [0; 2000];
            // One slice, some, and (of one byte each) more than one system call takes.
            for slice_bytes in [2000, 100, 1] {
                assert_eq!(write(&queues[0], &packet, slice_bytes), WriteOutcome::Written);
                let (bytes, from) = socket.recv_from(&mut buf).unwrap();
                assert_eq!(&buf[..bytes], &payload[..]);
                assert_eq!(from, SocketAddr::from(([198, 18, 0, 9], 4000)));
            }
            let counters = queues[0].counters();
            assert_eq!((counters.written_frames, counters.written_data_bytes), (3, 3 * 1328));
            assert_eq!(counters.refused_frames, 0);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_frame_that_the_kernel_refuses_is_counted_and_the_next_goes() {
        in_network_namespace(|| {
            let (_device, queues) = tun(1);
            // An unknown kind of super-packet; then no IP packet at all.
            let header = [0, 99, 0, 0, 0, 0, 0, 0, 0, 0];
            let packet = [Bytes::from(udp(1, 2, b"x"))];
            let frame = Frame { header: &header, payloads: &packet, carries_data: true };
            assert_eq!(queues[0].write(&frame), WriteOutcome::Refused(libc::EINVAL));
            assert_eq!(write(&queues[0], &[0xff; 40], 40), WriteOutcome::Refused(libc::EINVAL));
            assert_eq!(write(&queues[0], &udp(1, 2, b"x"), 100), WriteOutcome::Written);
            let counters = queues[0].counters();
            assert_eq!((counters.refused_frames, counters.written_frames), (2, 1));
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_udp_send_with_segments_comes_as_one_super_packet() {
        in_network_namespace(|| {
            let (_device, queues) = tun(1);
            for (remote, network_bytes) in [("198.18.0.9:53", 20), ("[fd00::9]:53", 40)] {
                let remote: SocketAddr = remote.parse().unwrap();
                let socket = UdpSocket::for_remote(remote, &UdpOptions::default()).unwrap();
                let mut batch = TransmitBatch::new(1);
                let bytes = 20 * 1200 + 100;
                assert!(batch.fill(|buf| {
                    buf.resize(bytes, 3);
                    Some(Transmit { remote, local_ip: None, ecn: Some(Ecn::Ect0), bytes, segment_bytes: 1200 })
                }));
                assert_eq!(socket.send(&mut batch).datagrams, 21);
                let frame = read(&queues[0], is_udp);
                assert_eq!(super_packet(&frame), (vnet::GSO_UDP_L4, 1200));
                assert_eq!(frame.len(), vnet::HEADER_BYTES + network_bytes + 8 + bytes);
            }
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_tcp_stream_comes_as_super_packets() {
        in_network_namespace(|| {
            let (_device, queues) = tun(1);
            let network = std::thread::spawn(move || {
                let is_tcp = |frame: &[u8]| frame[vnet::HEADER_BYTES] == 0x45 && frame[vnet::HEADER_BYTES + 9] == 6;
                let syn = read(&queues[0], is_tcp);
                let segment = &syn[vnet::HEADER_BYTES + 20..];
                let from = u16::from_be_bytes([segment[0], segment[1]]);
                let seq = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
                let answer = tcp((80, from), 1000, true, Some(seq.wrapping_add(1)), &[]);
                assert_eq!(write(&queues[0], &answer, 100), WriteOutcome::Written);
                let data = read(&queues[0], |frame| is_tcp(frame) && frame[1] != 0);
                (super_packet(&data), data.len())
            });
            let mut stream = TcpStream::connect("198.18.0.9:80").unwrap();
            stream.write_all(&[9; 60_000]).unwrap();
            let ((kind, segment_bytes), frame_bytes) = network.join().unwrap();
            // The answer offers no MSS, so that 536 bytes is what the kernel may send (RFC 9293, 3.7.1).
            assert_eq!((kind & !vnet::GSO_ECN, segment_bytes), (vnet::GSO_TCPV4, 536));
            assert!(frame_bytes >= vnet::HEADER_BYTES + 40 + 2 * 536, "{frame_bytes}");
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_queue_wakes_a_poller_only_while_its_frames_are_wanted() {
        in_network_namespace(|| {
            let (_device, queues) = tun(1);
            let udp = UdpSocket::for_remote("127.0.0.1:9".parse().unwrap(), &UdpOptions::default()).unwrap();
            let poller = Poller::new(Some(&udp), Some(&queues[0]), &Wake::new().unwrap()).unwrap();
            let socket = StdSocket::bind("198.18.0.1:0").unwrap();
            socket.send_to(&[7; 700], "198.18.0.9:53").unwrap();
            assert!(poller.wait(Some(Duration::from_secs(5))).unwrap().tun);
            poller.want_tun(false).unwrap();
            assert!(!poller.wait(Some(Duration::ZERO)).unwrap().tun);
            poller.want_tun(true).unwrap();
            assert!(poller.wait(Some(Duration::ZERO)).unwrap().tun);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_super_packet_written_reaches_a_tcp_socket_whole() {
        in_network_namespace(|| {
            let (_device, queues) = tun(1);
            let listener = TcpListener::bind("198.18.0.1:80").unwrap();
            let server = std::thread::spawn(move || {
                let mut received = Vec::new();
                let (stream, _) = listener.accept().unwrap();
                stream.take(20_000).read_to_end(&mut received).unwrap();
                received
            });
            assert_eq!(write(&queues[0], &tcp((4000, 80), 99, true, None, &[]), 100), WriteOutcome::Written);
            let syn_ack = read(&queues[0], |frame| frame[vnet::HEADER_BYTES + 9] == 6 && frame[10] == 0x45);
            let seq = u32::from_be_bytes(*syn_ack[vnet::HEADER_BYTES + 24..].first_chunk().unwrap());
            let payload: Vec<u8> = (0..20_000).map(|index| (index / 7) as u8).collect();
            let mut packet = tcp((4000, 80), 100, false, Some(seq.wrapping_add(1)), &payload);
            let partial = partial_checksum(&packet);
            packet[36..38].copy_from_slice(&partial);
            // NEEDS_CSUM, TCPv4, header 40, segments of 1000, checksum from 20 on, at 16 from there.
            let mut header = [0; vnet::HEADER_BYTES];
            header[..2].copy_from_slice(&[vnet::NEEDS_CSUM, vnet::GSO_TCPV4]);
            for (at, value) in [(2, 40u16), (4, 1000), (6, 20), (8, 16)] {
                header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
            }
            let payloads: Vec<Bytes> = packet.chunks(1040).map(Bytes::copy_from_slice).collect();
            let frame = Frame { header: &header, payloads: &payloads, carries_data: true };
            assert_eq!(queues[0].write(&frame), WriteOutcome::Written);
            assert!(server.join().unwrap() == payload);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_super_packet_that_is_refused_goes_packet_by_packet() {
        in_network_namespace(|| {
            let (_device, queues) = tun(1);
            let socket = StdSocket::bind("198.18.0.1:5353").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let payload: Vec<u8> = (0..2500).map(|index| (index / 3) as u8).collect();
            let header_of = VnetHeader {
                flags: vnet::NEEDS_CSUM,
                gso_type: vnet::GSO_UDP_L4,
                hdr_len: 28,
                gso_size: 1000,
                csum_start: 20,
                csum_offset: 6,
            };
            let packet = [Bytes::from(udp(4000, 5353, &payload))];
            for round in 1..=MERGE_REFUSALS_MAX {
                let frame = Frame { header: header_of.bytes(), payloads: &packet, carries_data: true };
                let given_up = (round == MERGE_REFUSALS_MAX).then_some(MergeKind::Udp);
                assert_eq!(queues[0].write_apart(&frame), WriteOutcome::Apart { refused: 0, given_up });
                let mut received = Vec::new();
                for bytes in [1000, 1000, 500] {
                    let mut buf = [0; 2000];
                    assert_eq!(socket.recv(&mut buf).unwrap(), bytes);
                    received.extend_from_slice(&buf[..bytes]);
                }
                assert_eq!(received, payload);
            }
            let counters = queues[0].counters();
            assert_eq!((counters.refused_merges, counters.written_frames), (8, 24));
        });
    }
}
