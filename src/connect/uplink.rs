//! Where packets to the gateway leave this machine.

use std::net::IpAddr;

use crate::netlink::Netlink;

/// The way that packets to the gateway take outside the tunnel. Another one means that the gateway sees them come from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uplink {
    interface: u32,
    router: Option<IpAddr>,
    source: Option<IpAddr>,
    has_carrier: bool,
}

impl Uplink {
    /// The way at this moment; `None` where there is none, or only through the interface `tunnel`.
    pub fn now(netlink: &mut Netlink, gateway: IpAddr, tunnel: Option<u32>) -> Option<Uplink> {
        let hop = netlink.route_to(gateway).ok().filter(|hop| Some(hop.interface) != tunnel)?;
        let link = netlink.link_by_index(hop.interface).ok()?;
        let has_carrier = link.is_up && link.is_running;
        Some(Uplink { interface: hop.interface, router: hop.gateway, source: hop.source, has_carrier })
    }

    /// Whether packets get beyond this machine.
    pub fn is_usable(&self) -> bool {
        self.has_carrier
    }

    /// Whether this is another path than `before`, and not the same one with or without carrier.
    pub fn is_elsewhere(&self, before: Option<Uplink>) -> bool {
        before.is_none_or(|before| Uplink { has_carrier: self.has_carrier, ..before } != *self)
    }
}
