//! Every segment that was sent, and the oracle that follows it: each arrives once at most, as it was sent, where it may, and in the order of its
//! connection.

use std::hash::Hasher;

use rustc_hash::FxHashMap;
use siphasher::sip::SipHasher13;

use super::segment::Segment;
use crate::packets::{Arrival, CE, Origin, Place, Way, wire};
use crate::schedule::Time;

/// What one acknowledgement may cover when it goes in the place of others, in bytes: a super-packet.
const COVERED_BYTES_MAX: u32 = 65_536;

/// All segments of a run.
#[derive(Debug, Default)]
pub struct Book {
    keeps_order: bool,
    pub delivered: u64,
    records: Vec<Record>,
    /// Those under way, by what they look like, oldest first. Two may look the same.
    under_way: FxHashMap<u64, Vec<u32>>,
    /// The last that has arrived of an end of a connection, in a session of its device's, at a place.
    last: FxHashMap<(u32, usize, u64, Place), u32>,
    /// How many frames that look so the kernel has written, and how many of them have crossed from one shard to another.
    frames: FxHashMap<u64, (u32, u32)>,
}

#[derive(Debug)]
struct Record {
    origin: Origin,
    connection: u32,
    side: usize,
    identification: u16,
    may_be_fragmented: bool,
    ecn: u8,
    ack: u32,
    seq: u32,
    /// Whether it acknowledges and does nothing else.
    is_pure: bool,
    is_damaged: bool,
    arrived: bool,
}

impl Book {
    pub fn new(keeps_order: bool) -> Self {
        Book { keeps_order, ..Book::default() }
    }

    pub fn made(&self) -> u64 {
        self.records.len() as u64
    }

    /// Packets are about to be sent, maybe as one super-packet.
    pub fn sends(&mut self, origin: Origin, (connection, side): (u32, usize), packets: &[Vec<u8>]) {
        for packet in packets {
            let (is_v6, segment) = (wire::is_v6(packet), Segment::read(packet).map(|(_, segment)| segment));
            let record = Record {
                origin,
                connection,
                side,
                identification: if is_v6 { 0 } else { wire::u16_at(packet, 4).unwrap_or(0) },
                may_be_fragmented: !is_v6 && packet[6] & 0x40 == 0,
                ecn: wire::ecn_of(packet),
                ack: segment.as_ref().map_or(0, |segment| segment.ack),
                seq: segment.as_ref().map_or(0, |segment| segment.seq),
                is_pure: segment.is_some_and(|segment| segment.is_pure_ack()),
                is_damaged: !wire::transport_checksum_is_right(packet),
                arrived: false,
            };
            self.under_way.entry(look_of(packet)).or_default().push(self.records.len() as u32);
            self.records.push(record);
        }
    }

    /// The kernel writes a frame.
    pub fn writes(&mut self, frame: &[u8]) {
        self.frames.entry(hash_of(frame)).or_default().0 += 1;
    }

    /// A frame of the TUN crosses from one shard to another: once, or it might go round.
    pub fn crosses(&mut self, frame: &[u8]) -> Result<(), String> {
        let (written, crossed) = self.frames.entry(hash_of(frame)).or_default();
        *crossed += 1;
        if crossed > written {
            return Err("a frame of TCP crosses from shard to shard a second time".to_owned());
        }
        Ok(())
    }

    /// A segment has arrived; of several that had been merged, number `index` of `count`. Returns what is known of it.
    pub fn arrives(
        &mut self,
        at: Place,
        packet: &[u8],
        (index, count): (usize, usize),
    ) -> Result<(Origin, Arrival), String> {
        let same = self.under_way.get(&look_of(packet)).filter(|same| !same.is_empty());
        let Some(same) = same else {
            let what = Segment::read(packet).map(|(ends, segment)| (ends, Segment { payload: Vec::new(), ..segment }));
            let bytes = packet.len();
            return Err(format!(
                "a TCP packet of {bytes} bytes that nobody sent, or that has arrived before: {what:?}"
            ));
        };
        if !wire::is_v6(packet) && !wire::header_checksum_is_right(packet) {
            return Err("a TCP packet has a wrong IPv4 header checksum".to_owned());
        }
        // Of what was merged and may not be fragmented, the first one's identification is kept (RFC 6864, section 4.1).
        let is_kept = |record: &Record| record.may_be_fragmented || index == 0 || count == 1;
        let identification = if wire::is_v6(packet) { 0 } else { wire::u16_at(packet, 4).unwrap_or(0) };
        let ecn = wire::ecn_of(packet);
        let is_it = |record: &Record| {
            (record.ecn == ecn || record.ecn != 0 && ecn == CE)
                && (record.identification == identification || !is_kept(record))
        };
        let key = |record: &Record| (record.connection, record.side, record.origin.session, at);
        let fits = || same.iter().filter(|&&it| is_it(&self.records[it as usize]));
        // What went into an earlier session of the device's, and looks the same, may have been lost with it.
        let session = fits().map(|&it| self.records[it as usize].origin.session).max();
        let is_next = |&&it: &&u32| {
            let record = &self.records[it as usize];
            Some(record.origin.session) == session && self.last.get(&key(record)).is_none_or(|&last| last < it)
        };
        let found = fits().find(is_next).or_else(|| fits().next());
        // Of repetitions that look the same, any may be the one that has arrived: how long it took, only the newest one tells.
        let newest = fits().map(|&it| self.records[it as usize].origin.made).max();
        let Some(&found) = found else {
            let before = same.iter().map(|&it| &self.records[it as usize]);
            let before: Vec<_> = before.map(|record| (record.ecn, record.identification)).collect();
            return Err(format!(
                "ECN and identification of a TCP packet went from {before:?} to {ecn}, {identification}"
            ));
        };
        self.under_way.entry(look_of(packet)).and_modify(|same| same.retain(|&it| it != found));
        let record = &mut self.records[found as usize];
        record.arrived = true;
        self.delivered += 1;
        let origin = record.origin;
        let key = (record.connection, record.side, origin.session, at);
        let last = self.last.insert(key, found).unwrap_or(0);
        if self.keeps_order && last > found {
            return Err(format!("a TCP packet of {} s arrived behind a later one of its connection", origin.made));
        }
        let made = newest.unwrap_or(origin.made);
        Ok((origin, Arrival { from: origin.from, made, bytes: packet.len() as u64 }))
    }

    /// The ways of what has not arrived, and when it was made.
    pub fn lost(&self) -> impl Iterator<Item = (Way, Time)> {
        self.records.iter().filter(|record| !record.arrived).map(|record| (record.origin.way, record.origin.made))
    }

    /// Where nothing was lost since `since`: what is missing of these connections' ends must be acknowledgements that others supersede, and only
    /// where some may be left out at all. Returns how many there are at the TUN.
    pub fn superseded(&self, since: Time, ends: impl Iterator<Item = ((u32, usize), bool)>) -> Result<u64, String> {
        let begin = self.records.partition_point(|record| record.origin.made < since);
        let mut missing = 0;
        for ((connection, side), may_be_left_out) in ends {
            let is_its = |record: &&Record| (record.connection, record.side) == (connection, side);
            let mut gap: Vec<&Record> = Vec::new();
            for record in self.records[begin..].iter().filter(is_its) {
                if !record.arrived {
                    gap.push(record);
                    continue;
                }
                supersedes(record, &gap)?;
                missing += gap.iter().filter(|lost| lost.origin.way == Way::Network).count() as u64;
                if !gap.is_empty() && !may_be_left_out {
                    return Err(format!("a TCP packet of {} s is lost", gap[0].origin.made));
                }
                gap.clear();
            }
            if let Some(lost) = gap.first() {
                return Err(format!("a TCP packet of {} s is lost, and was superseded by none", lost.origin.made));
            }
        }
        Ok(missing)
    }
}

/// Whether `later`, which has arrived, says all that those before it said (RFC 3449, section 5.2.1).
fn supersedes(later: &Record, gap: &[&Record]) -> Result<(), String> {
    for lost in gap {
        let is_superseded = lost.is_pure
            && later.is_pure
            && !later.is_damaged
            && lost.seq == later.seq
            && (1..1 << 31).contains(&later.ack.wrapping_sub(lost.ack));
        if !is_superseded {
            let made = lost.origin.made;
            return Err(format!("a TCP packet of {made} s is lost, and the next one says less: {lost:?}, {later:?}"));
        }
    }
    let covered = gap.first().map_or(0, |first| later.ack.wrapping_sub(first.ack));
    if covered > COVERED_BYTES_MAX {
        let made = later.origin.made;
        return Err(format!("the acknowledgement of {made} s covers {covered} bytes in the place of others"));
    }
    Ok(())
}

/// What does not change on the way: all but ECN, and of IPv4 identification and header checksum. A checksum of 0 has two forms, and what is merged and
/// taken apart may change from one to the other.
fn look_of(packet: &[u8]) -> u64 {
    let mut look = packet.to_vec();
    if wire::is_v6(packet) {
        look[1] &= !(CE << 4);
    } else {
        look[1] &= !CE;
        look[4..6].fill(0);
        look[10..12].fill(0);
    }
    let checksum = wire::header_bytes(packet).map(|at| at + wire::checksum_offset(wire::TCP));
    if let Some(at) = checksum.filter(|&at| wire::u16_at(packet, at) == Some(0xffff)) {
        look[at..at + 2].fill(0);
    }
    hash_of(&look)
}

fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::segment::{ACK, ECE, ECT_0, Ends};
    use super::*;

    const NOW: Time = Time { ns: 1000 };

    fn packet(segment: &Segment, ecn: u8, identification: u16) -> Vec<u8> {
        let ends = Ends { source: ("198.18.0.2".parse().unwrap(), 5), destination: ("192.0.2.1".parse().unwrap(), 6) };
        segment.packet(&ends, ecn, identification, false)
    }

    fn ack(number: u32) -> Segment {
        Segment { flags: ACK, ack: number, ..Segment::default() }
    }

    fn book_of(packets: &[Vec<u8>]) -> Book {
        let mut book = Book::new(true);
        let origin = Origin { from: Place::Client(3), session: 1, made: NOW, way: Way::Network };
        book.sends(origin, (0, 0), packets);
        book
    }

    #[test]
    fn what_arrives_as_it_was_sent_and_in_order_is_right_and_nothing_else() {
        let packets = [packet(&ack(1), ECT_0, 1), packet(&ack(2), 0, 2)];
        let arrives = |book: &mut Book, packet: &[u8]| book.arrives(Place::Tun, packet, (0, 1)).is_ok();
        let mut book = book_of(&packets);
        assert!(packets.iter().all(|packet| arrives(&mut book, packet)) && book.delivered == 2);
        assert!(!arrives(&mut book, &packets[0]), "twice");
        let mut book = book_of(&packets);
        assert!(arrives(&mut book, &packets[1]) && !arrives(&mut book, &packets[0]), "out of order");
        for (segment, ecn, identification, is_right) in [
            (ack(1), CE, 1, true),
            (ack(1), 0, 1, false),
            (ack(2), CE, 2, false),
            (ack(1), ECT_0, 3, false),
            (ack(3), ECT_0, 1, false),
            (Segment { flags: ACK | ECE, ..ack(1) }, ECT_0, 1, false),
        ] {
            let is_taken = arrives(&mut book_of(&packets), &packet(&segment, ecn, identification));
            assert_eq!(is_taken, is_right, "{segment:?} {ecn} {identification}");
        }
    }

    #[test]
    fn a_repetition_that_cannot_be_told_from_what_was_lost_is_as_old_as_the_newest() {
        let syn = packet(&ack(1), 0, 0);
        let mut book = book_of(std::slice::from_ref(&syn));
        let later = Time { ns: NOW.ns + 4_000_000_000 };
        book.sends(
            Origin { from: Place::Client(3), session: 1, made: later, way: Way::Network },
            (0, 0),
            std::slice::from_ref(&syn),
        );
        let (_, arrival) = book.arrives(Place::Tun, &syn, (0, 1)).unwrap();
        assert_eq!(arrival.made, later);
    }

    #[test]
    fn what_is_missing_is_superseded_or_was_lost() {
        let missing = |segments: &[Segment], arrived: &[usize]| {
            let packets: Vec<_> = (1..).zip(segments).map(|(number, segment)| packet(segment, 0, number)).collect();
            let mut book = book_of(&packets);
            for &index in arrived {
                book.arrives(Place::Tun, &packets[index], (0, 1)).unwrap();
            }
            book.superseded(NOW, [((0, 0), true)].into_iter())
        };
        let segments = [ack(1), ack(3000), ack(6000)];
        assert_eq!(missing(&segments, &[0, 1, 2]), Ok(0));
        assert_eq!(missing(&segments, &[0, 2]), Ok(1));
        assert!(missing(&segments, &[0, 1]).is_err(), "nothing behind it");
        assert!(missing(&[ack(1), ack(1)], &[1]).is_err(), "a repetition");
        assert!(missing(&[ack(1), ack(70_000)], &[1]).is_err(), "too much at once");
        let echo = Segment { flags: ACK | ECE, ..ack(1) };
        assert!(missing(&[echo.clone(), ack(2)], &[1]).is_err() && missing(&[ack(0), echo], &[1]).is_err());
        let sack = Segment { sack: vec![(4, 5)], ..ack(1) };
        assert!(missing(&[sack, ack(2)], &[1]).is_err());
    }
}
