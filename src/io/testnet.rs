//! Network namespaces for the tests of this folder, and packets to send through them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use ::tun::AbstractDevice;
use bytes::Bytes;
use tollgate_shards::Frame;
use tollgate_shards::packet::vnet;
use tollgate_testkit::Namespace;
use tollgate_testkit::packet::{self, Sum};

use super::tun::interface_request;
use super::{FRAME_BYTES_MAX, TunDevice, TunOptions, TunQueue, WriteOutcome};

/// The address of [`tun`]'s device.
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));
/// An address behind the device.
const NEIGHBOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 9));

/// Runs `test` in a network namespace of its own.
pub(super) fn in_network_namespace(test: impl FnOnce() + Send) {
    Namespace::new("io").unwrap().run(test);
}

/// A device with 198.18.0.1/24 and fd00::1/64, MTU 1400, up.
pub(super) fn tun(queues: usize) -> (TunDevice, Vec<TunQueue>) {
    let (mut device, queues) = TunDevice::create(Some("tg-test"), queues, 1400, &TunOptions::default()).unwrap();
    device.configure("198.18.0.1/24".parse().unwrap()).unwrap();
    device.configure("fd00::1/64".parse().unwrap()).unwrap();
    device.up().unwrap();
    (device, queues)
}

/// An Ethernet device with 198.18.9.1/24, up, whose neighbours answer when the test does.
pub(super) struct Ethernet {
    frames: File,
}

impl Ethernet {
    /// Makes the device.
    pub(super) fn create() -> Ethernet {
        let frames = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = interface_request("tg-tap");
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives through the call.
        let done = unsafe { libc::ioctl(frames.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        let mut configuration = ::tun::Configuration::default();
        configuration.raw_fd(frames.as_raw_fd()).close_fd_on_drop(false).tun_name("tg-tap");
        let mut device = ::tun::Device::new(&configuration).unwrap();
        device.set_address([198, 18, 9, 1].into()).unwrap();
        device.set_netmask([255, 255, 255, 0].into()).unwrap();
        device.enabled(true).unwrap();
        Ethernet { frames }
    }

    /// Waits until the kernel asks for a neighbour, and answers (RFC 826).
    pub(super) fn answer_arp(&mut self) {
        let mut frame = [0; 2000];
        while self.frames.read(&mut frame).unwrap() < 42 || frame[12..14] != [8, 6] {}
        let neighbour = [2, 0, 0, 0, 0, 9];
        let (asker, asked) = (frame[22..32].to_vec(), frame[38..42].to_vec());
        frame[..6].copy_from_slice(&asker[..6]);
        frame[6..12].copy_from_slice(&neighbour);
        frame[21] = 2;
        frame[22..28].copy_from_slice(&neighbour);
        frame[28..32].copy_from_slice(&asked);
        frame[32..42].copy_from_slice(&asker);
        self.frames.write_all(&frame[..42]).unwrap();
    }
}

/// The next frame of `queue` that `wanted` likes; the kernel sends packets of its own as well.
pub(super) fn read(queue: &TunQueue, mut wanted: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut buf = vec![0; FRAME_BYTES_MAX];
    for _ in 0..2000 {
        match queue.read(&mut buf).unwrap() {
            Some(bytes) if wanted(&buf[..bytes]) => return buf[..bytes].to_vec(),
            Some(_) => {}
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    panic!("the frame did not come");
}

/// Whether a frame is UDP over IPv4 or IPv6.
pub(super) fn is_udp(frame: &[u8]) -> bool {
    let packet = &frame[vnet::HEADER_BYTES..];
    match packet[0] >> 4 {
        4 => packet[9] == 17,
        _ => packet[6] == 17,
    }
}

/// Writes `packet`, cut into slices of `slice_bytes`, behind a header that asks for nothing.
pub(super) fn write(queue: &TunQueue, packet: &[u8], slice_bytes: usize) -> WriteOutcome {
    let header = [0; vnet::HEADER_BYTES];
    let payloads: Vec<Bytes> = packet.chunks(slice_bytes).map(Bytes::copy_from_slice).collect();
    queue.write(&Frame { header: &header, payloads: &payloads, carries_data: true })
}

/// A UDP packet from 198.18.0.9 to 198.18.0.1.
pub(super) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    packet::udp(SocketAddr::new(NEIGHBOUR, from), SocketAddr::new(HOST, to), payload)
}

/// A TCP packet from 198.18.0.9 to 198.18.0.1 that begins a connection, or confirms all before `confirmed`.
pub(super) fn tcp(ports: (u16, u16), sequence: u32, is_syn: bool, confirmed: Option<u32>, payload: &[u8]) -> Vec<u8> {
    let mut builder = packet::between(NEIGHBOUR, HOST).tcp(ports.0, ports.1, sequence, u16::MAX);
    if is_syn {
        builder = builder.syn();
    }
    if let Some(confirmed) = confirmed {
        builder = builder.ack(confirmed);
    }
    let mut packet = Vec::new();
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// What the kernel is to find in the checksum of such a packet when it is to complete it: the sum of the pseudo header.
pub(super) fn partial_checksum(packet: &[u8]) -> [u8; 2] {
    let bytes = (packet.len() - 20) as u16;
    (Sum::of(&packet[12..20]) + Sum::of(&[0, packet[9]]) + Sum::of(&bytes.to_be_bytes())).folded()
}
