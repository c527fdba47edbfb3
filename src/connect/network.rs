//! What the tunnel changes on this machine: an interface with its address, routes into it, a route around it for the gateway, DNS.
//!
//! All of it stays while the tunnel is down and comes back, so that no packet takes another way meanwhile, is put back when somebody else
//! takes it away, and goes when the value is dropped. Routes that were there before are never changed.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use tollgate_config::ClientConfig;
use tollgate_shards::Assignment;
use tracing::{debug, warn};

use super::dns::Dns;
use super::exclusion::Exclusion;
use super::guard::guard;
use super::restored::Restored;
use super::routing;
use crate::io::{TunDevice, TunError, TunOptions, TunQueue};
use crate::netlink::{Netlink, NetlinkError, Route};

/// Smallest MTU of an interface with an IPv6 address, in bytes (RFC 8200, section 5).
const MTU_BYTES_MIN_V6: u16 = 1280;

/// Why the tunnel cannot be set up on this machine.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The TUN interface cannot be made.
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
        /// The destination that both want.
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
    gateway: IpAddr,
    assignment: Assignment,
    /// What the interface is to have: whoever changes it there changes it here, or it is put back.
    mtu_bytes: u16,
    exclusion: Exclusion,
    /// The `unreachable` routes that are in place.
    guards: BTreeSet<IpNet>,
    dns: Option<Dns>,
    restored: Restored,
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
        check_mtu(config.connection.mtu_bytes, assignment)?;
        let netlink = Netlink::open()?;
        let (device, queue) = make_device(config, config.network.interface_name.as_deref())?;
        let mut network = Network {
            config,
            netlink,
            device,
            gateway,
            assignment,
            mtu_bytes: config.connection.mtu_bytes,
            exclusion: Exclusion::new(),
            guards: BTreeSet::new(),
            dns: None,
            restored: Restored::default(),
        };
        network.follow(gateway)?;
        network.device.configure(assignment.client_address)?;
        network.device.up()?;
        network.add_routes()?;
        network.warn_of_other_family();
        network.dns = Dns::set(network.device.name(), &config.network.dns_servers);
        Ok((network, queue))
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        self.device.name()
    }

    /// The interface's index, another one once it had to be made anew.
    pub fn index(&self) -> u32 {
        self.device.index()
    }

    /// Where the host route to the gateway leads to, if it was made here.
    pub fn exclusion(&self) -> Option<IpNet> {
        self.exclusion.destination()
    }

    /// How often something was put back that somebody else had taken away.
    pub fn restored_times(&self) -> u64 {
        self.restored.times()
    }

    /// Whether the way to the gateway must be kept outside the tunnel.
    pub fn covers_gateway(&self) -> bool {
        routing::covers(&self.config.network.routes, self.assignment.client_address, self.gateway)
    }

    /// Gives the interface the MTU that the path to the gateway carries, up to the configured one: programs on this machine make their packets
    /// that long. For IPv6 it stays at 1280 or more (RFC 8200, section 5).
    pub fn follow_path(&mut self, path_mtu_bytes: u16) {
        let least = if self.assignment.client_address.addr().is_ipv6() { MTU_BYTES_MIN_V6 } else { 0 };
        let mtu_bytes = path_mtu_bytes.min(self.config.connection.mtu_bytes).max(least);
        if path_mtu_bytes < least {
            warn!(
                "the path to the gateway carries packets of {path_mtu_bytes} bytes, and IPv6 needs 1280: larger ones are lost"
            );
        }
        // The watch keeps it so.
        self.mtu_bytes = mtu_bytes;
        match self.netlink.set_link_mtu(self.device.index(), mtu_bytes.into()) {
            Ok(()) => debug!(mtu_bytes, "the interface follows the path's MTU"),
            // What is too large for the path is answered by the tunnel itself.
            Err(error) => debug!(%error, "the interface keeps its MTU"),
        }
    }

    /// Keeps the way to the outer address `gateway` outside the tunnel, whatever has become of this machine's other routes and of the
    /// gateway's address since it was last asked. Without any way there now, all stays as it is.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn follow(&mut self, gateway: IpAddr) -> Result<(), NetworkError> {
        self.gateway = gateway;
        self.set_guards()?;
        let (index, covered) = (self.device.index(), self.covers_gateway());
        let followed = self.exclusion.follow(&mut self.netlink, index, gateway, covered);
        followed.map_err(NetworkError::Exclusion)
    }

    /// Compares all that belongs to the tunnel with what there is, and puts back what is missing. Returns the queue of the interface if that
    /// had to be made anew.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, for now. What could be put back before is.
    pub fn mend(&mut self) -> Result<Option<TunQueue>, NetworkError> {
        let mut parts = BTreeSet::new();
        let mut queue = None;
        let mended = self.mend_parts(&mut parts, &mut queue);
        self.restored.note(&parts, self.device.name(), Instant::now());
        match mended {
            // The queue must not be lost: without it the interface is gone.
            Err(error) if queue.is_some() => {
                debug!(%error, "the new interface is not complete yet");
                Ok(queue)
            }
            other => other.map(|()| queue),
        }
    }

    fn mend_parts(
        &mut self,
        parts: &mut BTreeSet<&'static str>,
        queue: &mut Option<TunQueue>,
    ) -> Result<(), NetworkError> {
        let links = self.netlink.links()?;
        let link = links.iter().find(|link| link.index == self.device.index());
        if link.is_none() {
            *queue = Some(self.remake_device()?);
            parts.insert("deleted");
        }
        let is_up = link.is_some_and(|link| link.is_up);
        let mtu_bytes = link.map(|link| link.mtu_bytes);
        if self.mend_guards()? && link.is_some() {
            parts.insert("guards");
        }
        self.follow(self.gateway)?;
        let (index, address) = (self.device.index(), self.assignment.client_address);
        let wanted_mtu_bytes = u32::from(self.mtu_bytes);
        if mtu_bytes.is_some_and(|mtu_bytes| mtu_bytes != wanted_mtu_bytes) {
            self.netlink.set_link_mtu(index, wanted_mtu_bytes)?;
            parts.insert("MTU");
        }
        if !self.netlink.addresses(index)?.contains(&address) {
            self.device.configure(address)?;
            parts.insert("address");
        }
        if !is_up {
            self.device.up()?;
            parts.insert("down");
            // IPv6 addresses go with the interface's state.
            if !self.netlink.addresses(index)?.contains(&address) {
                self.device.configure(address)?;
            }
        }
        if self.add_routes()? {
            parts.insert("routes");
        }
        Ok(())
    }

    /// Makes the interface anew, under the name that it had. Its guards, which bear the old one's index, stay until the new ones are there.
    fn remake_device(&mut self) -> Result<TunQueue, NetworkError> {
        let (old, name) = (self.device.index(), self.device.name().to_owned());
        let (device, queue) = make_device(self.config, Some(&name))?;
        self.device = device;
        self.netlink.set_link_mtu(self.device.index(), self.mtu_bytes.into())?;
        let stale = std::mem::take(&mut self.guards);
        self.set_guards()?;
        for destination in stale {
            self.remove_guard(destination, old);
        }
        if let Some(dns) = self.dns.take() {
            dns.forget();
        }
        self.dns = Dns::set(&name, &self.config.network.dns_servers);
        Ok(queue)
    }

    /// The destinations that no packet may reach but through the tunnel, and the gateway, which none may reach through it.
    fn wanted_guards(&self) -> BTreeSet<IpNet> {
        let tunnel = self.assignment.client_address;
        let mut guards: BTreeSet<IpNet> =
            routing::destinations(&self.config.network.routes, tunnel).into_iter().collect();
        guards.insert(tunnel.trunc());
        if self.covers_gateway() {
            guards.insert(self.gateway.into());
        }
        guards
    }

    /// Adds the guards that are missing, and removes those of destinations that are not the tunnel's any more.
    fn set_guards(&mut self) -> Result<(), NetworkError> {
        let wanted = self.wanted_guards();
        for destination in wanted.difference(&self.guards.clone()) {
            self.add_guard(*destination)?;
            self.guards.insert(*destination);
        }
        for destination in self.guards.clone().difference(&wanted) {
            self.guards.remove(destination);
            self.remove_guard(*destination, self.device.index());
        }
        Ok(())
    }

    /// Puts guards back that somebody has removed. Returns whether there were any.
    fn mend_guards(&mut self) -> Result<bool, NetworkError> {
        let owner = Some(self.device.index());
        let routes = self.netlink.own_routes()?;
        let present: BTreeSet<IpNet> =
            routes.iter().filter(|route| super::guard::owner(route) == owner).map(|route| route.destination).collect();
        let missing: Vec<IpNet> = self.guards.difference(&present).copied().collect();
        for destination in &missing {
            self.add_guard(*destination)?;
        }
        Ok(!missing.is_empty())
    }

    fn add_guard(&mut self, destination: IpNet) -> Result<(), NetworkError> {
        match self.netlink.add_route(&guard(destination, self.device.index())) {
            Err(error) if !error.is_exists() => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn remove_guard(&mut self, destination: IpNet, owner: u32) {
        match self.netlink.remove_route(&guard(destination, owner)) {
            Err(error) if !error.is_not_found() => {
                warn!(%error, "packets to {destination} stay refused: see `ip route`");
            }
            _ => {}
        }
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
        self.add_routes()?;
        self.warn_of_other_family();
        Ok(())
    }

    /// Adds the routes into the tunnel that are not there yet. Returns whether there were any.
    fn add_routes(&mut self) -> Result<bool, NetworkError> {
        let (index, tunnel) = (self.device.index(), self.assignment.client_address);
        let present: BTreeSet<IpNet> = self.netlink.routes(index)?.iter().map(|route| route.destination).collect();
        let mut added = false;
        // The kernel adds this one with the address, but not again.
        let network = Some(tunnel.trunc()).filter(|network| !present.contains(network));
        let destinations = routing::destinations(&self.config.network.routes, tunnel);
        for destination in network.into_iter().chain(destinations).filter(|it| !present.contains(it)) {
            match self.netlink.add_route(&Route::on_link(destination, index)) {
                Ok(()) => added = true,
                // Another tunnel leads to the same network.
                Err(error) if error.is_exists() && Some(destination) == network => {}
                Err(error) if error.is_exists() => return Err(NetworkError::Taken { route: destination }),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(added)
    }

    fn warn_of_other_family(&self) {
        let tunnel = self.assignment.client_address;
        let destinations = routing::destinations(&self.config.network.routes, tunnel);
        let foreign = destinations.iter().filter(|it| it.addr().is_ipv4() != tunnel.addr().is_ipv4()).count();
        if foreign > 0 {
            let family = if tunnel.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            warn!(
                "the tunnel carries {family} only: packets of the other family on {foreign} of its routes are dropped"
            );
        }
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        // Routes into the tunnel and addresses go with the interface, the interface with its queue.
        self.dns = None;
        let index = self.device.index();
        self.exclusion.remove(&mut self.netlink, index);
        for destination in std::mem::take(&mut self.guards) {
            self.remove_guard(destination, index);
        }
    }
}

fn make_device(config: &ClientConfig, name: Option<&str>) -> Result<(TunDevice, TunQueue), NetworkError> {
    let (device, queues) = TunDevice::create(name, 1, config.connection.mtu_bytes, &TunOptions::default())?;
    let queue = queues.into_iter().next().expect("a device of one queue has it");
    Ok((device, queue))
}

fn check_mtu(mtu_bytes: u16, assignment: Assignment) -> Result<(), NetworkError> {
    if assignment.client_address.addr().is_ipv6() && mtu_bytes < MTU_BYTES_MIN_V6 {
        return Err(NetworkError::Mtu { mtu_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
