//! Network namespaces, what runs in them, and the links between them.

mod namespace;
mod output;
mod privileges;
mod process;
mod topology;

pub use namespace::Namespace;
pub use privileges::{Privilege, prepare, privileges, require_tun};
pub use process::Process;
pub use topology::{
    ClientSite, PathToGateway, ROUTER_ALTERNATE_V4, ROUTER_ALTERNATE_V6, ROUTER_V4, ROUTER_V6, SERVER_V4, SERVER_V6,
    SERVICE_V4, SERVICE_V6, TUNNEL_V4, TUNNEL_V6, Topology, TopologyPlan,
};
