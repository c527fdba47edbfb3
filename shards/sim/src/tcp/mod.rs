//! TCP connections through the tunnel: between a host behind the TUN and a device, and between two devices.
//!
//! Both ends are a small Reno of the simulator's own. smoltcp would be a library for them, but it knows neither super-packets nor ECN nor "packet too
//! big", which is what is to be looked at here: the network's end hands on super-packets with checksums to be completed as Linux does and takes merged
//! ones, and both ends answer marks. SACK blocks are told, and nobody uses them.
//!
//! What each connection carries is a function of the place in its stream, so that the bytes are judged when they arrive. [`Book`] follows each
//! segment, and looks at the end of a run whether the acknowledgements that are missing might be left out.

mod book;
mod drive;
mod endpoint;
mod receiver;
mod segment;
mod sender;

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::packets::Place;
use crate::plan::Plan;
use crate::random::Stream;
use crate::schedule::Time;

pub use book::Book;
use endpoint::Endpoint;
pub use receiver::DELAYED_ACK;
use segment::Ends;

/// A connection's port at the device's end is its own; beginning with this.
const FIRST_PORT: u16 = 20_000;
/// Ports that are used in turn.
const PORTS: u32 = 40_000;

/// All connections of a run.
#[derive(Debug)]
pub struct Tcp {
    pub(crate) connections: Vec<Connection>,
    by_port: FxHashMap<u16, u32>,
    random: Stream,
    calm: Option<Calm>,
    /// Whether nothing is sent any more.
    is_over: bool,
}

/// The time in which everything is to get through.
#[derive(Debug, Clone, Copy)]
struct Calm {
    since: Time,
    /// What had been lost before.
    losses: u64,
    /// Acknowledgements that the gateway had left out before.
    left_out: u64,
}

/// A connection. Its first end is the device's of its flow.
#[derive(Debug)]
pub(crate) struct Connection {
    flow: u32,
    ends: [(IpAddr, u16); 2],
    places: [Place; 2],
    endpoints: [Endpoint; 2],
    sends: [bool; 2],
    identifications: [u16; 2],
    /// When the driver is to look at it next.
    wake: Option<Time>,
    is_over: bool,
    /// Whether both ends have got all.
    is_done: bool,
    /// Whether it began in the calm.
    is_calm: bool,
}

impl Tcp {
    pub fn new(plan: &Plan) -> Self {
        Tcp {
            connections: Vec::new(),
            by_port: FxHashMap::default(),
            random: plan.draws.stream("tcp"),
            calm: None,
            is_over: false,
        }
    }

    /// The connection with these ends, and which of its ends is the source.
    fn find(&self, ends: &Ends) -> Option<(u32, usize)> {
        let candidates = [(ends.source.1, 0), (ends.destination.1, 1)];
        candidates.into_iter().find_map(|(port, side)| {
            let &index = self.by_port.get(&port)?;
            let is_it = self.connections[index as usize].ends_from(side) == *ends;
            is_it.then_some((index, side))
        })
    }
}

impl Connection {
    fn ends_from(&self, side: usize) -> Ends {
        Ends { source: self.ends[side], destination: self.ends[1 - side] }
    }
}
