//! What the tunnel changes on this machine: an interface with its address, routes into it, a route around it for the gateway, DNS.
//!
//! All of it stays while the tunnel is down and comes back, so that no packet takes another way meanwhile, and goes when the value is
//! dropped. Routes that were there before are never changed.

use std::fs;
use std::net::IpAddr;

use ipnet::IpNet;
use tollgate_config::ClientConfig;
use tollgate_shards::assignment::Assignment;
use tracing::{debug, warn};

use super::dns::Dns;
use super::routing;
use crate::io::{TunDevice, TunError, TunOptions, TunQueue};
use crate::netlink::{Netlink, NetlinkError, Route};

/// Smallest MTU of an interface with an IPv6 address, in bytes (RFC 8200, section 5).
const MTU_BYTES_MIN_V6: u16 = 1280;

/// Why the tunnel cannot be set up on this machine.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The interface.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// An address or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A route into the tunnel that somebody else has.
    #[error(
        "network.routes: {route} has a route already, through another interface: remove that route, or take {route} out of network.routes"
    )]
    Taken {
        /// Where it leads.
        route: IpNet,
    },
    /// The gateway would be reachable through its own tunnel only.
    #[error(
        "the routes into the tunnel cover the gateway's own address, and the way to it cannot be kept outside: {0}; give the gateway a host route, or choose narrower network.routes"
    )]
    Exclusion(NetlinkError),
    /// An interface that cannot have an IPv6 address.
    #[error(
        "the gateway assigned an IPv6 address, and connection.mtu is {mtu_bytes}: IPv6 needs 1280 or more, on both sides"
    )]
    Mtu {
        /// The configured MTU.
        mtu_bytes: u16,
    },
}

/// The tunnel's part of this machine's network.
#[derive(Debug)]
pub struct Network<'a> {
    config: &'a ClientConfig,
    netlink: Netlink,
    device: TunDevice,
    assignment: Assignment,
    exclusion: Option<Exclusion>,
    dns: Option<Dns>,
}

/// The host route to the gateway.
#[derive(Debug, Clone, Copy)]
struct Exclusion {
    route: Route,
    /// Whether it was made here, and not found.
    ours: bool,
}

impl<'a> Network<'a> {
    /// Makes the interface and all that belongs to it. `gateway` is the outer address to keep outside.
    ///
    /// # Errors
    ///
    /// With nothing left behind: see [`NetworkError`].
    pub fn establish(
        config: &'a ClientConfig,
        gateway: IpAddr,
        assignment: Assignment,
    ) -> Result<(Network<'a>, TunQueue), NetworkError> {
        let mtu_bytes = config.connection.mtu_bytes;
        check_mtu(mtu_bytes, assignment)?;
        let netlink = Netlink::open()?;
        let name = config.network.interface_name.as_deref();
        let (device, queues) = TunDevice::create(name, 1, mtu_bytes, &TunOptions::default())?;
        let mut network = Network { config, netlink, device, assignment, exclusion: None, dns: None };
        network.follow(gateway)?;
        network.device.configure(assignment.client_address)?;
        network.device.up()?;
        network.add_routes()?;
        network.dns = Dns::set(network.device.name(), &config.network.dns_servers);
        let queue = queues.into_iter().next().expect("a device of one queue has it");
        Ok((network, queue))
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        self.device.name()
    }

    /// Keeps the way to the outer address `gateway` outside the tunnel, whatever has become of this machine's other routes and of the
    /// gateway's address since it was last asked. Without any way there now, all stays as it is.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn follow(&mut self, gateway: IpAddr) -> Result<(), NetworkError> {
        let host = IpNet::from(gateway);
        let present = self.exclusion.filter(|exclusion| exclusion.route.destination == host);
        let covered = routing::covers(&self.config.network.routes, self.assignment.client_address, gateway);
        if present.is_some_and(|exclusion| covered && !exclusion.ours) {
            return Ok(());
        }
        let wanted = if covered { self.way_around(gateway, present)? } else { None };
        if let Some(stale) = self.exclusion.filter(|_| present.is_none() || !covered) {
            self.exclusion = None;
            self.remove(stale);
        }
        let Some(route) = wanted else { return Ok(()) };
        debug!(%route, "keeping the gateway outside the tunnel");
        let added = if present.is_some() { self.netlink.replace_route(&route) } else { self.netlink.add_route(&route) };
        let ours = match added {
            Ok(()) => true,
            Err(error) if error.is_exists() => false,
            Err(error) => return Err(NetworkError::Exclusion(error)),
        };
        self.exclusion = Some(Exclusion { route, ours });
        Ok(())
    }

    /// Changes the interface's address, where the gateway has assigned another one. Packets have a route into the tunnel at every moment.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn readdress(&mut self, gateway: IpAddr, assignment: Assignment) -> Result<(), NetworkError> {
        if assignment == self.assignment {
            return Ok(());
        }
        check_mtu(self.config.connection.mtu_bytes, assignment)?;
        let (old, new) = (self.assignment.client_address, assignment.client_address);
        self.assignment = assignment;
        self.follow(gateway)?;
        if new == old {
            return Ok(());
        }
        // Otherwise a second address of the same network would go with the first, and the interface's routes with its last address.
        let promotion = format!("/proc/sys/net/ipv4/conf/{}/promote_secondaries", self.device.name());
        if let Err(error) = fs::write(&promotion, "1") {
            debug!(%error, "{promotion} cannot be set");
        }
        let index = self.device.index();
        self.netlink.add_address(index, new).or_else(|error| if error.is_exists() { Ok(()) } else { Err(error) })?;
        self.netlink
            .remove_address(index, old)
            .or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) })?;
        if !self.netlink.addresses(index)?.contains(&new) {
            self.netlink.add_address(index, new)?;
        }
        self.add_routes()
    }

    /// Adds the routes into the tunnel that are not there yet.
    fn add_routes(&mut self) -> Result<(), NetworkError> {
        let (index, tunnel) = (self.device.index(), self.assignment.client_address);
        let mut foreign = 0;
        for destination in routing::destinations(&self.config.network.routes, tunnel) {
            foreign += usize::from(destination.addr().is_ipv4() != tunnel.addr().is_ipv4());
            match self.netlink.add_route(&Route::on_link(destination, index)) {
                Ok(()) => {}
                Err(error) if error.is_exists() => {
                    if !self.netlink.routes(index)?.iter().any(|route| route.destination == destination) {
                        return Err(NetworkError::Taken { route: destination });
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        if foreign > 0 {
            let family = if tunnel.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            warn!(
                "the tunnel carries {family} only: packets of the other family on {foreign} of its routes are dropped"
            );
        }
        Ok(())
    }

    /// The host route that keeps `gateway` outside; `None` if it needs none, or there is no way to it now.
    fn way_around(&mut self, gateway: IpAddr, present: Option<Exclusion>) -> Result<Option<Route>, NetworkError> {
        let tunnel = self.device.index();
        // A host route of ours would be the kernel's answer, however stale.
        let hop = if present.is_none() { self.netlink.route_to(gateway).ok() } else { None };
        let hop = match hop.filter(|hop| hop.interface != tunnel) {
            Some(hop) => Some(hop),
            None => {
                let mut routes = Vec::new();
                for link in self.netlink.links()?.iter().filter(|link| link.index != tunnel) {
                    routes.extend(self.netlink.routes(link.index)?);
                }
                routing::way_out(&routes, gateway)
            }
        };
        Ok(hop.and_then(|hop| routing::exclusion(gateway, &hop)))
    }

    fn remove(&mut self, exclusion: Exclusion) {
        if !exclusion.ours {
            return;
        }
        match self.netlink.remove_route(&exclusion.route) {
            Err(error) if !error.is_not_found() => {
                warn!("the host route to the gateway is left behind: see `ip route`");
                debug!(%error, "the host route to the gateway is left behind");
            }
            _ => {}
        }
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        // Routes into the tunnel and addresses go with the interface, the interface with its queue.
        self.dns = None;
        if let Some(exclusion) = self.exclusion.take() {
            self.remove(exclusion);
        }
    }
}

fn check_mtu(mtu_bytes: u16, assignment: Assignment) -> Result<(), NetworkError> {
    if assignment.client_address.addr().is_ipv6() && mtu_bytes < MTU_BYTES_MIN_V6 {
        return Err(NetworkError::Mtu { mtu_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
