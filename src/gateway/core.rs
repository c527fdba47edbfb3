//! One core: a shard, a UDP socket and a TUN queue, and the turns over them on a thread of their own.
//!
//! A turn neither sleeps nor reads the clock: it says what comes next, and whoever runs the core does that. The kind of its descriptors is a
//! parameter.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::TryRecvError;
use serde::{Deserialize, Serialize};
use tollgate_shards::{
    Action, Command, CommandId, Counters, DropReason, Event, Held, Machine, Received, ShardIndex, Shards, Snapshot,
    SteeringUpdate, Told, UserIndex,
};
use tracing::{debug, error};

use super::interrupt_moderation::Moderated;
use super::memory;
use super::notices::Notice;
use super::seat::{Birth, Life, Seat};
use super::sibling::SiblingEnd;
use super::threads::CoreThread;
use super::waker::Notify;
use crate::io::ShardSockets;
use crate::packet_io::{Descriptors, Kernel, Lost, Traffic};

/// How long a stopping shard stays to repeat its goodbyes to clients that have not heard them.
const LINGER: Duration = Duration::from_millis(300);
/// How soon held messages are tried again.
const HELD_RETRY: Duration = Duration::from_micros(200);

/// What the control plane has a core do.
pub enum CoreCommand<D: Descriptors = Kernel> {
    /// Say goodbye to every client and end.
    Stop,
    /// Report the status.
    Report {
        /// The command's ID.
        id: CommandId,
        /// Whether the usage of connections is to be published before.
        with_usage: bool,
    },
    /// Take no new clients, and send those that are here away.
    Drain {
        /// All of them in this time.
        over: Duration,
        /// Whoever is left after this time at once.
        within: Duration,
        /// Whether another process takes them: then those who do not come back by themselves have all of that time.
        to_successor: bool,
    },
    /// Take clients again.
    Resume,
    /// Put another snapshot in force. Done when every shard has, and nothing that the new one forbids is in flight.
    Apply {
        /// The command's ID.
        id: CommandId,
        /// The next snapshot.
        snapshot: Arc<Snapshot>,
    },
    /// Close a user's connections. Done when every shard has.
    Kick {
        /// The command's ID.
        id: CommandId,
        /// The user.
        user: UserIndex,
    },
    /// Take another TUN queue, of this generation.
    Tun(D::Tun, u64),
    /// Close the UDP sockets, and answer.
    ReleaseUdp,
    /// Take other UDP sockets, of this generation.
    Udp(ShardSockets<D::Udp>, u64),
    /// Speak to the cores of another process by this end.
    Sibling(SiblingEnd),
    /// The homes are those of the other process, which is ready, from now on. Done when nothing of the former ones is under way.
    HandOver {
        /// The command's ID.
        id: CommandId,
        /// The shards of the other process.
        to: Shards,
        /// The incarnation of all of them.
        incarnation: u32,
    },
    /// The process that had the homes is dead, and its link [has said so](super::sibling::Said::Gone): the homes are here again. Done as a handover is.
    TakeBack {
        /// The command's ID.
        id: CommandId,
        /// An incarnation that no shard has had.
        incarnation: u32,
    },
    /// The process before this one is no more, and its link has said so.
    PredecessorGone,
    /// Datagrams that came to that process, which has not read them.
    Waiting(Vec<Received>),
}

/// Generations of a core's descriptors: how often they were replaced.
#[derive(Debug, Default, Clone, Copy)]
pub struct Generations {
    udp: u64,
    tun: u64,
}

/// The status of one core.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The shard's place.
    pub shard: u16,
    /// The CPU it is pinned to.
    pub cpu: usize,
    /// Connections that it owns.
    pub owned_connections: usize,
    /// Those of them on which a client has logged in.
    pub clients: usize,
    /// Addresses held, where the shard is the address allocator.
    pub addresses_held: Option<u64>,
    /// Addresses for users without their own, there too, and how many of those are free.
    #[serde(default)]
    pub address_pool: Option<(u64, u64)>,
    /// What is held for others.
    pub memory: Held,
    /// How often it has panicked and was started anew.
    pub restarts: u32,
    /// Milliseconds in which there was work, since the start.
    pub busy_ms: u64,
    /// How work was let gather, since the start.
    #[serde(default)]
    pub moderated: Moderated,
    /// What the engine counted, those incarnations included.
    pub counters: Counters,
    /// What the descriptors moved.
    pub traffic: Traffic,
}

/// What a core does after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next turn, at once.
    Turn,
    /// The next turn, at once, though it is likely to find nothing.
    Poll,
    /// Lets work gather, until then.
    Gather(Instant),
    /// Gives free memory back to the system.
    GiveBack,
    /// Sleeps by [`Core::sleep`], until then at the latest. It has announced that.
    Sleep(Option<Instant>),
    /// It is over.
    End,
}

/// A core: its seat, and the shard that sits there. `E` takes what the shard tells.
pub struct Core<D: Descriptors, E> {
    /// What outlives a panic.
    pub seat: Seat<D, E>,
    /// What does not.
    pub life: Life,
}

impl<E> Core<Kernel, E>
where
    E: FnMut(ShardIndex, Told, &Snapshot) + Send + 'static,
{
    /// Runs the core on `thread` until it is told to stop.
    pub fn start(mut self, thread: CoreThread) {
        thread.run(Box::new(move || {
            let _abort = AbortOnPanic;
            self.run();
            self.seat.notices.send(Notice::Ended { shard: self.place() });
        }));
    }

    fn run(&mut self) {
        // What a panic leaves half done is the life's, which is replaced as a whole, or the seat's, which says how it gets over that: hence
        // `AssertUnwindSafe`.
        while catch_unwind(AssertUnwindSafe(|| self.live())).is_err() {
            let (now, shard) = (Instant::now(), self.place());
            if let Err(because) = self.seat.panics.may_go_on(now) {
                return self.seat.notices.send(Notice::GivenUp { shard, because });
            }
            self.begin_anew(Birth::draw(), now);
            memory::give_back();
            error!(shard, "a shard that panicked was started anew: its clients have to connect again, all others stay");
        }
    }

    fn live(&mut self) {
        loop {
            // The core never yields to its executor, which has no other task: glommio 0.9 parks for good, although a task is runnable, when
            // its preemption timer fires between its look at the rings and its look at the queues (`run_task_queues` then reports that nothing
            // ran).
            let now = Instant::now();
            if let Some(percent) = self.life.busy.goes_on(now) {
                self.life.shard.handle_busy(percent);
            }
            match self.turn(now) {
                Next::Turn => {}
                // The sibling hyperthread may have the core's units meanwhile.
                Next::Poll => {
                    self.life.busy.rests(now);
                    std::hint::spin_loop();
                }
                Next::Gather(until) => {
                    let turned = Instant::now();
                    self.life.busy.rests(turned);
                    std::thread::sleep(until.saturating_duration_since(turned));
                }
                Next::GiveBack => memory::give_back(),
                Next::Sleep(until) => {
                    self.life.busy.rests(Instant::now());
                    self.sleep(now, until);
                }
                Next::End => return,
            }
        }
    }
}

impl<D, E> Core<D, E>
where
    D: Descriptors<Wake: Notify>,
    E: FnMut(ShardIndex, Told, &Snapshot),
{
    /// One turn: a pass, and what is to be done until the next one.
    pub fn turn(&mut self, now: Instant) -> Next {
        let more = self.pass(now);
        // Also of the last turn: whoever sleeps is woken for it.
        let holding = self.seat.mesh.flush() | self.seat.flush_sibling() | self.seat.client_mtus.flush();
        let shard = &self.life.shard;
        if self
            .seat
            .standing
            .stop_by
            .is_some_and(|stop_by| shard.has_said_goodbye() && (stop_by <= now || shard.is_stopped()))
        {
            self.publish_last(now);
            return Next::End;
        }
        self.report_done();
        self.report_taken_over();
        self.publish(now);
        if more || self.seat.packet_io.has_more() {
            return Next::Turn;
        }
        if let Some(until) = self.life.moderation.look_again(now, self.life.shard.passed_packets()) {
            return Next::Gather(until);
        }
        if self.life.moved_at.is_some_and(|moved_at| now.duration_since(moved_at) < self.seat.busy_poll) {
            return Next::Poll;
        }
        if self.seat.trim.handle_idle(now, self.life.shard.held().total_bytes()) {
            self.life.shard.give_back();
            return Next::GiveBack;
        }
        let Seat { mesh, sibling, commands, .. } = &self.seat;
        let is_idle = || mesh.is_idle() && sibling.as_ref().is_none_or(SiblingEnd::is_idle) && commands.is_empty();
        if !self.seat.waker.fall_asleep(is_idle) {
            self.seat.waker.end_sleep(self.seat.packet_io.take_woken());
            return Next::Turn;
        }
        let deadline = self.life.shard.poll_timeout().map(|(at, _)| at);
        let retry = holding.then_some(now + HELD_RETRY);
        let others = [
            self.seat.packet_io.poll_timeout(now),
            self.seat.trim.poll_timeout(),
            self.seat.standing.stop_by,
            self.life.busy.poll_timeout(),
            self.seat.publisher.as_ref().and_then(|publisher| publisher.poll_timeout()),
        ];
        Next::Sleep(others.into_iter().chain([deadline, retry]).flatten().min())
    }

    /// Sleeps until something is ready, or `until`. `now` is that of the turn before.
    pub fn sleep(&mut self, now: Instant, until: Option<Instant>) {
        self.seat.packet_io.sleep(now, until);
        self.seat.waker.end_sleep(self.seat.packet_io.take_woken());
    }

    /// One pass: input, output. Returns whether other shards may have more.
    fn pass(&mut self, now: Instant) -> bool {
        for command in std::mem::take(&mut self.life.again) {
            self.life.shard.handle_command(now, command);
        }
        // Before packets: where new clients go is known when the first one comes that was told.
        let more = self.hear_sibling(now);
        if self.seat.packet_io.intake(&mut self.life.shard, now) {
            self.life.moved_at = Some(now);
        }
        self.life.shard.handle_receive_buffers(self.seat.packet_io.receive_buffers_bytes());
        let more = self.seat.mesh.receive(|message| self.life.shard.handle_message(now, message)) | more;
        self.take_commands(now);
        if self.life.shard.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.life.shard.handle_timeout(now);
        }
        self.seat.trim.handle_pass(self.life.shard.held().total_bytes());
        while let Some(action) = self.seat.packet_io.output(&mut self.life.shard, now) {
            match action {
                Action::Steering(update) => self.steer(update),
                Action::ClientMtu(mtu) => self.seat.client_mtus.hold(mtu),
                Action::Send(to, message) => match self.seat.send(to, message) {
                    0 => {}
                    lost => self.life.shard.handle_drop(DropReason::MeshFull, lost),
                },
                Action::Tell(told) => self.take_told(told),
            }
        }
        self.report_lost(Lost::default());
        more
    }

    fn take_told(&mut self, told: Told) {
        if let Event::Detached { user, version, .. } = told.event {
            self.seat.pending.count_closed(user, version, self.seat.snapshot.version);
        }
        (self.seat.tell)(self.life.shard.index(), told, &self.seat.snapshot);
    }

    /// Tells which descriptors are out of order, and which could not be replaced (`refused`).
    fn report_lost(&mut self, refused: Lost) {
        let Lost { udp, tun } = self.seat.packet_io.take_lost();
        let lost = Lost { udp: udp || refused.udp, tun: tun || refused.tun };
        if lost.udp {
            self.seat.notices.send(Notice::LostUdp(self.seat.generations.udp));
        }
        if lost.tun {
            self.seat.notices.send(Notice::LostTun(self.seat.generations.tun));
        }
    }

    fn take_commands(&mut self, now: Instant) {
        loop {
            let command = match self.seat.commands.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Disconnected) if self.seat.standing.stop_by.is_none() => CoreCommand::Stop,
                Err(_) => return,
            };
            self.take_command(now, command);
        }
    }

    /// What outlives the shard is written down before the shard is told.
    fn take_command(&mut self, now: Instant, command: CoreCommand<D>) {
        let Core { seat, life: Life { shard, .. } } = self;
        match command {
            CoreCommand::Stop if seat.standing.stop_by.is_some() => {}
            CoreCommand::Stop => {
                seat.standing.stop_by = Some(now + LINGER);
                shard.handle_command(now, Command::Stop);
            }
            CoreCommand::Drain { over, within, to_successor } => {
                seat.standing.is_draining = true;
                shard.handle_command(now, Command::Drain { over, within, to_successor });
            }
            CoreCommand::Resume => {
                seat.standing.is_draining = false;
                shard.handle_command(now, Command::Resume);
            }
            CoreCommand::Report { id: command, with_usage } => {
                if with_usage && let Some(publisher) = &mut seat.publisher {
                    publisher.handle_ended(shard.take_ended_usage());
                    publisher.handle_query(now, shard.usage(), shard.former_usage());
                }
                let report = Box::new(self.report(now));
                self.seat.notices.send(Notice::Report { command, report });
            }
            CoreCommand::Apply { id, snapshot } => {
                let before = std::mem::replace(&mut seat.snapshot, snapshot.clone());
                seat.pending.begin_apply(id, before, snapshot.clone());
                shard.handle_command(now, Command::Apply { id, snapshot });
                seat.report_begun(id);
            }
            CoreCommand::Kick { id, user } => {
                seat.pending.begin_kick(id, user);
                shard.handle_command(now, Command::Kick { id, user });
                seat.report_begun(id);
            }
            CoreCommand::Tun(queue, generation) => {
                seat.generations.tun = generation;
                // Descriptors have run out: the upkeep makes another queue.
                let tun = seat.packet_io.set_tun(Some(queue), seat.waker.descriptor()).is_err();
                self.report_lost(Lost { tun, udp: false });
            }
            CoreCommand::ReleaseUdp => {
                // Where the poller cannot be made anew, the old one has lost the socket by itself.
                let _ = seat.packet_io.set_udp(None, seat.waker.descriptor());
                self.seat.notices.send(Notice::ReleasedUdp { shard: self.place() });
            }
            CoreCommand::Udp(sockets, generation) => {
                seat.generations.udp = generation;
                let live = seat.packet_io.set_udp(Some(sockets.live), seat.waker.descriptor());
                let udp = live.and(seat.packet_io.set_handshakes(sockets.handshakes, seat.waker.descriptor())).is_err();
                self.report_lost(Lost { udp, tun: false });
            }
            CoreCommand::Sibling(end) => seat.sibling = Some(end),
            CoreCommand::HandOver { id, to, incarnation } => self.hand_over(now, id, to, incarnation),
            CoreCommand::TakeBack { id, incarnation } => self.take_back(now, id, incarnation),
            CoreCommand::PredecessorGone => self.lose_predecessor(now),
            CoreCommand::Waiting(received) => received.into_iter().for_each(|received| shard.handle_udp(now, received)),
        }
    }

    /// Reports the pending command as done, once every shard has executed it and the kernel has taken what this shard has sent.
    fn report_done(&mut self) {
        if self.seat.packet_io.is_flushed()
            && let Some((command, closed_connections)) = self.seat.pending.take_completed(self.life.shard.completed())
        {
            self.seat.notices.send(Notice::Done { command, shard: self.place(), closed_connections });
        }
    }

    /// By which the control plane knows it.
    fn place(&self) -> u16 {
        self.life.shard.index().place() as u16
    }

    fn report(&self, now: Instant) -> Report {
        Report {
            shard: self.place(),
            cpu: self.seat.cpu,
            owned_connections: self.life.shard.owned_connections(),
            clients: self.life.shard.clients(),
            addresses_held: self.life.shard.addresses_held(),
            address_pool: self.life.shard.address_pool(),
            memory: self.life.shard.held(),
            restarts: self.seat.standing.restarts,
            busy_ms: (self.seat.standing.busy + self.life.busy.total(now)).as_millis() as u64,
            moderated: self.seat.standing.moderated + self.life.moderation.moderated(),
            counters: self.life.shard.counters().beside(&self.seat.standing.counted),
            traffic: self.seat.packet_io.traffic(),
        }
    }

    /// Has the control plane see what was counted, when that is due.
    fn publish(&mut self, now: Instant) {
        let ended = self.life.shard.take_ended_usage();
        let Some(mut publisher) = self.seat.publisher.take() else { return };
        let shard = &self.life.shard;
        publisher.handle_ended(ended);
        publisher.handle_turn(now, || self.report(now), shard.usage(), shard.former_usage());
        self.seat.publisher = Some(publisher);
    }

    /// Has it see what the last clients have carried.
    fn publish_last(&mut self, now: Instant) {
        let shard = &mut self.life.shard;
        if let Some(publisher) = &mut self.seat.publisher {
            publisher.handle_ended(shard.take_ended_usage());
            publisher.publish_last(now, shard.usage(), shard.former_usage());
        }
    }

    fn steer(&self, SteeringUpdate { address, owner }: SteeringUpdate) {
        let Some(steering) = &self.seat.steering else { return };
        if let Err(error) = steering.set(address, owner) {
            // Not lost: the mesh carries what arrives at the wrong shard.
            debug!(%address, %error, "the TUN steering map was not updated");
        }
    }
}

/// Where no other shard can be made, or the last one not be dropped, all ends at once: clients would hang, and other shards wait for messages for
/// ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
