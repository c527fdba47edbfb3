//! One core: a shard, a UDP socket and a TUN queue, and the turns over them on a thread of their own.
//!
//! A turn neither sleeps nor reads the clock: it says what comes next, and whoever runs the core does that. The kind of its descriptors is a
//! parameter.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use serde::{Deserialize, Serialize};
use tollgate_shards::{
    Action, Command, CommandId, Counters, DropReason, Event, Held, Machine, Shard, ShardIndex, Snapshot,
    SteeringUpdate, UserIndex,
};
use tracing::debug;

use super::busy::BusyShare;
use super::client_mtus::ClientMtuSender;
use super::interrupt_moderation::InterruptModeration;
use super::memory::{self, Trim};
use super::mesh::Mesh;
use super::notices::{Notice, NoticeSender};
use super::pending::Pending;
use super::threads::CoreThread;
use super::waker::{Notify, Waker};
use crate::io::{ShardSockets, TunSteering};
use crate::packet_io::{Descriptors, Kernel, Lost, PacketIo, Traffic};

/// How long a stopping shard stays to repeat its goodbyes to clients that have not heard them.
const LINGER: Duration = Duration::from_millis(300);
/// How soon held messages are tried again.
const HELD_RETRY: Duration = Duration::from_micros(200);

/// What the control plane has a core do.
pub enum CoreCommand<D: Descriptors = Kernel> {
    /// Say goodbye to every client and end.
    Stop,
    /// Report the status.
    Report(CommandId),
    /// Take no new clients, and send those that are here away.
    Drain {
        /// All of them in this time.
        over: Duration,
        /// Whoever is left after this time at once.
        within: Duration,
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
}

/// Generations of a core's descriptors: how often they were replaced.
#[derive(Debug, Default, Clone, Copy)]
pub struct Generations {
    udp: u64,
    tun: u64,
}

/// The status of one core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The index of the shard.
    pub shard: u16,
    /// The CPU it is pinned to.
    pub cpu: usize,
    /// Connections that it owns.
    pub owned_connections: usize,
    /// Those of them on which a client has logged in.
    #[serde(default)]
    pub clients: usize,
    /// Addresses held, where the shard is the address allocator.
    pub addresses_held: Option<u64>,
    /// What is held for others.
    #[serde(default)]
    pub memory: Held,
    /// What the engine counted.
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

/// A core's shard, descriptors and channels. `E` takes what the shard tells.
pub struct Core<D: Descriptors, E> {
    /// The CPU to pin to.
    pub cpu: usize,
    /// The engine of this core.
    pub shard: Shard,
    /// The newest snapshot: it knows the users of all earlier ones.
    pub snapshot: Arc<Snapshot>,
    /// The shard's descriptors.
    pub packet_io: PacketIo<D>,
    /// Its end of the mesh.
    pub mesh: Mesh<D::Wake>,
    /// How others wake it.
    pub waker: Waker<D::Wake>,
    /// Commands of the control plane.
    pub commands: Receiver<CoreCommand<D>>,
    /// How long work may gather while the core is busy.
    pub moderation: InterruptModeration,
    /// How long to go on looking after the last packet before sleeping.
    pub busy_poll: Duration,
    /// How busy it is.
    pub busy: BusyShare,
    /// The command that is not completed.
    pub pending: Pending,
    /// Gives memory back after a flood.
    pub trim: Trim,
    /// The kernel's steering of inner addresses, where there is one.
    pub steering: Option<Arc<TunSteering<D::SteeringMap>>>,
    /// Reports to the control plane.
    pub notices: NoticeSender<D::Wake>,
    /// Generations of the descriptors.
    pub generations: Generations,
    /// Takes the MTUs of clients' paths.
    pub client_mtus: ClientMtuSender<D::Wake>,
    /// Takes what the shard tells.
    pub tell: E,
    /// How far it has come.
    pub progress: Progress,
}

/// How far a core has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// When it ends at the latest, once it is to stop.
    stop_by: Option<Instant>,
    /// When its descriptors had something last.
    moved_at: Option<Instant>,
}

impl<E> Core<Kernel, E>
where
    E: FnMut(ShardIndex, Event, &Snapshot) + Send + 'static,
{
    /// Runs the core on `thread` until it is told to stop.
    pub fn start(mut self, thread: CoreThread) {
        thread.run(Box::new(move || {
            let _abort = AbortOnPanic;
            self.run();
            self.notices.send(Notice::Ended { shard: self.shard.index().0 });
        }));
    }

    fn run(&mut self) {
        loop {
            // The core never yields to its executor, which has no other task: glommio 0.9 parks for good, although a task is runnable, when
            // its preemption timer fires between its look at the rings and its look at the queues (`run_task_queues` then reports that nothing
            // ran).
            let now = Instant::now();
            if let Some(percent) = self.busy.goes_on(now) {
                self.shard.handle_busy(percent);
            }
            match self.turn(now) {
                Next::Turn => {}
                // The sibling hyperthread may have the core's units meanwhile.
                Next::Poll => {
                    self.busy.rests(now);
                    std::hint::spin_loop();
                }
                Next::Gather(until) => {
                    let turned = Instant::now();
                    self.busy.rests(turned);
                    std::thread::sleep(until.saturating_duration_since(turned));
                }
                Next::GiveBack => memory::give_back(),
                Next::Sleep(until) => {
                    self.busy.rests(Instant::now());
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
    E: FnMut(ShardIndex, Event, &Snapshot),
{
    /// One turn: a pass, and what is to be done until the next one.
    pub fn turn(&mut self, now: Instant) -> Next {
        let more = self.pass(now);
        // Also of the last turn: whoever sleeps is woken for it.
        let holding = self.mesh.flush() | self.client_mtus.flush();
        if self
            .progress
            .stop_by
            .is_some_and(|stop_by| self.shard.has_said_goodbye() && (stop_by <= now || self.shard.is_stopped()))
        {
            return Next::End;
        }
        self.report_done();
        if more || self.packet_io.has_more() {
            return Next::Turn;
        }
        if let Some(until) = self.moderation.look_again(now, self.shard.passed_packets()) {
            return Next::Gather(until);
        }
        if self.progress.moved_at.is_some_and(|moved_at| now.duration_since(moved_at) < self.busy_poll) {
            return Next::Poll;
        }
        if self.trim.handle_idle(now, self.shard.held().total_bytes()) {
            self.shard.give_back();
            return Next::GiveBack;
        }
        let (mesh, commands) = (&self.mesh, &self.commands);
        if !self.waker.fall_asleep(|| mesh.is_idle() && commands.is_empty()) {
            self.waker.end_sleep(self.packet_io.take_woken());
            return Next::Turn;
        }
        let deadline = self.shard.poll_timeout().map(|(at, _)| at);
        let retry = holding.then_some(now + HELD_RETRY);
        let others = [
            self.packet_io.poll_timeout(now),
            self.trim.poll_timeout(),
            self.progress.stop_by,
            self.busy.poll_timeout(),
        ];
        Next::Sleep(others.into_iter().chain([deadline, retry]).flatten().min())
    }

    /// Sleeps until something is ready, or `until`. `now` is that of the turn before.
    pub fn sleep(&mut self, now: Instant, until: Option<Instant>) {
        self.packet_io.sleep(now, until);
        self.waker.end_sleep(self.packet_io.take_woken());
    }

    /// One pass: input, output. Returns whether other shards may have more.
    fn pass(&mut self, now: Instant) -> bool {
        if self.packet_io.intake(&mut self.shard, now) {
            self.progress.moved_at = Some(now);
        }
        self.shard.handle_receive_buffers(self.packet_io.receive_buffers_bytes());
        let more = self.mesh.receive(|message| self.shard.handle_message(now, message));
        self.take_commands(now);
        if self.shard.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.shard.handle_timeout(now);
        }
        self.trim.handle_pass(self.shard.held().total_bytes());
        while let Some(action) = self.packet_io.output(&mut self.shard, now) {
            match action {
                Action::Steering(update) => self.steer(update),
                Action::ClientMtu(mtu) => self.client_mtus.hold(mtu),
                Action::Send(to, message) => match self.mesh.send(to, message) {
                    0 => {}
                    lost => self.shard.handle_drop(DropReason::MeshFull, lost),
                },
                Action::Log(event) => self.take_event(event),
            }
        }
        self.report_lost(Lost::default());
        more
    }

    fn take_event(&mut self, event: Event) {
        if let Event::Detached { user, version, .. } = event {
            self.pending.count_closed(user, version, self.snapshot.version);
        }
        (self.tell)(self.shard.index(), event, &self.snapshot);
    }

    /// Tells which descriptors are out of order, and which could not be replaced (`refused`).
    fn report_lost(&mut self, refused: Lost) {
        let Lost { udp, tun } = self.packet_io.take_lost();
        let lost = Lost { udp: udp || refused.udp, tun: tun || refused.tun };
        if lost.udp {
            self.notices.send(Notice::LostUdp(self.generations.udp));
        }
        if lost.tun {
            self.notices.send(Notice::LostTun(self.generations.tun));
        }
    }

    fn take_commands(&mut self, now: Instant) {
        loop {
            let command = match self.commands.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Disconnected) if self.progress.stop_by.is_none() => CoreCommand::Stop,
                Err(_) => return,
            };
            match command {
                CoreCommand::Stop if self.progress.stop_by.is_some() => {}
                CoreCommand::Stop => {
                    self.progress.stop_by = Some(now + LINGER);
                    self.shard.handle_command(now, Command::Stop);
                }
                CoreCommand::Drain { over, within } => {
                    self.shard.handle_command(now, Command::Drain { over, within });
                }
                CoreCommand::Resume => self.shard.handle_command(now, Command::Resume),
                CoreCommand::Report(command) => {
                    self.notices.send(Notice::Report { command, report: Box::new(self.report()) });
                }
                CoreCommand::Apply { id, snapshot } => {
                    let before = std::mem::replace(&mut self.snapshot, snapshot.clone());
                    self.pending.begin_apply(id, before, snapshot.clone());
                    self.shard.handle_command(now, Command::Apply { id, snapshot });
                }
                CoreCommand::Kick { id, user } => {
                    self.pending.begin_kick(id, user);
                    self.shard.handle_command(now, Command::Kick { id, user });
                }
                CoreCommand::Tun(queue, generation) => {
                    self.generations.tun = generation;
                    // Descriptors have run out: the upkeep makes another queue.
                    let tun = self.packet_io.set_tun(Some(queue), self.waker.descriptor()).is_err();
                    self.report_lost(Lost { tun, udp: false });
                }
                CoreCommand::ReleaseUdp => {
                    // Where the poller cannot be made anew, the old one has lost the socket by itself.
                    let _ = self.packet_io.set_udp(None, self.waker.descriptor());
                    self.notices.send(Notice::ReleasedUdp { shard: self.shard.index().0 });
                }
                CoreCommand::Udp(sockets, generation) => {
                    self.generations.udp = generation;
                    let live = self.packet_io.set_udp(Some(sockets.live), self.waker.descriptor());
                    let udp =
                        live.and(self.packet_io.set_handshakes(sockets.handshakes, self.waker.descriptor())).is_err();
                    self.report_lost(Lost { udp, tun: false });
                }
            }
        }
    }

    /// Reports the pending command as done, once every shard has executed it and the kernel has taken what this shard has sent.
    fn report_done(&mut self) {
        if self.packet_io.is_flushed()
            && let Some((command, closed_connections)) = self.pending.take_completed(self.shard.completed())
        {
            self.notices.send(Notice::Done { command, shard: self.shard.index().0, closed_connections });
        }
    }

    fn report(&self) -> Report {
        Report {
            shard: self.shard.index().0,
            cpu: self.cpu,
            owned_connections: self.shard.owned_connections(),
            clients: self.shard.clients(),
            addresses_held: self.shard.addresses_held(),
            memory: self.shard.held(),
            counters: self.shard.counters(),
            traffic: self.packet_io.traffic(),
        }
    }

    fn steer(&self, SteeringUpdate { address, owner }: SteeringUpdate) {
        let Some(steering) = &self.steering else { return };
        if let Err(error) = steering.set(address, owner) {
            // Not lost: the mesh carries what arrives at the wrong shard.
            debug!(%address, %error, "the TUN steering map was not updated");
        }
    }
}

/// A shard that panics takes the gateway down at once: its clients would hang, and others would wait for its messages for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
