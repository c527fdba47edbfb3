//! What a gateway may ask for: changes of what is its own, by the configuration that it was started with.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use tollgate_config::{HostSettings, ServerConfig};

use super::{ForwardingPlan, Named, Request, SocketPlan, TunPlan};
use crate::io::{TunFacts, UdpOptions};
use crate::netlink::Route;

/// The main routing table (`RT_TABLE_MAIN`).
const MAIN_TABLE: u32 = 254;
/// The name of a device that has none in the configuration.
const UNNAMED: &str = "tollgate%d";
/// Stands for a number, which the kernel chooses.
const NUMBER: &str = "%d";
const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;
/// Links on the way to a program.
const LINKS_MAX: usize = 32;

/// Why a request is not carried out, whatever the kernel would say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    #[error("the gateway has asked for a change of what is not its own: {0}")]
    NotItsOwn(&'static str),
    #[error("{} is not opened for the gateway: its configuration does not name it", .0.display())]
    File(PathBuf),
    #[error(
        "{} cannot be started: whoever can change it, or a folder that leads there, may be the gateway itself; have root own them, and nobody else \
         write them, or put the program in the place of the one that was started",
        .0.display()
    )]
    Program(PathBuf),
}

/// What is this gateway's own.
#[derive(Debug)]
pub struct Rules {
    files: Named,
    address: SocketAddr,
    tunnel: IpNet,
    interface: Option<String>,
    mtu_bytes: u16,
    send_buffer_bytes: usize,
    receive_buffer_bytes: usize,
    host: HostSettings,
    /// Once there is one.
    device: Option<TunFacts>,
}

impl Rules {
    /// Those of a gateway of `config`, which names `files`.
    pub fn of(config: &ServerConfig, files: Named) -> Self {
        Rules {
            files,
            address: config.bind(),
            tunnel: config.tunnel_network,
            interface: config.interface_name.clone(),
            mtu_bytes: config.connection.mtu_bytes,
            send_buffer_bytes: config.connection.send_buffer_bytes,
            receive_buffer_bytes: config.connection.recv_buffer_bytes,
            host: config.host,
            device: None,
        }
    }

    /// The gateway has this device from now on, and none that it had before.
    pub fn follow(&mut self, facts: &TunFacts) {
        self.device = Some(facts.clone());
    }

    /// Whether `request` may be carried out.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn check(&mut self, request: &Request) -> Result<(), Forbidden> {
        let (is_allowed, what) = match request {
            Request::MakeTun(plan) | Request::JoinTun { plan, .. } => (self.is_own_plan(plan), "a device"),
            Request::BindSockets(plan) | Request::JoinSockets(plan) => (self.are_own_sockets(plan), "sockets"),
            Request::RemoveLink { interface } | Request::SetUp { interface } => (self.is_own(*interface), "a link"),
            Request::SetName { interface, name } => (self.is_own(*interface) && self.is_own_name(name), "a name"),
            Request::SetMtu { interface, mtu_bytes } => {
                (self.is_own(*interface) && *mtu_bytes == u32::from(self.mtu_bytes), "an MTU")
            }
            Request::SetQueueLength { interface, frames } => {
                let is_former = self.device.as_ref().is_some_and(|device| device.queue_frames_max == *frames);
                (self.is_own(*interface) && is_former, "the length of a queue")
            }
            Request::SetForwarding { plan, .. } => (self.is_own_forwarding(plan), "what is forwarded"),
            Request::KeepIpv6Addresses { name } => (self.is_own_name(name), "a setting"),
            Request::AddAddress { interface, address } | Request::RemoveAddress { interface, address } => {
                (self.is_own(*interface) && *address == self.tunnel, "an address")
            }
            Request::SetRoute(route) | Request::RemoveRoute(route) => (self.is_own_route(route), "a route"),
            Request::OpenFile { path } | Request::WatchFolder { file: path } => {
                return if self.files.has(path) { Ok(()) } else { Err(Forbidden::File(path.clone())) };
            }
            Request::StartSuccessor { program: Some(program) } if !is_of_root(program) => {
                return Err(Forbidden::Program(program.clone()));
            }
            Request::UndoForwarding
            | Request::MakeSteeringMap
            | Request::LoadSteering(_)
            | Request::StartSuccessor { .. }
            | Request::EndSuccessor { .. } => return Ok(()),
        };
        if is_allowed { Ok(()) } else { Err(Forbidden::NotItsOwn(what)) }
    }

    fn is_own(&self, interface: u32) -> bool {
        self.device.as_ref().is_some_and(|device| device.index == interface)
    }

    fn is_own_name(&self, name: &str) -> bool {
        self.device.as_ref().is_some_and(|device| device.name == name)
    }

    fn is_own_plan(&self, plan: &TunPlan) -> bool {
        let is_own_name = match &plan.name {
            Some(name) => can_be_name(self.interface.as_deref().unwrap_or(UNNAMED), name),
            None => self.interface.is_none(),
        };
        is_own_name && plan.address == self.tunnel && plan.mtu_bytes == self.mtu_bytes
    }

    fn are_own_sockets(&self, plan: &SocketPlan) -> bool {
        let UdpOptions { send_buffer_bytes, receive_buffer_bytes, .. } = plan.options;
        plan.address.ip() == self.address.ip()
            && (plan.address.port() == self.address.port() || self.address.port() == 0)
            && send_buffer_bytes <= self.send_buffer_bytes
            && receive_buffer_bytes <= self.receive_buffer_bytes
    }

    fn is_own_forwarding(&self, plan: &ForwardingPlan) -> bool {
        let own = |device: &TunFacts| ForwardingPlan::of(&self.host, self.tunnel, &device.name);
        self.device.as_ref().and_then(own).is_some_and(|own| own == *plan)
    }

    fn is_own_route(&self, route: &Route) -> bool {
        let Route { destination, gateway, interface, table, unreachable, .. } = route;
        interface.is_some_and(|interface| self.is_own(interface))
            && gateway.is_none()
            && !unreachable
            && table.is_none_or(|table| table == MAIN_TABLE)
            && self.tunnel.trunc().contains(&destination.trunc())
    }
}

/// Whether a device that was to be called `wanted` may be called `name`.
fn can_be_name(wanted: &str, name: &str) -> bool {
    let Some((before, after)) = wanted.split_once(NUMBER).filter(|_| name != wanted) else { return name == wanted };
    let number = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether only root can change which program is at `path`: the file and each folder on the way, links followed, is root's. In a folder that everybody may
/// write to (/tmp), what is root's must be nobody else's to move.
fn is_of_root(path: &Path) -> bool {
    let Ok(real) = std::path::absolute(path) else { return false };
    is_of_root_after(&real, LINKS_MAX)
}

fn is_of_root_after(path: &Path, links: usize) -> bool {
    let mut walked = PathBuf::new();
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        walked.push(part);
        let Ok(found) = fs::symlink_metadata(&walked) else {
            // What is not there cannot be started, and says so itself.
            return true;
        };
        if found.uid() != 0 {
            return false;
        }
        if found.is_symlink() {
            let Ok(target) = fs::read_link(&walked) else { return false };
            walked.pop();
            let next = walked.join(target).join(parts.as_path());
            return links > 0 && is_of_root_after(&next, links - 1);
        }
        let is_open = found.mode() & GROUP_OR_OTHERS_WRITE != 0;
        if is_open && !(found.is_dir() && found.mode() & STICKY != 0) {
            return false;
        }
    }
    true
}

#[cfg(test)]
pub(super) mod tests;
