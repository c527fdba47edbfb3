//! Everything that the running gateway changes on its host, as a fixed set of requests to a process that may.
//!
//! A gateway is two processes from its start on. The one that was started serves; it has no capability. The helper, its child, has the few that
//! changes of the host need. It knows the gateway's configuration, serves nobody, and carries out a [`Request`] where that is about
//! this gateway's own. A request is plain data, in one message on a socket pair; an answer may bring descriptors. Requests are made on the
//! control plane, which waits for the answer; a shard never makes one.

mod calls;
mod files;
mod forwarding;
mod hands;
mod helper;
mod interface;
mod link;
mod paths;
mod privileges;
mod rules;
mod split;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use files::{Load, Named, watch_folder};
pub use forwarding::ForwardingPlan;
pub use interface::{Interface, Restored};
pub use link::{Host, HostError};
pub use split::{Split, SplitError, raise_to_hard, split};

use crate::io::{Group, TunFacts, TunOptions, UdpOptions};
use crate::netlink::Route;

/// Longest message between the two processes, in bytes: a path may take half of it.
const MESSAGE_BYTES_MAX: usize = 8192;

/// A TUN device as the gateway wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make a TUN device with its queues and its address. It is down.
    MakeTun(TunPlan),
    /// Open further queues of the TUN device of that name, which the process before this one has.
    JoinTun {
        /// The device, its name included.
        plan: TunPlan,
        /// Whether it was made beforehand.
        is_adopted: bool,
    },
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
    /// Have clients' packets forwarded, in place of what was set up before. It is undone when the helper ends, unless another one has set it up since.
    SetForwarding {
        /// What is to hold from then on.
        plan: ForwardingPlan,
        /// Whether it is only tried out.
        is_tried: bool,
    },
    /// Take away what forwards them, unless another helper has set it up since.
    UndoForwarding,
    /// Open the gateway's UDP sockets. Those before must be closed.
    BindSockets(SocketPlan),
    /// Open further sockets of the port that the process before this one has.
    JoinSockets(SocketPlan),
    /// Open a file that the configuration names, for reading.
    OpenFile {
        /// Its path, as the configuration has it.
        path: PathBuf,
    },
    /// Watch the folder of a file that the configuration names.
    WatchFolder {
        /// The path of the file, as the configuration has it.
        file: PathBuf,
    },
    /// Make a map of inner addresses.
    MakeSteeringMap,
    /// Load the program that steers by the map that comes with this request, to the queues of this group.
    LoadSteering(Group),
    /// Start the process that is to take over, with the socket that comes with this request in the place of standard input.
    StartSuccessor {
        /// Its program; the one that this gateway was started with where there is none.
        program: Option<PathBuf>,
    },
    /// Wait for the end of that process.
    EndSuccessor {
        /// Whether it is killed at once, and not only when it takes too long.
        at_once: bool,
    },
}

/// The result of a [`Request`], beside descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    /// The change was made.
    Done,
    /// Packets are forwarded.
    Forwarding {
        /// Whether the kernel forwarded none before.
        was_off: bool,
    },
    /// A TUN device. Its queues come with it, in order.
    Tun(TunFacts),
    /// Sockets, in the order of binding, or a map, a program, a file, a watch.
    Descriptors,
    /// A file or a folder is not to be had.
    Unopened {
        /// The system's error number.
        errno: i32,
    },
    /// A process was started.
    Started {
        /// The ID that the kernel gave it.
        process: u32,
    },
    /// A process has ended.
    Ended {
        /// How, for people.
        how: String,
    },
}

/// What comes back for a [`Request`].
#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    /// By what notifications tell the helper's changes from others', if it has made any.
    port: Option<u32>,
    /// Why not, in one line.
    result: Result<Answer, String>,
    /// Descriptors that follow.
    descriptors: u32,
}

/// The route to one client that takes smaller packets than the interface does.
pub fn client_route(client: IpAddr, interface: u32, mtu_bytes: u32) -> Route {
    Route { mtu_bytes: Some(mtu_bytes), ..Route::on_link(IpNet::from(client), interface) }
}
