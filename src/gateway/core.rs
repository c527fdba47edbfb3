//! One core: a shard, a UDP socket and a TUN queue, and the passes over them on a thread of their own.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use serde::{Deserialize, Serialize};
use tollgate_shards::{
    Action, Command, CommandId, Counters, DropReason, Event, Held, Machine, Shard, Snapshot, SteeringUpdate, UserIndex,
};
use tracing::{debug, info, warn};

use super::client_mtus::ClientMtuSender;
use super::interrupt_moderation::InterruptModeration;
use super::memory::{self, Trim};
use super::mesh::{Mesh, Waker};
use super::notices::{Notice, NoticeSender};
use super::pending::Pending;
use super::threads::CoreThread;
use crate::io::{ShardSockets, TunQueue, TunSteering};
use crate::log::{self, Kind};
use crate::packet_io::{Lost, PacketIo, Traffic};

/// How long a stopping shard stays to repeat its goodbyes to clients that have not heard them.
const LINGER: Duration = Duration::from_millis(300);
/// How soon held messages are tried again.
const HELD_RETRY: Duration = Duration::from_micros(200);

/// What the control plane has a core do.
pub enum CoreCommand {
    /// Say goodbye to every client and end.
    Stop,
    /// Report the status.
    Report(CommandId),
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
    Tun(TunQueue, u64),
    /// Close the UDP sockets, and answer.
    ReleaseUdp,
    /// Take other UDP sockets, of this generation.
    Udp(ShardSockets, u64),
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

/// What a pass found, for the decision when to make the next one.
struct Passed {
    /// Whether the descriptors had anything.
    moved: bool,
    /// Whether other shards may have more.
    more: bool,
}

/// A core's shard, descriptors and channels.
pub struct Core {
    /// The CPU to pin to.
    pub cpu: usize,
    /// The engine of this core.
    pub shard: Shard,
    /// The newest snapshot, for the log: it knows the users of all earlier ones.
    pub snapshot: Arc<Snapshot>,
    /// The shard's descriptors.
    pub packet_io: PacketIo,
    /// Its end of the mesh.
    pub mesh: Mesh,
    /// How others wake it.
    pub waker: Waker,
    /// Commands of the control plane.
    pub commands: Receiver<CoreCommand>,
    /// How long work may gather while the core is busy.
    pub coalesce: Duration,
    /// How long to go on looking after the last packet before sleeping.
    pub busy_poll: Duration,
    /// The command that is not completed.
    pub pending: Pending,
    /// Gives memory back after a flood.
    pub trim: Trim,
    /// The kernel's steering of inner addresses, where there is one.
    pub steering: Option<Arc<TunSteering>>,
    /// Reports to the control plane.
    pub notices: NoticeSender,
    /// Generations of the descriptors.
    pub generations: Generations,
    /// Takes the MTUs of clients' paths.
    pub client_mtus: ClientMtuSender,
}

impl Core {
    /// Runs the core on `thread` until it is told to stop or fails.
    pub fn start(self, thread: CoreThread) {
        thread.run(Box::new(move || {
            let _abort = AbortOnPanic;
            let (shard, notices) = (self.shard.index().0, self.notices.clone());
            let result = self.run();
            notices.send(Notice::Ended { shard, result });
        }));
    }

    fn run(mut self) -> io::Result<()> {
        let mut stop_by = None;
        let mut moderation = InterruptModeration::new(self.coalesce, Instant::now());
        let mut last_moved = None;
        loop {
            let now = Instant::now();
            let Passed { moved, more } = self.pass(now, &mut stop_by);
            if moved {
                last_moved = Some(now);
            }
            if stop_by
                .is_some_and(|stop_by| self.shard.has_said_goodbye() && (stop_by <= now || self.shard.is_stopped()))
            {
                return Ok(());
            }
            let holding = self.mesh.flush() | self.client_mtus.flush();
            self.report_done();
            if more || self.packet_io.has_more() {
                // The core never yields to its executor, which has no other task: glommio 0.9 parks for good, although a task is runnable, when
                // its preemption timer fires between its look at the rings and its look at the queues (`run_task_queues` then reports that nothing
                // ran).
                continue;
            }
            if let Some(again) = moderation.look_again(now, self.shard.passed_packets()) {
                std::thread::sleep(again.saturating_duration_since(Instant::now()));
                continue;
            }
            if last_moved.is_some_and(|last_moved| now.duration_since(last_moved) < self.busy_poll) {
                // The sibling hyperthread may have the core's units meanwhile.
                std::hint::spin_loop();
                continue;
            }
            let deadline = self.shard.poll_timeout().map(|(at, _)| at);
            let retry = holding.then_some(now + HELD_RETRY);
            if self.trim.handle_idle(now, self.shard.held().total_bytes()) {
                self.shard.give_back();
                memory::give_back();
            }
            let trim = self.trim.poll_timeout();
            self.sleep(now, [deadline, retry, trim, stop_by].into_iter().flatten().min());
        }
    }

    /// One pass: input, output.
    fn pass(&mut self, now: Instant, stop_by: &mut Option<Instant>) -> Passed {
        let moved = self.packet_io.intake(&mut self.shard, now);
        self.shard.handle_receive_buffers(self.packet_io.receive_buffers_bytes());
        let more = self.mesh.receive(|message| self.shard.handle_message(now, message));
        self.take_commands(now, stop_by);
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
                Action::Log(event) => self.log(event),
            }
        }
        self.report_lost(Lost::default());
        Passed { moved, more }
    }

    fn sleep(&mut self, now: Instant, deadline: Option<Instant>) {
        let (packet_io, mesh, commands) = (&mut self.packet_io, &self.mesh, &self.commands);
        self.waker.sleep(
            || mesh.is_idle() && commands.is_empty(),
            |is_idle| {
                if is_idle {
                    packet_io.sleep(now, deadline);
                }
                packet_io.take_woken()
            },
        );
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

    fn take_commands(&mut self, now: Instant, stop_by: &mut Option<Instant>) {
        loop {
            let command = match self.commands.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Disconnected) if stop_by.is_none() => CoreCommand::Stop,
                Err(_) => return,
            };
            match command {
                CoreCommand::Stop if stop_by.is_some() => {}
                CoreCommand::Stop => {
                    *stop_by = Some(now + LINGER);
                    self.shard.handle_command(now, Command::Stop);
                }
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
            addresses_held: self.shard.addresses_held(),
            memory: self.shard.held(),
            counters: self.shard.counters(),
            traffic: self.packet_io.traffic(),
        }
    }

    fn steer(&self, SteeringUpdate { address, owner }: SteeringUpdate) {
        let Some(steering) = &self.steering else { return };
        if let Err(error) = steering.set(address, owner.map(|owner| usize::from(owner.0))) {
            // Not lost: the mesh carries what arrives at the wrong shard.
            debug!(%address, %error, "the TUN steering map was not updated");
        }
    }

    fn log(&mut self, event: Event) {
        if let Event::Detached { user, version, .. } = event {
            self.pending.count_closed(user, version, self.snapshot.version);
        }
        let name = |user| self.snapshot.users.name(user);
        if kind(&event).is_some_and(|kind| !log::admits(kind)) {
            return;
        }
        match event {
            Event::Attached { user, connection, address } => {
                info!(user = name(user), shard = connection.owner.0, "client connected");
                debug!(user = name(user), %address, "address leased");
            }
            Event::Detached { user, connection, reason, .. } => {
                // The peer's words in it are escaped already.
                let reason = format_args!("\"{reason}\"");
                info!(user = name(user), shard = connection.owner.0, %reason, "client disconnected");
            }
            Event::UnknownCertificate { certificate } => {
                warn!(%certificate, "client refused: no user has this certificate");
            }
            Event::PathNarrowed { user, connection, mtu_bytes, is_too_narrow: false } => {
                info!(user = name(user), shard = connection.owner.0, mtu_bytes, "client's path has a smaller MTU");
            }
            Event::PathNarrowed { user, connection, mtu_bytes, is_too_narrow: true } => {
                let reason =
                    "its path carries less than the 1280 bytes that IPv6 needs: give it a path with a larger MTU";
                warn!(user = name(user), shard = connection.owner.0, mtu_bytes, reason, "client loses large packets");
            }
            Event::PoolExhausted { user } => {
                let reason = "no address is free: widen tunnel_network or the user's address_pool";
                warn!(user = name(user), reason, "client refused");
            }
            Event::PoolReserved { user } => {
                let reason = "the last tenth of the addresses is kept for users who have none: widen tunnel_network";
                warn!(user = name(user), reason, "client refused");
            }
            Event::TooManyConnections { user } => {
                let reason = "the user has all the connections that max_connections allows";
                warn!(user = name(user), reason, "client refused");
            }
            Event::HandshakeFailed { reason } => debug!("handshake failed: {reason}"),
            Event::Forgotten { events } => {
                warn!("{events} events of shard {} are not told of: they were too many at once", self.shard.index().0);
            }
        }
    }
}

/// The kind of this event's lines, each of which has a rate limit of its own.
fn kind(event: &Event) -> Option<Kind> {
    match event {
        Event::Attached { .. } => Some(Kind::Connected),
        Event::Detached { .. } => Some(Kind::Disconnected),
        Event::UnknownCertificate { .. } => Some(Kind::UnknownCertificate),
        Event::PoolExhausted { .. } | Event::PoolReserved { .. } => Some(Kind::NoAddress),
        Event::TooManyConnections { .. } => Some(Kind::TooManyConnections),
        Event::HandshakeFailed { .. } => Some(Kind::HandshakeFailed),
        // Thousands of events make one; narrowed paths are limited by the shard.
        Event::Forgotten { .. } | Event::PathNarrowed { .. } => None,
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
