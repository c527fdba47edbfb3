//! Notifications of changed links, addresses and routes (rtnetlink(7), multicast groups).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use super::NetlinkError;

/// `RTNLGRP_*` of linux/rtnetlink.h: links, IPv4 addresses, IPv4 routes, IPv6 addresses, IPv6 routes.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];
/// Notifications read by one [`NetlinkWatch::drain`]; the rest stays readable.
const NOTIFICATIONS_MAX: usize = 4096;
/// Interfaces told apart; with more, every one counts as changed.
const INTERFACES_MAX: usize = 64;
/// Room for the head of a notification and the attributes that are looked at; what is cut off is not needed.
const BUFFER_BYTES: usize = 4096;
/// Length of `nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Where `nlmsghdr` names the socket whose request made the change; 0 is the kernel itself.
const PORT_AT: usize = 12;
/// Length of `rtmsg`.
const ROUTE_HEADER_BYTES: usize = 12;
/// The outgoing interface among a route's attributes.
const RTA_OIF: u16 = 4;

/// What changed since the last [`NetlinkWatch::drain`].
///
/// The kernel removes IPv4 routes silently when a link goes down or an address is removed: after a change of links or addresses, look at
/// the routes too.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces came, went, or changed their state, name or MTU.
    pub links: bool,
    /// Addresses came or went.
    pub addresses: bool,
    /// Routes came or went.
    pub routes: bool,
    interfaces: BTreeSet<u32>,
    any_interface: bool,
}

impl Changes {
    /// Notifications were lost: everything may have changed.
    pub fn everything() -> Changes {
        Changes { links: true, addresses: true, routes: true, interfaces: BTreeSet::new(), any_interface: true }
    }

    /// Whether there was no notification.
    pub fn is_empty(&self) -> bool {
        !(self.links || self.addresses || self.routes)
    }

    /// Whether the interface with this index may be among those that changed.
    pub fn concern(&self, interface: u32) -> bool {
        self.any_interface || self.interfaces.contains(&interface)
    }

    /// Adds what `other` saw.
    pub fn merge(&mut self, other: Changes) {
        self.links |= other.links;
        self.addresses |= other.addresses;
        self.routes |= other.routes;
        self.any_interface |= other.any_interface;
        for interface in other.interfaces {
            self.add_interface(Some(interface));
        }
    }

    fn add_interface(&mut self, index: Option<u32>) {
        match index {
            Some(index) if self.interfaces.len() < INTERFACES_MAX || self.interfaces.contains(&index) => {
                self.interfaces.insert(index);
            }
            _ => self.any_interface = true,
        }
    }

    /// Takes one datagram of notifications, but for routes that the netlink socket `own` has changed.
    fn note(&mut self, mut datagram: &[u8], own: Option<u32>) {
        while let Some((length, kind)) = header(datagram) {
            let body = datagram.get(HEADER_BYTES..length.min(datagram.len())).unwrap_or_default();
            match kind {
                libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                    self.links = true;
                    self.add_interface(word(body, 4));
                }
                libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                    self.addresses = true;
                    self.add_interface(word(body, 4));
                }
                libc::RTM_NEWROUTE | libc::RTM_DELROUTE if own.is_some() && word(datagram, PORT_AT) == own => {}
                libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                    self.routes = true;
                    self.add_interface(outgoing_interface(body));
                }
                _ => {}
            }
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// A non-blocking subscription to the changes of one network namespace, the one in which it was opened. It is readable in a poll set
/// while there is something to drain.
///
/// It says that something changed, not what is there now: compare the kernel's state with the wanted one after each change, and once
/// after opening.
#[derive(Debug)]
pub struct NetlinkWatch {
    socket: Socket,
}

impl NetlinkWatch {
    /// Subscribes to links, addresses and routes of both families in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket.
    pub fn open() -> Result<NetlinkWatch, NetlinkError> {
        let opening = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            Ok(socket)
        };
        let socket = opening().map_err(|source| NetlinkError::socket("watch links, addresses and routes", source))?;
        Ok(NetlinkWatch { socket })
    }

    /// Reads the pending notifications, without waiting for more. An overrun or any other failure counts as a change of everything.
    pub fn drain(&self) -> Changes {
        self.drain_of_others(None)
    }

    /// The same, without the routes that the socket of [`Netlink::port`](super::Netlink::port) `own` has changed: whoever changes many need
    /// not look at all of them after each.
    pub fn drain_of_others(&self, own: Option<u32>) -> Changes {
        let mut changes = Changes::default();
        let mut buffer = [0; BUFFER_BYTES];
        for _ in 0..NOTIFICATIONS_MAX {
            match self.socket.recv(&mut &mut buffer[..], 0) {
                Ok(bytes) => changes.note(&buffer[..bytes.min(BUFFER_BYTES)], own),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    changes.merge(Changes::everything());
                    // After an overrun (ENOBUFS) the queue is read on; a socket that only fails ends the loop by its bound.
                }
            }
        }
        changes
    }
}

impl AsFd for NetlinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Length and type of the first message.
fn header(datagram: &[u8]) -> Option<(usize, u16)> {
    let length = word(datagram, 0)? as usize;
    (length >= HEADER_BYTES && datagram.len() >= HEADER_BYTES).then_some((length, half_word(datagram, 4)?))
}

/// The outgoing interface of a route's message; `None` where there are several or none.
fn outgoing_interface(body: &[u8]) -> Option<u32> {
    let mut attributes = body.get(ROUTE_HEADER_BYTES..)?;
    loop {
        let (length, kind) = (usize::from(half_word(attributes, 0)?), half_word(attributes, 2)?);
        if kind == RTA_OIF {
            return word(attributes, 4);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half_word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_interfaces_counts_as_all_of_them() {
        let mut changes = Changes::default();
        (1..=INTERFACES_MAX as u32).for_each(|index| changes.add_interface(Some(index)));
        assert!(changes.concern(1) && !changes.concern(1000));
        changes.add_interface(Some(999));
        assert!(changes.concern(1000));
    }

    #[test]
    fn cut_and_empty_notifications_are_taken_for_what_they_show() {
        let mut changes = Changes::default();
        for datagram in [&[][..], &[0; 15], &[0; 64]] {
            changes.note(datagram, None);
        }
        assert!(changes.is_empty());
        let mut route = [0u8; HEADER_BYTES + ROUTE_HEADER_BYTES];
        route[..4].copy_from_slice(&1000u32.to_ne_bytes());
        route[4..6].copy_from_slice(&libc::RTM_NEWROUTE.to_ne_bytes());
        changes.note(&route, None);
        assert!(changes.routes && changes.concern(7), "a route whose interface is cut off may be any");
    }
}
