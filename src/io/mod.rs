//! The shell's input and output: UDP sockets, TUN queues, what steers packets to them, and how a shard sleeps on them.
//!
//! Everything here is a thin, counted layer over system calls. Each shard owns one [`UdpSocket`] and one [`TunQueue`] and shares
//! neither; only [`TunSteering`] and [`Wake`] are shared. Nothing here looks at a connection, a user or a route.

mod bpf;
pub mod clock;
mod cmsg;
pub mod descriptor_messages;
mod members;
mod poller;
mod receive;
mod reuseport;
mod sockaddr;
mod transmit;
mod tun;
mod tun_adopted;
mod tun_facts;
mod tun_queue;
mod tun_steering;
mod udp;
pub mod uring;
mod wake;

#[cfg(test)]
mod testnet;

pub use bpf::BpfMap;
pub use members::{Group, Members};
pub use poller::{Poller, Readiness};
pub use receive::{ReceiveBatch, ReceiveCounters, ReceiveOutcome, SLOT_BYTES};
pub use transmit::{DATA_BYTES_MIN, SendCounters, SendOutcome, TransmitBatch};
pub use tun::{QUEUES_MAX, TunDevice, TunError};
pub use tun_facts::{Offloads, TunFacts, TunOptions};
pub use tun_queue::{FRAME_BYTES_MAX, TunCounters, TunQueue, WriteOutcome};
pub use tun_steering::{SteeringError, SteeringMap, TunSteering};
pub use udp::{BindError, ShardSockets, UdpGroup, UdpOptions, UdpSocket, descriptors};
pub use wake::Wake;
