//! Commands to the cores: the one that is pending, which cores have answered it, and what it comes to.
//!
//! One command is pending at a time. It is completed when every core has answered, or its time is over; nobody blocks for it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use tollgate_shards::CommandId;

use super::board::Board;
use super::core::{CoreCommand, Report};
use super::reload::{Change, Completed, Unanswered};
use super::status::Status;
use super::waker::Waker;

/// How long all cores together may take to report their status.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long all shards together may take to carry out a change.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(2);

/// How the control plane reaches a core.
#[derive(Clone)]
pub struct CoreHandle {
    /// Commands that the core takes in its next pass.
    pub commands: Sender<CoreCommand>,
    /// Wakes it for that.
    pub waker: Waker,
    /// What it has counted.
    pub board: Board,
}

impl CoreHandle {
    /// Gives the core `command`. Returns false where the core has ended.
    pub fn send(&self, command: CoreCommand) -> bool {
        let is_sent = self.commands.send(command).is_ok();
        self.waker.wake();
        is_sent
    }
}

/// What is pending.
#[derive(Default)]
pub struct Commands {
    last: CommandId,
    last_change: CommandId,
    pending: Option<Pending>,
    completed: Option<Completed>,
    /// Cores that have ended. One may still be about to let go of its end of the channel.
    ended: BTreeSet<u16>,
}

enum Pending {
    Status(StatusQuery),
    /// Once its time is over, a query names the shards that stand still: all others wait for them.
    Change(PendingChange, Option<StatusQuery>),
}

struct StatusQuery {
    id: CommandId,
    with_usage: bool,
    deadline: Instant,
    waiting: BTreeSet<u16>,
    ended: BTreeSet<u16>,
    reports: Vec<Report>,
}

struct PendingChange {
    id: CommandId,
    began: Instant,
    waiting: BTreeSet<u16>,
    closed_connections: u64,
    change: Change,
}

impl Commands {
    /// Asks every core for its status, and to publish the usage of its connections before where `with_usage`, in place of whatever was pending.
    pub fn begin_status(&mut self, cores: &[CoreHandle], with_usage: bool, now: Instant) {
        self.completed = None;
        let query = StatusQuery::begin(self.next_id(), with_usage, cores, &self.ended, now);
        self.pending = Some(Pending::Status(query));
    }

    /// Gives every core what `command` makes for `change`.
    pub fn begin_change(
        &mut self,
        cores: &[CoreHandle],
        now: Instant,
        change: Change,
        command: impl Fn(CommandId) -> CoreCommand,
    ) {
        let id = self.next_id();
        self.begin_change_as(id, cores, now, change, command);
    }

    /// The same under a number that another process has given.
    pub fn begin_change_as(
        &mut self,
        id: CommandId,
        cores: &[CoreHandle],
        now: Instant,
        change: Change,
        command: impl Fn(CommandId) -> CoreCommand,
    ) {
        self.follow(id);
        self.last_change = id;
        for core in cores {
            // A core that has ended does not answer either.
            core.send(command(id));
        }
        let waiting = (0..cores.len() as u16).collect();
        self.pending =
            Some(Pending::Change(PendingChange { id, began: now, waiting, closed_connections: 0, change }, None));
    }

    /// A number for an order that nobody waits for.
    pub fn reserve(&mut self) -> CommandId {
        self.next_id()
    }

    /// Numbers go on behind `id`.
    pub fn follow(&mut self, id: CommandId) {
        self.last = self.last.max(id);
    }

    /// The change that was begun last.
    pub fn last_change(&self) -> CommandId {
        self.last_change
    }

    /// Whether nothing is pending.
    pub fn is_idle(&self) -> bool {
        self.pending.is_none() && self.completed.is_none()
    }

    fn next_id(&mut self) -> CommandId {
        self.last.0 += 1;
        self.last
    }

    /// Takes a core's status.
    pub fn handle_report(&mut self, id: CommandId, report: Report) {
        if let Some(Pending::Status(query) | Pending::Change(_, Some(query))) = &mut self.pending
            && query.id == id
            && query.waiting.remove(&report.shard)
        {
            query.reports.push(report);
        }
    }

    /// Takes a core's word that a change is carried out.
    pub fn handle_done(&mut self, id: CommandId, shard: u16, closed_connections: u64) {
        if let Some(Pending::Change(pending, _)) = &mut self.pending
            && pending.id == id
            && pending.waiting.remove(&shard)
        {
            pending.closed_connections += closed_connections;
        }
    }

    /// A core whose shard was started anew may have lost a request for its status.
    pub fn handle_begun_anew(&mut self, shard: u16, cores: &[CoreHandle]) {
        if let Some(Pending::Status(query) | Pending::Change(_, Some(query))) = &self.pending
            && query.waiting.contains(&shard)
        {
            cores[usize::from(shard)].send(CoreCommand::Report { id: query.id, with_usage: query.with_usage });
        }
    }

    /// A core that has ended reports nothing any more.
    pub fn handle_ended(&mut self, shard: u16) {
        self.ended.insert(shard);
        if let Some(Pending::Status(query) | Pending::Change(_, Some(query))) = &mut self.pending
            && query.waiting.remove(&shard)
        {
            query.ended.insert(shard);
        }
    }

    /// When to call [`Commands::advance`], if no core answers before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.pending.as_ref()? {
            Pending::Status(query) | Pending::Change(_, Some(query)) => Some(query.deadline),
            Pending::Change(pending, None) => Some(pending.began + CHANGE_TIMEOUT),
        }
    }

    /// Completes the pending command if every core has answered or its time is over.
    pub fn advance(&mut self, cores: &[CoreHandle], now: Instant) {
        let pending = match self.pending.take() {
            Some(Pending::Status(query)) if query.is_over(now) => return self.completed = Some(query.complete()),
            Some(Pending::Change(pending, _)) if pending.waiting.is_empty() => {
                let took = now.duration_since(pending.began);
                self.completed = Some(pending.change.complete(Ok((pending.closed_connections, took))));
                return;
            }
            Some(Pending::Change(pending, Some(query))) if query.is_over(now) => {
                let silent = query.silent();
                let shards = if silent.is_empty() { pending.waiting } else { silent };
                self.completed = Some(pending.change.complete(Err(Unanswered::Shards(shards))));
                return;
            }
            Some(Pending::Change(pending, None)) if pending.began + CHANGE_TIMEOUT <= now => {
                Some(Pending::Change(pending, Some(StatusQuery::begin(self.next_id(), false, cores, &self.ended, now))))
            }
            pending => pending,
        };
        self.pending = pending;
    }

    /// What the command that was pending has come to.
    pub fn take_completed(&mut self) -> Option<Completed> {
        self.completed.take()
    }
}

impl StatusQuery {
    fn begin(id: CommandId, with_usage: bool, cores: &[CoreHandle], gone: &BTreeSet<u16>, now: Instant) -> Self {
        let shards = 0..cores.len() as u16;
        let ask = |shard: &u16| cores[usize::from(*shard)].send(CoreCommand::Report { id, with_usage });
        let (waiting, ended): (BTreeSet<u16>, _) = shards.partition(|shard| !gone.contains(shard) && ask(shard));
        let deadline = if waiting.is_empty() { now } else { now + REPORT_TIMEOUT };
        StatusQuery { id, with_usage, deadline, waiting, ended, reports: Vec::new() }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.waiting.is_empty() || self.deadline <= now
    }

    /// The shards that have not answered.
    fn silent(&self) -> BTreeSet<u16> {
        self.waiting.union(&self.ended).copied().collect()
    }

    fn complete(mut self) -> Completed {
        let unanswered = self.silent().into_iter().collect();
        self.reports.sort_by_key(|report| report.shard);
        Completed::Status(Status { shards: self.reports, unanswered, ..Status::default() })
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, unbounded};

    use super::*;
    use crate::io::Wake;

    fn cores(count: usize) -> (Vec<CoreHandle>, Vec<Receiver<CoreCommand>>) {
        let core = |_| {
            let (commands, receiver) = unbounded();
            (CoreHandle { commands, waker: Waker::new(Wake::new().unwrap()), board: Board::default() }, receiver)
        };
        (0..count).map(core).unzip()
    }

    /// The ID of the one command that waits.
    fn taken(core: &Receiver<CoreCommand>) -> CommandId {
        match core.try_recv().unwrap() {
            CoreCommand::Report { id, .. } | CoreCommand::Kick { id, .. } => id,
            _ => panic!("another command"),
        }
    }

    fn report(shard: u16) -> Report {
        Report { shard, ..Report::default() }
    }

    fn begin_kick(commands: &mut Commands, cores: &[CoreHandle], now: Instant) {
        let user = tollgate_shards::UserIndex(0);
        commands
            .begin_change(cores, now, Change::Kick { user: "alice".to_owned() }, |id| CoreCommand::Kick { id, user });
    }

    #[test]
    fn a_change_is_completed_when_all_cores_have_answered_and_sums_what_they_closed() {
        let (cores, taken_by) = cores(2);
        let (mut commands, now) = (Commands::default(), Instant::now());
        begin_kick(&mut commands, &cores, now);
        let id = taken(&taken_by[0]);
        commands.handle_done(id, 0, 2);
        commands.handle_done(CommandId(id.0 - 1), 1, 7);
        commands.advance(&cores, now);
        assert!(commands.take_completed().is_none());
        commands.handle_done(id, 1, 1);
        commands.advance(&cores, now + Duration::from_millis(3));
        let Some(Completed::Kick(Ok(kicked))) = commands.take_completed() else { panic!("not completed") };
        assert_eq!((kicked.closed_connections, kicked.took), (3, Duration::from_millis(3)));
        assert_eq!(commands.poll_timeout(), None);
    }

    #[test]
    fn a_change_whose_time_is_over_names_the_shard_that_stands_still_alone() {
        let (cores, taken_by) = cores(3);
        let (mut commands, now) = (Commands::default(), Instant::now());
        begin_kick(&mut commands, &cores, now);
        let id = taken(&taken_by[0]);
        commands.handle_done(id, 2, 0);
        let late = now + CHANGE_TIMEOUT;
        assert_eq!(commands.poll_timeout(), Some(late));
        commands.advance(&cores, late);
        let query = taken(&taken_by[0]);
        [0, 2].into_iter().for_each(|shard| commands.handle_report(query, report(shard)));
        commands.advance(&cores, late + REPORT_TIMEOUT / 2);
        assert!(commands.take_completed().is_none());
        commands.advance(&cores, late + REPORT_TIMEOUT);
        let Some(Completed::Kick(Err(unanswered))) = commands.take_completed() else { panic!("not completed") };
        assert_eq!(unanswered, Unanswered::Shards([1].into()));
    }

    #[test]
    fn a_status_lacks_the_cores_that_have_ended_and_the_silent_ones() {
        let (cores, mut taken_by) = cores(3);
        drop(taken_by.remove(1));
        let (mut commands, now) = (Commands::default(), Instant::now());
        commands.begin_status(&cores, false, now);
        commands.handle_report(taken(&taken_by[0]), report(0));
        commands.advance(&cores, now);
        assert!(commands.take_completed().is_none());
        commands.handle_ended(2);
        commands.advance(&cores, now);
        let Some(Completed::Status(status)) = commands.take_completed() else { panic!("not completed") };
        assert_eq!((status.shards, status.unanswered), (vec![report(0)], vec![1, 2]));

        // The last one still has its end of the channel, and will not look at it.
        commands.begin_status(&cores, false, now);
        commands.handle_report(taken(&taken_by[0]), report(0));
        commands.advance(&cores, now);
        assert!(commands.take_completed().is_some());
    }
}
