//! Network namespaces for the tests of this folder, and packets to send through them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use ::tun::AbstractDevice;
use bytes::Bytes;
use rustix::net::AddressFamily;
use tollgate_shards::Frame;
use tollgate_shards::packet::vnet;

use super::tun::{control_socket, interface_request};
use super::{FRAME_BYTES_MAX, TunDevice, TunOptions, TunQueue, WriteOutcome};

/// Runs `test` in a fresh network namespace with the loopback up, on a thread of its own. Without the privileges for that (or
/// without /dev/net/tun) it says so on the terminal and runs nothing; with `TOLLGATE_TEST_PRIVILEGED` set that is a failure.
pub(super) fn in_network_namespace(test: impl FnOnce() + Send + 'static) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
        // SAFETY: takes no pointers; a network namespace of its own is a thread's affair.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(format!("no network namespace: {}", io::Error::last_os_error()));
        }
        File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .map_err(|error| format!("/dev/net/tun: {error}"))?;
        loopback_up();
        test();
        Ok(())
    });
    match thread.unwrap().join() {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => skip(&name, &reason),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Says on the terminal, past the test harness that hides what a passing test prints, that `name` did not run.
pub(super) fn skip(name: &str, reason: &str) {
    assert!(std::env::var_os("TOLLGATE_TEST_PRIVILEGED").is_none(), "{name} could not run: {reason}");
    let _ = writeln!(io::stderr(), "SKIPPED {name}: {reason}");
}

fn loopback_up() {
    let control = control_socket(AddressFamily::INET).unwrap();
    let mut request = interface_request("lo");
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives through the call.
    let done = unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
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

/// An IPv4 packet of `protocol` from 198.18.0.9 to 198.18.0.1.
pub(super) fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 198, 18, 0, 9, 198, 18, 0, 1];
    let total = (packet.len() + payload.len()) as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    let checksum = !sum(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// The sum that checksums complement (RFC 1071) of `bytes`, which are of even length.
pub(super) fn sum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

/// What the checksum of a TCP segment of `bytes` bytes from 198.18.0.9 to 198.18.0.1 covers besides the segment.
pub(super) fn tcp_pseudo_header(bytes: usize) -> [u8; 12] {
    let [high, low] = (bytes as u16).to_be_bytes();
    [198, 18, 0, 9, 198, 18, 0, 1, 0, 6, high, low]
}

/// A TCP segment from 198.18.0.9 to 198.18.0.1 without options and payload.
pub(super) fn tcp(ports: (u16, u16), seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend_from_slice(&ports.0.to_be_bytes());
    segment.extend_from_slice(&ports.1.to_be_bytes());
    segment.extend_from_slice(&seq.to_be_bytes());
    segment.extend_from_slice(&ack.to_be_bytes());
    segment.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let checksum = !sum(&[&tcp_pseudo_header(segment.len())[..], &segment].concat());
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// A UDP datagram without checksum.
pub(super) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    for field in [from, to, (8 + payload.len()) as u16, 0] {
        datagram.extend_from_slice(&field.to_be_bytes());
    }
    datagram.extend_from_slice(payload);
    datagram
}
