//! Requests carried out.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Weak;

use tracing::debug;

use super::forwarding::{Forwarding, ForwardingError};
use super::{Answer, Request, SocketPlan, TunPlan, files};
use crate::io::{
    BindError, ShardSockets, SteeringError, TunDevice, TunError, TunQueue, TunSteering, UdpGroup, descriptors,
};
use crate::netlink::{Netlink, NetlinkError};
use crate::upgrade::{Program, SpawnError, Successor};

/// Why the host was not changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Steering(#[from] SteeringError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Forwarding(#[from] ForwardingError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("the descriptors of the host's changes run out: {0}")]
    System(#[from] io::Error),
    #[error("a descriptor is missing that belongs to this request")]
    NoDescriptor,
    #[error("there is no process that was to take over")]
    NoSuccessor,
    #[error("the process that is to take over was started already")]
    Started,
}

/// Carries requests out, in the network namespace of the calling thread.
pub struct Hands {
    program: Program,
    /// Opened when it is needed: some surroundings forbid it.
    netlink: Option<Netlink>,
    successor: Option<Successor>,
    forwarding: Option<Forwarding>,
}

/// What a request has come to, and the descriptors that it brings.
type Outcome = Result<(Answer, Vec<OwnedFd>), Refusal>;

impl Hands {
    /// `program` is what is started to take over.
    pub fn new(program: Program) -> Self {
        Hands { program, netlink: None, successor: None, forwarding: None }
    }

    /// By what notifications tell its changes from others', if it has made any.
    pub fn port(&self) -> Option<u32> {
        self.netlink.as_ref().map(Netlink::port)
    }

    /// Carries `request` out, with the descriptor that came `with` it.
    pub fn carry_out(&mut self, request: Request, with: Option<OwnedFd>) -> Outcome {
        match request {
            Request::MakeTun(plan) => lend_tun(make_tun(&plan)?),
            Request::JoinTun { plan, is_adopted } => lend_tun(join_tun(&plan, is_adopted)?),
            Request::BindSockets(plan) => {
                let SocketPlan { address, shards, options, handshake_buffer_bytes } = plan;
                lend_sockets(UdpGroup::bind(address, shards, &options, handshake_buffer_bytes)?)
            }
            Request::JoinSockets(plan) => {
                let SocketPlan { address, shards, options, handshake_buffer_bytes } = plan;
                lend_sockets(UdpGroup::join(address, shards, &options, handshake_buffer_bytes)?)
            }
            Request::OpenFile { path } => opened(files::open(&path)),
            Request::WatchFolder { file } => opened(files::watch_folder(&file)),
            Request::MakeSteeringMap => Ok((Answer::Descriptors, vec![TunSteering::create_map()?])),
            Request::LoadSteering(group) => {
                let map = with.ok_or(Refusal::NoDescriptor)?;
                Ok((Answer::Descriptors, vec![TunSteering::load(map.as_fd(), group)?]))
            }
            Request::StartSuccessor { program } => {
                let input = with.ok_or(Refusal::NoDescriptor)?;
                self.start(program.as_deref(), input.into())
            }
            Request::EndSuccessor { at_once } => {
                let successor = self.successor.take().ok_or(Refusal::NoSuccessor)?;
                Ok((Answer::Ended { how: successor.end(at_once) }, Vec::new()))
            }
            Request::SetForwarding { plan, is_tried: true } => {
                Forwarding::try_out(&plan)?;
                Ok((Answer::Done, Vec::new()))
            }
            Request::SetForwarding { plan, is_tried: false } => {
                let (forwarding, was_off) = Forwarding::set_up(&plan)?;
                self.forwarding = forwarding;
                Ok((Answer::Forwarding { was_off }, Vec::new()))
            }
            Request::UndoForwarding => {
                self.undo();
                Ok((Answer::Done, Vec::new()))
            }
            Request::KeepIpv6Addresses { name } => {
                keep_ipv6_addresses(&name);
                Ok((Answer::Done, Vec::new()))
            }
            request => self.change(request).map(|()| (Answer::Done, Vec::new())),
        }
    }

    /// Undoes what is not to outlive the gateway.
    pub fn undo(&mut self) {
        self.forwarding.take().into_iter().for_each(Forwarding::undo);
    }

    fn start(&mut self, program: Option<&Path>, input: UnixStream) -> Outcome {
        // One that nobody waits for any more, as after its end.
        if self.successor.as_mut().is_some_and(Successor::lives) {
            return Err(Refusal::Started);
        }
        let successor = self.program.at(program).start(input)?;
        let process = successor.process();
        self.successor = Some(successor);
        Ok((Answer::Started { process }, Vec::new()))
    }

    fn change(&mut self, request: Request) -> Result<(), Refusal> {
        let mut netlink = self.netlink.take().map_or_else(Netlink::open, Ok)?;
        let result = change(&mut netlink, request);
        // A netlink socket that failed, and may hold the rest of an answer, is not used again.
        if !matches!(result, Err(NetlinkError::Socket { .. } | NetlinkError::Unreadable { .. })) {
            self.netlink = Some(netlink);
        }
        Ok(result?)
    }
}

fn opened(result: io::Result<OwnedFd>) -> Outcome {
    Ok(match result {
        Ok(descriptor) => (Answer::Descriptors, vec![descriptor]),
        Err(error) => (Answer::Unopened { errno: error.raw_os_error().unwrap_or(libc::EIO) }, Vec::new()),
    })
}

fn change(netlink: &mut Netlink, request: Request) -> Result<(), NetlinkError> {
    match request {
        Request::RemoveLink { interface } => netlink.remove_link(interface),
        Request::SetName { interface, name } => netlink.rename_link(interface, &name),
        Request::SetMtu { interface, mtu_bytes } => netlink.set_link_mtu(interface, mtu_bytes),
        Request::SetQueueLength { interface, frames } => netlink.set_link_queue_length(interface, frames),
        Request::SetUp { interface } => netlink.set_link_up(interface),
        Request::AddAddress { interface, address } => {
            unless(NetlinkError::is_exists, netlink.add_address(interface, address))
        }
        Request::RemoveAddress { interface, address } => {
            unless(NetlinkError::is_not_found, netlink.remove_address(interface, address))
        }
        Request::SetRoute(route) => netlink.replace_route(&route),
        Request::RemoveRoute(route) => unless(NetlinkError::is_not_found, netlink.remove_route(&route)),
        request => unreachable!("no change by netlink: {request:?}"),
    }
}

/// Forgives the one kind of error that says that there is nothing to do.
fn unless(forgiven: fn(&NetlinkError) -> bool, result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    result.or_else(|error| if forgiven(&error) { Ok(()) } else { Err(error) })
}

fn make_tun(plan: &TunPlan) -> Result<(TunDevice, Vec<TunQueue>), TunError> {
    let TunPlan { name, queues, mtu_bytes, options, address } = plan;
    let (mut device, queues) = TunDevice::create(name.as_deref(), *queues, *mtu_bytes, options)?;
    if address.addr().is_ipv6() {
        keep_ipv6_addresses(device.name());
    }
    device.configure(*address)?;
    Ok((device, queues))
}

fn join_tun(plan: &TunPlan, is_adopted: bool) -> Result<(TunDevice, Vec<TunQueue>), TunError> {
    let TunPlan { name, queues, mtu_bytes, options, .. } = plan;
    TunDevice::join(name.as_deref().unwrap_or_default(), *queues, *mtu_bytes, options, is_adopted)
}

/// The device is the other process's from now on.
fn lend_tun((device, queues): (TunDevice, Vec<TunQueue>)) -> Outcome {
    let facts = device.facts();
    let queues = copies(queues.iter().map(TunQueue::descriptor))?;
    device.leave();
    Ok((Answer::Tun(facts), queues))
}

fn lend_sockets(sockets: Vec<ShardSockets>) -> Outcome {
    Ok((Answer::Descriptors, copies(descriptors(&sockets).into_iter())?))
}

fn copies(descriptors: impl Iterator<Item = Weak<OwnedFd>>) -> io::Result<Vec<OwnedFd>> {
    let copy = |descriptor: Weak<OwnedFd>| descriptor.upgrade().ok_or(io::ErrorKind::NotConnected)?.try_clone();
    descriptors.map(copy).collect()
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
