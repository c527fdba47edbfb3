//! The mesh: a bounded channel for each ordered pair of shards, and one wake-up for a batch.
//!
//! This module never looks into a message beyond whether it may be lost.

use std::collections::VecDeque;

use tollgate_shards::{Message, ShardIndex};

use super::sync::{Receiver, Sender, TrySendError, bounded};
use super::waker::{Notify, Waker};
use crate::io::Wake;

/// Messages between two shards that the receiver has not taken yet.
pub const MESSAGES_MAX: usize = 1024;
/// Messages taken from one shard in one pass.
const BATCH_MAX: usize = 256;

/// One shard's end of the mesh.
pub struct Mesh<W = Wake> {
    inboxes: Vec<Receiver<Message>>,
    peers: Vec<Peer<W>>,
}

struct Peer<W> {
    outbox: Option<Sender<Message>>,
    waker: Waker<W>,
    /// Messages that must not be lost and found the channel full. Their number is bounded by the connections they speak of.
    held: VecDeque<Message>,
    /// Whether it was woken since it last got a message.
    is_woken: bool,
}

impl<W: Notify> Mesh<W> {
    /// The ends of a mesh between the shards behind `wakers`, in order, with room for `messages_max` messages in each channel.
    pub fn between(wakers: &[Waker<W>], messages_max: usize) -> Vec<Self> {
        let shards = wakers.len();
        let mut ends: Vec<Self> = (0..shards).map(|_| Mesh { inboxes: Vec::new(), peers: Vec::new() }).collect();
        for from in 0..shards {
            for to in 0..shards {
                let outbox = (from != to).then(|| {
                    let (sender, receiver) = bounded(messages_max);
                    ends[to].inboxes.push(receiver);
                    sender
                });
                let peer = Peer { outbox, waker: wakers[to].clone(), held: VecDeque::new(), is_woken: true };
                ends[from].peers.push(peer);
            }
        }
        ends
    }

    /// Sends `message` with the next [`Mesh::flush`]. Returns how many packets were lost because the channel is full.
    pub fn send(&mut self, to: ShardIndex, message: Message) -> u64 {
        let peer = &mut self.peers[to.place()];
        let Some(outbox) = &peer.outbox else { return 0 };
        let expendable = message.expendable();
        if !peer.held.is_empty() {
            // Nothing may overtake what is held.
            if expendable.is_none() {
                peer.held.push_back(message);
            }
            return expendable.unwrap_or(0);
        }
        match outbox.try_send(message) {
            Ok(()) => peer.is_woken = false,
            Err(TrySendError::Full(message)) if expendable.is_none() => peer.held.push_back(message),
            Err(_) => return expendable.unwrap_or(0),
        }
        0
    }

    /// Sends what was held back, as far as there is room, and wakes those who have got something. Returns whether something is still held.
    pub fn flush(&mut self) -> bool {
        let mut holding = false;
        for peer in &mut self.peers {
            let Some(outbox) = &peer.outbox else { continue };
            while let Some(message) = peer.held.pop_front() {
                match outbox.try_send(message) {
                    Ok(()) => peer.is_woken = false,
                    Err(TrySendError::Full(message)) => {
                        peer.held.push_front(message);
                        holding = true;
                        break;
                    }
                    Err(TrySendError::Disconnected(_)) => {}
                }
            }
            if !peer.is_woken {
                peer.is_woken = true;
                peer.waker.wake();
            }
        }
        holding
    }

    /// Takes a bounded batch from every other shard. Returns whether there was anything.
    pub fn receive(&mut self, mut sink: impl FnMut(Message)) -> bool {
        let mut any = false;
        for inbox in &self.inboxes {
            for message in inbox.try_iter().take(BATCH_MAX) {
                any = true;
                sink(message);
            }
        }
        any
    }

    /// Whether it holds messages back that found a channel full.
    pub fn holds(&self) -> bool {
        self.peers.iter().any(|peer| !peer.held.is_empty())
    }

    /// Whether no message waits in any channel to this shard.
    pub fn is_idle(&self) -> bool {
        self.inboxes.iter().all(Receiver::is_empty)
    }
}
