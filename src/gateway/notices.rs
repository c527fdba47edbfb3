//! What the cores tell the control plane: values in a channel, and one eventfd that wakes the event loop.
//!
//! A core goes by its shard's place here.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use tollgate_shards::{CommandId, ShardIndex};

use super::core::Report;
use super::seat::GivenUp;
use super::waker::Notify;
use crate::io::Wake;

/// What a core tells. The number of notices that wait is bounded: a core sends one for each command, one when it has taken over, one when it ends, one for each
/// descriptor that it loses, of which it gets another one from the control plane only, and one for each panic, of which there are few.
#[derive(Debug)]
pub enum Notice {
    /// The core has ended.
    Ended {
        /// The shard.
        shard: u16,
    },
    /// The core's shard has panicked, and another one is in its place.
    BegunAnew {
        /// The shard.
        shard: ShardIndex,
        /// Its incarnation: all that is of an earlier one is gone.
        incarnation: u32,
    },
    /// The core's shard has panicked, and no other one takes its place. The core ends.
    GivenUp {
        /// The shard.
        shard: u16,
        /// What keeps another one out.
        because: GivenUp,
    },
    /// The shard knows all that the process before this one has told. Once for each shard of a process that takes over.
    TakenOver {
        /// The shard.
        shard: u16,
    },
    /// The core's answer to a request for its status.
    Report {
        /// The request.
        command: CommandId,
        /// The core's status.
        report: Box<Report>,
    },
    /// The core has executed the command, and the process before this one may have it.
    Begun {
        /// The command.
        command: CommandId,
    },
    /// Every shard has carried out the command, and this core has sent what that made it send.
    Done {
        /// The command.
        command: CommandId,
        /// The shard.
        shard: u16,
        /// Connections of this shard that were closed for it.
        closed_connections: u64,
    },
    /// The TUN queue of this generation is out of order.
    LostTun(u64),
    /// The UDP sockets of this generation are out of order.
    LostUdp(u64),
    /// The core has closed its UDP sockets.
    ReleasedUdp {
        /// The shard.
        shard: u16,
    },
}

/// A core's end. Sending never blocks.
#[derive(Debug)]
pub struct NoticeSender<W = Wake> {
    sender: Sender<Notice>,
    wake: Arc<W>,
}

impl<W> Clone for NoticeSender<W> {
    fn clone(&self) -> Self {
        NoticeSender { sender: self.sender.clone(), wake: self.wake.clone() }
    }
}

impl<W: Notify> NoticeSender<W> {
    /// Tells the control plane, which may be past listening.
    pub fn send(&self, notice: Notice) {
        let _ = self.sender.send(notice);
        self.wake.notify();
    }

    /// What wakes the control plane.
    pub fn wake(&self) -> &Arc<W> {
        &self.wake
    }
}

/// The channel's two ends; `wake` wakes the control plane.
pub fn channel<W>(wake: W) -> (NoticeSender<W>, Receiver<Notice>) {
    let (sender, receiver) = unbounded();
    (NoticeSender { sender, wake: Arc::new(wake) }, receiver)
}
