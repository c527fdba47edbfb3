//! The host route that keeps packets to the gateway outside the tunnel.

use std::net::IpAddr;

use ipnet::IpNet;
use tracing::{debug, warn};

use super::guard;
use super::routing::{self, TABLE_LOCAL, TABLE_MAIN};
use crate::netlink::{Netlink, NetlinkError, PROTOCOL_OWN, Route};

/// The host route, as far as it is this client's: one that somebody else has made is used and left alone.
#[derive(Debug)]
pub struct Exclusion {
    route: Option<Route>,
    /// The table in which this machine's way to the gateway was found.
    table: u32,
}

impl Exclusion {
    /// No exclusion route yet.
    pub fn new() -> Self {
        Exclusion { route: None, table: TABLE_MAIN }
    }

    /// Where the host route leads to, if it is this client's.
    pub fn destination(&self) -> Option<IpNet> {
        self.route.map(|route| route.destination)
    }

    /// Makes packets to `gateway` take the way that they would take without the tunnel, whose interface is `tunnel`, if `covered` says that
    /// the tunnel's routes lead there. Where there is no such way now, what there is stays.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn follow(
        &mut self,
        netlink: &mut Netlink,
        tunnel: u32,
        gateway: IpAddr,
        covered: bool,
    ) -> Result<(), NetlinkError> {
        let host = IpNet::from(gateway);
        if self.route.is_some_and(|route| route.destination != host || !covered) {
            self.remove(netlink, tunnel);
        }
        if !covered {
            return Ok(());
        }
        let mut routes = netlink.all_routes()?;
        routes.retain(|route| route.interface != Some(tunnel));
        let is_here = |route: &&Route| is_host_route(route, host);
        if routes.iter().filter(is_here).any(|route| route.protocol != PROTOCOL_OWN) {
            self.route = None;
            return Ok(());
        }
        let present = routes.iter().filter(is_here).find(|route| route.protocol == PROTOCOL_OWN);
        self.route = present.copied();
        let Some(wanted) = self.way_around(netlink, &routes, tunnel, gateway)? else { return Ok(()) };
        if present.is_some_and(|it| (it.interface, it.gateway) == (wanted.interface, wanted.gateway)) {
            return Ok(());
        }
        debug!(route = %wanted, "keeping the gateway outside the tunnel");
        let added = if present.is_some() { netlink.replace_route(&wanted) } else { netlink.add_route(&wanted) };
        match added {
            Ok(()) => self.route = Some(wanted),
            // Somebody was faster.
            Err(error) if error.is_exists() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The host route that is wanted; `None` if `gateway` needs none, or there is no way to it now.
    fn way_around(
        &mut self,
        netlink: &mut Netlink,
        routes: &[Route],
        tunnel: u32,
        gateway: IpAddr,
    ) -> Result<Option<Route>, NetlinkError> {
        let hop = netlink.route_to(gateway).ok().filter(|hop| hop.interface != tunnel);
        if hop.is_some_and(|hop| hop.table == TABLE_LOCAL) {
            return Ok(None);
        }
        // Rules may lead to another table. Once there is a host route, which is in the main table, the kernel does not tell any more.
        let ruled = hop.filter(|hop| self.route.is_none() && hop.table != TABLE_MAIN);
        if let Some(hop) = ruled {
            self.table = hop.table;
            return Ok(routing::exclusion(gateway, &hop));
        }
        let running = routing::running(&netlink.links()?);
        let found = routing::way_out(routes, &running, gateway, self.table);
        let found = found.or_else(|| routing::way_out(routes, &running, gateway, TABLE_MAIN));
        // The present host route itself would be the kernel's answer, however stale.
        let found = found.or_else(|| hop.filter(|_| self.route.is_none()));
        Ok(found.and_then(|hop| routing::exclusion(gateway, &hop)))
    }

    /// Removes the host route, unless another client needs it too.
    pub fn remove(&mut self, netlink: &mut Netlink, tunnel: u32) {
        let Some(route) = self.route.take() else { return };
        match is_shared(netlink, &route, tunnel) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => debug!(%error, "whether others need the host route to the gateway is not known"),
        }
        match netlink.remove_route(&Route { metric: None, table: None, ..route }) {
            Err(error) if !error.is_not_found() => {
                warn!("the host route to the gateway is left behind: see `ip route`");
                debug!(%error, "the host route to the gateway is left behind");
            }
            _ => {}
        }
    }
}

/// Whether `route` is one to `host` that a new one would replace.
fn is_host_route(route: &Route, host: IpNet) -> bool {
    let default_metric = if host.addr().is_ipv4() { 0 } else { guard::DEFAULT_METRIC_V6 };
    route.destination == host
        && !route.unreachable
        && route.table.is_none_or(|table| table == TABLE_MAIN)
        && route.metric.unwrap_or(default_metric) == default_metric
}

fn is_shared(netlink: &mut Netlink, route: &Route, tunnel: u32) -> Result<bool, NetlinkError> {
    let (routes, links) = (netlink.own_routes()?, netlink.links()?);
    let mut owners = routes.iter().filter(|it| it.destination == route.destination).filter_map(guard::owner);
    Ok(owners.any(|owner| owner != tunnel && links.iter().any(|link| link.index == owner)))
}
