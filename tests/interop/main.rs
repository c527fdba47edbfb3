//! The unmodified Quincy client, 3.1.1, through the real gateway, in private network namespaces.

mod admission;
mod aggregate;
mod data_path;
mod exchanges;
mod families;
mod firewall;
mod flood;
mod forger;
mod hostile;
mod lifecycle;
mod limits;
mod long_path;
mod mtu;
mod narrowing;
mod noise;
mod ordering;
mod placement;
mod rebinding;
mod reflection;
mod refusals;
mod reload;
mod sockets;
mod stranger;
mod users;
