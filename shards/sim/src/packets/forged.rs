//! Inner packets that must arrive nowhere, of every kind: from others' addresses, to where nothing is carried, at odds with themselves; as fragments,
//! with options and extension headers, as ICMP that quotes what was never sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use tollgate_shards::DropReason;

use crate::gateway::GATEWAY;
use crate::random::Stream;

/// Stands in each of them that is long enough.
pub const MARK: [u8; 16] = *b"must not arrive!";

/// A forger who was leased an address.
#[derive(Debug)]
pub struct Forger {
    pub random: Stream,
    pub tunnel: IpNet,
    pub leased: IpAddr,
    /// Addresses of other clients.
    pub others: Vec<IpAddr>,
    /// Whether clients are kept apart.
    pub is_isolated: bool,
}

impl Forger {
    /// The next packet, and the reason for which it is to be dropped.
    pub fn forge(&mut self) -> (Vec<u8>, DropReason) {
        let (source, destination, reason) = match self.random.between(0, 4) {
            0 | 1 => self.wrong_source(),
            2 => self.wrong_destination(),
            _ => (self.leased, self.ordinary(self.leased.is_ipv4()), DropReason::Malformed),
        };
        let packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.v4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.v6(source, destination),
            _ => unreachable!("both of one family"),
        };
        let is_malformed = reason == DropReason::Malformed;
        (if is_malformed { self.damage(packet) } else { packet }, reason)
    }

    fn wrong_source(&mut self) -> (IpAddr, IpAddr, DropReason) {
        let mut sources = self.others.clone();
        sources.extend([self.tunnel.addr(), self.tunnel.network(), self.tunnel.broadcast(), GATEWAY.ip()]);
        sources.extend(EVERYWHERE.iter().map(|address| address.parse::<IpAddr>().expect("an address")));
        sources.retain(|&source| source != self.leased);
        let source = self.random.pick(&sources);
        let mut destinations = vec![self.ordinary(source.is_ipv4()), self.tunnel.addr(), self.leased];
        destinations.extend(self.others.iter().copied());
        destinations.retain(|destination| destination.is_ipv4() == source.is_ipv4());
        (source, self.random.pick(&destinations), DropReason::ForgedSource)
    }

    fn wrong_destination(&mut self) -> (IpAddr, IpAddr, DropReason) {
        let parse = |addresses: &[&str]| -> Vec<IpAddr> {
            addresses.iter().map(|address| address.parse().expect("an address")).collect()
        };
        let is_v4 = self.leased.is_ipv4();
        let (groups, unroutable) = if is_v4 {
            (
                parse(&["224.0.0.1", "239.255.255.250", "255.255.255.255"]),
                parse(&["0.0.0.0", "127.0.0.1", "169.254.169.254"]),
            )
        } else {
            (parse(&["ff02::1", "ff05::2"]), parse(&["::", "::1", "fe80::1"]))
        };
        let mut choices = vec![(groups, DropReason::Multicast), (unroutable, DropReason::Unroutable)];
        if is_v4 {
            choices.push((vec![self.tunnel.broadcast()], DropReason::Multicast));
            choices.push((vec![GATEWAY.ip()], DropReason::OuterAddress));
        }
        if self.is_isolated && !self.others.is_empty() {
            choices.push((self.others.clone(), DropReason::Isolated));
        }
        let place = self.random.index(choices.len());
        let (destinations, reason) = &choices[place];
        (self.leased, self.random.pick(destinations), *reason)
    }

    /// A host of the networks.
    fn ordinary(&self, is_v4: bool) -> IpAddr {
        if is_v4 { Ipv4Addr::new(192, 0, 2, 1).into() } else { Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into() }
    }

    /// A header of some transport, and the mark; the protocol's number.
    fn transport(&mut self) -> (u8, Vec<u8>) {
        let (protocol, header): (u8, &[u8]) = match self.random.between(0, 6) {
            0 | 1 => (17, &[4, 88, 0, 7, 0, 24, 0, 0]),
            2 => (6, &[4, 88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]),
            // "Too big", with the head of a packet that nobody sent.
            3 => (
                1,
                &[3, 4, 0, 0, 0, 0, 2, 0x40, 0x45, 0, 5, 0xdc, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 9, 10, 77, 0, 2],
            ),
            4 => (58, &[2, 0, 0, 0, 0, 0, 5, 0, 0x60, 0, 0, 0, 0, 8, 17, 64]),
            _ => (253, &[]),
        };
        (protocol, [header, &MARK].concat())
    }

    fn v4(&mut self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let (protocol, rest) = self.transport();
        // Nothing, a padded no-operation, loose source routes, recorded routes (RFC 791, section 3.1).
        let options: &[u8] = match self.random.between(0, 6) {
            0 => &[1, 1, 1, 0],
            1 => &[131, 7, 4, 192, 0, 2, 5, 0],
            2 => &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            3 => &[0x44, 40, 5, 0],
            _ => &[],
        };
        let fragment: u16 = self.random.pick(&[0x4000, 0x4000, 0x0000, 0x2000, 0x2001, 0x0002, 0x1fff, 0x8000]);
        let header_bytes = 20 + options.len();
        let mut packet = vec![0x40 | (header_bytes / 4) as u8, self.random.between(0, 256) as u8];
        packet.extend(((header_bytes + rest.len()) as u16).to_be_bytes());
        packet.extend([0x12, 0x34]);
        packet.extend(fragment.to_be_bytes());
        packet.extend([self.random.between(0, 256) as u8, protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(options);
        packet.extend(rest);
        packet
    }

    fn v6(&mut self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let (protocol, rest) = self.transport();
        // Hop-by-hop with a jumbo length, routing of type 0, a fragment, destination options that are longer than the packet, authentication.
        let (first, mut extension): (u8, Vec<u8>) = match self.random.between(0, 8) {
            0 => (0, vec![protocol, 0, 0xc2, 4, 0, 1, 0, 0]),
            1 => (43, [&[protocol, 2, 0, 1, 0, 0, 0, 0][..], &destination.octets()].concat()),
            2 => (44, vec![protocol, 0, 0, 1, 0, 0, 0, 7]),
            3 => (44, vec![protocol, 0, 0x10, 0, 0, 0, 0, 7]),
            4 => (60, vec![protocol, 255, 1, 4, 0, 0, 0, 0]),
            5 => (51, vec![protocol, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
            _ => (protocol, Vec::new()),
        };
        extension.extend(rest);
        let mut packet = vec![0x60 | self.random.between(0, 16) as u8, 0, 0, 0];
        packet.extend((extension.len() as u16).to_be_bytes());
        packet.extend([first, self.random.between(0, 256) as u8]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(extension);
        packet
    }

    /// A packet that contradicts itself, or is none.
    fn damage(&mut self, mut packet: Vec<u8>) -> Vec<u8> {
        let is_v4 = packet[0] >> 4 == 4;
        let length_at = if is_v4 { 2 } else { 4 };
        let length = u16::from_be_bytes([packet[length_at], packet[length_at + 1]]);
        match self.random.between(0, 7) {
            0 => packet.truncate(self.random.between(0, packet.len() as u64) as usize),
            1 => packet.extend(vec![0; self.random.log_uniform(1, 100) as usize]),
            2 => packet[0] = packet[0] & 0x0f | self.random.pick(&[0, 1, 2, 3, 5, 7, 9, 15]) << 4,
            3 if is_v4 => packet[0] = 0x40 | self.random.between(0, 5) as u8,
            4 => packet[length_at..length_at + 2].fill(0),
            5 => packet[length_at..length_at + 2].fill(0xff),
            _ => {
                let other = length.wrapping_add(self.random.between(1, 1 << 16) as u16);
                packet[length_at..length_at + 2].copy_from_slice(&other.to_be_bytes());
            }
        }
        packet
    }
}

const EVERYWHERE: [&str; 14] = [
    "0.0.0.0",
    "127.0.0.1",
    "169.254.7.7",
    "224.0.0.5",
    "255.255.255.255",
    "192.0.2.1",
    "198.18.0.77",
    "::",
    "::1",
    "fe80::7",
    "ff02::5",
    "2001:db8::1",
    "::ffff:198.18.0.2",
    "fd00:77::3",
];
