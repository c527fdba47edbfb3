//! What is readable in datagrams without keys: the header of an Initial, and where packets end that a client may send.

use crate::quic::connection_id::has_long_header;

/// Smallest UDP payload of an Initial, in bytes (RFC 9000, section 14.1).
pub const INITIAL_BYTES_MIN: usize = 1200;
/// Shortest connection ID that a client may choose for a server, in bytes (RFC 9000, section 7.2).
pub const CHOSEN_ID_BYTES_MIN: usize = 8;
pub const ID_BYTES_MAX: usize = 20;

/// The versions that are served. Headers of all of them are those of version 1.
#[derive(Debug, Clone)]
pub struct Versions(Vec<u32>);

impl Versions {
    pub fn new(served: Vec<u32>) -> Self {
        Versions(served)
    }

    pub fn has(&self, version: u32) -> bool {
        self.0.contains(&version)
    }

    pub fn to_vec(&self) -> Vec<u32> {
        self.0.clone()
    }
}

/// The header of an Initial (RFC 9000, section 17.2.2), as far as it is readable without keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initial<'a> {
    pub version: u32,
    pub destination: &'a [u8],
    pub source: &'a [u8],
    /// Token; empty for none.
    pub token: &'a [u8],
}

impl<'a> Initial<'a> {
    /// Reads the first packet of a datagram, if it is one of a version that is served.
    pub fn parse(datagram: &'a [u8], versions: &Versions) -> Option<Self> {
        let rest = &mut &datagram[..];
        // Long header, type 0; the fixed bit may be greased (RFC 9287).
        if *rest.split_off_first()? & 0b1011_0000 != 0b1000_0000 {
            return None;
        }
        let version = u32::from_be_bytes(array(rest)?);
        if !versions.has(version) {
            return None;
        }
        let (destination, source) = (id(rest)?, id(rest)?);
        let token_bytes = usize::try_from(varint(rest)?).ok()?;
        let token = rest.split_off(..token_bytes)?;
        let length = varint(rest)?;
        (length <= rest.len() as u64).then_some(Initial { version, destination, source, token })
    }
}

/// The beginning of a datagram, up to the first packet of a kind that only servers send (RFC 9000, sections 17.2.1 and 17.2.5): such packets are
/// not protected, and last to the datagram's end.
pub fn of_a_client<'a>(datagram: &'a [u8], versions: &Versions) -> &'a [u8] {
    let mut rest = datagram;
    while has_long_header(rest) {
        let begins = datagram.len() - rest.len();
        match long_packet(&mut rest, versions) {
            Some(LongPacket::OfAServer) => return &datagram[..begins],
            Some(LongPacket::Protected) => {}
            // For the endpoint to refuse.
            None => break,
        }
    }
    datagram
}

enum LongPacket {
    /// Version Negotiation or Retry.
    OfAServer,
    /// Of a stated length.
    Protected,
}

/// Steps over a packet with a long header; over no more than its first bytes if it has no stated length.
fn long_packet(rest: &mut &[u8], versions: &Versions) -> Option<LongPacket> {
    let kind = *rest.split_off_first()? & 0x30;
    match u32::from_be_bytes(array(rest)?) {
        0 => return Some(LongPacket::OfAServer),
        version if versions.has(version) => {}
        _ => return None,
    }
    if kind == 0x30 {
        return Some(LongPacket::OfAServer);
    }
    id(rest)?;
    id(rest)?;
    if kind == 0 {
        let token_bytes = usize::try_from(varint(rest)?).ok()?;
        rest.split_off(..token_bytes)?;
    }
    let packet_bytes = usize::try_from(varint(rest)?).ok()?;
    rest.split_off(..packet_bytes)?;
    Some(LongPacket::Protected)
}

pub fn array<const BYTES: usize>(rest: &mut &[u8]) -> Option<[u8; BYTES]> {
    rest.split_off(..BYTES)?.try_into().ok()
}

/// A connection ID behind its length.
pub fn id<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(*rest.split_off_first()?);
    if length > ID_BYTES_MAX { None } else { rest.split_off(..length) }
}

/// RFC 9000, section 16.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let first = *rest.split_off_first()?;
    let mut value = u64::from(first & 0x3f);
    for _ in 1..1usize << (first >> 6) {
        value = value << 8 | u64::from(*rest.split_off_first()?);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISE: u32 = 0x5251_0301;

    fn served() -> Versions {
        Versions::new(vec![1, NOISE])
    }

    fn initial_packet(token: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xc3, 0, 0, 0, 1, 8];
        packet.extend([9; 8]);
        packet.extend([3, 5, 6, 7]);
        packet.extend((token.len() as u16 | 0x4000).to_be_bytes());
        packet.extend(token);
        let length = 1200 - packet.len() - 2;
        packet.extend((length as u16 | 0x4000).to_be_bytes());
        packet.resize(1200, 0);
        packet
    }

    fn of_version(mut packet: Vec<u8>, version: u32) -> Vec<u8> {
        packet[1..5].copy_from_slice(&version.to_be_bytes());
        packet
    }

    #[test]
    fn an_initial_of_every_version_that_is_served_is_read() {
        let packet = initial_packet(b"token");
        let expected = Initial { version: 1, destination: &[9; 8], source: &[5, 6, 7], token: b"token" };
        assert_eq!(Initial::parse(&packet, &served()), Some(expected));
        let packet = of_version(packet, NOISE);
        assert_eq!(Initial::parse(&packet, &served()), Some(Initial { version: NOISE, ..expected }));
        assert_eq!(Initial::parse(&packet, &Versions::new(vec![1])), None);
    }

    #[test]
    fn what_only_servers_send_is_cut_off_behind_packets_of_any_version_that_is_served() {
        for version in [1, NOISE] {
            let initial = of_version(initial_packet(&[]), version);
            let retry = of_version([&[0xf0][..], &initial[1..40]].concat(), version);
            let negotiation = of_version(initial.clone(), 0);
            for behind in [retry, negotiation] {
                let datagram = [&initial[..], &behind].concat();
                assert_eq!(of_a_client(&datagram, &served()), initial);
            }
            let unknown = of_version(initial.clone(), 2);
            let datagram = [&initial[..], &unknown].concat();
            assert_eq!(of_a_client(&datagram, &served()), datagram, "for the endpoint to refuse");
        }
    }

    #[test]
    fn what_is_no_initial_is_not_read_as_one() {
        let packet = initial_packet(b"token");
        assert_eq!(Initial::parse(&packet, &served()).unwrap().token, b"token");
        for bytes in 0..40 {
            assert_eq!(Initial::parse(&packet[..bytes], &served()), None, "{bytes} bytes");
        }
        let changed = |at: usize, value: u8| {
            let mut changed = packet.clone();
            changed[at] = value;
            Initial::parse(&changed, &served()).is_some()
        };
        assert!(changed(0, 0x83), "a greased fixed bit");
        assert!(!changed(0, 0x43), "a short header");
        assert!(!changed(0, 0xd3) && !changed(0, 0xe3) && !changed(0, 0xf3), "another type");
        assert!(!changed(4, 2), "another version");
        assert!(!changed(5, 21), "too long an ID");
        assert!(!changed(18, 0x7f), "a token longer than the packet");
    }
}
