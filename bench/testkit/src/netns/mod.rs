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
    ClientSite, EVERYTHING, PathToGateway, ROUTER_ALTERNATE_V4, ROUTER_V4, ROUTER_V6, SERVER_V4, SERVER_V6, SERVICE,
    SERVICE_V4, SERVICE_V6, TUNNEL_V4, Topology, TopologyPlan, link,
};
