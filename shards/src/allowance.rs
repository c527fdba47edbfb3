//! A limited user at an owner: the tokens on lease, and the packets that wait for more.
//!
//! This module mints no tokens.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::routes::ConnectionKey;
use crate::verdict::DropReason;

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

/// A packet that waits for tokens.
#[derive(Debug)]
pub struct Waiting {
    /// Whose connection it came from or goes to.
    pub connection: ConnectionKey,
    /// Which way.
    pub direction: Direction,
    /// The inner packet.
    pub packet: Bytes,
}

/// All connections of one limited user on one shard share one.
#[derive(Debug, Default)]
pub struct Allowance {
    tokens_bytes: u64,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    requested: bool,
    /// Connections that share it; the last one takes it away.
    pub connections: usize,
}

impl Allowance {
    /// Pays for a packet of `bytes`, unless it must wait: for tokens, or for those that came before it.
    pub fn spend(&mut self, bytes: usize) -> bool {
        let affordable = self.waiting.is_empty() && self.tokens_bytes >= bytes as u64;
        if affordable {
            self.tokens_bytes -= bytes as u64;
        }
        affordable
    }

    /// Lets a packet wait, while there is room for it in `waiting_bytes_max`.
    pub fn wait(
        &mut self,
        connection: ConnectionKey,
        direction: Direction,
        packet: &[u8],
        waiting_bytes_max: usize,
    ) -> Result<(), DropReason> {
        if self.waiting_bytes + packet.len() > waiting_bytes_max {
            return Err(DropReason::OverLimit);
        }
        self.waiting_bytes += packet.len();
        // Copied, because it would otherwise pin a receive buffer of 64 KiB for as long as it waits.
        self.waiting.push_back(Waiting { connection, direction, packet: Bytes::copy_from_slice(packet) });
        Ok(())
    }

    /// How many tokens to ask the home for; `None` if nothing waits or the answer is still under way.
    pub fn request(&mut self) -> Option<u64> {
        if self.requested || self.waiting.is_empty() {
            return None;
        }
        self.requested = true;
        Some((self.waiting_bytes as u64).saturating_sub(self.tokens_bytes).max(1))
    }

    /// Takes a lease.
    pub fn granted(&mut self, bytes: u64) {
        self.requested = false;
        self.tokens_bytes += bytes;
    }

    /// Pays for the packet that has waited longest, if the tokens suffice.
    pub fn next_affordable(&mut self) -> Option<Waiting> {
        let bytes = self.waiting.front()?.packet.len();
        if self.tokens_bytes < bytes as u64 {
            return None;
        }
        self.tokens_bytes -= bytes as u64;
        self.waiting_bytes -= bytes;
        self.waiting.pop_front()
    }

    /// One of the connections that share it is closed: its packets wait no longer.
    pub fn leave(&mut self, connection: ConnectionKey, dropped: &mut impl FnMut(&Waiting)) {
        self.connections -= 1;
        let waiting_bytes = &mut self.waiting_bytes;
        self.waiting.retain(|waiting| {
            let stays = waiting.connection != connection;
            if !stays {
                *waiting_bytes -= waiting.packet.len();
                dropped(waiting);
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection_id::ShardIndex;

    const CONNECTION: ConnectionKey = ConnectionKey { owner: ShardIndex(0), slot: 0, generation: 0 };

    #[test]
    fn packets_never_overtake_one_that_waits() {
        let mut allowance = Allowance::default();
        allowance.granted(100);
        assert!(allowance.spend(60));
        assert!(!allowance.spend(50));
        allowance.wait(CONNECTION, Direction::Up, &[0; 50], 1000).unwrap();
        assert!(!allowance.spend(1), "a small packet would overtake the large one");
        assert_eq!(allowance.request(), Some(10));
        assert_eq!(allowance.request(), None, "one request at a time");
        assert!(allowance.next_affordable().is_none());
        allowance.granted(10);
        assert_eq!(allowance.next_affordable().unwrap().packet.len(), 50);
        assert!(!allowance.spend(1), "all tokens are spent");
    }

    #[test]
    fn packets_of_a_connection_that_leaves_wait_no_longer() {
        let mut allowance = Allowance { connections: 2, ..Allowance::default() };
        let other = ConnectionKey { slot: 1, ..CONNECTION };
        for (connection, bytes) in [(CONNECTION, 100), (other, 200), (CONNECTION, 300)] {
            allowance.wait(connection, Direction::Down, &vec![0; bytes], 600).unwrap();
        }
        let mut left = Vec::new();
        allowance.leave(CONNECTION, &mut |waiting| left.push(waiting.packet.len()));
        assert_eq!((left, allowance.connections), (vec![100, 300], 1));
        assert_eq!(allowance.request(), Some(200), "only the other's bytes are wanted");
        assert!(allowance.wait(other, Direction::Up, &[0; 400], 600).is_ok(), "there is room again");
        allowance.granted(600);
        assert_eq!(allowance.next_affordable().unwrap().connection, other);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut allowance = Allowance::default();
        allowance.wait(CONNECTION, Direction::Down, &[0; 600], 1000).unwrap();
        assert_eq!(allowance.wait(CONNECTION, Direction::Down, &[0; 600], 1000), Err(DropReason::OverLimit));
    }
}
