//! Fragments that the gateway has made, put together again (RFC 791, section 3.2).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::{CE, Place, wire};
use crate::schedule::Time;

/// Identifications of packets that may be fragmented on the way; those of packets that are fragments from the beginning are less.
pub const IDENTIFICATION_MIN: u16 = 0x8000;
/// Fragments of one packet that are further apart are of two.
const TOGETHER: Duration = Duration::from_secs(10);

const MORE_AND_OFFSET: u16 = wire::MORE_FRAGMENTS | 0x1fff;

type Key = (u32, u64, IpAddr, IpAddr, u16);

#[derive(Debug, Default)]
pub struct Reassembly {
    parts: BTreeMap<Key, Parts>,
}

#[derive(Debug)]
struct Parts {
    since: Time,
    header: Vec<u8>,
    /// By their places in the payload.
    pieces: BTreeMap<usize, Vec<u8>>,
    payload_bytes: Option<usize>,
}

/// What has arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Something else.
    Foreign,
    /// Others are still to come.
    Waits,
    /// The last one of this packet.
    Whole(Vec<u8>),
}

impl Reassembly {
    pub fn arrives(&mut self, now: Time, (at, session): (Place, u64), packet: &[u8]) -> Result<Piece, String> {
        let Place::Client(device) = at else { return Ok(Piece::Foreign) };
        let Some((field, key)) = read(device, session, packet) else { return Ok(Piece::Foreign) };
        if !wire::header_checksum_is_right(packet) {
            return Err("a fragment has a wrong header checksum".to_owned());
        }
        self.parts.retain(|_, parts| now - parts.since < TOGETHER);
        let (header, piece) = packet.split_at(usize::from(packet[0] & 0xf) * 4);
        let place = usize::from(field & 0x1fff) * 8;
        let new = Parts { since: now, header: header.to_vec(), pieces: BTreeMap::new(), payload_bytes: None };
        let parts = self.parts.entry(key).or_insert(new);
        let before = parts.pieces.range(..=place).next_back().map_or(0, |(at, piece)| at + piece.len());
        let after = parts.pieces.range(place + 1..).next().map_or(usize::MAX, |(&at, _)| at);
        let is_last = field & wire::MORE_FRAGMENTS == 0;
        if before > place || place + piece.len() > after || !is_last && piece.len() % 8 != 0 {
            return Err(format!("a fragment of {} bytes at {place} overlaps others or leaves a gap", piece.len()));
        }
        if is_last {
            parts.payload_bytes = Some(place + piece.len());
        }
        if wire::ecn_of(packet) == CE {
            parts.header[1] |= CE;
        }
        parts.pieces.insert(place, piece.to_vec());
        let Some(packet) = parts.whole() else { return Ok(Piece::Waits) };
        self.parts.remove(&key);
        Ok(Piece::Whole(packet))
    }
}

impl Parts {
    fn whole(&self) -> Option<Vec<u8>> {
        let payload: Vec<u8> = self.pieces.values().flatten().copied().collect();
        if self.payload_bytes != Some(payload.len()) {
            return None;
        }
        let mut packet = [&self.header[..], &payload].concat();
        let packet_bytes = packet.len() as u16;
        wire::set_u16(&mut packet, 2, packet_bytes);
        wire::set_u16(&mut packet, 6, 0);
        wire::renew_header_checksum(&mut packet);
        Some(packet)
    }
}

/// The flags and the offset of a fragment that was made on the way, and what it is of.
fn read(device: u32, session: u64, packet: &[u8]) -> Option<(u16, Key)> {
    if wire::is_v6(packet) {
        return None;
    }
    wire::header_bytes(packet)?;
    let (identification, field) = (wire::u16_at(packet, 4)?, wire::u16_at(packet, 6)?);
    let (source, destination) = wire::addresses_of(packet)?;
    let is_made_on_the_way = identification >= IDENTIFICATION_MIN && field & MORE_AND_OFFSET != 0;
    is_made_on_the_way.then_some((field, (device, session, source, destination, identification)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::wire::{Ip, UDP};

    fn fragment(field: u16, payload: &[u8]) -> Vec<u8> {
        let [source, destination] = [[192, 0, 2, 1], [10, 77, 0, 2]].map(IpAddr::from);
        let ip = Ip { source, destination, protocol: UDP, traffic_class: 0, identification: 0x8007, fragment: field };
        ip.packet(payload)
    }

    #[test]
    fn fragments_in_any_order_make_the_packet_and_others_are_found() {
        let payload: Vec<u8> = (0..40).collect();
        let parts = [
            fragment(wire::MORE_FRAGMENTS, &payload[..16]),
            fragment(wire::MORE_FRAGMENTS | 2, &payload[16..32]),
            fragment(4, &payload[32..]),
        ];
        let at = (Place::Client(3), 1);
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let mut reassembly = Reassembly::default();
            let mut arrives = |place: usize| reassembly.arrives(Time::default(), at, &parts[place]).unwrap();
            assert_eq!((arrives(order[0]), arrives(order[1])), (Piece::Waits, Piece::Waits));
            assert_eq!(arrives(order[2]), Piece::Whole(fragment(0, &payload)));
        }
        let mut reassembly = Reassembly::default();
        reassembly.arrives(Time::default(), at, &parts[0]).unwrap();
        assert!(reassembly.arrives(Time::default(), at, &fragment(1, &payload[8..])).is_err());
        assert!(reassembly.arrives(Time::default(), at, &fragment(wire::MORE_FRAGMENTS | 2, &payload[..9])).is_err());
        assert_eq!(reassembly.arrives(Time::default(), at, &fragment(0, &payload)), Ok(Piece::Foreign));
    }
}
