//! The lab: private network namespaces with real kernel traffic, for the demo, the end-to-end tests and the benchmarks.
//!
//! A namespace is held by a descriptor and has no name in the file system, children die with the process that started them: whatever
//! happens, nothing is left behind. The lab uses system calls only, no external tools. It never touches the interfaces, addresses and
//! routes of the namespace that the process was started in, and all its addresses lie in 198.18.0.0/15 (RFC 2544) and fd00::/8.

mod aggregate;
pub mod bulk;
mod codel;
pub mod datagrams;
mod ecn;
mod error;
pub mod long_path;
mod namespace;
mod output;
pub mod ping;
mod privileges;
mod process;
pub mod relay;
mod topology;

pub use error::LabError;
pub use namespace::Namespace;
pub use privileges::{Privilege, enter_user_namespace, prepare, privileges, require_tun};
pub use process::Process;
pub use topology::{
    ClientSite, PathToGateway, ROUTER_ALTERNATE_V4, ROUTER_ALTERNATE_V6, ROUTER_V4, ROUTER_V6, SERVER_V4, SERVER_V6,
    SERVICE_V4, SERVICE_V6, TUNNEL_V4, TUNNEL_V6, Topology, TopologyPlan,
};

/// Ends a test early, saying why, where namespaces cannot be made.
#[cfg(test)]
macro_rules! require_privileges_or_skip {
    () => {
        if let Err(missing) = $crate::lab::privileges() {
            eprintln!("skipped: {missing}");
            return;
        }
    };
}
#[cfg(test)]
pub(crate) use require_privileges_or_skip;
