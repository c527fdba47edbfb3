//! Everything that the running gateway changes on its host, as a fixed set of requests.
//!
//! A [`Request`] is plain data without references to anything that lives, so that it could go to another process; an answer may bring
//! descriptors. Requests are carried out on the control plane, where they may wait for the kernel; a shard never makes one itself.

mod interface;

use std::fs;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tracing::debug;

pub use interface::{Interface, Restored};

use crate::io::{BindError, ShardSockets, TunDevice, TunError, TunOptions, TunQueue, UdpGroup, UdpOptions};
use crate::netlink::{Netlink, NetlinkError, Route};

/// A TUN device as the gateway wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunPlan {
    /// Its name; without one the next free `tollgate` and number.
    pub name: Option<String>,
    /// The number of queues, one for each shard.
    pub queues: usize,
    /// Its MTU, in bytes.
    pub mtu_bytes: u16,
    /// Offloads and the length of its queues.
    pub options: TunOptions,
    /// Its address, and the network behind it.
    pub address: IpNet,
}

/// The sockets of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketPlan {
    /// The address and port to bind.
    pub address: SocketAddr,
    /// The number of shards, each with sockets of its own.
    pub shards: usize,
    /// The options of each socket.
    pub options: UdpOptions,
    /// The kernel's buffer for what comes before a handshake, of each shard, in bytes.
    pub handshake_buffer_bytes: usize,
}

/// One change of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Make a TUN device with its queues and its address. It is down.
    MakeTun(TunPlan),
    /// Remove a network device.
    RemoveLink {
        /// The index of the interface.
        interface: u32,
    },
    /// Give a network device a name.
    SetName {
        /// The index of the interface.
        interface: u32,
        /// The name that it is to have.
        name: String,
    },
    /// Set the MTU of a network device.
    SetMtu {
        /// The index of the interface.
        interface: u32,
        /// The MTU, in bytes.
        mtu_bytes: u32,
    },
    /// Set the length of a network device's transmit queue.
    SetQueueLength {
        /// The index of the interface.
        interface: u32,
        /// The length of the queue, in packets.
        frames: u32,
    },
    /// Bring a network device up.
    SetUp {
        /// The index of the interface.
        interface: u32,
    },
    /// Let a network device have IPv6 addresses, and keep them while it is down.
    KeepIpv6Addresses {
        /// The name of the interface.
        name: String,
    },
    /// Add an address to a network device. One that it has is left alone.
    AddAddress {
        /// The index of the interface.
        interface: u32,
        /// The address with its prefix.
        address: IpNet,
    },
    /// Remove an address from a network device. One that it has not is no error.
    RemoveAddress {
        /// The index of the interface.
        interface: u32,
        /// The address with its prefix.
        address: IpNet,
    },
    /// Add a route, in place of the one with the same destination and metric.
    SetRoute(Route),
    /// Remove a route. One that is not there is no error.
    RemoveRoute(Route),
    /// Open the gateway's UDP sockets. Those before must be closed.
    BindSockets(SocketPlan),
}

/// The result of a [`Request`].
#[derive(Debug)]
pub enum Answer {
    /// The change was made.
    Done,
    /// A TUN device and its queues, in order.
    Tun(TunDevice, Vec<TunQueue>),
    /// Sockets, in the order of the shards.
    Sockets(Vec<ShardSockets>),
}

/// Why the host was not changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The UDP sockets.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A link, an address or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The answer was not one to the request.
    #[error("the host's answer does not belong to the request")]
    Answer,
}

/// Carries requests out, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Host {
    netlink: Netlink,
}

impl Host {
    /// Opens what requests need.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket.
    pub fn open() -> Result<Host, HostError> {
        Ok(Host { netlink: Netlink::open()? })
    }

    /// Carries `request` out.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn carry_out(&mut self, request: Request) -> Result<Answer, HostError> {
        let result = match request {
            Request::MakeTun(plan) => {
                let (device, queues) = make_tun(&plan)?;
                return Ok(Answer::Tun(device, queues));
            }
            Request::BindSockets(plan) => return Ok(Answer::Sockets(bind_sockets(&plan)?)),
            Request::KeepIpv6Addresses { name } => {
                keep_ipv6_addresses(&name);
                Ok(())
            }
            Request::RemoveLink { interface } => self.netlink.remove_link(interface),
            Request::SetName { interface, name } => self.netlink.rename_link(interface, &name),
            Request::SetMtu { interface, mtu_bytes } => self.netlink.set_link_mtu(interface, mtu_bytes),
            Request::SetQueueLength { interface, frames } => self.netlink.set_link_queue_length(interface, frames),
            Request::SetUp { interface } => self.netlink.set_link_up(interface),
            Request::AddAddress { interface, address } => {
                unless(NetlinkError::is_exists, self.netlink.add_address(interface, address))
            }
            Request::RemoveAddress { interface, address } => {
                unless(NetlinkError::is_not_found, self.netlink.remove_address(interface, address))
            }
            Request::SetRoute(route) => self.netlink.replace_route(&route),
            Request::RemoveRoute(route) => unless(NetlinkError::is_not_found, self.netlink.remove_route(&route)),
        };
        self.checked(result)?;
        Ok(Answer::Done)
    }

    /// Carries a request out that brings nothing.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn change(&mut self, request: Request) -> Result<(), HostError> {
        self.carry_out(request).map(drop)
    }

    /// Makes a TUN device; see [`Request::MakeTun`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn make_tun(&mut self, plan: TunPlan) -> Result<(TunDevice, Vec<TunQueue>), HostError> {
        match self.carry_out(Request::MakeTun(plan))? {
            Answer::Tun(device, queues) => Ok((device, queues)),
            _ => Err(HostError::Answer),
        }
    }

    /// Opens the gateway's sockets; see [`Request::BindSockets`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn bind_sockets(&mut self, plan: SocketPlan) -> Result<Vec<ShardSockets>, HostError> {
        match self.carry_out(Request::BindSockets(plan))? {
            Answer::Sockets(sockets) => Ok(sockets),
            _ => Err(HostError::Answer),
        }
    }

    /// By what notifications tell its changes from others'.
    pub fn port(&self) -> u32 {
        self.netlink.port()
    }

    /// Asks the kernel how things are.
    fn look<T>(&mut self, ask: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError>) -> Result<T, HostError> {
        let answer = ask(&mut self.netlink);
        Ok(self.checked(answer)?)
    }

    /// A netlink socket that failed, and may hold the rest of an answer, is not used again.
    fn checked<T>(&mut self, result: Result<T, NetlinkError>) -> Result<T, NetlinkError> {
        if let Err(NetlinkError::Socket { .. } | NetlinkError::Unreadable { .. }) = result {
            self.netlink = Netlink::open()?;
        }
        result
    }
}

/// Makes a TUN device with its address, in the calling thread's network namespace; see [`Request::MakeTun`]. It needs no netlink.
///
/// # Errors
///
/// When the kernel refuses.
pub fn make_tun(plan: &TunPlan) -> Result<(TunDevice, Vec<TunQueue>), TunError> {
    let TunPlan { name, queues, mtu_bytes, options, address } = plan;
    let (mut device, queues) = TunDevice::create(name.as_deref(), *queues, *mtu_bytes, options)?;
    if address.addr().is_ipv6() {
        keep_ipv6_addresses(device.name());
    }
    device.configure(*address)?;
    Ok((device, queues))
}

/// Opens the gateway's sockets, in the calling thread's network namespace; see [`Request::BindSockets`]. It needs no netlink.
///
/// # Errors
///
/// When the kernel refuses.
pub fn bind_sockets(plan: &SocketPlan) -> Result<Vec<ShardSockets>, BindError> {
    let SocketPlan { address, shards, options, handshake_buffer_bytes } = plan;
    UdpGroup::bind(*address, *shards, options, *handshake_buffer_bytes)
}

/// Where /proc/sys is read-only the kernel's defaults hold, and the upkeep of the interface puts back what they lose.
fn keep_ipv6_addresses(name: &str) {
    for (setting, value) in [("disable_ipv6", "0"), ("keep_addr_on_down", "1")] {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{setting}");
        let is_set = fs::read_to_string(&path).is_ok_and(|current| current.trim() == value);
        if is_set {
            continue;
        }
        if let Err(error) = fs::write(&path, value) {
            debug!(%error, "{path} cannot be set to {value}");
        }
    }
}

/// Forgives the one kind of error that says that there is nothing to do.
fn unless(forgiven: fn(&NetlinkError) -> bool, result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    result.or_else(|error| if forgiven(&error) { Ok(()) } else { Err(error) })
}

/// The route to one client that takes smaller packets than the interface does.
pub fn client_route(client: IpAddr, interface: u32, mtu_bytes: u32) -> Route {
    Route { mtu_bytes: Some(mtu_bytes), ..Route::on_link(IpNet::from(client), interface) }
}
