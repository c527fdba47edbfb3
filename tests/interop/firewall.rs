//! A firewall in a namespace: what comes in for one UDP port is dropped by netfilter, as `nft add rule ip test in udp dport PORT drop` does. By
//! netlink, since not every machine has the program.

use rustix::net::{AddressFamily, SocketType, netlink, socket};
use tollgate_testkit::Namespace;

// linux/netfilter/nfnetlink.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
// linux/netfilter/nf_tables.h
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const NESTED: u16 = 0x8000;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;

/// Drops what comes to `inside` over IPv4 for UDP port `port`, until the namespace is gone.
///
/// # Panics
///
/// If the kernel refuses it.
pub fn drop_port(inside: &Namespace, port: u16) {
    let table = text(1, "test");
    let hook = nested(4, &[number(1, libc::NF_INET_LOCAL_IN as u32), number(2, 0)]);
    let chain = [text(1, "test"), text(3, "in"), hook, text(7, "filter")].concat();
    let protocol = expression("meta", &[number(1, 1), number(2, libc::NFT_META_L4PROTO as u32)]);
    let is_udp = compare(&[libc::IPPROTO_UDP as u8]);
    // The destination port: two bytes at offset 2 of the transport header.
    let destination = expression("payload", &[number(1, 1), number(2, 2), number(3, 2), number(4, 2)]);
    let is_port = compare(&port.to_be_bytes());
    let verdict = nested(2, &[nested(2, &[number(1, libc::NF_DROP as u32)])]);
    let refuse = expression("immediate", &[number(1, 0), verdict]);
    let expressions = nested(4, &[protocol, is_udp, destination, is_port, refuse]);
    let rule = [text(1, "test"), text(2, "in"), expressions].concat();
    let ipv4 = libc::NFPROTO_IPV4 as u8;
    let batch = [
        message(BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, &[]),
        message(NEW_TABLE, REQUEST | CREATE, ipv4, 0, &table),
        message(NEW_CHAIN, REQUEST | CREATE, ipv4, 0, &chain),
        message(NEW_RULE, REQUEST | CREATE | APPEND | ACK, ipv4, 0, &rule),
        message(BATCH_END, REQUEST, 0, SUBSYSTEM, &[]),
    ];
    let mut answer = [0; 4096];
    let answered = inside.run(|| -> rustix::io::Result<usize> {
        let socket = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER))?;
        rustix::io::write(&socket, &batch.concat())?;
        rustix::io::read(&socket, &mut answer)
    });
    assert!(answered.expect("a netlink socket") >= 20, "netfilter answers");
    let field = |at: usize| i32::from_ne_bytes(answer[at..at + 4].try_into().expect("four bytes"));
    let error = std::io::Error::from_raw_os_error(-field(16));
    let is_acknowledged = answer[4..6] == NLMSG_ERROR.to_ne_bytes() && field(16) == 0;
    assert!(is_acknowledged, "netfilter: {error}");
}

/// A netlink message of netfilter, behind its two headers.
fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend((20 + attributes.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(attributes);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = Vec::new();
    attribute.extend((4 + value.len() as u16).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, format!("{value}\0").as_bytes())
}

fn nested(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &attributes.concat())
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)])
}

/// Goes on if register 1 holds `value`.
fn compare(value: &[u8]) -> Vec<u8> {
    expression("cmp", &[number(1, 1), number(2, 0), nested(3, &[attribute(1, value)])])
}
