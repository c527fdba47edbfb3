//! One core: a glommio executor that owns a shard, a UDP socket and a TUN queue, and runs its passes.
//!
//! This module decides nothing about packets.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use serde::{Deserialize, Serialize};
use tollgate_shards::home::Steer;
use tollgate_shards::{Command, Counters, Directory, Event, Machine, Shard};
use tracing::{debug, info, warn};

use super::GatewayError;
use super::mesh::{Bell, Mesh};
use crate::io::TunSteering;
use crate::pump::{Pump, Traffic};

/// glommio's own I/O memory, in bytes. The data path does its own system calls and needs none of it.
const IO_MEMORY_BYTES: usize = 64 * 1024;
/// How long a stopping shard stays to repeat its goodbyes to clients that have not heard them.
const LINGER: Duration = Duration::from_millis(300);
/// Longer than it takes to start on the busiest machine: a core is its executor's only task and is never preempted.
const PREEMPT_TIMER: Duration = Duration::from_secs(3600);
/// How soon held messages are tried again.
const HELD_RETRY: Duration = Duration::from_micros(200);

/// What the control thread asks of a core.
pub enum Order {
    /// Says goodbye to every client and ends.
    Stop,
    /// Wants to know how things stand.
    Report(Sender<Report>),
}

/// How things stand on one core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The shard.
    pub shard: u16,
    /// The CPU it is pinned to.
    pub cpu: usize,
    /// Connections that it owns.
    pub owned_connections: usize,
    /// Addresses held, where the shard is their keeper.
    pub addresses_held: Option<u64>,
    /// What the engine counted.
    pub counters: Counters,
    /// What the descriptors moved.
    pub traffic: Traffic,
}

/// All that a core starts with.
pub struct Core {
    /// The CPU to pin to.
    pub cpu: usize,
    /// The shard.
    pub shard: Shard,
    /// The users, for the log.
    pub directory: Arc<Directory>,
    /// The shard's descriptors.
    pub pump: Pump,
    /// Its end of the mesh.
    pub mesh: Mesh,
    /// How others wake it.
    pub bell: Bell,
    /// Where the control thread's orders come from.
    pub orders: Receiver<Order>,
    /// The kernel's steering of inner addresses, where there is one.
    pub steering: Option<Arc<TunSteering>>,
    /// Who is told when the core has ended.
    pub ended: Sender<u16>,
}

impl Core {
    /// Starts the executor, pinned to its CPU.
    ///
    /// # Errors
    ///
    /// If glommio cannot start it.
    pub fn spawn(self) -> Result<ExecutorJoinHandle<io::Result<()>>, GatewayError> {
        let (shard, cpu) = (self.shard.index().0, self.cpu);
        LocalExecutorBuilder::new(Placement::Fixed(cpu))
            .name(&format!("tollgate-{shard}"))
            .io_memory(IO_MEMORY_BYTES)
            .preempt_timer(PREEMPT_TIMER)
            .spawn(move || async move {
                let _abort = AbortOnPanic;
                let ended = self.ended.clone();
                let result = self.run();
                // The control thread may be past listening.
                let _ = ended.send(shard);
                result
            })
            .map_err(|error| GatewayError::Executor { shard, cpu, reason: error.to_string() })
    }

    fn run(mut self) -> io::Result<()> {
        let mut stop_by = None;
        loop {
            let now = Instant::now();
            let busy = self.pass(now, &mut stop_by)?;
            if stop_by
                .is_some_and(|stop_by| self.shard.has_said_goodbye() && (stop_by <= now || self.shard.is_stopped()))
            {
                return Ok(());
            }
            let holding = self.mesh.flush();
            if busy || self.pump.has_more() {
                // Never back to the executor, which has no other task: glommio 0.9 parks for good, runnable task or not, when its preemption
                // timer fires between its look at the rings and its look at the queues (`run_task_queues` then says that nothing ran).
                continue;
            }
            let deadline = self.shard.poll_timeout().map(|(at, _)| at);
            let retry = holding.then_some(now + HELD_RETRY);
            self.sleep(now, [deadline, retry, stop_by].into_iter().flatten().min())?;
        }
    }

    /// In, decide, out. Returns whether other shards may have more.
    fn pass(&mut self, now: Instant, stop_by: &mut Option<Instant>) -> io::Result<bool> {
        self.pump.intake(&mut self.shard, now)?;
        let busy = self.mesh.receive(|message| self.shard.handle_message(now, message));
        self.take_orders(now, stop_by);
        if self.shard.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.shard.handle_timeout(now);
        }
        self.shard.decide(now);
        self.pump.output(&mut self.shard, now)?;
        while let Some(steer) = self.shard.poll_steer() {
            self.steer(steer);
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
        Ok(busy)
    }

    fn sleep(&mut self, now: Instant, deadline: Option<Instant>) -> io::Result<()> {
        self.bell.fall_asleep();
        let slept = if self.mesh.is_idle() && self.orders.is_empty() { self.pump.sleep(now, deadline) } else { Ok(()) };
        self.bell.wake_up();
        slept
    }

    fn take_orders(&mut self, now: Instant, stop_by: &mut Option<Instant>) {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Report(to)) => {
                    // Whoever asked may have given up waiting.
                    let _ = to.send(self.report());
                }
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) if stop_by.is_none() => {
                    *stop_by = Some(now + LINGER);
                    self.shard.handle_command(now, Command::Stop);
                }
                Ok(Order::Stop) => {}
                Err(_) => return,
            }
        }
    }

    fn report(&self) -> Report {
        Report {
            shard: self.shard.index().0,
            cpu: self.cpu,
            owned_connections: self.shard.owned_connections(),
            addresses_held: self.shard.addresses_held(),
            counters: self.shard.counters(),
            traffic: self.pump.traffic(),
        }
    }

    fn steer(&self, Steer { address, owner }: Steer) {
        let Some(steering) = &self.steering else { return };
        if let Err(error) = steering.set(address, owner.map(|owner| usize::from(owner.0))) {
            // Not lost: the mesh carries what arrives at the wrong shard.
            debug!(%address, %error, "the TUN steering map was not updated");
        }
    }

    fn log(&self, event: Event) {
        let name = |user| self.directory.user(user).name.as_str();
        match event {
            Event::Attached { user, connection, address } => {
                info!(user = name(user), shard = connection.owner.0, "client connected");
                debug!(user = name(user), %address, "address leased");
            }
            Event::Detached { user, connection, reason } => {
                info!(user = name(user), shard = connection.owner.0, reason, "client disconnected");
            }
            Event::UnknownCertificate { certificate } => {
                warn!(%certificate, "client refused: no user has this certificate");
            }
            Event::PoolExhausted { user } => {
                let reason = "no address is free: widen tunnel_network or the user's address_pool";
                warn!(user = name(user), reason, "client refused");
            }
            Event::HandshakeFailed { reason } => debug!(reason, "handshake failed"),
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
