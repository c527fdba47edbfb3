//! Where the kernel's programs steer what arrives: datagrams to sockets, inner packets to queues.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use bytes::BytesMut;
use tollgate::io::SteeringMap;
use tollgate_shards::Received;

use crate::plan::LayoutPlan;

const EINVAL: i32 = 22;

/// The steering map: low 16 bits of an address, a half for each family.
#[derive(Debug, Clone)]
pub struct Map(Rc<Vec<Cell<u32>>>);

/// Entries of a family.
const FAMILY_ENTRIES: usize = 1 << 16;

impl Default for Map {
    fn default() -> Self {
        Map(Rc::new(vec![Cell::new(0); 2 * FAMILY_ENTRIES]))
    }
}

impl SteeringMap for Map {
    fn update(&self, entry: u32, value: u32) -> io::Result<()> {
        let entry = self.0.get(entry as usize).ok_or_else(|| io::Error::from_raw_os_error(EINVAL))?;
        entry.set(value);
        Ok(())
    }
}

impl Map {
    /// The queue of `queues` that the kernel's program chooses for a packet to `destination`.
    pub fn queue_of(&self, destination: IpAddr, queues: u16) -> u16 {
        let key = match destination {
            IpAddr::V4(ip) => usize::from(u16::from_be_bytes([ip.octets()[2], ip.octets()[3]])),
            IpAddr::V6(ip) => FAMILY_ENTRIES + usize::from(ip.segments()[7]),
        };
        match self.0[key].get() as usize {
            0 => (key % usize::from(queues)) as u16,
            set => ((set - 1) % usize::from(queues)) as u16,
        }
    }

    /// Entries that are set.
    pub fn set(&self) -> usize {
        self.0.iter().filter(|entry| entry.get() != 0).count()
    }
}

/// Which socket of a split group the kernel's program chooses: a shard, and whether it is the one for handshakes. What has no connection ID goes
/// to the first shard.
pub fn socket_of(datagram: &[u8], layout: &LayoutPlan, shards: u16) -> (u16, bool) {
    let is_long = datagram.first().is_some_and(|first| first & 0x80 != 0);
    let id = match datagram {
        [_, _, _, _, _, length, rest @ ..] if is_long => &rest[..rest.len().min(usize::from(*length))],
        [_, rest @ ..] if !is_long => rest,
        _ => &[],
    };
    layout.shard_of(id, shards).map_or((0, true), |shard| (shard, is_long))
}

/// Cuts what came for a socket without GRO into its datagrams.
pub fn apart(received: Received) -> impl Iterator<Item = Received> {
    let Received { remote, local_ip, ecn, segment_bytes, data } = received;
    let datagrams: Vec<_> = data.chunks(segment_bytes.max(1)).map(BytesMut::from).collect();
    datagrams.into_iter().map(move |data| Received { remote, local_ip, ecn, segment_bytes: data.len(), data })
}
