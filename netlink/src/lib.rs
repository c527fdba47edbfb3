//! A synchronous rtnetlink client: links, addresses and routes of one network namespace (RFC 3549).
//!
//! It owns one blocking netlink socket. Every change is acknowledged by the kernel before the call returns, and a refusal names the
//! operation, the object and the kernel's reason. Changes that others make are told by a socket of its own, [`NetlinkWatch`]. None of it runs
//! on the data path.

mod address;
mod error;
mod link;
mod route;
mod watch;

use std::time::Duration;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt;

pub use error::NetlinkError;
pub use link::{Link, TunLink, VethPeer};
pub use route::{NextHop, PROTOCOL_KERNEL, PROTOCOL_OWN, PROTOCOL_STATIC, Route};
pub use watch::{Changes, NetlinkWatch};

/// How long the kernel may take to answer; it answers within the system call, so that this only guards against a lost answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an interrupted dump is started again before its last, possibly inconsistent, answer is refused.
const DUMP_ATTEMPTS_MAX: u32 = 8;

/// A connection to the kernel's routing tables of the network namespace in which it was opened.
///
/// It stays with that namespace, whichever thread uses it later.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    port: u32,
    sequence: u32,
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket (descriptor limit, or a sandbox that forbids the family).
    pub fn open() -> Result<Self, NetlinkError> {
        let opening = || -> std::io::Result<(Socket, u32)> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            let port = socket.bind_auto()?.port_number();
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
            Ok((socket, port))
        };
        let (socket, port) = opening().map_err(|source| NetlinkError::socket("open a netlink socket", source))?;
        Ok(Self { socket, port, sequence: 0 })
    }

    /// Its address in the namespace, by which notifications name who made a change.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends one request and returns what came before its acknowledgement.
    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: &dyn Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let answer = self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags, operation)?;
        Ok(answer.messages)
    }

    /// Reads a whole table, again from the start when it changed meanwhile.
    fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
        operation: &dyn Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS_MAX {
            let answer = self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, operation)?;
            if !answer.interrupted {
                return Ok(answer.messages);
            }
        }
        Err(NetlinkError::refused(operation(), libc::EINTR, Some("the table kept changing while it was read".into())))
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: &dyn Fn() -> String,
    ) -> Result<Answer, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let socket_error = |source| NetlinkError::socket(operation(), source);
        self.socket.send(&bytes, 0).map_err(socket_error)?;

        let mut answer = Answer { messages: Vec::new(), interrupted: false };
        loop {
            let (bytes, _) = self.socket.recv_from_full().map_err(socket_error)?;
            if self.take_datagram(&bytes, &mut answer, operation)? {
                return Ok(answer);
            }
        }
    }

    /// Takes the messages of one datagram; true when the last of the answer was among them.
    fn take_datagram(
        &self,
        mut bytes: &[u8],
        answer: &mut Answer,
        operation: &dyn Fn() -> String,
    ) -> Result<bool, NetlinkError> {
        while !bytes.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
                .map_err(|source| NetlinkError::Unreadable { operation: operation(), reason: source.to_string() })?;
            let length = (message.header.length as usize).next_multiple_of(4);
            bytes = bytes.get(length..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                continue;
            }
            answer.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => answer.messages.push(inner),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(true),
                NetlinkPayload::Done(done) => return Err(NetlinkError::refused(operation(), -done.code, None)),
                NetlinkPayload::Error(error) => match error.code {
                    None => return Ok(true),
                    Some(code) => {
                        let words = kernel_words(&error);
                        return Err(NetlinkError::refused(operation(), -code.get(), words));
                    }
                },
                _ => {}
            }
        }
        Ok(false)
    }
}

/// What the kernel sent in answer to one request.
struct Answer {
    messages: Vec<RouteNetlinkMessage>,
    interrupted: bool,
}

/// The kernel's own sentence about a refusal: the extended acknowledgement's NLMSGERR_ATTR_MSG, behind the request's header.
fn kernel_words(error: &ErrorMessage) -> Option<String> {
    const REQUEST_HEADER_BYTES: usize = 16;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let attributes = error.header.get(REQUEST_HEADER_BYTES..)?;
    let text = NlasIterator::new(attributes).filter_map(Result::ok).find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(text.value());
    Some(text.trim_end_matches('\0').to_owned())
}
