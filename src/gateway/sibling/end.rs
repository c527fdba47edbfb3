//! A core's end of the link.

use std::sync::Arc;
use std::vec;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError, never};
use tollgate_shards::{Message, ShardIndex, Shards, Users, sibling};

use super::{Line, push_frame};

/// What a core keeps for the other process while the writer has enough, in bytes. Beyond it goes nothing but control messages, whose number is bounded
/// by the connections they speak of.
pub const OUTGOING_BYTES_MAX: usize = 1 << 20;
/// Messages taken in one pass.
const BATCH_MAX: usize = 256;

/// One core's end: what the [`Mesh`](crate::gateway::mesh::Mesh) is between the cores of a process.
#[derive(Debug)]
pub struct SiblingEnd {
    pub(super) line: Arc<Line>,
    outbox: Sender<Vec<u8>>,
    /// Frames that the writer has not been given.
    outgoing: Vec<u8>,
    inbox: Receiver<Vec<Bytes>>,
    /// What is left of the batch that was taken last.
    incoming: vec::IntoIter<Bytes>,
}

impl SiblingEnd {
    pub(super) fn new(line: Arc<Line>, outbox: Sender<Vec<u8>>, inbox: Receiver<Vec<Bytes>>) -> Self {
        SiblingEnd { line, outbox, outgoing: Vec::new(), inbox, incoming: Vec::new().into_iter() }
    }

    /// Sends `message` with the next [`SiblingEnd::flush`]; `users` are those of the shard that says it. Returns how many packets were lost because there
    /// is no room, or the other process is gone.
    pub fn send(&mut self, to: ShardIndex, message: Message, users: &Users) -> u64 {
        let expendable = message.expendable();
        if self.line.has_ended() || (expendable.is_some() && self.outgoing.len() >= OUTGOING_BYTES_MAX) {
            return expendable.unwrap_or(0);
        }
        // It is allocated and copied: few packets go to another process, and only while there are two.
        match sibling::encode(to, message, users) {
            Ok(bytes) => push_frame(&mut self.outgoing, to.place() as u16, &bytes),
            Err(_) if expendable.is_some() => return expendable.unwrap_or(0),
            Err(error) => self.line.end(format!("a message for it cannot be sent: {error}")),
        }
        0
    }

    /// Gives the writer what was sent, if it has room. Returns whether something is still held.
    pub fn flush(&mut self) -> bool {
        if self.outgoing.is_empty() {
            return false;
        }
        match self.outbox.try_send(std::mem::take(&mut self.outgoing)) {
            Err(TrySendError::Full(outgoing)) => {
                self.outgoing = outgoing;
                true
            }
            Ok(()) | Err(TrySendError::Disconnected(_)) => false,
        }
    }

    /// Takes a bounded batch. Returns whether there was anything. `own` are the shards of this process, `users` those of this core's shard.
    pub fn receive(&mut self, own: Shards, users: &Users, sink: impl FnMut(Message)) -> bool {
        self.take(BATCH_MAX, own, users, sink)
    }

    /// Takes all that has come. Once the other process [is gone](super::Said::Gone), nothing more will.
    pub fn receive_all(&mut self, own: Shards, users: &Users, mut sink: impl FnMut(Message)) {
        while self.take(BATCH_MAX, own, users, &mut sink) {}
    }

    /// Whether no message waits.
    pub fn is_idle(&self) -> bool {
        self.incoming.as_slice().is_empty() && self.inbox.is_empty()
    }

    fn take(&mut self, max: usize, own: Shards, users: &Users, mut sink: impl FnMut(Message)) -> bool {
        let mut any = false;
        for _ in 0..max {
            let Some(bytes) = self.next() else { break };
            any = true;
            match sibling::decode(&bytes, own, users) {
                Ok((_, message)) => sink(message),
                Err(error) => {
                    self.line.end(format!("a message of it cannot be read: {error}"));
                    // Nothing may come after what is missing.
                    (self.inbox, self.incoming) = (never(), Vec::new().into_iter());
                }
            }
        }
        any
    }

    fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.incoming.next() {
                return Some(bytes);
            }
            self.incoming = self.inbox.try_recv().ok()?.into_iter();
        }
    }
}
