//! The shell's own core around each shard: its turns over descriptors of a simulated kernel, its mesh, its wakers and commands.

pub mod kernel;
pub mod steering;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod upgrade_tests;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tollgate::gateway::client_mtus::ClientMtus;
use tollgate::gateway::core::{Core, CoreCommand, Generations, Next};
use tollgate::gateway::memory::Trim;
use tollgate::gateway::mesh::Mesh;
use tollgate::gateway::notices::{self, Notice};
use tollgate::gateway::pending::Pending;
use tollgate::gateway::seat::{Life, Panics, Seat, Standing};
use tollgate::gateway::waker::Waker;
use tollgate::io::{ShardSockets, TunSteering};
use tollgate::packet_io::PacketIo;
use tollgate_shards::{Command, Event, Params, Shard, ShardIndex, ShardKeys, Snapshot};

use crate::plan::ShellPlan;
use crate::random::Stream;
use kernel::{Alarm, Fate, PlannedPanic, Queue, SharedQueue, SharedSocket, Simulated, Socket};
use steering::Map;

type Told = Rc<RefCell<Vec<Event>>>;
/// Places where a core may panic.
pub const FATES: usize = 6;

type Tell = Box<dyn FnMut(ShardIndex, tollgate_shards::Told, &Snapshot)>;

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
    /// Asked for each event that is told.
    tells: Rc<Fate>,
}

/// The turn of a core has ended in a panic that was planned.
#[derive(Debug)]
pub struct Panicked;

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
        let waits = !self.core.seat.mesh.is_idle() || !self.core.seat.commands.is_empty();
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
            Command::Drain { over, within, to_successor } => CoreCommand::Drain { over, within, to_successor },
            Command::Resume => CoreCommand::Resume,
            Command::Stop => CoreCommand::Stop,
            Command::HandOver { id, to, incarnation } => CoreCommand::HandOver { id, to, incarnation },
            Command::TakeBack { id, incarnation } => CoreCommand::TakeBack { id, incarnation },
            Command::PredecessorGone => CoreCommand::PredecessorGone,
        });
    }

    /// The core is to panic, at the `which`-th of the places where it may, when it comes there for the time after so many.
    pub fn panic_at(&self, which: usize, times: u64) {
        self.at_fate(which, |fate| fate.panic_after(times));
    }

    /// It is not to panic.
    pub fn spare(&self) {
        (0..FATES).for_each(|which| self.at_fate(which, Fate::spare));
    }

    fn at_fate(&self, which: usize, act: impl FnOnce(&Fate)) {
        match which {
            0 | 1 => act(&self.live.borrow().fates[which]),
            2 => act(&self.handshakes.borrow().fates[0]),
            3 | 4 => act(&self.tun.borrow().fates[which - 3]),
            _ => act(&self.tells),
        }
    }

    /// A turn. It takes `cost`, in which the core sees nothing new.
    pub fn turn(&mut self, now: Instant, cost: Duration) -> Result<Next, Panicked> {
        let lived = catch_unwind(AssertUnwindSafe(|| {
            if let Rest::Asleep { since, until, .. } = self.rest {
                self.core.sleep(since, until);
            }
            self.core.turn(now)
        }));
        let next = match lived {
            Ok(next) => next,
            Err(payload) if payload.is::<PlannedPanic>() => {
                self.rest = Rest::Until(now + cost);
                return Err(Panicked);
            }
            Err(payload) => resume_unwind(payload),
        };
        let traffic = self.core.seat.packet_io.traffic();
        // The home of a user whose connections are elsewhere only grants tokens.
        let done = traffic.udp_receives + traffic.tun_reads + self.core.life.shard.counters().messages;
        let is_idle = done == self.done && self.live.borrow().sent.is_empty();
        (self.done, self.idle_turns) = (done, if is_idle { self.idle_turns + 1 } else { 0 });
        self.rest = match next {
            Next::Gather(until) => Rest::Until(until.max(now + cost)),
            Next::End => Rest::Over,
            Next::Sleep(until) => Rest::Asleep { since: now, from: now + cost, until },
            _ => Rest::Until(now + cost),
        };
        Ok(next)
    }
}

/// What all cores share, and the control plane's part.
pub struct Shell {
    pub plan: ShellPlan,
    pub random: Stream,
    pub refusals: Stream,
    pub panics: Stream,
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
        [random, refusals, panics]: [Stream; 3],
        shards: Vec<Shard>,
        (params, keys): (&Params, &ShardKeys),
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
            let (told, tells) = (told.clone(), Rc::new(Fate::default()));
            let fate = tells.clone();
            let tell: Tell = Box::new(move |_, told_now, _| {
                fate.ask();
                told.borrow_mut().push(told_now.event);
            });
            let seat = Seat {
                cpu: 0,
                params: Params { index: shard.index(), ..params.clone() },
                keys: keys.clone(),
                snapshot: snapshot.clone(),
                packet_io,
                mesh,
                sibling: None,
                waker: waker.clone(),
                commands: receiver,
                coalesce: plan.coalesce,
                busy_poll: plan.busy_poll,
                pending: Pending::default(),
                trim: Trim::default(),
                steering: Some(steering.clone()),
                notices: notice_sender.clone(),
                generations: Generations::default(),
                client_mtus: client_mtus.sender(notice_sender.wake().clone()),
                tell,
                standing: Standing::default(),
                panics: Panics::default(),
                publisher: None,
            };
            let core = Core { life: Life::of(shard, plan.coalesce, now), seat };
            let rest = Rest::Until(now);
            Machine { core, commands, waker, rest, done: 0, idle_turns: 0, live, handshakes, tun, tells }
        };
        let machines = shards.into_iter().zip(ends).zip(wakers).map(machine).collect();
        let shell = Shell {
            plan,
            random,
            refusals,
            panics,
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
