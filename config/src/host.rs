//! The table `[host]`.

use crate::kind::switch;
use crate::schema::{RESTART, table};

table! {
    /// What the gateway sets up on its machine, by nftables and the kernel's settings, so that its clients reach what is behind it. Its rules are in a
    /// table of their own, named after the interface, and go with the gateway.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct HostSettings of Tollgate {
        /// Whether clients' packets leave this machine with the machine's own address. Turns forwarding on too.
        "masquerade" => masquerade: bool = false, switch(), RESTART;
        /// Whether the machine forwards packets of the tunnel's protocol, IPv4 or IPv6, between all its interfaces. It stays on when the gateway ends: other
        /// programs may have come to need it.
        "forwarding" => forwarding: bool = false, switch(), RESTART;
        /// Whether the segment size that both ends of a TCP connection through the tunnel offer is lowered to what the route carries. For servers that never
        /// hear an ICMP "packet too big".
        "mss_clamp" => mss_clamp: bool = false, switch(), RESTART;
    }
}

impl HostSettings {
    /// Whether the kernel has to forward.
    pub fn needs_forwarding(&self) -> bool {
        self.forwarding || self.masquerade
    }

    /// Whether there are rules for nftables.
    pub fn needs_rules(&self) -> bool {
        self.masquerade || self.mss_clamp
    }
}
