//! Addresses of interfaces.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
};

use super::{Netlink, NetlinkError};

impl Netlink {
    /// Adds an address with its prefix to an interface; the kernel adds the route to the prefix.
    ///
    /// IPv6 addresses skip duplicate address detection (RFC 4862, section 5.4), so that they are usable at once.
    ///
    /// # Errors
    ///
    /// `is_exists()` when the interface has the address already.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut message = message(index, address);
        if address.addr().is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let operation = || format!("add address {address} to interface #{index}");
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, &operation)?;
        Ok(())
    }

    /// Removes an address from an interface.
    ///
    /// # Errors
    ///
    /// `is_not_found()` when the interface does not have it.
    pub fn remove_address(&mut self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let operation = || format!("remove address {address} from interface #{index}");
        self.request(RouteNetlinkMessage::DelAddress(message(index, address)), 0, &operation)?;
        Ok(())
    }

    /// Lists the addresses of an interface with their prefixes, IPv6 link-local ones included.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let messages = self.dump(&request, &|| format!("list the addresses of interface #{index}"))?;
        let mine = messages.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(address) if address.header.index == index => address_of(address),
            _ => None,
        });
        Ok(mine.collect())
    }
}

fn message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match address.addr() {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message
}

/// The interface's own address: `Local` where there is one (on point-to-point links `Address` is the other end's).
fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    IpNet::new(local.or(any)?, message.header.prefix_len).ok()
}
