//! The gateway: sets everything up, starts a core for each shard, and gives commands to all of them.
//!
//! The control plane drives it: it hands over what the gateway's descriptors and timers bring, and takes what commands come to. This module
//! blocks while the gateway starts only, and sees no packet.

pub mod board;
pub mod busy;
mod capacity;
pub mod client_mtus;
mod commands;
pub mod core;
mod drain;
mod events;
mod groups;
pub mod interrupt_moderation;
mod keys;
pub mod limits;
pub mod memory;
pub mod mesh;
#[cfg(test)]
mod mesh_tests;
pub mod notices;
mod params;
pub mod pending;
mod placement;
mod predecessor;
mod quotas;
mod recurrence;
pub mod reload;
pub mod seat;
pub mod sibling;
mod start;
mod status;
mod successor;
mod sync;
mod threads;
mod upkeep;
mod usage;
pub mod waker;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use tollgate_config::ServerConfig;
use tollgate_netlink::NetlinkWatch;
use tollgate_shards::{Generation, IdLayoutError, Shards, Snapshot, Users};
use zeroize::Zeroizing;

pub use self::core::Report;
pub use board::CoreUsage;
pub use drain::{DrainPlan, State};
pub use keys::{KeyError, KeyFile, Keys, ephemeral_reset_key, random};
pub use limits::{LimitOrder, Limited, OrderedLimits};
pub use params::congestion;
pub use predecessor::refuse;
pub use quotas::Barred;
pub use reload::{Completed, Kicked, NotLimited, Refused, ReloadUnanswered, Reloaded, Unanswered, UnknownUser};
pub use status::Status;
pub use successor::{NotUpgraded, Upgraded};
pub use upkeep::HostReport;
pub use usage::usage_interval;

use self::capacity::DescriptorError;
use self::commands::{Commands, CoreHandle};
use self::core::CoreCommand;
use self::groups::Groups;
use self::notices::Notice;
use self::predecessor::Predecessor;
use self::seat::{GivenUp, PANICS_MAX, PANICS_WINDOW, Panics};
use self::start::{ByOrder, Prepared, Started, announce, forward};
use self::successor::Replacement;
use self::threads::{Pool, ThreadError};
use self::upkeep::{Beside, Upkeep};
use crate::handshakes::{HandshakeError, Served};
use crate::host::{Host, HostError, Interface, Request};
use crate::io::{BindError, TunDevice, Wake};
use crate::records::Recorder;
use crate::usage::Book;

/// How long all cores together may take to say goodbye to their clients and end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The key file cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The UDP socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Certificates or keys.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// A CPU that is not there.
    #[error("[shards] cpus names CPU {cpu}, which this process may not use: it may use {allowed}")]
    Cpu {
        /// The CPU.
        cpu: usize,
        /// The CPUs that the process may use.
        allowed: String,
    },
    /// Connection IDs cannot be so.
    #[error("[connection_ids]: {0}")]
    Ids(#[from] IdLayoutError),
    /// There are more cores than connection IDs can tell apart.
    #[error(
        "{shards} shards are more than the {shards_max} that connection IDs with this server ID can tell apart: set count in [shards] to as \
         many, or a key in [connection_ids]"
    )]
    Shards {
        /// How many there would be.
        shards: usize,
        /// How many there may be.
        shards_max: u16,
    },
    /// The configuration is not one to take over with.
    #[error("{0} cannot change by an upgrade: both processes must have it alike; restart the gateway instead")]
    NotAlike(String),
    /// The process before this one contradicts itself.
    #[error("the gateway that runs does not say what it should: restart it instead")]
    Introduction,
    /// The process before this one has not told everything in time.
    #[error("the gateway that runs has not handed over in time")]
    NoMemory,
    /// A thread cannot be started.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// The limit of descriptors is too low.
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    /// A core does not react. What it holds goes with the process.
    #[error("shard {shard} did not end within {STOP_TIMEOUT:?}: its clients may not have been told")]
    Stuck {
        /// The index of the shard.
        shard: u16,
    },
    /// Shards have panicked too often.
    #[error(
        "shards have panicked {PANICS_MAX} times within {PANICS_WINDOW:?}, shard {shard} the last time: the gateway ends, to be started anew as a \
         whole; the log has the message and the place of each panic"
    )]
    Panics {
        /// The index of the last one.
        shard: u16,
    },
    /// A shard has panicked while there are two processes.
    #[error(
        "shard {shard} has panicked during an upgrade, in which none is started anew: this process ends, and the other one goes on; the log has \
         the message and the place of the panic"
    )]
    PanicBesideAnother {
        /// The shard's place.
        shard: u16,
    },
    /// A core's thread did not end as it should.
    #[error("a shard ended unexpectedly: {0}")]
    Lost(String),
    /// The system is out of something.
    #[error("the gateway cannot start: {0}")]
    System(#[from] io::Error),
}

/// The other process of the gateway.
enum Sibling {
    Nobody,
    /// It is to take over, or has.
    Successor(Box<Replacement>),
    /// This one has taken over from it.
    Predecessor(Box<Predecessor>),
}

/// A running gateway.
pub struct Gateway {
    shards: Shards,
    cores: Vec<CoreHandle>,
    threads: Pool,
    notices: Receiver<Notice>,
    /// Wakes the control plane for notices.
    wake: Arc<Wake>,
    /// Cores that have ended.
    ended: BTreeSet<u16>,
    /// The shard that has panicked and does not come back, and why.
    given_up: Option<(u16, GivenUp)>,
    /// The configuration in force.
    config: ServerConfig,
    /// What all keys are derived from.
    master: Zeroizing<[u8; 32]>,
    /// What of it the shards know.
    snapshot: Arc<Snapshot>,
    /// What of that is by order.
    limits: OrderedLimits,
    /// Who is over a quota, too.
    over_quota: BTreeSet<String>,
    served: Served,
    commands: Commands,
    upkeep: Upkeep,
    panics: Panics,
    /// The highest number that any incarnation of a shard has had.
    incarnations: u32,
    sibling: Sibling,
    /// What clients of the process before this one have carried.
    told_usage: Book,
    /// What has come to an end beside the commands.
    completed: VecDeque<Completed>,
    /// When all clients have been sent away, where no new ones are taken.
    drained_by: Option<Instant>,
    /// When the cores must have ended.
    stop_by: Option<Instant>,
}

impl Gateway {
    /// Opens everything, then starts the cores. Nothing is left behind when it fails.
    ///
    /// # Errors
    ///
    /// Each with one line that says what to do.
    pub fn start(
        config: &ServerConfig,
        key_file: KeyFile,
        mut host: Host,
        recorder: Option<&Recorder>,
    ) -> Result<Self, GatewayError> {
        let keys = Keys::of(&config.shards.key_file, key_file, &host.opener())?;
        let mut prepared = Prepared::of(config, keys, ByOrder::default(), (Generation::Even, 0), &host.opener())?;
        let bound = host.bind_sockets(prepared.sockets.clone())?;
        prepared.sockets.address = bound.first().map_or(config.bind(), |bound| bound.live.local_address());
        let (tun, queues) = host.make_tun(prepared.tun.clone())?;
        let (generation, address) = (prepared.shards.generation, prepared.sockets.address);
        let groups = Groups::alone(generation, prepared.sockets.options.steering, &bound, &queues, address, &mut host);
        host.change(Request::SetUp { interface: tun.index() })?;
        forward(config, tun.name(), &mut host)?;
        let queues = queues.into_iter().map(Some).collect();
        let started = Started::of(config, &mut prepared, bound, queues, groups.map(), None, recorder)?;
        announce(config, &prepared.cpus, &tun, groups.map().is_some());
        Ok(Gateway::of(config, prepared, started, tun, (groups, host), Beside::Nobody))
    }

    fn of(
        config: &ServerConfig,
        prepared: Prepared,
        started: Started,
        tun: TunDevice,
        (groups, host): (Groups, Host),
        beside: Beside,
    ) -> Self {
        let Prepared { shards, threads, master, served, snapshot, limits, over_quota, tun: plan, sockets, .. } =
            prepared;
        let Started { cores, notices, wake, panics, client_mtus, .. } = started;
        let upkeep = Upkeep::new(Interface::new(plan, &tun), tun, groups, sockets, client_mtus, beside, host);
        let gateway = Gateway {
            shards,
            cores,
            threads,
            notices,
            wake,
            ended: BTreeSet::new(),
            given_up: None,
            config: config.clone(),
            master,
            snapshot,
            limits,
            over_quota,
            served,
            commands: Commands::default(),
            upkeep,
            panics,
            incarnations: 0,
            sibling: Sibling::Nobody,
            told_usage: Book::default(),
            completed: VecDeque::new(),
            drained_by: None,
            stop_by: None,
        };
        gateway.want_usage();
        gateway
    }

    /// Readable when [`Gateway::handle_notices`] is to be called. To be drained before.
    pub fn cores_wake(&self) -> Arc<Wake> {
        self.wake.clone()
    }

    /// Readable when [`Gateway::handle_host`] is to be called. `None` where the host cannot be watched.
    pub fn host_watch(&self) -> Option<Arc<NetlinkWatch>> {
        self.upkeep.watch().cloned()
    }

    /// Takes what the cores tell.
    pub fn handle_notices(&mut self, now: Instant) {
        while let Ok(notice) = self.notices.try_recv() {
            match notice {
                Notice::Ended { shard } => {
                    self.ended.insert(shard);
                    self.commands.handle_ended(shard);
                    self.upkeep.handle_released_udp(shard, now);
                }
                Notice::Begun { command } => self.pass_on(command),
                // Waited for before the gateway serves.
                Notice::TakenOver { .. } => {}
                Notice::BegunAnew { shard, incarnation } => {
                    self.incarnations = self.incarnations.max(incarnation);
                    self.commands.handle_begun_anew(shard.place() as u16, &self.cores);
                    self.upkeep.handle_begun_anew(shard, incarnation, now);
                }
                Notice::GivenUp { shard, because } => self.given_up = Some((shard, because)),
                Notice::Report { command, report } => self.commands.handle_report(command, *report),
                Notice::Done { command, shard, closed_connections } => {
                    self.commands.handle_done(command, shard, closed_connections);
                }
                Notice::LostTun(generation) => self.upkeep.handle_lost_tun(generation, now),
                Notice::LostUdp(generation) => self.upkeep.handle_lost_udp(generation, now),
                Notice::ReleasedUdp { shard } => self.upkeep.handle_released_udp(shard, now),
            }
        }
        // What clients lose from now on is lost for good.
        if self.stop_by.is_none() {
            self.upkeep.handle_client_mtus(now);
        }
        self.commands.advance(&self.cores, now);
        self.hear_sibling(now);
    }

    /// Hears what the other process says.
    fn hear_sibling(&mut self, now: Instant) {
        self.sibling = match std::mem::replace(&mut self.sibling, Sibling::Nobody) {
            Sibling::Nobody => Sibling::Nobody,
            Sibling::Successor(other) => self.hear_successor(other, now),
            Sibling::Predecessor(other) => self.hear_predecessor(other, now),
        };
    }

    /// Takes changes of the host.
    pub fn handle_host(&mut self, now: Instant) {
        self.upkeep.handle_host(now);
    }

    /// When to call [`Gateway::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let upkeep = if self.stop_by.is_none() { self.upkeep.poll_timeout() } else { None };
        let sibling = match &self.sibling {
            Sibling::Nobody => None,
            Sibling::Successor(other) => other.poll_timeout(),
            Sibling::Predecessor(other) => other.poll_timeout(),
        };
        [self.stop_by, upkeep, self.commands.poll_timeout(), sibling].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.stop_by.is_none() {
            self.upkeep.handle_timeout(now, &self.cores);
        }
        self.commands.advance(&self.cores, now);
        self.hear_sibling(now);
    }

    /// Whether no command is pending.
    pub fn is_idle(&self) -> bool {
        self.commands.is_idle()
    }

    /// The configuration in force.
    pub fn config(&self) -> &ServerConfig {
        &self.config
    }

    /// What each core has published, in order; a core that has not begun has nothing. Neither asks a core nor waits for one.
    pub fn reports(&self) -> Vec<Option<Report>> {
        self.cores.iter().map(|core| core.board.report()).collect()
    }

    /// The number of the configuration in force.
    pub fn epoch(&self) -> u64 {
        self.snapshot.version
    }

    /// The host, as far as it is this gateway's.
    pub fn host(&mut self) -> &mut Host {
        self.upkeep.host()
    }

    /// What was put back on the host.
    pub fn host_report(&self) -> HostReport {
        self.upkeep.report()
    }

    /// Asks every core for its status, and gives up what was pending. [`Gateway::poll_completed`] has it when all have answered, or time is
    /// over.
    pub fn begin_status(&mut self, now: Instant) {
        self.commands.begin_status(&self.cores, false, now);
    }

    /// The same, with [`Gateway::usage`] of this moment in all cores that answer: a tenth of a second old at most.
    pub fn begin_survey(&mut self, now: Instant) {
        self.commands.begin_status(&self.cores, true, now);
    }

    /// The users in force.
    pub fn users(&self) -> &Arc<Users> {
        &self.snapshot.users
    }

    /// What has come to an end. Where that is the pending command, the next one may begin then.
    pub fn poll_completed(&mut self, now: Instant) -> Option<Completed> {
        if let Some(completed) = self.completed.pop_front() {
            return Some(completed);
        }
        match self.commands.take_completed()? {
            Completed::Status(mut status) => {
                status.host = self.upkeep.report();
                Some(Completed::Status(status))
            }
            Completed::ForSuccessor { order, result } => {
                self.answer_successor(order, result);
                None
            }
            completed => self.complete_with_predecessor(completed, now),
        }
    }

    /// Whether a core has ended, which none should before [`Gateway::begin_stop`].
    pub fn has_lost_a_core(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Has the cores say goodbye to every client and end.
    pub fn begin_stop(&mut self, now: Instant) {
        self.upkeep.remove_client_routes(now);
        self.sibling = match std::mem::replace(&mut self.sibling, Sibling::Nobody) {
            // The gateway is to stop, not to go on with another process.
            Sibling::Successor(other) if !other.is_serving() => {
                other.give_up(self.upkeep.host());
                Sibling::Nobody
            }
            Sibling::Predecessor(other) => {
                other.stop();
                Sibling::Predecessor(other)
            }
            sibling => sibling,
        };
        for core in &self.cores {
            core.send(CoreCommand::Stop);
        }
        self.stop_by = Some(now + STOP_TIMEOUT);
    }

    /// Whether all cores have ended, or the time for that is over.
    pub fn has_stopped(&self, now: Instant) -> bool {
        self.ended.len() == self.cores.len() || self.stop_by.is_some_and(|stop_by| stop_by <= now)
    }

    /// Ends, once [`Gateway::has_stopped`].
    ///
    /// # Errors
    ///
    /// If shards had panicked too often, or a core has not ended.
    pub fn finish(self) -> Result<(), GatewayError> {
        if let Some((shard, because)) = self.given_up {
            return Err(given_up(shard, because));
        }
        if let Some(shard) = (0..self.cores.len() as u16).find(|shard| !self.ended.contains(shard)) {
            return Err(GatewayError::Stuck { shard });
        }
        drop(self.cores);
        let ended = self.threads.join().map_err(GatewayError::Lost);
        if let Sibling::Successor(other) = self.sibling {
            other.close();
        }
        self.upkeep.finish();
        ended
    }
}

fn given_up(shard: u16, because: GivenUp) -> GatewayError {
    match because {
        GivenUp::TooMany => GatewayError::Panics { shard },
        GivenUp::BesideAnother => GatewayError::PanicBesideAnother { shard },
    }
}
