//! How a client stands, for machines.

use serde::Serialize;
use tollgate_shards::{Assignment, Counters};

use crate::packet_io::Traffic;

/// What a client is doing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A handshake is under way, or the gateway's name is being resolved.
    #[default]
    Connecting,
    /// The tunnel is up.
    Connected,
    /// The next attempt is due later.
    Waiting,
}

/// How a client stands. Counters are those of all its connections together.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Status {
    /// The client's state.
    pub state: State,
    /// The addresses of its tunnel, kept while it is down.
    pub assignment: Option<Assignment>,
    /// The interface's name, once there is one.
    pub interface: Option<String>,
    /// Attempts to connect since the start.
    pub attempts: u64,
    /// Attempts that brought a tunnel up.
    pub tunnels: u64,
    /// How often a tunnel went on over another way to the gateway.
    pub path_changes: u64,
    /// How often interface, addresses or routes of the tunnel were put back after somebody else had changed them.
    pub restored: u64,
    /// What the engine counted. Up is towards the gateway.
    pub counters: Counters,
    /// What the descriptors moved.
    pub traffic: Traffic,
}

impl Status {
    /// One line of JSON.
    ///
    /// # Panics
    ///
    /// Never: numbers, addresses and names can always be written.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers, addresses and names can always be written")
    }

    /// Adds what one more connection has counted. Only what a client counts at all is added.
    pub(super) fn add(&mut self, connection: Counters) {
        let total = &mut self.counters;
        total.up_packets += connection.up_packets;
        total.up_bytes += connection.up_bytes;
        total.down_packets += connection.down_packets;
        total.down_bytes += connection.down_bytes;
        total.datagrams_received += connection.datagrams_received;
        total.datagrams_sent += connection.datagrams_sent;
        total.too_big_replies += connection.too_big_replies;
        total.narrowed_paths += connection.narrowed_paths;
        total.fragmented_packets += connection.fragmented_packets;
        total.own_packets += connection.own_packets;
        for (reason, packets) in connection.drops.iter() {
            total.drops.add(reason, packets);
        }
    }
}

#[cfg(test)]
mod tests {
    use tollgate_shards::DropReason;

    use super::*;

    #[test]
    fn the_counters_of_connections_add_up() {
        let mut connection =
            Counters { up_packets: 1, up_bytes: 2, down_packets: 3, down_bytes: 4, ..Counters::default() };
        connection.too_big_replies = 5;
        (connection.datagrams_received, connection.datagrams_sent) = (7, 8);
        connection.drops.add(DropReason::ForgedSource, 6);
        let mut status = Status::default();
        status.add(connection);
        status.add(connection);
        let total = status.counters;
        assert_eq!((total.up_packets, total.up_bytes, total.down_packets, total.down_bytes), (2, 4, 6, 8));
        assert_eq!((total.datagrams_received, total.datagrams_sent), (14, 16));
        assert_eq!((total.too_big_replies, total.drops.of(DropReason::ForgedSource)), (10, 12));
    }

    #[test]
    fn a_status_is_one_line_of_json() {
        let json = Status::default().to_json();
        assert!(json.starts_with(r#"{"state":"connecting","assignment":null,"interface":null,"attempts":0"#), "{json}");
        assert!(!json.contains('\n'));
    }
}
