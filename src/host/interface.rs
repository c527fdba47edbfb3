//! The gateway's interface: what it should be, compared with what it is.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::{Host, HostError, Request, TunPlan, client_route};
use crate::io::TunDevice;
use crate::netlink::{Link, PROTOCOL_KERNEL, PROTOCOL_OWN, Route};

/// Most clients with a route of their own.
const CLIENT_ROUTES_MAX: usize = 65_536;
/// The metric of the routes that the kernel makes for IPv6 addresses.
const METRIC_IPV6: u32 = 256;

/// Looks without success, and the pause between two, after which the kernel is believed not to make the route to an address by itself. A device
/// that was made anew is looked at twice at once.
const OWN_ROUTE_LOOKS: u32 = 6;
const OWN_ROUTE_PAUSE: Duration = Duration::from_millis(100);

/// Something that others had changed about the interface, and that is again as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restored {
    /// The name, and what it had been changed to.
    Name(String),
    /// The MTU, and what it had been changed to.
    Mtu(u32),
    /// The length of its queues, and what it had been changed to.
    QueueLength(u32),
    /// Its state: it was down.
    Up,
    /// The address was missing.
    Address(IpNet),
    /// A route.
    Route(IpNet),
    /// The route of a client whose path carries less than the interface.
    ClientRoute(IpAddr),
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Restored::Name(was) => write!(f, "its name (it was {was})"),
            Restored::Mtu(was) => write!(f, "its MTU (it was {was})"),
            Restored::QueueLength(was) => write!(f, "its queue length (it was {was})"),
            Restored::Up => write!(f, "its state (it was down)"),
            Restored::Address(address) => write!(f, "address {address}"),
            Restored::Route(destination) => write!(f, "route {destination}"),
            Restored::ClientRoute(client) => write!(f, "route {}", IpNet::from(*client)),
        }
    }
}

/// An interface as it should be.
#[derive(Debug)]
pub struct Interface {
    plan: TunPlan,
    name: String,
    index: u32,
    queue_frames: u32,
    /// The MTU of clients that take smaller packets than the interface does.
    client_mtus: BTreeMap<IpAddr, u32>,
    /// Looks in a row that did not find the route by which the address is this host's own.
    own_route_missed: u32,
}

impl Interface {
    /// The interface `device`, which was made by `plan`.
    pub fn new(plan: TunPlan, device: &TunDevice) -> Interface {
        Interface {
            name: device.name().to_owned(),
            index: device.index(),
            queue_frames: device.queue_frames_max(),
            plan,
            client_mtus: BTreeMap::new(),
            own_route_missed: 0,
        }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its index, until it is made anew.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// How to make it anew.
    pub fn plan(&self) -> TunPlan {
        TunPlan { name: Some(self.name.clone()), ..self.plan.clone() }
    }

    /// Follows the interface to `device`, which was made in its place.
    pub fn replaced(&mut self, device: &TunDevice) {
        self.index = device.index();
        self.queue_frames = device.queue_frames_max();
    }

    /// Whether there is an interface with its index.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn is_there(&self, host: &mut Host) -> Result<bool, HostError> {
        Ok(self.link(host)?.is_some())
    }

    /// Routes what goes to `client` with packets of at most `mtu_bytes`, from now on and whatever others do; `None` for as many as the
    /// interface takes.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. It is tried again by [`Interface::restore`].
    pub fn set_client_mtu(&mut self, host: &mut Host, client: IpAddr, mtu_bytes: Option<u32>) -> Result<(), HostError> {
        match mtu_bytes {
            Some(mtu_bytes) if self.client_mtus.len() < CLIENT_ROUTES_MAX || self.client_mtus.contains_key(&client) => {
                self.client_mtus.insert(client, mtu_bytes);
                host.change(Request::SetRoute(client_route(client, self.index, mtu_bytes)))
            }
            Some(_) => Ok(()),
            None => match self.client_mtus.remove(&client) {
                Some(mtu_bytes) => host.change(Request::RemoveRoute(client_route(client, self.index, mtu_bytes))),
                None => Ok(()),
            },
        }
    }

    /// Removes what an earlier run has left of clients' routes on an interface that was there before.
    ///
    /// # Errors
    ///
    /// The first refusal of the kernel.
    pub fn remove_stale_routes(&self, host: &mut Host) -> Result<(), HostError> {
        let network = self.plan.address;
        for route in host.look(|netlink| netlink.routes(self.index))? {
            let client = route.destination;
            let is_client = client.prefix_len() == client.max_prefix_len() && network.contains(&client.addr());
            if is_client && route.protocol == PROTOCOL_OWN && !self.client_mtus.contains_key(&client.addr()) {
                host.change(Request::RemoveRoute(route))?;
            }
        }
        Ok(())
    }

    /// The clients that have a route of their own.
    pub fn clients(&self) -> Vec<IpAddr> {
        self.client_mtus.keys().copied().collect()
    }

    /// How soon to restore again, although nothing may have changed: the kernel may be making a route in the background.
    pub fn look_again_after(&self) -> Option<Duration> {
        (self.own_route_missed > 0).then_some(OWN_ROUTE_PAUSE)
    }

    /// Compares what is with what should be, and puts back what differs: each is added to `restored`.
    ///
    /// # Errors
    ///
    /// The first refusal of the kernel; `restored` has what was done before.
    pub fn restore(&mut self, host: &mut Host, restored: &mut Vec<Restored>) -> Result<(), HostError> {
        let Some(link) = self.link(host)? else { return Ok(()) };
        // What cannot be put back is no reason to leave the rest.
        let link = self.restore_link(host, &link, restored);
        let addresses = self.restore_addresses(host, restored);
        link.and(addresses)
    }

    fn restore_addresses(&mut self, host: &mut Host, restored: &mut Vec<Restored>) -> Result<(), HostError> {
        let address = self.plan.address;
        if host.look(|netlink| netlink.addresses(self.index))?.contains(&address) {
            self.restore_own(host, restored)?;
        } else {
            self.own_route_missed = 0;
            self.add_address(host)?;
            restored.push(Restored::Address(address));
        }
        let routes = host.look(|netlink| netlink.routes(self.index))?;
        self.restore_network(host, &routes, restored)?;
        self.restore_client_routes(host, &routes, restored)
    }

    fn link(&self, host: &mut Host) -> Result<Option<Link>, HostError> {
        match host.look(|netlink| netlink.link_by_index(self.index)) {
            Ok(link) => Ok(Some(link)),
            Err(HostError::Netlink(error)) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn restore_link(&self, host: &mut Host, link: &Link, restored: &mut Vec<Restored>) -> Result<(), HostError> {
        let interface = self.index;
        let mtu_bytes = u32::from(self.plan.mtu_bytes);
        if link.mtu_bytes != mtu_bytes {
            host.change(Request::SetMtu { interface, mtu_bytes })?;
            restored.push(Restored::Mtu(link.mtu_bytes));
        }
        if link.queue_frames != self.queue_frames {
            host.change(Request::SetQueueLength { interface, frames: self.queue_frames })?;
            restored.push(Restored::QueueLength(link.queue_frames));
        }
        if !link.is_up {
            host.change(Request::SetUp { interface })?;
            restored.push(Restored::Up);
        }
        if link.name != self.name {
            host.change(Request::SetName { interface, name: self.name.clone() })?;
            restored.push(Restored::Name(link.name.clone()));
        }
        Ok(())
    }

    fn add_address(&self, host: &mut Host) -> Result<(), HostError> {
        let address = self.plan.address;
        if address.addr().is_ipv6() {
            host.change(Request::KeepIpv6Addresses { name: self.name.clone() })?;
        }
        host.change(Request::AddAddress { interface: self.index, address })
    }

    /// The route by which the address is this host's own. For a new IPv6 address, the kernel makes it in the background.
    fn restore_own(&mut self, host: &mut Host, restored: &mut Vec<Restored>) -> Result<(), HostError> {
        let address = self.plan.address;
        if host.look(|netlink| netlink.is_local(address.addr()))? {
            self.own_route_missed = 0;
            return Ok(());
        }
        self.own_route_missed += 1;
        if self.own_route_missed < OWN_ROUTE_LOOKS {
            return Ok(());
        }
        self.own_route_missed = 0;
        // Only the kernel itself makes it, for an address that it is given.
        host.change(Request::RemoveAddress { interface: self.index, address })?;
        self.add_address(host)?;
        restored.push(Restored::Route(IpNet::from(address.addr())));
        Ok(())
    }

    /// The route to the network behind the interface, as the kernel makes it for the address.
    fn restore_network(
        &self,
        host: &mut Host,
        routes: &[Route],
        restored: &mut Vec<Restored>,
    ) -> Result<(), HostError> {
        let address = self.plan.address;
        let network = address.trunc();
        let is_host = network.prefix_len() == network.max_prefix_len();
        if is_host || routes.iter().any(|route| route.destination == network) {
            return Ok(());
        }
        let route = Route { protocol: PROTOCOL_KERNEL, ..Route::on_link(network, self.index) };
        let route = match address.addr() {
            IpAddr::V4(_) => Route { source: Some(address.addr()), ..route },
            IpAddr::V6(_) => Route { metric: Some(METRIC_IPV6), ..route },
        };
        host.change(Request::SetRoute(route))?;
        restored.push(Restored::Route(network));
        Ok(())
    }

    fn restore_client_routes(
        &self,
        host: &mut Host,
        routes: &[Route],
        restored: &mut Vec<Restored>,
    ) -> Result<(), HostError> {
        if self.client_mtus.is_empty() {
            return Ok(());
        }
        let present: BTreeMap<IpNet, Option<u32>> =
            routes.iter().map(|route| (route.destination, route.mtu_bytes)).collect();
        for (&client, &mtu_bytes) in &self.client_mtus {
            if present.get(&IpNet::from(client)) != Some(&Some(mtu_bytes)) {
                host.change(Request::SetRoute(client_route(client, self.index, mtu_bytes)))?;
                restored.push(Restored::ClientRoute(client));
            }
        }
        Ok(())
    }
}
