//! What the path to a peer carries (RFC 8899), as far as it is told to those who send through the tunnel.
//!
//! quinn-proto searches for the path's MTU and notices, by losses, that it has shrunk. This module makes it notice soon, and tells of a
//! change only when the search has come to rest: senders remember for minutes what they are told.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::ConnectionStats;

use crate::quic::transport::UDP_PAYLOAD_BYTES_MIN;

/// Large packets with small ones between that are sent when all that were lost are large. quinn-proto takes four bursts of lost packets, none
/// with a small one, for a path that has shrunk.
const CONFIRMATIONS: u8 = 4;
/// Small packets behind a probe: by them it is known after one round trip that the probe was lost (RFC 9002, section 6.1.1), and not only when
/// the peer's silence is noticed.
const SMALL_BEHIND_PROBE: u8 = 3;
/// For how long nothing must change, beyond two round trips, until a search has come to rest. A lost probe is repeated sooner.
const QUIET: Duration = Duration::from_millis(100);
/// Packets that were too large while a search went on, and are answered after it. The oldest gives way.
const UNANSWERED_MAX: usize = 16;
/// Of each so many bytes, enough for an ICMP message to quote.
const HEAD_BYTES_MAX: usize = 128;

#[derive(Debug, Default)]
pub struct PathMtu {
    /// Largest inner packet, as told. 0 before anything has been.
    told_bytes: usize,
    /// Statistics as of the last look.
    seen: Seen,
    /// When the search will have come to rest, while one goes on.
    quiet_at: Option<Instant>,
    /// Whether the peer's silence made the connection ask for a sign of life since the last acknowledgement.
    asked: bool,
    confirmation: Confirmation,
    /// Small packets to be sent behind a probe.
    small_packets: u8,
    unanswered: VecDeque<Unanswered>,
}

/// A packet that was too large for what the path carried at that moment.
#[derive(Debug)]
pub struct Unanswered {
    pub head: Bytes,
    /// Its length, or that of each of its segments.
    pub packet_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    udp_payload_bytes: u16,
    probes: u64,
    black_holes: u64,
    lost_packets: u64,
    lost_bytes: u64,
    pings: u64,
    acks: u64,
}

/// Large packets and small ones in turn.
#[derive(Debug, Default)]
enum Confirmation {
    #[default]
    None,
    /// One has begun, and lacks its packet.
    Wanted,
    /// So many large packets are to be sent yet, each followed by a small one.
    Running { filler: Bytes, left: u8, small_next: bool },
}

/// What is sent next to confirm a suspicion.
#[derive(Debug)]
pub enum Confirm {
    /// This inner packet, which its receiver ignores.
    Large(Bytes),
    /// A PING frame.
    Small,
}

impl PathMtu {
    /// Looks at a connection's statistics, once a batch.
    pub fn observe(&mut self, now: Instant, stats: &ConnectionStats, rtt: Duration) {
        let path = &stats.path;
        let new = Seen {
            udp_payload_bytes: path.current_mtu,
            probes: path.sent_plpmtud_probes,
            black_holes: path.black_holes_detected,
            lost_packets: path.lost_packets,
            lost_bytes: path.lost_bytes,
            pings: stats.frame_tx.ping,
            acks: stats.frame_rx.acks,
        };
        let old = std::mem::replace(&mut self.seen, new);
        let has_moved = old.udp_payload_bytes != new.udp_payload_bytes || old.probes != new.probes;
        if has_moved && self.told_bytes > 0 {
            self.quiet_at = Some(now + QUIET + 2 * rtt);
        }
        if old.probes != new.probes {
            self.small_packets = SMALL_BEHIND_PROBE;
        }
        let (lost_packets, lost_bytes) = (new.lost_packets - old.lost_packets, new.lost_bytes - old.lost_bytes);
        let all_large = lost_packets > 0 && lost_bytes > lost_packets * u64::from(UDP_PAYLOAD_BYTES_MIN);
        let is_idle = matches!(self.confirmation, Confirmation::None);
        if all_large && self.asked && is_idle && new.udp_payload_bytes > UDP_PAYLOAD_BYTES_MIN {
            self.confirmation = Confirmation::Wanted;
        }
        if new.acks != old.acks {
            self.asked = false;
        }
        self.asked |= new.pings != old.pings;
        if new.black_holes != old.black_holes {
            self.confirmation = Confirmation::None;
        }
    }

    /// Largest inner packet that the path carries, as it may be told; `carried_bytes` is what it carries now.
    pub fn tell(&mut self, now: Instant, carried_bytes: usize) -> usize {
        if self.told_bytes == 0 || self.quiet_at.is_none_or(|at| at <= now) {
            self.quiet_at = self.quiet_at.filter(|at| *at > now);
            self.told_bytes = carried_bytes;
        }
        self.told_bytes
    }

    /// When a search comes to rest, if one goes on.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.quiet_at
    }

    /// Whether what the path carries is not known well enough to be told.
    pub fn is_searching(&self) -> bool {
        self.quiet_at.is_some()
    }

    /// Keeps the start of a packet that is too large now, to answer it when the search has come to rest.
    pub fn answer_later(&mut self, packet: &[u8], packet_bytes: usize) {
        if self.unanswered.len() == UNANSWERED_MAX {
            self.unanswered.pop_front();
        }
        let head = Bytes::copy_from_slice(&packet[..packet.len().min(HEAD_BYTES_MAX)]);
        self.unanswered.push_back(Unanswered { head, packet_bytes });
    }

    /// Whether there are packets to answer, and the search is over.
    pub fn has_unanswered(&self) -> bool {
        !self.unanswered.is_empty() && !self.is_searching()
    }

    /// The next packet to answer now that the search is over: those that fit what is told are forgotten.
    pub fn poll_unanswered(&mut self) -> Option<Unanswered> {
        if self.is_searching() {
            return None;
        }
        let told_bytes = self.told_bytes;
        std::iter::from_fn(|| self.unanswered.pop_front()).find(|packet| packet.packet_bytes > told_bytes)
    }

    /// Whether there is something to send that nobody else has asked for. `filler` makes a packet as large as the path is thought to carry, which
    /// its receiver ignores.
    pub fn has_confirmation(&mut self, filler: impl FnOnce() -> Option<Bytes>) -> bool {
        if let Confirmation::Wanted = self.confirmation
            && let Some(filler) = filler()
        {
            self.confirmation = Confirmation::Running { filler, left: CONFIRMATIONS, small_next: false };
        }
        self.small_packets > 0 || matches!(self.confirmation, Confirmation::Running { .. })
    }

    /// What to send next to learn what the path carries.
    pub fn poll_confirmation(&mut self) -> Option<Confirm> {
        if self.small_packets > 0 {
            self.small_packets -= 1;
            return Some(Confirm::Small);
        }
        let Confirmation::Running { filler, left, small_next } = &mut self.confirmation else { return None };
        *small_next = !*small_next;
        if *small_next {
            return Some(Confirm::Large(filler.clone()));
        }
        *left -= 1;
        if *left == 0 {
            self.confirmation = Confirmation::None;
        }
        Some(Confirm::Small)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_packets_that_are_answered_after_the_search_the_newest_are_kept_by_their_beginnings() {
        let mut path = PathMtu { told_bytes: 1000, ..PathMtu::default() };
        (0..3 * UNANSWERED_MAX).for_each(|number| path.answer_later(&[number as u8; 1400], 1400));
        let answered: Vec<_> = std::iter::from_fn(|| path.poll_unanswered()).collect();
        let expected = (2 * UNANSWERED_MAX..3 * UNANSWERED_MAX).map(|number| vec![number as u8; HEAD_BYTES_MAX]);
        assert_eq!(
            answered.iter().map(|packet| packet.head.to_vec()).collect::<Vec<_>>(),
            expected.collect::<Vec<_>>()
        );
    }
}
