//! What may become of a client's inner packet.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::drops::DropReason;
use crate::forward::routes::Routes;
use crate::ids::ConnectionKey;
use crate::packet::inner::{DestinationClass, InnerPacket};

/// Where a client's inner packet goes. (A packet that is answered rather than sent on is told apart later, by its length.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    Tun,
    /// A connection of this shard or another.
    Client(ConnectionKey),
}

#[derive(Debug, Clone)]
pub struct Policy {
    pub tunnel: IpNet,
    /// Whether clients' packets to other clients are dropped.
    pub isolate_clients: bool,
    outer_addresses: Vec<IpAddr>,
}

impl Policy {
    /// The rules of a gateway in `tunnel` that is reached from outside at `outer_addresses`.
    pub fn new(tunnel: IpNet, outer_addresses: &[IpAddr], isolate_clients: bool) -> Self {
        let outer_addresses = outer_addresses.iter().map(|address| address.to_canonical()).collect();
        Policy { tunnel, isolate_clients, outer_addresses }
    }

    /// Judges a packet of the connection that was leased `leased` and reaches the gateway at `local_ip`.
    pub fn judge(
        &self,
        packet: &InnerPacket,
        leased: IpAddr,
        local_ip: Option<IpAddr>,
        routes: &Routes,
    ) -> Result<Destination, DropReason> {
        let destination = packet.destination;
        if packet.source != leased {
            return Err(DropReason::ForgedSource);
        }
        // The tunnel's network first: it may lie in a class that is never routed, as 169.254.0.0/16 does.
        if destination == self.tunnel.addr() {
            return Ok(Destination::Tun);
        }
        if self.tunnel.contains(&destination) {
            return self.judge_inside(destination, routes);
        }
        match DestinationClass::of(destination) {
            DestinationClass::Unicast => {}
            DestinationClass::Multicast | DestinationClass::Broadcast => return Err(DropReason::Multicast),
            _ => return Err(DropReason::Unroutable),
        }
        // A tunnel's own packets inside the tunnel would feed on themselves.
        if local_ip.is_some_and(|ip| ip.to_canonical() == destination) || self.outer_addresses.contains(&destination) {
            return Err(DropReason::OuterAddress);
        }
        Ok(Destination::Tun)
    }

    /// Under isolation the whole tunnel network is closed, not only what has a route now: what has none would come back through the TUN to
    /// whoever has it by then.
    fn judge_inside(&self, destination: IpAddr, routes: &Routes) -> Result<Destination, DropReason> {
        if destination.is_ipv4() && destination == self.tunnel.broadcast() {
            return Err(DropReason::Multicast);
        }
        match routes.find(destination) {
            _ if self.isolate_clients => Err(DropReason::Isolated),
            None => Err(DropReason::NoRoute),
            Some(connection) => Ok(Destination::Client(connection)),
        }
    }
}
