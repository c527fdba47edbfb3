//! The shell's own core around each shard: its turns over descriptors of a simulated kernel, its mesh, its wakers and commands.

pub mod kernel;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tollgate::gateway::busy::BusyShare;
use tollgate::gateway::client_mtus::ClientMtus;
use tollgate::gateway::core::{Core, CoreCommand, Generations, Next, Progress};
use tollgate::gateway::interrupt_moderation::InterruptModeration;
use tollgate::gateway::memory::Trim;
use tollgate::gateway::mesh::Mesh;
use tollgate::gateway::notices::{self, Notice};
use tollgate::gateway::pending::Pending;
use tollgate::gateway::waker::Waker;
use tollgate::io::{ShardSockets, TunSteering};
use tollgate::packet_io::PacketIo;
use tollgate_shards::{Command, Event, Shard, ShardIndex, Snapshot};

use crate::plan::ShellPlan;
use crate::random::Stream;
use kernel::{Alarm, Map, Queue, SharedQueue, SharedSocket, Simulated, Socket};

type Told = Rc<RefCell<Vec<Event>>>;
type Tell = Box<dyn FnMut(ShardIndex, Event, &Snapshot)>;

/// What a core does between two turns.
#[derive(Debug, Clone, Copy)]
enum Rest {
    /// Its next turn is no earlier.
    Until(Instant),
    /// It has had its turn at `since`, sleeps from `from` on, and until `until` at the latest.
    Asleep { since: Instant, from: Instant, until: Option<Instant> },
    /// It has ended.
    Over,
}

/// A shard with the shell's core around it.
pub struct Machine {
    pub core: Core<Simulated, Tell>,
    commands: Sender<CoreCommand<Simulated>>,
    waker: Waker<Alarm>,
    rest: Rest,
    /// What it had received, and said to others, when something came of a turn last, and the turns since.
    done: u64,
    pub idle_turns: u32,
    pub live: SharedSocket,
    pub handshakes: SharedSocket,
    pub tun: SharedQueue,
}

impl Machine {
    /// Whether it has a turn at `now`.
    pub fn is_due(&self, now: Instant) -> bool {
        match self.rest {
            Rest::Until(at) => at <= now,
            Rest::Asleep { from, until, .. } => {
                from <= now && (until.is_some_and(|until| until <= now) || self.waker.descriptor().is_ready())
            }
            Rest::Over => false,
        }
    }

    /// When it has its next turn, if nothing happens.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        match self.rest {
            Rest::Until(at) => Some(at),
            Rest::Asleep { from, .. } if now < from => Some(from),
            Rest::Asleep { until, .. } => until,
            Rest::Over => None,
        }
    }

    /// Whether it has ended, as it was told to.
    pub fn is_over(&self) -> bool {
        matches!(self.rest, Rest::Over)
    }

    /// Whether it sleeps although something waits that nobody will wake it for.
    pub fn oversleeps(&self) -> bool {
        let waits = !self.core.mesh.is_idle() || !self.core.commands.is_empty();
        matches!(self.rest, Rest::Asleep { .. }) && waits && !self.waker.descriptor().is_ready()
    }

    /// Gives it a command, as the control plane does.
    pub fn command(&self, command: CoreCommand<Simulated>) {
        let _ = self.commands.send(command);
        self.waker.wake();
    }

    pub fn order(&self, command: Command) {
        self.command(match command {
            Command::Apply { id, snapshot } => CoreCommand::Apply { id, snapshot },
            Command::Kick { id, user } => CoreCommand::Kick { id, user },
            Command::Drain { over, within } => CoreCommand::Drain { over, within },
            Command::Resume => CoreCommand::Resume,
            Command::Stop => CoreCommand::Stop,
        });
    }

    /// A turn. It takes `cost`, in which the core sees nothing new.
    pub fn turn(&mut self, now: Instant, cost: Duration) -> Next {
        if let Rest::Asleep { since, until, .. } = self.rest {
            self.core.sleep(since, until);
        }
        let next = self.core.turn(now);
        let traffic = self.core.packet_io.traffic();
        // The home of a user whose connections are elsewhere only grants tokens.
        let done = traffic.udp_receives + traffic.tun_reads + self.core.shard.counters().messages;
        let is_idle = done == self.done && self.live.borrow().sent.is_empty();
        (self.done, self.idle_turns) = (done, if is_idle { self.idle_turns + 1 } else { 0 });
        self.rest = match next {
            Next::Gather(until) => Rest::Until(until.max(now + cost)),
            Next::End => Rest::Over,
            Next::Sleep(until) => Rest::Asleep { since: now, from: now + cost, until },
            _ => Rest::Until(now + cost),
        };
        next
    }
}

/// What all cores share, and the control plane's part.
pub struct Shell {
    pub plan: ShellPlan,
    pub random: Stream,
    pub refusals: Stream,
    told: Told,
    notices: Receiver<Notice>,
    pub map: Map,
    /// Datagrams and frames that the kernel had no room for, or that went with their descriptor.
    pub lost: u64,
    pub tun_generation: u64,
    pub udp_generation: u64,
    /// Cores that have not closed their sockets yet.
    pub releasing: BTreeSet<u16>,
}

impl Shell {
    /// Puts the shell's cores around `shards`.
    pub fn assemble(
        plan: ShellPlan,
        (random, refusals): (Stream, Stream),
        shards: Vec<Shard>,
        snapshot: &Arc<Snapshot>,
        now: Instant,
    ) -> (Shell, Vec<Machine>) {
        let (notice_sender, notices) = notices::channel(Alarm::default());
        let (told, map, client_mtus) = (Told::default(), Map::default(), ClientMtus::default());
        #[expect(clippy::arc_with_non_send_sync, reason = "the shell shares it between threads; here there is one")]
        let steering = Arc::new(TunSteering::over(map.clone()));
        let wakers: Vec<_> = shards.iter().map(|_| Waker::new(Alarm::default())).collect();
        let ends = Mesh::between(&wakers, plan.mesh_messages_max);
        let machine = |((shard, mesh), waker): ((Shard, _), Waker<Alarm>)| {
            let (sockets, live, handshakes) = open_sockets(&plan);
            let (queue, tun) = Queue::open(plan.tun_frames_max);
            let (commands, receiver) = unbounded();
            let mut packet_io =
                PacketIo::new(sockets.live, Some(queue), waker.descriptor()).expect("descriptors do not run out");
            packet_io.set_handshakes(sockets.handshakes, waker.descriptor()).expect("descriptors do not run out");
            let told = told.clone();
            let tell: Tell = Box::new(move |_, event, _| told.borrow_mut().push(event));
            let core = Core {
                cpu: 0,
                shard,
                snapshot: snapshot.clone(),
                packet_io,
                mesh,
                waker: waker.clone(),
                commands: receiver,
                moderation: InterruptModeration::new(plan.coalesce, now),
                busy_poll: plan.busy_poll,
                busy: BusyShare::new(now),
                pending: Pending::default(),
                trim: Trim::default(),
                steering: Some(steering.clone()),
                notices: notice_sender.clone(),
                generations: Generations::default(),
                client_mtus: client_mtus.sender(notice_sender.wake().clone()),
                tell,
                progress: Progress::default(),
            };
            Machine { core, commands, waker, rest: Rest::Until(now), done: 0, idle_turns: 0, live, handshakes, tun }
        };
        let machines = shards.into_iter().zip(ends).zip(wakers).map(machine).collect();
        let shell = Shell {
            plan,
            random,
            refusals,
            told,
            notices,
            map,
            lost: 0,
            tun_generation: 0,
            udp_generation: 0,
            releasing: BTreeSet::new(),
        };
        (shell, machines)
    }

    /// What shards have told.
    pub fn take_told(&self) -> Vec<Event> {
        self.told.take()
    }

    /// The next notice of a core.
    pub fn next_notice(&self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }

    /// How long a turn takes: little, or long, where the core was taken from the shell.
    pub fn turn_cost(&mut self) -> Duration {
        let stall_max = self.plan.stall_max;
        if !stall_max.is_zero() && self.random.permille(30) {
            return self.random.duration(self.plan.turn_cost, self.plan.turn_cost + stall_max);
        }
        self.plan.turn_cost
    }
}

/// The sockets of a shard, and the kernel's side of both.
pub fn open_sockets(plan: &ShellPlan) -> (ShardSockets<Socket>, SharedSocket, SharedSocket) {
    let (live, live_state) = Socket::open(plan.receive_bytes_max, plan.send_bytes_max);
    let (handshakes, handshakes_state) = Socket::open(plan.handshake_bytes_max, plan.send_bytes_max);
    (ShardSockets { live, handshakes }, live_state, handshakes_state)
}
