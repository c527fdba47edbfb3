//! What a shard has done, in numbers. Plain integers: whoever reads them copies them out between two passes.

use serde::{Deserialize, Serialize};

use crate::deadlines::SessionEnds;
use crate::drops::Drops;
use crate::durations::Durations;
use crate::handshake_counts::HandshakeCounts;

/// A shard's counters since its start. What an earlier version does not count reads as 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Inner packets from clients that went to the TUN.
    pub up_packets: u64,
    /// Bytes of those packets.
    pub up_bytes: u64,
    /// Those among them that were TCP acknowledgements and superseded by later ones, which went in their place.
    pub thinned_acks: u64,
    /// Inner packets queued for clients. Each is then in a DATAGRAM frame that was sent, or dropped when its connection closed
    /// or memory ran out.
    pub down_packets: u64,
    /// Bytes of those packets.
    pub down_bytes: u64,
    /// DATAGRAM frames received (RFC 9221), one to an inner packet, over all connections there were.
    pub datagrams_received: u64,
    /// DATAGRAM frames sent, likewise.
    pub datagrams_sent: u64,
    /// Inner packets from one client to another.
    pub relayed_packets: u64,
    /// TUN frames that arrived at the wrong shard and went over the mesh.
    pub misrouted_frames: u64,
    /// UDP datagrams that arrived at the wrong shard and went over the mesh.
    pub misrouted_datagrams: u64,
    /// Retry packets sent (RFC 9000, section 8.1.2).
    pub retries: u64,
    /// Handshakes completed by clients that are known.
    pub handshakes: u64,
    /// Handshakes that are over, those among them.
    pub handshake_ends: HandshakeCounts,
    /// Responses outside any connection, mostly stateless resets (RFC 9000, section 10.3).
    pub stateless_responses: u64,
    /// ICMP "packet too big" sent.
    pub too_big_replies: u64,
    /// Times that a path was found to carry less than before (RFC 8899, section 4.3).
    pub narrowed_paths: u64,
    /// Those that carry less than the 1,280 bytes that the tunnel's IPv6 needs (RFC 8200, section 5).
    pub too_narrow_paths: u64,
    /// Packets that were fragmented because the client's path carries less (RFC 791).
    pub fragmented_packets: u64,
    /// Inner packets to the peer that did not come in from anywhere: answers, fragments beyond the first, and those that confirm what a path
    /// carries. With them, what came in is what went out or was dropped.
    pub own_packets: u64,
    /// Messages sent to other shards.
    pub messages: u64,
    /// Sessions that have ended at a deadline.
    pub session_ends: SessionEnds,
    /// Leases begun, of users who have, or had, connections here.
    pub leases: u64,
    /// Grants of tokens that have come on them.
    pub lease_grants: u64,
    /// Leases that are open.
    pub open_leases: u64,
    /// Packets of limited users that wait for tokens.
    pub waiting_packets: u64,
    /// How long those have waited that went.
    pub waits: Durations,
    /// Packets queued to be sent to clients.
    pub queued_packets: u64,
    /// Connections whose user this shard is home to.
    pub connections: u64,
    /// Users with a session at this shard.
    pub users: u64,
    /// Events for the log that were not told of one by one, because there were too many at once.
    pub forgotten_events: u64,
    /// Packets dropped, by reason.
    pub drops: Drops,
}

impl Counters {
    /// What has been counted in all, where `earlier` was counted before the shard was started anew. What a shard has now stays its own.
    #[must_use]
    pub fn beside(self, earlier: &Counters) -> Self {
        Counters {
            up_packets: self.up_packets + earlier.up_packets,
            up_bytes: self.up_bytes + earlier.up_bytes,
            thinned_acks: self.thinned_acks + earlier.thinned_acks,
            down_packets: self.down_packets + earlier.down_packets,
            down_bytes: self.down_bytes + earlier.down_bytes,
            datagrams_received: self.datagrams_received + earlier.datagrams_received,
            datagrams_sent: self.datagrams_sent + earlier.datagrams_sent,
            relayed_packets: self.relayed_packets + earlier.relayed_packets,
            misrouted_frames: self.misrouted_frames + earlier.misrouted_frames,
            misrouted_datagrams: self.misrouted_datagrams + earlier.misrouted_datagrams,
            retries: self.retries + earlier.retries,
            handshakes: self.handshakes + earlier.handshakes,
            handshake_ends: self.handshake_ends.beside(&earlier.handshake_ends),
            stateless_responses: self.stateless_responses + earlier.stateless_responses,
            too_big_replies: self.too_big_replies + earlier.too_big_replies,
            narrowed_paths: self.narrowed_paths + earlier.narrowed_paths,
            too_narrow_paths: self.too_narrow_paths + earlier.too_narrow_paths,
            fragmented_packets: self.fragmented_packets + earlier.fragmented_packets,
            own_packets: self.own_packets + earlier.own_packets,
            messages: self.messages + earlier.messages,
            forgotten_events: self.forgotten_events + earlier.forgotten_events,
            session_ends: self.session_ends.beside(&earlier.session_ends),
            leases: self.leases + earlier.leases,
            lease_grants: self.lease_grants + earlier.lease_grants,
            waits: self.waits.beside(&earlier.waits),
            open_leases: self.open_leases,
            waiting_packets: self.waiting_packets,
            queued_packets: self.queued_packets,
            connections: self.connections,
            users: self.users,
            drops: self.drops.beside(&earlier.drops),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drops::DropReason;

    #[test]
    fn what_was_counted_before_stays_counted_and_what_a_shard_had_is_gone() {
        let mut earlier = Counters { up_packets: 5, retries: 1, connections: 7, users: 3, ..Counters::default() };
        earlier.drops.add(DropReason::Isolated, 2);
        let mut now = Counters { up_packets: 1, connections: 2, users: 1, ..Counters::default() };
        now.drops.add(DropReason::Isolated, 4);
        let all = now.beside(&earlier);
        assert_eq!((all.up_packets, all.retries, all.connections, all.users), (6, 1, 2, 1));
        assert_eq!((all.drops.of(DropReason::Isolated), all.drops.total()), (6, 6));
    }
}
