//! The one message of Quincy's protocol: the addresses of a new client, as JSON on the server's first unidirectional stream.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::excerpt::excerpt;

/// Longest message that a client reads on a stream, in bytes.
pub const STREAM_MESSAGE_BYTES_MAX: usize = 4096;

/// What the gateway tells a client. Unknown keys are ignored, so that later versions may add some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The client's inner address, with the prefix of the tunnel network.
    pub client_address: IpNet,
    /// The gateway's inner address, with the same prefix.
    pub server_address: IpNet,
}

/// Why a client cannot use what it was told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    /// Not the JSON object that it should be.
    #[error("the gateway's address assignment cannot be read: {0}")]
    Unreadable(String),
    /// Longer than a client reads.
    #[error("the gateway's address assignment is longer than {STREAM_MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    /// An address that no host can have.
    #[error("the gateway assigned {0}, which is not the address of a host")]
    NotAHost(IpNet),
    /// Addresses that cannot reach each other.
    #[error("the gateway assigned {client}, but calls itself {server}: neither network contains the other's address")]
    Unrelated { client: IpNet, server: IpNet },
}

impl Assignment {
    /// `address` as a client of `tunnel`, whose host part is the gateway's own address.
    pub fn new(tunnel: IpNet, address: IpAddr) -> Self {
        let client_address =
            IpNet::new(address, tunnel.prefix_len()).expect("a leased address is of the tunnel's family");
        Assignment { client_address, server_address: tunnel }
    }

    pub fn to_json(self) -> Vec<u8> {
        serde_json::to_vec(&self).expect("two addresses can always be written")
    }

    /// As received, checked.
    ///
    /// # Errors
    ///
    /// If it cannot be read or makes no sense.
    pub fn from_json(json: &[u8]) -> Result<Self, AssignmentError> {
        let assignment: Assignment = serde_json::from_slice(json)
            .map_err(|error| AssignmentError::Unreadable(excerpt(error.to_string().as_bytes())))?;
        let Assignment { client_address: client, server_address: server } = assignment;
        for net in [client, server] {
            let address = net.addr();
            let wide = net.max_prefix_len() - net.prefix_len() > 1;
            let broadcast = net.addr().is_ipv4() && wide && address == net.broadcast();
            if address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || broadcast
                || net.prefix_len() == 0
            {
                return Err(AssignmentError::NotAHost(net));
            }
        }
        if !client.contains(&server.addr()) || !server.contains(&client.addr()) {
            return Err(AssignmentError::Unrelated { client, server });
        }
        Ok(assignment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_quincys() {
        let assignment = Assignment::new("198.51.100.1/24".parse().unwrap(), IpAddr::from([198, 51, 100, 2]));
        let json = r#"{"client_address":"198.51.100.2/24","server_address":"198.51.100.1/24"}"#;
        assert_eq!(assignment.to_json(), json.as_bytes());
        assert_eq!(Assignment::from_json(json.as_bytes()), Ok(assignment));
    }

    #[test]
    fn extra_keys_are_ignored() {
        let json = br#"{"mtu":1400,"client_address":"fd00::2/64","server_address":"fd00::1/64"}"#;
        assert!(Assignment::from_json(json).is_ok());
    }

    #[test]
    fn senseless_addresses_are_refused() {
        for (client, server) in [
            ("127.0.0.2/8", "127.0.0.1/8"),
            ("198.18.0.255/24", "198.18.0.1/24"),
            ("198.18.0.2/0", "198.18.0.1/0"),
            ("198.18.0.2/24", "198.18.1.1/24"),
            ("224.0.0.2/24", "224.0.0.1/24"),
            ("fd00::2/64", "198.18.0.1/24"),
        ] {
            let json = format!(r#"{{"client_address":"{client}","server_address":"{server}"}}"#);
            assert!(Assignment::from_json(json.as_bytes()).is_err(), "{json}");
        }
        assert!(matches!(Assignment::from_json(b"{"), Err(AssignmentError::Unreadable(_))));
    }
}
