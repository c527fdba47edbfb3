//! What a client that was killed has left on this machine: guards, and a host route to its gateway.
//!
//! The guards keep packets from leaving in clear until this client has a tunnel of its own, and then go. The host route may lead to where
//! no gateway is any more, and is set right before each attempt to connect.

use std::net::IpAddr;

use ipnet::IpNet;
use tracing::{debug, warn};

use super::guard;
use super::routing::{self, TABLE_MAIN};
use crate::netlink::{Netlink, NetlinkError, Route};

/// Routes of clients that do not live any more.
#[derive(Debug, Default)]
pub struct Leftovers {
    routes: Vec<Route>,
}

impl Leftovers {
    /// Finds the routes of clients that are gone.
    ///
    /// # Errors
    ///
    /// When the kernel does not list its routes.
    pub fn find(netlink: &mut Netlink) -> Result<Self, NetlinkError> {
        let routes = netlink.own_routes()?;
        let routes = guard::orphans(&routes, &netlink.links()?);
        if !routes.is_empty() {
            warn!(
                "an earlier run on this machine was killed: {} of its routes keep packets for the tunnel from leaving in clear, until this one is connected or stops",
                routes.len()
            );
        }
        Ok(Leftovers { routes })
    }

    /// Whether nothing is left behind.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Makes sure that none of them stands between this machine and `gateway`. Returns whether there is a way.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn open_way(&mut self, netlink: &mut Netlink, gateway: IpAddr) -> Result<bool, NetlinkError> {
        if !self.routes.iter().any(|route| route.destination.contains(&gateway)) {
            return Ok(true);
        }
        let running = routing::running(&netlink.links()?);
        let Some(hop) = routing::way_out(&netlink.all_routes()?, &running, gateway, TABLE_MAIN) else {
            return Ok(false);
        };
        let Some(route) = routing::exclusion(gateway, &hop) else { return Ok(true) };
        netlink.replace_route(&route)?;
        self.routes.retain(|old| old.unreachable || old.destination != route.destination);
        self.routes.push(route);
        Ok(true)
    }

    /// Removes them, but for the host route to `kept`, which has become this client's.
    pub fn remove(&mut self, netlink: &mut Netlink, kept: Option<IpNet>) {
        for route in self.routes.drain(..).filter(|route| route.unreachable || Some(route.destination) != kept) {
            match netlink.remove_route(&route) {
                Err(error) if !error.is_not_found() => warn!(%error, "a route of an earlier run stays: see `ip route`"),
                _ => debug!(%route, "removed what an earlier run left"),
            }
        }
    }
}
