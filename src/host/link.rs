//! The helper as the process sees it that serves.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use tollgate_config::open_file;

use super::{Answer, ForwardingPlan, MESSAGE_BYTES_MAX, Reply, Request, SocketPlan, TunPlan};
use crate::io::{
    Group, ShardSockets, SteeringError, TunDevice, TunError, TunQueue, TunSteering, UdpGroup, descriptor_messages,
};
use crate::netlink::{Netlink, NetlinkError};

/// How long the helper may take: longer than the kernel may take to answer it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the host was not changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The helper says why.
    #[error("{0}")]
    Refused(String),
    /// There is no helper any more.
    #[error("the process that changes the host for this one is gone ({0}): restart the gateway when it suits")]
    Gone(io::Error),
    /// The answer was not one to the request.
    #[error("the host's answer does not belong to the request")]
    Answer,
    /// What was lent is of no use.
    #[error("what the host has lent cannot be used: {0}")]
    Lent(io::Error),
    /// The device that was lent is of no use.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// Steering.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// How things are cannot be seen.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Has requests carried out, and looks how things are, which anybody may.
#[derive(Debug)]
pub struct Host {
    /// `None` once an answer is missing: the next one would be that.
    link: Option<OwnedFd>,
    netlink: Option<Netlink>,
    port: Option<u32>,
}

impl Host {
    /// `link` leads to the helper.
    pub(super) fn over(link: OwnedFd) -> io::Result<Self> {
        set_socket_timeout(&link, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        set_socket_timeout(&link, Timeout::Send, Some(ANSWER_TIMEOUT))?;
        Ok(Host { link: Some(link), netlink: None, port: None })
    }

    /// Has a request carried out that brings nothing.
    ///
    /// # Errors
    ///
    /// When the helper or the kernel refuses.
    pub fn change(&mut self, request: Request) -> Result<(), HostError> {
        match self.ask(&request, None)? {
            (Answer::Done, _) => Ok(()),
            _ => Err(HostError::Answer),
        }
    }

    /// Makes a TUN device; see [`Request::MakeTun`].
    ///
    /// # Errors
    ///
    /// When the helper or the kernel refuses.
    pub fn make_tun(&mut self, plan: TunPlan) -> Result<(TunDevice, Vec<TunQueue>), HostError> {
        self.lent_tun(plan.queues, &Request::MakeTun(plan))
    }

    /// Opens further queues of a TUN device; see [`Request::JoinTun`].
    ///
    /// # Errors
    ///
    /// When the helper or the kernel refuses.
    pub fn join_tun(&mut self, plan: TunPlan, is_adopted: bool) -> Result<(TunDevice, Vec<TunQueue>), HostError> {
        self.lent_tun(plan.queues, &Request::JoinTun { plan, is_adopted })
    }

    fn lent_tun(&mut self, queues: usize, request: &Request) -> Result<(TunDevice, Vec<TunQueue>), HostError> {
        match self.ask(request, None)? {
            (Answer::Tun(facts), lent) if lent.len() == queues && queues > 0 => Ok(TunDevice::lent(facts, lent)?),
            _ => Err(HostError::Answer),
        }
    }

    /// Opens the gateway's sockets; see [`Request::BindSockets`].
    ///
    /// # Errors
    ///
    /// When the helper or the kernel refuses.
    pub fn bind_sockets(&mut self, plan: SocketPlan) -> Result<Vec<ShardSockets>, HostError> {
        self.lent_sockets(&plan.clone(), &Request::BindSockets(plan))
    }

    /// Opens further sockets of its port; see [`Request::JoinSockets`].
    ///
    /// # Errors
    ///
    /// When the helper or the kernel refuses.
    pub fn join_sockets(&mut self, plan: SocketPlan) -> Result<Vec<ShardSockets>, HostError> {
        self.lent_sockets(&plan.clone(), &Request::JoinSockets(plan))
    }

    fn lent_sockets(&mut self, plan: &SocketPlan, request: &Request) -> Result<Vec<ShardSockets>, HostError> {
        let (_, lent) = self.ask(request, None)?;
        if lent.len() != 2 * plan.shards {
            return Err(HostError::Answer);
        }
        UdpGroup::lent(lent, &plan.options).map_err(HostError::Lent)
    }

    /// A map of inner addresses that knows none, and steers nothing yet.
    ///
    /// # Errors
    ///
    /// When the helper or the kernel refuses.
    pub fn steering_map(&mut self) -> Result<TunSteering, HostError> {
        Ok(TunSteering::with(self.one(&Request::MakeSteeringMap, None)?))
    }

    /// Steers the device of `queue`, whose queues `group` are, by `map`.
    ///
    /// # Errors
    ///
    /// When the helper or the kernel refuses.
    pub fn steer(&mut self, map: &TunSteering, queue: BorrowedFd<'_>, group: Group) -> Result<(), HostError> {
        let program = self.one(&Request::LoadSteering(group), Some(map.map()))?;
        Ok(TunSteering::attach(program.as_fd(), queue)?)
    }

    /// Has clients' packets forwarded, and returns whether the kernel forwarded none before; see [`Request::SetForwarding`].
    ///
    /// # Errors
    ///
    /// When the helper, nft or the kernel refuses.
    pub fn set_forwarding(&mut self, plan: ForwardingPlan) -> Result<bool, HostError> {
        match self.ask(&Request::SetForwarding { plan, is_tried: false }, None)? {
            (Answer::Forwarding { was_off }, _) => Ok(was_off),
            _ => Err(HostError::Answer),
        }
    }

    fn one(&mut self, request: &Request, with: Option<BorrowedFd<'_>>) -> Result<OwnedFd, HostError> {
        let (_, lent) = self.ask(request, with)?;
        only(lent)
    }

    /// Starts the process that is to take over, and returns its ID; see [`Request::StartSuccessor`].
    ///
    /// # Errors
    ///
    /// When the helper or the system refuses.
    pub fn start_successor(&mut self, program: Option<PathBuf>, input: UnixStream) -> Result<u32, HostError> {
        match self.ask(&Request::StartSuccessor { program }, Some(input.as_fd()))? {
            (Answer::Started { process }, _) => Ok(process),
            _ => Err(HostError::Answer),
        }
    }

    /// Waits for the end of that process, and kills it, `at_once` or when it takes too long. Returns how it ended, for people.
    pub fn end_successor(&mut self, at_once: bool) -> String {
        match self.ask(&Request::EndSuccessor { at_once }, None) {
            Ok((Answer::Ended { how }, _)) => how,
            Ok(_) => HostError::Answer.to_string(),
            Err(error) => format!("nobody knows how it ended ({error})"),
        }
    }

    /// Opens the file at `path`, which the configuration names, for reading.
    ///
    /// # Errors
    ///
    /// When neither this process nor the helper may.
    pub fn open(&mut self, path: &Path) -> io::Result<File> {
        match open_file(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.opened(&Request::OpenFile { path: path.to_owned() }).map(File::from)
            }
            opened => opened,
        }
    }

    /// The same for whoever reads several.
    pub fn opener(&mut self) -> impl Fn(&Path) -> io::Result<File> + '_ {
        let host = RefCell::new(self);
        move |path| host.borrow_mut().open(path)
    }

    /// Watches the folder of a file that the configuration names. See [`Request::WatchFolder`].
    ///
    /// # Errors
    ///
    /// When the helper may not, or there is no such folder.
    pub fn watch_folder(&mut self, file: &Path) -> io::Result<OwnedFd> {
        self.opened(&Request::WatchFolder { file: file.to_owned() })
    }

    fn opened(&mut self, request: &Request) -> io::Result<OwnedFd> {
        match self.ask(request, None) {
            Ok((Answer::Descriptors, lent)) => only(lent).map_err(io::Error::other),
            Ok((Answer::Unopened { errno }, _)) => Err(io::Error::from_raw_os_error(errno)),
            Ok(_) => Err(io::Error::other(HostError::Answer)),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// By what notifications tell its changes from others', if it has made any.
    pub fn port(&self) -> Option<u32> {
        self.port
    }

    /// Asks the kernel how things are.
    pub(super) fn look<T>(
        &mut self,
        ask: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError>,
    ) -> Result<T, HostError> {
        let mut netlink = self.netlink.take().map_or_else(Netlink::open, Ok)?;
        let answer = ask(&mut netlink);
        // A netlink socket that failed, and may hold the rest of an answer, is not used again.
        if !matches!(answer, Err(NetlinkError::Socket { .. } | NetlinkError::Unreadable { .. })) {
            self.netlink = Some(netlink);
        }
        Ok(answer?)
    }

    fn ask(&mut self, request: &Request, with: Option<BorrowedFd<'_>>) -> Result<(Answer, Vec<OwnedFd>), HostError> {
        let link = self.link.take().ok_or_else(|| HostError::Gone(io::ErrorKind::NotConnected.into()))?;
        let (reply, descriptors) = exchange(link.as_fd(), request, with).map_err(HostError::Gone)?;
        self.link = Some(link);
        self.port = reply.port.or(self.port);
        reply.result.map(|answer| (answer, descriptors)).map_err(HostError::Refused)
    }
}

/// The one descriptor that was lent.
fn only(lent: Vec<OwnedFd>) -> Result<OwnedFd, HostError> {
    let [one] = <[OwnedFd; 1]>::try_from(lent).map_err(|_| HostError::Answer)?;
    Ok(one)
}

fn exchange(
    link: BorrowedFd<'_>,
    request: &Request,
    with: Option<BorrowedFd<'_>>,
) -> io::Result<(Reply, Vec<OwnedFd>)> {
    let bytes = postcard::to_stdvec(request).map_err(io::Error::other)?;
    descriptor_messages::send_with(link, &bytes, with.as_slice())?;
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let received = descriptor_messages::receive_with(link, &mut buffer, &mut Vec::new())?;
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let reply: Reply = postcard::from_bytes(&buffer[..received]).map_err(io::Error::other)?;
    let descriptors = descriptor_messages::receive(link, reply.descriptors as usize)?;
    Ok((reply, descriptors.ok_or_else(|| io::Error::other("descriptors are missing"))?))
}
