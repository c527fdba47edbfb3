//! The groups of the kernel that the gateway's sockets and TUN queues are in, and how packets are steered in them.
//!
//! While two processes share them, the one that joined last says who gets what, and lets those of the other one leave in an order that it knows: it has
//! copies of their descriptors, so that they stay, whatever becomes of their process, until it closes them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use tollgate_shards::{Generation, Received, Steering};
use tracing::warn;

use crate::host::Host;
use crate::io::{
    BindError, Group, Members, ReceiveBatch, ShardSockets, TunQueue, TunSteering, UdpGroup, UdpSocket, descriptors,
};

/// Messages read at once from a socket of the process before this one.
const BATCH: usize = 8;
/// What is taken from all of them, in bytes.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// The sockets, or the queues, of this process.
#[derive(Debug)]
struct Own {
    /// In the order of their indices. The cores own them.
    descriptors: Vec<Weak<OwnedFd>>,
    members: Members,
}

impl Own {
    fn alone(descriptors: Vec<Weak<OwnedFd>>) -> Self {
        let members = Members::behind(0, descriptors.len() as u32);
        Own { descriptors, members }
    }

    fn behind(others: &Others, descriptors: Vec<Weak<OwnedFd>>) -> Self {
        let members = Members::behind(others.members.count(), descriptors.len() as u32);
        Own { descriptors, members }
    }

    /// One that is open.
    fn any(&self) -> Option<Arc<OwnedFd>> {
        self.descriptors.iter().find_map(Weak::upgrade)
    }

    /// Copies of all, in the kernel's order.
    fn lend(&self) -> io::Result<Vec<OwnedFd>> {
        let mut places: Vec<_> = (0..).map(|member| self.members.place(member)).zip(&self.descriptors).collect();
        places.sort_by_key(|(place, _)| *place);
        let copy = |(_, descriptor): (u32, &Weak<OwnedFd>)| {
            descriptor.upgrade().ok_or(io::ErrorKind::NotConnected)?.try_clone()
        };
        places.into_iter().map(copy).collect()
    }
}

/// The sockets, or the queues, of the process before this one.
#[derive(Debug)]
pub struct Others {
    /// Copies, in the kernel's order.
    pub descriptors: Vec<OwnedFd>,
    /// Where they stand.
    pub members: Members,
}

/// What belongs to the process before this one.
#[derive(Debug)]
pub struct Predecessors {
    /// Its UDP sockets.
    pub sockets: Others,
    /// Its queues of the TUN device.
    pub queues: Others,
}

/// Both groups.
#[derive(Debug)]
pub struct Groups {
    generation: Generation,
    address: SocketAddr,
    by: Steering,
    sockets: Own,
    queues: Own,
    /// What steers to the queues, where there is such.
    map: Option<Arc<TunSteering>>,
}

impl Groups {
    /// Those of a process that has none beside it. Steers to the queues.
    pub fn alone(
        generation: Generation,
        by: Steering,
        sockets: &[ShardSockets],
        queues: &[TunQueue],
        address: SocketAddr,
        host: &mut Host,
    ) -> Self {
        let map = steer_tun(queues, host);
        let [sockets, queues] = [descriptors(sockets), descriptors_of(queues)].map(Own::alone);
        Groups { generation, address, by, sockets, queues, map }
    }

    /// Those of a process that has joined behind `before`, which has lent its `map`. Nothing is steered otherwise yet.
    pub fn behind(
        generation: Generation,
        by: Steering,
        sockets: Vec<Weak<OwnedFd>>,
        queues: &[TunQueue],
        address: SocketAddr,
        before: &Predecessors,
        map: Option<Arc<TunSteering>>,
    ) -> Self {
        let sockets = Own::behind(&before.sockets, sockets);
        let queues = Own::behind(&before.queues, descriptors_of(queues));
        Groups { generation, address, by, sockets, queues, map }
    }

    /// What steers to the queues.
    pub fn map(&self) -> Option<&Arc<TunSteering>> {
        self.map.as_ref()
    }

    /// Where the sockets and where the queues stand.
    pub fn members(&self) -> [Members; 2] {
        [self.sockets.members, self.queues.members]
    }

    /// Copies of all sockets and of all queues, each in the kernel's order.
    ///
    /// # Errors
    ///
    /// When descriptors run out, or a core has lost one of its own.
    pub fn lend(&self) -> io::Result<[Vec<OwnedFd>; 2]> {
        Ok([self.sockets.lend()?, self.queues.lend()?])
    }

    /// Other sockets are in the place of all that there were.
    pub fn replace_sockets(&mut self, sockets: &[ShardSockets]) {
        self.sockets = Own::alone(descriptors(sockets));
    }

    /// Other queues, of another device, are in the place of all that there were.
    pub fn replace_queues(&mut self, queues: &[TunQueue], host: &mut Host) {
        self.queues = Own::alone(descriptors_of(queues));
        self.steer_queues(Group::of_one(self.queues.members), host);
    }

    /// Gives this process all that is nobody's, new clients among it, and the one before its own.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: then nothing is steered otherwise.
    pub fn take_over(&self, before: &Predecessors, host: &mut Host) -> Result<(), BindError> {
        let of_two = |own: &Own, others: &Others| Group::of_two(self.generation, own.members, others.members);
        // Frames first: no client has anything here before it can log in here.
        self.steer_queues(of_two(&self.queues, &before.queues), host);
        self.steer_sockets(of_two(&self.sockets, &before.sockets))
    }

    /// The process before this one has ended: its sockets and queues, which get nothing any more, leave.
    pub fn let_leave(&mut self, before: Predecessors, host: &mut Host) {
        let Predecessors { sockets, queues } = before;
        leave(queues.descriptors, &mut self.queues.members, |own| {
            steer_queues(&self.map, self.queues.descriptors.iter(), Group::of_one(own), host);
        });
        let socket = self.sockets.any();
        leave(sockets.descriptors, &mut self.sockets.members, |own| {
            if let Some(socket) = &socket {
                // A step that is missed is made up for by the next one; until then some packets come to the wrong shard, which passes them on.
                let _ = UdpGroup::steer(self.address, socket.as_fd(), Group::of_one(own), self.by);
            }
        });
        // Where the last step was missed.
        self.take_all(host);
    }

    /// What waits at the sockets of the process before this one, which reads nothing any more. What is refused is lost, as on the way.
    pub fn take_waiting(&self, before: &Predecessors) -> Vec<Received> {
        let (mut waiting, mut bytes) = (Vec::new(), 0);
        let mut batch = ReceiveBatch::new(BATCH);
        for descriptor in &before.sockets.descriptors {
            let Ok(socket) = descriptor.try_clone().and_then(|copy| UdpSocket::lent(copy, false)) else { continue };
            while bytes < WAITING_BYTES_MAX
                && let Ok(outcome) = socket.receive(&mut batch, &mut |received| waiting.push(received))
                && outcome.messages > 0
            {
                bytes += outcome.bytes;
            }
        }
        waiting
    }

    /// Gives this process all there is, whoever else is still in the groups.
    pub fn take_all(&self, host: &mut Host) {
        self.steer_queues(Group::of_one(self.queues.members), host);
        if let Err(error) = self.steer_sockets(Group::of_one(self.sockets.members)) {
            warn!("{error}");
        }
    }

    fn steer_sockets(&self, group: Group) -> Result<(), BindError> {
        // Without a socket there is nothing to steer: those that are opened anew begin alone.
        let Some(socket) = self.sockets.any() else { return Ok(()) };
        UdpGroup::steer(self.address, socket.as_fd(), group, self.by)
    }

    fn steer_queues(&self, group: Group, host: &mut Host) {
        steer_queues(&self.map, self.queues.descriptors.iter(), group, host);
    }
}

/// Closes `others` from the last to the first. After each, `own` stand elsewhere, and `steer` is told.
fn leave(mut others: Vec<OwnedFd>, own: &mut Members, mut steer: impl FnMut(Members)) {
    while let Some(last) = others.pop() {
        drop(last);
        *own = own.one_left();
        steer(*own);
    }
}

fn steer_queues<'a>(
    map: &Option<Arc<TunSteering>>,
    mut queues: impl Iterator<Item = &'a Weak<OwnedFd>>,
    group: Group,
    host: &mut Host,
) {
    if let Some(map) = map
        && let Some(queue) = queues.find_map(Weak::upgrade)
        && let Err(error) = host.steer(map, queue.as_fd(), group)
    {
        warn!("{error}");
    }
}

fn descriptors_of(queues: &[TunQueue]) -> Vec<Weak<OwnedFd>> {
    queues.iter().map(TunQueue::descriptor).collect()
}

fn steer_tun(queues: &[TunQueue], host: &mut Host) -> Option<Arc<TunSteering>> {
    if queues.len() < 2 {
        return None;
    }
    let steered = host.steering_map().and_then(|map| {
        host.steer(&map, queues[0].as_fd(), Group::alone(queues.len()))?;
        Ok(map)
    });
    match steered {
        Ok(map) => Some(Arc::new(map)),
        Err(error) => {
            warn!("{error}");
            None
        }
    }
}
