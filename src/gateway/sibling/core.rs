//! What a core does about the process beside its own: the [`Mesh`](crate::gateway::mesh::Mesh) leads to the shards of its own process only.

use std::time::Instant;

use tollgate_shards::{Command, CommandId, Message, ShardIndex, Shards, Snapshot, Told};

use crate::gateway::core::Core;
use crate::gateway::notices::Notice;
use crate::gateway::seat::{Life, Seat};
use crate::gateway::waker::Notify;
use crate::packet_io::Descriptors;

impl<D, E> Seat<D, E>
where
    D: Descriptors<Wake: Notify>,
{
    /// Sends `message` to a shard of either process. Returns how many packets were lost.
    pub(in crate::gateway) fn send(&mut self, to: ShardIndex, message: Message) -> u64 {
        if to.generation() == self.params.shards.generation {
            return self.mesh.send(to, message);
        }
        match &mut self.sibling {
            Some(sibling) => sibling.send(to, message, &self.snapshot.users),
            // That process is gone.
            None => message.expendable().unwrap_or(0),
        }
    }

    /// Tells that a command is executed, where another process waits for it.
    pub(in crate::gateway) fn report_begun(&self, command: CommandId) {
        if self.sibling.is_some() {
            self.notices.send(Notice::Begun { command });
        }
    }

    /// Returns whether something is still held.
    pub(in crate::gateway) fn flush_sibling(&mut self) -> bool {
        self.sibling.as_mut().is_some_and(|sibling| sibling.flush())
    }
}

impl<D, E> Core<D, E>
where
    D: Descriptors<Wake: Notify>,
    E: FnMut(ShardIndex, Told, &Snapshot),
{
    /// Takes a bounded batch of what the other process says. Returns whether there may be more.
    pub(in crate::gateway) fn hear_sibling(&mut self, now: Instant) -> bool {
        let Core { seat: Seat { sibling, params, snapshot, .. }, life: Life { shard, .. } } = self;
        let sink = |message| shard.handle_message(now, message);
        sibling.as_mut().is_some_and(|sibling| sibling.receive(params.shards, &snapshot.users, sink))
    }

    pub(in crate::gateway) fn hand_over(&mut self, now: Instant, id: CommandId, to: Shards, incarnation: u32) {
        self.seat.pending.begin_move(id);
        self.life.shard.handle_command(now, Command::HandOver { id, to, incarnation });
    }

    pub(in crate::gateway) fn take_back(&mut self, now: Instant, id: CommandId, incarnation: u32) {
        self.lose_sibling(now);
        self.seat.params.incarnation = incarnation;
        self.seat.pending.begin_move(id);
        self.life.shard.handle_command(now, Command::TakeBack { id, incarnation });
    }

    pub(in crate::gateway) fn lose_predecessor(&mut self, now: Instant) {
        self.lose_sibling(now);
        self.seat.params.predecessor = None;
        self.life.shard.handle_command(now, Command::PredecessorGone);
    }

    /// The shard hears of a death when it has heard all that the dead have said.
    fn lose_sibling(&mut self, now: Instant) {
        let Core { seat: Seat { sibling, params, snapshot, .. }, life: Life { shard, .. } } = self;
        if let Some(mut sibling) = sibling.take() {
            sibling.receive_all(params.shards, &snapshot.users, |message| shard.handle_message(now, message));
        }
    }

    /// Tells once when the shard has what the process before this one has told.
    pub(in crate::gateway) fn report_taken_over(&mut self) {
        let is_taking_over = &mut self.seat.standing.is_taking_over;
        if *is_taking_over && !self.life.shard.is_taking_over() {
            *is_taking_over = false;
            let shard = self.life.shard.index().place() as u16;
            self.seat.notices.send(Notice::TakenOver { shard });
        }
    }
}
