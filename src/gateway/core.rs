//! One core: a shard, a UDP socket and a TUN queue, and the passes over them on a thread of their own.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use serde::{Deserialize, Serialize};
use tollgate_shards::{Command, CommandId, Counters, Event, Held, Machine, Shard, Snapshot, SteeringUpdate, UserIndex};
use tracing::{debug, info, warn};

use super::awaited::Awaited;
use super::client_mtus::Mtus;
use super::coalescing::Coalescing;
use super::memory::{self, Trim};
use super::mesh::{Bell, Mesh};
use super::threads::{CoreThread, RunningThread};
use super::upkeep::{Task, Tasks};
use crate::io::{ShardSockets, TunQueue, TunSteering};
use crate::log::{self, Kind};
use crate::pump::{Lost, Pump, Traffic};

/// How long a stopping shard stays to repeat its goodbyes to clients that have not heard them.
const LINGER: Duration = Duration::from_millis(300);
/// How soon held messages are tried again.
const HELD_RETRY: Duration = Duration::from_micros(200);

/// What the control thread asks of a core.
pub enum Order {
    /// Says goodbye to every client and ends.
    Stop,
    /// Wants to know how things stand.
    Report(Sender<Report>),
    /// Goes over to another epoch. Answered when every shard has, and nothing that the new one forbids is under way any more.
    Apply {
        /// The order's number.
        ticket: CommandId,
        /// The next epoch.
        epoch: Arc<Snapshot>,
        /// The channel for the answer.
        done: Sender<Carried>,
    },
    /// Closes a user's connections. Answered likewise.
    Kick {
        /// The order's number.
        ticket: CommandId,
        /// The user whose connections are closed.
        user: UserIndex,
        /// The channel for the answer.
        done: Sender<Carried>,
    },
    /// Takes another TUN queue, of a device that was made anew so many times.
    Tun(TunQueue, u64),
    /// Closes the UDP sockets, and says so.
    ReleaseUdp(Sender<()>),
    /// Takes other UDP sockets, where all were opened anew so many times.
    Udp(ShardSockets, u64),
}

/// A core's word that an order has been carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// The index of the shard.
    pub shard: u16,
    /// Connections of this shard that were closed for it.
    pub closed_connections: u64,
}

/// How often the descriptors of a core were made anew.
#[derive(Debug, Default, Clone, Copy)]
pub struct Generations {
    udp: u64,
    tun: u64,
}

/// How things stand on one core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The index of the shard.
    pub shard: u16,
    /// The CPU it is pinned to.
    pub cpu: usize,
    /// Connections that it owns.
    pub owned_connections: usize,
    /// Addresses held, where the shard is their keeper.
    pub addresses_held: Option<u64>,
    /// What is held for others.
    #[serde(default)]
    pub memory: Held,
    /// What the engine counted.
    pub counters: Counters,
    /// What the descriptors moved.
    pub traffic: Traffic,
}

/// What a pass found, which decides whether to sleep before the next one.
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
    /// The newest epoch that was ordered, for the log: it knows the users of all earlier ones.
    pub epoch: Arc<Snapshot>,
    /// The shard's descriptors.
    pub pump: Pump,
    /// This core's end of the mesh.
    pub mesh: Mesh,
    /// Wakes this core when it sleeps.
    pub bell: Bell,
    /// Where the control thread's orders come from.
    pub orders: Receiver<Order>,
    /// How long work may gather while the core is busy.
    pub coalesce: Duration,
    /// How long to go on looking after the last packet before sleeping.
    pub busy_poll: Duration,
    /// The order under way.
    pub awaited: Awaited,
    /// Gives memory back after a flood.
    pub trim: Trim,
    /// The kernel's steering of inner addresses, where there is one.
    pub steering: Option<Arc<TunSteering>>,
    /// The thread that replaces failed descriptors.
    pub upkeep: Tasks,
    /// How often that was done.
    pub generations: Generations,
    /// Where what is known of clients' paths goes.
    pub client_mtus: Mtus,
    /// Who is told when the core has ended.
    pub ended: Sender<u16>,
}

impl Core {
    /// Runs the core on `thread` until it is told to stop or fails.
    pub fn start(self, thread: CoreThread) -> RunningThread {
        thread.run(Box::new(move || {
            let _abort = AbortOnPanic;
            let (shard, ended) = (self.shard.index().0, self.ended.clone());
            let result = self.run();
            // The control thread may be past listening.
            let _ = ended.send(shard);
            result
        }))
    }

    fn run(mut self) -> io::Result<()> {
        let mut stop_by = None;
        let mut coalescing = Coalescing::new(self.coalesce, Instant::now());
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
            self.answer();
            if more || self.pump.has_more() {
                // Never back to an executor, which has no other task: glommio 0.9 parks for good, runnable task or not, when its preemption
                // timer fires between its look at the rings and its look at the queues (`run_task_queues` then says that nothing ran).
                continue;
            }
            if let Some(again) = coalescing.look_again(now, self.shard.passed_packets()) {
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

    /// In, decide, out.
    fn pass(&mut self, now: Instant, stop_by: &mut Option<Instant>) -> Passed {
        let moved = self.pump.intake(&mut self.shard, now);
        self.shard.handle_receive_buffers(self.pump.receive_buffers_bytes());
        let more = self.mesh.receive(|message| self.shard.handle_message(now, message));
        self.take_orders(now, stop_by);
        if self.shard.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.shard.handle_timeout(now);
        }
        self.shard.decide(now);
        self.trim.handle_pass(self.shard.held().total_bytes());
        self.pump.output(&mut self.shard, now);
        self.report_lost(Lost::default());
        while let Some(steer) = self.shard.poll_steer() {
            self.steer(steer);
        }
        while let Some(mtu) = self.shard.poll_client_mtu() {
            self.client_mtus.hold(mtu);
        }
        while let Some((to, message)) = self.shard.poll_message() {
            let lost = self.mesh.send(to, message);
            if lost > 0 {
                self.shard.handle_drop(tollgate_shards::DropReason::MeshFull, lost);
            }
        }
        while let Some(event) = self.shard.poll_event() {
            self.log(event);
        }
        Passed { moved, more }
    }

    fn sleep(&mut self, now: Instant, deadline: Option<Instant>) {
        let (pump, mesh, orders) = (&mut self.pump, &self.mesh, &self.orders);
        self.bell.sleep(
            || mesh.is_idle() && orders.is_empty(),
            |is_idle| {
                if is_idle {
                    pump.sleep(now, deadline);
                }
                pump.take_woken()
            },
        );
    }

    /// Asks for what the pump has given up, and for what it could not be given (`refused`).
    fn report_lost(&mut self, refused: Lost) {
        let Lost { udp, tun } = self.pump.take_lost();
        let lost = Lost { udp: udp || refused.udp, tun: tun || refused.tun };
        if lost.udp {
            self.upkeep.tell(Task::LostUdp(self.generations.udp));
        }
        if lost.tun {
            self.upkeep.tell(Task::LostTun(self.generations.tun));
        }
    }

    fn take_orders(&mut self, now: Instant, stop_by: &mut Option<Instant>) {
        loop {
            let order = match self.orders.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Disconnected) if stop_by.is_none() => Order::Stop,
                Err(_) => return,
            };
            match order {
                Order::Stop if stop_by.is_some() => {}
                Order::Stop => {
                    *stop_by = Some(now + LINGER);
                    self.shard.handle_command(now, Command::Stop);
                }
                Order::Report(to) => {
                    // Whoever asked may have given up waiting.
                    let _ = to.send(self.report());
                }
                Order::Apply { ticket, epoch, done } => {
                    let before = std::mem::replace(&mut self.epoch, epoch.clone());
                    self.awaited.begin_apply(ticket, done, before, epoch.clone());
                    self.shard.handle_command(now, Command::Apply { ticket, epoch });
                }
                Order::Kick { ticket, user, done } => {
                    self.awaited.begin_kick(ticket, done, user);
                    self.shard.handle_command(now, Command::Kick { ticket, user });
                }
                Order::Tun(queue, generation) => {
                    self.generations.tun = generation;
                    // Descriptors have run out: the one who made the queue makes another one.
                    let tun = self.pump.set_tun(Some(queue), self.bell.wake()).is_err();
                    self.report_lost(Lost { tun, udp: false });
                }
                Order::ReleaseUdp(released) => {
                    // Where the poller cannot be made anew, the old one has lost the socket by itself.
                    let _ = self.pump.set_udp(None, self.bell.wake());
                    let _ = released.send(());
                }
                Order::Udp(sockets, generation) => {
                    self.generations.udp = generation;
                    let live = self.pump.set_udp(Some(sockets.live), self.bell.wake());
                    let udp = live.and(self.pump.set_handshakes(sockets.handshakes, self.bell.wake())).is_err();
                    self.report_lost(Lost { udp, tun: false });
                }
            }
        }
    }

    /// Answers the order under way, once every shard has carried it out and what this one has handed out is out.
    fn answer(&mut self) {
        if self.pump.is_flushed() {
            self.awaited.answer(self.shard.index().0, self.shard.completed());
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
            traffic: self.pump.traffic(),
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
        if let Event::Detached { user, epoch, .. } = event {
            self.awaited.count_closed(user, epoch, self.epoch.number);
        }
        let name = |user| self.epoch.directory.name(user);
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

/// Which limit the lines of this event are under.
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
