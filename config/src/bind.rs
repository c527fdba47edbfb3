//! Where a gateway receives QUIC.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::document::Report;
use crate::kind::{listen, port};
use crate::schema::{RESTART, read_key};
use crate::table::Table;

/// Where a gateway listens that names neither address nor port.
pub(crate) const DEFAULT_BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 55_555);

/// Where to receive QUIC.
pub(crate) fn read_bind(root: &mut Table<'_>, report: &mut Report<'_>) -> SocketAddr {
    let address = read_key("bind_address", listen, RESTART, root, report);
    let port = read_key("bind_port", port, RESTART, root, report);
    SocketAddr::new(address.unwrap_or(DEFAULT_BIND.ip()), port.unwrap_or(DEFAULT_BIND.port()))
}
