//! What a Linux kernel does at its end of a TUN queue with `IFF_VNET_HDR`: it writes frames whose checksums and segmentation are left to others, and
//! takes such frames apart that others write.
//!
//! After `include/linux/virtio_net.h` (`virtio_net_hdr_to_skb`, `virtio_net_hdr_from_skb`), `net/ipv4/tcp_offload.c` (`tcp_gso_segment`) and
//! `net/ipv4/udp_offload.c` (`__udp_gso_segment`). It shares no code with the engine, which it judges, and it is stricter than Linux: what Linux
//! would mend in a frame, or not look at, is an error here.

use super::wire::{self, TCP, UDP};

/// Length of the virtio header, in bytes.
pub const HEADER_BYTES: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;
/// Linux's `UDP_MAX_SEGMENTS`.
const UDP_SEGMENTS_MAX: usize = 128;
const UDP_HEADER_BYTES: usize = 8;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Where the flags are in a TCP header.
const FLAGS: usize = 13;

/// The virtio header (virtio 1.2, clause 5.1.6), in the byte order of the host.
#[derive(Debug)]
struct Vnet {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Vnet {
    fn read(frame: &[u8]) -> Option<(Vnet, &[u8])> {
        let (header, packet) = frame.split_at_checked(HEADER_BYTES)?;
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let (hdr_len, gso_size, csum_start, csum_offset) = (word(2), word(4), word(6), word(8));
        Some((Vnet { flags: header[0], gso_type: header[1], hdr_len, gso_size, csum_start, csum_offset }, packet))
    }

    fn bytes(&self) -> Vec<u8> {
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        [self.flags, self.gso_type].into_iter().chain(words.into_iter().flat_map(u16::to_ne_bytes)).collect()
    }
}

/// The frame of a finished packet.
pub fn plain(packet: &[u8]) -> Vec<u8> {
    [&[0; HEADER_BYTES], packet].concat()
}

/// The frame in which the kernel hands on `packet`, which is of TCP or UDP: only the pseudo header is summed up, and with a `gso_size` others are
/// to make segments of it that have so many bytes of payload.
pub fn offloaded(mut packet: Vec<u8>, gso_size: Option<u16>) -> Vec<u8> {
    let transport = wire::header_bytes(&packet).expect("the kernel's own packet");
    let protocol = wire::protocol_of(&packet);
    let csum_offset = wire::checksum_offset(protocol);
    let partial = wire::fold(wire::pseudo_header(&packet));
    wire::set_u16(&mut packet, transport + csum_offset, partial);
    let has_cwr = protocol == TCP && packet[transport + FLAGS] & CWR != 0;
    let gso_type = match (gso_size, protocol, wire::is_v6(&packet)) {
        (None, ..) => GSO_NONE,
        (_, TCP, false) => GSO_TCPV4 | if has_cwr { GSO_ECN } else { 0 },
        (_, TCP, true) => GSO_TCPV6 | if has_cwr { GSO_ECN } else { 0 },
        _ => GSO_UDP_L4,
    };
    let header = Vnet {
        flags: NEEDS_CSUM,
        gso_type,
        hdr_len: gso_size.map_or(0, |_| (transport + transport_header_bytes(&packet, transport)) as u16),
        gso_size: gso_size.unwrap_or(0),
        csum_start: transport as u16,
        csum_offset: csum_offset as u16,
    };
    [header.bytes(), packet].concat()
}

/// The packets that the kernel makes of a frame, in order; with more than one, IPv4 identifications count up from that of the frame.
pub fn taken_apart(frame: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let (header, packet) = Vnet::read(frame).ok_or("a frame is shorter than its virtio header")?;
    let transport = wire::header_bytes(packet).ok_or("a frame is no whole IP packet")?;
    if header.gso_type != GSO_NONE {
        return segments(&header, packet, transport).map_err(|what| format!("{what}: {header:?}"));
    }
    if header.gso_size != 0 || header.flags & !NEEDS_CSUM != 0 {
        return Err(format!("a frame of one packet says {header:?}"));
    }
    let mut packet = packet.to_vec();
    if header.flags & NEEDS_CSUM != 0 {
        partial_checksum(&header, &packet, transport)?;
        wire::renew_transport_checksum(&mut packet);
        // `skb_checksum_help` writes 0 in its other form, whatever the protocol.
        let at = transport + wire::checksum_offset(wire::protocol_of(&packet));
        if packet[at..at + 2] == [0, 0] {
            packet[at..at + 2].fill(0xff);
        }
    }
    Ok(vec![packet])
}

/// Whether the checksum is where the header says, and is that of the pseudo header.
fn partial_checksum(header: &Vnet, packet: &[u8], transport: usize) -> Result<(), String> {
    let offset = wire::checksum_offset(wire::protocol_of(packet));
    if (usize::from(header.csum_start), usize::from(header.csum_offset)) != (transport, offset) {
        return Err(format!("the checksum is at {transport} + {offset}: {header:?}"));
    }
    if wire::u16_at(packet, transport + offset) != Some(wire::fold(wire::pseudo_header(packet))) {
        return Err("a checksum to be completed is not that of the pseudo header".to_owned());
    }
    Ok(())
}

fn segments(header: &Vnet, packet: &[u8], transport: usize) -> Result<Vec<Vec<u8>>, String> {
    let protocol = wire::protocol_of(packet);
    let is_right = match (header.gso_type & !GSO_ECN, wire::is_v6(packet)) {
        (GSO_TCPV4, false) | (GSO_TCPV6, true) => protocol == TCP,
        (GSO_UDP_L4, _) => protocol == UDP && header.gso_type & GSO_ECN == 0,
        _ => false,
    };
    if !is_right || header.flags != NEEDS_CSUM {
        return Err(format!("a super-packet of protocol {protocol} says something else"));
    }
    if !wire::is_v6(packet) && !wire::header_checksum_is_right(packet) {
        return Err("a super-packet has a wrong IPv4 header checksum".to_owned());
    }
    partial_checksum(header, packet, transport)?;
    let headers_bytes = transport + transport_header_bytes(packet, transport);
    let (gso_size, payload) = (usize::from(header.gso_size), packet.get(headers_bytes..).unwrap_or_default());
    if usize::from(header.hdr_len) != headers_bytes || gso_size == 0 || payload.len() <= gso_size {
        return Err(format!("{} bytes of payload behind {headers_bytes} of headers make no segments", payload.len()));
    }
    let count = payload.len().div_ceil(gso_size);
    if protocol == UDP
        && (count > UDP_SEGMENTS_MAX || wire::u16_at(packet, transport + 4) != Some((packet.len() - transport) as u16))
    {
        return Err(format!("a UDP super-packet of {count} datagrams, or of another length than it says"));
    }
    if protocol == TCP && (packet[transport + FLAGS] & CWR != 0) != (header.gso_type & GSO_ECN != 0) {
        return Err("a super-packet with CWR, or that says so".to_owned());
    }
    let segment = |(index, payload): (usize, &[u8])| {
        let mut segment = [&packet[..headers_bytes], payload].concat();
        rewrite(&mut segment, transport, index, index * gso_size, index + 1 == count);
        segment
    };
    Ok(payload.chunks(gso_size).enumerate().map(segment).collect())
}

/// Turns the headers of a super-packet into those of its segment number `index`, whose payload begins at `offset`.
fn rewrite(segment: &mut [u8], transport: usize, index: usize, offset: usize, is_last: bool) {
    let segment_bytes = segment.len();
    if wire::is_v6(segment) {
        wire::set_u16(segment, 4, (segment_bytes - transport) as u16);
    } else {
        let identification = wire::u16_at(segment, 4).unwrap_or(0).wrapping_add(index as u16);
        wire::set_u16(segment, 2, segment_bytes as u16);
        wire::set_u16(segment, 4, identification);
        wire::renew_header_checksum(segment);
    }
    if wire::protocol_of(segment) == UDP {
        wire::set_u16(segment, transport + 4, (segment_bytes - transport) as u16);
    } else {
        let tcp = &mut segment[transport..];
        let seq = u32::from_be_bytes(tcp[4..8].try_into().expect("four bytes")).wrapping_add(offset as u32);
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        if !is_last {
            tcp[FLAGS] &= !(FIN | PSH);
        }
        if index > 0 {
            tcp[FLAGS] &= !CWR;
        }
    }
    wire::renew_transport_checksum(segment);
}

fn transport_header_bytes(packet: &[u8], transport: usize) -> usize {
    match wire::protocol_of(packet) {
        TCP => packet.get(transport + 12).map_or(usize::MAX / 2, |length| usize::from(length >> 4) * 4),
        _ => UDP_HEADER_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::super::make::{FlowSpec, Form, packet};
    use super::*;

    fn datagrams(flow: FlowSpec, count: u64) -> (Vec<u8>, Vec<Vec<u8>>) {
        let datagrams: Vec<_> = (1..=count).map(|mark| packet(&flow, mark, 100, Form::Whole)).collect();
        let header_bytes = wire::header_bytes(&datagrams[0]).unwrap() + UDP_HEADER_BYTES;
        let payloads: Vec<u8> = datagrams.iter().flat_map(|datagram| &datagram[header_bytes..]).copied().collect();
        (super::super::make::super_packet(&flow, &payloads), datagrams)
    }

    fn flow(is_v6: bool) -> FlowSpec {
        let (source, destination) = if is_v6 { ("fd00::2", "fd00::3") } else { ("198.18.0.2", "198.19.9.9") };
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        FlowSpec { source, destination, source_port: 1, destination_port: 7, session: 1 }
    }

    #[test]
    fn datagrams_come_out_as_they_went_in() {
        for is_v6 in [false, true] {
            let (super_packet, mut datagrams) = datagrams(flow(is_v6), 3);
            let parts = taken_apart(&offloaded(super_packet, Some(100))).unwrap();
            if !is_v6 {
                for (index, datagram) in datagrams.iter_mut().enumerate() {
                    wire::set_u16(datagram, 4, index as u16);
                    wire::renew_header_checksum(datagram);
                }
            }
            assert_eq!(parts, datagrams);
            assert_eq!(taken_apart(&offloaded(datagrams[1].clone(), None)).unwrap(), [datagrams[1].clone()]);
        }
    }

    #[test]
    fn a_frame_that_contradicts_itself_is_found() {
        let (super_packet, _) = datagrams(flow(false), 3);
        let good = offloaded(super_packet, Some(100));
        assert!(taken_apart(&good).is_ok());
        // All of the virtio header but how long segments are; lengths and checksums of IP and UDP.
        for at in (0..4).chain(6..HEADER_BYTES).chain([12, 13, 20, 21, 34, 35, 36, 37]) {
            let mut bad = good.clone();
            bad[at] ^= 2;
            assert!(taken_apart(&bad).is_err(), "byte {at}");
        }
        assert!(taken_apart(&good[..9]).is_err() && taken_apart(&[0; 40]).is_err());
    }
}
