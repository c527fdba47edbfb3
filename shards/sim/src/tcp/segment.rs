//! A TCP segment (RFC 9293, section 3.1), in a packet and out of it.

use std::net::IpAddr;

use crate::packets::wire::{self, DONT_FRAGMENT, Ip, TCP};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

pub const ECT_0: u8 = 2;

const HEADER_BYTES: usize = 20;

/// The two ends of a connection, from the sender of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    /// Own, and of the other end (RFC 7323).
    pub timestamps: Option<(u32, u32)>,
    /// What has arrived beyond a gap (RFC 2018).
    pub sack: Vec<(u32, u32)>,
    pub payload: Vec<u8>,
}

impl Segment {
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// What it takes of the sequence space.
    pub fn length(&self) -> u64 {
        self.payload.len() as u64 + u64::from(self.has(SYN)) + u64::from(self.has(FIN))
    }

    /// An IP packet with a right checksum.
    pub fn packet(&self, ends: &Ends, ecn: u8, identification: u16, may_be_fragmented: bool) -> Vec<u8> {
        let ip = Ip {
            source: ends.source.0,
            destination: ends.destination.0,
            protocol: TCP,
            traffic_class: ecn,
            identification,
            fragment: if may_be_fragmented { 0 } else { DONT_FRAGMENT },
        };
        let mut packet = ip.packet(&self.bytes(ends));
        wire::renew_transport_checksum(&mut packet);
        packet
    }

    fn bytes(&self, ends: &Ends) -> Vec<u8> {
        let options = self.options();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + options.len() + self.payload.len());
        bytes.extend(ends.source.1.to_be_bytes());
        bytes.extend(ends.destination.1.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.extend([(((HEADER_BYTES + options.len()) / 4) << 4) as u8, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(options);
        bytes.extend(&self.payload);
        bytes
    }

    fn options(&self) -> Vec<u8> {
        let mut options = Vec::new();
        if let Some(mss) = self.mss {
            options.extend([2, 4]);
            options.extend(mss.to_be_bytes());
        }
        if let Some(scale) = self.window_scale {
            options.extend([1, 3, 3, scale]);
        }
        if let Some((own, other)) = self.timestamps {
            options.extend([1, 1, 8, 10]);
            options.extend(own.to_be_bytes());
            options.extend(other.to_be_bytes());
        }
        if !self.sack.is_empty() {
            options.extend([1, 1, 5, 2 + 8 * self.sack.len() as u8]);
            for (left, right) in &self.sack {
                options.extend(left.to_be_bytes());
                options.extend(right.to_be_bytes());
            }
        }
        options
    }

    /// Reads the segment of a whole packet of TCP; `None` where it is none.
    pub fn read(packet: &[u8]) -> Option<(Ends, Segment)> {
        let transport = wire::header_bytes(packet)?;
        let (source, destination) = wire::addresses_of(packet)?;
        let tcp = packet.get(transport..)?;
        let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().expect("four bytes")));
        let header_bytes = usize::from(*tcp.get(12)? >> 4) * 4;
        let ends = Ends { source: (source, wire::u16_at(tcp, 0)?), destination: (destination, wire::u16_at(tcp, 2)?) };
        let mut segment = Segment {
            seq: word(4)?,
            ack: word(8)?,
            flags: tcp[13],
            window: wire::u16_at(tcp, 14)?,
            payload: tcp.get(header_bytes..)?.to_vec(),
            ..Segment::default()
        };
        segment.read_options(tcp.get(HEADER_BYTES..header_bytes)?)?;
        Some((ends, segment))
    }

    fn read_options(&mut self, mut options: &[u8]) -> Option<()> {
        let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        while let Some(&kind) = options.first() {
            if kind < 2 {
                options = &options[1..];
                continue;
            }
            let (option, rest) = options.split_at_checked(usize::from(*options.get(1)?))?;
            match (kind, option.len()) {
                (2, 4) => self.mss = wire::u16_at(option, 2),
                (3, 3) => self.window_scale = Some(option[2]),
                (8, 10) => self.timestamps = Some((word(option, 2), word(option, 6))),
                (5, 2..) => {
                    self.sack =
                        option[2..].as_chunks::<8>().0.iter().map(|pair| (word(pair, 0), word(pair, 4))).collect();
                }
                _ => return None,
            }
            options = rest;
        }
        Some(())
    }

    /// Whether it acknowledges and does nothing else, with timestamps at most.
    pub fn is_pure_ack(&self) -> bool {
        self.flags == ACK && self.payload.is_empty() && self.sack.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_read_as_it_was_made() {
        let full = Segment {
            seq: 7,
            ack: 9,
            flags: SYN | ACK | ECE,
            window: 3,
            mss: Some(1340),
            window_scale: Some(5),
            timestamps: Some((1, 2)),
            sack: vec![(4, 5)],
            payload: vec![1, 2, 3],
        };
        for (source, destination) in [("198.18.0.2", "192.0.2.1"), ("fd00::2", "2001:db8::1")] {
            let ends = Ends { source: (source.parse().unwrap(), 5), destination: (destination.parse().unwrap(), 6) };
            for segment in [full.clone(), Segment { flags: ACK, ..Segment::default() }] {
                let packet = segment.packet(&ends, ECT_0, 77, false);
                assert!(wire::transport_checksum_is_right(&packet));
                assert_eq!(Segment::read(&packet), Some((ends, segment)));
            }
        }
    }
}
