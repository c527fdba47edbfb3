//! Links: interfaces by name and index, their state, name, MTU and namespace, and pairs of virtual Ethernet devices.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Nla};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoTun, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::{Netlink, NetlinkError};

/// A network interface as the kernel described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The interface index, unique in its namespace.
    pub index: u32,
    /// The interface name, at most 15 bytes.
    pub name: String,
    /// The link MTU in bytes.
    pub mtu_bytes: u32,
    /// The length of its transmit queue, in packets.
    pub queue_frames: u32,
    /// Whether it is administratively up.
    pub is_up: bool,
    /// Whether it carries packets. The kernel gets there in the background, some time after both ends of a link are up; until then it
    /// drops what is sent.
    pub is_running: bool,
    /// Whether it is a TUN or TAP device, whose other end is a program.
    pub is_tun: bool,
}

/// What the kernel tells of a TUN or TAP device beside what every [`Link`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunLink {
    /// Whether it carries IP packets (TUN), and not Ethernet frames (TAP).
    pub is_tun: bool,
    /// Whether it stays when nobody has it open.
    pub is_persistent: bool,
    /// Whether it has several queues.
    pub is_multi_queue: bool,
    /// Whether somebody has a queue of it open.
    pub is_in_use: bool,
}

/// The far end of a pair of virtual Ethernet devices.
#[derive(Debug, Clone, Copy)]
pub struct VethPeer<'a> {
    /// The name of the far end, at most 15 bytes.
    pub name: &'a str,
    /// The network namespace in which it is placed.
    pub namespace: BorrowedFd<'a>,
}

impl Netlink {
    /// Finds an interface by its name.
    ///
    /// # Errors
    ///
    /// `is_not_found()` when there is none of that name.
    pub fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.one_link(message, &|| format!("find interface {name}"))
    }

    /// What is to know of the TUN or TAP device of that name; `None` when the interface is something else.
    ///
    /// # Errors
    ///
    /// `is_not_found()` when there is none of that name.
    pub fn tun_link(&mut self, name: &str) -> Result<Option<TunLink>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let operation = || format!("find interface {name}");
        let messages = self.request(RouteNetlinkMessage::GetLink(message), 0, &operation)?;
        let link = messages.iter().find_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        Ok(tun_described(link.ok_or_else(|| NetlinkError::missing_answer(operation()))?))
    }

    /// Finds an interface by its index.
    ///
    /// # Errors
    ///
    /// `is_not_found()` when there is none.
    pub fn link_by_index(&mut self, index: u32) -> Result<Link, NetlinkError> {
        self.one_link(numbered(index), &|| format!("find interface #{index}"))
    }

    /// Lists all interfaces of the namespace, in order of their index.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let messages =
            self.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()), &|| "list interfaces".to_owned())?;
        let mut links: Vec<Link> = messages.iter().filter_map(described).collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Brings an interface up.
    ///
    /// # Errors
    ///
    /// When it does not exist, or without CAP_NET_ADMIN.
    pub fn set_link_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(message, &|| format!("bring interface #{index} up"))
    }

    /// Takes an interface down; the kernel removes its routes and its IPv6 addresses.
    ///
    /// # Errors
    ///
    /// When it does not exist, or without CAP_NET_ADMIN.
    pub fn set_link_down(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.header.change_mask = LinkFlags::Up;
        self.change(message, &|| format!("take interface #{index} down"))
    }

    /// Gives an interface another name.
    ///
    /// # Errors
    ///
    /// When the name is taken or longer than 15 bytes, or, before Linux 6.0, when the interface is up.
    pub fn rename_link(&mut self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.change(message, &|| format!("rename interface #{index} to {name}"))
    }

    /// Sets the link MTU in bytes.
    ///
    /// # Errors
    ///
    /// When the device does not support that size.
    pub fn set_link_mtu(&mut self, index: u32, mtu_bytes: u32) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.attributes.push(LinkAttribute::Mtu(mtu_bytes));
        self.change(message, &|| format!("set the MTU of interface #{index} to {mtu_bytes}"))
    }

    /// Sets the length of the transmit queue, in packets.
    ///
    /// # Errors
    ///
    /// When it does not exist, or without CAP_NET_ADMIN.
    pub fn set_link_queue_length(&mut self, index: u32, frames: u32) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.attributes.push(LinkAttribute::TxQueueLen(frames));
        self.change(message, &|| format!("set the queue length of interface #{index} to {frames}"))
    }

    /// Moves an interface to another network namespace. It arrives there down and without addresses.
    ///
    /// # Errors
    ///
    /// When the device is bound to its namespace, or its name is taken in the other one.
    pub fn move_link(&mut self, index: u32, namespace: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        self.change(message, &|| format!("move interface #{index} to another network namespace"))
    }

    /// Removes an interface; the other end of a pair goes with it.
    ///
    /// # Errors
    ///
    /// When it does not exist or is not a virtual device.
    pub fn remove_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelLink(numbered(index));
        self.request(message, 0, &|| format!("remove interface #{index}"))?;
        Ok(())
    }

    /// Makes a pair of virtual Ethernet devices: `name` here, the peer in its namespace. Both are down.
    ///
    /// # Errors
    ///
    /// `is_exists()` when one of the names is taken; also when the kernel has no veth driver.
    pub fn add_veth(&mut self, name: &str, peer: VethPeer<'_>) -> Result<(), NetlinkError> {
        let mut far = LinkMessage::default();
        far.attributes.push(LinkAttribute::IfName(peer.name.to_owned()));
        far.attributes.push(LinkAttribute::NetNsFd(peer.namespace.as_raw_fd()));
        let mut near = LinkMessage::default();
        near.attributes.push(LinkAttribute::IfName(name.to_owned()));
        near.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        let message = RouteNetlinkMessage::NewLink(near);
        self.request(message, NLM_F_CREATE | NLM_F_EXCL, &|| format!("make the veth pair {name}, {}", peer.name))?;
        Ok(())
    }

    fn change(&mut self, message: LinkMessage, operation: &dyn Fn() -> String) -> Result<(), NetlinkError> {
        self.request(RouteNetlinkMessage::SetLink(message), 0, operation)?;
        Ok(())
    }

    fn one_link(&mut self, message: LinkMessage, operation: &dyn Fn() -> String) -> Result<Link, NetlinkError> {
        let messages = self.request(RouteNetlinkMessage::GetLink(message), 0, operation)?;
        messages.iter().find_map(described).ok_or_else(|| NetlinkError::missing_answer(operation()))
    }
}

fn numbered(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn described(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let mtu_bytes = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let queue_frames = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::TxQueueLen(frames) => Some(*frames),
        _ => None,
    });
    let is_tun = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Tun))),
        _ => false,
    });
    Some(Link {
        index: link.header.index,
        name,
        mtu_bytes: mtu_bytes.unwrap_or_default(),
        queue_frames: queue_frames.unwrap_or_default(),
        is_up: link.header.flags.contains(LinkFlags::Up),
        is_running: link.header.flags.contains(LinkFlags::Running),
        is_tun,
    })
}

/// Attributes of `linux/if_link.h`, each of one byte.
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;

fn tun_described(message: &LinkMessage) -> Option<TunLink> {
    let mut tun = TunLink::default();
    let mut is_of_this_kind = false;
    for attribute in &message.attributes {
        match attribute {
            // The driver says that there is a carrier as long as there is a queue.
            LinkAttribute::Carrier(carrier) => tun.is_in_use = *carrier != 0,
            LinkAttribute::LinkInfo(infos) => {
                is_of_this_kind = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
                for info in infos {
                    let LinkInfo::Data(InfoData::Tun(values)) = info else { continue };
                    for value in values {
                        let InfoTun::Other(value) = value else { continue };
                        let mut byte = [0];
                        if value.value_len() == 1 {
                            value.emit_value(&mut byte);
                        }
                        match value.kind() {
                            IFLA_TUN_TYPE => tun.is_tun = libc::c_int::from(byte[0]) == libc::IFF_TUN,
                            IFLA_TUN_PERSIST => tun.is_persistent = byte[0] != 0,
                            IFLA_TUN_MULTI_QUEUE => tun.is_multi_queue = byte[0] != 0,
                            _ => {}
                        }
                    }
                }
            }
            _ => {}
        }
    }
    is_of_this_kind.then_some(tun)
}
